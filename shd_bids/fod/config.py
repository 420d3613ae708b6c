"""Tuned numbers of the method, which belong to weights as they were tuned together, and the domain these were trained on.

They are stored in the metadata of a weights file; one without them has the defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

CHANNELS = (
    *("wiener", "wiener_smooth", "wiener_smoother", "nonnegative", "gm", "csf", "b0", "noise", "resolution"),
    *("sharp", "sharp_3", "sharp_5", "sharp_along", "sharp_3_along", "sharp_5_along"),
)
"""Input channels that serve any protocol, in order: Wiener estimates, ISRA, fractions, mean b=0, properties of the first
estimate, then ADMM estimates from the mean over 1, 3 x 3 x 3 and 5 x 5 x 5 voxels, and the same averaged along each axis."""


@dataclass(frozen=True)
class Stored:
    """Values that a file keeps as JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-safe values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from :meth:`to_dict`; what is missing has its default.

        Raises
        ------
        ValueError
            When a name is not known.
        """
        unknown = sorted(set(values) - {item.name for item in fields(cls)})
        if unknown:
            raise ValueError(f"{cls.__name__} has no {', '.join(unknown)}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


@dataclass(frozen=True)
class InputConfig(Stored):
    """Numbers of the estimates that a network is fed with, see :class:`shd_bids.fod.inputs.estimates.Estimates`.

    Attributes
    ----------
    channels : tuple of str
        :data:`CHANNELS`, or the shells of one protocol by their names, see :func:`shd_bids.fod.inputs.shells.shell_channels`.
    l_max : int
        Degree of the Wiener estimates; the prior damps what the data cannot support.
    prior_kappa : float
        Width of the lobes in the prior: their power falls as :math:`e^{-l(l+1)/2\\kappa}`.
    prior_wm, prior_isotropic : float
        Second moment of the amount of white matter, and of each isotropic tissue, times :math:`4\\pi` of degree 0.
    wiener_noise : tuple of float
        Noise assumed by the Wiener estimates, over the noise level.
    least_noise, least_admm_noise : float
        Smallest noise assumed by the Wiener and the ADMM estimates, relative to white matter at b=0.
    fraction_range : (float, float)
        Bounds of the estimated fractions; a tissue without a response would make others unbounded.
    isra_updates : int
        More of them fit noise.
    isra_start : float
        Smallest density and fraction that the updates start from.
    admm_reach : tuple of int
        Voxels around one, along each axis, that join the mean of its signal.
    admm_penalty : tuple of float
        Penalty of each ADMM estimate, over the noise variance.
    lobe_kappa : float
        Concentration of the lobe that stands for an axis in the ADMM estimates.
    along_reach : int
        Voxels around one that averages along axes go over.
    along_length, along_width : float
        Standard deviations of these averages along the axis and across it, voxels.
    """

    channels: tuple[str, ...] = CHANNELS
    l_max: int = 12
    prior_kappa: float = 60.0
    prior_wm: float = 0.35
    prior_isotropic: float = 0.5
    wiener_noise: tuple[float, ...] = (1.0, 3.0, 9.0)
    least_noise: float = 1e-3
    least_admm_noise: float = 0.01
    fraction_range: tuple[float, float] = (-1.0, 3.0)
    isra_updates: int = 12
    isra_start: float = 0.02
    admm_reach: tuple[int, ...] = (0, 1, 2)
    admm_penalty: tuple[float, ...] = (300.0, 20.0, 10.0)
    lobe_kappa: float = 45.0
    along_reach: int = 2
    along_length: float = 2.0
    along_width: float = 0.5


@dataclass(frozen=True)
class RefinementConfig(Stored):
    """Numbers of the refinement by the data, see :func:`shd_bids.fod.refinement.refine.refine_fod`.

    Attributes
    ----------
    n_axes : int
        Axes of the lobe dictionary: four for each coefficient of degree 18.
    kappa : float
        Concentration of the lobes; degree 18 holds narrower ones with ripples.
    decomposition_updates : int
        ISRA updates that find the lobe weights of an fODF.
    small_lobe : float
        Share of the largest amplitude below which nothing grows in the decomposition.
    model_error : float
        Share of the b=0 signal by which responses miss the signal of a voxel, besides noise.
    amplitude_error : float
        Typical error of the network's tissue fractions.
    amplitude_range : (float, float)
        Bounds of the factor that the data give the fODF.
    rotations : tuple of float
        Standard deviations of the prior of rotations, degrees, among which held-out directions choose; 0 rotates nothing.
    updates : tuple of int
        Numbers of ISRA updates by the data among which held-out directions choose; 0 leaves the result without.
    tolerance : float
        The fewest updates, and the smallest rotations, win whose held-out error is within this factor of the least.
    spread : float
        Share of the white matter of a voxel that is laid evenly on all axes before the updates, so that each can grow.
    least_isotropic : float
        Least amplitude of the isotropic tissues, for the same reason.
    """

    n_axes: int = 768
    kappa: float = 90.0
    decomposition_updates: int = 20
    small_lobe: float = 0.05
    model_error: float = 0.03
    amplitude_error: float = 0.15
    amplitude_range: tuple[float, float] = (0.1, 10.0)
    rotations: tuple[float, ...] = (0.0, 2.0, 4.0, 8.0)
    updates: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32, 48, 64, 96, 128)
    tolerance: float = 1.02
    spread: float = 0.12
    least_isotropic: float = 1e-3


@dataclass(frozen=True)
class PrecisionConfig(Stored):
    """How well the fODFs of weights tell directions, see :mod:`shd_bids.fod.precision`.

    Attributes
    ----------
    noise_factor : float
        Error of the direction, over the least that the noise of one voxel allows.
    width_share : float
        Error that stays without noise, over the dispersion of the lobe.
    prominence, weak_prominence : float
        Least depth of the saddle between two fibres, as a share of the lower one, with strong weightings and without any.
    strong_bvalue : float
        From which on a weighting is strong, s/mm2.
    """

    noise_factor: float = 1.5
    width_share: float = 0.06
    prominence: float = 0.25
    weak_prominence: float = 0.12
    strong_bvalue: float = 1500.0


@dataclass(frozen=True)
class TrainedDomain(Stored):
    """Acquisitions that weights were trained on.

    Attributes
    ----------
    bvalues : (float, float)
        Smallest and largest b-value, s/mm2.
    snr : (float, float)
        Signal-to-noise ratio of white matter at b=0.
    max_shells : int
        Most shells, without b=0.
    min_directions : int
        Fewest directions that every protocol had in one of its shells.
    most_misfit : float
        Residual, over what noise and responses explain, above which a signal is unlike any that the method was made for; four
        real scans showed 1.3 to 2.
    """

    bvalues: tuple[float, float] = (500.0, 13000.0)
    snr: tuple[float, float] = (8.0, 60.0)
    max_shells: int = 5
    min_directions: int = 12
    most_misfit: float = 2.5

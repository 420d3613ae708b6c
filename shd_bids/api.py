"""The last stages of a run on arrays: peaks and streamlines of fODFs, by the defaults of the command line."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from nibabel.streamlines import ArraySequence

from shd_bids.fod.config import PrecisionConfig
from shd_bids.fod.fod import FOD
from shd_bids.nn.device import choose_device
from shd_bids.options import PeakOptions, TrackingOptions
from shd_bids.peaks.fibres import find_fibres
from shd_bids.peaks.search import Peaks
from shd_bids.scan import Scan
from shd_bids.tractography.field import FibreField
from shd_bids.tractography.track import TrackingFacts
from shd_bids.tractography.track import track as track_field
from shd_bids.tractography.tracker import Batch

__all__ = ["Tractogram", "find_peaks", "track"]

_PEAKS, _TRACKING = PeakOptions(), TrackingOptions()
_NO_ERRORS = np.zeros((3, 1))  # of directions, where no fit gave the fODFs


@dataclass(frozen=True, eq=False)
class Tractogram:
    """Streamlines and how they came about.

    Attributes
    ----------
    streamlines : ArraySequence of array, shape (p, 3), float32
        Points in world mm (RAS+); nibabel and dipy take it as it is.
    ends : array, shape (s, 2), uint8
        What is at each end, an index of :data:`shd_bids.tractography.tracker.ENDS`.
    facts : TrackingFacts
    """

    streamlines: ArraySequence
    ends: np.ndarray
    facts: TrackingFacts

    def __len__(self) -> int:
        return len(self.streamlines)


def find_peaks(
    fod: FOD,
    options: PeakOptions = _PEAKS,
    *,
    device: str = "auto",
    progress: Callable[[str, float], None] | None = None,
) -> Peaks:
    """Find the fibre directions of fODFs.

    Parameters
    ----------
    fod : FOD
        In n voxels.
    options : PeakOptions
        Without an absolute threshold it is taken from the voxels of fluid, without a prominence that of the protocol. How sure
        directions are is known of fODFs that a fit gave.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    progress : callable, optional
        Called with a text and the share done.

    Returns
    -------
    Peaks
        ``directions`` (n, K, 3) in world axes and ``amplitudes`` (n, K), largest first, zero where there is none.

    Raises
    ------
    DeviceError
        When CUDA is asked for and absent.

    Examples
    --------
    Two fibres along x and y, the second half as dense:

    >>> import numpy as np
    >>> from shd_bids import FOD, PeakOptions, find_peaks
    >>> from shd_bids.sphere.harmonics import sh_basis
    >>> wm = sh_basis(np.array([[1.0, 0, 0], [0, 1.0, 0]]), 12)
    >>> fod = FOD(wm=wm[:1] + 0.5 * wm[1:], gm=np.zeros(1), csf=np.zeros(1))
    >>> peaks = find_peaks(fod, PeakOptions(peak_max=3))
    >>> peaks.n_fibres
    array([2], dtype=uint8)
    >>> np.abs(peaks.directions[0, :2]).round(2) + 0.0
    array([[1., 0., 0.],
           [0., 1., 0.]], dtype=float32)
    """
    wm, _, csf = fod.fractions.T
    where = choose_device(device)
    prominence = fod.facts.prominence if fod.facts else PrecisionConfig().weak_prominence
    return find_fibres(
        fod.wm,
        options,
        wm_fraction=wm,
        csf_fraction=csf,
        prominence=prominence,
        direction_errors=_NO_ERRORS if fod.direction_errors is None else fod.direction_errors,
        device=where,
        progress=progress,
    ).peaks


def track(
    fod: FOD,
    scan: Scan,
    options: TrackingOptions = _TRACKING,
    *,
    random_seed: int = 0,
    n_threads: int = 1,
    progress: Callable[[str, float], None] | None = None,
) -> Tractogram:
    """Track streamlines from white matter.

    Parameters
    ----------
    fod : FOD
        In the n voxels of the scan.
    scan : Scan
        Says where they are: its mask and affine.
    options : TrackingOptions
        Its formats are those of files and count for nothing here.
    random_seed : int
        Equal seeds give equal streamlines, on any number of threads.
    n_threads : int
    progress : callable, optional
        Called with a text and the share done.

    Raises
    ------
    ValueError
        When the fODFs are of other voxels.
    InputError
        When no voxel can be seeded, or the tracker cannot be compiled.
    """
    field = FibreField(fod.wm, fod.fractions, scan.mask, scan.affine)
    batches: list[Batch] = []
    facts = track_field(field, options, batches.append, random_seed=random_seed, n_threads=n_threads, progress=progress)
    streamlines = ArraySequence()
    for batch in batches:
        streamlines.extend(batch.streamlines)
    return Tractogram(streamlines, np.concatenate([batch.ends for batch in batches]), facts)

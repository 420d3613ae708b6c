"""How well layers and networks commute with rotations (Fig. 8 of the paper): of voxels, of the grid, of both.

A smooth field (random even harmonics up to degree 6, smooth over space) is given as a function of place and direction, so a
rotated field is evaluated exactly. ``voxel`` rotates what each voxel holds, ``grid`` moves voxels about the centre, ``both``
rotates the object. The rotated output is found by interpolation that is exact for its own kind (harmonics over the sphere,
and for the grid only inside the sphere of voxels), so a floor is measured too: the same with the identity as the network.
Error: norm of f(g x) - g f(x) over that of f(x). Each seed draws field, weights and rotation. Exact symmetries of the lattice and
of the sphere grid are held to rounding in tests/nn and tests/paper instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from matplotlib.figure import Figure
from results import METRICS
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from torch import Tensor

from shd_bids.nn.layers.cheb import Grid, SphereBasis
from shd_bids.nn.layers.conv import SpatioSphericalConv
from shd_bids.nn.unet import UNet, UNetConfig
from shd_bids.sphere.harmonics import n_coefficients, sh_basis, sh_inverse
from shd_bids.sphere.healpix import hemisphere
from tests.benchmarks.paper.base import Claim, Done, Experiment, Outcome, Settings, Unit
from tests.benchmarks.paper.comparators import ConcatConv, HarmonicConv
from tests.benchmarks.paper.figures import WIDTH, bars, grouped, save
from tests.benchmarks.paper.plain_unet import HarmonicUNet, concatenated

KINDS = ("voxel", "grid", "both")
MIXED, CONCATENATED, HARMONIC, FLOOR = "E(3)xSO(3)", "concatenated SO(3)", "E(3) on harmonics", "identity (floor)"
_METHODS = (MIXED, CONCATENATED, HARMONIC)
_LAYER, _NETWORK = "layer", "U-Net"
_EDGE, _NSIDE, _DEGREE = 10, 8, 6
_SH_DEGREE = 8  # published degree of the input
_OUT_DEGREE = 12  # harmonics in which an output is rotated; higher ones are the floor's business

_Function: TypeAlias = Callable[[Tensor], Tensor]
"""Maps (B, 2, X, Y, Z, V) to (B, F, X, Y, Z, V)."""


@dataclass(frozen=True)
class Sizes:
    """Features that a layer puts out, and of the levels of a network."""

    out: int
    channels: tuple[int, ...]


_SIZES = {"small": Sizes(4, (4, 8, 8, 8)), "full": Sizes(64, (32, 64, 128, 256))}


def units(settings: Settings) -> Iterator[Unit]:
    """Yield layers and networks for each seed."""
    sizes = _SIZES[settings.scale]
    for seed in range(settings.seeds):
        for row in (_LAYER, _NETWORK):
            for method in (*_METHODS, *(FLOOR,) * (row == _LAYER)):
                yield Unit(row, method, seed, partial(measure, row, method, sizes, seed=seed, device=settings.device))


def measure(row: str, method: str, sizes: Sizes, *, seed: int, device: str) -> Outcome:
    """Return the error of each kind of rotation."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    field, rotation = Field(rng), Rotation.random(random_state=rng).as_matrix()
    function = _function(row, method, sizes, device)
    turns = {"voxel": (rotation, np.eye(3)), "grid": (np.eye(3), rotation), "both": (rotation, rotation)}
    with torch.inference_mode():
        evaluate = lambda x: function(x.to(device)).cpu().numpy()  # noqa: E731
        mapped = evaluate(field.sample(np.eye(3), np.eye(3)))
        return Outcome({k: error(evaluate(field.sample(*turn)), mapped, *turn) for k, turn in turns.items()})


def _function(row: str, method: str, sizes: Sizes, device: str) -> _Function:
    if method == FLOOR:
        return lambda x: x
    return (_layer if row == _LAYER else _network)(method, sizes, device)


def _layer(method: str, sizes: Sizes, device: str) -> _Function:
    """Return one layer of random weights."""
    if method == MIXED:
        conv = SpatioSphericalConv(
            SphereBasis(_NSIDE, hemisphere=True, order=5), (2,), out_channels=sizes.out, spatial=True
        )
        conv.to(device)
        return lambda x: conv(x.permute(5, 0, 2, 3, 4, 1).contiguous()).permute(1, 5, 2, 3, 4, 0)
    if method == CONCATENATED:
        concat = ConcatConv(Grid(_NSIDE, True), 2, sizes.out, spatial=True).to(device)
        return lambda x: concat(x.permute(0, 1, 5, 2, 3, 4)).permute(0, 1, 3, 4, 5, 2)
    return _harmonic_layer(sizes.out, device)


def _harmonic_layer(out: int, device: str) -> _Function:
    points, count = hemisphere(_NSIDE), n_coefficients(_SH_DEGREE)
    to_sh = torch.tensor(sh_inverse(points, _SH_DEGREE).T, dtype=torch.float32, device=device)
    from_sh = torch.tensor(sh_basis(points, _SH_DEGREE).T, dtype=torch.float32, device=device)
    conv = HarmonicConv(2 * count, out * count, spatial=True).to(device)

    def layer(x: Tensor) -> Tensor:
        coefficients = (x @ to_sh).movedim(-1, 2).flatten(1, 2)  # (B, 2 C, X, Y, Z)
        return conv(coefficients[:, :, None])[:, :, 0].unflatten(1, (out, count)).movedim(2, -1) @ from_sh

    return layer


def _network(method: str, sizes: Sizes, device: str) -> _Function:
    """Return a U-Net of random weights."""
    config = UNetConfig(2, sizes.out, nside=_NSIDE, channels=sizes.channels)
    if method == HARMONIC:
        return HarmonicUNet(config, degree=_SH_DEGREE, out_degree=_SH_DEGREE).to(device).eval()
    if method == CONCATENATED:
        return concatenated(config).to(device).eval()
    return UNet(config).to(device).eval()


class Field:
    """Two random features, smooth over space, even and band-limited over directions."""

    def __init__(self, rng: np.random.Generator):
        self.waves = rng.normal(size=(2, n_coefficients(_DEGREE), 4, 3)) * 0.35
        self.phase = rng.uniform(0, 2 * np.pi, size=(2, n_coefficients(_DEGREE), 4))

    def sample(self, voxel: np.ndarray, grid: np.ndarray) -> Tensor:
        """Evaluate the field with content rotated by ``voxel`` and places by ``grid``: (1, 2, X, Y, Z, V)."""
        places = centred() @ grid  # inverse rotation of each place: rows are points
        angle = np.einsum("pd,fcwd->pfcw", places, self.waves) + self.phase
        coefficients = np.cos(angle).sum(axis=3)  # (P, F, C)
        amplitudes = coefficients @ sh_basis(hemisphere(_NSIDE) @ voxel, _DEGREE).T
        return torch.tensor(amplitudes.transpose(1, 0, 2).reshape(1, 2, *[_EDGE] * 3, -1), dtype=torch.float32)


def centred() -> np.ndarray:
    """List the voxels' places about the centre, (P, 3)."""
    axis = np.arange(_EDGE) - (_EDGE - 1) / 2
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)


def error(moved_then_mapped: np.ndarray, mapped: np.ndarray, voxel: np.ndarray, grid: np.ndarray) -> float:
    """Compare the function of the rotated field with the rotated function of the field, away from the border."""
    near = np.linalg.norm(centred(), axis=1) < _EDGE / 2 - 2
    mapped_then_moved = turn_voxels(turn_grid(mapped, grid, near), voxel)
    away = at_places(moved_then_mapped, near) - mapped_then_moved
    return float(np.linalg.norm(away) / np.linalg.norm(mapped_then_moved))


def at_places(x: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Return the values (1, F, X, Y, Z, V) at some places, (F, P, V)."""
    return x.reshape(x.shape[1], -1, x.shape[5])[:, near]


def turn_voxels(x: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Rotate what each voxel holds, through harmonics."""
    points = hemisphere(_NSIDE)
    return x @ (sh_basis(points @ rotation, _OUT_DEGREE) @ sh_inverse(points, _OUT_DEGREE)).T.astype(np.float32)


def turn_grid(x: np.ndarray, rotation: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Move voxels about the centre by cubic splines, and return their values at some places, (F, P, V)."""
    if np.array_equal(rotation, np.eye(3)):
        return at_places(x, near)
    source = (centred()[near] @ rotation).T + (_EDGE - 1) / 2
    values = x[0].transpose(0, 4, 1, 2, 3)  # (F, V, X, Y, Z)
    moved = [[map_coordinates(volume, source, order=3, mode="mirror") for volume in feature] for feature in values]
    return np.array(moved).transpose(0, 2, 1)


def draw(done: Sequence[Done], file: Path) -> None:
    """Draw the errors of layer and network side by side, a group of bars for each kind of rotation."""
    figure = Figure((WIDTH, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, row in zip(axes, (_LAYER, _NETWORK), strict=True):
        here = [item for item in done if item.unit.row == row]
        by_kind = {METRICS[kind].label: grouped(here, kind).get(row, {}) for kind in KINDS}
        bars(ax, by_kind, label="relative error" if row == _LAYER else "")
        ax.set(title=row, yscale="log", ylim=(1e-3, 3))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    save(figure, file)


EXPERIMENT = Experiment(
    "equivariance",
    "Equivariance (Fig. 8)",
    units,
    KINDS,
    draw,
    tuple(
        Claim(f"E(3)xSO(3) commutes better than {other}", kind, MIXED, other)
        for other, kinds in ((CONCATENATED, ("grid", "both")), (HARMONIC, ("voxel", "both")))
        for kind in kinds
    ),
)

"""Measure how well layer and network commute with rotations, as the paper's Fig. 8 does: of voxels, of the grid, of both.

    python tests/benchmarks/equivariance.py [--json FILE] [--rotations 5] [--save] [--compare]

A smooth field (random even harmonics up to degree 6, smooth over space) is given as a function of place and direction, so a
rotated field is evaluated exactly. ``voxel`` rotates what each voxel holds, ``grid`` moves voxels about the centre, ``both``
rotates the object. The rotated output is found by interpolation that is exact for its own kind (harmonics over the sphere,
and for the grid only inside the sphere of voxels), so a floor is measured too: the same with the identity as the network.
Error: norm of f(g x) - g f(x) over that of f(x), median over random rotations. Exact symmetries of the lattice and of the sphere
grid are held to rounding in tests/nn instead.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import results
import torch
from results import Figure
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from shd_bids.nn.layers.cheb import SphereBasis
from shd_bids.nn.layers.conv import SpatioSphericalConv
from shd_bids.nn.unet import UNet, UNetConfig
from shd_bids.sphere.harmonics import n_coefficients, sh_basis, sh_inverse
from shd_bids.sphere.healpix import hemisphere

EDGE, NSIDE, DEGREE = 10, 8, 6
OUT_DEGREE = 12  # harmonics in which an output is rotated; higher ones are the floor's business


def main() -> int:
    """Print the table: rows layer and network, columns voxel, grid, both, and the floor of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rotations", type=int, default=5)
    results.add_options(parser)
    options = parser.parse_args()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    basis = SphereBasis(NSIDE, hemisphere=True, order=5)
    conv = SpatioSphericalConv(basis, (2,), out_channels=4, spatial=True)
    net = UNet(UNetConfig(2, 4, channels=(16, 32, 32, 32))).eval()
    inside = lambda x: conv(x.permute(5, 0, 2, 3, 4, 1).contiguous()).permute(1, 5, 2, 3, 4, 0)  # noqa: E731
    functions = {"identity (floor)": lambda x: x, "layer": inside, "U-Net": net}
    field = Field(rng)
    rotations = Rotation.random(options.rotations, rng).as_matrix()
    table = {}
    for name, function in functions.items():
        table[name] = {}
        for kind in ("voxel", "grid", "both"):
            errors = [error(function, field, rotation, kind) for rotation in rotations]
            table[name][kind] = float(np.median(errors))
        print(f"{name:<18}" + "".join(f"{kind} {value:8.4f}   " for kind, value in table[name].items()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(table, indent=1) + "\n")
    figures = [
        Figure(name, "shd_bids", kind, value, torch.get_num_threads())
        for name, row in table.items()
        for kind, value in row.items()
    ]
    return results.finish("equivariance", figures, options)


class Field:
    """Two random features, smooth over space, even and band-limited over directions."""

    def __init__(self, rng: np.random.Generator):
        self.waves = rng.normal(size=(2, n_coefficients(DEGREE), 4, 3)) * 0.35
        self.phase = rng.uniform(0, 2 * np.pi, size=(2, n_coefficients(DEGREE), 4))

    def sample(self, voxel: np.ndarray, grid: np.ndarray) -> torch.Tensor:
        """Evaluate the field with content rotated by ``voxel`` and places by ``grid``: (1, 2, X, Y, Z, V)."""
        places = centred() @ grid  # inverse rotation of each place: rows are points
        angle = np.einsum("pd,fcwd->pfcw", places, self.waves) + self.phase
        coefficients = np.cos(angle).sum(axis=3)  # (P, F, C)
        amplitudes = coefficients @ sh_basis(hemisphere(NSIDE) @ voxel, DEGREE).T
        return torch.tensor(amplitudes.transpose(1, 0, 2).reshape(1, 2, EDGE, EDGE, EDGE, -1), dtype=torch.float32)


def centred() -> np.ndarray:
    """List the voxels' places about the centre, (P, 3)."""
    axis = np.arange(EDGE) - (EDGE - 1) / 2
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)


def error(function, field: Field, rotation: np.ndarray, kind: str) -> float:
    """Compare the function of the rotated field with the rotated function of the field, away from the border."""
    voxel = rotation if kind in ("voxel", "both") else np.eye(3)
    grid = rotation if kind in ("grid", "both") else np.eye(3)
    with torch.inference_mode():
        moved_then_mapped = function(field.sample(voxel, grid)).numpy()
        mapped = function(field.sample(np.eye(3), np.eye(3))).numpy()
    mapped_then_moved = turn_grid(turn_voxels(mapped, voxel), grid)
    near = (np.linalg.norm(centred(), axis=1) < EDGE / 2 - 2).reshape(EDGE, EDGE, EDGE)
    away = (moved_then_mapped - mapped_then_moved)[:, :, near]
    return float(np.linalg.norm(away) / np.linalg.norm(mapped_then_moved[:, :, near]))


def turn_voxels(x: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Rotate what each voxel holds, through harmonics."""
    points = hemisphere(NSIDE)
    return x @ (sh_basis(points @ rotation, OUT_DEGREE) @ sh_inverse(points, OUT_DEGREE)).T.astype(np.float32)


def turn_grid(x: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Move voxels about the centre by cubic splines."""
    if np.array_equal(rotation, np.eye(3)):
        return x
    source = (centred() @ rotation).T + (EDGE - 1) / 2
    result = np.empty_like(x)
    for feature in range(x.shape[1]):
        for vertex in range(x.shape[5]):
            values = map_coordinates(x[0, feature, ..., vertex], source, order=3, mode="nearest")
            result[0, feature, ..., vertex] = values.reshape(EDGE, EDGE, EDGE)
    return result


if __name__ == "__main__":
    sys.exit(main())

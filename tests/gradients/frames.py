"""Affines and gradient files for the tests of gradient tables."""

import numpy as np


def turn(degrees: float, axis: int) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = np.eye(3)
    others = [k for k in range(3) if k != axis]
    matrix[np.ix_(others, others)] = [[c, -s], [s, c]]
    return matrix


def affine_of(axes: np.ndarray, voxel_size=(2.0, 2.0, 2.5)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = axes * np.array(voxel_size)
    affine[:3, 3] = [-30, 20, 5]
    return affine


AFFINES = {
    "RAS": affine_of(np.eye(3)),
    "LAS": affine_of(np.diag([-1.0, 1, 1])),
    "LPS": affine_of(np.diag([-1.0, -1, 1])),
    "PSR": affine_of(np.eye(3)[[2, 0, 1]] * np.array([-1.0, 1, 1])),
    "oblique RAS": affine_of(turn(20, 0) @ turn(-15, 2)),
    "oblique LAS": affine_of(turn(20, 1) @ turn(10, 0) @ np.diag([-1.0, 1, 1])),
}


def write_fsl(folder, bvals, bvecs):
    bval, bvec = folder / "dwi.bval", folder / "dwi.bvec"
    np.savetxt(bval, np.atleast_2d(bvals), fmt="%g")
    np.savetxt(bvec, bvecs, fmt="%.9f")
    return bval, bvec

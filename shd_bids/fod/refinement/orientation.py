r"""Rigid rotation of the fODF of each voxel towards its signal, which leaves its shape as it is.

The network sees neighbours and follows them where fibres turn from voxel to voxel. With the generators :math:`G_i` of
rotations on SH coefficients, a small rotation :math:`\omega` changes the predicted signal by
:math:`\sum_i \omega_i A G_i c`. The rotation is the most probable one under Gaussian noise and a Gaussian prior of standard
deviation :math:`\tau`, with the amounts of all tissues free,

.. math:: \min_{s, \omega, z} \frac{\|y - s A c - s \sum_i \omega_i A G_i c - B z\|^2}{\sigma^2} + \frac{\|\omega\|^2}{\tau^2}.

:math:`\tau` is the one at which held-out directions are predicted best; zero leaves the directions of the network.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.spatial.transform import Rotation

from shd_bids.fod.fod import FOD
from shd_bids.fod.refinement.amplitudes import fit_amplitudes
from shd_bids.fod.refinement.dictionary import LobeDictionary
from shd_bids.fod.refinement.held_out import Fold, cross_validated
from shd_bids.scan import Scan
from shd_bids.sphere.harmonics import sh_basis, sh_inverse
from shd_bids.sphere.healpix import hemisphere

_NSIDE = 8
_DIFFERENCE = 1e-4  # radians, of the numerical derivative of the basis
_SERIES = 18  # terms of the exponential: 20 degrees at degree 18 are six radians
_LARGEST = np.deg2rad(20.0)
_RIDGE = 1e-3  # of the normal equations, for tissues that the signal cannot tell apart
_LEAST_SCALE = 0.1  # of the fODF, below which a voxel has no direction to speak of


class Alignment:
    """Rotation of the fODFs of a scan towards its signal, with a prior of a standard deviation in degrees."""

    def __init__(self, scan: Scan, dictionary: LobeDictionary, *, l_max: int, prior: float, volumes: np.ndarray):
        matrix = scan.forward(l_max).matrix.double().numpy()[volumes] / dictionary.scale
        n_coefficients = generators(l_max).shape[1]
        wm = matrix[:, :n_coefficients]
        self._volumes, self._noise, self._prior = volumes, dictionary.noise, np.deg2rad(prior)
        self._wm = wm.T.astype(np.float32)
        self._turned = [(wm @ generator).T.astype(np.float32) for generator in generators(l_max)]
        self._isotropic = matrix[:, n_coefficients:].astype(np.float32)
        self._l_max = l_max

    def __call__(self, fod: FOD, signal: np.ndarray) -> FOD:
        """Rotate fODFs of degree ``l_max`` towards signals (n, N) relative to the scale of the dictionary."""
        if not self._prior or not len(fod):
            return fod
        return FOD(rotated(fod.wm, self._rotations(fod, signal[:, self._volumes]), self._l_max), fod.gm, fod.csf)

    def _rotations(self, fod: FOD, signal: np.ndarray) -> np.ndarray:
        """Return the most probable rotation vectors, radians, (n, 3)."""
        wm = fod.wm.astype(np.float32)
        predicted = wm @ self._wm
        columns = [predicted, *(wm @ turned for turned in self._turned)]
        isotropic = np.broadcast_to(self._isotropic, (len(wm), *self._isotropic.shape))
        design = np.concatenate([np.stack(columns, axis=2), isotropic], axis=2) / self._noise  # (n, N, 4 + T)
        normal = design.transpose(0, 2, 1) @ design
        ridge = np.full(design.shape[2], _RIDGE)
        scale = (predicted * signal).sum(axis=1) / np.maximum((predicted**2).sum(axis=1), 1e-12)
        normal[:, range(len(ridge)), range(len(ridge))] += ridge
        normal[:, range(1, 4), range(1, 4)] += 1 / (self._prior * np.maximum(scale, _LEAST_SCALE)[:, None]) ** 2
        found = np.linalg.solve(normal, design.transpose(0, 2, 1) @ (signal / self._noise)[..., None])[..., 0]
        rotations = found[:, 1:4] / np.maximum(found[:, :1], _LEAST_SCALE)
        length = np.linalg.norm(rotations, axis=1, keepdims=True)
        return rotations * np.minimum(1, _LARGEST / np.maximum(length, 1e-12))


def held_out_prior(fod: FOD, signal: np.ndarray, scan: Scan, dictionary: LobeDictionary) -> float:
    """Return the smallest standard deviation, degrees, whose error on held-out directions is close to the least.

    Parameters
    ----------
    fod : FOD
        Of a sample of the voxels; one number serves all.
    signal : ndarray, shape (n, N)
        Relative to the scale of the dictionary.
    scan : Scan
    dictionary : LobeDictionary
    """

    def errors(fold: Fold) -> dict[float, np.ndarray]:
        part, measured = fod[fold.voxels], signal[fold.voxels]
        found = {}
        for prior in dictionary.config.rotations:
            align = Alignment(scan, dictionary, l_max=fod.l_max, prior=prior, volumes=fold.shown)
            predicted = dictionary.predict(fit_amplitudes(align(part, measured), measured, dictionary))
            found[prior] = (predicted - measured)[:, fold.hidden] ** 2
        return found

    return cross_validated(errors, scan.gradients, tolerance=dictionary.config.tolerance) or 0.0


def rotated(coefficients: np.ndarray, rotations: np.ndarray, l_max: int) -> np.ndarray:
    r"""Rotate functions by the exponential series of the generators, :math:`e^{\sum_i \omega_i G_i} c`.

    Parameters
    ----------
    coefficients : ndarray, shape (n, C)
    rotations : ndarray, shape (n, 3)
        Rotation vectors, radians, at most 20 degrees.
    l_max : int
    """
    terms = generators(l_max).astype(np.float32)
    result = term = coefficients.astype(np.float32)
    for k in range(1, _SERIES + 1):
        term = sum(rotations[:, i, None].astype(np.float32) * (term @ terms[i].T) for i in range(3)) / k
        result = result + term
    return result


@lru_cache
def generators(l_max: int) -> np.ndarray:
    r"""Return the derivative of SH coefficients by rotation about each axis, :math:`G_i`, (3, C, C)."""
    points = hemisphere(_NSIDE)
    inverse = sh_inverse(points, l_max)
    steps = [Rotation.from_rotvec(sign * _DIFFERENCE * axis) for axis in np.eye(3) for sign in (1, -1)]
    ahead_and_behind = [inverse @ sh_basis(points @ step.as_matrix(), l_max) for step in steps]
    return np.stack(
        [(a - b) / (2 * _DIFFERENCE) for a, b in zip(ahead_and_behind[::2], ahead_and_behind[1::2], strict=True)]
    )

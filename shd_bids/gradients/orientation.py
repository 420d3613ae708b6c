"""Whether the gradient directions fit the anatomy: the test of all flips and permutations against the data."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from shd_bids.boxes import row_numbers
from shd_bids.errors import GradientError
from shd_bids.gradients.dti import fit_tensor, fractional_anisotropy
from shd_bids.gradients.frames import image_rotation
from shd_bids.gradients.table import GradientTable

# Standard errors by which a candidate must lead. On pieces of four scans a wrong one led by 1 at most, on the whole
# scans the right one led by 5 or more.
CLEAR_LEAD = 3.5
BLOCK = 4  # voxels; edge of the blocks whose scatter gives the standard error


@dataclass(frozen=True, eq=False)
class OrientationCheck:
    """Outcome of the test of the gradient directions against the anatomy.

    Attributes
    ----------
    given, best : float
        Coherence of the directions as given and of the best candidate; 0 is chance, the more the better.
    best_transform : array, shape (3, 3)
        Signed permutation, along the image axes, that takes the given directions to the best candidate.
    is_given_best : bool
        Whether no candidate is clearly better; the only field a caller needs for go or stop.
    is_fixable : bool
        Whether the best transform is unique; with three slices or fewer a flip across them cannot be seen.
    is_linear : bool
        Whether fibres run along the long axes of the tensors, not along the normals of discs as with planar encoding.
    is_conclusive : bool
        Whether the data could tell the candidates apart at all.
    confidence : float
        Standard errors, over blocks of the image, between the given (if wrong: the best) and its strongest rival.
    scores : list of (label, matrix, score)
        All judged candidates, best first; the identity is among them.
    message : str
        One sentence for the user.
    """

    given: float
    best: float
    best_transform: np.ndarray
    is_given_best: bool
    is_fixable: bool
    is_linear: bool
    is_conclusive: bool
    confidence: float
    scores: list[tuple[str, np.ndarray, float]]
    message: str


def check_orientation(
    signal: np.ndarray,
    mask: np.ndarray,
    table: GradientTable,
    affine: ArrayLike,
    *,
    min_fa: float = 0.2,
) -> OrientationCheck:
    r"""Find the signed permutation of the directions under which fibres run on from voxel to voxel.

    Along a fibre, tensors change less than across it. With :math:`s_{ao}` the similarity of the anisotropic part of
    the tensors of voxel a and its neighbour in direction o, freed of the means over a and over o, a candidate
    orientation P scores the correlation

    .. math:: \rho(P) \propto \sum_{ao} w_a \, s_{ao} \, (o^T P e_a)^2

    with e the principal direction and w the FA. The similarity does not depend on P, so one tensor fit serves all
    candidates, and the removal of the means makes neither voxel size nor a uniform region favour one of them.

    Planar encoding, whose vectors are normals of planes, turns the tensor D of a fibre into the disc (tr D - D) / 2. The
    same score along its shortest axis tells that.

    Parameters
    ----------
    signal : array, shape (x, y, z, N)
        Volumes of ``table``.
    mask : array, shape (x, y, z), bool
    table : GradientTable
    affine : array, shape (4, 4)
    min_fa : float
        Voxels below say nothing.

    Returns
    -------
    OrientationCheck
        Transforms act along image axes; apply them by :func:`corrected`. Axes of three slices or fewer are taken as
        having no neighbours (slices may not be adjacent), and only what the others can tell is judged.

    Source: the idea of a coherence index over flips and permutations is that of Schilling et al., Magn Reson Imaging
    58 (2019) 82; score and test differ from theirs.
    """
    axes = np.flatnonzero(np.array(mask.shape) > 3)
    tensors = fit_tensor(signal.reshape(-1, signal.shape[-1])[np.flatnonzero(mask)], table)  # (n, 3, 3)
    along, across = _coherence_moments(tensors, mask, affine, axes=axes, min_fa=min_fa)
    return _judge(_candidates(axes), along, across)


def corrected(table: GradientTable, check: OrientationCheck, affine: ArrayLike) -> GradientTable:
    """Return the table with the best transform of the check applied to its directions; itself if nothing beats it.

    Raises
    ------
    GradientError
        When the data could not tell which of several transforms is right.
    """
    axes = image_rotation(affine)
    turn = axes @ check.best_transform @ axes.T
    if check.is_given_best:
        return table
    if not check.is_fixable:
        raise GradientError(
            f"{check.message}; the image has too few slices to fix it automatically, correct the .bvec file by hand"
        )
    note = f"directions corrected by the orientation check, along the image axes: ({_label(check.best_transform)})"
    return GradientTable(
        table.bvals,
        table.directions @ turn.T,
        table.shells,
        table.source_volumes,
        table.n_source_volumes,
        (*table.notes, note),
    )


def _candidates(axes: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Return the signed permutations of the given image axes, one of each pair P, -P, the identity first."""
    if len(axes) < 2:
        return [("x,y,z", np.eye(3))]
    others = [axis for axis in range(3) if axis not in axes]
    flips: Sequence[tuple[int, ...]] = [(), *((int(axis),) for axis in (axes if len(axes) == 3 else axes[:1]))]
    found = []
    for order in itertools.permutations(axes.tolist()):
        matrix = np.zeros((3, 3))
        matrix[axes, order] = 1
        matrix[others, others] = 1
        for flip in flips:
            signed = matrix.copy()
            signed[list(flip)] *= -1
            found.append((_label(signed), signed))
    return found


def _label(matrix: np.ndarray) -> str:
    """Return the name of a signed permutation, its three results: ``-y,x,z`` for (x, y, z) -> (-y, x, z)."""
    source = np.abs(matrix).argmax(axis=1)
    return ",".join(("-" if matrix[row, axis] < 0 else "") + "xyz"[axis] for row, axis in enumerate(source))


def _coherence_moments(
    tensors: np.ndarray, mask: np.ndarray, affine: ArrayLike, *, axes: np.ndarray, min_fa: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of w M_ij E_kl over the voxels of each block of the image, (blocks, 3, 3, 3, 3), in image axes.

    M = sum_o s_ao o o^T with the doubly centred similarity s, and E = e e^T with e the longest, then the shortest axis
    of each tensor; see :func:`check_orientation`.
    """
    inside = np.flatnonzero(mask)
    rotation = image_rotation(affine)
    tensors = rotation.T @ tensors @ rotation
    fa = fractional_anisotropy(tensors)
    norm = np.linalg.norm(tensors, axis=(1, 2))
    is_usable = (norm > 0) & (fa < 1)  # FA >= 1 has negative eigenvalues: noise
    inside, tensors, fa, norm = inside[is_usable], tensors[is_usable], fa[is_usable], norm[is_usable]
    shape = (tensors - np.trace(tensors, axis1=1, axis2=2)[:, None, None] * np.eye(3) / 3) / norm[:, None, None]
    vectors = np.linalg.eigh(tensors)[1]  # (n, 3, 3), in columns, the longest axis last

    position = np.stack(np.unravel_index(inside, mask.shape), axis=1)
    usable = np.zeros(mask.shape, dtype=bool)
    usable[tuple(position.T)] = True
    number = row_numbers(usable, margin=1)
    steps = np.array([o for o in itertools.product((-1, 0, 1), repeat=3) if any(o)])
    steps = steps[(np.delete(steps, axes, axis=1) == 0).all(axis=1)]
    offsets = steps * np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
    offsets /= np.linalg.norm(offsets, axis=1, keepdims=True)  # (o, 3)

    centre = np.flatnonzero(fa > min_fa)
    neighbour = np.stack([number[tuple((position[centre] + 1 + step).T)] for step in steps], axis=1)  # (c, o)
    is_pair = neighbour >= 0
    flat = shape.reshape(-1, 9)
    similarity = np.einsum("ai,aoi->ao", flat[centre], flat[neighbour]) * is_pair
    for _ in range(3):  # converges at once where no neighbour is missing
        similarity -= is_pair * (similarity.sum(1) / np.maximum(is_pair.sum(1), 1))[:, None]
        similarity -= is_pair * (similarity.sum(0) / np.maximum(is_pair.sum(0), 1))
    moment = np.einsum("ao,oi,oj->aij", similarity, offsets, offsets)
    scale = np.sqrt((fa[centre, None] * similarity**2).sum() * (fa[centre, None] * is_pair).sum() * 4 / 45)

    block = np.ravel_multi_index(tuple((position[centre] // BLOCK).T), tuple(np.array(mask.shape) // BLOCK + 1))
    _, block = np.unique(block, return_inverse=True)
    n_blocks = block.max(initial=-1) + 1
    sums = []
    for e in (vectors[centre, :, 2], vectors[centre, :, 0]):
        direction = np.einsum("a,ak,al->akl", fa[centre], e, e)
        outer = np.einsum("aij,akl->aijkl", moment, direction).reshape(len(centre), 81)
        total = np.zeros((n_blocks, 81))
        np.add.at(total, block, outer)
        sums.append(total.reshape(-1, 3, 3, 3, 3) / (scale if scale > 0 else 1))
    return sums[0], sums[1]


def _judge(candidates: list[tuple[str, np.ndarray]], along: np.ndarray, across: np.ndarray) -> OrientationCheck:
    """Return the scores of the candidates and whether one beats the identity, which is the first of them."""
    by_block = np.stack([np.einsum("bijkl,ik,jl->b", along, p, p) for _, p in candidates], axis=1)  # (b, P)
    normals = np.einsum("bijij->b", across)
    total = by_block.sum(axis=0)
    ranking = np.argsort(-total, kind="stable")
    best = int(ranking[0])

    def lead(winner: int, loser: int) -> float:
        return _standard_errors(by_block[:, winner] - by_block[:, loser])

    lead_of_normals = _standard_errors(normals - by_block[:, 0])
    is_linear = bool(lead_of_normals < CLEAR_LEAD or normals.sum() < total[best])
    is_given_best = best == 0 or lead(best, 0) < CLEAR_LEAD
    reference = 0 if is_given_best else best
    rivals = [lead(reference, other) for other in range(len(candidates)) if other != reference]
    confidence = min(rivals, default=0.0)
    is_conclusive = not is_given_best or confidence >= CLEAR_LEAD
    label, transform = candidates[best] if not is_given_best else candidates[0]
    numbers = f"coherence {total[0]:.3f}"
    if not is_linear:
        message = (
            "the encoding may not be linear: fibres run on from voxel to voxel along the shortest axes of the tensors "
            f"(coherence {normals.sum():.3f} against {total[0]:.3f} along the longest, lead {lead_of_normals:.1f} standard "
            "errors), as planar encoding makes them; linear encoding is expected, leave this series out"
        )
    elif not is_given_best:
        message = (
            f"the gradient directions do not fit the anatomy: taken along the image axes as ({label}) fibres run on "
            f"from voxel to voxel better (coherence {total[best]:.3f} against {total[0]:.3f}, lead {lead(best, 0):.1f} "
            "standard errors); check the .bvec file and the image header"
        )
    elif is_conclusive:
        message = f"the gradient directions fit the anatomy ({numbers}, lead {confidence:.1f} standard errors)"
    else:
        message = (
            f"the orientation of the gradient directions cannot be judged from this image ({numbers}, lead "
            f"{confidence:.1f} standard errors, {CLEAR_LEAD:g} needed); they are used as given"
        )
    return OrientationCheck(
        given=float(total[0]),
        best=float(total[best]),
        best_transform=transform,
        is_given_best=is_given_best,
        is_fixable=is_linear and len(candidates) == 24,
        is_linear=is_linear,
        is_conclusive=is_conclusive,
        confidence=confidence,
        scores=[(candidates[k][0], candidates[k][1], float(total[k])) for k in ranking],
        message=message,
    )


def _standard_errors(by_block: np.ndarray) -> float:
    """Return the sum over blocks in standard errors of a sum of independent blocks with mean zero."""
    error = np.sqrt(np.square(by_block).sum())
    return float(by_block.sum() / error) if error > 0 else 0.0

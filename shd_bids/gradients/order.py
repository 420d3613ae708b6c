"""Whether the volumes of a shell carry the directions of their table: another order, and exchanged pairs."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from shd_bids.gradients.table import GradientTable

MIN_VOLUMES = 10  # of a shell, that leave the six unknowns of the model something to explain
ENOUGH = 20  # volumes of a shell, of which one may be judged by the others
N_RANDOM = 200  # orders, of which none fits as well as the right one
BETTER = 0.9  # of the unexplained variation, left by another order of the table
SWAPPED = 0.95  # likewise by an exchange of two volumes; in four scans with the right order none left less than 1.02
FAR = 2.0  # times the usual distance of a volume from what the others predict; in four scans at most 1.5
LEAST_B = 500.0  # s/mm2, from which the signal varies clearly with the direction
ORDERS = {"in reverse": (-1, 0), "one volume later": (1, 1), "one volume earlier": (1, -1)}
"""Step and shift of the orders of a table that scripts make by mistake."""


@dataclass(frozen=True, eq=False)
class _Fit:
    r"""Fit of every voxel of a shell by a constant and the five harmonics of degree 2, which a tensor's signal follows.

    With the products :math:`G = Y^T Y` of the volumes and the residual projector R of the directions, an order P of the
    volumes leaves the variation :math:`\mathrm{tr}(R P^T G P)` unexplained, whatever the number of voxels.
    """

    products: np.ndarray
    design: np.ndarray
    projector: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, directions: np.ndarray) -> "_Fit":
        x, y, z = directions.T
        design = np.stack([np.ones(len(x)), x * y, y * z, x * z, x * x - y * y, 3 * z * z - 1], axis=1)  # (N, 6)
        values = values / np.maximum(values.mean(axis=0), 1e-30)  # a volume's gain is no direction
        return cls(values.T @ values, design, np.eye(len(x)) - design @ np.linalg.pinv(design))

    def unexplained(self, order: np.ndarray) -> float:
        """Return the variation that directions leave when volume ``order[k]`` is taken for the k-th."""
        return float((self.projector * self.products[np.ix_(order, order)]).sum())

    def with_exchanges(self, order: np.ndarray) -> np.ndarray:
        """Return the unexplained variation after each exchange of two volumes of an order, shape (N, N)."""
        r, g = self.projector, self.products[np.ix_(order, order)]
        r_own, g_own, both = np.diag(r)[:, None], np.diag(g)[:, None], r @ g
        others = both + both.T - np.diag(both)[:, None] - np.diag(both)
        others -= (r_own - r) * (g - g_own) + (r_own.T - r) * (g - g_own.T)
        return self.unexplained(order) + 2 * others + (r_own - r_own.T) * (g_own.T - g_own)

    def misses(self, rows: np.ndarray) -> np.ndarray:
        """Return how far each of some volumes is from what the other ones predict, in units of their median."""
        products = self.products[np.ix_(rows, rows)]
        fit = self.design[rows] @ np.linalg.pinv(self.design[rows])
        residual = np.eye(len(rows)) - fit
        variation = np.einsum("ij,jk,ik->i", residual, products, residual).clip(0)
        distance = np.sqrt(variation) / np.maximum(1 - np.diag(fit), 1e-6)
        return distance / max(float(np.median(distance)), 1e-30)

    def by_chance(self) -> float:
        """Return the least that random orders leave unexplained."""
        rng = np.random.default_rng(0)
        return min(self.unexplained(rng.permutation(len(self.products))) for _ in range(N_RANDOM))


def check_order(values: np.ndarray, table: GradientTable) -> tuple[dict[int, str], list[str], list[str]]:
    """Return the volumes that have each other's directions, and the shells that have those of another order or none.

    Parameters
    ----------
    values : array, shape (n, N), float64
        Voxels of the mask.
    table : GradientTable
        Of the N volumes.

    Returns
    -------
    reasons : dict
        Row of the table -> what is wrong with it.
    problems : list of str
        What stops: another order of the whole table fits clearly better.
    doubts : list of str
        Shells whose volumes vary with their directions no more than by chance.
    """
    reasons: dict[int, str] = {}
    problems, doubts = [], []
    for shell in table.shells[1:]:
        if shell.bvalue < LEAST_B or len(shell.indices) < MIN_VOLUMES:
            continue
        fit = _Fit.of(values[:, shell.indices], table.directions[shell.indices])
        name = f"the volumes of b = {shell.bvalue:.0f} s/mm²"
        chance = fit.by_chance()
        given = fit.unexplained(np.arange(len(shell.indices)))
        order, left = _best_order(fit)
        if left < BETTER * given and left < chance:
            problems.append(
                f"{name} fit the directions of the table taken {order} clearly better ({left / given:.0%} of the "
                "unexplained variation is left); bring image and table into the same order"
            )
        elif given >= chance:
            doubts.append(
                f"{name} vary with their directions no more than in a random order: their order may be wrong, or noise "
                "hides the fibres"
            )
        else:
            reasons |= {int(shell.indices[row]): reason for row, reason in _misplaced(fit, given, shell.indices, table)}
    return reasons, problems, doubts


def _misplaced(fit: _Fit, given: float, rows: np.ndarray, table: GradientTable) -> Iterator[tuple[int, str]]:
    """Yield the volumes of a shell that have each other's directions, and those that no direction explains."""
    pairs = _exchanged(fit, given)
    for first, second in pairs:
        yield first, f"has the direction of volume {table.source_volumes[rows[second]]}"
        yield second, f"has the direction of volume {table.source_volumes[rows[first]]}"
    others = np.setdiff1d(np.arange(len(rows)), np.array(pairs, dtype=int).ravel())
    if len(others) < ENOUGH:
        return
    for row, miss in zip(others.tolist(), fit.misses(others), strict=True):
        if miss > FAR:
            yield row, f"is {miss:.1f} times as far as usual from what the others predict for its direction"


def _best_order(fit: _Fit) -> tuple[str, float]:
    """Return the name of the order that leaves least unexplained, and how much."""
    rows = np.arange(len(fit.products))
    left = {name: fit.unexplained(np.roll(rows[::step], shift)) for name, (step, shift) in ORDERS.items()}
    best = min(left, key=left.__getitem__)
    return best, left[best]


def _exchanged(fit: _Fit, given: float) -> list[tuple[int, int]]:
    """Return the pairs of volumes that fit clearly better exchanged, the clearest first, each volume once."""
    pairs: list[tuple[int, int]] = []
    order = np.arange(len(fit.products))
    is_free = np.ones(len(order), dtype=bool)
    while True:
        left = np.where(is_free[:, None] & is_free, fit.with_exchanges(order), np.inf)
        first, second = sorted(int(k) for k in np.unravel_index(left.argmin(), left.shape))
        if not left[first, second] < SWAPPED * given:
            return pairs
        given = float(left[first, second])
        pairs.append((first, second))
        order[[first, second]] = order[[second, first]]
        is_free[[first, second]] = False

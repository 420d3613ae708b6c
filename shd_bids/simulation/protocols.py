"""Gradient tables drawn at random, and directions spread over the sphere."""

from __future__ import annotations

import numpy as np

from shd_bids.gradients.table import GradientTable, Shell, gradient_table


def uniform_directions(rng: np.random.Generator, n: int, *, n_steps: int = 60) -> np.ndarray:
    """Spread ``n`` axes over the sphere by electrostatic repulsion from a random start, shape (n, 3)."""
    points = _unit(rng.normal(size=(n, 3)))
    step = 0.3 / np.sqrt(n)
    for _ in range(n_steps):
        cosine = points @ points.T
        towards = np.maximum(2 - 2 * cosine, 1e-9) ** -1.5
        away = np.maximum(2 + 2 * cosine, 1e-9) ** -1.5
        np.fill_diagonal(towards, 0.0)
        np.fill_diagonal(away, 0.0)
        force = (away - towards) @ points  # the radial parts of p_i -+ p_j do not move a point on the sphere
        force -= (force * points).sum(1, keepdims=True) * points
        points = _unit(points + step * _unit(force))
        step *= 0.96
    return points


def make_gradients(rng: np.random.Generator, shells: dict[float, int], *, n_b0: int) -> GradientTable:
    """Make a table with ``n_b0`` unweighted volumes and ``shells`` as b-value -> number of directions."""
    bvals = [np.zeros(n_b0)] + [np.full(n, b) for b, n in shells.items()]
    directions = [np.zeros((n_b0, 3))] + [uniform_directions(rng, n) for n in shells.values()]
    return gradient_table(np.concatenate(bvals), np.concatenate(directions))


def random_gradients(rng: np.random.Generator) -> GradientTable:
    """Draw a protocol: one to five shells between b = 500 and 13 000 s/mm2, six to 120 directions each.

    A third are single shells of clinical and research use, a third rich multi-shell series, the rest anything between; one
    shell always has 12 directions. Some series lack up to half of their volumes, as scans that were cut short or cleaned do.
    """
    kind = rng.random()
    if kind < 0.35:
        shells = {rng.choice([700.0, 1000.0, 1200.0, 1500.0, 2000.0, 3000.0]): _direction_count(rng, 12, 100)}
    elif kind < 0.75:
        start = rng.choice([500.0, 700.0, 1000.0])
        step = rng.choice([500.0, 1000.0, 1500.0])
        least = 45 if kind < 0.55 else 12  # as many in each shell as large projects measure, or fewer
        shells = {start + i * step: _direction_count(rng, least, 120) for i in range(rng.integers(2, 5))}
    else:
        values = np.sort(rng.uniform(500.0, 6000.0, size=rng.integers(1, 5)).round(-2))
        shells = {float(b): _direction_count(rng, 12, 90) for b in values}
        if rng.random() < 0.3:
            shells[float(rng.uniform(6000.0, 13000.0).__round__(-2))] = _direction_count(rng, 30, 90)
        shells = _separate(shells)
    if rng.random() < 0.25 and len(shells) > 1:
        shells[min(shells)] = int(rng.integers(6, 16))
    if rng.random() < 0.85:
        return make_gradients(rng, shells, n_b0=int(rng.integers(1, 10)))
    share = rng.uniform(0.5, 1.0)
    planned = {b: round(n / share) for b, n in shells.items()}
    whole = make_gradients(rng, planned, n_b0=int(rng.integers(1, 10)))
    return whole.select(
        np.sort(np.concatenate([whole.b0_indices, *(_drawn(rng, s, shells) for s in whole.shells[1:])]))
    )


def _drawn(rng: np.random.Generator, shell: Shell, counts: dict[float, int]) -> np.ndarray:
    """Draw as many of the volumes of a shell as ``counts`` holds for its b-value."""
    nearest = min(counts, key=lambda b: abs(b - shell.bvalue))
    return rng.choice(shell.indices, counts[nearest], replace=False)


def _direction_count(rng: np.random.Generator, least: int, most: int) -> int:
    """Draw a number of directions, even in its logarithm."""
    return round(float(np.exp(rng.uniform(np.log(least), np.log(most)))))


def _separate(shells: dict[float, int]) -> dict[float, int]:
    """Drop shells closer than 250 s/mm2 to a lower one; make sure the highest has 20 directions."""
    kept: dict[float, int] = {}
    for b in sorted(shells):
        if not kept or b - max(kept) >= 250:
            kept[b] = shells[b]
    kept[max(kept)] = max(kept[max(kept)], 20)
    return kept


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

"""Which of the maxima found in a voxel are kept as its peaks."""

import math
from dataclasses import dataclass

import torch

MERGE_ANGLE = 1.0
"""Degrees within which two converged ascents are the same maximum."""


@dataclass(frozen=True)
class Rule:
    """Which maxima of a voxel count as peaks; attributes as the parameters of `find_peaks`."""

    max_peaks: int
    relative_threshold: float
    absolute_threshold: float
    min_separation: float
    prominence: float

    def __post_init__(self) -> None:
        shares = (self.relative_threshold, self.prominence)
        if self.max_peaks < 1 or not all(0 <= share < 1 for share in shares) or not 0 <= self.min_separation <= 90:
            raise ValueError(
                f"found max_peaks {self.max_peaks}, relative_threshold {self.relative_threshold}, min_separation "
                f"{self.min_separation}, prominence {self.prominence}; expected at least 1, shares in [0, 1) and degrees in "
                "[0, 90]"
            )

    @property
    def least_cosine(self) -> float:
        """Cosine of the angle within which two maxima are one peak; ascents to the same maximum always are."""
        return math.cos(math.radians(max(self.min_separation, MERGE_ANGLE)))


def by_voxel(
    voxel: torch.Tensor, directions: torch.Tensor, amplitudes: torch.Tensor, n: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return flat peaks as directions (n, K, 3) and amplitudes (n, K), descending, zero padded."""
    order = torch.argsort(amplitudes, descending=True, stable=True)
    order = order[torch.argsort(voxel[order], stable=True)]
    counts = torch.bincount(voxel, minlength=n)
    rank = torch.arange(len(voxel), device=voxel.device) - (counts.cumsum(0) - counts)[voxel[order]]
    width = max(int(counts.max()), 1) if n else 1
    table = directions.new_zeros(n, width, 3)
    heights = amplitudes.new_zeros(n, width)
    table[voxel[order], rank] = directions[order]
    heights[voxel[order], rank] = amplitudes[order]
    return table, heights


def select(directions: torch.Tensor, amplitudes: torch.Tensor, rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first few peaks, from the largest down, above the threshold and apart from every kept one."""
    kept = (amplitudes > 0) & (amplitudes >= rule.relative_threshold * amplitudes[:, :1])
    is_near = torch.einsum("nic,njc->nij", directions, directions).abs() > rule.least_cosine
    for k in range(1, amplitudes.shape[1]):
        kept[:, k] &= ~(is_near[:, k, :k] & kept[:, :k]).any(1)
    first = torch.argsort(~kept, dim=1, stable=True)[:, : rule.max_peaks]
    is_kept = kept.gather(1, first)
    directions = directions.gather(1, first[..., None].expand(-1, -1, 3))
    directions = torch.where(directions[..., 2:] < 0, -directions, directions)
    directions = torch.where(is_kept[..., None], directions, 0.0)
    amplitudes = torch.where(is_kept, amplitudes.gather(1, first), 0.0)
    padding = rule.max_peaks - first.shape[1]
    return (
        torch.nn.functional.pad(directions, (0, 0, 0, padding)),
        torch.nn.functional.pad(amplitudes, (0, padding)),
    )

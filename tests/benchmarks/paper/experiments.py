"""All experiments by name."""

from __future__ import annotations

from tests.benchmarks.paper import fibres, invivo, pathology, tracts
from tests.benchmarks.paper.base import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    item.name: item
    for item in (
        fibres.EXPERIMENT,
        invivo.EXPERIMENT,
        tracts.EXPERIMENT,
        pathology.EXPERIMENT,
    )
}

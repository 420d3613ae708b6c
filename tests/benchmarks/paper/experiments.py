"""All experiments by name, in the order of the paper."""

from __future__ import annotations

from tests.benchmarks.paper import amortised, efficiency, equivariance, fibres, invivo, mnist, pathology, tracts
from tests.benchmarks.paper.base import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    item.name: item
    for item in (
        efficiency.EXPERIMENT,
        equivariance.EXPERIMENT,
        fibres.EXPERIMENT,
        invivo.EXPERIMENT,
        tracts.EXPERIMENT,
        pathology.EXPERIMENT,
        mnist.EXPERIMENT,
        amortised.EXPERIMENT,
    )
}

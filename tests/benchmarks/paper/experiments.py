"""All experiments by name."""

from __future__ import annotations

from tests.benchmarks.paper.base import Experiment

EXPERIMENTS: dict[str, Experiment] = {}

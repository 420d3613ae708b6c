"""Responses given as files, against the shells of every series."""

from collections.abc import Sequence

from shd_bids.bids.run import DWIRun
from shd_bids.errors import InputError
from shd_bids.response.given import read_given
from shd_bids.settings import Settings

__all__ = ["response_problems"]


def response_problems(settings: Settings, runs: Sequence[DWIRun]) -> list[str]:
    """Return what is wrong with responses given as files, by themselves or else for the shells of a series."""
    if not settings.responses or settings.has_group_responses:
        return []
    try:
        read_given(settings.responses)
    except InputError as error:
        return list(error.problems)
    problems = []
    for run in runs:
        try:
            read_given(settings.responses, [bvalue for bvalue, _ in run.shells])
        except InputError as error:
            problems += [f"{run.prefix}: {text}" for text in error.problems]
    return problems

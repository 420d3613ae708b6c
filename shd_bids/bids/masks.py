"""The brain mask of a series."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shd_bids.bids.run import DWIRun
from shd_bids.bids.sessions import Dataset, all_entities, source_entities
from shd_bids.errors import InputError
from shd_bids.images import Volume, grid_problem, load_volume, same_grid
from shd_bids.settings import Settings

__all__ = ["candidates", "with_mask"]


def candidates(
    run: DWIRun, settings: Settings, datasets: Sequence[Dataset], filters: Mapping[str, Any]
) -> tuple[Path, ...]:
    """Return the masks among which `with_mask` chooses."""
    if settings.mask is not None:
        return (settings.mask,)
    return tuple(path for dataset in datasets for path in _masks(run, dataset, filters))


def with_mask(
    run: DWIRun, volume: Volume, settings: Settings, datasets: Sequence[Dataset], filters: Mapping[str, Any]
) -> DWIRun:
    """Return the series with the mask given, else one of the data sets on its grid, else none where there is none.

    Raises
    ------
    InputError
        Several masks apply, or those that do are on another grid.
    """
    if settings.mask is not None:
        return replace(run, mask=settings.mask, mask_origin="given")
    problems: list[str] = []
    found = "no brain mask found"
    for dataset in [*datasets[1:], datasets[0]]:
        on_grid = []
        for path in _masks(run, dataset, filters):
            mask = load_volume(path, n_dims=(3,))
            if same_grid(mask, volume):
                on_grid.append(path)
            elif all_entities(path).get("space", "orig") == run.space:
                problems.append(grid_problem(path, mask, volume))
            else:
                found = f"{path.name}, of another space, is not on the grid of the image"
        most = max((len(all_entities(path)) for path in on_grid), default=0)
        best = [path for path in on_grid if len(all_entities(path)) == most]
        if len(best) > 1:
            raise InputError(
                f"{run.dwi.name}: {len(best)} masks apply ({', '.join(path.name for path in best)}); choose one with "
                "--mask or the query mask of --bids-filter-file"
            )
        if best:
            links = {**run.links, dataset.name: dataset.root}
            return replace(run, mask=best[0], mask_origin="derivative", mask_uri=dataset.uri(best[0]), links=links)
    if problems:
        remedy = (
            "give another with --mask, or leave it out with the query mask of --bids-filter-file to have one estimated"
        )
        raise InputError(f"{problem}; {remedy}" for problem in problems)
    note = f"{found}; a mask will be estimated from the b=0 image, look at it in the report"
    return replace(run, notes=(*run.notes, note))


def _masks(run: DWIRun, dataset: Dataset, filters: Mapping[str, Any]) -> list[Path]:
    """Return the brain masks of a data set that name no other series, session or space than this one."""
    return sorted(
        path
        for path in dataset.brain_masks(run.subject, filters)
        if source_entities(path).items() <= run.entities.items()
        and ("ses" in source_entities(path)) == ("ses" in run.entities)
        and all_entities(path).get("space", "orig") in (run.space, "orig")
    )

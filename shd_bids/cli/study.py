"""The group level as a whole: mean responses of each protocol, then the quality of all series."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from shd_bids.bids.protocol import by_protocol
from shd_bids.bids.response_sets import label_protocols, read_sets
from shd_bids.cli.mean import run_mean_responses
from shd_bids.cli.unusable import tell_unusable
from shd_bids.errors import InputError, NoInputError
from shd_bids.files import read_json_object
from shd_bids.settings import Settings
from shd_bids.study.page import write_page
from shd_bids.study.ratings import find_ratings, read_ratings
from shd_bids.study.series import read_participants, read_series, unusable_series
from shd_bids.study.study import Study, assess, write_table

if TYPE_CHECKING:
    from shd_bids.bids.run import DWIRun, Unusable

__all__ = ["run_study"]

logger = logging.getLogger("shd_bids")

MOST_LINES = 20
"""Of one kind on the console; the page has all."""


def run_study(
    runs: Sequence["DWIRun"], settings: Settings, *, argv: Sequence[str], unusable: Sequence["Unusable"] = ()
) -> int:
    """Write mean responses and quality of a study and return the exit code: 1 where series lack responses.

    Parameters
    ----------
    runs : sequence of DWIRun
        All that were chosen.
    settings : Settings
    argv : sequence of str
        Words of the call, for the record.
    unusable : sequence of Unusable
        Those that cannot be processed.

    Raises
    ------
    InputError
        Ratings or participants cannot be read.
    NoInputError
        None of the series has responses; their quality is told all the same.
    """
    participants = read_participants(settings.bids_dir, settings.group_by)
    opinions = read_ratings(find_ratings(settings.output_dir, settings.ratings))
    none: NoInputError | None = None
    code = 0
    try:
        code = run_mean_responses(runs, settings, argv=argv)
    except NoInputError as error:
        none = error
    if settings.dry_run:
        tell_unusable(unusable, needs_all=False)
    else:
        groups = _groups(runs, settings, participants)
        found = read_series(settings.output_dir, runs, groups=groups, participants=participants)
        study = assess([*found[0], *unusable_series(settings.output_dir, unusable, participants)], found[1], opinions)
        table = write_table(study, settings.output_dir)
        page = write_page(study, settings.output_dir, title=_title(settings))
        _tell(study)
        logger.info("quality: %s, %s", table, page)
    if none is not None:
        raise none
    return code or int(bool(unusable))


def _groups(
    runs: Sequence["DWIRun"], settings: Settings, participants: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    """Return with whom each series is compared, by its key: label of the protocol and traits of the participant."""
    sets = read_sets(settings.output_dir)
    members = by_protocol(runs, [item.protocol for item in sets])
    labels = label_protocols(members, sets)
    return {
        run.key: ", ".join([labels[protocol], *participants.get(run.subject, {}).values()])
        for protocol, of_it in members.items()
        for run in of_it
    }


def _title(settings: Settings) -> str:
    """Return the name of the data set."""
    try:
        name = read_json_object(settings.bids_dir / "dataset_description.json").get("Name")
    except InputError:
        name = None
    return str(name or settings.bids_dir.name)


def _tell(study: Study) -> None:
    """Tell what did not finish, who stands out, and what readers do not agree on."""
    failed = [
        f"{item.name}: {item.status}{item.stage and ' at ' + item.stage}{item.reason and ': ' + item.reason}"
        for item in study.failed
    ]
    outlying = {item.name: study.outliers(item.name) for item in study.series}
    doubts = [f"{name}: stands out in {', '.join(map(str, flags))}" for name, flags in outlying.items() if flags]
    for level, lines in ((logging.ERROR, failed), (logging.WARNING, doubts), (logging.WARNING, study.notes)):
        for line in lines[:MOST_LINES]:
            logger.log(level, "%s", line)
        if len(lines) > MOST_LINES:
            logger.log(level, "and %d more, see the page", len(lines) - MOST_LINES)
    logger.info(
        "%d of %d series finished, %d stand out",
        len(study.series) - len(failed),
        len(study.series),
        len(doubts),
    )

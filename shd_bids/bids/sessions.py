"""The data sets of a call, indexed by pybids, and their diffusion images by session."""

import json
import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shd_bids.errors import InputError, NoInputError
from shd_bids.files import read_json_object
from shd_bids.settings import Settings

logger = logging.getLogger(__name__)

ADDED_ENTITIES = ("space", "desc", "res", "cohort")
"""Entities that a preprocessing adds; the others name the source."""

QUERIES = ("dwi", "mask", "dseg", "probseg")
"""Queries a filter file can change."""

SUFFIXES = (*QUERIES, "5tt")
"""Of the images that are looked for."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """One BIDS data set, indexed for the asked subjects only."""

    name: str
    root: Path
    description: Mapping[str, Any]
    layout: Any
    _found: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_derivative(self) -> bool:
        return self.description.get("DatasetType") == "derivative" or bool(self.pipelines)

    @property
    def pipelines(self) -> tuple[str, ...]:
        """Names of the programs that made the data set, lower case."""
        generators = self.description.get("GeneratedBy", ())
        return tuple(str(generator.get("Name", "")).lower() for generator in generators)

    def uri(self, path: Path) -> str:
        """Return the BIDS URI of a file of this data set."""
        return f"bids:{self.name}:{path.relative_to(self.root).as_posix()}"

    def inherited(self, image: Path, extension: str) -> list[Path]:
        """Return the files that apply to an image by inheritance, nearest and most specific first.

        They lie beside it or in a folder above, have its suffix, and no entity that it lacks.
        """
        entities, suffix = all_entities(image).items(), _suffix(image)
        above = [image.parent, *(folder for folder in image.parent.parents if folder.is_relative_to(self.root))]
        applying = [
            path
            for folder in above
            for path in self._files_in(folder)
            if path.name.endswith(f"{suffix}{extension}") and _suffix(path) == suffix
            if all_entities(path).items() <= entities
        ]
        return sorted(applying, key=lambda path: (-len(path.parents), -len(all_entities(path))))

    def brain_masks(self, subject: str, filters: Mapping[str, Any]) -> list[Path]:
        """Return the brain masks of a subject."""
        return self._of_subject("mask", subject, {"desc": "brain", **filters})

    def tissue_images(self, subject: str, suffix: str, filters: Mapping[str, Any]) -> list[Path]:
        """Return the images of a subject with a suffix, such as ``dseg``."""
        return self._of_subject(suffix, subject, filters)

    def _of_subject(self, suffix: str, subject: str, filters: Mapping[str, Any]) -> list[Path]:
        """Return the images of a suffix; the index is asked once for those of all subjects."""
        if suffix not in self._found:
            query = {"suffix": suffix, "extension": [".nii", ".nii.gz"], **filters}
            by_subject = self._found.setdefault(suffix, {})
            for path in map(Path, self.layout.get(return_type="filename", **query)):
                by_subject.setdefault(all_entities(path).get("sub"), []).append(path)
        return self._found[suffix].get(subject, [])

    def _files_in(self, folder: Path) -> list[Path]:
        """Return the files of a folder, which is read once."""
        if folder not in self._found:
            self._found[folder] = [Path(entry.path) for entry in os.scandir(folder) if not _is_folder(entry)]
        return self._found[folder]


def read_filters(path: Path | None) -> dict[str, dict[str, Any]]:
    """Return the content of a BIDS filter file: query -> entity -> value; ``null`` asks for absence, ``"*"`` for any value.

    Raises
    ------
    InputError
        Not JSON, or not a mapping of mappings.
    """
    from bids.layout import Query

    if path is None:
        return {query: {} for query in QUERIES}
    content = read_json_object(path)
    problems = list(_filter_problems({query: content.get(query, {}) for query in QUERIES}))
    if problems:
        raise InputError(f"{path}: {text}; correct the filter file" for text in problems)
    special = {None: Query.NONE, "*": Query.ANY}
    filters = {
        query: {
            entity: special.get(value, value) if not isinstance(value, list) else value
            for entity, value in content.get(query, {}).items()
        }
        for query in QUERIES
    }
    if unused := sorted(set(content) - set(QUERIES)):
        logger.warning("%s: queries %s are not used here; %s are", path.name, ", ".join(unused), ", ".join(QUERIES))
    return filters


def _filter_problems(queries: Mapping[str, Any]) -> Iterator[str]:
    """Yield what pybids could not ask for: entities that BIDS does not have, and values of another type."""
    from bids.layout import Config

    known = sorted({*Config.load("bids").entities, *Config.load("derivatives").entities})
    for query, asked in queries.items():
        if not isinstance(asked, dict):
            yield f'{query}: found {asked!r:.40}, expected entities like {{"acquisition": "hardi"}}'
            continue
        for entity, value in asked.items():
            if entity not in known:
                meant = [name for name in known if name.startswith(entity)] or known
                yield f"{query}: entity {entity!r} is not known, expected {' or '.join(meant)}"
            elif not all(map(_can_be_asked, value if isinstance(value, list) else [value])):
                yield f"{query}: {entity} is {value!r:.40}, expected text, a number, null, or a list of them"


def _can_be_asked(value: Any) -> bool:
    """Whether the index of pybids, whose whole numbers have 64 bits, can hold a value."""
    return isinstance(value, str | None) or (isinstance(value, int) and abs(value) < 2**63)


def open_datasets(settings: Settings) -> tuple[Dataset, ...]:
    """Return the input and the ``--derivatives`` data sets, indexed in the asked subjects, ``dwi`` and ``anat`` only."""
    roots = {"": settings.bids_dir, **settings.derivatives}
    datasets: list[Dataset] = []
    for asked, root in roots.items():
        description = _description(root)
        name = _link_name(asked, description, taken={dataset.name for dataset in datasets})
        datasets.append(Dataset(name, root, description, _layout(settings, root, name)))
    return tuple(datasets)


def require_labels(settings: Settings, datasets: Sequence[Dataset]) -> None:
    """Raise `NoInputError` for labels that are nowhere in the data."""
    roots = [dataset.root for dataset in datasets]
    for option, prefix, asked, pattern in (
        ("--participant-label", "sub-", settings.participant_label, "sub-*"),
        ("--session-label", "ses-", settings.session_label, "sub-*/ses-*"),
    ):
        present = sorted(
            {path.name.removeprefix(prefix) for root in roots for path in root.glob(pattern) if path.is_dir()}
        )
        if unknown := [label for label in asked if label not in present]:
            raise NoInputError(
                f"{option}: {', '.join(unknown)} not found in {settings.bids_dir}; it has "
                f"{_shortened(present) or 'none'}"
            )


def images_by_session(
    settings: Settings, datasets: Sequence[Dataset], filters: Mapping[str, Any]
) -> dict[tuple[str, str], list[tuple[Dataset, Path]]]:
    """Return the diffusion images of each (subject, session), preprocessed ones first choice."""
    per_dataset = [_images(settings, dataset, filters) for dataset in datasets]
    chosen: dict[tuple[str, str], list[tuple[Dataset, Path]]] = {}
    for dataset, sessions in list(zip(datasets, per_dataset, strict=True))[1:]:
        for session, paths in sessions.items():
            preprocessed = [path for path in paths if all_entities(path).get("desc") == "preproc"]
            if preprocessed:
                chosen.setdefault(session, []).extend((dataset, path) for path in preprocessed)
    for session, paths in per_dataset[0].items():
        preprocessed = [path for path in paths if all_entities(path).get("desc") == "preproc"]
        chosen.setdefault(session, [(datasets[0], path) for path in preprocessed or paths])
    return dict(sorted(chosen.items()))


def ambiguities(images: Iterable[tuple[Dataset, Path]]) -> Iterator[tuple[list[Path], str]]:
    """Yield the images of each series of several, and the problem: which one is meant cannot be guessed."""
    groups: dict[tuple[tuple[str, str], ...], list[Path]] = {}
    for _, path in images:
        groups.setdefault(tuple(sorted(source_entities(path).items())), []).append(path)
    for paths in groups.values():
        if len(paths) > 1:
            yield (
                paths,
                f"{len(paths)} images of one series: {', '.join(path.name for path in paths)}; choose one with "
                f"--bids-filter-file, for example {json.dumps({'dwi': _distinction(paths)})}",
            )


def nothing_found(settings: Settings, datasets: Sequence[Dataset]) -> str:
    """Return the message for data sets without a matching image."""
    asked = [f"sub-{label}" for label in settings.participant_label] + [
        f"ses-{label}" for label in settings.session_label
    ]
    where = ", ".join(str(dataset.root) for dataset in datasets)
    return (
        f"no diffusion image (sub-*/[ses-*/]dwi/*_dwi.nii[.gz]) {'of ' + ', '.join(asked) + ' ' if asked else ''}"
        f"in {where}{' that passes ' + str(settings.bids_filter_file) if settings.bids_filter_file else ''}; "
        "check the folder, the labels and the filter file"
    )


def source_entities(path: Path) -> dict[str, str]:
    """Return the entities of a name that belong to the source, values as written, in the order of the name."""
    return {name: value for name, value in all_entities(path).items() if name not in ADDED_ENTITIES}


def _suffix(path: Path) -> str:
    return path.name.partition(".")[0].rpartition("_")[2]


def all_entities(path: Path) -> dict[str, str]:
    """Return the entities of a name, values as written, in the order of the name."""
    pairs = path.name.partition(".")[0].split("_")[:-1]
    return dict(pair.split("-", 1) for pair in pairs if "-" in pair)


def _description(root: Path) -> dict[str, Any]:
    path = root / "dataset_description.json"
    if not path.exists():
        logger.warning("%s has no dataset_description.json; it is read as a raw BIDS data set", root)
        return {}
    content = read_json_object(path)
    makers = content.get("GeneratedBy", [])
    if not isinstance(makers, list) or not all(isinstance(maker, dict) for maker in makers):
        raise InputError(f"{path}: GeneratedBy is {makers!r:.40}, expected a list of objects; correct the file")
    return content


def _link_name(asked: str, description: Mapping[str, Any], *, taken: set[str]) -> str:
    """Return the name of a data set in BIDS URIs: the one given, else its pipeline, else ``raw``."""
    generators = description.get("GeneratedBy") or [{}]
    generated = str(generators[0].get("Name", "input")) if description.get("DatasetType") == "derivative" else "raw"
    name = re.sub(r"[^a-zA-Z0-9_-]", "", asked or generated.lower()) or "input"
    while name in taken:
        name += "_"
    return name


def _layout(settings: Settings, root: Path, name: str) -> Any:
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    ignore = [re.compile(r"^/(code|models|sourcedata|stimuli|derivatives|logs?|figures)(/|$)")]
    ignore.append(re.compile(r"^/sub-[^/]+/(ses-[^/]+/)?(?!(?:dwi|anat)(?:/|$)|ses-|sub-)"))
    ignore.append(
        re.compile(r"^(?!/(sub-[^/]+/(ses-[^/]+/)?((?:dwi|anat)/)?)?[^/]+$)")
    )  # deeper: links may lead back to the root
    database = settings.bids_database_dir
    if database is None:
        for entity, labels in (("sub", settings.participant_label), ("ses", settings.session_label)):
            if labels:
                any_of = "|".join(map(re.escape, labels))
                ignore.append(re.compile(rf"/{entity}-(?!(?:{any_of})(?:[/_]|$))"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pybids warns about coming versions of itself
            layout = BIDSLayout(
                root,
                validate=False,
                config=["bids", "derivatives"],
                database_path=database / name if database else None,
                indexer=BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=ignore),
            )
    except UnicodeEncodeError as error:
        raise InputError(f"{root}: a name is not UTF-8 ({ascii(error.object)[:200]}); rename it") from error
    except Exception as error:  # of the library in which pybids keeps its index
        if database is None:
            raise
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"--bids-database-dir {database}: cannot be read ({reason}); remove it, it is made anew"
        ) from error
    if database is not None:
        _require_current(layout, settings, root)
    return layout


def _require_current(layout: Any, settings: Settings, root: Path) -> None:
    """Raise `InputError` where the index of an earlier call has other images of the asked subjects than the data set."""
    subjects = settings.participant_label or ("*",)
    places = [
        f"sub-{label}/{session}{kind}" for label in subjects for session in ("", "ses-*/") for kind in ("dwi", "anat")
    ]
    there = {path for place in places for path in root.glob(f"{place}/sub-*_*.nii*")}
    asked = {"subject": list(settings.participant_label)} if settings.participant_label else {}
    found = map(Path, layout.get(return_type="filename", suffix=list(SUFFIXES), **asked))
    changed = sorted(path for path in there ^ set(found) if _is_indexed(path.relative_to(root)))
    if changed:
        raise InputError(
            f"--bids-database-dir {settings.bids_database_dir}: the index is that of other images ({len(changed)} came or "
            f"went, such as {changed[0].relative_to(root)}); remove it, it is made anew"
        )


def _is_indexed(path: Path) -> bool:
    """Whether a path in a data set is that of an image that is looked for, under the name of its subject."""
    is_image = path.name.endswith((".nii", ".nii.gz")) and _suffix(path) in SUFFIXES
    return is_image and path.name.startswith(f"{path.parts[0]}_")


def _images(settings: Settings, dataset: Dataset, filters: Mapping[str, Any]) -> dict[tuple[str, str], list[Path]]:
    query: dict[str, Any] = {"suffix": "dwi", "extension": [".nii", ".nii.gz"], "datatype": "dwi", **filters}
    for entity, labels in (("subject", settings.participant_label), ("session", settings.session_label)):
        if labels:
            query.setdefault(entity, list(labels))
    sessions: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(Path(name) for name in dataset.layout.get(return_type="filename", **query)):
        entities = source_entities(path)
        if "sub" not in entities:
            logger.warning("%s: its name has no sub-; skipped", path)
        elif entities.get("part", "mag") == "mag":  # phase images hold no diffusion contrast
            sessions.setdefault((entities["sub"], entities.get("ses", "")), []).append(path)
    return sessions


def _distinction(paths: Sequence[Path]) -> dict[str, str | None]:
    """Return a filter that picks the first of several images, as an example."""
    long_names = {"desc": "desc", "space": "space", "res": "resolution", "cohort": "cohort"}
    first, *others = [all_entities(path) for path in paths]
    for entity, name in long_names.items():
        if any(other.get(entity) != first.get(entity) for other in others):
            return {name: first.get(entity)}
    return {"extension": "." + paths[0].name.partition(".")[2]}


def _shortened(labels: Sequence[str], most: int = 20) -> str:
    rest = f" and {len(labels) - most} more" if len(labels) > most else ""
    return ", ".join(labels[:most]) + rest


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder or a link to one; a link that goes in circles is neither."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))

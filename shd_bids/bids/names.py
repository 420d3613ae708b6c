"""Names and sidecars of every output, read from the one table ``outputs.json``.

A key of the table (``"wm"``, ``"peaks"``, ``"tractogram"``, ...) gives the BIDS entities, suffix, unit, orientation
encoding and sources of one file; nothing else in the package spells an output name. Names and sidecar keys follow
BEP016 (bids-specification PR 2258), those of the tractogram BEP046 (PR 2333), those of connectomes BEP017 (PR 1902).
"""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

from shd_bids.bids.parcellations import Parcellation
from shd_bids.bids.run import DWIRun
from shd_bids.fod.methods import method_named
from shd_bids.options import LEVELS
from shd_bids.settings import Settings
from shd_bids.tractography.connectome import measures

OUTPUTS: Mapping[str, Mapping[str, Any]] = json.loads(
    files("shd_bids.bids").joinpath("outputs.json").read_text("utf-8")
)
"""The table: key -> stage, entities, suffix, extension, description, units, orientation, facts, sources."""

# fmt: off
ENTITY_ORDER = (
    "sub", "ses", "sample", "task", "tracksys", "acq", "nuc", "voi", "ce", "trc", "stain", "rec", "dir", "run", "mod",
    "echo", "flip", "inv", "mt", "part", "proc", "hemi", "space", "tract", "track", "model", "param", "split",
    "recording", "chunk", "atlas", "seg", "scale", "meas", "res", "den", "label", "desc",
)
# fmt: on
"""Order of entities in a name: schema of the BEP016 branch, with BEP046's ``tract`` and ``track`` after ``space`` and
BEP017's ``meas`` after the entities of a parcellation."""

DIGITS = 6  # of numbers in sidecars
ROUNDING = 1e-9  # of the largest coefficient, below which one is zero


def output_path(
    output_dir: Path,
    run: DWIRun,
    key: str,
    *,
    method: str | None = None,
    format: str | None = None,
    parcellation: Parcellation | None = None,
    measure: str | None = None,
) -> Path:
    """Return the path of one output: ``sub-<label>/[ses-<label>/]dwi/<source entities>_space-..._<suffix>``.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative data set.
    run : DWIRun
        Source; all of its entities are kept, in schema order.
    key : str
        Key of the table.
    method, format, measure : str, optional
        Tracking algorithm, file format and measure of a connectome; needed where the name tells them.
    parcellation : Parcellation, optional
        Of a connectome.

    Raises
    ------
    KeyError
        The table has no such key.
    """
    row = OUTPUTS[key]
    blanks = {"method": method, "format": format, "measure": measure}
    added = {name: value.format(**blanks) for name, value in row["entities"].items()}
    extension = row["extension"].format(**blanks)
    if missing := sorted(blank for blank in _blanks(row) if blanks[blank] is None):
        raise ValueError(f"{key}: {' and '.join(missing)} not given")
    if row.get("parcellated"):
        added |= parcellation.entities
    name = _join({**run.entities, "space": run.space, **added})
    return output_dir / run.folder / f"{name}_{row['suffix']}{extension}"


def sidecar_path(path: Path) -> Path:
    """Return the JSON beside an output: same stem, whatever the number of extensions."""
    return path.with_name(path.name.partition(".")[0] + ".json")


def figure_path(output_dir: Path, run: DWIRun, desc: str, *, extension: str = ".png") -> Path:
    """Return the path of one figure: ``sub-<label>/figures/<source entities>_desc-<desc>_dwi.png``."""
    return output_dir / f"sub-{run.subject}" / "figures" / f"{_join({**run.entities, 'desc': desc})}_dwi{extension}"


def report_path(output_dir: Path, subject: str, session: str | None) -> Path:
    """Return the page of a subject, or of one of its sessions."""
    return output_dir / (f"sub-{subject}" + (f"_ses-{session}" if session else "") + ".html")


def log_dir(output_dir: Path, subject: str, run_uuid: str) -> Path:
    """Return the folder that keeps the record of one execution for one subject."""
    return output_dir / f"sub-{subject}" / "log" / run_uuid


def stage_folder(output_dir: Path, run: DWIRun) -> Path:
    """Return the hidden folder of what later calls need to use the stages of a series again."""
    return output_dir / ".stages" / run.key


def cohort_path(output_dir: Path) -> Path:
    """Return the path of the weights that the group level adapts."""
    return output_dir / "group_desc-cohort_weights.safetensors"


def group_path(output_dir: Path, key: str, label: str) -> Path:
    """Return the path of what the group level makes of an output of many series, told apart by the label of ``acq``."""
    row = OUTPUTS[key]
    return output_dir / f"group_{_join({'acq': label, **row['entities']})}_{row['suffix']}{row['extension']}"


def group_log_dir(output_dir: Path, run_uuid: str) -> Path:
    """Return the folder that keeps the record of one execution of the group level."""
    return output_dir / "log" / run_uuid


def promised(settings: Settings) -> dict[str, Any]:
    """Return what `expected_outputs` needs to know of a call."""
    is_weighted = settings.streamline_weights == "on"
    return {
        "level": settings.level,
        "method": settings.tracking_algorithm,
        "formats": settings.tractogram_format,
        "is_weighted": is_weighted,
        "measures": measures(is_weighted=is_weighted, maps=settings.connectome_map),
    }


def expected_outputs(
    output_dir: Path,
    run: DWIRun,
    *,
    level: str,
    method: str,
    formats: Sequence[str],
    is_weighted: bool = True,
    measures: Sequence[str] = (),
    tissues: Sequence[str] = ("wm",),
) -> tuple[Path, ...]:
    """Return every file that a finished run must have left.

    Parameters
    ----------
    level : str
        Last stage of the run: ``response``, ``fod``, ``peaks`` or ``full``.
    method, formats : str and sequence of str
        Tracking algorithm and formats of the tractogram.
    is_weighted : bool
        Whether streamlines have weights.
    measures : sequence of str
        Of each connectome.
    tissues : sequence of str
        Tissues that were fitted; files of the others are not expected.
    """
    last = LEVELS.index(level)
    paths: list[Path] = []
    for key, row in OUTPUTS.items():
        if LEVELS.index(row["stage"]) > last or row.get("tissue", "wm") not in tissues:
            continue
        if row.get("beside", formats[0]) not in formats or (row.get("weighted") and not is_weighted):
            continue
        blanks = _blanks(row)
        every = product(
            formats if "format" in blanks else formats[:1],
            run.parcellations if row.get("parcellated") else (None,),
            measures if "measure" in blanks else (None,),
        )
        for format, parcellation, measure in every:
            own: dict[str, Any] = {"method": method, "format": format, "parcellation": parcellation, "measure": measure}
            path = output_path(output_dir, run, key, **own)
            paths.append(path)
            if (beside := sidecar_path(path)) not in paths and row["extension"] != ".txt":
                paths.append(beside)
    return tuple(paths)


def sidecar(
    run: DWIRun, key: str, facts: Mapping[str, Any], *, method: str | None = None, format: str | None = None
) -> dict[str, Any]:
    """Return the JSON content beside one output.

    Parameters
    ----------
    run : DWIRun
        Source.
    key : str
        Key of the table.
    facts : mapping
        What only the run knows; a key of the table names the facts it needs:

        ``model``
            Mapping for ``Model.Parameters`` (``Method``, weights, their SHA-256, kind of fit, fitted degree, ...).
        ``response``
            Mapping tissue -> zonal SH coefficients, one list per shell; padded here to equal length.
        ``shells``
            b-values in s/mm2, ascending.
        ``fod_lmax``
            Stored degree of the fODF.
        ``peaks``
            Mapping of thresholds, written as it is (``PeakRelativeThreshold``, ...).
        ``tractography``
            Mapping of the BEP046 blocks (``StreamlineSeeding``, ...), written as it is.
        ``weights``
            Mapping on the weights of the streamlines, written as it is; may be absent.
        ``mask_origin``
            ``"given"``, ``"derivative"`` or ``"estimated"``.
        ``columns``
            Mapping column -> description (or mapping of it) of the QC table.
        ``sloppy``
            True stamps the file as made by a test run; may be absent.
    method, format : str, optional
        As in `output_path`; needed where the tractogram is the output or a source.

    Raises
    ------
    KeyError
        A fact that the key needs is not there.
    """
    if key == "qc":
        columns = facts["columns"].items()
        return {name: text if isinstance(text, Mapping) else {"Description": text} for name, text in columns}
    row = OUTPUTS[key]
    content = {"Description": row["description"], **_from_table(row, facts), **_from_facts(row, facts)}
    if key == "mask":
        content |= {"Type": "Brain", "MaskOrigin": facts["mask_origin"]}
    elif key != "tractogram":
        content["SkullStripped"] = True
    if "units" in row:
        content["Units"] = row["units"]
    if facts.get("sloppy"):
        content["Sloppy"] = True
    content["SpatialReference"] = run.spatial_reference
    content["Sources"] = _sources(run, key, method=method, format=format)
    return _rounded(content)


def _from_table(row: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model, sign and orientation keys of a row of the table."""
    content: dict[str, Any] = {}
    if "model" in row.get("facts", ()):
        content["Model"] = _model(facts["model"])
    if "non_negativity" in row:
        content["NonNegativity"] = row["non_negativity"]
    if "orientation" in row:
        content["OrientationEncoding"] = {
            name: facts[value] if value == "fod_lmax" else value for name, value in row["orientation"].items()
        }
    if "parameter_url" in row:
        content["ParameterURL"] = row["parameter_url"]
    return content


def _from_facts(row: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the response, shells and blocks of options that a row of the table asks for."""
    needed = row.get("facts", ())
    content: dict[str, Any] = {}
    if "response" in needed:
        content["ResponseFunction"] = {"Type": "zsh", "Coefficients": _padded(facts["response"][row["tissue"]])}
    if "shells" in needed:
        content["Shells"] = [float(value) for value in facts["shells"]]
    for block in ("peaks", "tractography"):
        if block in needed:
            content |= facts[block]
    for block in row.get("optional_facts", ()):
        content |= facts.get(block, {})
    return content


def _model(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return which method made a file, with its source and parameters."""
    method = method_named(parameters["Method"])
    who, url = method.source
    from_where = f" ({who})" if method.is_published else f" (shd_bids; layers: {who})" if who else ""
    described = {"Description": method.description[0].upper() + method.description[1:] + from_where}
    return described | ({"URL": url} if method.is_published else {}) | {"Parameters": dict(parameters)}


def _sources(run: DWIRun, key: str, *, method: str | None, format: str | None) -> list[str]:
    """Return the BIDS URIs of what an output was made from."""
    uris = [_source_uri(run, source, method=method, format=format) for source in OUTPUTS[key]["sources"]]
    if key == "mask" and run.mask_uri:
        uris.append(run.mask_uri)
    if key == "tractogram":
        uris += run.anatomy_uris
    return uris


def _source_uri(run: DWIRun, source: str, *, method: str | None, format: str | None) -> str:
    if source == "dwi":
        return run.source_uri
    return f"bids::{output_path(Path(), run, source, method=method, format=format).as_posix()}"


def _join(entities: Mapping[str, str]) -> str:
    """Return entities joined in schema order; one that the schema does not know keeps its place before ``space``."""
    unknown_place = ENTITY_ORDER.index("space") - 0.5
    order = {name: place for place, name in enumerate(ENTITY_ORDER)}
    ordered = sorted(entities.items(), key=lambda item: order.get(item[0], unknown_place))
    return "_".join(f"{name}-{value}" for name, value in ordered)


def _blanks(row: Mapping[str, Any]) -> set[str]:
    """Return the names of the blanks in a row that the caller must fill."""
    text = row["extension"] + "".join(row["entities"].values())
    return {blank for blank in ("method", "format", "measure") if f"{{{blank}}}" in text}


def _padded(coefficients: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return lists of equal length, as BEP016 asks, the missing high degrees being zero."""
    longest = max(len(row) for row in coefficients)
    least = ROUNDING * max((abs(value) for row in coefficients for value in row), default=0.0)
    return [
        [float(value) if abs(value) > least else 0.0 for value in row] + [0.0] * (longest - len(row))
        for row in coefficients
    ]


def _rounded(value: Any) -> Any:
    """Return a value of JSON whose numbers have the digits that another machine gives too."""
    match value:
        case float():
            return float(f"{value:.{DIGITS}g}")
        case Mapping():
            return {name: _rounded(item) for name, item in value.items()}
        case list() | tuple():
            return [_rounded(item) for item in value]
    return value

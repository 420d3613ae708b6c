"""Files of the derivative data set as a whole; several jobs may write them at the same time."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import Timeout

from shd_bids import __version__
from shd_bids.bids.run import DWIRun
from shd_bids.errors import InputError, OutputError
from shd_bids.files import read_json_object, write_json, write_text
from shd_bids.locks import locked

logger = logging.getLogger(__name__)

APP = "shd_bids"
BIDS_VERSION = "1.11.1"
LOCK_NAME = ".shd_bids.lock"
LOCK_SECONDS = 120

BIDSIGNORE = """\
*.html
sub-*/log
sub-*/figures
*_dwimap.*
*_tractogram.*
*_relmat.*
*_nodeindices.*
*_response.*
*_qc.*
*_weights.*
*_ratings.*
log
prov
.stages
"""
"""Files that the released BIDS schema does not know yet (BEP016, BEP046) or never will."""

DESCRIPTIONS = {
    "brain": "brain mask",
    "shdtv": "quality control of the fit",
    "weighted": "streamlines counted by their weights",
    "cohort": "network weights adapted to the data set",
}

README = f"""\
# {APP} derivatives

Fibre orientation distributions (fODF), peaks and streamlines made by {APP} {__version__}.

* fODF: `*_model-shdtv_param-wm_dwimap.nii.gz`, spherical harmonics in MRtrix3's basis, world axes (RAS+). MRtrix3 reads
  them as they are: `mrview`, `sh2peaks`, `tckgen`.
* Peaks: `*_param-peaks_dwimap.nii.gz`, three volumes per peak in world axes, length = amplitude.
* Streamlines: `*_tractogram.trx`, world coordinates in mm.
* Connectomes: `*_relmat.dense.tsv`, one for each measure; rows and columns are those of `*_nodeindices.tsv`.
* `model-shdtv` is in every name, whichever network made the file; `Model` in the JSON of an fODF says which.
* Each file has a JSON beside it: units, parameters, sources. Figures and numbers: `sub-<label>[_ses-<label>].html`.
* `sub-<label>/log/<run>/` says how each file was made: settings, versions, checksums of inputs and weights, times.
"""


def write_dataset_files(output_dir: Path, runs: Sequence[DWIRun], *, environment: Mapping[str, str]) -> None:
    """Create or complete ``dataset_description.json``, ``.bidsignore``, ``descriptions.tsv`` and ``README.md``.

    Existing content is kept and merged, so that jobs for other subjects, before or at the same time, are not undone;
    a file whose content would not change is not touched.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative data set; must exist.
    runs : sequence of DWIRun
        What is going to be processed.
    environment : mapping
        Environment variables; those named ``SHD_BIDS_*`` describe the container and the paths of its host.

    Raises
    ------
    OutputError
        The folder holds another program's data set, or cannot be written.
    """
    try:
        with _lock(output_dir):
            path = output_dir / "dataset_description.json"
            before = _read(path)
            after = describe(output_dir, runs, before=before, environment=environment)
            if after != before:
                write_json(path, after)
            _complete_lines(output_dir / ".bidsignore", BIDSIGNORE.splitlines())
            rows = [f"desc-{label}\t{text}" for label, text in DESCRIPTIONS.items()]
            _complete_lines(output_dir / "descriptions.tsv", ["desc_id\tdescription", *rows])
            if not (output_dir / "README.md").exists():
                write_text(output_dir / "README.md", README)
    except OSError as error:
        raise OutputError(f"cannot write to {output_dir} ({error.strerror}); choose another OUTPUT_DIR") from error


def describe(
    output_dir: Path, runs: Sequence[DWIRun], *, before: Mapping[str, Any], environment: Mapping[str, str]
) -> dict[str, Any]:
    """Return the content of ``dataset_description.json``, merged with what is there.

    Raises
    ------
    OutputError
        ``before`` is the description of another program's data set.
    """
    makers = [maker.get("Name") for maker in before.get("GeneratedBy", [])]
    if before and (not makers or makers[0] != APP):
        raise OutputError(
            f"{output_dir} holds the data set {before.get('Name', 'without a name')!r}"
            f"{f' of {makers[0]}' if makers else ''}; give an OUTPUT_DIR of its own, for example "
            f"{output_dir / 'derivatives' / APP if not makers else output_dir.parent / APP}"
        )
    roots = {name: root for run in runs for name, root in run.links.items()}
    links = {name: portable_link(root, output_dir, name=name, environment=environment) for name, root in roots.items()}
    inputs = [
        maker for root in roots.values() for maker in _read(root / "dataset_description.json").get("GeneratedBy", [])
    ]
    me = {"Name": APP, "Version": __version__, **_container(environment)}
    others = [maker for maker in [*before.get("GeneratedBy", [])[1:], *inputs] if maker.get("Name") != APP]
    merged_links = {**before.get("DatasetLinks", {}), **links}
    return {
        "Name": before.get("Name", f"{APP}: fibre orientation distributions, peaks and streamlines"),
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [me, *_unique(others)],
        "SourceDatasets": [{"URL": link} for link in _unique(merged_links.values())],
        "DatasetLinks": dict(sorted(merged_links.items())),
    }


def portable_link(root: Path, output_dir: Path, *, name: str, environment: Mapping[str, str]) -> str:
    """Return a link to an input data set that still holds when the output is moved or was made in a container.

    In this order: the host's path from ``SHD_BIDS_HOST_<NAME>``, a relative path where input and output lie in one
    tree, the DOI of the input, and the absolute path outside containers; a bare path of a container is never given.
    """
    if host := environment.get(f"SHD_BIDS_HOST_{name.upper().replace('-', '_')}"):
        return host if "://" in host else f"file://{host}"
    root, output_dir = root.resolve(), output_dir.resolve()
    common = Path(os.path.commonpath([root, output_dir]))
    if common != Path(common.anchor):
        return os.path.relpath(root, output_dir)
    if doi := _read(root / "dataset_description.json").get("DatasetDOI"):
        return doi if "://" in doi else f"https://doi.org/{doi.removeprefix('doi:')}"
    if _container(environment):
        return "file:///unknown/" + name
    return root.as_uri()


def _container(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the ``Container`` block, from what the image or its runner says in the environment."""
    image = environment.get("APPTAINER_CONTAINER") or environment.get("SINGULARITY_CONTAINER")
    kind = environment.get("SHD_BIDS_CONTAINER_TYPE") or ("apptainer" if image else None)
    if kind is None:
        return {}
    container = {"Type": kind, "Tag": environment.get("SHD_BIDS_CONTAINER_TAG", __version__)}
    if uri := environment.get("SHD_BIDS_CONTAINER_URI"):
        container["URI"] = uri
    return {"Container": container}


def _read(path: Path) -> dict[str, Any]:
    """Return a description, empty where there is none."""
    if not path.exists():
        return {}
    try:
        content = read_json_object(path)
    except InputError as error:
        raise OutputError(f"{error}, or remove it") from error
    makers, links = content.get("GeneratedBy", []), content.get("DatasetLinks", {})
    if not (isinstance(makers, list) and all(isinstance(m, dict) for m in makers) and isinstance(links, dict)):
        raise OutputError(f"{path}: GeneratedBy and DatasetLinks expected as list and object; correct or remove it")
    return content


def _complete_lines(path: Path, lines: Sequence[str]) -> None:
    """Add the lines that a text file lacks."""
    present = path.read_text("utf-8").splitlines() if path.exists() else []
    if missing := [line for line in lines if line not in present]:
        write_text(path, "\n".join([*present, *missing]) + "\n")


def _unique(items: Any) -> list[Any]:
    """Return the items in order, without repetitions (they need not be hashable)."""
    kept: list[Any] = []
    for item in items:
        if item not in kept:
            kept.append(item)
    return kept


@contextlib.contextmanager
def _lock(output_dir: Path) -> Iterator[None]:
    """Hold the data set's lock."""
    path = output_dir / LOCK_NAME
    try:
        with locked(path, seconds=LOCK_SECONDS):
            yield
    except Timeout as error:
        raise OutputError(f"{path} is held by another job for over {LOCK_SECONDS} s; remove it if none runs") from error

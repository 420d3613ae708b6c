"""Connectomes of the parcellations of a series."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import File, traits

from shd_bids.interfaces.base import StageInputSpec, StageInterface, StageOutputSpec, qc_column, read_json

if TYPE_CHECKING:
    import numpy as np

    from shd_bids.tractography.connectome import Streamlines
    from shd_bids.tractography.regions import Regions

__all__ = ["ConnectRegions"]

AT_ONCE = 50_000  # streamlines; bounds what is held of them
FEW_ASSIGNED = 0.5
"""Share of the streamlines between two regions, below which the user is told."""


@dataclass(frozen=True)
class ConnectomeFiles:
    """What connectomes are made of.

    Attributes
    ----------
    tracks_file : Path
        TRX of the stages before.
    streamline_weights_file, weights_facts_file : Path, optional
        Array and facts of `weigh_image`, absent where streamlines have no weights.
    map_files : list of Path
        Maps whose means along the streamlines are told.
    image_files, table_files : list of Path
        Label images, and the look-up tables of those that have one.
    """

    tracks_file: Path
    streamline_weights_file: Path | None
    weights_facts_file: Path | None
    map_files: list[Path]
    image_files: list[Path]
    table_files: list[Path]


def connect_image(
    *,
    files: ConnectomeFiles,
    labels: list[str],
    table_labels: list[str],
    map_names: list[str],
    radius: float,
    n_threads: int,
    out_dir: Path,
) -> dict[str, Any]:
    """Make the matrices of every parcellation.

    Parameters
    ----------
    files : ConnectomeFiles
    labels, table_labels : list of str
        Name of each label image, and of the one that each table is of.
    map_names : list of str
        Name of each map.
    radius : float
        Largest distance from the end of a streamline to its region, mm.
    n_threads : int
        The result does not depend on it.
    out_dir : Path
        Gets ``<label>.<measure>.tsv``, ``<label>.nodes.tsv``, and ``matrices.npz`` for the report.
    """
    import numpy as np

    from shd_bids.tractography.connectome import BUNDLE_CAPACITY, COUNT, assign_ends, connect
    from shd_bids.tractography.regions import read_regions

    streamlines = _read_streamlines(files, map_names)
    tables = dict(zip(table_labels, files.table_files, strict=True))
    written: list[str] = []
    shown: dict[str, np.ndarray] = {}
    about: dict[str, Any] = {}
    for label, image in zip(labels, files.image_files, strict=True):
        regions = read_regions(image, tables.get(label))
        nodes = assign_ends(streamlines.ends, regions, radius=radius, n_threads=n_threads)
        matrices = connect(streamlines, nodes, regions)
        written += [_write(out_dir / f"{label}.{measure}.tsv", matrix) for measure, matrix in matrices.items()]
        written.append(_write_nodes(out_dir / f"{label}.nodes.tsv", regions, image.name))
        shown[label] = matrices.get(BUNDLE_CAPACITY, matrices[COUNT])
        about[label] = _about(nodes, matrices[COUNT], radius)
    np.savez(out_dir / "matrices.npz", allow_pickle=False, **shown)
    return {
        "table_files": written,
        "matrices_file": str(out_dir / "matrices.npz"),
        "facts": {"sidecar": {"connectomes": about}, "notes": _notes(about), "qc": _qc(about)},
    }


def _read_streamlines(files: ConnectomeFiles, map_names: list[str]) -> "Streamlines":
    """Return ends, lengths and cross-sections of all streamlines, and the means of the maps along them."""
    import numpy as np

    from shd_bids.images import load_volume
    from shd_bids.tractography.connectome import Streamlines
    from shd_bids.tractography.density import means_along
    from shd_bids.tractography.files import iterate_trx, read_each

    volumes = [load_volume(path, n_dims=(3,)) for path in files.map_files]
    ends, means = [np.zeros((0, 2, 3), np.float32)], [np.zeros((len(volumes), 0), np.float32)]
    for part in iterate_trx(files.tracks_file, AT_ONCE):
        last = part._offsets + part._lengths - 1
        ends.append(part._data[np.stack([part._offsets, last], axis=1)])
        along = [means_along(part, volume.data, volume.affine) for volume in volumes]
        means.append(np.array(along, dtype=np.float32).reshape(len(volumes), len(part)))
    return Streamlines(
        ends=np.concatenate(ends),
        lengths=read_each(files.tracks_file)["length"],
        cross_sections=_cross_sections(files),
        means=dict(zip(map_names, np.concatenate(means, axis=1), strict=True)),
    )


def _cross_sections(files: ConnectomeFiles) -> "np.ndarray | None":
    """Return weight times proportionality coefficient of each streamline, mm²."""
    import numpy as np

    if files.streamline_weights_file is None or files.weights_facts_file is None:
        return None
    about = read_json(files.weights_facts_file)["sidecar"]["weights"]["StreamlineWeights"]
    return about["ProportionalityCoefficient"] * np.load(files.streamline_weights_file)


def _write(path: Path, matrix: "np.ndarray") -> str:
    """Write a matrix without a heading; what is not known is n/a."""
    lines = ("\t".join(f"{value:.8g}" for value in row).replace("nan", "n/a") for row in matrix.tolist())
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def _write_nodes(path: Path, regions: "Regions", image: str) -> str:
    """Write the regions in the order of the matrices."""
    rows = zip(regions.labels.tolist(), regions.names, regions.volumes.tolist(), strict=True)
    lines = [f"{n}\t{image}\t{label}\t{name}\t{volume:.8g}" for n, (label, name, volume) in enumerate(rows)]
    heading = "matrix_index\tnode_file\tnode_index\tname\tvolume"
    path.write_text("\n".join([heading, *lines]) + "\n", encoding="utf-8")
    return str(path)


def _about(nodes: "np.ndarray", count: "np.ndarray", radius: float) -> dict[str, Any]:
    """Return what is told of a connectome in sidecars and report."""
    import numpy as np

    n, pairs = len(count), np.triu(count > 0, 1).sum()
    return {
        "AssignmentRadius": radius,
        "Regions": n,
        "RegionsConnected": int((count > 0).any(axis=0).sum()),
        "ConnectedPairs": int(pairs),
        "ConnectedPairsShare": float(pairs / max(n * (n - 1) / 2, 1)),
        "Streamlines": len(nodes),
        "StreamlinesAssigned": int((nodes >= 0).all(axis=1).sum()),
        "StreamlinesOneEndAssigned": int(((nodes >= 0).sum(axis=1) == 1).sum()),
        "StreamlinesWithinOneRegion": int(((nodes[:, 0] >= 0) & (nodes[:, 0] == nodes[:, 1])).sum()),
    }


def _share(one: dict[str, Any]) -> float:
    return one["StreamlinesAssigned"] / max(one["Streamlines"], 1)


def _notes(about: dict[str, Any]) -> list[str]:
    """Return which parcellations leave out many streamlines."""
    return [
        f"{label}: only {_share(one):.0%} of the streamlines end in two of its regions; do they reach the grey matter "
        "where streamlines end?"
        for label, one in about.items()
        if _share(one) < FEW_ASSIGNED
    ]


def _qc(about: dict[str, Any]) -> dict[str, Any]:
    return {
        f"connectome_assigned_{label}": qc_column(
            _share(one), f"Share of the streamlines both ends of which lie in regions of {label}", "1"
        )
        for label, one in about.items()
    }


class _ConnectRegionsInputSpec(StageInputSpec):
    tracks_file = File(exists=True, mandatory=True, desc="TRX")
    streamline_weights_file = File(exists=True, desc="array of the weights, where streamlines have some")
    weights_facts_file = File(exists=True, desc="facts of the weights, where streamlines have some")
    map_files = traits.List(File(exists=True), desc="maps to average along streamlines")
    image_files = traits.List(File(exists=True), mandatory=True, desc="label images")
    table_files = traits.List(File(exists=True), desc="look-up tables")
    labels = traits.List(traits.Str, mandatory=True, desc="name of each label image")
    table_labels = traits.List(traits.Str, desc="name of the image of each table")
    map_names = traits.List(traits.Str, desc="name of each map")
    radius = traits.Float(mandatory=True, desc="mm")


class _ConnectRegionsOutputSpec(StageOutputSpec):
    table_files = traits.List(File(exists=True), desc="matrices and regions")
    matrices_file = File(exists=True, desc="for the report")


class ConnectRegions(StageInterface):
    """Connectomes of all parcellations."""

    input_spec = _ConnectRegionsInputSpec
    output_spec = _ConnectRegionsOutputSpec
    function = staticmethod(connect_image)
    files_type = ConnectomeFiles
    wants = ("n_threads",)

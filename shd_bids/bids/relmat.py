"""Sidecars of connectomes after BEP017 (bids-specification PR 1902)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shd_bids import __version__
from shd_bids.bids.names import OUTPUTS, output_path
from shd_bids.bids.parcellations import Parcellation
from shd_bids.bids.run import DWIRun
from shd_bids.tractography.connectome import BUNDLE_CAPACITY, COUNT, DENSITY, LENGTH

__all__ = ["nodes_sidecar", "relmat_sidecar"]

ABOUT = {
    COUNT: ("Number of streamlines that connect two regions", "1"),
    BUNDLE_CAPACITY: (
        "Fibre bundle capacity: sum of the weights of the streamlines that connect two regions, times their proportionality "
        "coefficient; comparable between subjects whose responses are (Smith et al. 2022)",
        "mm2",
    ),
    LENGTH: ("Mean length of the streamlines that connect two regions, by their weights", "mm"),
}
"""Description and unit of each measure."""

DENSITIES = {
    True: ("Fibre bundle capacity divided by the mean volume of the two regions", "1/mm"),
    False: ("Number of streamlines divided by the mean volume of the two regions", "1/mm3"),
}
"""The same of the density, with weights and without."""


def relmat_sidecar(
    run: DWIRun, parcellation: Parcellation, measure: str, facts: Mapping[str, Any], *, method: str, format: str
) -> dict[str, Any]:
    """Return the JSON content beside one connectome.

    Parameters
    ----------
    run, parcellation, measure : DWIRun, Parcellation and str
        What it is of.
    facts : mapping
        ``connectomes``: label of a parcellation -> how it came about, written as it is; ``weights`` where streamlines have
        some; ``sloppy`` where true stamps the file as made by a test run.
    method, format : str
        Of the tractogram.
    """
    weights = facts.get("weights", {}).get("StreamlineWeights", {})
    description, units = DENSITIES[bool(weights)] if measure == DENSITY else ABOUT.get(measure, ("", ""))
    if not description:
        key = measure.removeprefix("mean")
        description = (
            f"Mean along the streamlines that connect two regions, by their weights, of: {OUTPUTS[key]['description']}"
        )
        units = OUTPUTS[key]["units"]
    tracks = output_path(Path(), run, "tractogram", method=method, format=format)
    nodes = output_path(Path(), run, "nodeindices", parcellation=parcellation)
    content = {
        "Description": description,
        "RelationshipMeasure": measure,
        "MeasureUnits": units,
        "Directed": False,
        "Weighted": measure != COUNT,
        "ValidDiagonal": True,
        "NonNegative": True,
        "StorageFormat": "dense",
        "NodeFiles": [f"bids::{nodes.as_posix()}"],
        "Software": f"shd_bids {__version__}",
        **facts["connectomes"][parcellation.label],
        "SpatialReference": run.spatial_reference,
        "Sources": [f"bids::{tracks.as_posix()}", parcellation.uri],
    }
    if weights:
        content["ProportionalityCoefficient"] = weights["ProportionalityCoefficient"]
    return content | ({"Sloppy": True} if facts.get("sloppy") else {})


def nodes_sidecar(parcellation: Parcellation) -> dict[str, Any]:
    """Return the column dictionary of the regions of a parcellation."""
    table = parcellation.table.name if parcellation.table else "the image alone"
    return {
        "matrix_index": {"Description": "Row and column of the region in the matrices, from 0"},
        "node_file": {"Description": f"Label image that the region is of; its names are those of {table}"},
        "node_index": {"Description": "Label of the region in the image"},
        "name": {"Description": "Name of the region"},
        "volume": {"Description": "Volume of the region", "Units": "mm3"},
    }

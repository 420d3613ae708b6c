from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from shd_bids.bids.names import (
    ENTITY_ORDER,
    OUTPUTS,
    expected_outputs,
    figure_path,
    output_path,
    sidecar,
    sidecar_path,
)
from shd_bids.bids.parcellations import Parcellation
from shd_bids.options import LEVELS
from tests.bids_trees import dwi_run

SOURCE = {"sub": "01", "ses": "b", "acq": "x", "rec": "n", "dir": "AP", "run": "01", "chunk": "2"}
TRACKING = {"method": "prob", "format": "trx"}
REGIONS = Parcellation(
    image=Path("/q/labels.nii.gz"), table=None, entities={"atlas": "A", "scale": "2"}, uri="bids:q:labels.nii.gz"
)
FACTS = {
    "model": {"Method": "conditioned", "Weights": "packaged"},
    "response": {"wm": [[3.0], [2.0, -1.0, 0.5]], "gm": [[1.0], [0.5]], "csf": [[4.0], [0.1]]},
    "shells": [0, 1000.0],
    "fod_lmax": 12,
    "peaks": {"PeakMaximumNumber": 5},
    "tractography": {"RandomSeed": 0, "StreamlineAcceptanceCriteria": {}},
    "weights": {"StreamlineWeights": {"ProportionalityCoefficient": 0.5}},
    "mask_origin": "derivative",
    "columns": {"n_volumes": "Number of volumes", "b": {"Description": "b", "Units": "s/mm2"}},
}


@pytest.fixture
def run():
    return dwi_run(
        Path("/q"),
        entities=SOURCE,
        space="ACPC",
        mask_origin="derivative",
        source_uri="bids:q:x.nii.gz",
        mask_uri="bids:q:m.nii.gz",
        spatial_reference="bids:q:t1.nii.gz",
    )


def parse_name(path):
    """Split a BIDS file name into entities, values as written, suffix and extension."""
    stem, _, extension = path.name.partition(".")
    *pairs, suffix = stem.split("_")
    return dict(pair.split("-", 1) for pair in pairs), suffix, f".{extension}"


def fill(key):
    if OUTPUTS[key].get("parcellated"):
        return {"parcellation": REGIONS} | ({"measure": "streamlineCount"} if key == "relmat" else {})
    return TRACKING if key in ("tractogram", "weights", "tdi", "weighted_tdi") else {}


@pytest.mark.parametrize("key", OUTPUTS)
def test_names_keep_every_source_entity_and_give_them_back(run, key):
    path = output_path(Path("/out"), run, key, **fill(key))
    entities, suffix, extension = parse_name(path)
    assert path.parent == Path("/out/sub-01/ses-b/dwi")
    blanks = TRACKING | {"measure": "streamlineCount"}
    own = {name: value.format(**blanks) for name, value in OUTPUTS[key]["entities"].items()}
    own |= REGIONS.entities if OUTPUTS[key].get("parcellated") else {}
    assert entities == {**SOURCE, "space": "ACPC", **own}
    assert suffix == OUTPUTS[key]["suffix"]
    assert extension == OUTPUTS[key]["extension"].format(**TRACKING)


@pytest.mark.parametrize("key", OUTPUTS)
def test_entities_come_in_the_order_of_the_schema(run, key):
    entities, *_ = parse_name(output_path(Path(), run, key, **fill(key)))
    places = [ENTITY_ORDER.index(name) for name in entities]
    assert places == sorted(places)


def test_order_agrees_with_the_released_schema():
    from bidsschematools.schema import load_schema

    schema = load_schema()
    released = [schema.objects.entities[name].name for name in schema.rules.entities]
    both = [name for name in ENTITY_ORDER if name in released]
    assert both == [name for name in released if name in both]
    assert len(both) >= 25


def test_known_names(run):
    root = Path("/out")
    plain = replace(run, session=None, entities={"sub": "01"}, space="orig")
    assert str(output_path(root, plain, "wm")) == (
        "/out/sub-01/dwi/sub-01_space-orig_model-shdtv_param-wm_dwimap.nii.gz"
    )
    assert output_path(root, plain, "tractogram", method="det", format="tck").name == (
        "sub-01_space-orig_tract-wholebrain_track-det_tractogram.tck"
    )
    assert output_path(root, plain, "mask").name == "sub-01_space-orig_desc-brain_mask.nii.gz"
    assert sidecar_path(Path("/a/b_x.nii.gz")) == Path("/a/b_x.json")
    assert str(figure_path(root, plain, "fodf")) == "/out/sub-01/figures/sub-01_desc-fodf_dwi.png"


def test_two_outputs_never_share_a_name(run):
    paths = [output_path(Path(), run, key, **fill(key)) for key in OUTPUTS]
    assert len(set(paths)) == len(paths)


def test_a_tractogram_needs_its_method_and_format(run):
    with pytest.raises(ValueError, match="format and method not given"):
        output_path(Path(), run, "tractogram")


@pytest.mark.parametrize("level", LEVELS)
def test_each_level_promises_more(run, level):
    promised = [
        set(expected_outputs(Path(), run, level=each, method="prob", formats=("trx", "tck"), tissues=("wm", "csf")))
        for each in LEVELS[: LEVELS.index(level) + 1]
    ]
    assert all(less < more for less, more in pairwise(promised))
    names = {path.name for path in promised[-1]}
    assert any("_param-csf_" in name and name.endswith("_response.txt") for name in names)
    assert not any("_param-gm_" in name for name in names)
    assert (level == "full") == any(name.endswith(".tck") for name in names)
    assert (level == "full") == any(name.endswith("_desc-weights_tractogram.txt") for name in names)
    assert not any(name.endswith("_response.json") for name in names)


def test_weights_stand_beside_a_tck_only(run):
    for form in ("trx", "tck"):
        names = [path.name for path in expected_outputs(Path(), run, level="full", method="prob", formats=(form,))]
        assert any("_desc-weights_" in name for name in names) == (form == "tck")


def test_without_weights_none_are_promised(run):
    promise = {"level": "full", "method": "prob", "formats": ("tck",)}
    with_weights, without = (
        {path.name for path in expected_outputs(Path(), run, **promise, is_weighted=on)} for on in (True, False)
    )
    assert {name.rpartition("_desc-")[2] for name in with_weights - without} == {
        "weights_tractogram.txt",
        "weighted_dwimap.nii.gz",
        "weighted_dwimap.json",
    }


def test_every_parcellation_has_its_connectomes(run):
    other = replace(REGIONS, entities={"seg": "B"})
    promise = {"level": "full", "method": "prob", "formats": ("trx",), "measures": ("streamlineCount", "meanLength")}
    names = {path.name for path in expected_outputs(Path(), replace(run, parcellations=(REGIONS, other)), **promise)}
    prefix = "sub-01_ses-b_acq-x_rec-n_dir-AP_run-01_space-ACPC_chunk-2"
    tables = {name.removeprefix(prefix) for name in names if "relmat" in name or "nodeindices" in name}
    ends = ("_meas-streamlineCount_relmat", "_meas-meanLength_relmat", "_nodeindices")
    kinds = {end: (".dense.tsv", ".json") if "relmat" in end else (".tsv", ".json") for end in ends}
    assert tables == {
        f"_{label}{end}{kind}" for label in ("atlas-A_scale-2", "seg-B") for end in ends for kind in kinds[end]
    }


def test_table_is_complete():
    for key, row in OUTPUTS.items():
        assert row["stage"] in LEVELS, key
        assert row["description"], key
        if row["suffix"] == "dwimap":
            assert {"model", "param"} <= set(row["entities"]), key
            assert "units" in row, key


class TestSidecar:
    @pytest.mark.parametrize(
        "key", [key for key, row in OUTPUTS.items() if row["extension"] != ".txt" and not row.get("parcellated")]
    )
    def test_every_key_has_one_with_description_and_sources(self, run, key):
        content = sidecar(run, key, FACTS, **fill(key))
        if key == "qc":
            assert content["n_volumes"] == {"Description": "Number of volumes"}
            assert content["b"]["Units"] == "s/mm2"
            return
        assert content["Description"]
        assert content["SpatialReference"] == "bids:q:t1.nii.gz"
        assert all(source.startswith("bids:") for source in content["Sources"])
        assert ("SkullStripped" in content) == (key not in ("mask", "tractogram"))
        assert "Sloppy" not in content

    def test_fodf(self, run):
        content = sidecar(run, "wm", FACTS)
        assert content["OrientationEncoding"] == {
            "Type": "sh",
            "EncodingAxis": 3,
            "Reference": "xyz",
            "AntipodalSymmetry": True,
            "SphericalHarmonicBasis": "mrtrix3",
            "SphericalHarmonicDegree": 12,
        }
        assert content["ResponseFunction"] == {"Type": "zsh", "Coefficients": [[3.0, 0.0, 0.0], [2.0, -1.0, 0.5]]}
        assert content["Shells"] == [0.0, 1000.0]
        assert content["Model"]["Parameters"] == {"Method": "conditioned", "Weights": "packaged"}
        assert content["Sources"][0] == "bids:q:x.nii.gz"
        assert content["Sources"][1].startswith("bids::sub-01/ses-b/dwi/")

    def test_isotropic_tissue_is_degree_zero_with_its_own_response(self, run):
        content = sidecar(run, "csf", FACTS)
        assert content["OrientationEncoding"]["SphericalHarmonicDegree"] == 0
        assert content["ResponseFunction"]["Coefficients"] == [[4.0], [0.1]]

    def test_peaks_are_vectors_without_a_sign_rule(self, run):
        content = sidecar(run, "peaks", FACTS)
        assert content["OrientationEncoding"]["Type"] == "3vector"
        assert "NonNegativity" not in content
        assert content["PeakMaximumNumber"] == 5

    def test_scalars_have_no_reference(self, run):
        assert sidecar(run, "nufo", FACTS)["OrientationEncoding"] == {"Type": "scalar"}

    def test_mask_names_where_it_came_from(self, run):
        content = sidecar(run, "mask", FACTS)
        assert content["Type"] == "Brain"
        assert content["Sources"] == ["bids:q:x.nii.gz", "bids:q:m.nii.gz"]

    def test_density_comes_from_the_tractogram(self, run):
        (source,) = sidecar(run, "tdi", FACTS, **TRACKING)["Sources"]
        assert source.endswith("_track-prob_chunk-2_tractogram.trx")

    def test_the_weights_are_told_where_there_are_some(self, run):
        for key in ("tractogram", "weighted_tdi"):
            assert sidecar(run, key, FACTS, **TRACKING)["StreamlineWeights"] == {"ProportionalityCoefficient": 0.5}
        without = {name: value for name, value in FACTS.items() if name != "weights"}
        assert "StreamlineWeights" not in sidecar(run, "tractogram", without, **TRACKING)

    def test_a_test_run_is_stamped(self, run):
        assert sidecar(run, "nufo", {**FACTS, "sloppy": True})["Sloppy"] is True

    def test_a_missing_fact_is_not_passed_over(self, run):
        with pytest.raises(KeyError):
            sidecar(run, "wm", {key: value for key, value in FACTS.items() if key != "shells"})


@pytest.mark.parametrize(
    ("method", "described", "has_address"),
    [
        ("conditioned", "shd_bids; layers: Elaldi, Gerig and Dey 2024", False),
        ("SHD-TV", "SHD-TV as published", True),
        ("mine", "the network of the recipe mine", False),
    ],
)
def test_sidecars_say_which_method_made_a_file(run, method, described, has_address):
    model = sidecar(run, "wm", FACTS | {"model": {"Method": method}})["Model"]
    assert described in model["Description"]
    assert model.get("URL") == ("https://arxiv.org/abs/2411.11819" if has_address else None)


def test_numbers_of_sidecars_have_digits_that_repeat(run):
    response = {"wm": [[1168.812345678, 3.5e-15], [400.0, -120.123456789]]}
    content = sidecar(run, "wm", {**FACTS, "response": response})
    assert content["ResponseFunction"]["Coefficients"] == [[1168.81, 0.0], [400.0, -120.123]]

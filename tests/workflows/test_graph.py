"""The graph: connected, cut where asked, and built without what only the stages need."""

import subprocess
import sys

import pytest

from shd_bids.bids.parcellations import Parcellation
from shd_bids.bids.stages import Kept, StagePlan, asked_stages
from shd_bids.options import PeakOptions, TrackingOptions
from shd_bids.settings import Settings
from shd_bids.workflows.base import init_shd_wf, run_folder, run_name
from shd_bids.workflows.group import init_group_wf
from tests.bids_trees import dwi_run
from tests.helpers import assert_well_connected

STAGES = {
    "response": {"gradients", "response"},
    "fod": {"gradients", "response", "fod"},
    "peaks": {"gradients", "response", "fod", "peaks"},
    "full": {"gradients", "response", "fod", "peaks", "tractography", "weights", "conversion"},
}


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "raw" / "sub-01" / "dwi"
    folder.mkdir(parents=True)
    for name in ("sub-01_dwi.nii.gz", "sub-01_dwi.bval", "sub-01_dwi.bvec", "wm.txt"):
        (folder / name).touch()
    return tmp_path / "raw"


def settings_for(dataset, **options):
    root = dataset.parent
    return Settings(bids_dir=dataset, output_dir=root / "out", work_dir=root / "work", **options)


def graph_of(runs, settings, kept=()):
    """Return the graph of series of which some stages are kept, as files without content."""
    digests = {stage.name: f"digest of {stage.name}" for stage in asked_stages(runs[0], settings)}
    plan = StagePlan(digests, {stage: _kept(settings.work_dir / "kept", stage) for stage in kept})
    return init_shd_wf(runs, settings, {run.key: plan for run in runs})


def _kept(folder, stage):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").touch()
    outputs = {"gradients": ("gradients", "mask", "b0"), "fod": ("wm", "fodrest", "precision", "vfwm", "vfgm", "vfcsf")}
    outputs |= {"peaks": ("peaks", "peakafd", "nufo"), "tractography": ("tdi", "tracks")}
    outputs |= {"weights": ("weighted_tdi", "streamline_weights"), "conversion": ("tractogram",)}
    return Kept({f"{name}_file": str(folder / "file") for name in outputs[stage]}, folder / "file")


def nodes(workflow, name):
    return [node for node in workflow.list_node_names() if node.rpartition(".")[2] == name]


@pytest.mark.parametrize("level", STAGES)
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("fit", ["amortised", "subject"])
def test_graph_is_connected_and_cut_at_the_level(dataset, level, given, fit):
    responses = (dataset / "sub-01" / "dwi" / "wm.txt",) if given else ()
    workflow = graph_of([dwi_run(dataset, responses=responses)], settings_for(dataset, level=level, fit=fit))
    (run_wf,) = workflow._graph.nodes()
    for part in run_wf._graph.nodes():
        if hasattr(part, "_graph"):
            assert_well_connected(part)
    names = {name.rpartition(".")[2] for name in workflow.list_node_names()}
    assert names & STAGES["full"] == STAGES[level]
    assert ("draw_training" in names) == (fit == "subject" and level != "response")
    run_wf._create_flat_graph()  # no cycle, and every sub-workflow can be expanded


def test_series_do_not_depend_on_one_another(dataset):
    runs = [dwi_run(dataset), dwi_run(dataset, entities={"sub": "01", "acq": "b"})]
    workflow = graph_of(runs, settings_for(dataset))
    assert sorted(part.name for part in workflow._graph.nodes()) == ["sub_01_acq_b_wf", "sub_01_wf"]
    assert not workflow._graph.edges()
    for run in runs:
        for name in nodes(workflow, "fod"):
            if name.startswith(f"{run_name(run)}."):
                node = workflow.get_node(name)
                assert node.inputs.run_dir == str(run_folder(dataset.parent / "work", run))
                assert (node.inputs.series, node.inputs.stage) == (run.prefix, "fod")


@pytest.mark.parametrize("given", [False, True])
def test_the_group_graph_joins_all_series_in_one_adaptation(dataset, given):
    responses = (dataset / "sub-01" / "dwi" / "wm.txt",) if given else ()
    runs = [dwi_run(dataset, entities=own, responses=responses) for own in ({"sub": "01"}, {"sub": "01", "acq": "b"})]
    workflow = init_group_wf(runs, settings_for(dataset, fit="cohort", cohort_processes=2))
    parts = {part.name: part for part in workflow._graph.nodes()}
    assert sorted(parts) == ["cohort_wf", "sub_01_acq_b_wf", "sub_01_wf"]
    assert {(a.name, b.name) for a, b in workflow._graph.edges()} == {(run_name(run), "cohort_wf") for run in runs}
    assert not nodes(workflow, "fod") and not nodes(workflow, "ds_qc")
    cohort = workflow.get_node("cohort_wf.cohort").inputs
    names = list(cohort.dwi_files)
    assert cohort.n_processes == 2
    flat = workflow._create_flat_graph()
    for number, run in enumerate(runs, start=1):  # images and what was made of them stand at equal places
        assert names[number - 1] == run.prefix
        sources = [
            str(node.fullname)
            for node, joined, data in flat.edges(data=True)
            if joined.name.startswith("all_") and any(to == f"in{number}" for _, to in data["connect"])
        ]
        assert len(sources) == 3 and all(f".{run_name(run)}." in source for source in sources)


def test_resources_of_the_fit(dataset):
    def fod(device, mem):
        settings = settings_for(dataset, nprocs=8, omp_nthreads=4, mem=mem, device=device)
        return graph_of([dwi_run(dataset)], settings).get_node("sub_01_wf.fod_wf.fod")

    node = fod("cuda:0", 16.0)
    assert (node.n_procs, node.inputs.num_threads) == (4, 4)
    assert node.mem_gb == pytest.approx(8.0)  # two at once
    assert 7.0 < node.inputs.memory_gb < 8.0
    assert node.is_gpu_node() and not fod("cpu", 16.0).is_gpu_node()
    assert fod("cpu", 64.0).mem_gb < 8.0  # no more than is of use


def test_settings_reach_the_stages(dataset):
    settings = settings_for(
        dataset, peak_max=2, select=7, fod_lmax=8, gradient_check="fix", step_size=0.7, peak_absolute_threshold=0.2
    )
    workflow = graph_of([dwi_run(dataset)], settings)
    assert workflow.get_node("sub_01_wf.gradients").inputs.options["gradient_check"] == "fix"
    assert workflow.get_node("sub_01_wf.fod_wf.fod").inputs.options["fod_lmax"] == 8
    peaks = workflow.get_node("sub_01_wf.peaks_wf.peaks").inputs
    assert PeakOptions(**peaks.options) == settings.peaks
    tracking = workflow.get_node("sub_01_wf.tractography_wf.tractography").inputs
    assert TrackingOptions(**tracking.options) == settings.tracking


def test_a_stage_that_is_kept_is_not_in_the_graph(dataset):
    settings = settings_for(dataset, level="peaks")
    workflow = graph_of([dwi_run(dataset)], settings, kept=("gradients", "fod"))
    names = {name.rpartition(".")[2] for name in workflow.list_node_names()}
    assert names & STAGES["full"] == {"gradients", "response", "peaks"} and "restored" in names
    assert not {"draw_gradients", "draw_fodf"} & names and "draw_peaks" in names
    workflow._create_flat_graph()
    assert workflow.get_node("sub_01_wf.peaks_wf.peaks").inputs.digest == "digest of peaks"
    assert "restored" not in str(graph_of([dwi_run(dataset)], settings, kept=("fod", "peaks")).list_node_names())


@pytest.mark.parametrize("weights", ["on", "off"])
@pytest.mark.parametrize("with_table", [True, False])
def test_connectomes_are_made_of_streamlines_with_and_without_weights(dataset, weights, with_table):
    settings = settings_for(dataset, streamline_weights=weights, connectome_map=("nufo", "vfwm"))
    workflow = graph_of([dwi_run(dataset, parcellations=(regions_in(dataset, with_table=with_table),))], settings)
    (run_wf,) = workflow._graph.nodes()
    for part in run_wf._graph.nodes():
        if hasattr(part, "_graph"):
            assert_well_connected(part)
    names = {name.rpartition(".")[2] for name in workflow.list_node_names()}
    assert {"connectome", "conversion", "draw_connectome", "ds_connectomes"} <= names
    assert ("weights" in names) == (weights == "on")
    node = workflow.get_node("sub_01_wf.connectome_wf.connectome").inputs
    assert (node.labels, node.table_labels) == (["seg-x"], ["seg-x"] if with_table else [])
    assert node.map_names == ["nufo", "vfwm"]
    run_wf._create_flat_graph()


@pytest.mark.parametrize("weights", ["on", "off"])
def test_a_new_parcellation_computes_connectomes_alone(dataset, weights):
    settings = settings_for(dataset, streamline_weights=weights, connectome_map=("nufo", "vfwm"))
    run = dwi_run(dataset, parcellations=(regions_in(dataset, with_table=False),))
    kept = [stage.name for stage in asked_stages(run, settings) if stage.name not in ("response", "connectome")]
    workflow = graph_of([run], settings, kept=tuple(kept))
    workflow._create_flat_graph()
    names = {name.rpartition(".")[2] for name in workflow.list_node_names()}
    assert names & (STAGES["full"] | {"connectome"}) == {"gradients", "response", "connectome"}


def regions_in(dataset, *, with_table: bool) -> Parcellation:
    """A parcellation whose files are there."""
    image, table = dataset / "labels.nii.gz", dataset / "labels.tsv"
    for path in (image, table):
        path.touch()
    return Parcellation(image=image, table=table if with_table else None, entities={"seg": "x"}, uri="labels.nii.gz")


def test_building_loads_neither_torch_nor_dipy_nor_matplotlib():
    """They cost seconds and memory in every worker, and torch in the parent breaks its children."""
    code = (
        "import sys, shd_bids.workflows.base, shd_bids.workflows.plugins\n"
        "print([name for name in ('torch', 'dipy', 'matplotlib', 'bids') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"

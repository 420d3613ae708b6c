"""Whole calls on a simulated head: what is written, and what happens when something fails."""

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest

from shd_bids.bids.names import expected_outputs
from shd_bids.cli.main import main
from shd_bids.fod.weights import load_weights
from shd_bids.report.summary import ROWS
from shd_bids.workflows.group import COHORT, cohort_folder
from tests.bids_trees import dwi_run
from tests.helpers import stage_processes, until
from tests.integration.app import MAPS, PEAKS, angles, call, call_cohort
from tests.phantoms import RAS, head, many_bundles, write_head

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("whole run"),  # tests go on with what the call before them left
]


def stage_times(work):
    """Return when each stage wrote its facts; a stage that is executed again writes them again."""
    paths = work.glob("shd_bids_wf/*/*/**/facts.json")
    return {path: path.stat().st_mtime_ns for path in paths if not path.parent.name.startswith("ds_")}


def digests_of(out):
    """Return the SHA-256 of every image, response and tractogram of a data set by its name."""
    paths = [
        path for path in (out / "sub-01" / "dwi").iterdir() if path.suffix in (".gz", ".txt", ".trx", ".tck", ".trk")
    ]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def simulated():
    return head(np.random.default_rng(8), size=12)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, simulated):
    """A finished call with everything on: (raw, out)."""
    root = tmp_path_factory.mktemp("whole")
    write_head(root / "raw", simulated[0], simulated[1])
    nib.save(nib.Nifti1Image(np.indices(simulated[0].shape[:3])[2].astype(np.int16), RAS), root / "labels.nii.gz")
    formats = ("--tractogram-format", "trx", "tck", "trk", "--min-length", "5", "--seeds", "1", "--keep-work")
    formats += ("--parcellation", str(root / "labels.nii.gz"))
    assert call(root / "raw", root / "out", *formats, level="full") == 0
    return root / "raw", root / "out", formats


def test_every_promised_file_is_there(whole):
    raw, out, _ = whole
    fitted = json.loads(next((out.parent / "work").glob("**/facts/response.json")).read_text())["fitted_tissues"]
    paths = expected_outputs(
        out, dwi_run(raw), level="full", method="prob", formats=("trx", "tck", "trk"), tissues=fitted
    )
    assert not [path for path in paths if not path.stat().st_size]
    names = {path.name.split("_desc-")[1] for path in (out / "sub-01" / "figures").iterdir()}
    figures = (
        "gradients",
        "mask",
        "response",
        "fodf",
        "tissue",
        "residual",
        "peaks",
        "tractogram",
        "tdi",
        "connectome",
    )
    views = {f"{name}_dwi.json" for name in ("fodview", "peaksview", "tracksview")}
    assert names == {f"{name}_dwi.png" for name in figures} | {"orientation_dwi.tsv", "thumbnail_dwi.webp"} | views
    assert (out / "sub-01.html").stat().st_size > 1000


def test_report_has_every_main_fact(whole):
    """Each row finds its facts under the names that the stages give them."""
    _, out, _ = whole
    page = (out / "sub-01.html").read_text()
    assert [title for title in ROWS if f'<th scope="row">{title}</th>' not in page] == [
        "Normalisation"
    ]  # not asked for
    assert "Response functions of white matter, grey matter and CSF were estimated" in page


def test_connectomes_count_the_streamlines(whole):
    _, out, _ = whole
    prefix = out / "sub-01" / "dwi" / "sub-01_space-orig_seg-labels"
    count = np.loadtxt(f"{prefix}_meas-streamlineCount_relmat.dense.tsv")
    about = json.loads(Path(f"{prefix}_meas-fibreBundleCapacity_relmat.json").read_text())
    assert np.triu(count).sum() == about["StreamlinesAssigned"] > 0
    assert about["ProportionalityCoefficient"] > 0 and about["Sources"][1] == "labels.nii.gz"
    rows = Path(f"{prefix}_nodeindices.tsv").read_text().splitlines()
    assert len(rows) == 1 + len(count) == 1 + about["Regions"]


def test_sidecars_name_the_weights_and_sources(whole):
    _, out, _ = whole
    sidecar = json.loads((out / "sub-01" / PEAKS).with_suffix("").with_suffix(".json").read_text())
    assert len(sidecar["Model"]["Parameters"]["WeightsSHA256"]) == 64
    assert sidecar["Sources"] == ["bids::sub-01/dwi/sub-01_space-orig_model-shdtv_param-wm_dwimap.nii.gz"]


def test_peaks_are_the_simulated_fibres(whole, simulated):
    """The median error over voxels of one fibre is that of the method, not of a wrong axis."""
    _, out, _ = whole
    phantom = simulated[2]
    peaks = nib.load(out / "sub-01" / PEAKS).get_fdata()
    alone = phantom.fractions[..., 0] > 0.9
    assert np.median(angles(peaks[alone][:, :3], phantom.directions[alone][:, 0])) < 6.0


def test_results_lie_on_disk_once(whole):
    _, out, _ = whole
    assert (out / "sub-01" / PEAKS).stat().st_nlink == 2  # the work folder holds the other name


def test_lost_outputs_come_back_without_any_stage(whole, tmp_path):
    raw, out, options = whole
    before = stage_times(out.parent / "work")
    assert len(before) == 8
    shutil.rmtree(out)
    assert call(raw, out, *options, level="full") == 0
    assert (out / "sub-01" / PEAKS).is_file()
    assert stage_times(out.parent / "work") == before


def test_a_changed_option_runs_what_depends_on_it(whole):
    raw, out, options = whole
    before = stage_times(out.parent / "work")
    assert call(raw, out, *options, "--peak-max", "2", level="full") == 0
    assert nib.load(out / "sub-01" / PEAKS).shape[3] == 6
    changed = {path.parent.name for path, when in stage_times(out.parent / "work").items() if before.get(path) != when}
    assert changed == {
        "peaks",
        "weights",
        "conversion",
        "connectome",
    }  # streamlines do not follow the peaks, their weights do
    shutil.rmtree(out.parent / "work")
    plain = out.parent / "plain"
    assert call(raw, plain, *options, "--peak-max", "2", level="full") == 0
    assert digests_of(plain) == digests_of(out)


def test_what_is_done_is_used_again_without_a_work_folder(whole, tmp_path):
    """Another seed tracks again, from what earlier calls left in the data set."""
    raw, out, _ = whole
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    before = digests_of(copy)
    assert (
        call(raw, copy, "--peak-max", "2", "--min-length", "5", "--seeds", "1", "--random-seed", "5", level="full") == 0
    )
    changed = {name for name, digest in digests_of(copy).items() if before[name] != digest}
    assert changed and all("tractogram" in name or "tdi" in name for name in changed)
    record = json.loads(max((copy / "sub-01" / "log").glob("*/provenance.json")).read_text())["series"]["sub_01"]
    assert record["reused"] == ["gradients", "response", "fod", "peaks"]


def test_the_settings_that_a_call_recorded_give_the_same_results(whole, tmp_path):
    """Digests of all images and streamlines are those of the call that wrote them down."""
    raw, out, _ = whole
    settings = max((out / "sub-01" / "log").glob("*/shd_bids.toml"))
    words = ["--config-file", str(settings), "-w", str(tmp_path / "work")]
    assert main([str(raw), str(tmp_path / "out"), "participant", *words]) == 0
    assert digests_of(tmp_path / "out") == digests_of(out)


def test_flipped_gradients_fail_alone(tmp_path, simulated, capfd):
    """One bad subject: its one line, its code in the records, and the others' results."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_head(raw, simulated[0], simulated[1])
    signal, table = many_bundles(np.random.default_rng(3))
    write_head(raw, signal, table, subject="02", bvecs=table.directions)
    assert call(raw, out, level="response") == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if "ERROR" in line]
    assert len(lines) == 1
    assert "sub-02" in lines[0] and "--gradient-check fix" in lines[0]
    for name in ("gradients_dwi.png", "orientation_dwi.tsv"):
        path = out / "sub-02" / "figures" / f"sub-02_desc-{name}"
        assert str(path) in lines[0] and path.stat().st_size > 100
    assert (out / "sub-01" / "dwi" / "sub-01_space-orig_model-shdtv_param-wm_response.txt").is_file()
    assert not (out / "sub-02" / "dwi").exists()
    assert call(raw, out, "--participant-label", "02", level="response") == 65


def test_a_cohort_is_adapted_and_its_weights_are_applied(tmp_path, simulated, capfd):
    raw, out = tmp_path / "raw", tmp_path / "out"
    for subject, seed in (("01", 8), ("02", 9)):
        write_head(raw, *head(np.random.default_rng(seed), size=12)[:2], subject=subject)
    assert call_cohort(raw, out, "--max-steps", "4") == 0
    path = out / "group_desc-cohort_weights.safetensors"
    record = json.loads(path.with_suffix(".json").read_text())
    assert list(record["HeldOutError"]) == ["sub-01", "sub-02"] and record["IsBetterThanStart"]
    assert len(load_weights(path).training["cohort"]["series"]) == 2
    (log,) = (out / "log").iterdir()
    assert json.loads((log / "status.json").read_text())["status"] == "finished"
    assert call_cohort(raw, out, "--max-steps", "4") == 0 and len(list((out / "log").iterdir())) == 1  # nothing to do
    assert call(raw, out, "--fit", "cohort", "--participant-label", "01", level="fod") == 0
    fod = (out / "sub-01" / MAPS.format("wm")).with_suffix("").with_suffix(".json")
    assert json.loads(fod.read_text())["Model"]["Parameters"]["WeightsSHA256"] == record["SHA256"]


def test_a_bad_series_stops_the_cohort_with_its_code_and_leaves_no_weights(tmp_path, simulated, capfd):
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_head(raw, simulated[0], simulated[1])
    signal, table = many_bundles(np.random.default_rng(3))
    write_head(raw, signal, table, subject="02", bvecs=table.directions)
    assert call_cohort(raw, out, "--max-steps", "2") == 65
    told = capfd.readouterr().err
    assert "sub-02" in told and "1 of 2 series failed" in told and "Traceback" not in told
    assert not list(out.glob("*weights*"))
    (log,) = (out / "log").iterdir()
    assert json.loads((log / "status.json").read_text())["series"]["sub-02"]["error"] == "GradientError"


def test_a_stopped_group_call_keeps_its_exit_code(tmp_path, simulated):
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_head(raw, simulated[0], simulated[1])
    words = [
        str(raw),
        str(out),
        "group",
        "--fit",
        "cohort",
        "--nprocs",
        "1",
        "--device",
        "cpu",
        "-w",
        str(tmp_path / "work"),
    ]
    words += ["--max-steps", "100000", "--skip-bids-validation"]
    app = subprocess.Popen([sys.executable, "-m", "shd_bids", *words], stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: stages_in(cohort_folder(tmp_path / "work") / COHORT, app), seconds=180)
        app.terminate()
        errors = app.communicate(timeout=120)[1]
    finally:
        app.kill()
        app.wait()
    assert app.returncode == 143 and "goes on where this one stopped" in errors
    (log,) = (out / "log").iterdir()
    status = json.loads((log / "status.json").read_text())
    assert (status["status"], status["exit_code"]) == ("interrupted", 143)
    assert not list(out.glob("*weights*"))


def broken_image(raw, change):
    path = raw / "sub-01" / "dwi" / "sub-01_dwi.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(image.get_fdata(dtype=np.float32)), image.affine), path)


def bval_file(raw):
    return raw / "sub-01" / "dwi" / "sub-01_dwi.bval"


def one_too_few(raw):
    bval_file(raw).write_text(" ".join(bval_file(raw).read_text().split()[:-1]))


def without_b0(raw):
    """All volumes weighted, with directions."""
    bval_file(raw).write_text(bval_file(raw).read_text().replace(" 0.0", " 1000.0").replace("0.0 ", "1000.0 ", 1))
    bvecs = np.loadtxt(bval_file(raw).with_suffix(".bvec"))
    bvecs[:, np.linalg.norm(bvecs, axis=0) < 0.5] = [[1], [0], [0]]
    np.savetxt(bval_file(raw).with_suffix(".bvec"), bvecs)


def truncated(raw):
    path = raw / "sub-01" / "dwi" / "sub-01_dwi.nii.gz"
    path.write_bytes(path.read_bytes()[:5000])


BROKEN = {
    "missing bval": (lambda raw: bval_file(raw).unlink(), "bval"),
    "wrong count": (one_too_few, "63 b-values"),
    "no b=0": (without_b0, "no b=0 volume"),
    "NaN image": (lambda raw: broken_image(raw, lambda data: data * np.nan), "nan"),
    "truncated": (truncated, "truncated"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_bad_input_is_one_line_and_code_65(tmp_path, simulated, capfd, what):
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_head(raw, simulated[0], simulated[1])
    change, words = BROKEN[what]
    change(raw)
    assert call(raw, out, level="response") == 65
    errors = [line for line in capfd.readouterr().err.splitlines() if "ERROR" in line]
    assert len(errors) == 1
    assert words in errors[0]
    assert not list(out.glob("sub-*/dwi/*"))


def test_all_zero_mask(tmp_path, simulated, capfd):
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_head(raw, simulated[0], simulated[1])
    nib.save(nib.Nifti1Image(np.zeros((12, 12, 12), np.uint8), RAS), tmp_path / "mask.nii.gz")
    assert call(raw, out, "--mask", str(tmp_path / "mask.nii.gz"), level="response") == 65
    assert "the mask is empty" in capfd.readouterr().err


def test_a_killed_stage_is_told_and_the_next_call_goes_on(tmp_path, simulated):
    """The kernel's memory killer, played by hand on the process of the fit."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_head(raw, simulated[0], simulated[1])
    words = [str(raw), str(out), "participant", "--skip-bids-validation", "--nprocs", "1", "--level", "fod"]
    words += ["--device", "cpu", "-w", str(tmp_path / "work"), "--fit", "subject", "--max-steps", "100000"]
    app = subprocess.Popen([sys.executable, "-m", "shd_bids", *words], stderr=subprocess.PIPE, text=True)
    fit = tmp_path / "work" / "shd_bids_wf" / "sub_01_wf" / "fod_wf" / "fod"
    try:
        until(lambda: stages_in(fit, app), seconds=180)
        stages_in(fit, app)[0].kill()
        errors = app.communicate(timeout=120)[1]
    finally:
        app.kill()
        app.wait()
    assert app.returncode == 1
    (line,) = [line for line in errors.splitlines() if "ERROR" in line]
    assert "SIGKILL" in line and "memory" in line
    done = stage_times(tmp_path / "work")
    assert {path.parent.name for path in done} == {"gradients", "response"}
    assert call(raw, out, "--keep-work", level="fod") == 0
    assert done.items() <= stage_times(tmp_path / "work").items()


def stages_in(folder, app):
    """Return the processes below the app that work on the stage of a folder."""
    found = []
    for process in stage_processes(app.pid):
        with contextlib.suppress(psutil.Error):  # gone before it could be asked
            if process.cwd() == str(folder):
                found.append(process)
    return found

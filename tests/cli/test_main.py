import errno
import json
import os
import signal
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from shd_bids.cli import preflight
from tests.bids_trees import write_gradients
from tests.cli.calls import call, errors, records

pytestmark = pytest.mark.usefixtures("surroundings")


class TestBeforeTheGraph:
    """Nothing may be left behind by a call that cannot work."""

    def refused(self, raw, out, capsys, *words):
        code = call(raw, out, *words)
        assert not out.exists()
        return code, errors(capsys)

    def test_all_input_problems_at_once(self, raw, out, capsys):
        (raw / "sub-01" / "dwi" / "sub-01_dwi.bval").unlink()
        write_gradients(raw / "sub-02" / "dwi" / "sub-02_dwi", n_weighted=7)
        code, told = self.refused(raw, out, capsys)
        assert code == 65
        assert "sub-01" in told[0]
        assert all("sub-02" in line for line in told[1:])
        assert len(told) >= 2

    def test_unknown_label(self, raw, out, capsys):
        code, told = self.refused(raw, out, capsys, "--participant-label", "03")
        assert (code, len(told)) == (66, 1)
        assert "it has 01, 02" in told[0]

    def test_absent_device(self, raw, out, capsys, monkeypatch):
        monkeypatch.setattr(preflight, "CUDA_QUESTION", "")
        code, told = self.refused(raw, out, capsys, "--device", "cuda")
        assert (code, len(told)) == (69, 1)

    @pytest.mark.parametrize("words", [[], ["--dry-run"]])
    def test_output_that_cannot_be_written(self, raw, tmp_path, capsys, words):
        (tmp_path / "file").write_text("x")
        assert call(raw, tmp_path / "file" / "out", *words) == 73
        assert len(errors(capsys)) == 1

    def test_unsound_weights_before_the_data_are_read(self, raw, out, capsys, tmp_path):
        weights = tmp_path / "own.safetensors"
        weights.write_bytes(b"no weights")
        (raw / "sub-01/dwi/sub-01_dwi.nii.gz").write_bytes(b"no image")
        for words in (("--dry-run",), ()):
            code, lines = self.refused(raw, out, capsys, "--weights", str(weights), *words)
            assert code == 78
            assert "own.safetensors cannot be read as safetensors" in lines[0]

    def test_a_work_folder_that_others_can_write(self, raw, out, capsys, tmp_path):
        (tmp_path / "work").mkdir()
        (tmp_path / "work").chmod(0o777)
        code, lines = self.refused(raw, out, capsys, "-w", str(tmp_path / "work"))
        assert (code, len(lines)) == (73, 1)

    def test_output_inside_the_input(self, raw, capsys):
        before = sorted(raw.rglob("*"))
        assert call(raw, raw / "results") == 73
        assert len(errors(capsys)) == 1
        assert sorted(raw.rglob("*")) == before

    def test_output_of_another_program(self, raw, out, capsys, graph):
        out.mkdir()
        (out / "dataset_description.json").write_text('{"Name": "x", "GeneratedBy": [{"Name": "other"}]}')
        assert call(raw, out) == 73
        assert not graph.calls

    def test_an_internal_error_shows_no_traceback(self, raw, out, capsys, monkeypatch):
        monkeypatch.setattr("shd_bids.bids.collect.collect_study", lambda settings: 1 / 0)
        assert call(raw, out) == 70
        assert "Traceback" not in capsys.readouterr().err
        assert call(raw, out, "-v") == 70
        assert "Traceback" in capsys.readouterr().err


class TestPlan:
    def test_json(self, raw, out, capsys):
        assert call(raw, out, "--dry-run=json", "--level", "peaks") == 0
        plan = json.loads(capsys.readouterr().out)
        assert [item["series"] for item in plan["series"]] == ["sub-01", "sub-02"]
        first = plan["series"][0]
        assert first["shells"] == [{"b": 0.0, "volumes": 2}, {"b": 1000.0, "volumes": 12}]
        assert first["mask"].endswith("sub-01_desc-brain_mask.nii.gz")
        assert first["voxels"] == 64
        assert set(first["expected"]) == {"memory_gb", "minutes", "stage_minutes", "disk_gb"}
        assert list(first["expected"]["stage_minutes"]) == ["gradients", "response", "fod", "peaks"]
        assert "sub-01/dwi/sub-01_space-orig_model-shdtv_param-wm_dwimap.nii.gz" in first["outputs"]
        assert not any("tractogram" in name for name in first["outputs"])
        assert plan["device"] in ("cpu",) or plan["device"].startswith("cuda")
        assert not out.exists()

    @pytest.mark.slow
    def test_what_takes_longer_is_said_to_take_longer(self, raw, out, capsys):
        def expected(*words):
            assert call(raw, out, "--dry-run=json", "--nprocs", "4", "--mem", "8G", *words) == 0
            return json.loads(capsys.readouterr().out)["expected"]

        usual = expected("--seeds", "10000")
        assert expected("--seeds", "10000", "--step-size", "0.1")["minutes"] > 5 * usual["minutes"]
        assert expected("--seeds", "10000", "--select", "10")["minutes"] < usual["minutes"]
        assert expected("--seeds", "10000", "--omp-nthreads", "1", "--level", "peaks")["minutes"] < usual["minutes"]
        assert expected("--fit", "subject", "--max-steps", "900")["minutes"] > 5
        assert usual["memory_gb"] <= 8
        more = expected("--seeds", "10000", "--tractogram-format", "tck", "trx")
        assert more["disk_gb"] > 1.3 * usual["disk_gb"]

    def test_text_has_one_line_a_series(self, raw, out, capsys):
        assert call(raw, out, "--dry-run") == 0
        text = capsys.readouterr().out
        (line,) = [line for line in text.splitlines() if line.startswith("sub-02")]
        for part in ("b=1000: 12", "2 x 2 x 2 mm", "mask given", "computed: gradients response fod peaks", "GB memory"):
            assert part in line
        assert len(text.splitlines()) <= 9
        (note,) = [line for line in text.splitlines() if "motion and distortion" in line]
        assert note.endswith("(sub-01, sub-02)")

    @pytest.mark.parametrize(("dark", "code"), [(("sub-01",), 1), (("sub-01", "sub-02"), 65)])
    def test_what_will_fail_is_in_its_code(self, raw, out, capsys, dark, code):
        for subject in dark:
            path = raw / subject / "dwi" / f"{subject}_dwi.nii.gz"
            image = nib.load(path)
            data = np.asarray(image.dataobj).copy()
            data[..., 2:9] = 0
            nib.save(nib.Nifti1Image(data, image.affine, image.header), path)
        assert call(raw, out, "--dry-run") == code
        assert capsys.readouterr().out.count("will fail: ") >= 1


class TestEnds:
    @pytest.mark.slow
    def test_done_series_are_skipped_until_something_changes(self, raw, out, graph, capsys):
        assert call(raw, out, "--participant-label", "01") == 0
        assert call(raw, out) == 0
        assert [[run.subject for run in runs] for runs, _ in graph.calls] == [["01"], ["02"]]
        assert call(raw, out) == 0
        assert len(graph.calls) == 2
        assert " 2 of 2 series done, all by earlier calls" in capsys.readouterr().err
        assert call(raw, out, "--overwrite") == 0
        assert call(raw, out, "--fod-lmax", "8") == 0
        assert [len(runs) for runs, _ in graph.calls] == [1, 1, 2, 2]

    def test_one_failure_leaves_the_others(self, raw, out, graph, capsys):
        graph.fail("sub_01", 65, "one\ntwo")
        assert call(raw, out) == 1
        told = capsys.readouterr().err.splitlines()
        assert [line[line.index("ERROR") :] for line in told if "ERROR" in line] == [
            "ERROR: sub-01: one",
            "ERROR: sub-01: two",
        ]
        assert told[-1].endswith(" 1 of 2 series done, 1 failed (sub-01)")
        status = records(out)
        assert status["sub-01"]["series"]["sub-01"] == {
            "status": "failed",
            "exit_code": 65,
            "stage": "gradients",
            "error": "X",
            "message": "one\ntwo",
        }
        assert status["sub-02"]["series"]["sub-02"]["status"] == "finished"
        assert "two" in (out / "sub-01.html").read_text()
        assert (out / ".work").exists()

    def test_a_failure_that_was_told_when_it_happened_is_not_told_again(self, raw, out, graph, monkeypatch, capsys):
        def run(workflow, *, on_failure, **options):
            graph.fail("sub_01", 65, "one")
            on_failure(replace(graph.failures["sub_01"], run="sub-01"))
            capsys.readouterr().err.index("ERROR: sub-01: one")
            graph.run(workflow, **options)

        monkeypatch.setattr("shd_bids.workflows.plugins.run_workflow", run)
        assert call(raw, out) == 1
        assert errors(capsys) == []

    @pytest.mark.slow
    @pytest.mark.parametrize(("codes", "expected"), [((65, 65), 65), ((65, 78), 1), ((1, 1), 1)])
    def test_all_failed(self, raw, out, graph, codes, expected):
        for key, code in zip(("sub_01", "sub_02"), codes, strict=True):
            graph.fail(key, code)
        assert call(raw, out) == expected

    def test_work_is_kept_if_asked(self, raw, out, graph, tmp_path):
        assert call(raw, out, "--keep-work", "-w", str(tmp_path / "work")) == 0
        assert (tmp_path / "work" / "shd_bids_wf" / "sub_01_wf" / "facts").is_dir()
        assert not (out / ".work").exists()

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
    def test_signals(self, raw, out, graph, monkeypatch, number, code, capsys):
        def interrupt(workflow, **options):
            graph.fail("sub_01", 1, error="StageKilledError")
            os.kill(os.getpid(), number)

        monkeypatch.setattr("shd_bids.workflows.plugins.run_workflow", interrupt)
        # A shell starts what it puts in the background with SIGINT ignored, nohup with SIGHUP; the tests may be run so.
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        of_tests = signal.getsignal(signal.SIGTERM)
        before = signal.signal(number, usual)
        try:
            assert call(raw, out) == code
            assert signal.getsignal(number) == usual
        finally:
            signal.signal(number, before)
        assert len(errors(capsys)) == 1
        assert signal.getsignal(signal.SIGTERM) == of_tests
        for subject, status in records(out).items():
            assert (status["status"], status["exit_code"]) == ("interrupted", code)
            assert status["series"][subject]["status"] == "interrupted"
            assert "nterrupted" in (out / f"{subject}.html").read_text()

    def test_a_signal_that_comes_again_cuts_no_record_short(self, raw, out, graph, monkeypatch):
        def again(*args):
            os.kill(os.getpid(), signal.SIGTERM)
            return True

        def interrupt(workflow, **options):
            os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr("shd_bids.workflows.plugins.run_workflow", interrupt)
        monkeypatch.setattr("shd_bids.cli.pages.write_reports", again)
        assert call(raw, out) == 143
        assert {status["status"] for status in records(out, "provenance.json").values()} == {"interrupted"}

    @pytest.mark.slow
    def test_what_another_call_did_meanwhile_is_not_done_again(self, raw, out, graph, monkeypatch):
        """The lock is free only when the other call, here made before the lock is asked for, is done."""
        from shd_bids.cli import workplace

        hold_series = workplace.hold_series

        def after_another(settings, runs):
            monkeypatch.setattr(workplace, "hold_series", hold_series)
            assert call(raw, out, "--participant-label", "01") == 0
            return hold_series(settings, runs)

        monkeypatch.setattr(workplace, "hold_series", after_another)
        assert call(raw, out) == 0
        assert [[run.subject for run in runs] for runs, _ in graph.calls] == [["01"], ["02"]]

    def test_a_full_disk_is_told_as_such(self, raw, out, graph, monkeypatch, capsys):
        def fill(*args):
            raise OSError(errno.ENOSPC, "No space left on device", "/out/x")

        monkeypatch.setattr("shd_bids.bids.dataset.write_text", fill)
        assert call(raw, out) == 73
        assert len(errors(capsys)) == 1

"""Calls of the command line whose workflow is a stand-in."""

import json

from shd_bids.bids.names import expected_outputs
from shd_bids.cli.main import main


def call(raw, out, *words):
    return main([str(raw), str(out), "participant", "--skip-bids-validation", *words])


def errors(capsys):
    return [line.partition("ERROR: ")[2] for line in capsys.readouterr().err.splitlines() if "ERROR: " in line]


class Graph:
    """Stand in for the workflow: leave what a real one leaves, series by series."""

    def __init__(self, monkeypatch):
        self.failures = {}
        self.forgotten = {}
        self.calls = []
        self.stop = None
        from shd_bids.workflows import base, plugins

        monkeypatch.setattr(base, "init_shd_wf", lambda runs, settings, plans: self.calls.append((runs, settings)))
        monkeypatch.setattr(plugins, "run_workflow", self.run)
        monkeypatch.setattr(plugins, "read_failures", lambda work_dir, runs, call: self.failures)

    def run(self, workflow, **options):
        from shd_bids.workflows.base import run_folder

        runs, settings = self.calls[-1]
        if self.stop:
            raise self.stop
        for run in runs:
            facts = run_folder(settings.work_dir, run) / "facts"
            facts.mkdir(parents=True, exist_ok=True)
            stage = {
                "stage": "response",
                "seconds": 1.0,
                "peak_memory_mb": 123,
                "sidecar": {"response": {"wm": [[1.0]]}},
            }
            (facts / "response.json").write_text(json.dumps(stage))
            if run.key in self.failures:
                continue
            outputs = expected_outputs(
                settings.output_dir,
                run,
                level=settings.level,
                method=settings.tracking_algorithm,
                formats=settings.tractogram_format,
            )
            for path in outputs[self.forgotten.get(run.key, 0) :]:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("x")

    def fail(self, key, exit_code, message="found a, expected b", error="X"):
        from shd_bids.interfaces.base import Failure

        self.failures[key] = Failure(run=key, node="gradients", error=error, exit_code=exit_code, message=message)


def records(out, name="status.json"):
    return {path.parts[-4]: json.loads(path.read_text()) for path in sorted(out.glob(f"sub-*/log/*/{name}"))}

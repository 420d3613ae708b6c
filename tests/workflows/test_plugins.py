"""The graph runs to its end whatever happens in a node, and says what happened."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import nipype.pipeline.engine as pe
import psutil
import pytest

from shd_bids.errors import InputError
from shd_bids.interfaces.base import read_failure
from shd_bids.workflows.base import WORKFLOW_NAME
from shd_bids.workflows.plugins import SafeMultiProcPlugin, configure_nipype, run_workflow
from tests.helpers import stage_processes, until
from tests.interfaces import stage_functions
from tests.interfaces.stage_functions import Die, Double, Fill, KillWorker, Refuse, Wait

CALL = "this call"


@pytest.fixture
def graph(tmp_path):
    """Return a function that builds a graph of series, each a chain of stages, from their names."""
    configure_nipype(crash_dir=tmp_path / "crash")

    def build(**series):
        workflow = pe.Workflow(name=WORKFLOW_NAME, base_dir=str(tmp_path))
        for name, stages in series.items():
            run_wf, before = pe.Workflow(name=name), None
            workflow.add_nodes([run_wf])
            for number, (interface, value) in enumerate(stages):
                stage = interface(
                    value=value, series=name, stage=f"stage_{number}", run_dir=str(tmp_path / WORKFLOW_NAME / name)
                )
                node = pe.Node(stage, name=f"stage_{number}")
                run_wf.add_nodes([node])
                if before is not None:
                    run_wf.connect(before, "out_file", node, "before")
                before = node
        return workflow

    return build


def finished(tmp_path, series):
    folder = tmp_path / WORKFLOW_NAME / series / "facts"
    return sorted(path.stem for path in folder.glob("*.json"))


def failure(tmp_path, series, call=CALL):
    return read_failure(tmp_path / WORKFLOW_NAME / series, call)


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_failed_series_leaves_the_others_alone(graph, tmp_path, capfd):
    workflow = graph(good=[(Double, 1.0), (Double, 2.0)], bad=[(Refuse, 1.0), (Double, 2.0)], killed=[(Die, 1.0)])
    run_workflow(workflow, call=CALL, n_procs=2, memory_gb=4)
    assert finished(tmp_path, "good") == ["stage_0", "stage_1"]
    assert failure(tmp_path, "good") is None
    assert finished(tmp_path, "bad") == []  # what follows a failure is not run
    assert failure(tmp_path, "bad").message.startswith("value: found 1")
    assert failure(tmp_path, "killed").error == "StageKilledError"
    assert len(list((tmp_path / "crash").glob("crash*.txt"))) == 2
    assert "Traceback" not in "".join(capfd.readouterr())  # that is for the crash files


@pytest.mark.slow
def test_a_failure_is_told_before_the_others_end(graph, tmp_path):
    told = []
    workflow = graph(bad=[(Refuse, 1.0), (Double, 2.0)], good=[(Double, 1.0), (Double, 2.0), (Double, 3.0)])
    run_workflow(
        workflow,
        call=CALL,
        n_procs=1,
        memory_gb=4,
        on_failure=lambda failure: told.append((failure.run, failure.message, finished(tmp_path, "good"))),
    )
    assert [(run, message[:14]) for run, message, _ in told] == [("bad", "value: found 1")]
    assert told[0][2] != finished(tmp_path, "good") == ["stage_0", "stage_1", "stage_2"]


@pytest.mark.slow
def test_killed_worker_ends_its_stage_and_not_the_run(graph, tmp_path):
    began = time.monotonic()
    workflow = graph(killed=[(KillWorker, 1.0), (Double, 1.0)], later=[(Double, 1.0), (Double, 2.0), (Double, 3.0)])
    run_workflow(workflow, call=CALL, n_procs=1, memory_gb=4)
    assert time.monotonic() - began < 60
    assert failure(tmp_path, "killed").error == "StageKilledError"
    assert "memory" in failure(tmp_path, "killed").message
    assert finished(tmp_path, "killed") == []
    assert finished(tmp_path, "later") == ["stage_0", "stage_1", "stage_2"]  # in a new pool


@pytest.mark.slow
def test_nothing_hangs_where_no_record_can_be_written(graph, tmp_path):
    """As on a full disk: here the folders of the records are files."""
    workflow = graph(refused=[(Refuse, 1.0)], killed=[(KillWorker, 1.0)], full=[(Fill, 1.0)])
    for name in ("refused", "killed", "full"):
        (tmp_path / name).touch()
        workflow.get_node(f"{name}.stage_0").inputs.run_dir = str(tmp_path / name / "run")
    run_workflow(workflow, call=CALL, n_procs=1, memory_gb=4)
    codes = {name: read_failure(tmp_path / name / "run", CALL).exit_code for name in ("refused", "killed", "full")}
    assert codes == {"refused": 65, "killed": 1, "full": 73}


@pytest.mark.slow
def test_crash_files_that_cannot_be_written_end_nothing(graph, tmp_path):
    workflow = graph(bad=[(Refuse, 1.0)], good=[(Double, 1.0)])
    (tmp_path / "crash").touch()
    run_workflow(workflow, call=CALL, n_procs=1, memory_gb=4)
    assert failure(tmp_path, "bad").exit_code == 65
    assert finished(tmp_path, "good") == ["stage_0"]


class Pool:
    """A pool that starts nothing; tests end the tasks."""

    def __init__(self):
        self.tasks = {}

    def submit(self, function, node, updatehash, taskid, gpu):
        self.tasks[node.name] = (gpu, Future())
        return self.tasks[node.name][1]


def test_each_stage_gets_a_gpu_that_no_other_holds():
    plugin = SafeMultiProcPlugin({"n_procs": 4})
    plugin.pool = pool = Pool()
    plugin.free_gpus = ["GPU-b", "GPU-a"]
    nodes = [pe.Node(Double(value=1.0, use_gpu=name != "cpu"), name=name) for name in ("a", "b", "cpu", "c")]
    for node in nodes[:3]:
        plugin._submit_job(node)
    assert [pool.tasks[name][0] for name in ("a", "b", "cpu")] == ["GPU-a", "GPU-b", None]
    pool.tasks["b"][1].set_exception(RuntimeError("its worker died"))
    plugin._submit_job(nodes[3])
    assert pool.tasks["c"][0] == "GPU-b"
    assert plugin.free_gpus == []


@pytest.mark.slow
@pytest.mark.parametrize(("visible", "expected"), [("", {"0", "1"}), ("GPU-a,GPU-b,GPU-c", {"GPU-a", "GPU-b"})])
def test_the_process_of_a_stage_sees_its_gpu_alone(graph, tmp_path, monkeypatch, visible, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    workflow = graph(a=[(Wait, 0.5)], b=[(Wait, 0.5)], c=[(Wait, 0.5)])
    for name in "abc":
        node = workflow.get_node(f"{name}.stage_0")
        node.inputs.use_gpu, node.n_procs = True, 2
    run_workflow(workflow, call=CALL, n_procs=4, memory_gb=8, n_gpus=2)
    facts = [json.loads((tmp_path / WORKFLOW_NAME / name / "facts" / "stage_0.json").read_text()) for name in "abc"]
    assert {fact["gpu"] for fact in facts} <= expected
    for gpu in expected:
        spans = sorted((fact["began"], fact["ended"]) for fact in facts if fact["gpu"] == gpu)
        assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(spans))


PROGRAM = """
from pathlib import Path
import nipype.pipeline.engine as pe
from shd_bids.workflows.plugins import configure_nipype, run_workflow
from tests.helpers import until
from tests.interfaces import stage_functions
from tests.interfaces.stage_functions import Wait

if __name__ == "__main__":
    folder = Path.cwd()
    configure_nipype(crash_dir=folder / "crash")
    workflow = pe.Workflow(name="shd_bids_wf", base_dir=str(folder))
    workflow.add_nodes([pe.Node(Wait(value=60.0, run_dir=str(folder / "run")), name="stage")])
    run_workflow(workflow, call="x", n_procs=1, memory_gb=4)
"""


@pytest.mark.slow
def test_a_killed_program_leaves_no_process(tmp_path):
    """Workers are children of a server, not of the program; the kernel does not tell them."""
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(Path(stage_functions.__file__).parents[2])}
    program = subprocess.Popen([sys.executable, "program.py"], cwd=tmp_path, env=environment)
    try:
        until((tmp_path / "shd_bids_wf" / "stage" / "started").exists, seconds=60)
        below = psutil.Process(program.pid).children(recursive=True)
    finally:
        program.kill()
        program.wait()
    assert len(below) >= 4  # server, tracker, worker, stage
    assert not psutil.wait_procs(below, timeout=10)[1]


@pytest.mark.slow
def test_second_run_executes_nothing_and_clears_the_failure(graph, tmp_path, monkeypatch):
    def chain(second):
        return graph(a=[(Double, 1.0), (second, 2.0)])

    run_workflow(chain(Refuse), call="1", n_procs=1, memory_gb=4)
    assert failure(tmp_path, "a", "1").node == "stage_1"
    first = tmp_path / WORKFLOW_NAME / "a" / "stage_0" / "double.txt"
    written = first.stat().st_mtime_ns
    run_workflow(chain(Double), call=CALL, n_procs=1, memory_gb=4)
    assert failure(tmp_path, "a") is None
    assert finished(tmp_path, "a") == ["stage_0", "stage_1"]
    assert first.stat().st_mtime_ns == written  # resumed after what was done
    monkeypatch.setattr(SafeMultiProcPlugin, "_submit", lambda *_: pytest.fail("a cached stage was submitted"))
    run_workflow(chain(Double), call=CALL, n_procs=1, memory_gb=4)


@pytest.mark.slow
@pytest.mark.parametrize("plugin", ["Linear", "MultiProc"])
def test_plugin_file(graph, tmp_path, plugin):
    file = tmp_path / "plugin.yml"
    file.write_text(f"plugin: {plugin}\nplugin_args: {{n_procs: 1}}\n")
    run_workflow(graph(a=[(Double, 1.0)], b=[(Refuse, 1.0)]), call=CALL, n_procs=2, memory_gb=4, plugin_file=file)
    assert finished(tmp_path, "a") == ["stage_0"]
    assert failure(tmp_path, "b").exit_code == 65


@pytest.mark.parametrize(
    "text", ["plugins: Linear\n", "plugin: Absent\n", "plugin: [1", "- 1", "plugin: Linear\nplugin_args: 1"]
)
def test_wrong_plugin_file_is_told(graph, tmp_path, text):
    file = tmp_path / "plugin.yml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"expected YAML with 'plugin: NAME'"):
        run_workflow(graph(a=[(Double, 1.0)]), call=CALL, n_procs=1, memory_gb=4, plugin_file=file)


@pytest.mark.slow
def test_interrupt_passes_and_leaves_no_process(graph, tmp_path):
    started = tmp_path / WORKFLOW_NAME / "a" / "stage_0" / "started"

    def interrupt(number, frame):
        if started.exists():
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, 0.2)

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_workflow(graph(a=[(Wait, 60.0)]), call=CALL, n_procs=1, memory_gb=4)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    time.sleep(0.5)
    assert not stage_processes(os.getpid())
    assert Path.cwd() == tmp_path

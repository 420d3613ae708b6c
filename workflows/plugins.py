"""How the graph is run: Nipype's settings, a process pool that cannot hang, and what is left of a failure.

Two traps of Nipype's own ``MultiProc`` are closed here. A worker killed for its memory leaves its future with an
exception that is lost in a callback, and the run waits for ever; and a pool that lost one worker is broken for all that
comes.
"""

import contextlib
import logging
import os
import signal
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nipype.pipeline.engine as pe
import yaml
from nipype import config as nipype_config
from nipype import logging as nipype_logging
from nipype.pipeline.plugins.multiproc import MultiProcPlugin, run_node

from shd_bids.errors import InputError
from shd_bids.interfaces.base import FAILURE_FILE, Failure, read_failure, write_failure
from shd_bids.interfaces.isolation import LogSetup, StageKilledError, die_with_parent, thread_environment
from shd_bids.workflows.base import WORKFLOW_NAME, run_name

__all__ = ["SafeMultiProcPlugin", "configure_nipype", "read_failures", "run_workflow"]

logger = logging.getLogger(__name__)


def configure_nipype(*, crash_dir: Path, verbose: int = 0, stop_on_first_crash: bool = False) -> None:
    """Set everything the app wants of Nipype; to be called once, before the graph is built.

    Parameters
    ----------
    crash_dir : Path
        Folder of crash files (plain text; the user gets one line, the developer the file).
    verbose : int
        0 shows nothing of Nipype's own messages, 1 its warnings and errors, 2 every node, 3 its debugging.
    stop_on_first_crash : bool
        Whether the first failed node ends the run of all.
    """
    level = _nipype_level(verbose)
    nipype_config.update_config(
        {
            "execution": {
                "crashdump_dir": str(crash_dir),
                "crashfile_format": "txt",
                "check_version": "false",
                "create_report": "false",
                "hash_method": "timestamp",
                "poll_sleep_duration": "0.1",
                "remove_unnecessary_outputs": "true",
                "stop_on_first_crash": str(stop_on_first_crash).lower(),
                "write_provenance": "false",
            },
            "logging": {f"{name}_level": level for name in ("workflow", "utils", "interface")}
            | {"log_to_file": "false"},
            "monitoring": {"enabled": "false"},
        }
    )
    nipype_logging.update_logging(nipype_config)
    os.environ["NIPYPE_NO_ET"] = os.environ["NO_ET"] = "1"  # workers inherit it: no call to the network


def run_workflow(workflow: pe.Workflow, *, n_procs: int, memory_gb: float, plugin_file: Path | None = None) -> None:
    """Run the graph to its end; failed nodes do not raise, they are told by `read_failures`.

    Parameters
    ----------
    workflow : Workflow
        From `init_shd_wf`.
    n_procs, memory_gb : int, float
        What all nodes together may use.
    plugin_file : Path, optional
        YAML with ``plugin`` and ``plugin_args`` of another Nipype plugin.

    Raises
    ------
    InputError
        The plugin file cannot be used.
    KeyboardInterrupt, SystemExit
        Passed on after the workers were stopped.
    """
    for record in Path(workflow.base_dir, workflow.name).glob(f"*/{FAILURE_FILE}"):
        record.unlink()
    own = {"n_procs": n_procs, "memory_gb": memory_gb, "n_gpu_procs": _gpu_slots(workflow)}
    plugin, arguments = _plugin(own, plugin_file)
    try:
        workflow.run(plugin=plugin, plugin_args=arguments)
    except Exception as exception:  # Nipype raises again what the nodes raised, as text
        logger.debug("Nipype ended with %s: %s", type(exception).__name__, exception)
        _record_unexplained(workflow, exception)
    finally:
        if isinstance(plugin, SafeMultiProcPlugin):
            plugin.terminate()


def read_failures(work_dir: Path, runs: Iterable[Any]) -> dict[str, Failure]:
    """Return the failure of every run that has one, by the run's key."""
    found = ((run.key, read_failure(work_dir / WORKFLOW_NAME / run_name(run))) for run in runs)
    return {key: failure for key, failure in found if failure is not None}


class SafeMultiProcPlugin(MultiProcPlugin):
    """Nipype's process pool, except that a killed worker fails its node and the next nodes get a new pool."""

    pool: ProcessPoolExecutor

    def __init__(self, plugin_args: dict[str, Any] | None = None) -> None:
        super().__init__({"mp_context": "forkserver", "raise_insufficient": False} | (plugin_args or {}))
        self.pool.shutdown(wait=False)  # it has started nothing yet
        self.pool = self._new_pool()

    def terminate(self) -> None:
        """Stop the workers at once; harmless when they are gone."""
        for process in list((self.pool._processes or {}).values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
        self.pool.shutdown(wait=True, cancel_futures=True)

    def _new_pool(self) -> ProcessPoolExecutor:
        os.environ.update(thread_environment(1))  # the forkserver inherits it before it imports numpy
        return ProcessPoolExecutor(
            max_workers=self.processors,
            mp_context=get_context(self.plugin_args["mp_context"]),
            initializer=_start_worker,
            initargs=(self._cwd, LogSetup.of_this_process(), dict(nipype_config._sections["logging"])),
        )

    def _submit_job(self, node: pe.Node, updatehash: bool = False) -> int:
        try:
            return self._submit(node, updatehash)
        except BrokenProcessPool:
            self.pool.shutdown(wait=False)
            self.pool = self._new_pool()
            return self._submit(node, updatehash)

    def _submit(self, node: pe.Node, updatehash: bool) -> int:
        self._taskid += 1
        taskid = self._taskid
        future = self.pool.submit(run_node, node, updatehash, taskid)
        self._task_obj[taskid] = future
        future.add_done_callback(lambda done: self._collect(taskid, node, done))
        return taskid

    def _collect(self, taskid: int, node: pe.Node, future: Future) -> None:
        """Keep the result of a task, also of one whose worker is gone."""
        if future.cancelled():
            return
        exception = future.exception()
        if exception is None:
            self._taskresult[taskid] = future.result()
            return
        text = (
            "a worker process died while this ran, as happens when memory runs out; "
            "give the job more memory or lower --nprocs, and start it again: it goes on where it stopped"
        )
        if run_dir := getattr(node.inputs, "run_dir", None):
            failure = Failure(
                run=node.inputs.series,
                node=node.inputs.stage,
                error=StageKilledError.__name__,
                exit_code=StageKilledError.exit_code,
                message=text,
            )
            write_failure(Path(run_dir), failure)
        self._taskresult[taskid] = {
            "taskid": taskid,
            "result": None,
            "traceback": [f"{type(exception).__name__}: {exception} ({text})\n"],
        }


def _start_worker(cwd: str, log_setup: LogSetup, nipype_levels: dict[str, str]) -> None:
    """Prepare a pool worker: it dies with its parent and talks as loudly as the parent."""
    die_with_parent()
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    nipype_config.update_config({"logging": nipype_levels})
    nipype_logging.update_logging(nipype_config)
    log_setup.apply()


def _plugin(own: dict[str, Any], plugin_file: Path | None) -> tuple[Any, dict[str, Any]]:
    """Return the plugin to run with and its arguments."""
    if plugin_file is None:
        return SafeMultiProcPlugin(own), {}
    try:
        chosen = yaml.safe_load(plugin_file.read_text(encoding="utf-8"))
        name, arguments = chosen["plugin"], own | (chosen.get("plugin_args") or {})
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise InputError(
            f"--use-plugin {plugin_file}: expected YAML with 'plugin: NAME' and 'plugin_args: {{...}}' "
            f"({type(error).__name__}: {error})"
        ) from error
    return (SafeMultiProcPlugin(arguments) if name == "MultiProc" else name), arguments


def _gpu_slots(workflow: pe.Workflow) -> int:
    """Return how many GPU slots let one GPU stage run at a time: Nipype takes one per processor of the node."""
    nodes = [workflow.get_node(name) for name in workflow.list_node_names()]
    return max((node.n_procs for node in nodes if node.is_gpu_node()), default=1)


def _record_unexplained(workflow: pe.Workflow, exception: Exception) -> None:
    """Give every run that did not fail by itself but did not finish either a record, where all of them stopped."""
    root = Path(workflow.base_dir, workflow.name)
    if any(root.glob(f"*/{FAILURE_FILE}")):
        return
    for run in workflow._graph.nodes():
        lines = str(exception).strip().splitlines() or [type(exception).__name__]
        failure = Failure(
            run=run.name, node=workflow.name, error=type(exception).__name__, exit_code=1, message=lines[-1].strip()
        )
        (root / run.name).mkdir(parents=True, exist_ok=True)
        write_failure(root / run.name, failure)


def _nipype_level(verbose: int) -> str:
    return ("CRITICAL", "WARNING", "INFO", "DEBUG")[min(max(verbose, 0), 3)]

"""How the graph is run: Nipype's settings, a process pool that cannot hang, and what is left of a failure.

Traps of Nipype's own ``MultiProc`` are closed here. A worker killed for its memory leaves its future with an exception
that is lost in a callback, and the run waits for ever; a pool that lost one worker is broken for all that comes; workers
outlive a program that is killed; and a crash file that cannot be written ends the run of all.
"""

import contextlib
import gc
import logging
import os
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nipype.pipeline.engine as pe
import yaml
from nipype import config as nipype_config
from nipype import logging as nipype_logging
from nipype.pipeline import plugins
from nipype.pipeline.plugins.multiproc import MultiProcPlugin

from shd_bids.errors import InputError, OutputError, ShdError
from shd_bids.files import lacks_space, read_text
from shd_bids.interfaces.base import Failure, StageInterface, failure_of, read_failure, write_failure
from shd_bids.interfaces.isolation import LogSetup, StageKilledError, start_server, start_worker
from shd_bids.processes import thread_environment
from shd_bids.workflows.base import WORKFLOW_NAME, run_name
from shd_bids.workflows.follow import followed

__all__ = ["SafeMultiProcPlugin", "configure_nipype", "read_failures", "run_workflow"]

logger = logging.getLogger(__name__)

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


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


def run_workflow(
    workflow: pe.Workflow,
    *,
    call: str,
    n_procs: int,
    memory_gb: float,
    plugin_file: Path | None = None,
    on_failure: Callable[[Failure], None] | None = None,
    n_gpus: int = 1,
) -> None:
    """Run the graph to its end; failed nodes do not raise, `read_failures` returns them.

    Parameters
    ----------
    workflow : Workflow
        From `init_shd_wf`.
    call : str
        Name of this execution; failures carry it.
    n_procs, memory_gb : int, float
        What all nodes together may use.
    plugin_file : Path, optional
        YAML with ``plugin`` and ``plugin_args`` of another Nipype plugin.
    on_failure : callable, optional
        Called with the failure of a series when it happens, once for each stage; other plugins do not call it.
    n_gpus : int
        GPUs that stages may take, one each and only one stage at a time on each; other plugins take the first.

    Raises
    ------
    InputError
        The plugin file cannot be used.
    KeyboardInterrupt, SystemExit
        Passed on after the workers were stopped.
    """
    for node in _nodes(workflow):
        if isinstance(node.interface, StageInterface):
            node.inputs.call = call
    own = {"n_procs": n_procs, "memory_gb": memory_gb, "n_gpu_procs": _gpu_slots(workflow, n_gpus)}
    plugin, arguments = _plugin(own, plugin_file)
    if isinstance(plugin, SafeMultiProcPlugin):
        plugin.on_failure = on_failure
        plugin.free_gpus = _names_of_gpus(n_gpus, os.environ)[::-1] if n_gpus > 1 else []
    elsewhere = isinstance(plugin, str) and plugin != "Linear"  # which runs the stages in this process
    gc.freeze()  # Nipype collects garbage at each look for work, which takes long where much else is in memory
    try:
        with followed(Path(workflow.base_dir, call, "stages.log")) if elsewhere else contextlib.nullcontext():
            workflow.run(plugin=plugin, plugin_args=arguments)
    except Exception as exception:  # Nipype raises again what the nodes raised, as text
        logger.debug("Nipype ended with %s: %s", type(exception).__name__, exception)
        _record_unexplained(workflow, exception, call)
    finally:
        gc.unfreeze()
        if isinstance(plugin, SafeMultiProcPlugin):
            plugin.terminate()


def read_failures(work_dir: Path, runs: Iterable[Any], call: str) -> dict[str, Failure]:
    """Return the failure of every run that has one in this call, by the run's key."""
    found = ((run.key, read_failure(work_dir / WORKFLOW_NAME / run_name(run), call)) for run in runs)
    return {key: failure for key, failure in found if failure is not None}


class SafeMultiProcPlugin(MultiProcPlugin):
    """Nipype's process pool, except that a killed worker fails its node and the next nodes get a new pool."""

    pool: ProcessPoolExecutor
    on_failure: Callable[[Failure], None] | None = None
    free_gpus: list[str]
    """GPUs that no stage holds, as ``CUDA_VISIBLE_DEVICES`` names them; none where there is no choice."""

    def __init__(self, plugin_args: dict[str, Any] | None = None) -> None:
        self.free_gpus = []
        super().__init__({"mp_context": "forkserver", "raise_insufficient": False} | (plugin_args or {}))
        self.pool.shutdown(wait=False)  # it has started nothing yet
        self.pool = self._new_pool()

    def terminate(self) -> None:
        """Stop the workers at once; harmless when they are gone."""
        for process in list((self.pool._processes or {}).values()):
            process.kill()
        self.pool.shutdown(wait=True, cancel_futures=True)

    def _new_pool(self) -> ProcessPoolExecutor:
        os.environ.update(thread_environment(1))  # the forkserver inherits it before it imports numpy
        context = get_context(self.plugin_args["mp_context"])
        context.set_forkserver_preload([__name__])
        levels = dict(nipype_config._sections["logging"])
        return ProcessPoolExecutor(
            max_workers=self.processors,
            mp_context=context,
            initializer=start_worker,
            initargs=(self._cwd, LogSetup.of_this_process(), levels, start_server()),
        )

    def _submit_job(self, node: pe.Node, updatehash: bool = False) -> int:
        gpu = self.free_gpus.pop() if self.free_gpus and node.is_gpu_node() else None
        try:
            return self._submit(node, updatehash, gpu)
        except BrokenProcessPool:
            self.pool.shutdown(wait=False)
            self.pool = self._new_pool()
            return self._submit(node, updatehash, gpu)

    def _submit(self, node: pe.Node, updatehash: bool, gpu: str | None) -> int:
        self._taskid += 1
        taskid = self._taskid
        future = self.pool.submit(_run_node, node, updatehash, taskid, gpu)
        self._task_obj[taskid] = future
        future.add_done_callback(lambda done: self._collect(taskid, node, done, gpu))
        return taskid

    def _collect(self, taskid: int, node: pe.Node, future: Future, gpu: str | None) -> None:
        """Keep the result of a task, also of one whose worker is gone."""
        if gpu is not None:
            self.free_gpus.append(gpu)
        if future.cancelled():
            return
        try:
            result = _outcome(node, future)
        except Exception as exception:  # without any result Nipype would wait for ever
            result = {"result": None, "traceback": traceback.format_exception(exception)}
        self._taskresult[taskid] = result | {"taskid": taskid}

    def _report_crash(self, node: pe.Node, result: dict[str, Any] | None = None) -> str:
        if result and result.get("failure") and self.on_failure:
            self.on_failure(result["failure"])
        try:
            return super()._report_crash(node, result)
        except OSError as error:  # the failure itself is recorded
            logger.debug("no crash file: %s", error)
            return ""


_LOST = (
    "a worker process died while this ran, as happens when memory runs out; "
    "give the job more memory or lower --nprocs, and start it again: it goes on where it stopped"
)


def _outcome(node: pe.Node, future: Future) -> dict[str, Any]:
    """Return the result of a task, with its failure recorded."""
    try:
        result = future.result()
    except Exception as exception:
        result = _failed(node, StageKilledError(_LOST) if isinstance(exception, BrokenProcessPool) else exception)
    if result.get("failure"):
        write_failure(Path(node.inputs.run_dir), result["failure"])
    return result


def _run_node(node: pe.Node, updatehash: bool, taskid: int, gpu: str | None) -> dict[str, Any]:
    """Run a node in a worker; what Nipype wants to know of it, and of a failure what the user shall read.

    Parameters
    ----------
    node, updatehash, taskid
        As Nipype hands them over.
    gpu : str, optional
        The only GPU that the process of its stage sees, where there are several.
    """
    if gpu is not None:
        os.environ[VISIBLE_GPUS] = gpu
    try:
        return {"taskid": taskid, "result": node.run(updatehash=updatehash), "traceback": None}
    except Exception as exception:
        return _failed(node, exception)


def _failed(node: pe.Node, error: Exception) -> dict[str, Any]:
    """Return the result of a node that failed; the disk may not have taken what its stage recorded."""
    failure = None
    if isinstance(node.interface, StageInterface):
        inputs = node.inputs
        failure = read_failure(Path(inputs.run_dir), inputs.call) or failure_of(inputs, error, Path(node.base_dir))
    return {"result": None, "traceback": traceback.format_exception(error), "failure": failure}


def _plugin(own: dict[str, Any], plugin_file: Path | None) -> tuple[Any, dict[str, Any]]:
    """Return the plugin to run with and its arguments."""
    if plugin_file is None:
        return SafeMultiProcPlugin(own), {}
    try:
        chosen = yaml.safe_load(read_text(plugin_file))
    except yaml.YAMLError:
        chosen = None
    extra = chosen.get("plugin_args") or {} if isinstance(chosen, dict) else None
    name = chosen.get("plugin") if isinstance(chosen, dict) else None
    if not isinstance(name, str) or not isinstance(extra, dict) or not hasattr(plugins, f"{name}Plugin"):
        raise InputError(
            f"--use-plugin {plugin_file}: expected YAML with 'plugin: NAME', a plugin of Nipype such as MultiProc or SLURM, "
            "and 'plugin_args: {...}'"
        )
    arguments = own | extra
    return (SafeMultiProcPlugin(arguments) if name == "MultiProc" else name), arguments


def _gpu_slots(workflow: pe.Workflow, n_gpus: int) -> int:
    """Return how many GPU slots let one stage run on each GPU: Nipype takes one per processor of the node."""
    return n_gpus * max((node.n_procs for node in _nodes(workflow) if node.is_gpu_node()), default=1)


def _names_of_gpus(n_gpus: int, environment: Mapping[str, str]) -> list[str]:
    """Return what the environment calls the first GPUs that this process sees."""
    named = [name.strip() for name in environment.get(VISIBLE_GPUS, "").split(",") if name.strip()]
    return named[:n_gpus] if len(named) >= n_gpus else [str(number) for number in range(n_gpus)]


def _nodes(workflow: pe.Workflow) -> list[pe.Node]:
    return [workflow.get_node(name) for name in workflow.list_node_names()]


def _record_unexplained(workflow: pe.Workflow, exception: Exception, call: str) -> None:
    """Give every run that did not fail by itself but did not finish either a record, where all of them stopped."""
    root = Path(workflow.base_dir, workflow.name)
    runs = [run.name for run in workflow._graph.nodes()]
    if any(read_failure(root / name, call) for name in runs):
        return
    message = (str(exception).strip().splitlines() or [type(exception).__name__])[-1].strip()
    is_full = lacks_space(str(exception), Path(workflow.base_dir))
    for name in runs:
        failure = Failure(
            run=name,
            node=workflow.name,
            error=type(exception).__name__,
            exit_code=OutputError.exit_code if is_full else ShdError.exit_code,
            message=message,
            call=call,
        )
        write_failure(root / name, failure)


def _nipype_level(verbose: int) -> str:
    return ("CRITICAL", "WARNING", "INFO", "DEBUG")[min(max(verbose, 0), 3)]

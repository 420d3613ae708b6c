"""Assertions and skips that several test modules share; each is itself tested in ``test_helpers.py``."""

import contextlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import torch

requires_mrtrix = pytest.mark.skipif(
    shutil.which("mrinfo") is None, reason="MRtrix3 is the oracle of this test and is not installed"
)


def until(condition: Callable[[], Any], *, seconds: float) -> Any:
    """Wait for a condition and give what it returned; it fails after so many seconds."""
    __tracebackhide__ = True
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)
    return found


def stage_processes(pid: int) -> list[psutil.Process]:
    """Return the processes of stages below a process: the server has forked what has forked them."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # gone before it could be asked
            if all("shd_bids.interfaces.server" in p.cmdline() for p in (process, *process.parents()[:2])):
                found.append(process)
    return found


def assert_equivariant(
    module: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    act_in: Callable[[torch.Tensor], torch.Tensor],
    act_out: Callable[[torch.Tensor], torch.Tensor],
    *,
    atol: float,
) -> None:
    """Assert ``module(g x) == g module(x)`` and report the worst entry."""
    __tracebackhide__ = True
    moved_then_mapped, mapped_then_moved = module(act_in(x)), act_out(module(x))
    assert moved_then_mapped.shape == mapped_then_moved.shape, (
        f"shapes differ: f(gx) {tuple(moved_then_mapped.shape)}, g f(x) {tuple(mapped_then_moved.shape)}"
    )
    error = (moved_then_mapped - mapped_then_moved).abs().max().item()
    assert error <= atol, f"not equivariant: max |f(gx) - g f(x)| = {error:.2e} > {atol:.0e}"


def assert_adjoint(
    forward: Callable[[torch.Tensor], torch.Tensor],
    adjoint: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    rtol: float,
) -> None:
    """Assert ``<A x, y> == <x, A* y>``; shapes first, as summing hides a wrong one."""
    __tracebackhide__ = True
    ax, aty = forward(x), adjoint(y)
    assert ax.shape == y.shape, f"A x has shape {tuple(ax.shape)}, y has {tuple(y.shape)}"
    assert aty.shape == x.shape, f"A* y has shape {tuple(aty.shape)}, x has {tuple(x.shape)}"
    torch.testing.assert_close((ax * y).sum(), (x * aty).sum(), rtol=rtol, atol=0.0)


def assert_well_connected(workflow) -> None:
    """Assert that every field of ``inputnode`` and ``outputnode`` is declared and used (Nipype checks neither).

    A field that a caller sets as a value (``inputnode.inputs.x = ...``) and every node reads through an edge counts
    as used; sub-workflows are checked too.
    """
    __tracebackhide__ = True
    ends = {node.name: node for node in workflow._graph.nodes() if node.name in ("inputnode", "outputnode")}
    used: dict[str, set[str]] = {name: set() for name in ends}
    for source, target, data in workflow._graph.edges(data=True):
        for out_field, in_field in data["connect"]:
            if source.name == "inputnode":
                used["inputnode"].add(out_field if isinstance(out_field, str) else out_field[0])
            if target.name == "outputnode":
                used["outputnode"].add(in_field)
            for end in ("inputnode", "outputnode"):
                if source.name.endswith("_wf") and str(_first(out_field)).startswith(f"{end}."):
                    _assert_declared(source, end, _first(out_field))
                if target.name.endswith("_wf") and in_field.startswith(f"{end}."):
                    _assert_declared(target, end, in_field)
    for name, fields in used.items():
        declared = set(ends[name].interface._fields)
        assert fields == declared, (
            f"{workflow.name}.{name}: undeclared {sorted(fields - declared)}, unused {sorted(declared - fields)}"
        )
    for node in workflow._graph.nodes():
        if hasattr(node, "_graph"):
            assert_well_connected(node)


def _first(field) -> str:
    """Name of a connected output, which Nipype also allows as (name, function, ...)."""
    return field if isinstance(field, str) else field[0]


def _assert_declared(workflow, end: str, field: str) -> None:
    __tracebackhide__ = True
    declared = set(workflow.get_node(end).interface._fields)
    name = field.removeprefix(f"{end}.")
    assert name in declared, f"{workflow.name}.{end}: undeclared {name}, declared {sorted(declared)}"

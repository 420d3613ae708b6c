"""The helpers must fail on wrong things: an assertion that cannot fail proves nothing."""

import os
import subprocess
import sys

import pytest
import torch
from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline import engine as pe

from tests.helpers import assert_adjoint, assert_equivariant, assert_well_connected, stage_processes, until


def shift(x: torch.Tensor) -> torch.Tensor:
    return x.roll(1, dims=-1)


def test_equivariant_map_passes():
    assert_equivariant(lambda x: x**2, torch.arange(12.0), shift, shift, atol=0.0)


def test_map_that_is_not_equivariant_is_rejected():
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(lambda x: x * torch.arange(12.0), torch.ones(1, 1, 12), shift, shift, atol=1e-6)


def test_action_that_changes_the_shape_is_rejected():
    with pytest.raises(AssertionError, match="shapes differ"):
        assert_equivariant(lambda x: x, torch.ones(12), shift, lambda x: x[:1], atol=1e-6)


MATRIX = torch.arange(6.0, dtype=torch.float64).reshape(2, 3) + 1.0
X, Y = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.3, 2.0]).double()


def test_transpose_is_the_adjoint_of_a_matrix():
    assert_adjoint(lambda x: MATRIX @ x, lambda y: MATRIX.T @ y, X, Y, rtol=1e-12)


def test_scaled_transpose_is_rejected():
    with pytest.raises(AssertionError, match="not close"):
        assert_adjoint(lambda x: MATRIX @ x, lambda y: 1.01 * MATRIX.T @ y, X, Y, rtol=1e-6)


def test_adjoint_of_a_wrong_shape_is_rejected():
    with pytest.raises(AssertionError, match="has shape"):
        assert_adjoint(lambda x: MATRIX @ x, lambda y: (MATRIX.T @ y).sum(), X, Y, rtol=1e-6)


def chain(*, inputs: list[str], outputs: list[str], edges: list[tuple[str, str]]) -> pe.Workflow:
    """A workflow of an inputnode and an outputnode that are joined by the given edges."""
    workflow = pe.Workflow(name="chain_wf")
    inputnode = pe.Node(IdentityInterface(fields=inputs), name="inputnode")
    outputnode = pe.Node(IdentityInterface(fields=outputs), name="outputnode")
    workflow.connect([(inputnode, outputnode, edges)])
    return workflow


def test_well_connected_workflow_passes():
    assert_well_connected(chain(inputs=["a", "b"], outputs=["c", "d"], edges=[("a", "c"), ("b", "d")]))


def test_unused_field_is_rejected():
    with pytest.raises(AssertionError, match=r"inputnode: undeclared \[\], unused \['b'\]"):
        assert_well_connected(chain(inputs=["a", "b"], outputs=["c"], edges=[("a", "c")]))


def test_output_that_nobody_fills_is_rejected():
    with pytest.raises(AssertionError, match=r"outputnode: undeclared \[\], unused \['d'\]"):
        assert_well_connected(chain(inputs=["a"], outputs=["c", "d"], edges=[("a", "c")]))


def test_undeclared_field_is_rejected():
    workflow = chain(inputs=["a"], outputs=["c"], edges=[("a", "c")])
    workflow.connect([(workflow.get_node("inputnode"), workflow.get_node("outputnode"), [("a", "typo")])])
    with pytest.raises(AssertionError, match=r"outputnode: undeclared \['typo'\]"):
        assert_well_connected(workflow)


def test_sub_workflow_is_checked_too():
    outer = pe.Workflow(name="outer_wf")
    outer.add_nodes([chain(inputs=["a", "b"], outputs=["c"], edges=[("a", "c")])])
    with pytest.raises(AssertionError, match="chain_wf"):
        assert_well_connected(outer)


def test_undeclared_input_of_a_sub_workflow_is_rejected():
    outer = pe.Workflow(name="outer_wf")
    source = pe.Node(IdentityInterface(fields=["x"]), name="inputnode")
    inner = chain(inputs=["a"], outputs=["c"], edges=[("a", "c")])
    outer.connect([(source, inner, [("x", "inputnode.a")])])
    assert_well_connected(outer)
    inner.get_node("inputnode").interface._fields.remove("a")
    with pytest.raises(AssertionError, match="undeclared a"):
        assert_well_connected(outer)


def test_waiting_gives_what_the_condition_returned_and_ends():
    answers = iter([0, None, "found"])
    assert until(lambda: next(answers), seconds=5) == "found"
    with pytest.raises(AssertionError, match="did not happen in time"):
        until(lambda: False, seconds=0.1)


def test_only_what_a_server_has_forked_twice_is_a_stage():
    server = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "shd_bids.interfaces.server"])
    try:
        assert server.pid not in [process.pid for process in stage_processes(os.getpid())]
    finally:
        server.kill()
        server.wait()


@pytest.mark.xdist_group("kept together")
def test_groups_of_tests_stay_with_one_worker(request):
    """What pytest-xdist sorts by is the end of the name; versions of pytest that it does not know drop it."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("needs --dist loadgroup")
    assert request.node.nodeid.endswith("@kept together")

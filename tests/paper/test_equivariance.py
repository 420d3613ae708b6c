"""The measure of equivariance is exact where it can be, and sees what does not commute."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from tests.benchmarks.paper import equivariance
from tests.benchmarks.paper.equivariance import Field, centred, error, turn_grid

QUARTER = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
NEAR = np.linalg.norm(centred(), axis=1) < 3


@pytest.fixture(scope="module")
def field():
    return Field(np.random.default_rng(0))


def measured(field, function, voxel, grid):
    still = np.eye(3)
    return error(function(field.sample(voxel, grid)).numpy(), function(field.sample(still, still)).numpy(), voxel, grid)


@pytest.mark.parametrize("kind", ["voxel", "grid", "both"])
def test_floor_is_small_and_what_does_not_commute_is_seen(field, kind):
    turn = Rotation.from_rotvec([0.4, -0.9, 0.3]).as_matrix()
    voxel, grid = (turn if kind in (name, "both") else np.eye(3) for name in ("voxel", "grid"))
    assert measured(field, lambda x: x, voxel, grid) < 0.01
    weight = torch.linspace(-1, 1, 384) if kind == "voxel" else torch.linspace(-1, 1, 10)[:, None, None, None]
    assert measured(field, lambda x: x * weight, voxel, grid) > 0.1


def test_quarter_turns_of_the_grid_are_exact(field):
    x = field.sample(np.eye(3), np.eye(3)).numpy()
    moved = np.rot90(x, 1, (2, 3))
    np.testing.assert_allclose(turn_grid(x, QUARTER, NEAR), equivariance.at_places(moved, NEAR), atol=1e-4)

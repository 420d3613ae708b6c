"""Frames of gradient directions: FSL, BIDS, MRtrix3 and the world."""

import subprocess

import nibabel as nib
import numpy as np
import pytest

from shd_bids.gradients.files import read_fsl
from shd_bids.gradients.frames import fsl_to_world, image_rotation, world_to_fsl
from tests.gradients.frames import AFFINES, affine_of, turn, write_fsl
from tests.helpers import requires_mrtrix


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_fsl_and_world_are_inverse(affine, protocol):
    there_and_back = fsl_to_world(world_to_fsl(protocol.directions, affine), affine)
    np.testing.assert_allclose(there_and_back, protocol.directions, atol=1e-12)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_fsl_directions_do_not_change_when_the_image_is_stored_mirrored(affine, protocol):
    """FSL's x flip exists for this: mirroring the storage along x leaves the .bvec as it is."""
    mirrored = affine @ np.diag([-1.0, 1, 1, 1])
    np.testing.assert_allclose(
        world_to_fsl(protocol.directions, affine), world_to_fsl(protocol.directions, mirrored), atol=1e-12
    )


def test_fsl_rule_on_paper():
    v = np.array([[0.6, 0.8, 0.0]])
    np.testing.assert_allclose(fsl_to_world(v, AFFINES["RAS"]), [[-0.6, 0.8, 0]], atol=1e-15)
    np.testing.assert_allclose(fsl_to_world(v, AFFINES["LAS"]), [[-0.6, 0.8, 0]], atol=1e-15)
    np.testing.assert_allclose(fsl_to_world(v, AFFINES["LPS"]), [[0.6, -0.8, 0]], atol=1e-15)
    np.testing.assert_allclose(fsl_to_world(v, affine_of(turn(90, 2))), [[-0.8, -0.6, 0]], atol=1e-15)


def test_oblique_directions_turn_with_the_head_not_against_it():
    """Along the first image axis of an oblique LAS image: the axis itself, not its mirror in the inverse rotation."""
    affine = AFFINES["oblique LAS"]
    axis = affine[:3, 0] / np.linalg.norm(affine[:3, 0])
    np.testing.assert_allclose(fsl_to_world([[1.0, 0, 0]], affine)[0], axis, atol=1e-12)


def test_image_rotation_ignores_voxel_size_and_shear_keeps_it_orthogonal():
    sheared = AFFINES["oblique RAS"].copy()
    sheared[:3, 1] += 0.1 * sheared[:3, 0]
    rotation = image_rotation(sheared)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(image_rotation(AFFINES["oblique RAS"]), turn(20, 0) @ turn(-15, 2), atol=1e-12)


@requires_mrtrix
@pytest.mark.parametrize("name", ["RAS", "LAS", "PSR", "oblique RAS", "oblique LAS"])
def test_world_directions_are_those_of_mrtrix(tmp_path, name, protocol):
    affine = AFFINES[name]
    bval, bvec = write_fsl(tmp_path, protocol.bvals, world_to_fsl(protocol.directions, affine).T)
    image = tmp_path / "dwi.nii"
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6, protocol.n_volumes), np.float32), affine), image)
    command = ["mrinfo", image, "-fslgrad", bvec, bval, "-dwgrad", "-quiet"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    oracle = np.array([line.split() for line in told.splitlines()], dtype=float)
    ours = read_fsl(bval, bvec, affine, protocol.n_volumes)
    np.testing.assert_allclose(ours.directions[2:], oracle[2:, :3], atol=1e-5)

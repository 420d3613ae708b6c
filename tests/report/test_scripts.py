"""The scripts of the view that need no browser, against the package, where node is installed; and how a page joins them."""

import json
import shutil
import subprocess
from importlib.resources import files

import numpy as np
import pytest

from shd_bids.report.html import VIEWER
from shd_bids.report.pages import asset, join_modules
from shd_bids.sphere.harmonics import sh_basis

FOLDER = files("shd_bids.report") / "assets" / "viewer"
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def run(script):
    """Return what a module prints as JSON; the scripts of the view lie at ``@``."""
    text = script.replace("@", FOLDER.as_uri() if hasattr(FOLDER, "as_uri") else f"file://{FOLDER}")
    command = ["node", "--input-type=module", "--eval", text]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)


@needs_node
def test_harmonics_are_those_of_the_package():
    directions = np.random.default_rng(3).normal(size=(20, 3))
    directions = np.vstack([np.eye(3), -np.eye(3), directions / np.linalg.norm(directions, axis=1, keepdims=True)])
    found = run(
        f"""import {{ harmonics }} from "@/harmonics.js";
        const directions = new Float32Array({json.dumps(directions.ravel().tolist())});
        console.log(JSON.stringify([...harmonics(directions, 8)]));"""
    )
    np.testing.assert_allclose(np.reshape(found, (-1, 45)), sh_basis(directions, 8), atol=2e-5)


@needs_node
@pytest.mark.parametrize("times", [0, 2])
def test_mesh_is_a_closed_ball_of_opposite_points(times):
    mesh = run(
        f"""import {{ sphere }} from "@/mesh.js";
        const mesh = sphere({times});
        console.log(JSON.stringify(Object.fromEntries(Object.entries(mesh).map(([name, part]) => [name, [...part]]))));"""
    )
    points, faces = np.reshape(mesh["points"], (-1, 3)), np.reshape(mesh["faces"], (-1, 3))
    edges = {tuple(sorted(edge)) for face in faces for edge in zip(face, np.roll(face, 1), strict=True)}
    assert len(points) - len(edges) + len(faces) == 2
    a, b, c = points[faces].transpose(1, 0, 2)
    assert (np.einsum("ij,ij->i", np.cross(b - a, c - a), a) > 0).all()
    axes = np.reshape(mesh["axes"], (-1, 3))
    assert 2 * len(axes) == len(points)
    np.testing.assert_allclose(np.abs(np.einsum("ij,ij->i", axes[mesh["half"]], points)), 1, atol=1e-6)
    ring = points[np.reshape(mesh["neighbours"], (-1, 6))]
    outward = np.cross(ring - points[:, None], np.roll(ring, -1, axis=1) - points[:, None]).sum(axis=1)
    assert (np.einsum("ij,ij->i", outward, points) > 0).all()


@needs_node
def test_a_turn_keeps_axes_at_right_angles():
    turn = np.reshape(
        run("""import { turned, FROM_LEFT_FRONT } from "@/places.js";
            console.log(JSON.stringify(turned(FROM_LEFT_FRONT, 0.4, -0.7)));"""),
        (3, 3),
    )
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) > 0


def test_joined_modules_import_and_export_nothing_and_name_each_thing_once():
    modules = [asset(name) for name in VIEWER]
    joined = join_modules(modules)
    assert "import " not in joined
    assert "\nexport " not in joined
    names = [
        line.split()[1].split("(")[0]
        for line in joined.splitlines()
        if line.startswith(("const ", "function ", "class "))
    ]
    assert len(names) == len(set(names))


def test_modules_come_after_those_they_import():
    for place, name in enumerate(VIEWER):
        before = {f'"./{other.rpartition("/")[2]}"' for other in VIEWER[:place]}
        imported = {
            line.rpartition(" from ")[2].rstrip(";") for line in asset(name).splitlines() if line.startswith("import ")
        }
        assert imported <= before

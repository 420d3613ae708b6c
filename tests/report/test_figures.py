"""Every figure is drawn from full, tiny, flat and empty input, in the same way each time."""

import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image

from shd_bids.report import figures
from shd_bids.report.figures import shared
from shd_bids.report.view import WIDTH

DPI = 50  # a third of the real one: the tests look at layout, not at detail

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
OBLIQUE = AFFINE @ np.array([[0, -0.94, 0.34, 0], [-1, 0, 0, 0], [0, 0.34, 0.94, 0], [0, 0, 0, 1]])


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    monkeypatch.setattr(shared, "DPI", DPI)


def inputs(name: str, shape, mask, rng, affine) -> dict:
    """Make the arguments of one figure for a mask, which may be empty."""
    n = int(mask.sum())
    common = {"mask": mask, "affine": affine}
    image = rng.random(shape)
    unit = rng.standard_normal((n, 3, 3))
    unit /= np.linalg.norm(unit, axis=2, keepdims=True)
    lines = [10 + np.cumsum(rng.normal(size=(12, 3)), axis=0) for _ in range(5 if n else 0)]
    return {
        "mask": common | {"b0": image},
        "response": common
        | {
            "responses": {"wm": ([0, 1000], [[9, 0], [5, -2]]), "csf": ([0, 1000], [20.0, 1.0])} if n else {},
            "voxels": {"wm": mask & (image > 0.9), "csf": mask & (image < 0.1)},
            "b0": image,
        },
        "fod": common | {"coefficients": rng.random((n, 15)).astype(np.float32), "background": image},
        "peaks": common | {"directions": unit, "amplitudes": rng.random((n, 3)), "background": None},
        "tissue": common | {"fractions": rng.dirichlet([1, 1, 1], n) * [1, 0, 1]},
        "residual": common
        | {
            "r_squared": rng.random(n),
            "residual_std": rng.random(n),
            "shell_residuals": {"b = 0": rng.random(n), "b = 1000": rng.random(n)},
            "volume_residuals": rng.random(9) if n else [],
        },
        "streamlines": common | {"streamlines": lines},
        "connectomes": {
            "matrices": {"seg-a": np.outer(*2 * [rng.random(9)]), "seg-b": np.zeros((3, 3))}
            if n
            else {"x": np.zeros((2, 2))}
        },
        "tdi": common | {"density": np.where(mask, np.floor(20 * image), 0)},
    }[name]


NAMES = ("mask", "response", "fod", "peaks", "tissue", "residual", "streamlines", "tdi", "connectomes")


def draw(name: str, path, arguments):
    assert getattr(figures, f"plot_{name}")(path, **arguments) == path
    picture = imread(path)
    assert picture.shape[1] == WIDTH * DPI
    assert picture[..., :3].std() > 0.01
    return picture


@pytest.mark.parametrize("name", NAMES)
def test_small_oblique_image(name, tmp_path, rng):
    shape = (7, 8, 6)
    mask = np.zeros(shape, bool)
    mask[1:-1, 1:-1, 1:-1] = True
    draw(name, tmp_path / "figure.png", inputs(name, shape, mask, rng, OBLIQUE))
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_draw(name, tmp_path, rng):
    shape = (6, 5, 4)
    draw(name, tmp_path / "figure.png", inputs(name, shape, np.zeros(shape, bool), rng, AFFINE))


@pytest.mark.parametrize("name", ["mask", "fod", "streamlines"])
def test_two_slices(name, tmp_path, rng):
    shape = (12, 14, 2)
    draw(name, tmp_path / "figure.png", inputs(name, shape, np.ones(shape, bool), rng, AFFINE))


def test_equal_input_gives_equal_bytes(tmp_path, rng):
    shape = (4, 5, 6)
    arguments = inputs("peaks", shape, np.ones(shape, bool), rng, AFFINE)
    first, second = (figures.plot_peaks(tmp_path / name, **arguments).read_bytes() for name in ("a.png", "b.png"))
    assert first == second


def test_left_fibre_is_red_on_the_left_of_the_picture(tmp_path):
    """From array to pixel: left-right fibres in the left half are red on the left side, whatever the storage order."""
    from shd_bids.sphere.harmonics import sh_basis

    shape = (12, 12, 12)
    world_left = np.zeros(shape, bool)
    world_left[:6] = True
    red, blue = sh_basis(np.array([[1.0, 0, 0], [0, 0, 1.0]]), 8)
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])  # LAS: the first half of the array is the right half of the head
    coefficients = np.where(world_left[::-1].ravel()[:, None], red, blue)
    mask = np.ones(shape, bool)
    picture = draw("fod", tmp_path / "fod.png", {"coefficients": coefficients, "mask": mask, "affine": affine})
    axial = picture[: picture.shape[0] // 2, 2 * picture.shape[1] // 3 + 20 :, :3]  # the third panel of the first row
    columns = np.arange(axial.shape[1])
    is_red = (axial[..., 0] > 2 * axial[..., 2]) & (axial[..., 0] > 0.3)
    is_blue = (axial[..., 2] > 2 * axial[..., 0]) & (axial[..., 2] > 0.3)
    assert (
        (is_red.sum(axis=0) @ columns) / is_red.sum()
        < axial.shape[1] / 2
        < (is_blue.sum(axis=0) @ columns) / is_blue.sum()
    )


@pytest.mark.parametrize("n_shells", [0, 1, 7])
def test_gradients(tmp_path, rng, n_shells):
    directions = rng.standard_normal((4 + 6 * n_shells, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    directions[:4] = 0
    shell = np.repeat(np.arange(n_shells + 1), [4] + [6] * n_shells)
    scores = [("x,y,z", np.eye(3), 0.3), ("-x,y,z", np.diag([-1.0, 1, 1]), 0.1)] if n_shells == 1 else []
    path = figures.plot_gradients(
        tmp_path / "g.png", bvals=1000.0 * shell, directions=directions, shell_index=shell, scores=scores
    )
    assert imread(path).shape[1] == WIDTH * DPI


@pytest.mark.parametrize("n_terms", [0, 1, 4])
def test_training(tmp_path, n_terms):
    train = {f"term {number}": [3.0, 2.0, 1.0] for number in range(n_terms)}
    path = figures.plot_training(tmp_path / "t.png", train=train, held_out={"term 0": [2.0, 1.5]} if n_terms else None)
    assert imread(path).shape[1] == WIDTH * DPI


def test_a_failed_figure_leaves_no_file(tmp_path):
    mask = np.ones((3, 3, 3), bool)
    with pytest.raises(ValueError, match="coefficients"):
        figures.plot_fod(tmp_path / "f.png", coefficients=np.ones((27, 7)), mask=mask, affine=AFFINE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("affine", [AFFINE, OBLIQUE])
def test_the_thumbnail_is_small_and_the_right_way_up(tmp_path, affine):
    """The front of the head is at the top, its left on the left."""
    shape = (20, 24, 12)
    mask = np.zeros(shape, bool)
    mask[4:16, 4:20, 2:10] = True
    places = (np.argwhere(mask) @ affine[:3, :3].T) @ np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    coefficients = np.zeros((mask.sum(), 15), np.float32)
    coefficients[:, 0] = np.where(places[:, 1] > np.median(places[:, 1]), 0.28, 0.05)
    path = figures.plot_thumbnail(tmp_path / "t.webp", coefficients=coefficients, mask=mask, affine=affine)
    picture = np.asarray(Image.open(path).convert("L")).astype(float)
    assert max(picture.shape) == 96 and path.stat().st_size < 6000
    half = len(picture) // 2
    assert picture[:half].mean() > 2 * picture[half:].mean()


def test_a_thumbnail_of_nothing_is_black(tmp_path):
    empty = {"coefficients": np.zeros((0, 15), np.float32), "mask": np.zeros((6, 6, 6), bool), "affine": AFFINE}
    assert np.asarray(Image.open(figures.plot_thumbnail(tmp_path / "t.webp", **empty))).max() <= 1  # coded with loss

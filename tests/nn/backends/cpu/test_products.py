"""Products of bfloat16 as the kernel makes them, in vectors and in tiles; the tiles of AMX on a model of their instructions."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from shd_bids.nn.backends import cpu
from shd_bids.nn.backends.cpu import convolution
from shd_bids.nn.backends.cpu.build import SPECTRAL
from shd_bids.nn.layers.pool import Pooling
from tests.nn.convolutions import filters_of, make

HERE = Path(__file__).parent
COMPILER = shutil.which("c++")
MODEL = f'-DSHD_TILE_MODEL="{HERE / "tile_model.h"}"'
PRODUCTS = {
    "vectors": ('-DSHD_PAIRS="pairs.h"', "-DSHD_ROWS=12"),
    "tiles": ('-DSHD_PAIRS="amx.h"', "-DSHD_ROWS=16", MODEL),
}
AMX = 4  # the level

pytestmark = pytest.mark.skipif(
    cpu.bf16_level() is None or COMPILER is None, reason="no instructions for bfloat16 here, or no compiler"
)


def compiled(sources, target, *options):
    """Compile some sources and load them."""
    command = [COMPILER, "-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-pthread", f"-I{SPECTRAL.folder}", *options]
    subprocess.run([*command, *map(str, sources), "-o", str(target)], check=True, timeout=600)
    return ctypes.CDLL(str(target))


@pytest.fixture(scope="module", params=PRODUCTS)
def multiply(request, tmp_path_factory):
    """Return the product of two matrices by vectors or by tiles."""
    target = tmp_path_factory.mktemp("products") / f"{request.param}.so"
    library = compiled([HERE / "products.cpp"], target, *PRODUCTS[request.param])
    size, address = ctypes.c_int64, ctypes.c_void_p
    library.multiply_matrices.argtypes = (size, size, ctypes.c_int, address, address, address)

    def product(a, b):
        a, b = (np.ascontiguousarray(x, dtype=np.float32) for x in (a, b))
        c = np.full((len(a), b.shape[1]), np.nan, dtype=np.float32)
        library.multiply_matrices(*a.shape, b.shape[1], *(x.ctypes.data for x in (a, b, c)))
        return c

    return product


SHAPES = [(1, 1, 1), (12, 64, 16), (16, 32, 32), (29, 61, 15), (40, 130, 96), (7, 1024, 33)]


@pytest.mark.parametrize(("rows", "depth", "columns"), SHAPES)
def test_what_bfloat16_holds_exactly_is_multiplied_exactly(multiply, rows, depth, columns):
    # Whole numbers below 2^8, whose sums of products stay below 2^24: nothing is rounded.
    rng = np.random.default_rng(0)
    a, b = rng.integers(-100, 101, (rows, depth)), rng.integers(-100, 101, (depth, columns))
    np.testing.assert_array_equal(multiply(a, b), a @ b)


@pytest.mark.parametrize(("rows", "depth", "columns"), SHAPES)
def test_factors_are_rounded_to_the_nearest(multiply, rows, depth, columns):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(rows, depth)).astype(np.float32), rng.normal(size=(depth, columns)).astype(np.float32)
    rounded = [torch.from_numpy(x).bfloat16().double().numpy() for x in (a, b)]
    most = np.abs(rounded[0]) @ np.abs(rounded[1])
    error = np.abs(multiply(a, b) - rounded[0] @ rounded[1])
    assert (error <= depth * 2.0**-24 * most).all()  # of the sum in float32 alone


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Return the whole kernel with the level of tiles on their model."""
    library = compiled(SPECTRAL.sources(".cpp"), tmp_path_factory.mktemp("tiles") / "spectral.so", MODEL)
    for name, arguments in SPECTRAL.signatures.items():
        getattr(library, name).argtypes = arguments
    return library


@pytest.mark.parametrize(
    ("nside", "hemisphere", "ins", "out", "shape", "spatial"),
    [
        (2, True, (3, 2), 4, (2, 3, 4, 2), True),
        (4, True, (16, 17), 40, (3, 5, 2, 3), True),
        (4, False, (16,), 16, (1, 1, 1, 9), False),
        (2, True, (17, 16), 7, (1, 2, 3, 2), False),
        (8, True, (15,), 16, (1, 2, 3, 4), True),
    ],
)
def test_tiles_give_the_layer_of_vectors(generator, monkeypatch, tiles, nside, hemisphere, ins, out, shape, spatial):
    monkeypatch.setattr(convolution, "library", lambda: tiles)
    conv = make(ins, out, nside=nside, hemisphere=hemisphere, spatial=spatial, dtype=torch.float32)
    inputs = [torch.randn(conv.basis.n_vertices, *shape, f, generator=generator) for f in ins]
    by_vectors, by_tiles = (
        cpu.forward(inputs, filters_of(conv), conv.bias.detach(), relu=False, level=level) for level in (3, AMX)
    )
    # Sums in another order differ by 2^-24, which now and then rounds a factor of the next product the other way.
    assert (by_tiles - by_vectors).norm() < 2.0**-12 * by_vectors.norm()


def test_tiles_take_an_input_on_cells(generator, monkeypatch, tiles):
    monkeypatch.setattr(convolution, "library", lambda: tiles)
    pool, conv = Pooling(2, hemisphere=True, stride=2), make((3, 5), 9, dtype=torch.float32)
    inputs = [torch.randn(*size, generator=generator) for size in ((24, 1, 6, 8, 4, 3), (6, 1, 3, 4, 2, 5))]
    by_vectors, by_tiles = (
        cpu.forward(inputs, filters_of(conv), conv.bias.detach(), relu=False, parents=pool.parent_index, level=level)
        for level in (3, AMX)
    )
    assert (by_tiles - by_vectors).norm() < 2.0**-12 * by_vectors.norm()

"""The networks of the comparison: they run in the package's training and fit, and PONITA turns with its input."""

import numpy as np
import pytest
import torch

from shd_bids.nn.unet import UNetConfig
from shd_bids.simulation.scoring import score_peaks
from shd_bids.sphere.healpix import hemisphere
from tests.benchmarks.paper import fibres, learned
from tests.benchmarks.paper.learned import Effort, true_density
from tests.benchmarks.paper.nets import Ponita, SphericalCNN

CONFIG = UNetConfig(2, 3, nside=4, channels=(4, 8, 8), form="patch", patch_size=4)
TINY = Effort(4, (2, 4, 4), 8, 2, 4)


@pytest.fixture(scope="module")
def drawn():
    return fibres.volumes(0, fibres.Size(6, 4, 1.6))


@pytest.mark.parametrize("kind", [SphericalCNN, Ponita])
def test_output_has_the_shape_of_the_input(kind):
    x = torch.randn(2, 2, 4, 4, 4, 96)
    assert kind(CONFIG).eval()(x).shape == (2, 3, 4, 4, 4, 96)


@pytest.mark.parametrize(("kind", "is_equivariant"), [(Ponita, True), (SphericalCNN, False)])
def test_turns_with_its_input(kind, is_equivariant):
    """A quarter turn about z of voxels and orientations turns the output; it maps the grid of orientations onto itself."""
    torch.manual_seed(0)
    net = kind(CONFIG).eval()
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    cosine = np.abs(hemisphere(4) @ turn @ hemisphere(4).T)
    source = torch.as_tensor(cosine.argmax(axis=1))
    assert cosine.max(axis=1).min() > 1 - 1e-6

    def rotated(field):  # value at (x, n) from (R^-1 x, R^-1 n)
        return torch.rot90(field, 1, (2, 3))[..., source]

    x = torch.randn(1, 2, 4, 4, 4, 96)
    with torch.no_grad():
        difference = (net(rotated(x)) - rotated(net(x))).abs().max() / net(x).std()
    assert (difference < 1e-3) == is_equivariant


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shd_tv", "esd", "cnn", "cnn_supervised", "ponita"])
@pytest.mark.parametrize("row", [fibres.HIGH, fibres.LOW])
def test_every_network_trains_and_fits(drawn, name, row):
    few = fibres._FEW if row == fibres.LOW else None
    weights = learned.train(name, drawn.trained, drawn.train.phantom, effort=TINY, few=few, seed=0, device="cpu")
    found = learned.maxima(weights, drawn.seen(drawn.test), "cpu")
    assert found.directions.shape == (216, 10, 3)
    assert np.isfinite(found.amplitudes).all()


def test_same_seed_gives_the_same_weights(drawn):
    one, other = (
        learned.train("ponita", drawn.trained, None, effort=TINY, few=None, seed=1, device="cpu") for _ in range(2)
    )
    assert all(torch.equal(value, other.state[key]) for key, value in one.state.items())


def test_longer_trainings_take_five_times_the_steps():
    short, longer = (learned.SMALL.steps_of(name) for name in ("shd_tv", "shd_tv, longer"))
    assert longer == 5 * short
    one, other = (learned.recipe_of(name, learned.SMALL, None) for name in ("shd_tv", "shd_tv, longer"))
    assert one == other


@pytest.mark.slow
def test_super_resolved_networks_look_at_few_volumes(drawn):
    """Noise in the other volumes of the test scan changes nothing."""
    weights = learned.train("shd", drawn.trained, None, effort=TINY, few=fibres._FEW, seed=0, device="cpu")
    scan = drawn.seen(drawn.test)
    hidden = np.setdiff1d(np.arange(scan.gradients.n_volumes), fibres._FEW.choose(scan.gradients))
    before = learned.fit(weights, scan, "cpu").wm
    scan.voxels[:, hidden] = 500.0
    np.testing.assert_array_equal(learned.fit(weights, scan, "cpu").wm, before)


def test_true_density_has_the_true_peaks(drawn):
    phantom = drawn.test.phantom
    density = true_density(phantom, 8)
    np.testing.assert_allclose(4 * np.pi * density.mean(axis=-1), phantom.wm, atol=1e-4)
    largest = hemisphere(8)[density.argmax(axis=-1)]
    single = (phantom.fractions[..., 0] > 0.3) & (phantom.fractions[..., 1] == 0)
    cosine = np.abs((largest * phantom.directions[..., 0, :]).sum(-1))[single]
    assert cosine.min() > np.cos(np.radians(6))


def test_reduced_scene_keeps_the_few(drawn):
    few = fibres.reduced(drawn.test)
    assert few.gradients.n_volumes == 4 + 29
    assert len(few.gradients.shells) == 2
    score = score_peaks(few.truth, few.fractions, few.truth)
    assert score.recall[0] > 0.9


def test_true_fodf_finds_the_most(drawn):
    """What no method can better finds nearly all single fibres."""
    found = fibres.run_peer("truth", fibres.HIGH, drawn.test)
    single = (drawn.test.truth.any(-1).sum(-1)) == 1
    score = score_peaks(found.directions[single], found.amplitudes[single], drawn.test.truth[single])
    assert score.recall[0] > 0.99
    assert score.angular_errors[0] < 2

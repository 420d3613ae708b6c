"""Networks trained on scans by a recipe: the published ones are the dense oracle, and run from signal to fODF."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from shd_bids import simulation
from shd_bids.errors import TrainingError
from shd_bids.fod.fit import fit_fod
from shd_bids.fod.weights import load_weights, save_weights
from shd_bids.nn.unet import UNet
from shd_bids.options import Runtime
from shd_bids.response.response import Responses
from shd_bids.scan import Scan
from shd_bids.training.adapt import AdaptationOptions, adapt
from shd_bids.training.config import NetworkRecipe, load_network_recipe
from shd_bids.training.measured import CROP, _places_in
from tests.nn.oracle import unet

CPU = Runtime(device="cpu")
PUBLISHED = ("published", "shd", "rt_esd", "esd", "super_resolved")


@pytest.fixture(scope="module")
def scan():
    rng = np.random.default_rng(0)
    phantom = simulation.crossing_phantom(rng, size=6, angles=(70.0,), radius=2.0)
    gradients = simulation.make_gradients(rng, {1000.0: 40, 2500.0: 30}, n_b0=3)
    micro = simulation.draw_microstructure(rng, len(phantom.bundles))
    signal = simulation.add_noise(simulation.noiseless_signal(phantom, micro, gradients), 1 / 40, rng)
    mask = np.ones(phantom.gm.shape, dtype=bool)
    mask[0, :, 0] = False
    responses = brighter(simulation.true_responses(micro, gradients), 500.0)
    return Scan.of_volume(500 * signal, mask, gradients, responses, np.eye(4))


def brighter(responses, factor):
    return Responses(*(response.scaled(factor) for response in responses.tissues))


def small(name, **network):
    """Return a recipe of the package with a network that trains in seconds."""
    recipe = load_network_recipe(name)
    training = replace(recipe.training, batch=8, learning_rate=1e-2)
    return replace(
        recipe, network={**recipe.network, "nside": 2, "channels": [4, 6], **network}, l_max=4, training=training
    )


def train(scans, recipe, **options):
    return adapt(
        scans,
        weights=None,
        device=torch.device("cpu"),
        options=AdaptationOptions(**{"max_steps": 50, **options}),
        checkpoint=None,
        progress=lambda stage, share: None,
        recipe=recipe,
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_are_the_dense_oracle(name, generator):
    recipe = load_network_recipe(name)
    assert UNet(recipe.unet(5)).config.channels == (32, 64, 128, 256)
    net = UNet(replace(recipe.unet(2), nside=4, channels=(2, 3, 4))).double()
    config = net.config
    x = torch.randn(1, 2, *[config.patch_size] * 3, net.bases[0].n_vertices, generator=generator, dtype=torch.float64)
    assert net.bases[0].n_vertices == (192 if name == "rt_esd" else 96)
    assert config.patch_size == (1 if name == "esd" else 3)
    torch.testing.assert_close(net(x), unet(x, net), rtol=0, atol=1e-10)


def test_the_published_network_has_the_published_parameters_and_loss():
    recipe = load_network_recipe("published")
    found = sum(p.numel() for p in UNet(replace(recipe.unet(5), out_channels=2)).parameters())
    assert found == 844_802 - 64  # less those that reach no output
    assert (recipe.loss.reconstruction, recipe.loss.negativity, recipe.loss.sparsity) == (1, 0.1, 5e-5)
    assert {name: load_network_recipe(name).loss.smoothness for name in PUBLISHED} == {
        "published": 0.5, "shd": 0.0, "rt_esd": 0.0, "esd": 0.0, "super_resolved": 0.5,
    }  # fmt: skip


def test_the_published_learning_rate_falls_after_epochs_30_40_and_45():
    training = load_network_recipe("published").training
    n_steps = training.n_steps([160])  # ten batches in each of fifty epochs
    assert n_steps == 500 and training.n_steps([10**6]) == 45_000
    rates = [training.rate(10 * epoch, n_steps=n_steps) for epoch in (0, 29, 30, 39, 40, 45, 49)]
    np.testing.assert_allclose(rates, 1.7e-3 * np.array([1, 1, 0.1, 0.1, 0.01, 0.001, 0.001]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["published", "rt_esd", "esd", "super_resolved"])
def test_a_network_of_a_recipe_runs_from_the_signal_to_the_fodf(name, scan, tmp_path):
    adapted = train([scan], small(name))
    losses = [record["loss"] for record in adapted.facts["history"] if "loss" in record]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    weights = adapted.weights
    path = save_weights(tmp_path / "w.safetensors", weights)
    loaded = load_weights(path)
    expected = ("b0", "b1000") if name == "super_resolved" else ("b0", "b1000", "b2500")
    assert loaded.channels == expected and not loaded.is_refined
    assert loaded.method == load_network_recipe(name).method and loaded.config.form == "patch"
    fod = fit_fod(scan, loaded, runtime=CPU, refine=loaded.is_refined)
    predicted = fod.predict(scan.forward(4))
    b0 = scan.gradients.b0_indices
    np.testing.assert_allclose(predicted[:, b0].mean(1), scan.voxels[:, b0].mean(1), rtol=1e-4)
    assert np.median(fod.quality.r_squared) > 0.6


@pytest.mark.slow
def test_a_super_resolved_network_sees_some_volumes_and_predicts_all(scan):
    adapted = train([scan], small("super_resolved"), max_steps=20)
    fod = fit_fod(scan, adapted.weights, runtime=CPU, refine=False)
    unseen = scan.voxels.copy()
    unseen[:, scan.gradients.shells[2].indices] = 0  # the shell that the network is not shown
    again = fit_fod(replace(scan, voxels=unseen), adapted.weights, runtime=CPU, refine=False)
    np.testing.assert_array_equal(fod.wm, again.wm)


@pytest.mark.slow
def test_a_cohort_trains_one_published_network(scan):
    other = replace(scan, voxels=3 * scan.voxels, responses=brighter(scan.responses, 3.0), sigma=3 * scan.sigma)
    adapted = train([scan, other], small("published"))
    first, second = (after for _, after in adapted.facts["held_out_by_scan"])
    assert first == pytest.approx(second, rel=0.3), "errors are relative to the signal of each scan"
    assert adapted.facts["method"] == "SHD-TV"


def test_patches_of_a_thinned_scan_have_all_their_neighbours():
    rng = np.random.default_rng(0)
    gradients = simulation.make_gradients(rng, {1000.0: 12}, n_b0=1)
    responses = simulation.true_responses(simulation.draw_microstructure(rng, 1), gradients)
    scan = Scan.of_volume(np.ones((30, 14, 14, 13)), np.ones((30, 14, 14), bool), gradients, responses, np.eye(4))
    thin = scan.thinned(2, side=CROP, seed=1)
    places = _places_in(thin, 3)
    near = np.pad(thin.mask, 1, constant_values=True)  # beyond the volume is zero in any scan
    assert len(places) > 500 and all(near[x : x + 3, y : y + 3, z : z + 3].all() for x, y, z in places)
    assert len(_places_in(thin, 0)) == 2 and len(_places_in(scan, 3)) == scan.mask.sum()


def test_a_file_is_a_recipe_too(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'method = "mine"\n[network]\nnside = 4\nchannels = [4, 8]\n[training]\nsteps = 7\n[loss]\nreconstruction = 2.0\n'
    )
    recipe = load_network_recipe(path)
    assert recipe.training.n_steps([5, 5]) == 14 and recipe.loss.hellinger == 0 and recipe.refinement
    assert NetworkRecipe.from_toml(path.read_text()) == load_network_recipe(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method = 'x'", r"lacks \['loss', 'network', 'training'\]"),
        ("method = 'x'\nlayers = 3", r"unknown training settings \['layers'\]"),
        ("method = 'x'\n[network]\ndepth = 3\n[training]\n[loss]", "describes no network: .*depth"),
        ("method = 'x'\n[network]\n[training]\ndecay = 'linear'\n[loss]", "expected 'cosine' or 'stepwise'"),
        ("method = 'x'\n[network]\n[training]\n[loss]\nhellinger = 1.0", "scans have no truth"),
        ("method = 'x'\n[input_volumes]\nbvalue = 1\ndirections = 2\n[network]\n[training]\n[loss]", "fed with shells"),
        ("method = ", "no TOML file"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(tmp_path, text, message):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(TrainingError, match=message):
        load_network_recipe(path)


def test_a_recipe_that_is_not_there_is_named():
    with pytest.raises(TrainingError, match="no recipe of a network at nowhere; give conditioned, published or a TOML"):
        load_network_recipe("nowhere")


@pytest.mark.slow
def test_the_published_method_learns_a_tiny_phantom(scan):
    adapted = train([scan], load_network_recipe("published"), max_steps=60)
    losses = [record["loss"] for record in adapted.facts["history"] if "loss" in record]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    fod = fit_fod(scan, adapted.weights, runtime=CPU, refine=False)
    assert fod.l_max == 18 and np.median(fod.quality.r_squared) > 0.8

"""Networks trained on scans by a recipe: the published ones are the dense oracle, and run from signal to fODF."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from shd_bids.errors import TrainingError
from shd_bids.nn.unet import UNet
from shd_bids.training.config import NetworkRecipe, load_network_recipe
from tests.nn.oracle import unet

PUBLISHED = ("published", "shd", "rt_esd", "esd", "super_resolved")


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

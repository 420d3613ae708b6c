"""Training settings: what does not fit is refused, and the shipped ones are those of the shipped weights."""

from dataclasses import replace
from importlib.resources import files

import pytest

from shd_bids.errors import TrainingError
from shd_bids.fod.weights import load_weights
from shd_bids.training.config import TrainingConfig, learning_rate

CONFIG = TrainingConfig(nside=2, channels=(8, 8), l_max=4, size=6, batch=2, steps=6, pool=4)


def test_the_shipped_weights_are_of_the_network_of_the_recipe():
    text = (files("shd_bids.training") / "recipes" / "tissue.toml").read_text()
    recipe, shipped = TrainingConfig.from_toml(text), load_weights()
    assert shipped.config == recipe.network() and shipped.l_max == recipe.l_max
    assert shipped.inputs == recipe.inputs and shipped.is_supervised


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input": "shells"}, r"give it as \[protocol\]"),
        ({"input": "raw"}, "expected 'estimates' or 'shells'"),
        ({"pool": 3}, "expected a multiple of batch"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(TrainingError, match=message):
        replace(CONFIG, **settings)


def test_learning_rate_rises_falls_and_scales_with_the_budget():
    rates = [learning_rate(s, replace(CONFIG, steps=100)) for s in range(100)]
    longer = [learning_rate(s, replace(CONFIG, steps=1000)) for s in range(1000)]
    assert max(rates) == pytest.approx(CONFIG.learning_rate) and rates[0] < rates[2] and rates[-1] < 0.01 * max(rates)
    assert rates[50] == pytest.approx(longer[500], rel=0.02)


def test_an_unknown_setting_is_refused():
    with pytest.raises(TrainingError, match=r"\['stepz'\]; known: "):
        TrainingConfig.from_toml("stepz = 3")

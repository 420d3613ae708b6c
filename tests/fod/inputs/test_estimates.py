"""Network input: it turns with the data, its scale does not matter, and the noise level is found."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag

from shd_bids import simulation
from shd_bids.boxes import grown, within
from shd_bids.fod.config import CHANNELS, InputConfig
from shd_bids.fod.inputs.averages import along_weights
from shd_bids.fod.inputs.blocks import SlabCache
from shd_bids.fod.inputs.inputs import make_inputs
from shd_bids.gradients.noise import estimate_noise
from shd_bids.gradients.table import gradient_table
from shd_bids.response.response import Response, Responses
from shd_bids.scan import Scan
from shd_bids.sphere.healpix import hemisphere, hemisphere_lookup, match

NSIDE = 4
SIGMA = 1 / 30
REACH = 4  # of the default configuration


def condition(gradients, responses, *, affine=None, sigma=SIGMA, channels=CHANNELS, dtype=torch.float32):
    """Input maps for gradients and responses, of a scan without voxels."""
    scan = Scan(
        np.zeros((0, gradients.n_volumes)),
        np.zeros((1, 1, 1), dtype=bool),
        np.eye(4) if affine is None else affine,
        gradients,
        responses,
        sigma,
    )
    return make_inputs(scan, InputConfig(channels=channels), nside=NSIDE, dtype=dtype)


def along(axes, affine):
    config = InputConfig()
    return along_weights(axes, affine, reach=config.along_reach, length=config.along_length, width=config.along_width)


@pytest.fixture(scope="module")
def scene():
    rng = np.random.default_rng(0)
    phantom = simulation.crossing_phantom(rng, size=10, angles=(60.0,))
    gradients = simulation.make_gradients(rng, {1000.0: 30, 3000.0: 60}, n_b0=4)
    micro = simulation.draw_microstructure(rng, len(phantom.bundles))
    clean = simulation.noiseless_signal(phantom, micro, gradients).reshape(-1, gradients.n_volumes)
    noisy = simulation.add_noise(clean, SIGMA, rng)
    return phantom, gradients, simulation.true_responses(micro, gradients), noisy


def test_channels_turn_with_the_image_and_its_gradients(scene):
    _, gradients, responses, voxels = scene
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # maps the HEALPix grid to itself
    turned = gradient_table(gradients.bvals, gradients.directions @ quarter.T)
    there = hemisphere_lookup(NSIDE)[match(hemisphere(NSIDE) @ quarter.T, NSIDE)]
    signal = torch.as_tensor(voxels.reshape(10, 10, 10, -1)[:4, :4, 3:6], dtype=torch.float64)
    before, after = (
        condition(g, responses, affine=affine, dtype=torch.float64)(signal)
        for g, affine in ((gradients, np.eye(4)), (turned, block_diag(quarter, 1)))
    )
    torch.testing.assert_close(after[..., there], before, rtol=1e-6, atol=1e-8)


def test_the_unit_of_the_signal_does_not_matter(scene):
    _, gradients, responses, voxels = scene

    def scaled(r: Response) -> Response:
        return Response(r.tissue, r.bvalues, r.coefficients * 700)

    other = Responses(*(scaled(t) for t in responses.tissues))
    signal = torch.as_tensor(voxels[:50], dtype=torch.float64)[:, None, None]
    plain = condition(gradients, responses, dtype=torch.float64)(signal)
    large = condition(gradients, other, sigma=SIGMA * 700, dtype=torch.float64)(signal * 700)
    torch.testing.assert_close(large, plain, rtol=1e-6, atol=1e-8)


def test_the_estimate_is_largest_along_a_single_fibre(scene):
    phantom, gradients, responses, voxels = scene
    alone = np.flatnonzero((phantom.fractions[..., 0] > 0.95).reshape(-1))
    seen = condition(gradients, responses)(torch.as_tensor(voxels[alone])[:, None, None])
    truth = phantom.directions[..., 0, :].reshape(-1, 3)[alone]
    for channel in ("wiener", "wiener_smooth", "wiener_smoother", "nonnegative", "sharp"):
        axis = hemisphere(NSIDE)[seen[CHANNELS.index(channel)].flatten(0, 2).argmax(1).numpy()]
        angle = np.degrees(np.arccos(np.abs((axis * truth).sum(1)).clip(0, 1)))
        assert np.median(angle) < 12, f"{channel} points {np.median(angle):.0f} degrees away"  # vertices: 15 apart


@pytest.mark.parametrize("channel", [c for c in CHANNELS if c.startswith(("nonnegative", "sharp"))])
def test_non_negative_estimates_are_non_negative(scene, channel):
    _, gradients, responses, voxels = scene
    seen = condition(gradients, responses)(torch.as_tensor(voxels)[:, None, None])
    assert seen[CHANNELS.index(channel)].min() >= 0


@pytest.fixture(scope="module")
def block(scene):
    """Estimates in float64, signal of a block, and a mask that leaves some of its voxels out."""
    _, gradients, responses, voxels = scene
    signal = torch.as_tensor(voxels.reshape(10, 10, 10, -1)[2:8, 1:8, 2:9].copy(), dtype=torch.float64)
    inside = torch.as_tensor(np.random.default_rng(3).random(signal.shape[:3]) < 0.8)
    return (
        condition(gradients, responses, dtype=torch.float64),
        signal,
        inside,
    )


@pytest.mark.slow
def test_channels_of_a_part_are_those_of_the_whole_block(block):
    maps, signal, inside = block
    box = (slice(REACH, REACH + 1), slice(1, 6), slice(0, 7))
    part = maps(signal[1:], inside[1:], box)  # as many planes stay before the box as averages of means reach
    torch.testing.assert_close(part, maps(signal, inside)[:, REACH + 1 : REACH + 2, 1:6], rtol=1e-9, atol=1e-12)


def test_blocks_that_keep_what_they_share_give_the_same_channels(block):
    maps, signal, inside = block
    cache, whole = SlabCache(), maps(signal, inside)
    for box in [(slice(x, x + 1), slice(0, 7), slice(0, 7)) for x in range(6)] + [
        (slice(2, 4), slice(1, 4), slice(3, 7))
    ]:
        near = grown(box, REACH, inside.shape)
        cache.corner = tuple(side.start for side in near)
        part = maps(signal[near], inside[near], within(box, near), cache)
        torch.testing.assert_close(part, whole[:, *box], rtol=1e-9, atol=1e-12)


def test_what_a_block_knows_of_the_last_is_not_made_again(block, monkeypatch):
    maps, signal, inside = block
    made = []
    estimates = type(maps)._admm_estimates
    monkeypatch.setattr(
        type(maps), "_admm_estimates", lambda self, *means: made.append(len(means[0])) or estimates(self, *means)
    )
    cache = SlabCache()
    for _ in range(2):
        maps(signal, inside, cache=cache)
    assert sum(made) == inside.sum()


def test_channels_turn_with_the_image_however_it_is_stored(block):
    maps, signal, inside = block
    stored = np.array(
        [[0, 0, -2.0, 9], [2.0, 0, 0, -4], [0, 2.0, 0, 1], [0, 0, 0, 1]]
    )  # voxel axes: y, z, and x backwards
    turned = torch.as_tensor(along(hemisphere(NSIDE), stored))[:, None]
    other = replace(maps, along=turned)(signal.flip(0).permute(1, 2, 0, 3), inside.flip(0).permute(1, 2, 0))
    torch.testing.assert_close(other.permute(0, 3, 1, 2, 4).flip(1), maps(signal, inside), rtol=1e-9, atol=1e-12)


def test_averages_along_axes_leave_what_is_the_same_everywhere(block):
    maps, signal, inside = block
    seen = maps(signal[:1, :1, :1].expand_as(signal).contiguous(), inside)
    for channel in ("sharp", "sharp_3", "sharp_5"):
        alone, averaged = (seen[CHANNELS.index(name)] for name in (channel, f"{channel}_along"))
        torch.testing.assert_close(averaged, alone, rtol=1e-9, atol=1e-12)


def test_averages_reach_along_an_axis_and_hardly_across():
    anisotropic = np.diag([1.0, 1.0, 3.0, 1.0])
    found = along(np.eye(3), anisotropic)  # x, y and z
    size = np.array([1, 1, 3]) / 3 ** (1 / 3)
    for axis, weights in enumerate(found):
        side = [2, 2, 2]
        for step in (1, 2):
            side[axis] = 2 + step
            assert weights[tuple(side)] / weights[2, 2, 2] == pytest.approx(np.exp(-((step * size[axis]) ** 2) / 8))
        across = [2, 2, 2]
        across[(axis + 1) % 3] = 3
        assert weights[tuple(across)] / weights[2, 2, 2] == pytest.approx(np.exp(-2 * size[(axis + 1) % 3] ** 2))
    np.testing.assert_allclose(found.sum(axis=(1, 2, 3)), 1)


def test_channels_are_zero_outside_the_mask(block):
    maps, signal, inside = block
    seen = maps(signal, inside)
    assert not seen[:, ~inside].any() and seen[:, inside].flatten(2).any(dim=-1).any(dim=0).all()


def test_means_leave_out_what_lies_outside_the_mask(block):
    maps, signal, inside = block
    other = torch.where(inside[..., None], signal, 7 * signal + 1)
    torch.testing.assert_close(maps(other, inside), maps(signal, inside), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("channel", "reach"), [("sharp", 0), ("sharp_3", 1), ("sharp_5", 2), ("sharp_along", 2)])
def test_a_voxel_is_averaged_with_as_many_neighbours_as_said(block, channel, reach):
    maps, signal, _ = block
    inside = torch.ones(signal.shape[:3], dtype=torch.bool)
    other = signal.clone()
    other[3, 3, 3] *= 0.5
    change = (maps(other) - maps(signal))[CHANNELS.index(channel)].abs().sum(-1) > 1e-9
    cube = torch.zeros_like(inside)
    cube[(slice(3 - reach, 4 + reach),) * 3] = True
    assert torch.equal(change, cube)


@pytest.mark.parametrize("n_directions", [20, 120])  # fewer and more volumes than half of the vertices
def test_non_negative_estimate_is_that_of_multiplicative_updates(n_directions):
    rng = np.random.default_rng(1)
    phantom = simulation.random_phantom(rng, 9)
    gradients = simulation.make_gradients(rng, {1000.0: n_directions}, n_b0=2)
    micro = simulation.draw_microstructure(rng, len(phantom.bundles))
    voxels = simulation.noiseless_signal(phantom, micro, gradients).reshape(-1, gradients.n_volumes)  # 729: two pieces
    responses = simulation.true_responses(micro, gradients)
    maps = condition(gradients, responses, sigma=1e-3, dtype=torch.float64)
    signal = torch.as_tensor(voxels, dtype=torch.float64)[:, None, None]
    found = maps(signal)[CHANNELS.index("nonnegative")].flatten(0, 2).numpy()
    h, n = torch.linalg.multi_dot(maps.isra.adjoint).numpy(), len(hemisphere(NSIDE))
    for voxel in (0, 511, 512, 728):
        y = voxels[voxel].astype(float) / maps.scale
        y = np.sqrt((y**2 - 2 * maps.sigma**2).clip(0))
        linear = maps.estimate.numpy() @ y
        f = np.append((linear[n : 2 * n].clip(0) + 0.02) * 4 * np.pi / n, linear[-2:].clip(0.02))
        for _ in range(12):
            f *= (h.T @ y) / (h.T @ h @ f).clip(1e-6)
        np.testing.assert_allclose(found[voxel], f[:n] * n / (4 * np.pi), rtol=1e-8, atol=1e-10)


def test_a_tissue_without_response_leaves_the_others_bounded(scene):
    _, _, responses, _ = scene
    gradients = simulation.make_gradients(np.random.default_rng(2), {1000.0: 30}, n_b0=2)
    shells = {t.tissue: Response(t.tissue, t.bvalues[:2], t.coefficients[:2]) for t in responses.tissues}
    maps = condition(gradients, Responses(wm=shells["wm"], gm=shells["gm"], csf=None))
    water = np.where(gradients.bvals == 0, 20.0, 1.0)[None] * maps.scale
    seen = maps(torch.as_tensor(water, dtype=torch.float32)[:, None, None])
    assert seen[CHANNELS.index("gm")].max() == 3.0


def test_a_tissue_that_is_not_fitted_has_an_empty_channel(scene):
    _, gradients, responses, voxels = scene
    without = Responses(wm=responses.wm, gm=None, csf=responses.csf)
    seen = condition(gradients, without)(torch.as_tensor(voxels)[:, None, None])
    assert torch.all(seen[CHANNELS.index("gm")] == 0)
    assert seen[CHANNELS.index("csf")].abs().max() > 0.1


@pytest.mark.parametrize("sigma", [1 / 60, 1 / 20, 1 / 8])
def test_noise_level_is_found(scene, sigma):
    phantom, gradients, _, _ = scene
    rng = np.random.default_rng(9)
    micro = simulation.draw_microstructure(rng, len(phantom.bundles))
    clean = simulation.noiseless_signal(phantom, micro, gradients)
    voxels = simulation.add_noise(clean, sigma, rng).reshape(-1, gradients.n_volumes)
    assert estimate_noise(voxels, gradients) == pytest.approx(sigma, rel=0.25)  # the noise floor flattens weak signal

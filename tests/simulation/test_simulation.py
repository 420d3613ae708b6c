"""The simulator: conservation, symmetry and known values."""

import numpy as np
import pytest

from shd_bids import simulation
from shd_bids.gradients.table import gradient_table
from shd_bids.response.forward import forward_model
from shd_bids.simulation.microstructure import Microstructure
from shd_bids.simulation.phantoms import Bundle
from shd_bids.sphere.harmonics import sh_basis

SHELLS = {1000.0: 30, 3000.0: 45}


def microstructure(n_bundles=1, *, kappa=40.0):
    return Microstructure(
        axonal=np.full(n_bundles, 0.6),
        axial=np.full(n_bundles, 1.8e-3),
        radial=np.full(n_bundles, 0.6e-3),
        kappa=np.full(n_bundles, kappa),
    )


def straight_bundle(size, *, direction=(1.0, 0.0, 0.0), radius=2.5):
    s = np.arange(-size, size, 0.25)[:, None]
    return Bundle(s * np.array(direction) + (size - 1) / 2, np.full(len(s), radius))


@pytest.mark.parametrize("seed", range(4))
def test_every_voxel_is_full(seed):
    phantom = simulation.random_phantom(np.random.default_rng(seed), 12)
    np.testing.assert_allclose(phantom.wm + phantom.gm + phantom.csf, 1.0, atol=1e-9)
    assert min(phantom.wm.min(), phantom.gm.min(), phantom.csf.min()) >= 0


def test_every_bundle_of_many_phantoms_is_a_connected_curve():
    for seed in range(300):
        for bundle in simulation.random_bundles(np.random.default_rng(seed), 10):
            steps = np.linalg.norm(np.diff(bundle.curve, axis=0), axis=1)
            assert len(bundle.curve) > 20 and steps.max() < 2.0, f"seed {seed}"


@pytest.mark.parametrize("bending", [0.0, 1.0])
def test_no_bundle_bends_unless_it_may(bending):
    bends = []
    for seed in range(8):
        for bundle in simulation.random_bundles(np.random.default_rng(seed), 8, bending=bending):
            centred = bundle.curve - bundle.curve.mean(axis=0)
            bends.append(np.linalg.svd(centred, compute_uv=False)[1] / len(centred) ** 0.5)
    assert max(bends) > 1 if bending else max(bends) < 1e-9


def test_directions_are_unit_where_there_is_a_fibre_and_zero_elsewhere():
    phantom = simulation.random_phantom(np.random.default_rng(3), 12)
    length = np.linalg.norm(phantom.directions, axis=-1)
    np.testing.assert_allclose(length, (phantom.fractions > 0).astype(float), atol=1e-9)
    assert np.all(np.diff(phantom.fractions, axis=-1) <= 0), "fibre slots are not sorted"


def test_a_seed_fixes_phantom_and_signal():
    def draw(seed):
        rng = np.random.default_rng(seed)
        phantom = simulation.random_phantom(rng, 8)
        gradients = simulation.random_gradients(rng)
        micro = simulation.draw_microstructure(rng, len(phantom.bundles))
        return simulation.add_noise(simulation.noiseless_signal(phantom, micro, gradients), 0.03, rng)

    np.testing.assert_array_equal(draw(5), draw(5))
    assert draw(5).shape != draw(6).shape or np.any(draw(5) != draw(6))


def test_signal_turns_with_the_fibres():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    directions = simulation.uniform_directions(rng, 30)
    bvals = np.full(31, 2000.0)
    bvals[0] = 0
    tables = [gradient_table(bvals, np.concatenate([np.zeros((1, 3)), d])) for d in (directions, directions @ turn.T)]
    signals = []
    for table, axis in zip(tables, (np.array([1.0, 0, 0]), turn[:, 0]), strict=True):
        phantom = simulation.build_phantom((straight_bundle(9, direction=axis),), (9, 9, 9))
        signals.append(simulation.noiseless_signal(phantom, microstructure(), table)[4, 4, 4])
    np.testing.assert_allclose(signals[0], signals[1], rtol=1e-4)


def test_attenuation_without_weighting_is_one_and_falls_along_the_fibre():
    table = simulation.attenuation_tables(microstructure(), np.array([0.0, 1000.0, 13000.0]))
    np.testing.assert_allclose(table[:, 0], 1.0, atol=1e-6)
    assert np.all(np.diff(table[0, 1]) < 0), "the signal does not fall towards the fibre axis"
    assert np.all(table[0, 2] < table[0, 1])


def test_an_undispersed_bundle_attenuates_as_its_two_compartments():
    table = simulation.attenuation_tables(microstructure(kappa=1e4), np.array([1500.0]))[0, 0]
    cosine = np.linspace(0, 1, table.size)
    expected = 0.6 * np.exp(-1500 * 1.8e-3 * cosine**2)
    expected += 0.4 * np.exp(-1500 * (0.6e-3 + 1.2e-3 * cosine**2))
    np.testing.assert_allclose(table, expected, atol=2e-3)  # kappa = 1e4 still spreads by 0.6 degrees


def test_true_response_predicts_a_single_fibre():
    rng = np.random.default_rng(1)
    gradients = simulation.make_gradients(rng, SHELLS, n_b0=2)
    phantom = simulation.build_phantom((straight_bundle(9),), (9, 9, 9))
    clean = simulation.noiseless_signal(phantom, microstructure(), gradients)[4, 4, 4]
    model = forward_model(gradients, simulation.true_responses(microstructure(), gradients), l_max=18)
    coefficients = np.zeros(model.matrix.shape[1], dtype=np.float32)
    coefficients[:190] = sh_basis(np.array([[1.0, 0, 0]]), 18)[0] * phantom.wm[4, 4, 4]
    np.testing.assert_allclose(model.matrix.numpy() @ coefficients, clean, atol=4e-3)


@pytest.mark.parametrize("n_coils", [1, 4])
def test_noise_has_the_second_moment_of_its_law(n_coils):
    rng = np.random.default_rng(2)
    noisy = simulation.add_noise(np.full((60, 60, 60), 0.5), 0.2, rng, n_coils=n_coils)
    assert np.mean(noisy.astype(float) ** 2) == pytest.approx(0.25 + 2 * n_coils * 0.04, rel=5e-3)


def test_uniform_directions_are_further_apart_than_random_ones():
    rng = np.random.default_rng(4)
    cosine = np.abs(np.einsum("id,jd->ij", *[simulation.uniform_directions(rng, 60)] * 2)) - np.eye(60)
    nearest = np.degrees(np.arccos(cosine.max(axis=1)))
    assert nearest.min() > 13, f"two of 60 directions are {nearest.min():.1f} degrees apart"  # ideal: about 16


@pytest.mark.parametrize("angle", [30.0, 60.0, 90.0])
def test_crossing_phantom_crosses_at_the_asked_angle(angle):
    phantom = simulation.crossing_phantom(np.random.default_rng(7), size=12, angles=(angle,))
    both = phantom.fractions[..., 1] > 0.1
    cosine = np.abs((phantom.directions[..., 0, :] * phantom.directions[..., 1, :]).sum(-1))[both]
    np.testing.assert_allclose(np.degrees(np.arccos(cosine)), angle, atol=0.5)


def test_csf_lies_on_one_side():
    csf = simulation.csf_side(np.random.default_rng(8), 16)
    assert csf.max() > 0.9 and csf[8, 8, 8] < 0.01
    assert np.all((csf > 0.5) <= (csf[::-1, ::-1, ::-1] < 0.5)), "there is fluid on opposite sides"


def test_random_protocols_stay_in_the_documented_range():
    for seed in range(30):
        table = simulation.random_gradients(np.random.default_rng(seed))
        weighted = table.shells[1:]
        assert 1 <= len(weighted) <= 5
        assert all(500 <= s.bvalue <= 13000 and 6 <= len(s.indices) <= 120 for s in weighted)
        assert max(len(s.indices) for s in weighted) >= 12

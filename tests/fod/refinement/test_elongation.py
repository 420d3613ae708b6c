"""Fibres that spread within a plane: known angles from exact and noisy signals, and where nothing may be said."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from shd_bids import simulation
from shd_bids.fod.fod import FOD
from shd_bids.fod.refinement.elongation import measure_elongation
from shd_bids.gradients.table import gradient_table
from shd_bids.response.forward import forward_model
from shd_bids.scan import Scan
from shd_bids.sphere.harmonics import sh_basis, sh_inverse
from shd_bids.sphere.healpix import hemisphere
from shd_bids.sphere.lobes import lobes

L_MAX = 18
SHAPE = (11, 11, 11)
CENTRE = 11**3 // 2
TOLD = 0.13  # noise where there is none: enough that one voxel would not be believed


def draw(shells):
    rng = np.random.default_rng(5)
    gradients = simulation.make_gradients(rng, shells, n_b0=3)
    return gradients, simulation.true_responses(simulation.draw_microstructure(rng, 3), gradients)


@pytest.fixture(scope="module")
def subject():
    return draw({1000.0: 30, 2500.0: 30})


@pytest.fixture(scope="module")
def poor():
    return draw({1000.0: 30})


def model_of(subject):
    """Forward model of a subject, and its white-matter signal at b=0."""
    gradients, responses = subject
    scale = float(responses.wm.coefficients[0, 0]) / np.sqrt(4 * np.pi)
    return forward_model(gradients, responses, l_max=L_MAX), scale


def fibres(directions, weights):
    """SH coefficients of axes (K, 3) as narrow as the degree allows, which the signal cannot tell from exact ones."""
    return np.asarray(weights) @ sh_basis(directions, L_MAX)


def unresolved(axis):
    """What a network answers that sees one lobe, (C,), of integral 1."""
    lobe = lobes(hemisphere(8), axis, 45.0) @ sh_inverse(hemisphere(8), L_MAX).T
    return lobe / (np.sqrt(4 * np.pi) * lobe[0])


def fod_of(seen, n):
    """The same white matter in n voxels."""
    return FOD(np.tile(seen, (n, 1)), np.zeros(n), np.zeros(n))


def pair(frame, half):
    """Two directions in the plane of the first two vectors of a frame, at an angle (degrees) to either side of the first."""
    angle = np.radians([-half, half])[:, None]
    return np.cos(angle) * frame[0] + np.sin(angle) * frame[1]


def spread_of(truth, seen, subject, *, noise=0.0, shape=SHAPE, rng=None):
    """Measure in a volume that is the same everywhere but for noise, relative to the b=0 signal; return all voxels (n, 3)."""
    model, scale = model_of(subject)
    n = int(np.prod(shape))
    white = model.matrix.double().numpy()[:, : len(truth)]
    signal = np.tile(white @ truth, (n, 1))
    if noise:
        signal += scale * noise * rng.normal(size=signal.shape)
    scan = Scan(signal, np.ones(shape, dtype=bool), np.eye(4), *subject, scale * noise)
    return measure_elongation(fod_of(seen, n), scan, scale=scale, noise=noise or TOLD)


@pytest.mark.parametrize("half", [8.0, 10.0, 13.0])
def test_the_angle_between_two_fibres_is_found(subject, frame, half):
    found = spread_of(fibres(pair(frame, half), [0.5, 0.5]), unresolved(frame[0]), subject)[CENTRE]
    np.testing.assert_allclose(np.degrees(np.linalg.norm(found)), half, atol=0.3)
    towards = found / np.linalg.norm(found)
    assert np.abs(towards @ frame[1]) > np.cos(np.radians(3))


def test_it_is_that_of_fibres_ten_degrees_aside_exactly(subject, frame):
    found = spread_of(fibres(pair(frame, 10.0), [0.5, 0.5]), unresolved(frame[0]), subject)[CENTRE]
    np.testing.assert_allclose(np.abs(found @ frame[1]), np.radians(10), rtol=1e-2)


def test_it_is_the_same_in_a_voxel_that_fibres_fill_in_part(subject, frame):
    truth, seen = fibres(pair(frame, 10.0), [0.5, 0.5]), unresolved(frame[0])
    whole, part = (spread_of(share * truth, share * seen, subject)[CENTRE] for share in (1.0, 0.6))
    np.testing.assert_allclose(np.outer(part, part), np.outer(whole, whole), atol=1e-6)


def test_it_turns_with_fibres_and_gradients(subject, frame, rng):
    gradients, responses = subject
    turn = Rotation.random(rng=rng).as_matrix()
    turned = gradient_table(gradients.bvals, gradients.directions @ turn.T), responses
    one, other = (
        spread_of(fibres(pair(f, 10.0), [0.5, 0.5]), unresolved(f[0]), s)[CENTRE]
        for f, s in ((frame, subject), (frame @ turn.T, turned))
    )
    np.testing.assert_allclose(np.abs(other @ (turn @ one)), np.linalg.norm(one) ** 2, rtol=1e-3)


@pytest.mark.parametrize("half", [0.0, 5.0, 20.0])
def test_one_fibre_and_what_lies_outside_the_range_is_left_alone(subject, frame, half):
    assert not spread_of(fibres(pair(frame, half), [0.5, 0.5]), unresolved(frame[0]), subject).any()


def test_a_round_spread_is_left_alone(subject, frame):
    around = np.concatenate([pair(frame, 12.0), pair(frame[[0, 2, 1]], 12.0)])
    assert not spread_of(fibres(around, [0.25] * 4), unresolved(frame[0]), subject).any()


def test_neighbours_together_tell_what_one_voxel_cannot(poor, frame, rng):
    truth, seen = fibres(pair(frame, 10.0), [0.5, 0.5]), unresolved(frame[0])
    alone = spread_of(truth, seen, poor, noise=1 / 12, shape=(1, 1, 1), rng=rng)
    assert not alone.any()
    together = spread_of(truth, seen, poor, noise=1 / 12, shape=(11, 11, 11), rng=rng).reshape(11, 11, 11, 3)[
        3:8, 3:8, 3:8
    ]
    size = np.degrees(np.linalg.norm(together, axis=-1))
    assert (size > 0).mean() > 0.9
    assert 7.5 < np.median(size) < 10.5


def test_what_one_voxel_tells_is_left_to_the_network(subject, frame, rng):
    truth, seen = fibres(pair(frame, 10.0), [0.5, 0.5]), unresolved(frame[0])
    assert not spread_of(truth, seen, subject, noise=0.02, rng=rng).any()


def test_noise_alone_is_hardly_ever_taken_for_a_crossing(poor, frame, rng):
    seen = unresolved(frame[0])
    found = spread_of(fibres(frame[:1], [1.0]), seen, poor, noise=1 / 12, shape=(11, 11, 11), rng=rng)
    assert found.any(axis=1).mean() < 0.01


def test_nothing_is_said_where_other_fibres_are_seen_around(subject, frame):
    truth, one, other = fibres(pair(frame, 10.0), [0.5, 0.5]), unresolved(frame[0]), unresolved(frame[1])
    assert spread_of(truth, one, subject).any()
    assert not spread_of(truth, 0.9 * one + 0.1 * other, subject).any()


def test_averages_follow_the_fibre_however_the_image_is_stored(poor, frame, rng):
    stored = np.array([[0, -2.0, 0, 5], [0, 0, 2.0, 1], [2.0, 0, 0, 0], [0, 0, 0, 1]])  # voxel axes: z, x backwards, y
    truth, seen = fibres(pair(frame, 10.0), [0.5, 0.5]), unresolved(frame[0])
    model, scale = model_of(poor)
    signal = np.tile(model.matrix.double().numpy()[:, : len(truth)] @ truth, (9, 8, 7, 1))
    signal += scale / 12 * rng.normal(size=signal.shape)
    mask = rng.random((9, 8, 7)) < 0.9

    def measured(signal, mask, affine):
        scan = Scan(signal[mask], mask, affine, *poor, scale / 12)
        found = np.zeros((*mask.shape, 3))
        found[mask] = measure_elongation(fod_of(seen, int(mask.sum())), scan, scale=scale, noise=1 / 12)
        return found

    one = measured(signal, mask, np.eye(4))
    other = measured(signal.transpose(2, 0, 1, 3)[:, ::-1], mask.transpose(2, 0, 1)[:, ::-1], stored)
    assert one.any()
    np.testing.assert_allclose(np.abs(other[:, ::-1].transpose(1, 2, 0, 3)), np.abs(one), atol=1e-5)


def test_volumes_without_white_matter_are_no_problem(subject):
    n = (int(np.prod(SHAPE)), 3)
    assert np.array_equal(spread_of(np.zeros(190), np.zeros(190), subject), np.zeros(n))

"""Intensities on one scale: gains and fields that were put in are found, shapes stay, and MRtrix3 finds the same."""

import subprocess
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from shd_bids.fod.fod import FOD
from shd_bids.fod.normalisation import normalise_fod
from shd_bids.images import scatter
from shd_bids.response.response import Response, Responses
from shd_bids.sphere.harmonics import SQRT_4PI
from tests.helpers import requires_mrtrix

SHAPE = (24, 26, 18)
BVALUES = np.array([0.0, 1000.0])


def scan(*tissues):
    """What the normalisation asks of a scan: a mask, its place and the tissues with a response."""
    responses = [Response(name, BVALUES, np.ones((2, 1))) for name in ("wm", *tissues)]
    return SimpleNamespace(mask=np.ones(SHAPE, bool), affine=np.diag([2.0, 2, 2.5, 1]), responses=Responses(*responses))


def field():
    """A bias field over the mask, geometric mean 1, from 0.6 to 1.5."""
    x, y, z = (2 * np.indices(SHAPE).reshape(3, -1).T / (np.array(SHAPE) - 1) - 1).T
    log = 0.25 * x - 0.2 * y**2 + 0.1 * x * z
    return np.exp(log - log.mean())


def brain(gain, *, outliers=0.08, balance=(1.0, 1.0, 1.0), seed=3):
    """Tissues in random shares with noise of 5 %, and voxels that hold something else."""
    rng = np.random.default_rng(seed)
    n = np.prod(SHAPE)
    total = np.exp(0.05 * rng.normal(size=n))
    total *= np.where(rng.random(n) < outliers, rng.uniform(0.1, 3, n), 1)
    shares = rng.dirichlet([0.5, 0.5, 0.3], n) * (total * gain)[:, None] * balance / SQRT_4PI
    wm = np.zeros((n, 6), np.float32)
    wm[:, 0], wm[:, 3] = shares[:, 0], 0.3 * shares[:, 0]
    return FOD(wm, shares[:, 1].astype(np.float32), shares[:, 2].astype(np.float32))


def test_errors_of_directions_are_in_the_unit_of_the_fods():
    errors = np.array([[2.0, 40.0], [1.0, 3.0], [0.5, 4.0]])
    done, found = normalise_fod(replace(brain(1.7), direction_errors=errors), scan("gm", "csf"), "global")
    np.testing.assert_allclose(done.direction_errors[1] * found.factor, errors[1])
    np.testing.assert_array_equal(done.direction_errors[[0, 2]], errors[[0, 2]])
    assert errors[1, 1] == 3.0


@pytest.mark.parametrize("gain", [0.4, 1.0, 1.7])
@pytest.mark.parametrize("mode", ["global", "bias"])
def test_a_gain_is_found(gain, mode):
    done, found = normalise_fod(brain(gain), scan("gm", "csf"), mode)
    assert found.factor == pytest.approx(gain, rel=0.01)
    assert found.field_range == pytest.approx((1.0, 1.0), abs=0.01)
    np.testing.assert_allclose(done.wm * found.factor, brain(gain).wm, rtol=0.02, atol=1e-6)


def test_the_same_subject_on_two_scanners_gets_the_same_amplitudes():
    one, two = (normalise_fod(brain(gain), scan("gm", "csf"), "global")[0] for gain in (1.0, 1.7))
    for name in ("wm", "gm", "csf"):
        np.testing.assert_allclose(getattr(two, name), getattr(one, name), rtol=1e-5, atol=1e-7)


def test_a_field_is_found_by_bias_and_left_by_global():
    known = 1.7 * field()
    one, two = (normalise_fod(brain(known), scan("gm", "csf"), mode) for mode in ("global", "bias"))
    true = brain(1.0).wm[:, 0]
    there = true > 1e-2
    left, rest = (np.log(done.wm[there, 0] / true[there]).std() for done, _ in (one, two))
    assert left == pytest.approx(np.log(field()).std(), rel=0.05)
    assert rest < 0.015
    assert two[1].field_range == pytest.approx(tuple(np.percentile(field(), (1, 99))), rel=0.02)


def test_shapes_and_fractions_stay():
    before = brain(1.7 * field())
    done, _ = normalise_fod(before, scan("gm", "csf"), "bias")
    np.testing.assert_allclose(done.fractions, before.fractions, atol=1e-6)
    there = before.wm[:, 0] > 1e-4
    np.testing.assert_allclose(done.wm[there, 3] / done.wm[there, 0], 0.3, rtol=1e-5)


def test_responses_that_do_not_fit_each_other_are_balanced():
    _, found = normalise_fod(brain(1.0, balance=(1.0, 0.8, 1.1)), scan("gm", "csf"), "global")
    assert found.balance["gm"] / found.balance["wm"] == pytest.approx(1 / 0.8, rel=0.02)
    assert found.balance["csf"] / found.balance["wm"] == pytest.approx(1 / 1.1, rel=0.02)
    assert np.prod(list(found.balance.values())) == pytest.approx(1.0)


def test_other_matter_is_left_out():
    clean, spoilt = (normalise_fod(brain(1.3, outliers=share), scan("gm", "csf"), "global")[1] for share in (0.0, 0.2))
    assert spoilt.outlier_share > clean.outlier_share
    assert spoilt.factor == pytest.approx(clean.factor, rel=0.02)


def test_white_matter_alone_is_left_as_it_is():
    before = brain(1.7)
    done, found = normalise_fod(before, scan(), "global")
    assert found is None and done is before


@requires_mrtrix
@pytest.mark.parametrize(("mode", "order"), [("global", "0"), ("bias", "3")])
def test_mrtrix_finds_the_same(tmp_path, mode, order):
    """``mtnormalise`` divides by the same field within half a percent."""
    before, subject = brain(1.7 * field()), scan("gm", "csf")
    done, _ = normalise_fod(before, subject, mode)
    words = []
    for name in ("wm", "gm", "csf"):
        values = getattr(before, name)
        volume = scatter(values if values.ndim == 2 else values[:, None], subject.mask)
        nib.save(nib.Nifti1Image(volume.astype(np.float32), subject.affine), tmp_path / f"{name}.nii.gz")
        words += [tmp_path / f"{name}.nii.gz", tmp_path / f"{name}_done.nii.gz"]
    nib.save(nib.Nifti1Image(subject.mask.astype(np.uint8), subject.affine), tmp_path / "mask.nii.gz")
    call = ["mtnormalise", "-quiet", "-order", order, "-mask", tmp_path / "mask.nii.gz", *words]
    subprocess.run([str(word) for word in call], check=True, capture_output=True)
    theirs = nib.load(tmp_path / "wm_done.nii.gz").get_fdata()[subject.mask][:, 0]
    there = before.wm[:, 0] > 1e-2
    ratio = theirs[there] / done.wm[there, 0]
    assert abs(np.log(ratio)).max() < 0.005, (ratio.min(), ratio.max())

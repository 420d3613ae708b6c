"""Weights of the streamlines of a stage: in the TRX, in the density, and of no streamlines at all."""

from pathlib import Path

import numpy as np
import pytest

from shd_bids.images import load_volume
from shd_bids.interfaces import weights as stage
from shd_bids.interfaces.base import options_input, read_json
from shd_bids.interfaces.peaks import FindPeaks
from shd_bids.interfaces.weights import WeighStreamlines
from shd_bids.options import PeakOptions
from shd_bids.tractography.density import track_density
from shd_bids.tractography.files import read_trx
from tests.interfaces.stages import ON_CPU, run
from tests.interfaces.streamlines import track


@pytest.fixture
def lobes(true_fod, tmp_path):
    """What the stage needs besides the streamlines."""
    files = {name: path for name, path in true_fod.items() if name != "vfgm_file"}
    peaks = run(FindPeaks, tmp_path / "peaks", **files, **options_input(PeakOptions()), **ON_CPU)
    own = {"peaks_file": peaks.peaks_file, "peakafd_file": peaks.peakafd_file}
    return {name: true_fod[name] for name in ("mask_file", "vfwm_file")} | own


@pytest.mark.slow
def test_weights_fit_the_lobes(true_fod, lobes, tmp_path, monkeypatch):
    """In parts as at once; the density is that of the weights, and nothing is left over."""
    tracked = track(true_fod, tmp_path / "track").tracks_file
    monkeypatch.setattr(stage, "AT_ONCE", 7)
    outputs = run(WeighStreamlines, tmp_path / "weigh", tracks_file=tracked, **lobes)
    about = read_json(tmp_path / "weigh" / "facts.json")["sidecar"]["weights"]["StreamlineWeights"]
    assert about["ProportionalityCoefficient"] > 0 and about["Misfit"] < about["MisfitUnweighted"]
    weights, lines = np.load(outputs.streamline_weights_file), read_trx(Path(tracked))
    assert len(weights) == len(lines) > 10 and weights.std() > 0 and weights.min() >= 0
    density = load_volume(Path(outputs.weighted_tdi_file))
    expected = track_density(lines, density.affine, density.shape, weights)
    np.testing.assert_allclose(density.data, expected, rtol=1e-5)
    assert not list((tmp_path / "weigh").glob("visits*"))


def test_no_streamlines_have_no_weights(true_fod, lobes, tmp_path):
    tracked = track(true_fod, tmp_path / "track", min_length=900.0, max_length=1000.0).tracks_file
    outputs = run(WeighStreamlines, tmp_path / "weigh", tracks_file=tracked, **lobes)
    assert np.load(outputs.streamline_weights_file).shape == (0,)
    about = read_json(tmp_path / "weigh" / "facts.json")["sidecar"]["weights"]["StreamlineWeights"]
    assert about["ProportionalityCoefficient"] == 0

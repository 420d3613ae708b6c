"""Peaks of the true fODF: right directions, right files."""

import json
from dataclasses import asdict, fields

import numpy as np
import pytest

from shd_bids.images import load_volume
from shd_bids.interfaces.base import options_input, read_json
from shd_bids.interfaces.peaks import FindPeaks
from shd_bids.option import option_of
from shd_bids.options import PeakOptions
from shd_bids.peaks.fibres import find_fibres
from tests.interfaces.stages import ON_CPU, run


def test_peaks_follow_the_fibres_and_the_mrtrix_layout(true_fod, tmp_path, simulated):
    phantom = simulated[2]
    options = PeakOptions(peak_max=3, peak_relative_threshold=0.2, peak_separation=25.0)
    files = {name: path for name, path in true_fod.items() if name != "vfgm_file"}
    outputs = run(FindPeaks, tmp_path / "peaks", **files, **options_input(options), **ON_CPU)
    peaks = load_volume(outputs.peaks_file, keep_negative=True).data
    assert peaks.shape[3] == 9
    alone = (phantom.fractions[..., 0] > 0.9) & (load_volume(true_fod["mask_file"]).data > 0)
    first = peaks[alone][:, :3]
    cosine = np.abs(np.sum(first * phantom.directions[alone][:, 0], axis=1)) / np.linalg.norm(first, axis=1)
    assert np.rad2deg(np.arccos(cosine.clip(max=1))).max() < 1.0
    amplitude = load_volume(outputs.peakamp_file).data
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), amplitude[alone][:, 0], rtol=1e-4)
    assert load_volume(outputs.nufo_file).data[alone].max() == 1
    density, dispersion, interval = (
        load_volume(path).data[alone]
        for path in (outputs.peakafd_file, outputs.peakdispersion_file, outputs.peakinterval_file)
    )
    assert density.shape[1] == 3 and dispersion.shape[1] == 6 and interval.shape[1] == 3
    assert (density[:, 0] > 0).all() and (density[:, 1:] == 0).all()
    assert (dispersion[:, :2] > 0).all() and (dispersion[:, 2:] == 0).all()
    assert (interval[:, 0] > 0).all() and (interval[:, 1:] == 0).all()
    np.testing.assert_allclose(load_volume(outputs.afdtotal_file).data[alone], phantom.wm[alone], rtol=0.05)
    facts = read_json(tmp_path / "peaks" / "facts.json")
    assert facts["sidecar"]["peaks"]["PeakMaximumNumber"] == 3
    assert facts["sidecar"]["peaks"]["PeakMinimumProminence"] == 0.15  # that of the fit, as the options leave it open
    assert facts["sidecar"]["peaks"]["PeakMaximumInterval"] == 45.0
    assert facts["is_threshold_automatic"]
    json.dumps(facts, allow_nan=False)


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("item", fields(PeakOptions), ids=lambda item: item.name)
def test_every_value_within_its_bounds_can_be_used(item, end):
    options = PeakOptions(**{item.name: option_of(item).bounds[end]})
    found = find_fibres(
        np.ones((1, 6)),
        options,
        wm_fraction=np.ones(1),
        csf_fraction=np.zeros(1),
        prominence=0.1,
        direction_errors=np.zeros((3, 1)),
    )
    assert found.peaks.directions.shape == (1, options.peak_max, 3)
    assert np.isfinite(found.peaks.amplitudes).all()
    if item.name not in ("peak_max", "peak_interval"):
        assert option_of(item).bounds[end] in asdict(found.rule).values()

"""Streamlines through the true fODF, in every format and figure."""

import nibabel as nib
import numpy as np
import pytest
import trx.trx_file_memmap as trx
from nipype.interfaces.base import isdefined

from shd_bids.images import load_volume
from shd_bids.interfaces.base import options_input, read_json
from shd_bids.interfaces.peaks import FindPeaks
from shd_bids.interfaces.report import DrawStreamlines
from shd_bids.interfaces.tractography import TrackStreamlines
from shd_bids.options import PeakOptions, TrackingOptions
from tests.interfaces.stages import ON_CPU, run


@pytest.fixture
def tracked_from(true_fod, tmp_path):
    """Inputs of the stage."""
    files = {name: path for name, path in true_fod.items() if name != "vfgm_file"}
    peaks = run(FindPeaks, tmp_path / "peaks", **files, **options_input(PeakOptions()), **ON_CPU)
    names = ("fod_file", "mask_file", "vfwm_file", "vfgm_file", "vfcsf_file")
    lobes = {"peaks_file": peaks.peaks_file, "peakafd_file": peaks.peakafd_file}
    return {name: true_fod[name] for name in names} | lobes


def test_streamlines_in_every_format(prepared, tracked_from, tmp_path):
    options = TrackingOptions(
        tracking_algorithm="det", seeds=1, min_length=4.0, max_length=100.0, tractogram_format=("tck", "trk")
    )
    outputs = run(TrackStreamlines, tmp_path / "track", **tracked_from, **options_input(options), **ON_CPU)
    tck, trk = (nib.streamlines.load(path).streamlines for path in outputs.tractogram_files)
    assert len(tck) == len(trk) > 0
    np.testing.assert_allclose(tck[0], trk[0], atol=1e-3)
    facts = read_json(tmp_path / "track" / "facts.json")
    assert facts["qc"]["n_streamlines"]["value"] == len(tck)
    assert facts["sidecar"]["tractography"]["StreamlineReconstructionDensity"]["AcceptedStreamlines"] == len(tck)
    weights = np.loadtxt(outputs.weights_file)
    assert weights.shape == (len(tck),) and (weights >= 0).all()
    about = facts["sidecar"]["tractography"]["StreamlineWeights"]
    assert about["ProportionalityCoefficient"] > 0 and about["Misfit"] < about["MisfitUnweighted"]
    density = load_volume(outputs.tdi_file).data
    assert 0 < density.max() <= len(tck)
    preview = np.load(outputs.preview_file)
    assert preview["counts"].sum() == len(preview["points"])
    files = {"preview_file": outputs.preview_file, "mask_file": prepared.mask_file, "b0_file": prepared.b0_file}
    figure = run(DrawStreamlines, tmp_path / "draw", **files)
    assert figure.figure_file.endswith("tractogram.png")


def test_a_small_brain_has_short_streamlines(tracked_from, tmp_path, caplog):
    """The least length that is taken is told and recorded."""
    options = TrackingOptions(tracking_algorithm="det", seeds=1)
    with caplog.at_level("INFO", logger="shd_bids"):
        run(TrackStreamlines, tmp_path / "track", **tracked_from, **options_input(options), **ON_CPU)
    criteria = read_json(tmp_path / "track" / "facts.json")["sidecar"]["tractography"]["StreamlineAcceptanceCriteria"]
    assert 0 < criteria["MinimumLength"] < 20
    assert f"shorter than {criteria['MinimumLength']:.3g} mm are dropped" in caplog.text


def test_a_trx_holds_the_weights(tracked_from, tmp_path):
    options = TrackingOptions(tracking_algorithm="det", seeds=1, min_length=4.0, max_length=100.0)
    outputs = run(TrackStreamlines, tmp_path / "track", **tracked_from, **options_input(options), **ON_CPU)
    assert not isdefined(outputs.weights_file)
    container = trx.load(outputs.tractogram_files[0])
    weights = np.ravel(container.data_per_streamline["weight"])
    assert len(weights) == len(container.streamlines) and weights.std() > 0
    container.close()


def test_few_streamlines_are_a_doubt(tracked_from, tmp_path, caplog):
    options = TrackingOptions(tracking_algorithm="det", seeds=1, min_length=900.0, max_length=1000.0)
    run(TrackStreamlines, tmp_path / "track", **tracked_from, **options_input(options), **ON_CPU)
    assert read_json(tmp_path / "track" / "facts.json")["notes"][0].startswith("only 0 streamlines from ")
    assert "only 0 streamlines from " in caplog.text

"""Streamlines through the true fODF, in every format and figure."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nipype.interfaces.base import isdefined

from shd_bids.images import load_volume
from shd_bids.interfaces.base import read_json
from shd_bids.interfaces.report import DrawStreamlines
from shd_bids.interfaces.tractography import ConvertTractogram
from shd_bids.tractography.files import read_each, read_trx
from tests.interfaces.stages import run
from tests.interfaces.streamlines import track


@pytest.mark.slow
def test_streamlines_with_density_and_figure(prepared, true_fod, tmp_path):
    outputs = track(true_fod, tmp_path / "track")
    lines = read_trx(Path(outputs.tracks_file))
    facts = read_json(tmp_path / "track" / "facts.json")
    assert facts["qc"]["n_streamlines"]["value"] == len(lines) > 0
    assert facts["sidecar"]["tractography"]["StreamlineReconstructionDensity"]["AcceptedStreamlines"] == len(lines)
    assert 0 < load_volume(outputs.tdi_file).data.max() <= len(lines)
    preview = np.load(outputs.preview_file)
    assert preview["counts"].sum() == len(preview["points"])
    files = {"preview_file": outputs.preview_file, "mask_file": prepared.mask_file, "b0_file": prepared.b0_file}
    figure = run(DrawStreamlines, tmp_path / "draw", **files)
    assert figure.figure_file.endswith("tractogram.png")


def test_every_format_holds_the_same_streamlines_and_weights(true_fod, tmp_path):
    tracked = Path(track(true_fod, tmp_path / "track").tracks_file)
    lines, weights = read_trx(tracked), tmp_path / "weights.npy"
    np.save(weights, np.arange(len(lines), dtype=np.float32) / 7)
    files = {
        "tracks_file": str(tracked),
        "streamline_weights_file": str(weights),
        "mask_file": true_fod["mask_file"],
    }
    outputs = run(ConvertTractogram, tmp_path / "convert", **files, formats=["tck", "trx", "trk"])
    tck, trk = (nib.streamlines.load(outputs.tractogram_files[k]) for k in (0, 2))
    trx = Path(outputs.tractogram_files[1])
    np.testing.assert_array_equal(read_trx(trx).get_data(), lines.get_data())
    np.testing.assert_array_equal(read_each(trx)["weight"], np.load(weights))
    np.testing.assert_allclose(tck.streamlines.get_data(), lines.get_data(), atol=1e-3)
    np.testing.assert_allclose(trk.streamlines.get_data(), lines.get_data(), atol=1e-3)
    np.testing.assert_allclose(np.loadtxt(outputs.weights_file), np.load(weights), rtol=1e-5)
    each = trk.tractogram.data_per_streamline
    np.testing.assert_array_equal(np.ravel(each["weight"]), np.load(weights))
    np.testing.assert_array_equal(np.ravel(each["length"]), read_each(tracked)["length"])
    assert "weight" not in read_each(tracked)  # the stage before is left as it is


def test_without_weights_there_is_no_text(true_fod, tmp_path):
    files = {"tracks_file": track(true_fod, tmp_path / "track").tracks_file, "mask_file": true_fod["mask_file"]}
    outputs = run(ConvertTractogram, tmp_path / "convert", **files, formats=["tck"])
    assert not isdefined(outputs.weights_file) and len(outputs.tractogram_files) == 1
    assert not (tmp_path / "convert" / "tractogram.trx").exists()


def test_a_small_brain_has_short_streamlines(true_fod, tmp_path, caplog):
    """The least length that is taken is told and recorded."""
    with caplog.at_level("INFO", logger="shd_bids"):
        track(true_fod, tmp_path / "track", min_length=None, max_length=250.0)
    criteria = read_json(tmp_path / "track" / "facts.json")["sidecar"]["tractography"]["StreamlineAcceptanceCriteria"]
    assert 0 < criteria["MinimumLength"] < 20
    assert f"shorter than {criteria['MinimumLength']:.3g} mm are dropped" in caplog.text


def test_few_streamlines_are_a_doubt(true_fod, tmp_path, caplog):
    track(true_fod, tmp_path / "track", min_length=900.0, max_length=1000.0)
    assert read_json(tmp_path / "track" / "facts.json")["notes"][0].startswith("only 0 streamlines from ")
    assert "only 0 streamlines from " in caplog.text

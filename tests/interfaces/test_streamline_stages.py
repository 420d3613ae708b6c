"""From kept fODFs, peaks and streamlines to weights, tractograms and connectomes in the data set, by the graph of a series."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from shd_bids.bids.names import expected_outputs, promised
from shd_bids.bids.parcellations import Parcellation
from shd_bids.bids.prov import stage_that_writes
from shd_bids.bids.stages import Kept, StagePlan, asked_stages
from shd_bids.images import load_volume
from shd_bids.interfaces.base import StageInterface, options_input
from shd_bids.interfaces.peaks import FindPeaks
from shd_bids.options import PeakOptions
from shd_bids.settings import Settings
from shd_bids.workflows.dwi import init_dwi_wf
from tests.bids.test_names import FACTS
from tests.bids_trees import dwi_run
from tests.interfaces.stages import ON_CPU, run
from tests.interfaces.streamlines import track

MADE = {"weights", "conversion", "connectome"}


@pytest.fixture
def series(tmp_path, true_fod):
    """A series with a parcellation of two halves."""
    mask = load_volume(Path(true_fod["mask_file"]))
    halves = 1 + (np.indices(mask.shape)[0] >= mask.shape[0] // 2)
    nib.save(nib.Nifti1Image(halves.astype(np.int16), mask.affine), tmp_path / "halves.nii.gz")
    image = tmp_path / "halves.nii.gz"
    regions = Parcellation(image=image, table=None, entities={"seg": "halves"}, uri="halves.nii.gz", n_regions=2)
    return dwi_run(tmp_path / "raw", parcellations=(regions,))


@pytest.fixture
def kept(tmp_path, prepared, true_fod):
    """The stages before, as an earlier call left them."""
    files = {name: path for name, path in true_fod.items() if name != "vfgm_file"}
    peaks = run(FindPeaks, tmp_path / "peaks", **files, **options_input(PeakOptions()), **ON_CPU)
    tracked = track(true_fod, tmp_path / "track")
    facts = tmp_path / "facts.json"
    sidecar = {name: value for name, value in FACTS.items() if name not in ("tractography", "weights")}
    content = {"stage": "before", "sidecar": sidecar, "qc": {}, "seconds": 1.0, "peak_memory_mb": 1}
    facts.write_text(json.dumps(content))
    outputs = {
        "gradients": {"mask_file": prepared.mask_file, "b0_file": prepared.b0_file},
        "response": {},
        "fod": {name: path for name, path in true_fod.items() if name.startswith("vf")},
        "peaks": {name: getattr(peaks, name) for name in ("peaks_file", "peakafd_file", "afdtotal_file")},
    }
    found = {name: Kept(files, facts) for name, files in outputs.items()}
    own = {"tracks_file": tracked.tracks_file, "tdi_file": tracked.tdi_file}
    content |= json.loads((tmp_path / "track" / "facts.json").read_text()) | {"peak_memory_mb": 1}
    (tmp_path / "tracking.json").write_text(json.dumps(content))
    return found | {"tractography": Kept(own, tmp_path / "tracking.json")}


def in_this_process(interface, arguments):
    """Call the function of a stage without a process of its own, which would tell its memory."""
    results = type(interface).function(**arguments)
    return results | {"facts": {"peak_memory_mb": 1} | results["facts"]}


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["on", "off"])
def test_every_promised_file_of_the_streamlines_is_written(tmp_path, series, kept, weights, monkeypatch):
    monkeypatch.setattr(StageInterface, "_call", in_this_process)
    settings = Settings(
        bids_dir=tmp_path,
        output_dir=tmp_path / "out",
        work_dir=tmp_path / "work",
        streamline_weights=weights,
        tractogram_format=("trx", "tck", "trk"),
    )
    plan = StagePlan({stage.name: stage.name for stage in asked_stages(series, settings)}, kept)
    workflow = init_dwi_wf(run=series, settings=settings, plan=plan, name="series_wf")
    workflow.base_dir = str(tmp_path / "work")
    workflow.run()
    places = stage_that_writes(series)
    promise = {
        path
        for path in expected_outputs(settings.output_dir, series, **promised(settings))
        if places[path.relative_to(settings.output_dir).as_posix()] in MADE
    }
    assert len(promise) > 12 and not [path for path in promise if not path.is_file()]
    assert any("fibreBundleCapacity" in path.name for path in promise) == (weights == "on")
    tractogram = json.loads(next(path for path in promise if path.name.endswith("_tractogram.json")).read_text())
    assert ("StreamlineWeights" in tractogram) == (weights == "on")
    count = np.loadtxt(next(path for path in promise if path.name.endswith("meas-streamlineCount_relmat.dense.tsv")))
    assert count.shape == (2, 2) and count.sum() > 10
    assert (settings.output_dir / "sub-01" / "figures" / "sub-01_desc-connectome_dwi.png").is_file()
    for stage in {"weights", "conversion"} & set(plan.digests):
        assert list(settings.output_dir.rglob(f"{stage}_stage.json")), stage

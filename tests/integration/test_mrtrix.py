"""MRtrix3 and the libraries of the formats read what the app wrote, and agree with it, on a piece of a real scan."""

import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from trx.trx_file_memmap import load as load_trx

from shd_bids.sphere.healpix import hemisphere
from shd_bids.tractography.connectome import BUNDLE_CAPACITY, Streamlines, assign_ends, connect
from shd_bids.tractography.files import read_each, read_trx
from shd_bids.tractography.regions import read_regions
from tests.helpers import requires_mrtrix
from tests.integration.app import MAPS, PEAKS, angles, call
from tests.phantoms import real_crop, write_head

pytestmark = [
    pytest.mark.slow,
    requires_mrtrix,
    pytest.mark.xdist_group("mrtrix"),
]  # one worker, so that the scan is fitted once

WEIGHTS = "dwi/sub-01_space-orig_tract-wholebrain_track-prob_desc-weights_tractogram.txt"
TRACKS = "dwi/sub-01_space-orig_tract-wholebrain_track-prob_tractogram"


def mrtrix(*words) -> str:
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Folder of the subject after a whole call on a piece of a real scan, whose axes are oblique and permuted."""
    root = tmp_path_factory.mktemp("real")
    signal, table, affine = real_crop()
    write_head(root / "raw", signal, table, affine=affine)
    nib.save(nib.Nifti1Image(np.ones(signal.shape[:3], np.uint8), affine), root / "mask.nii.gz")
    options = ["--mask", str(root / "mask.nii.gz"), "--fod-lmax", "18", "--peak-prominence", "0"]  # maxima as they are
    options += ["--tractogram-format", "trx", "tck", "trk"]
    assert call(root / "raw", root / "out", *options, "--seeds", "10", "--min-length", "8", level="full") == 0
    return root / "out" / "sub-01"


def test_images_lie_where_mrinfo_says(results):
    """MRtrix3 shows every image with its axes in the order and sense nearest to RAS, as nibabel's canonical form."""
    paths = sorted((results / "dwi").glob("*.nii.gz"))
    assert len(paths) > 10
    for path in paths:
        image = nib.as_closest_canonical(nib.load(path))
        assert [int(n) for n in mrtrix("mrinfo", "-size", path).split()] == list(image.shape), path.name
        theirs = np.array(mrtrix("mrinfo", "-transform", path).split(), dtype=float).reshape(4, 4)
        theirs[:3, :3] *= np.array(mrtrix("mrinfo", "-spacing", path).split(), dtype=float)[:3]
        np.testing.assert_allclose(theirs, image.affine, atol=1e-4, err_msg=path.name)


def test_peaks_are_those_of_sh2peaks(results, tmp_path):
    """Within 0.1 degree where both follow the same lobe; degree 18 is stored here, as the peaks are of that degree.

    `sh2peaks` starts from 60 directions unless told others, too few for lobes of this degree: it then misses the largest
    one of 6 % of these voxels.
    """
    fod, ours = results / MAPS.format("wm"), nib.load(results / PEAKS).get_fdata()[..., :3]
    x, y, z = hemisphere(8).T
    np.savetxt(tmp_path / "seeds.txt", np.column_stack([np.arctan2(y, x), np.arccos(z)]))
    mrtrix("sh2peaks", "-quiet", "-num", "3", "-seeds", tmp_path / "seeds.txt", fod, tmp_path / "peaks.nii.gz")
    theirs = np.nan_to_num(nib.load(tmp_path / "peaks.nii.gz").get_fdata())
    found = np.linalg.norm(ours, axis=-1) > 0
    apart = np.stack([angles(ours[found], theirs[found][:, 3 * k : 3 * k + 3]) for k in range(3)]).min(axis=0)
    assert found.mean() > 0.5
    assert np.mean(apart < 0.1) > 0.99


def test_streamlines_are_the_same_in_every_format(results):
    tck, trk = (nib.streamlines.load(f"{results / TRACKS}.{form}").streamlines for form in ("tck", "trk"))
    trx = load_trx(f"{results / TRACKS}.trx")
    count = int(mrtrix("tckinfo", "-count", f"{results / TRACKS}.tck").split("actual count in file:")[1].split()[0])
    assert len(tck) == len(trk) == len(trx.streamlines) == count > 100
    np.testing.assert_allclose(trk.get_data(), tck.get_data(), atol=1e-3)
    np.testing.assert_array_equal(trx.streamlines.get_data(), tck.get_data())
    trx.close()


def test_density_is_that_of_tckmap(results, tmp_path):
    ours = results / MAPS.format("tdi")
    mrtrix("tckmap", "-quiet", "-template", ours, f"{results / TRACKS}.tck", tmp_path / "tdi.nii.gz")
    assert correlation(nib.load(ours).get_fdata(), nib.load(tmp_path / "tdi.nii.gz").get_fdata()) > 0.99


def test_tcksift2_takes_streamlines_and_fod(results, tmp_path):
    """Its weights and ours agree on which streamlines stand for more fibres."""
    mrtrix("tcksift2", "-quiet", f"{results / TRACKS}.tck", results / MAPS.format("wm"), tmp_path / "theirs.txt")
    theirs, ours = np.loadtxt(tmp_path / "theirs.txt"), np.loadtxt(results / WEIGHTS)
    assert theirs.shape == ours.shape and (ours >= 0).all()
    assert correlation(np.log(theirs + 1e-3), np.log(ours + 1e-3)) > 0.2


@pytest.mark.parametrize("radius", [0, 4])
def test_connectome_is_that_of_tck2connectome(results, tmp_path, radius):
    """With our weights, on labels in blocks with gaps: the same sums, but for ends on the border of a voxel."""
    reference = nib.load(results / MAPS.format("vfwm"))
    blocks = np.tensordot([4, 2, 1], np.indices(reference.shape) // 5 % 2, 1) + 1
    blocks[np.indices(reference.shape).sum(axis=0) % 3 == 0] = 0
    nib.save(nib.Nifti1Image(blocks.astype(np.int16), reference.affine), tmp_path / "labels.nii.gz")
    search = ["-assignment_radial_search", radius] if radius else ["-assignment_end_voxels"]
    words = ["-tck_weights_in", results / WEIGHTS, "-symmetric", *search]
    mrtrix(
        "tck2connectome", "-quiet", f"{results / TRACKS}.tck", tmp_path / "labels.nii.gz", tmp_path / "c.csv", *words
    )
    theirs = np.loadtxt(tmp_path / "c.csv", delimiter=",")
    regions = read_regions(tmp_path / "labels.nii.gz", None)
    trx = Path(f"{results / TRACKS}.trx")
    lines, each = read_trx(trx), read_each(trx)
    ends = np.array([[line[0], line[-1]] for line in lines])
    streamlines = Streamlines(ends, each["length"], each["weight"], {})
    ours = connect(streamlines, assign_ends(ends, regions, radius=radius), regions)[BUNDLE_CAPACITY]
    assert np.abs(ours - theirs).sum() < 0.01 * theirs.sum()


def test_weighted_density_is_that_of_tckmap(results, tmp_path):
    ours = results / MAPS.format("tdi_desc-weighted")
    words = ["-tck_weights_in", results / WEIGHTS, "-template", ours]
    mrtrix("tckmap", "-quiet", *words, f"{results / TRACKS}.tck", tmp_path / "tdi.nii.gz")
    assert (
        correlation(nib.load(ours).get_fdata(), nib.load(tmp_path / "tdi.nii.gz").get_fdata()) > 0.95
    )  # a few heavy streamlines that touch a corner weigh much


def test_exports_for_tractseg_and_bundleparc(results, tmp_path):
    """Nine channels of peaks; degree 8 in the order and the strides that are asked for."""
    mrtrix("mrconvert", "-quiet", results / PEAKS, "-coord", "3", "0:8", tmp_path / "peaks.nii.gz")
    peaks = nib.load(tmp_path / "peaks.nii.gz")
    assert peaks.shape[3] == 9
    words = ["-coord", "3", "0:44", "-strides", "-1,2,3,4"]
    mrtrix("mrconvert", "-quiet", results / MAPS.format("wm"), *words, tmp_path / "fod8.nii.gz")
    fod = nib.load(tmp_path / "fod8.nii.gz")
    assert fod.shape[3] == 45 and nib.aff2axcodes(fod.affine) == ("L", "A", "S")


@pytest.mark.parametrize("algorithm", ["iFOD2", "SD_STREAM"])
def test_tckgen_follows_the_same_tracts(results, tmp_path, algorithm):
    """Another program, seeded alike, goes through the same voxels as ours, and not through those of a flipped head."""
    ours, seeds = results / MAPS.format("tdi"), results / MAPS.format("vfwm")
    words = ["-algorithm", algorithm, "-seed_image", seeds, "-select", "3000", "-minlength", "8", "-nthreads", "0"]
    mrtrix("tckgen", "-quiet", *words, results / MAPS.format("wm"), tmp_path / "theirs.tck")
    mrtrix("tckmap", "-quiet", "-template", ours, tmp_path / "theirs.tck", tmp_path / "tdi.nii.gz")
    density, other = nib.load(ours).get_fdata(), nib.load(tmp_path / "tdi.nii.gz").get_fdata()
    flipped = max(correlation(np.flip(density, axis), other) for axis in range(3))
    assert correlation(density, other) > max(0.75, flipped + 0.1)  # measured: 0.94 and 0.83, flipped 0.59 and 0.62


def correlation(a, b) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])

"""NIfTI in and out, masks, and the checks that belong to them."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from shd_bids import nifti as nifti_files
from shd_bids.errors import InputError, OutputError
from shd_bids.images import (
    check_signal,
    gather,
    load_mask,
    load_volume,
    mask_notes,
    read_mask,
    same_grid,
    save_volume,
    scatter,
    signal_problem,
)

AFFINE = np.array([[-2.0, 0.1, 0, 90], [0.1, 1.9, -0.6, -120], [0, 0.6, 2.4, -70], [0, 0, 0, 1]])
OBLIQUE = np.array([[-2.0, 0, 0, 90], [0, 1.6, -1.8, -120], [0, 1.2, 2.4, -70], [0, 0, 0, 1]])


def nifti(path, data, affine=OBLIQUE):
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


@pytest.fixture
def dwi(tmp_path, rng):
    return nifti(tmp_path / "dwi.nii.gz", rng.integers(1, 900, (7, 6, 5, 4)).astype(np.int16))


# --- laws


def test_scatter_undoes_gather(rng):
    volume = rng.normal(size=(5, 4, 3, 2))
    mask = rng.random((5, 4, 3)) > 0.5
    again = scatter(gather(volume, mask), mask)
    np.testing.assert_array_equal(again[mask], volume[mask])
    np.testing.assert_array_equal(again[~mask], 0)
    np.testing.assert_array_equal(np.argwhere(scatter(np.arange(mask.sum()) == 3, mask))[0], np.argwhere(mask)[3])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_what_is_saved_is_loaded(tmp_path, rng, suffix):
    data = rng.normal(size=(4, 5, 6, 3)).astype(np.float32)
    save_volume(tmp_path / f"out{suffix}", data, OBLIQUE)
    again = load_volume(tmp_path / f"out{suffix}", keep_negative=True)
    np.testing.assert_array_equal(again.data, data)
    np.testing.assert_allclose(again.affine, OBLIQUE, atol=1e-5)
    assert again.data.dtype == np.float32
    np.testing.assert_allclose(again.voxel_size, [2, 2, 3], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, ">i2", np.int32, np.float64])
def test_volumes_are_read_as_nibabel_reads_them(tmp_path, rng, dtype, monkeypatch):
    """Scaled integers of either byte order, in blocks that do not divide the number of volumes."""
    image = nib.Nifti1Image(rng.integers(1, 90, (4, 5, 6, 7)).astype(dtype), OBLIQUE)
    image.header.set_slope_inter(0.25, 3)
    image.header.set_data_dtype(dtype)
    nib.save(image, tmp_path / "x.nii.gz")
    monkeypatch.setattr(nifti_files, "BLOCK_BYTES", 3 * 4 * 5 * 6 * np.dtype(dtype).itemsize)
    volume = load_volume(tmp_path / "x.nii.gz")
    np.testing.assert_array_equal(volume.data, nib.load(tmp_path / "x.nii.gz").get_fdata(dtype=np.float32))
    assert volume.data.flags.c_contiguous


def test_the_same_data_give_the_same_bytes(tmp_path, rng):
    data = rng.normal(size=(4, 5, 6))
    for name in ("a", "b"):
        save_volume(tmp_path / name / "x.nii.gz", data, OBLIQUE)
    assert (tmp_path / "a" / "x.nii.gz").read_bytes() == (tmp_path / "b" / "x.nii.gz").read_bytes()


# --- headers


def test_an_integer_reference_does_not_quantise_and_its_codes_are_kept(tmp_path, dwi):
    reference = load_volume(dwi).header
    reference["sform_code"], reference["qform_code"] = 3, 1
    reference["scl_slope"] = 7
    save_volume(tmp_path / "out.nii.gz", np.full((7, 6, 5), 0.28209), OBLIQUE, reference_header=reference)
    header = nib.load(tmp_path / "out.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (3, 1)
    assert header.get_data_dtype() == np.float32
    assert header.get_xyzt_units()[0] == "mm"
    assert load_volume(tmp_path / "out.nii.gz").data[0, 0, 0] == np.float32(0.28209)


def test_a_qform_that_cannot_hold_the_affine_is_marked_so(tmp_path):
    """A quaternion has no shear; with a code a reader may prefer it and see another head."""
    save_volume(tmp_path / "sheared.nii", np.ones((20, 20, 20)), AFFINE)
    image = nib.load(tmp_path / "sheared.nii")
    assert int(image.header["qform_code"]) == 0
    assert int(image.header["sform_code"]) == 1
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)


def test_header_without_orientation_is_noted(tmp_path):
    image = nib.Nifti1Image(np.ones((4, 4, 4), np.float32), None)
    nib.save(image, tmp_path / "x.nii")
    assert "neither sform nor qform" in load_volume(tmp_path / "x.nii").notes[0]


def test_disagreeing_sform_and_qform_are_noted(tmp_path):
    image = nib.Nifti1Image(np.ones((20, 20, 20), np.float32), OBLIQUE)
    image.set_qform(np.diag([2.0, 2, 3, 1]), code=1)
    nib.save(image, tmp_path / "x.nii")
    assert "disagree" in load_volume(tmp_path / "x.nii").notes[0]


@pytest.mark.parametrize(("unit", "scale"), [("meter", 1e-3), ("mm", 1), ("micron", 1e3), ("unknown", 1)])
def test_the_unit_of_the_header_is_read(tmp_path, unit, scale):
    image = nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.diag([2 * scale, 2 * scale, 3 * scale, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "x.nii")
    np.testing.assert_allclose(load_volume(tmp_path / "x.nii").voxel_size, [2, 2, 3], rtol=1e-6)


@pytest.mark.parametrize("size", [0.002, 2000])
def test_voxels_of_no_scanner_are_refused(tmp_path, size):
    path = nifti(tmp_path / "x.nii", np.ones((4, 4, 4), np.float32), np.diag([size, size, size, 1]))
    with pytest.raises(InputError, match=r"voxels of .* mm, expected 0.01 to 30 mm"):
        load_volume(path)


# --- bad files


def truncated_gzip(path, dwi):
    path.write_bytes(dwi.read_bytes()[:-60])


def truncated(path, dwi):
    path.write_bytes(gzip.decompress(dwi.read_bytes())[:-100])


def flipped_bit(path, dwi):
    """One bit of a voxel in a stream stored without compression, which only the checksum shows."""
    image = nib.Nifti1Image(np.full((12, 12, 12), 300, np.int16), np.eye(4))
    content = bytearray(gzip.compress(image.to_bytes(), compresslevel=0))
    content[-20] ^= 1
    path.write_bytes(content)


def wrong_length(path, dwi):
    content = bytearray(dwi.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def text(path, dwi):
    path.write_text("this is not an image\n" * 50)


def empty(path, dwi):
    path.touch()


def five_dimensions(path, dwi):
    nifti(path, np.ones((3, 3, 3, 2, 2), np.float32))


def two_dimensions(path, dwi):
    nifti(path, np.ones((3, 3), np.float32))


def complex_numbers(path, dwi):
    nifti(path, np.ones((3, 3, 3), np.complex64))


def singular_affine(path, dwi):
    content = bytearray(nib.Nifti1Image(np.ones((3, 3, 3), np.float32), np.eye(4)).to_bytes())
    content[280:296] = bytes(16)  # srow_x of the NIfTI-1 header; nibabel itself would not write it
    path.write_bytes(content)


def endless_offset(path, dwi):
    content = bytearray(dwi.read_bytes() if dwi.suffix == ".nii" else gzip.decompress(dwi.read_bytes()))
    content[108:112] = np.float32(np.inf).tobytes()  # vox_offset
    path.write_bytes(content)


def far_offset(path, dwi):
    content = bytearray(nib.Nifti1Image(np.ones((3, 3, 3), np.float32), np.eye(4)).to_bytes())
    content[108:112] = np.float32(1e30).tobytes()  # vox_offset
    path.write_bytes(content)


def negative_dimension(path, dwi):
    content = bytearray(nib.Nifti1Image(np.ones((3, 3, 3), np.float32), np.eye(4)).to_bytes())
    content[42:44] = np.int16(-3).tobytes()  # dim[1]
    path.write_bytes(content)


def absent(path, dwi):
    pass


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (truncated_gzip, "x.nii.gz", "damaged or truncated"),
        (truncated, "x.nii", "damaged or truncated"),
        (flipped_bit, "x.nii.gz", "damaged or truncated .*CRC"),
        (wrong_length, "x.nii.gz", "damaged or truncated .*length"),
        (text, "x.nii", "not a NIfTI image"),
        (text, "x.nii.gz", "not a NIfTI image|damaged"),
        (empty, "x.nii.gz", "not a NIfTI image|damaged"),
        (five_dimensions, "x.nii", "5 dimensions .*expected 3 or 4"),
        (two_dimensions, "x.nii", "2 dimensions"),
        (complex_numbers, "x.nii", "complex64, expected real numbers"),
        (singular_affine, "x.nii", "affine is singular"),
        (endless_offset, "x.nii", "not a NIfTI image"),
        (far_offset, "x.nii", "damaged or truncated"),
        (negative_dimension, "x.nii", "dimensions"),
        (absent, "x.nii", "no such file"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_names_it(tmp_path, dwi, make, name, message):
    path = tmp_path / name
    make(path, dwi)
    with pytest.raises(InputError, match=message) as caught:
        load_volume(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_trailing_axes_of_length_one_are_dropped(tmp_path):
    path = nifti(tmp_path / "x.nii", np.ones((3, 4, 5, 1, 1), np.float32))
    assert load_volume(path).shape == (3, 4, 5)
    with pytest.raises(InputError, match="expected 4 dimensions"):
        load_volume(path, n_dims=(4,))


# --- bad values


def test_values_no_signal_can_have_are_set_to_zero_and_counted(tmp_path):
    data = np.full((4, 4, 4, 5), 10, np.float32)
    data[0, 0, 0, 0] = np.nan
    data[0, 0, 0, 1:3] = np.inf, -np.inf
    data[1, 2, 3, :4] = -1
    volume = load_volume(nifti(tmp_path / "x.nii", data))
    assert volume.n_repaired == {"nan": 1, "inf": 2, "negative": 4}
    assert volume.repaired[0, 0, 0] == 3
    assert volume.repaired[1, 2, 3] == 4
    assert volume.repaired.sum() == 7
    assert volume.data.min() == 0
    assert np.isfinite(volume.data).all()
    assert load_volume(tmp_path / "x.nii", keep_negative=True).data.min() == -1


@pytest.mark.parametrize(("n_bad", "verdict"), [(0, None), (1, "1.6% of the values"), (14, "error")])
def test_bad_values_inside_the_mask_are_noted_or_refused(tmp_path, n_bad, verdict):
    data = np.full((8, 4, 4), 10, np.float32)
    data.reshape(-1)[:n_bad] = np.nan
    mask = np.zeros(data.shape, bool)
    mask[:4] = True
    volume = load_volume(nifti(tmp_path / "x.nii", data))
    if verdict == "error":
        with pytest.raises(InputError, match="22% of the values inside the mask are not usable"):
            check_signal(volume, mask)
    else:
        assert [verdict in note for note in check_signal(volume, mask)][:1] == ([True] if verdict else [])
    assert check_signal(volume, ~mask) == ()


def test_an_image_that_is_zero_in_the_mask_is_refused(tmp_path):
    volume = load_volume(nifti(tmp_path / "x.nii", np.zeros((4, 4, 4, 2), np.float32)))
    with pytest.raises(InputError, match="zero everywhere inside the mask"):
        check_signal(volume, np.ones((4, 4, 4), bool))


# --- writing


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e12])
def test_values_of_no_signal_are_told(tmp_path, scale):
    volume = load_volume(nifti(tmp_path / "x.nii", np.full((4, 4, 4, 2), scale, np.float32)))
    assert bool(signal_problem(volume)) == (scale != 1)


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(image, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", fail)
    with pytest.raises(OutputError, match=r"out.nii.gz: cannot be written \(No space left on device\)"):
        save_volume(tmp_path / "out.nii.gz", np.ones((2, 2, 2)), np.eye(4))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        save_volume(tmp_path / "file" / "out.nii.gz", np.ones((2, 2, 2)), np.eye(4))


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"\.nii or \.nii\.gz"):
        save_volume(tmp_path / "out.mif", np.ones((2, 2, 2)), np.eye(4))


# --- grids and masks


@pytest.mark.parametrize("edge", [0.1, 2.0])
def test_same_grid_forgives_a_small_share_of_a_voxel_but_not_a_shift(edge):
    first = nib.Nifti1Image(np.ones((7, 6, 5), np.float32), np.diag([edge, edge, edge, 1]))
    for shift, expected in ((0.001, True), (0.025, True), (0.05, False)):
        moved = first.affine.copy()
        moved[0, 3] += shift * edge
        assert same_grid(first, nib.Nifti1Image(np.ones((7, 6, 5), np.float32), moved)) is expected


def test_rounding_of_an_oblique_header_leaves_the_grid_the_same(tmp_path):
    image = nib.Nifti1Image(np.ones((60, 50, 40), np.uint8), OBLIQUE @ np.diag([1.013, 0.997, 1.001, 1]))
    by_quaternion = nib.Nifti1Image(np.ones((60, 50, 40), np.uint8), image.affine)
    by_quaternion.set_sform(None, 0)
    by_quaternion.set_qform(image.affine, 1)
    nib.save(by_quaternion, tmp_path / "qform.nii")
    nifti(tmp_path / "digits.nii", np.ones((60, 50, 40), np.uint8), image.affine.round(4))
    for name in ("qform.nii", "digits.nii"):
        assert load_mask(tmp_path / name, image).all()


def test_masks_are_read_on_the_grid_of_the_image(tmp_path, dwi, rng):
    image = load_volume(dwi)
    truth = rng.random((7, 6, 5)) > 0.5
    np.testing.assert_array_equal(load_mask(nifti(tmp_path / "m.nii", truth.astype(np.uint8)), image), truth)
    np.testing.assert_array_equal(load_mask(nifti(tmp_path / "m.nii", 255.0 * truth), image), truth)
    probability = np.where(truth, 0.8, 0.2).astype(np.float32)
    np.testing.assert_array_equal(load_mask(nifti(tmp_path / "m.nii", probability), image), truth)


def test_a_fractional_mask_is_cut_at_half_whatever_interpolation_did_to_it(tmp_path, dwi, rng):
    image = load_volume(dwi)
    truth = rng.random((7, 6, 5)) > 0.5
    overshoot = np.where(truth, rng.uniform(0.51, 1.3, truth.shape), rng.uniform(-0.1, 0.49, truth.shape))
    mask, (note,) = read_mask(nifti(tmp_path / "m.nii", overshoot.astype(np.float32)), image)
    np.testing.assert_array_equal(mask, truth)
    assert f"probability map and cut at 0.5: {truth.sum()} voxels" in note
    blurred = np.where(truth, 1.000001, 0.3).astype(np.float32)
    np.testing.assert_array_equal(load_mask(nifti(tmp_path / "m.nii", blurred), image), truth)


@pytest.mark.parametrize("inside", [1.000001, 0.99999, 255.00002, 3])
def test_a_mask_of_whole_numbers_is_not_called_fractional(tmp_path, dwi, rng, inside):
    truth = rng.random((7, 6, 5)) > 0.5
    mask, notes = read_mask(nifti(tmp_path / "m.nii", (inside * truth).astype(np.float32)), load_volume(dwi))
    np.testing.assert_array_equal(mask, truth)
    assert notes == ()


@pytest.mark.parametrize(
    ("data", "affine", "message"),
    [
        (np.linspace(0, 240, 210, dtype=np.float32).reshape(7, 6, 5), OBLIQUE, "fractional values up to 240"),
        (np.linspace(0, 1500, 210, dtype=np.float32).reshape(7, 6, 5), OBLIQUE, "fractional values up to 1500"),
        (np.zeros((7, 6, 5), np.uint8), OBLIQUE, "mask is empty"),
        (np.full((7, 6, 5), np.nan, np.float32), OBLIQUE, "mask is empty"),
        (np.ones((7, 6, 4), np.uint8), OBLIQUE, r"\(7, 6, 4\) voxels, expected \(7, 6, 5\)"),
        (np.ones((7, 6, 5), np.uint8), np.diag([2.0, 2, 3, 1]), "another position or orientation"),
        (np.ones((7, 6, 5, 2), np.uint8), OBLIQUE, "4 dimensions"),
    ],
)
def test_a_mask_that_cannot_serve_is_refused(tmp_path, dwi, data, affine, message):
    with pytest.raises(InputError, match=message):
        load_mask(nifti(tmp_path / "m.nii", data, affine), load_volume(dwi))


def test_unusual_masks_are_noted():
    mask = np.zeros((10, 10, 10), bool)
    mask[:4] = True
    b0 = np.where(mask, 100.0, 1.0)
    assert mask_notes(mask, b0) == ()
    assert "darker inside the mask" in mask_notes(~mask, b0)[-1]
    assert "100.0%" in mask_notes(np.ones_like(mask), b0)[0]
    assert "0.0%" in mask_notes(np.zeros_like(mask), b0)[0]


def test_labels_are_taken_as_inside_and_told(tmp_path, dwi, rng):
    labels = nifti(tmp_path / "m.nii", rng.integers(0, 9, (7, 6, 5)).astype(np.int16))
    mask, (note,) = read_mask(labels, load_volume(dwi))
    assert f"8 different whole numbers from 1 to 8, all taken as inside: {mask.sum()} voxels" in note

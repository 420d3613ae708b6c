"""Series: their gradients, masks and metadata, and every problem of the files in one call."""

import gzip
import json

import numpy as np
import pytest

from shd_bids.bids.collect import collect_study
from shd_bids.bids.run import DWIRun
from shd_bids.errors import InputError
from shd_bids.settings import Settings
from tests.bids_trees import (
    AFFINE,
    SHAPE,
    collect,
    keys,
    raw_dataset,
    write_description,
    write_dwi,
    write_gradients,
    write_image,
    write_mask,
)


def test_a_run_survives_json(raw):
    write_description(raw / "derivatives" / "m", pipeline="m")
    write_mask(raw / "derivatives" / "m", "sub-01_desc-brain_mask")
    (run,) = collect(raw, derivatives={"m": raw / "derivatives" / "m"})
    assert DWIRun.from_dict(json.loads(json.dumps(run.to_dict()))) == run


def test_one_series_with_all_that_belongs_to_it(raw):
    (raw / "dwi.json").write_text('{"EchoTime": 1, "Manufacturer": "x"}')
    (raw / "sub-01" / "dwi" / "sub-01_dwi.json").write_text('{"EchoTime": 2}')
    (run,) = collect(raw)
    assert (run.subject, run.session, run.prefix, run.key, run.space) == ("01", None, "sub-01", "sub_01", "orig")
    assert (run.bval.name, run.bvec.name, run.grad_b, run.mask) == ("sub-01_dwi.bval", "sub-01_dwi.bvec", None, None)
    assert run.sidecar == {"EchoTime": 2, "Manufacturer": "x"}
    assert run.source_uri == "bids:raw:sub-01/dwi/sub-01_dwi.nii.gz"
    assert run.links == {"raw": raw}
    assert (run.shape, run.shells, run.n_mask) == ((*SHAPE, 14), ((0.0, 2), (1000.0, 12)), None)
    assert "mask will be estimated" in " ".join(run.notes)


def test_every_source_entity_counts_and_zeros_stay(tmp_path):
    names = ["sub-01_ses-b_acq-x_dir-AP_run-01_dwi", "sub-01_ses-b_acq-x_dir-AP_run-02_dwi", "sub-02_dwi"]
    root = raw_dataset(tmp_path / "raw", *names)
    assert keys(root) == [name.removesuffix("_dwi") for name in names]
    assert collect(root)[0].entities["run"] == "01"


def test_gradients_are_inherited_but_not_from_names_with_more_entities(tmp_path):
    root = write_description(tmp_path / "raw")
    write_dwi(root, "sub-01_dwi", gradients=False)
    write_gradients(root / "sub-01" / "dwi" / "sub-01_acq-other_dwi")
    with pytest.raises(InputError, match=r"no \.bval and no \.bvec"):
        collect(root)
    write_gradients(root / "dwi", bvalue=2000)
    (run,) = collect(root)
    assert run.bval == root / "dwi.bval"
    write_gradients(root / "sub-01" / "sub-01_dwi", bvalue=3000)
    (run,) = collect(root)
    assert run.bvec == root / "sub-01" / "sub-01_dwi.bvec"


def test_all_problems_of_all_series_are_told_together(tmp_path):
    root = raw_dataset(tmp_path / "raw", "sub-01_dwi", "sub-02_dwi", "sub-03_dwi")
    (root / "sub-01" / "dwi" / "sub-01_dwi.bval").unlink()
    (root / "sub-02" / "dwi" / "sub-02_dwi.bvec").unlink()
    with pytest.raises(InputError) as caught:
        collect(root)
    assert len(caught.value.problems) == 2
    assert "sub-01" in caught.value.problems[0]
    assert "sub-02" in caught.value.problems[1]


def test_wrong_counts_of_several_series_are_told_with_what_to_do(tmp_path):
    """Also where so few values are left that the image could be taken for one without diffusion weighting."""
    root = raw_dataset(tmp_path / "raw", "sub-01_dir-AP_dwi", "sub-01_dir-PA_dwi", "sub-02_dwi")
    for name, n_values in (("sub-01/dwi/sub-01_dir-PA_dwi", 4), ("sub-02/dwi/sub-02_dwi", 15)):
        (root / f"{name}.bval").write_text(" ".join(["0", "0", *["1000"] * (n_values - 2)]))
    with pytest.raises(InputError) as caught:
        collect(root)
    first, second = caught.value.problems
    assert "sub-01_dir-PA_dwi.bval: 4 b-values, expected 14, one per volume" in first and "convert" in first
    assert "sub-02_dwi.bval: 15 b-values, expected 14, one per volume" in second and "convert" in second


def _stem(path):
    return path.with_name(path.name.removesuffix(".nii.gz"))


def _wrong_count(path):
    write_gradients(_stem(path), n_weighted=11)


def _no_b0(path):
    write_gradients(_stem(path), n_b0=0, n_weighted=14)


def _nan(path):
    write_image(path, np.full((*SHAPE, 14), np.nan, np.float32))


def _truncated(path):
    path.write_bytes(path.read_bytes()[:-40])


def _truncated_inside(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1000]))


def _not_an_image(path):
    path.write_text("hello")


def _three_dimensions(path):
    write_image(path, np.ones(SHAPE, np.int16))


def _bad_text(path):
    _stem(path).with_suffix(".bval").write_text("0 0 a b")


def test_damage_of_every_kind_is_told_in_one_call_and_names_its_series(tmp_path):
    damages = [_wrong_count, _no_b0, _nan, _truncated, _truncated_inside, _not_an_image, _three_dimensions, _bad_text]
    names = [f"sub-{number}_dwi" for number in range(len(damages))]
    root = raw_dataset(tmp_path / "raw", *names, "sub-good_dwi")
    for name, damage in zip(names, damages, strict=True):
        damage(root / name.removesuffix("_dwi") / "dwi" / f"{name}.nii.gz")
    with pytest.raises(InputError) as caught:
        collect(root)
    assert caught.value.exit_code == 65
    told = {name: [problem for problem in caught.value.problems if name in problem] for name in [*names, "sub-good"]}
    assert all(told[name] for name in names)
    assert not told["sub-good"]
    assert sum(map(len, told.values())) == len(caught.value.problems)
    assert not any("\n" in problem for problem in caught.value.problems)
    assert "no b=0" in " ".join(told["sub-1_dwi"])


class TestMask:
    def test_given_wins(self, raw, tmp_path):
        mask = write_mask(tmp_path, "sub-x_mask")
        write_mask(raw, "sub-01_desc-brain_mask")
        (run,) = collect(raw, mask=mask)
        assert (run.mask, run.mask_origin, run.n_mask) == (mask, "given", 4**3)

    def test_derivative_on_the_grid(self, raw, tmp_path):
        masks = write_description(tmp_path / "masks", pipeline="bet")
        path = write_mask(masks, "sub-01_desc-brain_mask")
        (run,) = collect(raw, derivatives={"bet": masks})
        assert (run.mask, run.mask_origin) == (path, "derivative")
        assert run.mask_uri == "bids:bet:sub-01/dwi/sub-01_desc-brain_mask.nii.gz"
        assert run.links == {"raw": raw, "bet": masks}

    def test_off_grid_is_told_and_never_replaced(self, raw):
        write_mask(raw, "sub-01_desc-brain_mask", shape=(5, 6, 6))
        with pytest.raises(InputError, match=r"\(5, 6, 6\) voxels, expected \(6, 6, 6\).*--mask"):
            collect(raw)

    def test_off_grid_of_another_space_is_told(self, tmp_path):
        root = write_description(tmp_path / "prep", pipeline="prep")
        write_dwi(root, "sub-01_space-T1w_desc-preproc_dwi")
        write_mask(root, "sub-01_desc-brain_mask", shape=(5, 6, 6))
        (run,) = collect(root)
        assert run.mask is None
        assert "of another space, is not on the grid" in " ".join(run.notes)

    def test_a_small_share_of_a_voxel_off_is_on_the_grid(self, raw):
        path = write_mask(raw, "sub-01_desc-brain_mask")
        moved = AFFINE.copy()
        moved[:3, 3] += 0.002
        write_image(path, np.ones(SHAPE, np.uint8), moved)
        (run,) = collect(raw)
        assert (run.mask, run.mask_origin) == (path, "derivative")

    def test_a_fractional_one_is_told(self, raw):
        path = write_mask(raw, "sub-01_desc-brain_mask")
        write_image(path, np.linspace(0, 1, 216, dtype=np.float32).reshape(SHAPE))
        (run,) = collect(raw)
        assert run.n_mask == 108
        assert "cut at 0.5: 108 voxels" in " ".join(run.notes)

    def test_the_most_specific_one_that_fits(self, tmp_path):
        root = raw_dataset(tmp_path / "raw", "sub-01_acq-x_run-1_dwi")
        for name in ("sub-01", "sub-01_acq-x", "sub-01_acq-y", "sub-01_acq-x_run-2"):
            write_mask(root, f"{name}_desc-brain_mask")
        (run,) = collect(root)
        assert run.mask.name == "sub-01_acq-x_desc-brain_mask.nii.gz"

    def test_of_another_session_does_not_fit(self, tmp_path):
        root = raw_dataset(tmp_path / "raw", "sub-01_ses-a_dwi")
        write_mask(root, "sub-01_ses-b_desc-brain_mask")
        (run,) = collect(root)
        assert run.mask is None

    def test_two_that_fit_equally_are_told(self, raw):
        write_mask(raw, "sub-01_desc-brain_mask")
        write_mask(raw, "sub-01_space-orig_desc-brain_mask")
        write_mask(raw, "sub-01_res-x_desc-brain_mask")
        with pytest.raises(InputError, match=r"2 masks apply.*--mask"):
            collect(raw)

    def test_empty_is_told(self, raw):
        write_mask(raw, "sub-01_desc-brain_mask", value=0)
        with pytest.raises(InputError, match="empty"):
            collect(raw)


class TestDerivative:
    def test_preprocessed_replaces_raw_of_its_session(self, tmp_path):
        root = raw_dataset(tmp_path / "raw", "sub-01_dir-AP_dwi", "sub-01_dir-PA_dwi", "sub-02_dir-AP_dwi")
        prep = write_description(tmp_path / "prep", pipeline="prep")
        write_dwi(prep, "sub-01_space-T1w_desc-preproc_dwi")
        runs = collect(root, derivatives={"prep": prep})
        assert [run.key for run in runs] == ["sub_01_space_T1w", "sub_02_dir_AP"]
        assert runs[0].source_uri == "bids:prep:sub-01/dwi/sub-01_space-T1w_desc-preproc_dwi.nii.gz"
        assert runs[0].spatial_reference == runs[0].source_uri

    def test_qsiprep_table_in_world_axes_wins(self, tmp_path):
        root = write_description(tmp_path / "qsiprep", pipeline="QSIPrep")
        image = write_dwi(root, "sub-01_space-ACPC_desc-preproc_dwi")
        with pytest.raises(InputError, match=r"\.b beside it"):
            collect(root)
        (run,) = collect(root, input_type="bids")
        assert run.grad_b is None
        rows = np.c_[np.loadtxt(image.with_name("sub-01_space-ACPC_desc-preproc_dwi.bvec")).T, np.r_[0, 0, [1000] * 12]]
        table = image.with_name("sub-01_space-ACPC_desc-preproc_dwi.b")
        np.savetxt(table, rows)
        (run,) = collect(root)
        assert (run.grad_b, run.space) == (table, "ACPC")

    def test_two_images_of_one_series_are_told_with_a_filter(self, tmp_path):
        root = write_description(tmp_path / "prep", pipeline="prep")
        write_dwi(root, "sub-01_space-ACPC_desc-preproc_dwi")
        write_dwi(root, "sub-01_space-T1w_desc-preproc_dwi")
        with pytest.raises(InputError, match="2 images of one series") as caught:
            collect(root)
        filters = tmp_path / "filters.json"
        filters.write_text(str(caught.value).rpartition("for example ")[2])
        assert keys(root, bids_filter_file=filters) == ["sub-01"]

    def test_they_hold_up_no_other_series_of_the_session(self, tmp_path):
        root = write_description(tmp_path / "prep", pipeline="prep")
        for name in ("sub-01_acq-a", "sub-01_acq-b_space-ACPC", "sub-01_acq-b_space-T1w"):
            write_dwi(root, f"{name}_desc-preproc_dwi")
        options = {"bids_dir": root, "output_dir": tmp_path / "out", "work_dir": tmp_path / "work"}
        runs, unusable = collect_study(Settings(**options))
        assert [run.prefix for run in runs] == ["sub-01_acq-a"]
        assert [item.prefix for item in unusable] == ["sub-01_acq-b"]


class TestNotDiffusion:
    def test_few_directions_give_way_to_a_usable_series(self, tmp_path, caplog):
        root = raw_dataset(tmp_path / "raw", "sub-01_dir-AP_dwi")
        write_dwi(root, "sub-01_dir-PA_dwi", n_b0=6, n_weighted=0)
        assert keys(root) == ["sub-01_dir-AP"]
        assert "sub-01_dir-PA_dwi.nii.gz: 0 diffusion-weighted volumes" in caplog.text

    @pytest.mark.parametrize("shape", [SHAPE, (*SHAPE, 2)], ids=["one volume", "trace"])
    def test_images_that_cannot_be_a_series_need_no_tables(self, tmp_path, caplog, shape):
        root = raw_dataset(tmp_path / "raw", "sub-01_dir-AP_dwi")
        write_image(root / "sub-01" / "dwi" / "sub-01_dir-PA_dwi.nii.gz", np.ones(shape, np.int16))
        write_image(root / "sub-02" / "dwi" / "sub-02_dwi.nii.gz", np.ones(shape, np.int16))
        assert keys(root) == ["sub-01_dir-AP"]
        assert caplog.text.count("at least 7 are needed; skipped") == 2

    def test_a_single_volume_does_not_inherit_the_tables_of_the_series(self, raw, caplog):
        write_image(raw / "sub-01" / "dwi" / "sub-01_dir-PA_dwi.nii.gz", np.ones(SHAPE, np.int16))
        assert keys(raw) == ["sub-01"]
        assert "sub-01_dir-PA_dwi.nii.gz: 1 volume without tables" in caplog.text

    def test_images_long_enough_need_their_tables(self, tmp_path):
        root = raw_dataset(tmp_path / "raw", "sub-01_dir-AP_dwi")
        write_image(root / "sub-01" / "dwi" / "sub-01_dir-PA_dwi.nii.gz", np.ones((*SHAPE, 7), np.int16))
        with pytest.raises(InputError, match=r"no \.bval and no \.bvec"):
            collect(root)

    def test_alone_they_are_a_problem(self, tmp_path):
        root = write_description(tmp_path / "raw")
        write_dwi(root, "sub-01_dwi", n_b0=2, n_weighted=4)
        with pytest.raises(InputError, match="4 diffusion-weighted volumes"):
            collect(root)

    def test_other_files_of_the_folder_are_not_series(self, raw):
        write_image(raw / "sub-01" / "dwi" / "dwi.nii.gz", np.ones(SHAPE, np.int16))
        write_image(raw / "sub-01" / "dwi" / "sub-01_sbref.nii.gz", np.ones(SHAPE, np.int16))
        write_dwi(raw, "sub-01_part-phase_dwi")
        assert keys(raw) == ["sub-01"]


class TestResponses:
    def test_of_other_shells_are_a_problem_before_anything_runs(self, raw, tmp_path):
        path = tmp_path / "wm.txt"
        path.write_text("# Shells: 0,1000,2000\n900 0\n500 -120\n320 -130\n")
        with pytest.raises(InputError, match=r"sub-01: .*wm\.txt: wm response: 3 rows, expected 2"):
            collect(raw, responses=(path,))

    def test_that_cannot_be_any_are_told_once(self, tmp_path):
        root = raw_dataset(tmp_path / "raw", "sub-01_dwi", "sub-02_dwi")
        path = tmp_path / "wm.txt"
        path.write_text("900 0\n500 -120\n")
        with pytest.raises(InputError, match="no line '# Shells") as caught:
            collect(root, responses=(path,))
        assert len(caught.value.problems) == 1


def test_a_study_has_its_usable_series_and_says_why_the_others_are_not(tmp_path):
    root = raw_dataset(tmp_path / "raw", "sub-01_dwi", "sub-02_ses-1_dwi", "sub-03_dwi")
    (root / "sub-02" / "ses-1" / "dwi" / "sub-02_ses-1_dwi.bval").unlink()
    runs, unusable = collect_study(Settings(bids_dir=root, output_dir=tmp_path / "out"))
    assert [run.prefix for run in runs] == ["sub-01", "sub-03"]
    (item,) = unusable
    assert (item.prefix, item.subject, item.session) == ("sub-02_ses-1", "02", "1")
    assert len(item.problems) == 1 and "no .bval" in item.problems[0]

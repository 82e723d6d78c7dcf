"""Folders as people have them: what is found, what it is called, and what is passed over."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from medseg.config import ChannelConfig, Config, DataConfig
from medseg.dataset import find_cases, select_cases
from medseg.errors import InputError, UsageError
from medseg.grid import Grid
from medseg.io import dicom_open
from medseg.io.atomic import PARTIAL_PREFIX
from medseg.io.nifti import write_mask
from medseg.outputs import outside
from medseg.scan import find_scans, read, take_inventory
from medseg.scan_ids import LONGEST, RESERVED, safe_name
from medseg.volume import Mask
from tests.phantoms import SLICES, enhanced, misfit, save, series, set_pixels, stored_pixels


def small(number: int | None = 3, slices: int = 5) -> list[Dataset]:
    datasets = series(slices=slices, size=(6, 7))
    for dataset in datasets:
        dataset.SeriesNumber = number
    return datasets


def ids(*roots: Path) -> list[str]:
    return [scan.case_id for scan in find_scans(*roots)]


def nifti(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.ones((4, 5, 6), np.int16)
    voxels[0, 0, 0] = 0
    image = nib.Nifti1Image(voxels, np.eye(4))
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


# ---- case ids -------------------------------------------------------------------------------------------------------


def test_id_is_the_shortest_folder_that_holds_one_series(tmp_path: Path) -> None:
    root = tmp_path / "dicom"
    save(small(), root / "STS_001" / "MR_T1")
    save(small(), root / "STS_002" / "MR_T1")
    assert ids(root) == ["STS_001", "STS_002"]
    assert ids(root / "STS_001" / "MR_T1") == ["MR_T1"]
    assert ids(root / "STS_001") == ["STS_001"]


def test_rejected_series_count_too(tmp_path: Path) -> None:
    save(small(), tmp_path / "p" / "ct")
    save(small(slices=1), tmp_path / "p" / "scout")
    assert ids(tmp_path) == ["p_ct", "p_scout"]


def test_series_of_one_folder_are_told_apart_by_number(tmp_path: Path) -> None:
    save([*small(4), *small(5)], tmp_path / "in" / "p1")
    save(small(4), tmp_path / "in" / "p2")
    assert ids(tmp_path / "in") == ["p1-s4", "p1-s5", "p2"]


def test_series_without_or_with_equal_numbers_get_ordinals(tmp_path: Path) -> None:
    save([*small(None), *small(None)], tmp_path / "a" / "p")
    save([*small(7), *small(7)], tmp_path / "b" / "p")
    assert ids(tmp_path / "a") == ["p-1", "p-2"]
    assert ids(tmp_path / "b") == ["p-s7-1", "p-s7-2"]


def test_nifti_ids(tmp_path: Path) -> None:
    nifti(tmp_path / "siteA" / "case_01.nii.gz")
    nifti(tmp_path / "siteB" / "case_01.nii")
    nifti(tmp_path / "case_02.nii.gz")
    assert ids(tmp_path) == ["case_02", "siteA_case_01", "siteB_case_01"]
    assert ids(tmp_path / "siteA" / "case_01.nii.gz") == ["case_01"]
    assert ids(tmp_path / "siteA", tmp_path / "siteB") == ["siteA_case_01", "siteB_case_01"]


def test_ids_that_clean_up_to_one_get_a_hash(tmp_path: Path) -> None:
    for name in ("a b", "a_b", "A B", "lone"):
        nifti(tmp_path / f"{name}.nii.gz")
    found = ids(tmp_path)
    assert len({name.casefold() for name in found}) == 4
    assert "lone" in found
    assert all(len(name.rpartition("-")[2]) == 6 for name in found if name != "lone")


def test_same_names_under_roots_of_the_same_name(tmp_path: Path) -> None:
    nifti(tmp_path / "x" / "img" / "c.nii.gz")
    nifti(tmp_path / "y" / "img" / "c.nii.gz")
    first = ids(tmp_path / "x" / "img", tmp_path / "y" / "img")
    assert len(set(first)) == 2
    assert first == ids(tmp_path / "y" / "img", tmp_path / "x" / "img")


@given(st.text(min_size=0, max_size=300))
def test_safe_names_are_safe(text: str) -> None:
    name = safe_name(text)
    assert name
    assert name == name.strip(". ")
    assert not set(name) & set('/\\:*?"<>|\n\r\t\0=+@ ')
    assert len(name.encode()) <= LONGEST + len("scan_")
    assert name.casefold() not in RESERVED
    assert safe_name(name) == name


# ---- what is found --------------------------------------------------------------------------------------------------


def test_missing_path_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        take_inventory([tmp_path / "nowhere"])
    assert caught.value.code == "USAGE-PATH"


def test_empty_and_junk_folders_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "README").write_text("hello")
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7")
    inventory = take_inventory([tmp_path])
    assert inventory.scans == ()
    assert {skip.code for skip in inventory.skipped} == {"SKIP-JUNK"}


def test_what_may_hold_scans_in_another_form_is_told(tmp_path: Path) -> None:
    for name in ("study.zip", "a.tar.gz", "T1.nrrd", "brain.MGZ"):
        (tmp_path / name).write_bytes(b"PK")
    skipped = take_inventory([tmp_path]).skipped
    assert {skip.code for skip in skipped} == {"SKIP-FORMAT"}
    assert {skip.path.name for skip in skipped if "unpack" in skip.reason} == {"study.zip", "a.tar.gz"}


def test_a_path_that_is_too_long_is_told(tmp_path: Path) -> None:
    """Deeper than the system's longest path, as a copying program makes it that steps into folders."""
    save(small(), tmp_path / "case")
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(25):
        os.mkdir("n" * 200, dir_fd=folder)
        deeper = os.open("n" * 200, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = deeper
    os.close(os.open("IM1.dcm", os.O_CREAT, dir_fd=folder))
    os.close(folder)
    inventory = take_inventory([tmp_path])
    assert [scan.usable for scan in inventory.scans] == [True]
    assert [skip.code for skip in inventory.skipped] == ["SKIP-UNREADABLE"]


def test_one_series_over_two_folders_is_one_scan(tmp_path: Path) -> None:
    datasets = series()
    save(datasets[::2], tmp_path / "case" / "DIR000")
    save(datasets[1::2], tmp_path / "case" / "DIR001")
    (scan,) = find_scans(tmp_path / "case")
    assert scan.case_id == "case"
    assert len(scan.files) == SLICES
    assert scan.usable


def test_links_are_followed_once(tmp_path: Path) -> None:
    save(small(), tmp_path / "case" / "in")
    (tmp_path / "case" / "in" / "up").symlink_to(tmp_path / "case", target_is_directory=True)
    (tmp_path / "case" / "broken").symlink_to(tmp_path / "nothing")
    inventory = take_inventory([tmp_path / "case"])
    assert [len(scan.files) for scan in inventory.scans] == [5]
    assert [skip.code for skip in inventory.skipped] == ["SKIP-SPECIAL"]


def test_links_that_lead_nowhere_harm_nobody(tmp_path: Path) -> None:
    save(small(), tmp_path / "a")
    (tmp_path / "a" / "itself.dcm").symlink_to("itself.dcm")
    (tmp_path / "a" / "nowhere.dcm").symlink_to("nothing")
    (tmp_path / "a" / "endless.nii.gz").symlink_to("/dev/zero")
    inventory = take_inventory([tmp_path])
    assert [scan.usable for scan in inventory.scans] == [True]
    assert {skip.code for skip in inventory.skipped} == {"SKIP-SPECIAL"}
    assert len(outside(inventory, [tmp_path], tmp_path / "out").scans) == 1


def test_cases_may_share_a_file(tmp_path: Path) -> None:
    """Deduplicating stores (hard links, links to one object) hold two cases in one file; neither may vanish."""
    one = nifti(tmp_path / "a" / "one.nii.gz")
    (tmp_path / "b").mkdir()
    os.link(one, tmp_path / "b" / "two.nii.gz")
    (tmp_path / "b" / "three.nii.gz").symlink_to(one)
    assert ids(tmp_path) == ["a_one", "b_three", "b_two"]
    assert ids(tmp_path, one, tmp_path / "a") == ["a_one", "b_three", "b_two"]


def test_names_of_every_kind(tmp_path: Path) -> None:
    names = ["-rf", "ünïcode 病人", "emoji 😀", "$(touch x); 'q'", "dots...", "CON"]
    for name in names:
        save(small(), tmp_path / name)
    deep = tmp_path / ("x" * 200) / ("y" * 200) / ("z" * 200)
    save(small(), deep)
    scans = find_scans(tmp_path)
    assert len(scans) == len(names) + 1
    assert all(scan.usable and safe_name(scan.case_id) == scan.case_id for scan in scans)


def test_two_patients_in_one_folder(tmp_path: Path) -> None:
    one, other = small(), small()
    for dataset in other:
        dataset.PatientID = "ID-4712"
    save([*one, *other], tmp_path / "export")
    scans = find_scans(tmp_path / "export")
    assert [scan.case_id for scan in scans] == ["export-s3-1", "export-s3-2"]
    assert {len(scan.files) for scan in scans} == {5}


def test_two_kernels_in_one_folder(tmp_path: Path) -> None:
    """Equal geometry, number and description: two series by their UIDs, each with its own voxels."""
    soft, bone = small(), small()
    for dataset in bone:
        set_pixels(dataset, stored_pixels(dataset).astype(np.int64) + 50)
    for n, dataset in enumerate([*soft, *bone]):
        dataset.SeriesDescription, dataset.ConvolutionKernel = "Thorax", "B30f" if n < len(soft) else "B70f"
    save([*soft, *bone], tmp_path / "ct")
    one, other = (read(scan) for scan in find_scans(tmp_path / "ct"))
    assert one.grid.same_place(other.grid, 1e-9)
    assert set(np.unique(other.voxels.astype(int) - one.voxels)) in ({50}, {-50})


def test_names_that_clean_up_to_one_description(tmp_path: Path) -> None:
    """`T1 a/b` and `T1 a_b` of one number: descriptions are in no id, so nothing collides."""
    one, other = small(), small()
    for dataset, name in [*((d, "T1 a/b") for d in one), *((d, "T1 a_b") for d in other)]:
        dataset.SeriesDescription = name
    save([*one, *other], tmp_path / "mr")
    assert ids(tmp_path / "mr") == ["mr-s3-1", "mr-s3-2"]


def test_any_depth(tmp_path: Path) -> None:
    """40 folders deep, and one series spread over many levels of them."""
    datasets = small(slices=40)
    folder = tmp_path / "deep"
    for number, dataset in enumerate(datasets):
        folder = folder / f"level{number}"
        save([dataset], folder)
    (scan,) = find_scans(tmp_path / "deep")
    assert scan.usable
    assert len(scan.files) == 40
    assert scan.case_id == "deep"


def test_odd_but_sound_niftis_are_read(tmp_path: Path) -> None:
    """Constant and empty images are for `check` to question, not for the reader to refuse."""
    for name, value in (("constant", 7), ("zero", 0)):
        image = nib.Nifti1Image(np.full((4, 5, 6), value, np.int16), np.eye(4))
        nib.save(image, tmp_path / f"{name}.nii.gz")
    scans = find_scans(tmp_path)
    assert [np.unique(read(scan).voxels).tolist() for scan in scans] == [[7], [0]]


def test_names_that_are_not_text(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/Bj\xf6rn \xe5"
    Path(os.fsdecode(folder)).mkdir()
    for path in save(small(), tmp_path / "plain"):
        Path(os.fsdecode(folder + b"/" + os.fsencode(path.name) + b"\xff")).write_bytes(path.read_bytes())
        path.unlink()
    (scan,) = find_scans(tmp_path)
    assert scan.usable
    assert scan.case_id.encode("utf-8")
    read(scan)


def test_unreadable_slice_rejects_its_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without permission; simulated, since a test may run as root, who may read everything."""
    paths = save(small(), tmp_path)
    original = os.open

    def refuse(path: os.PathLike[str], *rest: int) -> int:
        if Path(path) == paths[4]:
            raise PermissionError(13, "Permission denied")
        return original(path, *rest)

    monkeypatch.setattr(dicom_open.os, "open", refuse)
    (scan,) = find_scans(tmp_path)
    assert scan.code == "DICOM-READ"
    assert "Permission denied" in scan.reason


def test_empty_file_beside_two_series_rejects_the_one_named_like_it(tmp_path: Path) -> None:
    save(small(4), tmp_path, name="CT{:03d}.dcm".format)
    save(small(5), tmp_path, name="MR{:03d}.dcm".format)
    (tmp_path / "CT005.dcm").touch()
    assert sorted((scan.case_id.rpartition("-")[2], scan.code) for scan in find_scans(tmp_path)) == [
        ("s4", "DICOM-READ"),
        ("s5", ""),
    ]


def test_damaged_file_beside_whole_volumes_costs_only_itself(tmp_path: Path) -> None:
    """Each file is a volume: an empty one, or a web page, lacks in none of the others."""
    for number in range(3):
        save([enhanced(small(number))], tmp_path, name=lambda _n, number=number: f"P{number}.dcm")
    (tmp_path / "P3.dcm").touch()
    inventory = take_inventory([tmp_path])
    assert [scan.usable for scan in inventory.scans] == [True] * 3
    assert [(skip.path.name, skip.code) for skip in inventory.skipped] == [("P3.dcm", "SKIP-DAMAGED")]


def test_text_beside_slices_harms_nobody(tmp_path: Path) -> None:
    save(small(), tmp_path, name="IM{:04d}".format)
    for name in ("README", "LICENSE", "notes 1", "1.txt"):
        (tmp_path / name).write_text("read me, this is no image")
    (scan,) = find_scans(tmp_path)
    assert scan.usable


def test_empty_file_of_another_kind_harms_nobody(tmp_path: Path) -> None:
    save(small(), tmp_path)
    (tmp_path / "done.txt").touch()
    (scan,) = find_scans(tmp_path)
    assert scan.usable


def test_bad_nifti_is_a_rejected_scan(tmp_path: Path) -> None:
    nifti(tmp_path / "good.nii.gz")
    (tmp_path / "bad.nii.gz").write_bytes(b"<html>403 Forbidden</html>")
    (tmp_path / "._good.nii.gz").write_bytes(b"\0\5\x16\7")
    scans = find_scans(tmp_path)
    assert [(scan.case_id, scan.usable) for scan in scans] == [("bad", False), ("good", True)]
    with pytest.raises(InputError) as caught:
        read(scans[0])
    assert caught.value.code == scans[0].code


def test_patients_are_groups_and_never_named(tmp_path: Path) -> None:
    one, other = small(), small()
    for dataset in other:
        dataset.PatientID = "../../etc/passwd"
    save(one, tmp_path / "a")
    save(other, tmp_path / "b")
    scans = find_scans(tmp_path)
    assert len({scan.group for scan in scans}) == 2
    assert "4711" not in repr(scans)
    assert "passwd" not in repr(scans)


def test_voxels_do_not_depend_on_names(tmp_path: Path) -> None:
    datasets = series()
    save(datasets, tmp_path / "a")
    save(datasets[::-1], tmp_path / "b", name=lambda n: f"{(7 * n) % SLICES}.x")
    one, other = read(find_scans(tmp_path / "a")[0]), read(find_scans(tmp_path / "b")[0])
    assert one.grid.same_place(other.grid, 1e-9)
    assert np.array_equal(one.voxels, other.voxels)
    assert misfit(one.voxels[0], one.grid.affine) < 0.51


def test_grid_of_a_nifti_is_that_of_its_voxels(tmp_path: Path) -> None:
    (scan,) = find_scans(nifti(tmp_path / "one.nii.gz"))
    assert scan.grid is not None
    assert scan.grid.shape == read(scan).grid.shape == (4, 5, 6)


# ---- medseg's own outputs among the scans ---------------------------------------------------------------------------


def test_own_masks_and_unfinished_files_are_no_scans(tmp_path: Path) -> None:
    """Predicted into the input folder, and predicted again: whatever the names, masks are not segmented."""
    root = tmp_path / "in"
    grid = find_scans(nifti(root / "case_01.nii.gz"))[0].grid
    assert grid is not None
    mask = Mask(np.ones((4, 5, 6), np.uint8), grid)
    for name in ("results/case_01.nii.gz", "pred/case_01_pred.nii.gz", "deep/er/x.nii", "case_01 (copy).nii.gz"):
        write_mask(root / name, mask)
    whole = (root / "results" / "case_01.nii.gz").read_bytes()
    for name in ("case_01.nii.gz.tmp", "case_01.nii.gz.part", f"{PARTIAL_PREFIX}x.nii.gz", "case_01.nii.gz~"):
        (root / "results" / name).write_bytes(whole)
    found = take_inventory([root])
    assert [scan.case_id for scan in found.scans if not scan.holds_labels] == ["case_01"]
    assert {skip.code for skip in found.skipped} == {"SKIP-HIDDEN"}
    assert len(found.skipped) == 4
    selected = select_cases(found, [ChannelConfig()], [root])
    assert [case.id for case in selected.cases] == ["case_01"]
    assert [finding.code for finding in selected.findings] == ["NOT-SELECTED"] * 4
    named = root / "results" / "case_01.nii.gz"
    given = select_cases(take_inventory([named]), [ChannelConfig()], [named])
    assert [case.id for case in given.cases] == ["case_01"]


def test_own_masks_are_references_where_references_are_named(tmp_path: Path) -> None:
    """Below `references` a mask is a mask; among the scans its header alone makes it neither scan nor reference."""
    scans, masks = tmp_path / "scans", tmp_path / "masks"
    grid = find_scans(nifti(scans / "case_01.nii.gz"))[0].grid
    assert grid is not None
    write_mask(masks / "case_01.nii.gz", Mask(np.ones((4, 5, 6), np.uint8), grid))
    write_mask(scans / "out" / "case_01.nii.gz", Mask(np.ones((4, 5, 6), np.uint8), grid))
    with_references = find_cases(Config(data=DataConfig(scans=scans, references=masks), labels={"tumour": 1}))
    assert [(case.id, len(case.references)) for case in with_references.cases] == [("case_01", 1)]
    without = find_cases(Config(data=DataConfig(scans=scans), labels={"tumour": 1}))
    assert without.cases == ()


# ---- real scans -----------------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_sarcoma_series_equal_their_nifti_twins(shared_data: Path) -> None:
    folder = shared_data / "sarcoma_mr_t1"
    for twin in sorted((folder / "images").glob("*.nii.gz"))[:4]:
        (scan,) = find_scans(folder / "dicom" / twin.name.partition(".")[0] / "MR_T1")
        image = nib.load(twin)
        volume = read(scan)
        order = volume.grid.order_onto(Grid(image.shape, image.affine), 0.01)
        assert order is not None
        assert np.array_equal(order.apply(volume.voxels[0]), np.asarray(image.dataobj))


@pytest.mark.realdata
def test_zoo(shared_data: Path) -> None:
    inventory = take_inventory([shared_data / "zoo"])
    dicom = {scan.case_id: scan for scan in inventory.scans if scan.kind == "dicom"}
    assert all(scan.usable for scan in dicom.values())
    shapes = {name: read(scan).voxels.shape[1:] for name, scan in dicom.items()}
    assert shapes == {
        "brain_tumour_mr_12-T1post-05670": (512, 512, 22),
        "brain_tumour_mr_13_HCropVolume": (35, 51, 32),
        "brain_tumour_mr_36459-FLAIRreg-76244": (512, 512, 22),
        "ct_jpeg2000": (512, 512, 20),
        "ct_with_dicom_seg": (512, 512, 3),
        **{f"transfer_syntaxes-{number}": (64, 64, 35) for number in range(1, 10)},
    }
    (segmentation,) = inventory.references
    assert segmentation.names == ("Liver",)
    assert segmentation.series_uids == {dicom["ct_with_dicom_seg"].series_uid}

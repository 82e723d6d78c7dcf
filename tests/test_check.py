"""The examination before training: each check on a data set written for it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from medseg.case import Finding
from medseg.check import Examination, examine
from medseg.config import ChannelConfig, Config
from medseg.dataset import find_cases, read_reference
from medseg.errors import CODES
from medseg.io.nifti import read_mask
from medseg.scan import read
from tests.cases import AFFINE, SHAPE, blob, config, data_set, image, nifti


def told(found: Examination, severity: str) -> list[tuple[str, str]]:
    return [(f.where, f.code) for f in found.dataset.findings if f.severity == severity]


def message(found: Examination, code: str) -> str:
    (text,) = [f.message for f in found.dataset.findings if f.code == code and f.severity != "note"]
    return text


def split_file(folder: Path, train: list[str], validation: list[str]) -> Path:
    path = folder / "split.json"
    path.write_text(json.dumps({"train": train, "validation": validation}), encoding="utf-8")
    return path


def ids(count: int) -> list[str]:
    return [f"case_{number:02}" for number in range(count)]


# a sound data set


def test_a_sound_data_set_has_notes_only(tmp_path: Path) -> None:
    found = examine(data_set(tmp_path, 5))
    assert [case.id for case in found.dataset.cases] == ids(5)
    assert found.split is not None
    assert sorted((*found.split.train, *found.split.validation)) == ids(5)
    assert set(found.measures) == set(ids(5))
    assert {f.severity for f in found.dataset.findings} == {"note"}


def test_the_foreground_is_told_in_ml(tmp_path: Path) -> None:
    settings = data_set(tmp_path, 3)
    larger = np.zeros(SHAPE, np.uint8)
    larger[:4, :5, :3] = 1
    nifti(tmp_path / "labels/case_01.nii.gz", larger)
    nifti(tmp_path / "labels/case_02.nii.gz", np.zeros(SHAPE, np.uint8))
    (note,) = [f for f in examine(settings).dataset.findings if f.code == "DATA-FOREGROUND"]
    # a voxel is 0.9 x 0.7 x 2.5 = 1.575 mm3: 12 are 0.0189 ml, 4 x 5 x 3 = 60 are 0.0945 ml, the median is 0.0567
    assert note.message == "in 2 of 3 cases; 0.0567 ml in the median, 0.0189 to 0.0945 ml"
    assert note.where == "labels.tumour"


def test_progress_is_told_case_by_case(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    examine(data_set(tmp_path, 3), watch=lambda stage, done, total, note="": steps.append((done, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]


# each case alone


@pytest.mark.parametrize("value", [0, 700])
def test_a_constant_scan_is_an_error(tmp_path: Path, value: int) -> None:
    settings = data_set(tmp_path, 3)
    nifti(tmp_path / "images/case_01.nii.gz", np.full(SHAPE, value, np.int16))
    found = examine(settings)
    assert told(found, "error") == [("case_01", "DATA-CONSTANT")]
    assert f"every voxel is {value}" in message(found, "DATA-CONSTANT")
    assert [case.id for case in found.dataset.cases] == ["case_00", "case_02"]


def test_an_empty_reference_is_a_warning_and_a_full_one_an_error(tmp_path: Path) -> None:
    settings = data_set(tmp_path, 4)
    nifti(tmp_path / "labels/case_01.nii.gz", np.zeros(SHAPE, np.uint8))
    nifti(tmp_path / "labels/case_02.nii.gz", np.ones(SHAPE, np.uint8))
    found = examine(settings)
    assert told(found, "warning") == [("case_01", "MASK-EMPTY")]
    assert told(found, "error") == [("case_02", "MASK-FULL")]
    assert [case.id for case in found.dataset.cases] == ["case_00", "case_01", "case_03"]


def test_one_background_voxel_is_not_full(tmp_path: Path) -> None:
    settings = data_set(tmp_path, 2)
    nearly = np.ones(SHAPE, np.uint8)
    nearly[0, 0, 0] = 0
    nifti(tmp_path / "labels/case_01.nii.gz", nearly)
    assert not told(examine(settings), "error")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_costs_its_case_only(tmp_path: Path, bad: float) -> None:
    settings = data_set(tmp_path, 3)
    voxels = image().astype(np.float32)
    voxels[1, 2, 3] = bad
    nifti(tmp_path / "images/case_01.nii.gz", voxels)
    found = examine(settings)
    assert told(found, "error") == [("case_01", "NIFTI-VALUES")]
    assert len(found.dataset.cases) == 2


@pytest.mark.parametrize(("by_mm", "fits"), [(1e-4, True), (0.35, False), (30, False)])
def test_geometry_in_mm_at_the_corners(tmp_path: Path, by_mm: float, fits: bool) -> None:
    settings = data_set(tmp_path, 3)
    moved = AFFINE.copy()
    moved[1, 3] += by_mm  # half a voxel along j is 0.35 mm
    nifti(tmp_path / "labels/case_01.nii.gz", blob(), moved)
    found = examine(settings)
    assert told(found, "error") == ([] if fits else [("case_01", "MASK-GRID")])
    if not fits:
        assert f"{by_mm:.2f} mm beside" in message(found, "MASK-GRID")


def test_channels_of_different_regions_are_an_error(tmp_path: Path) -> None:
    far = AFFINE.copy()
    far[2, 3] += 500
    for number in range(2):
        nifti(tmp_path / f"images/p{number}/a_t1.nii.gz", image(number))
        nifti(tmp_path / f"images/p{number}/a_t2.nii.gz", image(number + 5), far if number else AFFINE)
        nifti(tmp_path / f"labels/p{number}.nii.gz", blob())
    select = (ChannelConfig(name="T1", description="*t1*"), ChannelConfig(name="T2", description="*t2*"))
    found = examine(config(tmp_path, select=select, validation=0))
    assert told(found, "error") == [("p1_a", "DATA-OVERLAP")]
    assert [case.id for case in found.dataset.cases] == ["p0_a"]


# across the split


def test_a_copy_on_the_same_side_is_a_warning(tmp_path: Path) -> None:
    settings = data_set(tmp_path, 4)
    nifti(tmp_path / "images/case_02.nii.gz", image(0))
    split = split_file(tmp_path, ["case_00", "case_01", "case_02"], ["case_03"])
    found = examine(config(tmp_path, split=split))
    assert told(found, "warning") == [("case_02", "DATA-DUPLICATE")]
    assert "case_00" in message(found, "DATA-DUPLICATE")
    assert len(found.dataset.cases) == 4
    assert settings.data.split is None


@pytest.mark.parametrize(("train", "validation"), [([0, 1, 3], [2]), ([1, 2, 3], [0])])
def test_a_copy_across_the_split_leaves_training(tmp_path: Path, train: list[int], validation: list[int]) -> None:
    data_set(tmp_path, 4)
    nifti(tmp_path / "images/case_02.nii.gz", image(0))
    split = split_file(tmp_path, [ids(4)[n] for n in train], [ids(4)[n] for n in validation])
    found = examine(config(tmp_path, split=split))
    trained = "case_00" if 0 in train else "case_02"
    assert told(found, "error") == [(trained, "DATA-DUPLICATE")]
    assert found.split is not None
    assert trained not in (*found.split.train, *found.split.validation)
    assert found.split.validation == (ids(4)[validation[0]],)


def test_all_copies_of_a_held_out_scan_leave_training(tmp_path: Path) -> None:
    data_set(tmp_path, 5)
    for number in (1, 2):
        nifti(tmp_path / f"images/case_{number:02}.nii.gz", image(0))
    split = split_file(tmp_path, ["case_00", "case_01", "case_04"], ["case_02", "case_03"])
    found = examine(config(tmp_path, split=split))
    assert told(found, "error") == [("case_00", "DATA-DUPLICATE"), ("case_01", "DATA-DUPLICATE")]
    assert found.split is not None
    assert found.split.train == ("case_04",)


def test_a_copy_is_known_in_another_axis_order_and_type(tmp_path: Path) -> None:
    data_set(tmp_path, 3)
    affine = AFFINE.copy()
    affine[:, 0] *= -1
    affine[:3, 3] += AFFINE[:3, 0] * (SHAPE[0] - 1)
    nifti(tmp_path / "images/case_02.nii.gz", image(0)[::-1].astype(np.float64), affine)
    found = examine(config(tmp_path, validation=0))
    assert told(found, "warning") == [("case_02", "DATA-DUPLICATE")]


def test_copies_are_known_channel_by_channel(tmp_path: Path) -> None:
    for number in range(3):
        nifti(tmp_path / f"images/p{number}/a_t1.nii.gz", image(number))
        nifti(tmp_path / f"images/p{number}/a_t2.nii.gz", image({0: 10, 1: 1, 2: 10}[number]))
        nifti(tmp_path / f"labels/p{number}.nii.gz", blob())
    select = (ChannelConfig(name="T1", description="*t1*"), ChannelConfig(name="T2", description="*t2*"))
    found = examine(config(tmp_path, select=select, validation=0))
    assert told(found, "warning") == [("p1_a", "DATA-DUPLICATE"), ("p2_a", "DATA-DUPLICATE")]
    messages = [f.message for f in found.dataset.findings if f.code == "DATA-DUPLICATE"]
    assert messages[0].startswith("two channels")
    assert "p0_a" in messages[1]


def test_one_patient_on_both_sides_forbids_training(tmp_path: Path) -> None:
    for visit in ("a", "b"):
        nifti(tmp_path / f"images/sub-01/{visit}.nii.gz", image(ord(visit)))
        nifti(tmp_path / f"labels/sub-01/{visit}.nii.gz", blob())
    split = split_file(tmp_path, ["sub-01_a"], ["sub-01_b"])
    found = examine(config(tmp_path, split=split))
    assert found.split is None
    assert told(found, "error") == [(str(split), "DATA-SPLIT")]
    assert "sub-01_a, sub-01_b" in message(found, "DATA-SPLIT")


def test_a_case_that_falls_out_leaves_the_split_too(tmp_path: Path) -> None:
    data_set(tmp_path, 4)
    nifti(tmp_path / "labels/case_01.nii.gz", np.ones(SHAPE, np.uint8))
    split = split_file(tmp_path, ids(4)[:3], ids(4)[3:])
    found = examine(config(tmp_path, split=split))
    assert found.split is not None
    assert found.split.train == ("case_00", "case_02")
    assert set(found.measures) == {"case_00", "case_02", "case_03"}


def test_no_case_left(tmp_path: Path) -> None:
    data_set(tmp_path, 1)
    nifti(tmp_path / "labels/case_00.nii.gz", np.ones(SHAPE, np.uint8))
    found = examine(config(tmp_path))
    assert found.split is None
    assert not found.dataset.cases
    assert ("data", "DATA-EMPTY") in told(found, "error")


# beside the others


def test_a_label_that_nobody_has_is_an_error(tmp_path: Path) -> None:
    data_set(tmp_path, 2)
    found = examine(config(tmp_path, {"tumour": 1, "node": 2}))
    assert told(found, "error") == [("labels.node", "DATA-LABEL")]
    assert len(found.dataset.cases) == 2


@pytest.mark.parametrize(("factor", "odd"), [(2.4, False), (2.6, True), (1 / 2.4, False), (1 / 2.6, True)])
def test_a_spacing_far_from_the_median(tmp_path: Path, factor: float, odd: bool) -> None:
    data_set(tmp_path, 5)
    affine = AFFINE @ np.diag([1, 1, factor, 1])
    nifti(tmp_path / "images/case_03.nii.gz", image(3), affine)
    nifti(tmp_path / "labels/case_03.nii.gz", blob(), affine)
    found = examine(config(tmp_path))
    spacing = [f for f in found.dataset.findings if f.code == "DATA-SPACING"]
    assert [f.where for f in spacing] == (["case_03"] if odd else [])
    if odd:
        assert f"0.9 x 0.7 x {2.5 * factor:.3g} mm" in spacing[0].message


def test_four_cases_have_no_usual_spacing(tmp_path: Path) -> None:
    data_set(tmp_path, 4)
    affine = AFFINE @ np.diag([1, 1, 5, 1])
    nifti(tmp_path / "images/case_03.nii.gz", image(3), affine)
    nifti(tmp_path / "labels/case_03.nii.gz", blob(), affine)
    assert not told(examine(config(tmp_path)), "warning")


def test_another_plane_than_most(tmp_path: Path) -> None:
    data_set(tmp_path, 3)
    sagittal = AFFINE @ np.diag([3, 1, 1 / 3, 1])  # 2.7 x 0.7 x 0.83 mm: thickest along x
    nifti(tmp_path / "images/case_01.nii.gz", image(1), sagittal)
    nifti(tmp_path / "labels/case_01.nii.gz", blob(), sagittal)
    found = examine(config(tmp_path))
    assert told(found, "warning") == [("case_01", "DATA-PLANE")]
    assert "acquired sagittal, most others axial" in message(found, "DATA-PLANE")


def test_intensities_by_a_factor(tmp_path: Path) -> None:
    """Medians near 550 in most cases; ten times as much is told, 1.4 times as much is not (1.5 is the least)."""
    data_set(tmp_path, 8)
    nifti(tmp_path / "images/case_05.nii.gz", image(5) * np.int16(10))
    nifti(tmp_path / "images/case_06.nii.gz", (image(6) * 1.4).astype(np.int16))
    found = examine(config(tmp_path))
    assert set(told(found, "warning")) == {("case_05", "DATA-INTENSITY")}


def test_intensities_with_negative_numbers_are_compared_by_difference(tmp_path: Path) -> None:
    """A CT that was not rescaled: 1024 HU too high, beside medians of about -450 HU."""
    data_set(tmp_path, 7)
    for number in range(7):
        nifti(tmp_path / f"images/case_{number:02}.nii.gz", image(number) - np.int16(1000 if number != 2 else 0))
    found = examine(config(tmp_path))
    assert ("case_02", "DATA-INTENSITY") in told(found, "warning")
    assert {where for where, _ in told(found, "warning")} == {"case_02"}


@pytest.mark.parametrize(("power", "odd"), [(5.2, False), (5.5, True)])
def test_the_limit_is_six_robust_deviations(tmp_path: Path, power: float, odd: bool) -> None:
    """Logarithms 0.3 apart: distances 1, 0.6, 0.3, 0, 0.3, 0.6 and the last; their median 0.6 x 1.4826 x 6 = 5.34."""
    data_set(tmp_path, 7)
    for number, exponent in enumerate((-1, -0.6, -0.3, 0, 0.3, 0.6, power)):
        voxels = np.full(SHAPE, round(100 * np.exp(exponent)), np.int16)
        voxels[7] = 0
        nifti(tmp_path / f"images/case_{number:02}.nii.gz", voxels)
    assert set(told(examine(config(tmp_path)), "warning")) == ({("case_06", "DATA-INTENSITY")} if odd else set())


def test_a_mixture_is_one_finding(tmp_path: Path) -> None:
    """Of 20 cases 6 are 30 times brighter: more than `FEW`, so they are not outliers but another kind of scan."""
    data_set(tmp_path, 20)
    for number in range(6):
        nifti(tmp_path / f"images/case_{number:02}.nii.gz", image(number).astype(np.int32) * 30)
    found = examine(config(tmp_path))
    assert {where for where, _ in told(found, "warning")} == {"select"}
    assert all("in 6 of 20" in f.message for f in found.dataset.findings if f.code == "DATA-INTENSITY")


# the table


def strict(text: str) -> object:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_holds_findings_cases_and_split(tmp_path: Path) -> None:
    data_set(tmp_path, 3)
    nifti(tmp_path / "images/alone.nii.gz", image(9))
    found = examine(config(tmp_path))
    content = strict(found.to_json())
    assert isinstance(content, dict)
    assert set(content) == {"findings", "cases", "split"}
    assert [Finding(**finding) for finding in content["findings"]] == list(found.dataset.findings)
    assert found.split is not None
    assert content["split"] == {"train": list(found.split.train), "validation": list(found.split.validation)}
    first = content["cases"][0]
    assert first["id"] == "case_00"
    assert first["shape"] == [8, 7, 6]
    assert first["spacing_mm"] == pytest.approx([0.9, 0.7, 2.5])
    assert first["labels"] == {"tumour": {"voxels": 12, "ml": pytest.approx(12 * 0.001575)}}
    (channel,) = first["channels"]
    assert (channel["low"], channel["high"]) == (image(0).min(), image(0).max())
    assert channel["median_foreground"] == np.median(image(0)[blob() > 0])


def test_json_of_nothing_and_of_an_empty_reference(tmp_path: Path) -> None:
    data_set(tmp_path, 2)
    for number in range(2):
        nifti(tmp_path / f"labels/case_{number:02}.nii.gz", np.zeros(SHAPE, np.uint8))
    content = strict(examine(config(tmp_path)).to_json())
    assert isinstance(content, dict)
    assert content["cases"][0]["channels"][0]["median_foreground"] is None
    (tmp_path / "none").mkdir()
    nothing = strict(examine(config(tmp_path, scans=tmp_path / "none", references=())).to_json())
    assert isinstance(nothing, dict)
    assert (nothing["cases"], nothing["split"]) == ([], None)


def test_json_takes_file_names_that_are_no_utf_8(tmp_path: Path) -> None:
    data_set(tmp_path, 2)
    try:
        nifti(tmp_path / "labels" / os.fsdecode(b"f\xe4ll.nii.gz"), blob())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    found = examine(config(tmp_path))
    assert "f?ll.nii.gz" in dict(told(found, "error"))
    (found.to_json() + "".join(map(str, found.dataset.findings))).encode()


def test_control_characters_in_file_names_never_reach_a_terminal(tmp_path: Path) -> None:
    data_set(tmp_path, 2)
    nifti(tmp_path / "labels/lost\x1b[2Jmask\n.nii.gz", blob())
    assert "lost?[2Jmask?.nii.gz" in dict(told(examine(config(tmp_path)), "error"))


# every finding


def test_every_finding_has_a_code_and_says_what_to_do(tmp_path: Path) -> None:
    data_set(tmp_path, 8)
    nifti(tmp_path / "images/alone.nii.gz", image(9))
    nifti(tmp_path / "labels/lost.nii.gz", blob())
    nifti(tmp_path / "labels/case_01.nii.gz", np.ones(SHAPE, np.uint8))
    nifti(tmp_path / "labels/case_02.nii.gz", blob(value=7))
    nifti(tmp_path / "labels/case_03.nii.gz", np.zeros(SHAPE, np.uint8))
    nifti(tmp_path / "images/case_04.nii.gz", np.zeros(SHAPE, np.int16))
    nifti(tmp_path / "images/case_06.nii.gz", image(5))
    (tmp_path / "images/case_07.nii.gz").write_bytes(b"")
    (tmp_path / "labels/case_00.nii.gz").write_bytes(b"<html>403")
    findings = examine(config(tmp_path, {"tumour": 1, "node": 2})).dataset.findings
    assert len([f for f in findings if f.severity != "note"]) >= 9
    for finding in findings:
        assert finding.code in CODES
        advised = any(mark in finding.message for mark in (". ", "? ", ": "))
        assert advised or finding.severity == "note", finding.message


# real data


@pytest.mark.realdata
def test_hippocampus_is_examined_whole(shared_data: Path) -> None:
    found = examine(config(shared_data / "hippocampus", {"anterior": 1, "posterior": 2}))
    assert len(found.dataset.cases) == 208
    assert {where.removeprefix("images_") for where, _ in told(found, "error")} == {
        "hippocampus_118",
        "hippocampus_010.nii.gz",
        "hippocampus_281.nii.gz",
    }
    floats = {where for where, code in told(found, "note") if code == "MASK-ROUNDED"}
    assert floats == {"hippocampus_003", "hippocampus_243"}
    assert found.split is not None
    assert (len(found.split.train), len(found.split.validation)) == (166, 42)  # 0.2 x 208 = 41.6 patients
    assert not told(found, "warning") or {code for _, code in told(found, "warning")} == {"DATA-INTENSITY"}
    strict(found.to_json())


@pytest.mark.realdata
def test_sarcoma_from_dicom_and_structure_sets_equals_its_nifti_masks(shared_data: Path) -> None:
    """41 patients, 31 and 10 by the split file; every drawn voxel is one of the NIfTI mask, and the other way round."""
    folder = shared_data / "sarcoma_mr_t1"
    settings = config(
        folder, {"tumour": ["GTV_Mass*"]}, scans=folder / "dicom", references=(), split=folder / "split.json"
    )
    cases = find_cases(settings).cases
    assert len(cases) == 41
    for case in cases:
        grid = read(case.scans[0]).grid
        drawn = read_reference(case, grid, settings).labels
        stored = read_mask(folder / f"masks/{case.id}.nii.gz").placed_on(grid).labels
        assert drawn.any()
        assert np.array_equal(drawn, stored), case.id


@pytest.mark.realdata
def test_sarcoma_is_sound(shared_data: Path) -> None:
    folder = shared_data / "sarcoma_mr_t1"
    found = examine(
        config(folder, {"tumour": 1}, scans=folder / "dicom", references=folder / "masks", split=folder / "split.json")
    )
    assert not told(found, "error")
    assert not told(found, "warning")
    assert found.split is not None
    assert (len(found.split.train), len(found.split.validation)) == (31, 10)


def test_a_configuration_without_paths_is_refused() -> None:
    with pytest.raises(Exception, match="CONFIG-VALUE"):
        examine(Config())


def test_partly_annotated_cases_are_told_and_blank_ones_left_out(tmp_path: Path) -> None:
    settings = data_set(tmp_path, 4)
    half = blob()
    half[:, :, 3:] = 9
    nifti(tmp_path / "labels/case_01.nii.gz", half)
    nifti(tmp_path / "labels/case_02.nii.gz", np.full(SHAPE, 9, np.uint8))
    found = examine(settings.model_copy(update={"unannotated": (9,)}))
    assert [where for where, code in told(found, "error") if code == "MASK-EMPTY"] == ["case_02"]
    (text,) = [f.message for f in found.dataset.findings if f.code == "DATA-UNANNOTATED"]
    assert text == "1 of 3 cases are annotated in part, 50% of their voxels in the median"
    assert found.measures["case_01"].label_voxels == (0,)  # its blob lies in what is marked
    assert found.measures["case_01"].channels[0].foreground.size == 0

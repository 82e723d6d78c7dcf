from __future__ import annotations

from pathlib import Path

import pytest

from medseg.case import Case, Dataset
from medseg.dataset import find_cases
from medseg.pairing import DicomPairs, References, pair_all, pair_dicom
from medseg.scan import ReferenceFile, Scan
from tests.cases import blob, config, image, nifti, series, structures


def case(found: Scan) -> Case:
    return Case(found.case_id, found.group, (found,))


def pairs(cases: list[Case], *references: ReferenceFile) -> DicomPairs:
    return pair_dicom(cases, references)


def test_by_the_series_that_is_named() -> None:
    cases = [case(series("P1/a", "1")), case(series("P1/b", "2"))]
    found = pairs(cases, structures("P1/rs.dcm", ["2"]))
    assert list(found.of_case) == [1]
    assert not found.findings
    assert not found.orphans


def test_by_frame_of_reference_and_patient_with_a_warning() -> None:
    cases = [case(series("P1/a", "1", frame_uid="9")), case(series("P2/a", "2", frame_uid="9", group="patient-2"))]
    found = pairs(cases, structures("far/rs.dcm", ["unknown"], frame_uid="9"))
    assert list(found.of_case) == [0]
    assert [(f.code, f.where) for f in found.findings] == [("MASK-PLACED", "P1_a")]


def test_two_series_in_one_frame_are_not_chosen_between() -> None:
    cases = [case(series("P1/a", "1", frame_uid="9")), case(series("P1/b", "2", frame_uid="9"))]
    found = pairs(cases, structures("P1/rs.dcm", [], frame_uid="9"))
    assert not found.of_case
    assert {(f.severity, f.code, f.where) for f in found.findings} == {
        ("error", "MASK-AMBIGUOUS", "P1_a"),
        ("error", "MASK-AMBIGUOUS", "P1_b"),
    }


def test_alone_together_in_a_folder() -> None:
    cases = [case(series("P1/MR", "1")), case(series("P2/MR", "2"))]
    found = pairs(cases, structures("P1/RT/rs.dcm", ["unknown"]))
    assert list(found.of_case) == [0]
    assert found.findings[0].code == "MASK-PLACED"
    two = pairs(cases, structures("P1/RT/rs.dcm", ["unknown"]), structures("P1/RT/older.dcm", ["unknown"]))
    assert not two.of_case
    assert len(two.orphans) == 2


def test_another_patient_is_refused_unless_the_series_itself_is_named() -> None:
    cases = [case(series("P1/MR", "1", frame_uid="9"))]
    by_place = pairs(cases, structures("P1/RT/rs.dcm", ["unknown"], frame_uid="9", group="patient-2"))
    assert not by_place.of_case
    by_series = pairs(cases, structures("P1/RT/rs.dcm", ["1"], group="patient-2"))
    assert list(by_series.of_case) == [0]
    assert by_series.findings[0].code == "MASK-PATIENT"


def test_structure_sets_may_complete_each_other() -> None:
    found = pairs([case(series("P1/MR", "1"))], structures("P1/a.dcm", ["1"]), structures("P1/b.dcm", ["1"]))
    assert [reference.path.name for reference in found.of_case[0]] == ["a.dcm", "b.dcm"]


def test_further_series_of_a_study_are_notes_and_studies_without_reference_errors() -> None:
    cases = [
        case(series("P1/T1", "1")),
        case(series("P1/T2", "2", frame_uid="8")),
        case(series("P2/T1", "3", study_uid="1.9", group="p2")),
    ]
    none = References((), (), ())
    paired, findings = pair_all(cases, [], none, References((), (structures("P1/rs.dcm", ["1"]),), ()), [])
    assert [found.id for found in paired] == ["P1_T1"]
    assert {(f.severity, f.where, f.code) for f in findings} == {
        ("note", "P1_T2", "NOT-SELECTED"),
        ("error", "P2_T1", "MASK-MISSING"),
    }


def test_a_reference_that_was_given_goes_before_one_that_lies_beside() -> None:
    cases = [case(series("P1/T1", "1"))]
    given, beside = structures("drawn/rs.dcm", ["1"]), structures("P1/rs.dcm", ["1"])
    paired, findings = pair_all(cases, [], References((), (given,), ()), References((), (beside,), ()), [])
    assert paired[0].references == (given,)
    assert [f.code for f in findings] == ["MASK-SPARE"]


def test_a_reference_to_an_unfit_scan_is_no_orphan() -> None:
    unfit = series("P1/T1", "1", code="DICOM-GAP", reason="slice 8 is missing")
    none = References((), (), ())
    _, findings = pair_all([], [unfit], none, References((), (structures("P1/rs.dcm", ["1"]),), ()), [])
    assert [(f.severity, f.code) for f in findings] == [("note", "MASK-MISSING")]
    assert "P1_T1" in findings[0].message


def one_each(tmp_path: Path, masks: list[str], labels: object = None) -> Dataset:
    for number in (1, 2):
        nifti(tmp_path / f"images/case_{number:02}.nii.gz", image(number))
    for name in masks:
        nifti(tmp_path / f"labels/{name}.nii.gz", blob())
    return find_cases(config(tmp_path, labels or {"tumour": 1, "liver": 2}))


@pytest.mark.parametrize(
    "masks",
    [
        ["case_01_tumour", "case_01_liver"],
        ["Liver_case_01", "case_01_seg_tumour"],
        ["tumour/case_01", "liver/case_01"],
        ["case_01/tumour", "case_01/liver"],
    ],
)
def test_one_mask_for_each_label_is_refused_with_what_to_do(tmp_path: Path, masks: list[str]) -> None:
    found = one_each(tmp_path, [*masks, "case_02"])
    assert [case.id for case in found.cases] == ["case_02"]
    (error,) = [f for f in found.findings if f.severity == "error"]
    assert (error.where, error.code) == ("case_01", "MASK-AMBIGUOUS")
    assert "Merge them into one file with a number for each: tumour 1, liver 2" in error.message


def test_masks_of_one_label_give_way_to_one_of_all_labels(tmp_path: Path) -> None:
    found = one_each(tmp_path, ["case_01", "case_01_tumour", "case_01_liver", "case_02"])
    assert [case.references[0].name for case in found.cases] == ["case_01.nii.gz", "case_02.nii.gz"]  # type: ignore[union-attr]
    assert [(f.where, f.code) for f in found.findings] == [("case_01", "MASK-SPARE")]


def test_a_single_label_is_an_ordinary_mask_name(tmp_path: Path) -> None:
    found = one_each(tmp_path, ["case_01_tumour", "case_02_tumour"], {"tumour": 1})
    assert [case.id for case in found.cases] == ["case_01", "case_02"]
    assert not found.findings


def test_scans_that_are_named_by_labels_keep_their_masks(tmp_path: Path) -> None:
    for name in ("case_tumour", "case_liver"):
        nifti(tmp_path / f"images/{name}.nii.gz", image(len(name)))
        nifti(tmp_path / f"labels/{name}.nii.gz", blob())
    found = find_cases(config(tmp_path, {"tumour": 1, "liver": 2}))
    assert [case.id for case in found.cases] == ["case_liver", "case_tumour"]
    assert not found.findings

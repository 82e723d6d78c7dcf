"""Whose scan it is: header, folder or name; ids that are nobody's."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.config import ChannelConfig
from medseg.dataset import select_cases
from medseg.grid import Grid
from medseg.io.dicom_write import SeriesIdentity, write_series
from medseg.patients import tell_patients
from medseg.scan import Scan, find_scans
from medseg.volume import Volume
from tests.cases import AFFINE, SHAPE, image, inventory, scan, series


def written(folder: Path, patient_id: str, study: str, number: int = 1) -> None:
    """A real series, so that the hash in its header is the one that the reader makes."""
    identity = SeriesIdentity(patient_id, study_uid=f"1.2.{study}", series_number=number)
    write_series(
        Volume(
            image(number)[None], Grid(SHAPE, AFFINE @ [[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "MR"
        ),
        folder,
        identity,
    )


def patients(root: Path) -> list[str]:
    return sorted(tell_patients(find_scans(root), [root]).of_scan.values())


@pytest.mark.parametrize("patient_id", ["ANON", "anonymous", "Anonymized", "UNKNOWN", "PATIENT", "NONE", "0", "123456"])
def test_an_id_that_everybody_has_is_nobodys(tmp_path: Path, patient_id: str) -> None:
    for number in (1, 2, 3):
        written(tmp_path / f"P{number}/MR", patient_id, str(number))
    assert patients(tmp_path) == ["P1", "P2", "P3"]
    assert len(tell_patients(find_scans(tmp_path), [tmp_path]).by_folder) == 3


def test_a_real_id_stays_though_it_lies_in_many_folders(tmp_path: Path) -> None:
    for number in (1, 2):
        written(tmp_path / f"visit{number}/MR", "STS_001", str(number))
    assert len(set(patients(tmp_path))) == 1
    assert not tell_patients(find_scans(tmp_path), [tmp_path]).by_folder


def test_a_number_is_somebodys_where_others_have_other_numbers(tmp_path: Path) -> None:
    for folder, patient_id, study in (("a", "0", "1"), ("b", "0", "2"), ("c", "7", "3")):
        written(tmp_path / folder / "MR", patient_id, study)
    assert len(set(patients(tmp_path))) == 2


def test_words_are_nobodys_even_beside_real_ids(tmp_path: Path) -> None:
    for folder, patient_id, study in (("a", "ANON", "1"), ("b", "ANON", "2"), ("c", "7", "3")):
        written(tmp_path / folder / "MR", patient_id, study)
    found = patients(tmp_path)
    assert found[1:] == ["a", "b"]
    assert len(found[0]) == 12  # the hash of a real id


def nameless(name: str, study: str, **more: str) -> Scan:
    return series(name, name, group=more.get("group", ""), study_uid=study)


def test_all_series_and_visits_in_a_patients_folder_are_one_patient() -> None:
    scans = [nameless("P1/a/T1", "1"), nameless("P1/a/T2", "1"), nameless("P1/b/T1", "2"), nameless("P2/a/T1", "3")]
    assert list(tell_patients(scans, [Path("/data")]).of_scan.values()) == ["P1", "P1", "P1", "P2"]


def test_folders_that_share_a_study_are_one_patient() -> None:
    scans = [
        nameless("a/x", "1"),
        nameless("b/x", "1"),
        nameless("b/y", "2"),
        nameless("c/y", "2"),
        nameless("d/z", "3"),
    ]
    assert list(tell_patients(scans, [Path("/data")]).of_scan.values()) == ["a", "a", "a", "a", "d"]


def test_folders_that_all_share_are_passed_by() -> None:
    scans = [nameless("export/dicom/P1", "1"), nameless("export/dicom/P2", "2")]
    assert list(tell_patients(scans, [Path("/data")]).of_scan.values()) == ["P1", "P2"]


def test_one_folder_with_everybody_cannot_be_told_apart() -> None:
    found = tell_patients(
        [nameless("all", "1", group=""), series("all", "2", group="", study_uid="2", case_id="all-2")], []
    )
    assert len(set(found.of_scan.values())) == 1
    assert not found.by_folder


def test_nifti_goes_by_bids_or_by_its_bare_name() -> None:
    scans = [scan("sub-01/ses-1/anat/x_T1w.nii.gz"), scan("sub-01_ses-2_T1w.nii.gz"), scan("images/case_3_0000.nii.gz")]
    assert list(tell_patients(scans, [Path("/data")]).of_scan.values()) == ["sub-01", "sub-01", "case_3"]


def test_the_choice_is_told_once() -> None:
    found = inventory(nameless("P1/T1", "1"), nameless("P2/T1", "2"))
    selected = select_cases(found, [ChannelConfig()], [Path("/data")])
    assert [case.group for case in selected.cases] == ["P1", "P2"]
    assert [(f.severity, f.code, f.where) for f in selected.findings] == [("warning", "DICOM-IDENTITY", "patients")]

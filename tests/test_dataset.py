from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medseg.codes import CODES
from medseg.config import ChannelConfig, Config, DataConfig
from medseg.dataset import Dataset, find_cases, select_cases
from medseg.errors import MedsegError
from medseg.split import split_cases
from tests.cases import blob, config, data_set, image, inventory, nifti, scan, series, structures

T1 = ChannelConfig(name="T1", description="*T1*")
T2 = ChannelConfig(name="T2", description="*T2*")


def codes(dataset: Dataset, severity: str = "error") -> dict[str, str]:
    return {finding.where: finding.code for finding in dataset.findings if finding.severity == severity}


# selecting


def test_one_channel_makes_every_fitting_scan_a_case_and_notes_the_others() -> None:
    found = inventory(series("P1/a", "1", description="ax T1 tse"), series("P1/b", "2", description="ax T2"))
    selected = select_cases(found, [T1])
    assert [case.id for case in selected.cases] == ["P1_a"]
    assert codes(selected, "note") == {"P1_b": "NOT-SELECTED"}


@pytest.mark.parametrize("pattern", ["AX t1*", "mr_axial", "*axial*"])
def test_patterns_fit_description_or_folder_in_any_case(pattern: str) -> None:
    found = inventory(series("P1/MR_axial", "1", description="ax T1 tse"))
    assert select_cases(found, [ChannelConfig(description=pattern)]).cases


def test_a_modality_excludes_others_but_not_files_that_do_not_know_theirs() -> None:
    found = inventory(series("P1/ct", "1", modality="CT"), series("P1/mr", "2"), scan("p2.nii.gz"))
    assert [case.id for case in select_cases(found, [ChannelConfig(modality="mr")]).cases] == ["P1_mr", "p2"]


def test_an_unfit_scan_is_an_error_only_if_it_was_wanted() -> None:
    broken = {"code": "DICOM-GAP", "reason": "slice 8 is missing"}
    found = inventory(
        series("P1/a", "1", description="T1", **broken), series("P2/b", "2", description="scout", **broken)
    )
    selected = select_cases(found, [T1])
    assert codes(selected) == {"P1_a": "DICOM-GAP"}
    assert codes(selected, "note") == {"P2_b": "NOT-SELECTED"}


def test_the_series_that_a_structure_set_refers_to() -> None:
    found = inventory(series("P1/a", "1"), series("P1/b", "2"), references=[structures("P1/rs.dcm", ["2"])])
    assert [case.id for case in select_cases(found, [ChannelConfig(referenced=True)]).cases] == ["P1_b"]


def test_referenced_without_any_reference_is_said() -> None:
    selected = select_cases(inventory(series("P1/a", "1")), [ChannelConfig(referenced=True)])
    assert len(selected.cases) == 1
    assert codes(selected, "warning") == {"select": "NOT-SELECTED"}


def test_own_predictions_and_masks_are_no_scans_unless_given_by_name() -> None:
    found = inventory(
        scan("case_01.nii.gz"), scan("case_01_pred.nii.gz"), scan("pred/x.nii.gz"), scan("case_02_seg.nii")
    )
    selected = select_cases(found, [ChannelConfig()], [Path("/data")])
    assert [case.id for case in selected.cases] == ["case_01"]
    assert set(codes(selected, "note")) == {"case_01_pred", "pred_x", "case_02_seg"}
    given_itself = select_cases(found, [ChannelConfig()], [Path("/data/case_02_seg.nii")])
    assert "case_02_seg" in {case.id for case in given_itself.cases}


def test_two_channels_of_a_study_in_the_order_of_select() -> None:
    found = inventory(series("P1/b", "1", description="T1"), series("P1/a", "2", description="T2"))
    (case,) = select_cases(found, [T1, T2]).cases
    assert [s.series_uid for s in case.scans] == ["1", "2"]
    assert case.id == "P1"


@pytest.mark.parametrize(
    "names",
    [
        [
            "BraTS_1/BraTS_1_t1.nii.gz",
            "BraTS_1/BraTS_1_t2.nii.gz",
            "BraTS_2/BraTS_2_t1.nii.gz",
            "BraTS_2/BraTS_2_t2.nii.gz",
        ],
        ["t1/c_1.nii.gz", "t2/c_1.nii.gz", "t1/c_2.nii.gz", "t2/c_2.nii.gz"],
        [
            "imagesTr/c_1_0000_t1.nii",
            "imagesTr/c_1_0001_t2.nii",
            "imagesTr/c_2_0000_t1.nii",
            "imagesTr/c_2_0001_t2.nii",
        ],
    ],
)
def test_channels_of_nifti_cases_by_folder_or_name(names: list[str]) -> None:
    select = [ChannelConfig(name="a", description="*t1*"), ChannelConfig(name="b", description="*t2*")]
    if names[0].startswith("t1/"):
        select = [ChannelConfig(name="a", description="one"), ChannelConfig(name="b", description="two")]
        found = inventory(*(scan(n, description="one" if n.startswith("t1") else "two") for n in names))
    else:
        found = inventory(*(scan(n) for n in names))
    selected = select_cases(found, select, [Path("/data")])
    assert [[s.path.name for s in case.scans] for case in selected.cases] == [
        [Path(names[0]).name, Path(names[1]).name],
        [Path(names[2]).name, Path(names[3]).name],
    ]
    assert len({case.id for case in selected.cases}) == 2


def test_two_scans_for_one_channel_are_not_chosen_between() -> None:
    found = inventory(*(series(f"P1/{n}", n, description=d) for n, d in (("1", "T1"), ("2", "T1 post"), ("3", "T2"))))
    selected = select_cases(found, [T1, T2])
    assert not selected.cases
    assert codes(selected) == {"P1": "DATA-AMBIGUOUS"}
    (message,) = [f.message for f in selected.findings if f.severity == "error"]
    assert "P1_1, P1_2" in message
    assert "post" not in message  # descriptions never leave the header


def test_a_missing_channel_is_named() -> None:
    selected = select_cases(inventory(series("P1/a", "1", description="T1")), [T1, T2])
    assert codes(selected) == {"P1_a": "DATA-CHANNEL"}


# pairing, on files


def test_pairs_by_name_and_orphans_both_ways(tmp_path: Path) -> None:
    settings = data_set(tmp_path, 3)
    nifti(tmp_path / "images/alone.nii.gz", image())
    nifti(tmp_path / "labels/lost.nii.gz", blob())
    found = find_cases(settings)
    assert [case.id for case in found.cases] == ["case_00", "case_01", "case_02"]
    assert all(case.references == (tmp_path / f"labels/{case.id}.nii.gz",) for case in found.cases)
    assert codes(found) == {"alone": "MASK-MISSING", "lost.nii.gz": "MASK-MISSING"}


def test_masks_beside_their_scans_when_no_references_are_given(tmp_path: Path) -> None:
    for number in (1, 2):
        nifti(tmp_path / f"case_{number}/imaging.nii.gz", image(number))
        nifti(tmp_path / f"case_{number}/segmentation.nii.gz", blob())
    found = find_cases(config(tmp_path, scans=tmp_path, references=()))
    assert [(case.group, case.references[0]) for case in found.cases] == [
        ("case_1", tmp_path / "case_1/segmentation.nii.gz"),
        ("case_2", tmp_path / "case_2/segmentation.nii.gz"),
    ]
    assert not codes(found)


def test_references_may_lie_inside_the_scans_or_be_the_same_folder(tmp_path: Path) -> None:
    data_set(tmp_path, 2)
    for references in (tmp_path / "labels", tmp_path):
        found = find_cases(config(tmp_path, scans=tmp_path, references=references))
        assert [case.references[0] for case in found.cases] == [tmp_path / f"labels/case_0{n}.nii.gz" for n in (0, 1)]
        assert not codes(found)


def test_two_masks_for_one_scan_are_not_chosen_between(tmp_path: Path) -> None:
    settings = data_set(tmp_path, 2)
    nifti(tmp_path / "labels/CASE_01_seg.nii.gz", blob())
    (tmp_path / "labels/case_01.nii.gz").rename(tmp_path / "labels/case_01_mask.nii.gz")
    found = find_cases(settings)
    assert [case.id for case in found.cases] == ["case_00"]
    assert codes(found) == {"case_01": "MASK-AMBIGUOUS"}


def test_a_damaged_mask_or_scan_costs_its_own_case_only(tmp_path: Path) -> None:
    settings = data_set(tmp_path, 4)
    (tmp_path / "labels/case_01.nii.gz").write_bytes(b"")
    (tmp_path / "images/case_02.nii.gz").write_bytes(b"")
    found = find_cases(settings)
    assert [case.id for case in found.cases] == ["case_00", "case_03"]
    assert set(codes(found)) == {"case_01", "case_02"}
    assert codes(found, "note") == {"case_02.nii.gz": "MASK-MISSING"}


def test_every_finding_has_a_known_code(tmp_path: Path) -> None:
    found = find_cases(data_set(tmp_path, 1))
    assert all(finding.code in CODES for finding in found.findings)


def test_no_folder_and_no_file() -> None:
    with pytest.raises(MedsegError) as nothing:
        find_cases(Config())
    assert nothing.value.code == "CONFIG-VALUE"
    with pytest.raises(MedsegError) as absent:
        find_cases(Config(data=DataConfig(scans=Path("/nowhere/at/all"))))
    assert absent.value.code == "USAGE-PATH"


# real data


@pytest.mark.realdata
def test_hippocampus_names_its_dirty_pairs(shared_data: Path) -> None:
    folder = shared_data / "hippocampus"
    for settings in (
        config(folder, {"anterior": 1, "posterior": 2}),
        config(folder, {"anterior": 1, "posterior": 2}, scans=folder, references=()),
    ):
        found = find_cases(settings)
        assert len(found.cases) == 208
        orphans = {where.rpartition("/")[2].removeprefix("images_") for where in codes(found)}
        assert orphans == {"hippocampus_118", "hippocampus_010.nii.gz", "hippocampus_281.nii.gz"}


@pytest.mark.realdata
def test_sarcoma_pairs_series_with_structure_sets_and_follows_its_split(shared_data: Path) -> None:
    folder = shared_data / "sarcoma_mr_t1"
    settings = config(
        folder, {"tumour": ["GTV_Mass*"]}, scans=folder / "dicom", references=(), split=folder / "split.json"
    )
    found = find_cases(settings)
    assert len(found.cases) == 41
    assert not codes(found)
    split = split_cases(found.cases, settings.data, 0)
    wanted = json.loads((folder / "split.json").read_text())
    assert [list(split.train), list(split.validation)] == [sorted(wanted["train"]), sorted(wanted["validation"])]
    given = find_cases(config(folder, {"tumour": [1]}, scans=folder / "dicom", references=folder / "masks"))
    assert [case.references for case in given.cases] == [(folder / f"masks/{case.id}.nii.gz",) for case in found.cases]


def test_shapes_of_the_test_images_differ_along_each_axis() -> None:
    assert len(set(np.shape(image()))) == 3

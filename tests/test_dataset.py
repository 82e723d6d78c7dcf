from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.codes import CODES
from medseg.config import ChannelConfig, Config, DataConfig
from medseg.dataset import Case, Dataset, find_cases, select_cases, split_cases
from medseg.errors import MedsegError
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


# splitting


def cases(*groups: str) -> list[Case]:
    return [Case(f"case_{n:03}", group, (scan(f"case_{n:03}.nii.gz"),)) for n, group in enumerate(groups)]


GROUPS = st.lists(st.sampled_from([f"p{n}" for n in range(12)]), min_size=2, max_size=30).filter(
    lambda g: len(set(g)) > 1
)


@given(GROUPS, st.floats(0.01, 0.99), st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_a_random_split_is_whole_disjoint_by_patient_and_blind_to_order(groups, share, seed, random) -> None:  # type: ignore[no-untyped-def]
    some = cases(*groups)
    split = split_cases(some, DataConfig(validation=share), seed)
    patient = {case.id: case.group for case in some}
    assert sorted((*split.train, *split.validation)) == sorted(patient)
    assert not {patient[i] for i in split.train} & {patient[i] for i in split.validation}
    assert split.train
    assert split.validation
    shuffled = random.sample(some, len(some))
    assert split_cases(shuffled, DataConfig(validation=share), seed) == split


def test_the_share_counts_patients() -> None:
    some = cases(*(f"p{n % 10}" for n in range(30)))
    split = split_cases(some, DataConfig(validation=0.2), 1)
    assert len(split.validation) == 6  # 0.2 x 10 patients = 2 patients of 3 cases each
    assert split_cases(some, DataConfig(validation=0.2), 2) != split
    assert split_cases(some, DataConfig(validation=0), 1).validation == ()


def written(folder: Path, content: object) -> DataConfig:
    path = folder / "split.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return DataConfig(split=path)


def test_a_split_file_names_cases_patients_or_folders(tmp_path: Path) -> None:
    some = [*cases("p1", "p1", "p2"), Case("STS_7_a", "hash", (series("STS_7/a", "1"),))]
    split = split_cases(some, written(tmp_path, {"train": ["p1", "STS_7"], "validation": ["case_002"]}), 0)
    assert split.train == ("STS_7_a", "case_000", "case_001")
    assert split.validation == ("case_002",)


@pytest.mark.parametrize("name", ["data", "export"])
def test_a_split_file_names_no_folder_above_the_scans(tmp_path: Path, name: str) -> None:
    some = [Case(f"case_{n}", f"p{n}", (scan(f"export/s{n}/t1.nii.gz"),)) for n in (1, 2)]
    for names, wrong in ((["s1"], False), (["t1.nii.gz"], False), ([name], True)):
        data = written(tmp_path, {"train": names, "validation": []})
        data = data.model_copy(update={"scans": (Path("/data/export"),)})
        if not wrong:
            assert "case_1" in split_cases(some, data, 0).train
            continue
        with pytest.raises(MedsegError, match=f"names {name}, which is no case") as raised:
            split_cases(some, data, 0)
        assert raised.value.code == "DATA-SPLIT"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"train": ["case_000"], "validation": ["case_001"]}, "on both sides"),  # one patient
        ({"train": ["case_000", "case_002"], "validation": ["case_002"]}, "case_002"),
        ({"train": ["case_000"], "validation": ["nobody"]}, "nobody"),
        ({"train": [], "validation": ["p2"]}, "no case to train"),
        ({"train": ["p1"], "val": ["p2"]}, "two lists"),
        ({"train": "p1", "validation": ["p2"]}, "two lists"),
        ([], "two lists"),
        ("{", "cannot be read"),
    ],
)
def test_a_split_file_that_is_wrong(tmp_path: Path, content: object, part: str) -> None:
    with pytest.raises(MedsegError) as raised:
        split_cases(cases("p1", "p1", "p2"), written(tmp_path, content), 0)
    assert raised.value.code == "DATA-SPLIT"
    assert part in str(raised.value)


def test_a_split_file_may_name_cases_that_were_rejected(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = written(tmp_path, {"train": ["p1", "gone_9"], "validation": ["p2"]})
    assert split_cases(cases("p1", "p2"), data, 0, left_out={"gone_9_T1"}).train == ("case_000",)
    assert "gone_9" in caplog.text


def test_one_patient_cannot_be_split() -> None:
    with pytest.raises(MedsegError) as raised:
        split_cases(cases("p1", "p1"), DataConfig(validation=0.2), 0)
    assert raised.value.code == "DATA-SPLIT"
    with pytest.raises(MedsegError) as empty:
        split_cases([], DataConfig(), 0)
    assert empty.value.code == "DATA-EMPTY"
    assert "medseg check" not in str(empty.value)  # which may be what was just run


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

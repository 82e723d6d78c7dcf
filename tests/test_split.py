"""Dividing cases: by patient, blind to the order of files, followed to the letter where a file says how."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.case import Case, Split
from medseg.check import examine
from medseg.config import DataConfig
from medseg.errors import MedsegError
from medseg.split import fold_cases, folds_text, split_cases
from tests.cases import blob, data_set, image, nifti, scan, series


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


# folds

SIZES = st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.0, 7.0, 7.0, 90.0]), min_size=2, max_size=40)


def spread(counts: list[int]) -> int:
    return max(counts) - min(counts)


@settings(max_examples=200)
@given(SIZES, st.integers(2, 7), st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_folds_are_whole_disjoint_even_and_blind_to_order(sizes, folds, seed, random) -> None:  # type: ignore[no-untyped-def]
    some = cases(*(f"p{n}" for n in range(len(sizes))))
    volumes = {case.id: [ml] for case, ml in zip(some, sizes, strict=True)}
    holding = sum(ml > 0 for ml in sizes)
    if holding < folds:
        with pytest.raises(MedsegError, match=f"need as many patients with a label, there are {holding}"):
            fold_cases(some, volumes, folds, DataConfig(), seed)
        return
    splits = fold_cases(some, volumes, folds, DataConfig(), seed)
    ids = sorted(case.id for case in some)
    assert len(splits) == folds
    assert sorted(case for split in splits for case in split.validation) == ids
    assert all(sorted((*split.train, *split.validation)) == ids for split in splits)
    assert spread([len(split.validation) for split in splits]) <= 1
    assert spread([sum(volumes[case][0] > 0 for case in split.validation) for split in splits]) <= 1
    larger = sorted((ml for ml in sizes if ml), reverse=True)[:folds]  # each of the largest is in a fold of its own
    if len(set(larger)) == folds:
        tops = [max(volumes[case][0] for case in split.validation) for split in splits]
        assert sorted(tops, reverse=True) == larger
    shuffled = random.sample(some, len(some))
    assert fold_cases(shuffled, volumes, folds, DataConfig(), seed) == splits


@settings(max_examples=50)
@given(GROUPS, st.integers(2, 3), st.integers(0, 1000))
def test_a_patient_is_in_one_fold(groups, folds, seed) -> None:  # type: ignore[no-untyped-def]
    some = cases(*groups)
    if len(set(groups)) < folds:
        return
    splits = fold_cases(some, {case.id: [1.0] for case in some}, folds, DataConfig(), seed)
    patient = {case.id: case.group for case in some}
    for split in splits:
        assert not {patient[i] for i in split.train} & {patient[i] for i in split.validation}
    assert spread([len({patient[i] for i in split.validation}) for split in splits]) <= 1


def test_each_label_is_spread_over_the_folds() -> None:
    some = cases(*(f"p{n}" for n in range(12)))  # 8 with the organ alone, 4 with a tumour too
    volumes = {case.id: [10.0 + n, 1.0 if n % 3 == 0 else 0.0] for n, case in enumerate(some)}
    splits = fold_cases(some, volumes, 4, DataConfig(), 0)
    assert [sum(volumes[i][1] > 0 for i in split.validation) for split in splits] == [1, 1, 1, 1]
    assert fold_cases(some, volumes, 4, DataConfig(), 1) != splits
    rare = {name: [ml[0], float(name == "case_003")] for name, ml in volumes.items()}
    with pytest.raises(MedsegError, match="label 2 is in one patient only") as raised:
        fold_cases(some, rare, 4, DataConfig(), 0)
    assert raised.value.code == "DATA-SPLIT"


def test_folds_are_written_for_people_and_read_back(tmp_path: Path) -> None:
    some = cases(*(f"p{n}" for n in range(7)))
    volumes = {case.id: [1.0] for case in some}
    splits = fold_cases(some, volumes, 3, DataConfig(), 5)
    text = folds_text(splits)
    assert len(text.splitlines()) == 5
    assert fold_cases(some, {}, 3, written(tmp_path, text), 99) == splits
    by_patient = {"folds": [["p0", "p1"], ["p2", "p3", "p4"], ["case_005"]]}
    read = fold_cases(some, {}, 3, written(tmp_path, by_patient), 0)
    assert read[2] == Split(tuple(f"case_{n:03}" for n in range(5)), ("case_005",))  # p6 is in none


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"folds": [["p1"], ["p2"]]}, "holds 2 folds, the configuration wants 3"),
        ({"folds": [["p1"], ["p2"], []]}, "fold 3 has no case"),
        ({"folds": [["p1"], ["p2"], ["case_000"]]}, "case_000 stand in several folds"),
        ({"folds": [["p1"], ["case_002"], ["case_003"]]}, "one patient, as case_002, case_003 stands in several folds"),
        ({"folds": [["p1"], ["p2"], ["p9"]]}, "p9, which is no case"),
        ({"train": ["p1"], "validation": ["p2"]}, "not a list of folds"),
        ({"folds": {"1": ["p1"]}}, "not a list of folds"),
        ("[", "cannot be read"),
    ],
)
def test_a_folds_file_that_is_wrong(tmp_path: Path, content: object, part: str) -> None:
    some = cases("p1", "p2", "p3", "p3")
    with pytest.raises(MedsegError) as raised:
        fold_cases(some, {}, 3, written(tmp_path, content), 0)
    assert raised.value.code == "DATA-SPLIT"
    assert part in str(raised.value)


def test_folds_in_a_file_are_not_two_sides(tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match="Set folds to how many it holds"):
        split_cases(cases("p1", "p2"), written(tmp_path, {"folds": [["p1"], ["p2"]]}), 0)


def test_the_examination_divides_into_folds_and_keeps_copies_together(tmp_path: Path) -> None:
    config = data_set(tmp_path, 7).model_copy(update={"folds": 3})
    nifti(tmp_path / "images/case_05.nii.gz", image(1))  # the scan of case_01 again
    nifti(tmp_path / "labels/case_02.nii.gz", blob(value=0))
    found = examine(config)
    assert len(found.folds) == 3
    assert found.split == found.folds[0]
    (fold,) = [fold for fold in found.folds if "case_01" in fold.validation]
    assert "case_05" in fold.validation
    assert not [finding for finding in found.dataset.findings if finding.severity == "error"]
    assert json.loads(found.to_json())["folds"] == [list(fold.validation) for fold in found.folds]
    few = examine(config.model_copy(update={"folds": 6}))  # 6 patients, one of them without the disease
    assert (few.split, few.folds) == (None, ())
    assert [f.message for f in few.dataset.findings if f.code == "DATA-SPLIT"] == [
        "6 folds need as many patients with a label, there are 5. Choose fewer folds, or add patients."
    ]

"""Measures are kept as they are, and found again only for the same files and settings."""

from __future__ import annotations

import zlib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg import check
from medseg.case import Case, Dataset
from medseg.case_measure import measure_case
from medseg.check import Examination, examine
from medseg.config import Config, DataConfig
from medseg.dataset import find_cases
from medseg.io.hashes import Hashes
from medseg.measured import Measures
from tests.studies import dicom_patient, leaked, nifti_case, nifti_study, settings


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cases that were read."""
    names: list[str] = []

    def watched(case: Case, config: Config) -> Any:
        names.append(case.id)
        return measure_case(case, config)

    monkeypatch.setattr(check, "measure_case", watched)
    return names


def look(config: Config, folder: Path, *others: Path) -> Examination:
    return examine(config, known=Measures(folder, Hashes(), others))


def assert_equal(one: Any, other: Any) -> None:
    """Compare through data classes, sequences and arrays, types included."""
    assert type(one) is type(other)
    if is_dataclass(one):
        for field in fields(one):
            assert_equal(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    elif isinstance(one, (tuple, list)):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_equal(*pair)
    else:
        assert one == other


def test_a_second_look_reads_nothing_and_finds_the_same(tmp_path: Path, read: list[str]) -> None:
    config = settings(nifti_study(tmp_path))
    plain = examine(config)
    assert read == ["p0", "p1", "p2", "p3", "p4"]
    first = look(config, tmp_path / "kept")
    del read[:]
    second = look(config, tmp_path / "kept")
    assert read == []
    for found in (first, second):
        assert_equal(found.dataset.findings, plain.dataset.findings)
        assert found.split == plain.split
        assert found.measures.keys() == plain.measures.keys()
        for name, measure in plain.measures.items():
            assert_equal(found.measures[name], measure)


def test_only_what_is_new_is_read(tmp_path: Path, read: list[str]) -> None:
    config = settings(nifti_study(tmp_path, 3))
    look(config, tmp_path / "kept")
    del read[:]
    nifti_case(tmp_path, "p1", 77)
    nifti_case(tmp_path, "p9", 9)
    (tmp_path / "masks" / "p0.nii.gz").write_bytes((tmp_path / "masks" / "p9.nii.gz").read_bytes())
    found = look(config, tmp_path / "kept")
    assert read == ["p0", "p1", "p9"]
    for name, measure in examine(config).measures.items():
        assert_equal(found.measures[name], measure)


@pytest.mark.parametrize(
    "changes", [{"labels": {"edema": (1,)}}, {"labels": {"tumour": (1,), "edema": (2,)}}, {"labels": {"tumour": (2,)}}]
)
def test_other_settings_are_other_measures(tmp_path: Path, read: list[str], changes: dict[str, Any]) -> None:
    study = nifti_study(tmp_path, 2)
    look(settings(study), tmp_path / "kept")
    del read[:]
    look(settings(study, epochs=77), tmp_path / "kept")
    assert read == []  # how it is trained is no matter
    look(settings(study, **changes), tmp_path / "kept")
    assert read == ["p0", "p1"]


def test_a_copy_under_another_name_has_measures_of_its_own(tmp_path: Path, read: list[str]) -> None:
    config = settings(nifti_study(tmp_path, 1))
    look(config, tmp_path / "kept")
    for folder in ("scans", "masks"):
        (tmp_path / folder / "p0.nii.gz").rename(tmp_path / folder / "renamed.nii.gz")
    found = look(config, tmp_path / "kept")
    assert read == ["p0", "renamed"]
    assert found.measures["renamed"].id == "renamed"


def test_measures_of_another_run_help_too(tmp_path: Path, read: list[str]) -> None:
    config = settings(nifti_study(tmp_path, 2))
    look(config, tmp_path / "one")
    del read[:]
    look(config, tmp_path / "two", tmp_path / "one")
    assert read == []


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_damaged_measures_are_made_again(tmp_path: Path, read: list[str], damage: str) -> None:
    config = settings(nifti_study(tmp_path, 2))
    look(config, tmp_path / "kept")
    (path, _) = sorted((tmp_path / "kept").iterdir())
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.write_bytes({"flip": flipped, "cut": content[:-3], "empty": b""}[damage])
    del read[:]
    look(config, tmp_path / "kept")
    assert len(read) == 1
    assert path.read_bytes() == content


def test_a_fault_is_looked_at_anew(tmp_path: Path, read: list[str]) -> None:
    config = settings(nifti_study(tmp_path, 3))
    path = tmp_path / "scans" / "p1.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert "p1" not in look(config, tmp_path / "kept").measures
    del read[:]
    assert "p1" not in look(config, tmp_path / "kept").measures
    path.write_bytes(whole)
    assert "p1" in look(config, tmp_path / "kept").measures
    assert read == ["p1", "p1"]


def test_several_processes_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(nifti_study(tmp_path, 6))
    (tmp_path / "scans" / "p3.nii.gz").write_bytes(b"no scan at all")
    path = tmp_path / "masks" / "p4.nii.gz"
    path.write_bytes(path.read_bytes()[:-40])
    dataset = find_cases(config)
    plain = examine(config, dataset)
    monkeypatch.setattr(check, "WORKER_S", 0.0)
    monkeypatch.setattr(check, "processes_for", lambda *_: 2)
    spread = examine(config, Dataset(dataset.cases, dataset.findings))
    assert_equal(spread.dataset.findings, plain.dataset.findings)
    assert list(spread.measures) == list(plain.measures) == ["p0", "p1", "p2", "p5"]
    for name, measure in plain.measures.items():
        assert_equal(spread.measures[name], measure)


def test_nobody_is_named_in_what_is_kept(tmp_path: Path) -> None:
    for seed in range(2):
        dicom_patient(tmp_path / "in", seed)
    config = settings(DataConfig(scans=tmp_path / "in", validation=0.5))  # type: ignore[arg-type]
    look(config, tmp_path / "kept")
    files = list((tmp_path / "kept").iterdir())
    assert len(files) == 2
    assert leaked(b"".join(zlib.decompress(path.read_bytes()[32:]) + path.name.encode() for path in files)) == []

"""What a batch is told before its first scan: sums from headers, and a forecast by the pace of the first case."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.case import Case
from medseg.case_work import Done, Failed
from medseg.grid import Grid
from medseg.ledger import Row
from medseg.preflight import Forecast, look_ahead, shown
from medseg.run_file import RunFile
from tests.cases import scan
from tests.strategies import affine
from tests.studies import preparation

UNKNOWN = RunFile(Path("nowhere/run.json"))
FREE = (4_000_000_000, 10_000_000_000)


def case(name: str, slices: int, channels: int = 1) -> Case:
    """Sagittal slices of 100 x 50 voxels of 1 x 2 mm, `slices` of them 3 mm apart along x."""
    grid = Grid((slices, 100, 50), affine("RAS", (0, 0, 0), (3, 1, 2), (0, 0, 0)))
    return Case(name, "", tuple(scan(f"{name}-{n}.nii", grid=grid) for n in range(channels)))


@pytest.fixture(autouse=True)
def left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.preflight.free_memory", lambda: FREE[0])
    monkeypatch.setattr("medseg.preflight.free_disk", lambda folder: FREE[1])


@pytest.fixture
def known(tmp_path: Path) -> RunFile:
    file = RunFile(tmp_path / "run.json")
    for name in ("p", "other"):
        file.remember(name, Done("key", "hash", {}))
    file.remember("q", Failed("key", "RUN-MEMORY", ""))
    return file


def test_sums_from_headers(known: RunFile) -> None:
    rows = [
        Row("a", "", "rejected", "DICOM-GAP"),
        Row("b", "", "rejected", "NIFTI-READ"),
        Row("c", "", "rejected", "DICOM-GAP"),
        Row("d", "", "rejected", "NOT-SELECTED"),
        Row("c", "", "rejected", "DICOM-GAP"),  # told twice, one row in the ledger
    ]
    cases = [case("p", 40), case("q", 300, channels=2)]
    found = look_ahead(cases, rows, known, preparation("sagittal"), Path(), objects=2)
    assert found.slices == 340
    # 300 x 100 x 50 voxels in 2 channels of 5 bytes are 15 MB; 340 x 5000 voxels, 1 % and two times an eighth, 0.442 MB
    assert found.largest == ("q", "300x100x50, 2 channels", 15_000_000)
    assert found.disk == 442_000
    assert found.text().splitlines() == [
        "to predict: 2 cases of 340 slices, 1 of them finished before: re-used unless something has changed",
        "refused: 3 (2 x DICOM-GAP, slices are missing inside the stack; "
        "1 x NIFTI-READ, the file is not readable as NIfTI, or is truncated)",
        "passed over: 1 that the model does not take",
        "memory: up to 15 MB for the largest, q (300x100x50, 2 channels), 4.0 GB free",
        "disk: up to 1 MB for the results, 10.0 GB free",
    ]
    assert found.warnings() == []


def test_the_plane_decides_how_many_slices(tmp_path: Path) -> None:
    assert look_ahead([case("p", 40)], [], UNKNOWN, preparation("axial"), tmp_path).slices == 50


def test_nothing_to_do() -> None:
    assert look_ahead([], [], UNKNOWN, preparation(), Path()).text().splitlines() == ["to predict: 0 cases of 0 slices"]


def test_a_shortage_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.preflight.free_memory", lambda: 700_000)
    monkeypatch.setattr("medseg.preflight.free_disk", lambda folder: 1999)
    memory, disk = look_ahead([case("p", 40)], [], UNKNOWN, preparation(), Path()).warnings()
    assert "p may need more memory" in memory
    assert "disk" in disk
    monkeypatch.setattr("medseg.preflight.free_memory", lambda: 1_000_000)
    monkeypatch.setattr("medseg.preflight.free_disk", lambda folder: None)
    assert look_ahead([case("p", 40)], [], UNKNOWN, preparation(), Path()).warnings() == []


def test_forecast_by_the_first_case_that_was_computed() -> None:
    """b took 20 s for 10 slices of 100 x 100 pixels; the other three have 60."""
    now = [0.0]
    cases = [case(name, slices) for name, slices in (("a", 70), ("b", 10), ("c", 20), ("d", 30), ("e", 10))]
    forecast = Forecast(cases, preparation("sagittal"), clock=lambda: now[0])
    now[0] = 500.0  # hashing what is re-used
    assert forecast.after("a", computed=False) == ""
    now[0] = 520.0
    assert forecast.after("b", computed=True) == "b took 20 s; the others take about 2 min at this pace"
    now[0] = 530.0
    assert forecast.after("c", computed=True) == ""  # told once


def test_nothing_is_forecast_for_the_last() -> None:
    assert Forecast([case("a", 5)], preparation()).after("a", computed=True) == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (100, "2 min"), (5340, "89 min"), (5460, "1 h 31 min")]
)
def test_lengths_of_time(seconds: float, text: str) -> None:
    assert shown(seconds) == text

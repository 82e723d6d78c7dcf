"""The ledger: every case in it, exit codes, and cells that no spreadsheet runs."""

from __future__ import annotations

import csv
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.ledger import NOT_SELECTED, Ledger, Row, cell, read_rows, rejected_rows
from medseg.scan import Inventory, Note, Skipped
from tests.cases import scan

COLUMNS = ["case", "source", "status", "code", "message", "warnings", "output", "seconds"]


def row(case: str = "a", status: Any = "done", code: str = "", **more: Any) -> Row:
    return Row(case, more.pop("source", f"/data/{case}"), status, code, **more)


def written(folder: Path, *rows: Row) -> list[list[str]]:
    Ledger(folder).record(*rows)
    with (folder / "cases.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_the_columns_and_a_row(tmp_path: Path) -> None:
    one = row(output="a.nii.gz", warnings="few slices (DICOM-FEW)", seconds=1.236)
    assert written(tmp_path, one) == [
        COLUMNS,
        ["a", "/data/a", "done", "", "", "few slices (DICOM-FEW)", "a.nii.gz", "1.24"],
    ]


def test_an_empty_batch_has_a_header(tmp_path: Path) -> None:
    assert written(tmp_path) == [COLUMNS]


def test_it_is_on_disk_after_every_row_and_a_case_has_one_row(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.record(row("b"))
    assert [found.case for found in read_rows(ledger.path)] == ["b"]
    ledger.record(row("a", "failed", "RUN-CRASH"))
    ledger.record(row("b", "reused"))
    assert [(found.case, found.status) for found in read_rows(ledger.path)] == [("a", "failed"), ("b", "reused")]
    assert [path.name for path in tmp_path.iterdir()] == ["cases.csv"]


def test_unread_files_of_one_name_are_all_there(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    skipped = [Skipped(Path(f"/data/{site}/IM1.dcm"), "SKIP-DAMAGED", "cut short") for site in "abc"]
    ledger.record(*rejected_rows(Inventory((), (), tuple(skipped))))
    ledger.record(row("IM1.dcm"))
    assert len(ledger) == 4
    assert ledger.exit_code == 3


def test_what_may_have_been_a_scan_is_in_the_ledger_and_junk_is_not() -> None:
    codes = {
        "SKIP-JUNK": False,
        "SKIP-FORMAT": False,
        "SKIP-HIDDEN": False,
        "SKIP-SPECIAL": False,
        "SKIP-OBJECT": False,
        "SKIP-UNREADABLE": True,
        "SKIP-DAMAGED": True,
        "DICOM-READ": True,
    }
    skipped = tuple(Skipped(Path(f"/data/{code}"), code, "why") for code in codes)
    bad = scan("bad", code="DICOM-GAP", reason="a slice is missing", warnings=(Note("DICOM-FEW", "few"),))
    rows = rejected_rows(Inventory((scan("good"), bad), (), skipped))
    assert {found.case for found in rows} == {"bad"} | {code for code, listed in codes.items() if listed}
    (first,) = (found for found in rows if found.case == "bad")
    assert (first.status, first.code, first.message) == ("rejected", "DICOM-GAP", "a slice is missing")
    assert first.warnings == "few (DICOM-FEW)"


STATUSES = {"done": "", "reused": "", "rejected": "DICOM-GAP", "failed": "RUN-CRASH", "passed over": NOT_SELECTED}


@pytest.mark.parametrize("present", list(product([False, True], repeat=5)), ids=str)
def test_exit_codes(tmp_path: Path, present: tuple[bool, ...]) -> None:
    kinds = [kind for kind, there in zip(STATUSES, present, strict=True) if there]
    ledger = Ledger(tmp_path)
    ledger.record(*(row(k, "rejected" if k == "passed over" else k, STATUSES[k]) for k in kinds))
    some_done = "done" in kinds or "reused" in kinds
    some_bad = "rejected" in kinds or "failed" in kinds
    assert ledger.exit_code == (1 if not some_done else 3 if some_bad else 0)
    assert ledger.counts().get("not selected", 0) == ("passed over" in kinds)
    assert sum(ledger.counts().values()) == len(kinds)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(1)", "\tx", "=cmd|'/C calc'!A0"])
def test_formulas_are_disarmed(tmp_path: Path, text: str) -> None:
    cells = written(tmp_path, row(text, source=text, message=text, warnings=text, output=text))[1]
    assert all(cells[COLUMNS.index(name)] == f"'{text}" for name in ("case", "source", "message", "warnings", "output"))


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=60)
@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=4, unique_by=lambda texts: texts[:2]))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, str, str]]) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    ledger = Ledger(folder)
    rows = [row(case, source=source, message=message) for case, source, message in texts]
    ledger.record(*rows)
    found = read_rows(ledger.path)
    for one in rows:
        texts_ = tuple(text.replace("\r", " ") for text in (one.case, one.source, one.message))
        if not any(text[:1] == "'" for text in texts_):  # a quote of its own may be taken for the disarming one
            assert texts_ in {(f.case, f.source, f.message) for f in found}
    assert len(found) == len(rows)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = b"sc\xe4n".decode("utf-8", "surrogateescape")
    cells = written(tmp_path, row(name, source=f"/data/{name}"))
    assert cells[1][:2] == ["sc?n", "/data/sc?n"]


def test_line_breaks_and_quotes_stay_in_their_cell(tmp_path: Path) -> None:
    text = 'two\nlines, a comma and a "quote"'
    assert written(tmp_path, row(message=text))[1][4] == text


@pytest.mark.parametrize("content", ["", "case,status\na,unknown\n", "other\n1\n"])
def test_a_file_that_is_no_ledger(tmp_path: Path, content: str) -> None:
    (tmp_path / "cases.csv").write_text(content)
    if not content:
        assert read_rows(tmp_path / "cases.csv") == []
        return
    with pytest.raises(ValueError, match="status"):
        read_rows(tmp_path / "cases.csv")


@given(TEXT)
def test_cells_never_begin_a_formula(text: str) -> None:
    assert cell(text)[:1] not in ("=", "+", "-", "@", "\t", "\r")

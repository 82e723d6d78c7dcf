"""The listing: nothing cut, columns aligned at any width, one line a row without a terminal."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from medseg.listing import Listed, hanging, printable, summary, table_rows, to_csv, to_json, to_text
from medseg.scan import Inventory, Note, Skipped
from tests.cases import scan

USABLE = Listed(
    "STS_001", "dicom", "MR", "174x158x59", "0.977x0.977x3.27", "LPS", "usable", "", "", "", 59, "/d/STS_001"
)
REASON = "slices 41 and 42 are 7.5 mm apart, the others 2.5 mm: 2 slices are missing"
REJECTED = Listed("case-07", "dicom", "CT", "", "", "", "rejected", "DICOM-GAP", REASON, "", 58, "/d/case-07")
LONG = Listed("a_study_that_somebody_named_at_great_length_" * 2, *list(vars(USABLE).values())[1:])

PATIENT = settings(suppress_health_check=[HealthCheck.too_slow])
"""A busy machine is no fault."""

texts = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=70)
rows = st.builds(
    Listed, texts, st.sampled_from(["dicom", "nifti", ""]), st.sampled_from(["CT", ""]),
    st.just("4x4x4"), st.just("1x1x1"), st.just("LPS"),
    st.sampled_from(["usable", "rejected"]), st.sampled_from(["", "DICOM-GAP"]), texts, texts, st.just(1), texts,
)  # fmt: skip


def test_reads_as_a_table() -> None:
    assert to_text([USABLE, REJECTED], 80).plain.splitlines() == [
        "case     kind  voxels      spacing mm        axes  verdict   why, or what to loo",
        "STS_001  MR    174x158x59  0.977x0.977x3.27  LPS   usable",
        "case-07  CT                                        rejected",
        "    slices 41 and 42 are 7.5 mm apart, the others 2.5 mm: 2 slices are missing",
        "    (DICOM-GAP). Export the series again, or exclude it.",
    ]


def test_wide_terminals_have_the_reason_in_the_row() -> None:
    line = to_text([USABLE, REJECTED], 200).plain.splitlines()[2]
    assert line.startswith("case-07  CT ")
    assert line.endswith(f"rejected  {REASON} (DICOM-GAP). Export the series again, or exclude it.")


def test_long_ids_have_a_line_of_their_own() -> None:
    lines = to_text([USABLE, LONG], 80).plain.splitlines()
    assert lines[2] == LONG.case
    assert lines[3].index("MR") == lines[1].index("MR")


def test_wide_characters_keep_the_columns() -> None:
    chinese = Listed("肿瘤_甲", *list(vars(USABLE).values())[1:])
    first, second = to_text([USABLE, chinese], 80).plain.splitlines()[1:]
    assert cell_len(first.partition("MR")[0]) == cell_len(second.partition("MR")[0])


@PATIENT
@given(st.lists(rows, min_size=1, max_size=6))
def test_one_line_a_row_for_grep(some: list[Listed]) -> None:
    lines = to_text(some).plain.split("\n")
    assert len(lines) == 1 + len(some)
    for row, line in zip(some, lines[1:], strict=True):
        assert line.startswith(printable(row.case))
        assert line.rstrip().endswith(printable(row.why or row.verdict).rstrip())


@PATIENT
@given(st.lists(rows, min_size=1, max_size=6), st.integers(40, 200))
def test_no_word_is_lost_at_any_width(some: list[Listed], width: int) -> None:
    shown = "".join(to_text(some, width).plain.split())
    for row in some:
        assert "".join(printable(row.case).split()) in shown
        assert "".join(printable(row.why).split()) in shown


@pytest.mark.parametrize("width", [80, 120, 170])
def test_lines_fit_the_terminal(width: int) -> None:
    assert max(map(cell_len, to_text([USABLE, REJECTED], width).plain.splitlines())) <= width


def test_usable_with_a_warning_is_yellow() -> None:
    warned = table_rows(Inventory((scan("a.nii.gz", warnings=(Note("DICOM-FEW", "3 slices only"),)),), (), ()))
    assert warned[0].warnings == "3 slices only (DICOM-FEW)"
    assert "yellow" in {str(span.style) for span in to_text(warned, 80).spans}
    assert "green" in {str(span.style) for span in to_text([USABLE], 80).spans}


def test_nothing_is_nothing() -> None:
    assert to_text([], 80).plain == ""


def test_files_that_may_have_been_scans_are_rows_and_junk_is_counted() -> None:
    lost = Skipped(scan("IM7").path, "SKIP-DAMAGED", "the file is empty")
    junk = [Skipped(scan(name).path, "SKIP-JUNK", "neither") for name in ("a.txt", "b.pdf")]
    inventory = Inventory((scan("a.nii.gz"),), (), (lost, *junk))
    assert [(row.case, row.verdict, row.code) for row in table_rows(inventory)] == [
        ("a", "usable", ""),
        ("IM7", "rejected", "SKIP-DAMAGED"),
    ]
    assert summary(inventory) == "1 usable, 1 rejected; 2 other files passed over: 2 x neither DICOM nor NIfTI"
    assert summary(Inventory((), (), ())) == "no scan found"


def test_usable_scans_come_first_and_files_with_one_fault_are_one_row() -> None:
    packed = [Skipped(scan("IM7").path.with_name(f"IM{n}"), "SKIP-DAMAGED", "packed") for n in range(5)]
    other = Skipped(scan("IM7").path, "SKIP-DAMAGED", "the file is empty")
    bad = scan("a.nii.gz", code="NIFTI-GEOMETRY", reason="why")
    rows = table_rows(Inventory((bad, scan("b.nii.gz")), (), (*packed, other)))
    assert [(row.case, row.verdict, row.files) for row in rows] == [
        ("b", "usable", 1),
        ("a", "rejected", 1),
        ("IM0 and 4 more", "rejected", 5),
        ("IM7", "rejected", 1),
    ]
    assert [row.cells[1] for row in rows] == ["NIfTI", "NIfTI", "", ""]


def test_names_that_are_not_text_can_be_printed() -> None:
    assert printable("a\udcffb\x1b[31m\n") == "a?b [31m "
    named = Listed("s\udcfe", *list(vars(USABLE).values())[1:-1], "/bad\udcff/s\udcfe.nii")
    to_text([named], 80).plain.encode("utf-8")
    to_csv([named]).encode("utf-8")
    json.loads(to_json([named]).encode("utf-8"))


def test_csv_and_json_hold_every_field_and_no_formula() -> None:
    evil = Listed("=cmd|'/C calc'!A0", *list(vars(REJECTED).values())[1:])
    (record,) = csv.DictReader(io.StringIO(to_csv([evil])))
    assert record["case"] == "'=cmd|'/C calc'!A0"
    assert record["reason"] == REASON
    assert json.loads(to_json([REJECTED])) == [vars(REJECTED)]


def test_hanging_breaks_at_words_only() -> None:
    assert hanging("one two-three four", 9, "- ", "  ") == "- one\n  two-three\n  four"
    assert hanging("one two", None, "- ") == "- one two"

"""The body part of a series: a term of the standard or nothing, since anything may be typed into the field."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import dcmread

from medseg.io.dicom_body_parts import body_part
from medseg.scan import find_scans
from tests.studies import dicom_patient


@pytest.mark.parametrize(
    ("stated", "term"),
    [("CHEST", "CHEST"), ("whole body", "WHOLEBODY"), ("L SPINE", "LSPINE"), ("Quixote", ""), ("CHEST\\ARM", "")],
)
def test_terms_of_the_standard_and_no_others(stated: str, term: str) -> None:
    assert body_part(stated) == term


def test_a_scan_knows_its_body_part(tmp_path: Path) -> None:
    series = dicom_patient(tmp_path, 1, reference=False)
    for file in series.iterdir():
        dataset = dcmread(file)
        dataset.BodyPartExamined = "THIGH"
        dataset.save_as(file)
    (scan,) = find_scans(series)
    assert scan.body_part == "THIGH"

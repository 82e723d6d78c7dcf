"""`convert`: exact voxels and geometry, a ledger, nobody's scan overwritten."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.convert import convert
from medseg.errors import UsageError
from medseg.ledger import read_rows
from tests import cases, phantoms


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A CT, one that lacks a slice, a NIfTI and junk."""
    folder = tmp_path / "study"
    phantoms.save(phantoms.series("CT", phantoms.oblique((12, -17, 23))), folder / "good")
    slices = phantoms.series()
    phantoms.save(slices[:8] + slices[9:], folder / "gap")
    cases.nifti(folder / "mr.nii.gz", cases.image())
    (folder / "readme.txt").write_text("hello")
    return folder


def test_voxels_lie_where_the_object_is(study: Path, tmp_path: Path) -> None:
    convert([study], tmp_path / "out")
    image = nib.load(tmp_path / "out" / "good.nii.gz")
    # Stored as whole HU: half a unit of rounding, and what the rounded positions in the header leave.
    assert phantoms.misfit(np.asarray(image.dataobj), image.affine) < 0.51
    assert image.header["sform_code"] == image.header["qform_code"] == 1
    assert np.allclose(image.get_sform(), image.get_qform(), atol=1e-4)


def test_nifti_comes_back_equal(study: Path, tmp_path: Path) -> None:
    convert([study], tmp_path / "out")
    image = nib.load(tmp_path / "out" / "mr.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj), cases.image())
    assert np.allclose(image.affine, cases.AFFINE, atol=1e-6)


def test_ledger_and_news(study: Path, tmp_path: Path) -> None:
    told: list[str] = []
    ledger = convert([study], tmp_path / "out", watch=lambda stage, done, total, note="": told.append(note))
    assert {row.case: row.status for row in ledger} == {"good": "done", "gap": "rejected", "mr": "done"}
    assert ledger.exit_code == 3
    rows = {row.case: row for row in read_rows(tmp_path / "out" / "cases.csv")}
    assert rows["gap"].code == "DICOM-GAP"
    assert rows["good"].output == "good.nii.gz"
    assert told == ["good: done", "mr: done"]
    assert not (tmp_path / "out" / "gap.nii.gz").exists()


def test_what_the_voxels_reveal_is_said_and_the_rest_goes_on(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    voxels = np.ones(cases.SHAPE, np.float32)
    cases.nifti(scans / "b.nii.gz", voxels)
    voxels[3, 2, 1] = np.nan
    cases.nifti(scans / "a.nii.gz", voxels)
    told: list[str] = []
    ledger = convert([scans], tmp_path / "out", watch=lambda stage, done, total, note="": told.append(note))
    assert {row.case: (row.status, row.code) for row in ledger} == {
        "a": ("rejected", "NIFTI-VALUES"),
        "b": ("done", ""),
    }
    assert told[0].startswith("a: rejected: ")


def test_nothing_usable_leaves_a_ledger(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ledger = convert([tmp_path / "empty"], tmp_path / "out")
    assert ledger.exit_code == 1
    assert (tmp_path / "out" / "cases.csv").is_file()


@pytest.mark.parametrize("given", [".", "mr.nii.gz"])
def test_scans_are_never_overwritten(study: Path, given: str) -> None:
    before = (study / "mr.nii.gz").read_bytes()
    with pytest.raises(UsageError) as caught:
        convert([study / given], study)
    assert caught.value.code == "USAGE-PATH"
    assert (study / "mr.nii.gz").read_bytes() == before
    assert not (study / "cases.csv").exists()


def test_earlier_results_among_the_scans_are_no_scans(study: Path) -> None:
    first = convert([study], study / "out")
    again = convert([study], study / "out")
    assert [row.case for row in again] == [row.case for row in first]
    assert [row.status for row in again] == [row.status for row in first]


@pytest.mark.realdata
def test_real_study(shared_data: Path, tmp_path: Path) -> None:
    ledger = convert([shared_data / "sarcoma_mr_t1" / "dicom" / "STS_002"], tmp_path)
    (row,) = ledger
    assert row.status == "done"
    assert nib.load(tmp_path / row.output).shape[2] > 10

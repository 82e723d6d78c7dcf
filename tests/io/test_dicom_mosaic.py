"""Siemens mosaics of a real scanner, in nine transfer syntaxes; made-up ones stand in `test_dicom_gauntlet.py`."""

from __future__ import annotations

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.grid import Grid
from medseg.scan import find_scans, read

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # nibabel says that its DICOM readers are experimental
    from nibabel.nicom import dicomwrappers


@pytest.mark.realdata
@pytest.mark.parametrize("number", range(1, 10))
def test_mosaic_is_what_dcm2niix_makes_of_it(shared_data: Path, number: int) -> None:
    folder = shared_data / "zoo" / "transfer_syntaxes"
    (scan,) = find_scans(folder / "In" / f"{number}.dcm")
    volume = read(scan)
    reference = nib.load(folder / "Ref" / f"{number}.nii")
    grid = Grid(reference.shape, reference.affine)
    order = volume.grid.order_onto(grid, 1e-3)
    assert order is not None
    assert np.array_equal(order.apply(volume.voxels[0]), np.asanyarray(reference.dataobj))


@pytest.mark.realdata
def test_places_are_those_of_nibabel(shared_data: Path) -> None:
    """nibabel places the slices by the CSA image header: their normal and the distance between them."""
    path = shared_data / "zoo" / "transfer_syntaxes" / "In" / "1.dcm"
    (scan,) = find_scans(path)
    mosaic = dicomwrappers.wrapper_from_file(path)
    rows, columns, slices = mosaic.image_shape
    affine = np.diag([-1, -1, 1, 1]) @ mosaic.affine[:, [1, 0, 2, 3]]  # RAS+; it counts rows first
    assert scan.grid is not None
    assert scan.grid.distance_mm(Grid((columns, rows, slices), affine)) < 1e-3


@pytest.mark.realdata
def test_nine_files_of_one_series_are_nine_scans(shared_data: Path) -> None:
    scans = find_scans(shared_data / "zoo" / "transfer_syntaxes" / "In")
    assert len(scans) == len({scan.files for scan in scans}) == 9
    assert all(scan.usable for scan in scans)

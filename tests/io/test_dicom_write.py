from __future__ import annotations

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medseg.errors import InputError, UsageError
from medseg.grid import Grid
from medseg.io.dicom_write import SeriesIdentity, write_series
from medseg.volume import Volume
from tests.io import objects

WHO = SeriesIdentity("p1", description="T1", series_number=4)


def volume_on(grid, dtype=np.int16, low=0, high=900, modality="MR"):
    voxels = np.random.default_rng(3).integers(low, high, (1, *grid.shape)).astype(dtype)
    return Volume(voxels, grid, modality)


def read_by_simpleitk(files):
    """Return voxels (i, j, k) and RAS+ affine as SimpleITK has them."""
    image = SimpleITK.ReadImage([str(path) for path in files])
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) @ np.diag(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ affine


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.tuples(*[st.floats(-180, 180)] * 3), st.sampled_from(["MR", "CT"]))
def test_simpleitk_reads_the_same_voxels_at_the_same_places(tmp_path, angles, modality):
    # Right-handed grids only: SimpleITK cannot hold a left-handed one, it would turn k around.
    volume = volume_on(objects.grid_of(angles, signs=(-1, -1, 1)), low=-900, modality=modality)
    voxels, affine = read_by_simpleitk(write_series(volume, tmp_path, WHO))
    assert (voxels == volume.voxels[0]).all()
    assert np.abs(affine - volume.grid.affine).max() < 1e-6


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA", "ILP", "ASL"])
def test_positions_by_the_clause(tmp_path, codes):
    # PS3.3 C.7.6.2.1.1, written out for every corner: P = S + X * di * i + Y * dj * j, in LPS.
    affine = np.eye(4)
    grid = Grid((4, 5, 3), np.array([[2, 0, 0, 5], [0, 3, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]], float))
    grid = grid.reordered(grid.order_to(codes))
    assert "".join(nib.aff2axcodes(grid.affine)) == codes
    volume = volume_on(grid)
    for k, path in enumerate(write_series(volume, tmp_path, WHO)):
        image = pydicom.dcmread(path)
        x, y = np.reshape(image.ImageOrientationPatient, (2, 3)).astype(float)
        between_rows, between_columns = (float(v) for v in image.PixelSpacing)
        for i, j in ((0, 0), (grid.shape[0] - 1, 0), (0, grid.shape[1] - 1), (2, 1)):
            place = np.array(image.ImagePositionPatient, float) + x * between_columns * i + y * between_rows * j
            affine = grid.affine @ (i, j, k, 1)
            assert np.abs(place - affine[:3] * (-1, -1, 1)).max() < 1e-9
            assert image.pixel_array[j, i] == volume.voxels[0, i, j, k]


@pytest.mark.parametrize(
    ("modality", "low", "high", "dtype", "intercept", "signed"),
    [
        ("CT", -1000, 3000, np.int16, -1024, 0),
        ("CT", -2000, 3000, np.int16, -2000, 0),
        ("CT", -1024, 60000, np.int32, -1024, 0),
        ("MR", 0, 60000, np.uint16, None, 0),
        ("MR", -500, 500, np.int32, None, 1),
    ],
)
def test_what_is_stored(tmp_path, modality, low, high, dtype, intercept, signed):
    volume = volume_on(objects.grid_of(), dtype, low, high, modality)
    volume.voxels.flat[:2] = low, high
    files = write_series(volume, tmp_path, WHO)
    image = pydicom.dcmread(files[0])
    assert image.get("RescaleIntercept") == intercept
    assert image.PixelRepresentation == signed
    assert (image.pixel_array.T.astype(int) + (intercept or 0) == volume.voxels[0, :, :, 0]).all()


def test_identity_and_names(tmp_path):
    volume = volume_on(objects.grid_of())
    files = write_series(volume, tmp_path / "a", WHO)
    again = write_series(volume, tmp_path / "b", WHO)
    other = write_series(volume, tmp_path / "c", SeriesIdentity("p1", description="T2", series_number=5))
    assert [path.name for path in files] == [f"{n:04d}.dcm" for n in range(1, 7)]
    assert [path.read_bytes() for path in files] == [path.read_bytes() for path in again]
    one, two = pydicom.dcmread(files[0]), pydicom.dcmread(other[0])
    assert (one.StudyInstanceUID, one.FrameOfReferenceUID) == (two.StudyInstanceUID, two.FrameOfReferenceUID)
    assert one.SeriesInstanceUID != two.SeriesInstanceUID
    assert len({pydicom.dcmread(path).SOPInstanceUID for path in files + other}) == 12


def test_what_cannot_be_written_is_refused(tmp_path):
    grid = objects.grid_of()
    sheared = grid.affine.copy()
    sheared[1, 2] += 1
    with pytest.raises(InputError) as caught:
        write_series(volume_on(Grid(grid.shape, sheared)), tmp_path, WHO)
    assert caught.value.code == "GRID-SHEAR"
    bad = [
        volume_on(grid, np.float32),
        volume_on(grid, modality="PT"),
        volume_on(grid, np.int32, -5, 70000),
        Volume(np.zeros((2, *grid.shape), np.int16), grid, "MR"),
    ]
    for volume in bad:
        with pytest.raises(UsageError) as refused:
            write_series(volume, tmp_path, WHO)
        assert refused.value.code == "USAGE-OPTION"
    assert not list(tmp_path.iterdir())

"""Series, masks and grids that the tests of DICOM objects share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedMRImageStorage
from scipy.spatial.transform import Rotation

from medseg.grid import Grid
from medseg.io.dicom_write import SeriesIdentity, write_series
from medseg.volume import Mask, Volume

SHAPE = (11, 9, 6)


def grid_of(angles=(0.0, 0.0, 0.0), signs=(-1, -1, 1), shape=SHAPE, spacing=(0.9, 1.3, 3.0)) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(np.multiply(signs, spacing))
    affine[:3, 3] = (12.25, -40.5, 101.75)
    return Grid(shape, affine)


def series(folder: Path, grid: Grid, modality: str = "MR", shear: tuple[float, float, float] = (0, 0, 0)):
    """Write a series of random voxels; `shear` moves each slice by so many mm (RAS+) more than the last."""
    voxels = np.random.default_rng(1).integers(0, 900, (1, *grid.shape), dtype=np.int16)
    files = write_series(Volume(voxels, grid, modality), folder, SeriesIdentity("p1", description="test"))
    for k, path in enumerate(files if any(shear) else []):
        header = pydicom.dcmread(path)
        place = np.array(header.ImagePositionPatient, float) + k * np.multiply(shear, (-1, -1, 1))
        header.ImagePositionPatient = [f"{value:.6f}" for value in place]
        header.save_as(path)
    affine = grid.affine.copy()
    affine[:3, 2] += shear
    return files, Grid(grid.shape, affine)


def ring_mask(grid: Grid, dtype=np.uint8) -> Mask:
    """Label 2: a ring with a hole, and an island of one voxel in it; label 5: an L and voxels that meet at corners."""
    labels = np.zeros(grid.shape, dtype)
    labels[1:8, 1:8, 1:4] = 2
    labels[3:6, 3:6, 1:4] = 0
    labels[4, 4, 2] = 2
    labels[0, 0, 0] = 2
    labels[-1, -1, -1] = 5
    labels[9, 0:4, 2] = 5
    labels[10, 3, 2] = 5
    labels[8, 4, 2] = 5
    return Mask(labels, grid)


def multi_frame(files: list[Path], path: Path) -> Path:
    """Write the series as one enhanced MR object, its frames in an order that is not that of the slices."""
    images = [pydicom.dcmread(file) for file in files]
    images = images[1::2] + images[::2][::-1]
    first = images[0]
    first.SOPClassUID = first.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    first.NumberOfFrames = len(images)
    first.PixelData = b"".join(image.PixelData for image in images)
    first.SharedFunctionalGroupsSequence = [group(first, "PixelMeasuresSequence", "PixelSpacing", "SliceThickness")]
    first.PerFrameFunctionalGroupsSequence = [
        Dataset(
            {
                **group(image, "PlanePositionSequence", "ImagePositionPatient"),
                **group(image, "PlaneOrientationSequence", "ImageOrientationPatient"),
            }
        )
        for image in images
    ]
    for keyword in ("PixelSpacing", "SliceThickness", "ImagePositionPatient", "ImageOrientationPatient"):
        del first[keyword]
    first.save_as(path)
    return path


def group(image: Dataset, macro: str, *keywords: str) -> Dataset:
    item, outer = Dataset(), Dataset()
    for keyword in keywords:
        item[keyword] = image[keyword]
    setattr(outer, macro, [item])
    return outer

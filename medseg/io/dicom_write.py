"""Writing a volume as a plain DICOM series: one CT or MR image a slice, uncompressed.

For phantoms and demonstrations. It writes what a reader needs and the modules ask for (PS3.3 A.3, A.4), no more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from medseg.errors import InputError, UsageError
from medseg.grid import Float, Grid
from medseg.io.atomic import atomic_path
from medseg.io.dicom_objects import decimals, derived_uid, lps
from medseg.volume import Volume

CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage}

CT_INTERCEPT = -1024
"""Stored CT values count from -1024 HU, as most scanners have it; from less when a voxel is lower."""


@dataclass(frozen=True)
class SeriesIdentity:
    """Whose series it is. UIDs that are empty are derived from the others and the series number.

    Attributes:
        patient_id: also written as the patient's name.
        study_uid, series_uid, frame_uid: study, series and frame of reference.
        description: Series Description (0008,103E).
        series_number: tells the series of a study apart.
        study_date: `YYYYMMDD`, or empty.
        manufacturer: maker of the images.
    """

    patient_id: str
    study_uid: str = ""
    series_uid: str = ""
    frame_uid: str = ""
    description: str = ""
    series_number: int = 1
    study_date: str = ""
    manufacturer: str = "medseg phantom"

    def resolved(self) -> SeriesIdentity:
        """Return the identity with every UID filled in; the same identity always gives the same UIDs."""
        study = self.study_uid or derived_uid("study", self.patient_id)
        series = self.series_uid or derived_uid("series", study, str(self.series_number), self.description)
        frame = self.frame_uid or derived_uid("frame of reference", study)
        return replace(self, study_uid=study, series_uid=series, frame_uid=frame)


def write_series(volume: Volume, folder: Path, identity: SeriesIdentity) -> list[Path]:
    """Write one file a slice, `0001.dcm` and on, in the order of the volume's last axis.

    The grid's i axis runs along the rows of pixels, j down the columns, k through the stack; the affine goes into
    Image Position and Orientation (Patient) as exactly as decimal strings allow.

    Args:
        volume: one channel of whole numbers; modality CT (HU, stored with a rescale) or MR (stored as they are).
        folder: made when absent; other files in it are left alone.
        identity: patient, study and series.

    Returns:
        the files, in slice order.

    Raises:
        InputError: GRID-SHEAR when the axes are not at right angles.
        UsageError: USAGE-OPTION for a modality, channels or voxels that cannot be stored.
        RunError: RUN-WRITE.
    """
    if volume.grid.is_sheared:
        raise InputError("GRID-SHEAR", str(folder), f"the axes are sheared by {volume.grid.shear_mm:.2f} mm")
    stored, intercept = _stored(volume, folder)
    identity = identity.resolved()
    files = []
    for k in range(volume.grid.shape[2]):
        image = _image(volume, k, identity)
        _add_pixels(image, stored[:, :, k].T, intercept)
        path = folder / f"{k + 1:04d}.dcm"
        with atomic_path(path) as partial:
            image.save_as(partial, enforce_file_format=True)
        files.append(path)
    return files


def _stored(volume: Volume, folder: Path) -> tuple[NDArray[np.integer], int]:
    """Return the values to store `(i, j, k)`, uint16 or int16, and the rescale intercept."""
    if volume.modality not in CLASSES:
        raise UsageError("USAGE-OPTION", str(folder), f"modality {volume.modality!r}, wanted one of {sorted(CLASSES)}")
    voxels = volume.voxels[0]
    if len(volume.voxels) != 1 or not np.issubdtype(voxels.dtype, np.integer):
        problem = f"{len(volume.voxels)} channels of {voxels.dtype}, wanted one of whole numbers"
        raise UsageError("USAGE-OPTION", str(folder), problem)
    low, high = int(voxels.min()), int(voxels.max())
    intercept = min(CT_INTERCEPT, low) if volume.modality == "CT" else 0
    for dtype in (np.uint16, np.int16):
        if np.iinfo(dtype).min <= low - intercept and high - intercept <= np.iinfo(dtype).max:
            return (voxels.astype(np.int64) - intercept).astype(dtype), intercept
    raise UsageError("USAGE-OPTION", str(folder), f"voxels from {low} to {high} do not fit 16 bits")


def _image(volume: Volume, k: int, identity: SeriesIdentity) -> Dataset:
    """Return the image of slice `k` without pixels."""
    uid = derived_uid("image", identity.series_uid, str(k))
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = CLASSES[volume.modality]
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = uid
    image.SpecificCharacterSet = "ISO_IR 192"
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if volume.modality == "CT" else "OTHER"]
    image.Modality = volume.modality
    image.Manufacturer = identity.manufacturer
    image.PatientID = image.PatientName = identity.patient_id
    image.StudyInstanceUID, image.SeriesInstanceUID = identity.study_uid, identity.series_uid
    image.FrameOfReferenceUID = identity.frame_uid
    image.SeriesDescription = identity.description
    image.SeriesNumber = identity.series_number
    image.InstanceNumber = k + 1
    image.StudyDate = image.SeriesDate = image.ContentDate = image.AcquisitionDate = identity.study_date
    for keyword in ("PatientBirthDate", "PatientSex", "StudyTime", "ContentTime", "AccessionNumber", "StudyID"):
        setattr(image, keyword, "")
    image.ReferringPhysicianName = image.PositionReferenceIndicator = ""
    image.PatientPosition = "HFS"
    _add_technique(image)
    _add_plane(image, volume.grid, k)
    return image


def _add_technique(image: Dataset) -> None:
    """Add what the CT and MR image modules ask for: required values, or empty ones where these may be unknown."""
    image.AcquisitionNumber = 1
    if image.Modality == "CT":
        image.KVP = None
        return
    image.ScanningSequence, image.SequenceVariant, image.ScanOptions = "RM", "NONE", ""  # RM: research mode
    image.MRAcquisitionType = "2D"
    image.EchoTime = image.EchoTrainLength = image.RepetitionTime = None


def _add_plane(image: Dataset, grid: Grid, k: int) -> None:
    """Add the Image Plane Module (PS3.3 C.7.6.2)."""
    position = lps(grid.to_world([0, 0, k]))
    directions: Float = grid.affine[:3, :2] / grid.spacing[:2]
    image.ImagePositionPatient = decimals(position)
    image.ImageOrientationPatient = decimals(lps(directions.T))
    image.PixelSpacing = decimals([grid.spacing[1], grid.spacing[0]])  # between rows, then between columns
    image.SliceThickness = decimals([grid.spacing[2]])[0]
    image.SpacingBetweenSlices = image.SliceThickness


def _add_pixels(image: Dataset, pixels: NDArray[np.integer], intercept: int) -> None:
    """Add one slice `(rows, columns)` of stored values (PS3.3 C.7.6.3)."""
    image.Rows, image.Columns = pixels.shape
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit = 15
    image.PixelRepresentation = int(pixels.dtype.kind == "i")
    if image.Modality == "CT":
        image.RescaleIntercept, image.RescaleSlope, image.RescaleType = intercept, 1, "HU"
    image.PixelData = np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder("<")).tobytes()

"""The tests' own DICOM writer: series of an analytic object that no flip, transpose or shift leaves unchanged.

The object's value is a function of world position (`value_at`), so the truth at every voxel of any grid is known
without reading anything back. pydicom only; nothing of medseg is used to write.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    JPEGLosslessSV1,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    generate_uid,
)

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
ROWS, COLUMNS, SLICES = 36, 40, 20
SPACING = (0.9, 0.7)  # between rows, between columns: not equal, so that swapping them shows
STEP = 2.5
ORIGIN = (-11.0, -14.5, -22.0)  # LPS
CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage}


def value_at(world: NDArray[np.float64]) -> NDArray[np.float64]:
    """Value at world positions `(..., 3)`, mm, RAS+: a different slope along each axis, and products of two axes."""
    x, y, z = np.moveaxis(world, -1, 0)
    return 100 + 7 * x + 11 * y - 9 * z + 0.03 * x * y - 0.02 * y * z


def misfit(voxels: NDArray[np.generic], affine: NDArray[np.float64]) -> float:
    """Largest difference between voxels `(i, j, k)` and the object, with the voxels placed by `affine` (RAS+)."""
    index = np.stack(np.meshgrid(*map(np.arange, voxels.shape), indexing="ij"), axis=-1)
    truth = value_at(index @ affine[:3, :3].T + affine[:3, 3])
    return float(np.abs(voxels.astype(np.float64) - truth).max())


def oblique(degrees: Sequence[float]) -> tuple[float, ...]:
    """Row and column direction of an axial scan turned about x, y and z."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        a, b = [n for n in range(3) if n != axis]
        one = np.eye(3)
        one[a, a] = one[b, b] = np.cos(angle)
        one[a, b], one[b, a] = -np.sin(angle), np.sin(angle)
        turn = turn @ one
    return (*turn[:, 0], *turn[:, 1])


def series(
    modality: str = "CT",
    orientation: Sequence[float] = AXIAL,
    origin: Sequence[float] = ORIGIN,
    step: Sequence[float] | float = STEP,
    slices: int = SLICES,
    size: tuple[int, int] = (ROWS, COLUMNS),
    spacing: tuple[float, float] = SPACING,
    slope: float = 1.0,
    intercept: float = -1024.0,
    decimals: tuple[int, int] = (10, 10),
) -> list[Dataset]:
    """One data set for each slice, in the order of the step.

    Args:
        modality: CT, MR (no rescale) or PT.
        orientation: direction of rows and columns, LPS+.
        origin: centre of the first voxel of the first slice, LPS+.
        step: from slice to slice, mm along the normal, or a vector.
        slices: how many.
        size: rows and columns.
        spacing: between rows and between columns, mm.
        slope: RescaleSlope.
        intercept: RescaleIntercept.
        decimals: of the stored positions, and of the cosines; the pixels are those of the exact place.
    """
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    advance = np.cross(row, column) * step if np.isscalar(step) else np.array(step)
    uids = generate_uid(), generate_uid(), generate_uid()
    found = []
    for number in range(slices):
        position = np.array(origin) + number * advance
        values = _slice_values(position, row, column, size, spacing)
        dataset = _plain_slice(modality, number, uids)
        dataset.Rows, dataset.Columns = size
        dataset.PixelSpacing = [_text(s) for s in spacing]
        dataset.ImagePositionPatient = [_text(v, decimals[0]) for v in position]
        dataset.ImageOrientationPatient = [_text(v, decimals[1]) for v in orientation]
        if modality != "MR":
            dataset.RescaleSlope, dataset.RescaleIntercept = _text(slope), _text(intercept)
        else:
            slope, intercept = 1.0, 0.0
        set_pixels(dataset, np.rint((values - intercept) / slope))
        found.append(dataset)
    return found


def _text(number: float, decimals: int = 10) -> str:
    text = f"{number:.{decimals}f}".rstrip("0").rstrip(".") if decimals else f"{number:.0f}"
    return (f"{number:.9g}" if len(text) > 16 else text) or "0"


def _slice_values(position, row, column, size, spacing) -> NDArray[np.float64]:
    j, i = np.meshgrid(np.arange(size[0]), np.arange(size[1]), indexing="ij")
    lps = position + j[..., None] * column * spacing[0] + i[..., None] * row * spacing[1]
    return value_at(lps * (-1, -1, 1))


def _plain_slice(modality: str, number: int, uids: tuple[str, str, str]) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID = CLASSES[modality]
    dataset.SOPInstanceUID = generate_uid()
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Modality = modality
    dataset.PatientID, dataset.PatientName = "ID-4711", "Doe^Jane"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = uids
    dataset.SeriesNumber, dataset.InstanceNumber, dataset.AcquisitionNumber = 3, number + 1, 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    return dataset


def set_pixels(dataset: Dataset, stored: NDArray[np.generic], signed: bool | None = None) -> None:
    """Store whole numbers in 16 bits, signed when there are negative ones."""
    signed = bool(stored.min() < 0) if signed is None else signed
    dataset.PixelRepresentation = int(signed)
    words = stored.astype(np.int64).astype("<i2" if signed else "<u2")
    assert np.array_equal(words, stored), "the phantom does not fit 16 bits"
    dataset.PixelData = words.tobytes()
    dataset["PixelData"].VR = "OW"


def stored_pixels(dataset: Dataset) -> NDArray[np.generic]:
    """The stored numbers of an uncompressed 16-bit slice."""
    words = np.frombuffer(dataset.PixelData, "<i2" if dataset.PixelRepresentation else "<u2")
    return words.reshape(dataset.Rows, dataset.Columns)


def save(
    datasets: Sequence[Dataset],
    folder: Path,
    syntax: str = ExplicitVRLittleEndian,
    name: Callable[[int], str] = "IM{:04d}.dcm".format,
) -> list[Path]:
    """Write one file for each data set."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name(number) for number in range(len(datasets))]
    for dataset, path in zip(datasets, paths, strict=True):
        if not hasattr(dataset, "file_meta"):
            dataset.file_meta = FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = syntax
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(path, enforce_file_format=True)
    return paths


def compress(datasets: Sequence[Dataset], syntax: str) -> list[Dataset]:
    """Encode the pixels by pydicom's codecs; JPEG lossless, which they lack, by SimpleITK."""
    for dataset in datasets:
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        if syntax == JPEGLosslessSV1:
            dataset.PixelData = encapsulate([_jpeg_lossless(stored_pixels(dataset))])
            dataset["PixelData"].VR = "OB"
            dataset.file_meta.TransferSyntaxUID = syntax
        else:
            dataset.compress(syntax, generate_instance_uid=False)
    return list(datasets)


def _jpeg_lossless(stored: NDArray[np.generic]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "one.dcm")
        writer = sitk.ImageFileWriter()
        writer.SetFileName(path)
        writer.SetUseCompression(True)
        writer.SetCompressor("JPEG")
        writer.Execute(sitk.GetImageFromArray(stored))
        written = dcmread(path)
        assert written.file_meta.TransferSyntaxUID == JPEGLosslessSV1
        return next(generate_frames(written.PixelData, number_of_frames=1))


def enhanced(datasets: Sequence[Dataset], order: Sequence[int] | None = None) -> Dataset:
    """One enhanced multi-frame object of classic slices, its frames in `order`; rescale stands per frame."""
    frames = [datasets[n] for n in (order if order is not None else range(len(datasets)))]
    first = datasets[0]
    whole = Dataset()
    for keyword in ("Modality", "PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber"):
        setattr(whole, keyword, getattr(first, keyword))
    for keyword in ("FrameOfReferenceUID", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"):
        setattr(whole, keyword, getattr(first, keyword))
    for keyword in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        setattr(whole, keyword, getattr(first, keyword))
    whole.SOPClassUID, whole.SOPInstanceUID = EnhancedCTImageStorage, generate_uid()
    whole.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    whole.NumberOfFrames = len(frames)
    shared = Dataset()
    shared.PlaneOrientationSequence = _item(ImageOrientationPatient=first.ImageOrientationPatient)
    shared.PixelMeasuresSequence = _item(PixelSpacing=first.PixelSpacing, SliceThickness="9")
    whole.SharedFunctionalGroupsSequence = Items([shared])
    whole.PerFrameFunctionalGroupsSequence = Items([_frame_group(frame) for frame in frames])
    whole.PixelData = b"".join(frame.PixelData for frame in frames)
    whole["PixelData"].VR = "OW"
    return whole


def _frame_group(frame: Dataset) -> Dataset:
    group = Dataset()
    group.PlanePositionSequence = _item(ImagePositionPatient=frame.ImagePositionPatient)
    group.PixelValueTransformationSequence = _item(
        RescaleSlope=frame.RescaleSlope, RescaleIntercept=frame.RescaleIntercept, RescaleType="HU"
    )
    group.FrameContentSequence = _item(TemporalPositionIndex=int(frame.get("TemporalPositionIdentifier", 1)))
    return group


def _item(**values: object) -> Items:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return Items([item])

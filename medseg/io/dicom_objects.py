"""What the doors for RTSTRUCT and DICOM SEG share: opening an object, its source series, names that repeat.

DICOM's patient coordinates are LPS+ mm; they become RAS+ here (`ras`) and LPS+ again when written (`lps`).
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import ArrayLike, NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

from medseg.errors import InputError, MaskError
from medseg.grid import SAME_PLACE_MM, Float, Grid
from medseg.volume import Labels, Mask

READ_FAULTS = (
    InvalidDicomError,
    OSError,
    ValueError,  # also UnicodeError
    TypeError,
    ArithmeticError,
    AttributeError,
    LookupError,
    EOFError,
    NotImplementedError,
    RecursionError,  # sequences nested a thousand deep
    MemoryError,
    struct.error,
    zlib.error,
)
"""What pydicom raises on damaged files; each becomes one message. It documents no common base."""

MAX_INFLATED_BYTES = 1 << 30
"""A deflated object may unpack to 1 GiB: a 512 x 512 x 500 binary SEG of 60 segments. More is taken for a bomb."""

CARRIED_TAGS = (
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyDescription",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialSiteID",
    "ClinicalTrialSubjectID",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "LongitudinalTemporalInformationModified",
    "StudyInstanceUID",
    "StudyID",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
)
"""The patient, study and frame of reference modules (PS3.3 C.7.1.1, C.7.2.1, C.7.4.1), copied from a source image."""


def ras(lps_points: ArrayLike) -> Float:
    """Turn LPS+ mm `(..., 3)` into RAS+ mm (PS3.3 C.7.6.2.1.1: x grows to the left, y to the back)."""
    return np.asarray(lps_points, dtype=np.float64) * (-1.0, -1.0, 1.0)


lps = ras
"""RAS+ mm to LPS+ mm: the same two signs."""


def decimals(values: ArrayLike) -> list[str]:
    """Format numbers as decimal strings of at most 16 characters (PS3.5 6.2, DS), as exactly as these allow."""
    return [format_number_as_ds(float(value) + 0.0) for value in np.ravel(values)]  # + 0.0: no "-0.0"


def derived_uid(*sources: str) -> UID:
    """Return a UID that depends on `sources` alone: the same work done again gets the same name."""
    return generate_uid(entropy_srcs=list(sources))


def content_hash(array: NDArray[np.generic]) -> str:
    """Return the SHA-256 of an array's shape, type and bytes."""
    content = np.ascontiguousarray(array)
    return hashlib.sha256(f"{content.shape}{content.dtype.str}".encode() + content.tobytes()).hexdigest()


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn whatever pydicom raises inside the block into one message.

    Raises:
        MaskError: MASK-READ.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings about odd values quote them, names included
            yield
    except READ_FAULTS as error:
        problem = f"cannot be read as {what}: {type(error).__name__}"  # no text of the error: it may quote the header
        raise MaskError("MASK-READ", str(path), problem, "Export it again, or leave it out.") from error


def open_object(path: Path, classes: Sequence[UID], what: str) -> Dataset:
    """Read one DICOM object of one of `classes`, pixels not decoded.

    Raises:
        MaskError: MASK-READ when the file is not there, not regular, damaged, too large, or of another class.
    """
    with reading(path, what):
        if not path.is_file():  # never opens a pipe or a device
            raise MaskError("MASK-READ", str(path), f"is not a file, wanted {what}")
        _refuse_bomb(path, what)
        with path.open("rb", buffering=0) as file, _Watched(file) as stream:
            dataset = pydicom.dcmread(stream)
            if stream.cut_off:
                raise MaskError("MASK-READ", str(path), f"is cut off, wanted {what}", "Export it again.")
        found = UID(str(dataset.get("SOPClassUID", "")))
    if found not in classes:
        kind = found.name if found.is_valid and found else "an object without a SOP class"
        raise MaskError("MASK-READ", str(path), f"is {kind}, wanted {what}")
    return dataset


class _Watched(io.BufferedReader):
    """A file that notices when a reader wants more than there is: pydicom takes the end of a cut file for the end.

    A whole file ends where the reader looks for the next element's header (8 bytes) and finds nothing. Only a cut
    between two elements of the outermost level cannot be seen so.
    """

    HEADER, CHUNK = 8, 8192  # pydicom looks for the end of compressed pixels in chunks, the last one short

    cut_off = False

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as usual, and remember a short answer."""
        data = super().read(size)
        if size and 0 < size != self.CHUNK and len(data) < size:
            self.cut_off |= bool(data) or size != self.HEADER
        return data


def _refuse_bomb(path: Path, what: str) -> None:
    """Inflate a deflated object piece by piece, keeping nothing, and refuse it when it grows beyond the limit."""
    meta = pydicom.filereader.read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with path.open("rb") as stream:
        stream.seek(132 + 12 + int(meta.FileMetaInformationGroupLength))  # preamble, group length element, group 2
        piece = stream.read(1 << 16)
        while piece and not inflater.eof:
            size += len(inflater.decompress(piece, 1 << 24))
            piece = inflater.unconsumed_tail or stream.read(1 << 16)
            if size > MAX_INFLATED_BYTES:
                raise MaskError(
                    "MASK-READ", str(path), f"unpacks to more than {MAX_INFLATED_BYTES} bytes, wanted {what}"
                )


@dataclass(frozen=True)
class SourceFrame:
    """One slice of the source series: the object it is in, and which frame of it (None in single-frame objects)."""

    header: Dataset = field(repr=False)
    number: int | None
    position: Float

    @property
    def reference(self) -> Dataset:
        """A new item of an image reference sequence (PS3.3 10.3) that names this slice."""
        item = Dataset()
        item.ReferencedSOPClassUID = self.header.SOPClassUID
        item.ReferencedSOPInstanceUID = self.header.SOPInstanceUID
        if self.number is not None:
            item.ReferencedFrameNumber = self.number
        return item


@dataclass(frozen=True)
class Source:
    """The series that a mask was drawn on.

    Attributes:
        headers: one for each file, pixels not read.
        frames: the slices, in the order of `grid`'s last axis.
        grid: i along a row (columns), j down a column (rows), k along the stack.
    """

    headers: tuple[Dataset, ...] = field(repr=False)
    frames: tuple[SourceFrame, ...] = field(repr=False)
    grid: Grid

    @property
    def uids(self) -> list[str]:
        """The SOP instance UIDs, in file order."""
        return [str(header.SOPInstanceUID) for header in self.headers]


def read_source(files: Sequence[Path]) -> Source:
    """Read the headers of the series that a mask lies on, and its grid (PS3.3 C.7.6.2.1.1).

    Raises:
        InputError: MASK-READ when a file cannot be read or has no position, MASK-GRID when the slices are not evenly
            spaced, GRID-SHAPE without files.
    """
    if not files:
        raise InputError("GRID-SHAPE", "", "a DICOM mask needs the files of the series it lies on; none were given")
    headers = []
    for path in files:
        with reading(path, "a DICOM image"):
            headers.append(pydicom.dcmread(path, stop_before_pixels=True))
    with reading(files[0], "a DICOM image with positions"):
        frames, grid = _source_frames(headers)
    off = np.linalg.norm(grid.to_world([(0, 0, k) for k in range(len(frames))]) - [f.position for f in frames], axis=1)
    if off.max() > SAME_PLACE_MM:
        problem = f"the source's slices are not evenly spaced: one lies {off.max():.2f} mm from its place"
        raise MaskError("MASK-GRID", str(files[0].parent), problem, "Take the files of one complete series.")
    return Source(tuple(headers), tuple(frames), grid)


def functional_group(dataset: Dataset, frame: int, keyword: str) -> Dataset | None:
    """Return the macro `keyword` of a multi-frame object for one frame (from 0), its own or the shared one, or None."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for group in (*per_frame[frame : frame + 1], *shared[:1]):
        if group.get(keyword):
            item: Dataset = group[keyword].value[0]
            return item
    return None


def plane_of(dataset: Dataset, frame: int | None) -> tuple[Float, Float, Float, Float]:
    """Return one slice's first pixel, and the steps to the next column, and row, in RAS+ mm, and its spacing.

    Args:
        dataset: a single-frame image (`frame` None) or a multi-frame object.
        frame: from 0.

    Returns:
        position, column step, row step `(3,)` each in mm; pixel spacing (between rows, between columns).
    """
    places: list[Dataset | None] = [dataset] * 3
    if frame is not None:
        names = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        places = [functional_group(dataset, frame, name) for name in names]
    position, orientation, measures = places
    if position is None or orientation is None or measures is None:
        raise ValueError("a frame without position, orientation or pixel spacing")
    cosines = np.asarray(orientation.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    spacing = np.asarray(measures.PixelSpacing, dtype=np.float64).reshape(2)
    origin = np.asarray(position.ImagePositionPatient, dtype=np.float64).reshape(3)
    if not (np.isfinite(cosines).all() and np.isfinite(origin).all() and (spacing > 0).all()):
        raise ValueError("a position, orientation or spacing that is not a number")
    return ras(origin), ras(cosines[0] * spacing[1]), ras(cosines[1] * spacing[0]), spacing


def _source_frames(headers: Sequence[Dataset]) -> tuple[list[SourceFrame], Grid]:
    frames, steps = [], []
    for header in headers:
        multi = "PerFrameFunctionalGroupsSequence" in header
        for index in range(int(header.NumberOfFrames) if multi else 1):
            position, column, row, _ = plane_of(header, index if multi else None)
            frames.append(SourceFrame(header, index + 1 if multi else None, position))
            steps.append((column, row))
    columns, rows = int(headers[0].Columns), int(headers[0].Rows)
    column, row = steps[0]
    away_mm = np.linalg.norm(np.array(steps) - steps[0], axis=2).max(axis=0) @ (columns, rows)
    if away_mm > SAME_PLACE_MM or any((header.Columns, header.Rows) != (columns, rows) for header in headers):
        raise ValueError("slices of several orientations, spacings or sizes")
    normal = np.cross(column, row)
    frames.sort(key=lambda frame: float(frame.position @ normal))
    step = normal / np.linalg.norm(normal)
    if len(frames) > 1:
        step = (frames[-1].position - frames[0].position) / (len(frames) - 1)
    affine = np.eye(4)
    affine[:3] = np.column_stack([column, row, step, frames[0].position])
    return frames, Grid((columns, rows, len(frames)), affine)


def carry_patient(target: Dataset, header: Dataset) -> None:
    """Copy patient, study and frame of reference from a source image; those that must stand, stand, if empty."""
    target.SpecificCharacterSet = "ISO_IR 192"  # UTF-8 holds every name; pydicom recodes what it copies
    for keyword in CARRIED_TAGS:
        if keyword in header:
            target[keyword] = header[keyword]
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"):
        target.setdefault(keyword, "")
    for keyword in ("AccessionNumber", "ReferringPhysicianName", "StudyID", "PositionReferenceIndicator"):
        target.setdefault(keyword, "")
    target.setdefault("FrameOfReferenceUID", derived_uid("frame", str(header.get("SeriesInstanceUID", ""))))


def check_labels(mask: Mask, labels: Labels, path: Path) -> None:
    """Refuse a mask with numbers that have no name.

    Raises:
        MaskError: MASK-VALUES.
    """
    found = np.flatnonzero(np.bincount(mask.labels.ravel()))
    nameless = sorted(set(found.tolist()) - {0, *labels.names})
    if nameless:
        raise MaskError("MASK-VALUES", str(path), f"labels {nameless} have no name; named are {list(labels.names)}")

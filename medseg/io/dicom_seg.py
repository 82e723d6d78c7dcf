"""The door to DICOM segmentation objects (SEG): binary, fractional and label map, placed by geometry.

Frames are laid on the scan's grid by their own position, orientation and spacing. Frames that are absent are
background: most writers leave empty ones out.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID, ExplicitVRLittleEndian, SegmentationStorage

from medseg.errors import MaskError
from medseg.grid import SAME_PLACE_MM, Float, Grid
from medseg.io.atomic import atomic_path
from medseg.io.dicom_objects import (
    Source,
    carry_patient,
    check_labels,
    content_hash,
    decimals,
    derived_uid,
    functional_group,
    open_object,
    plane_of,
    read_source,
    reading,
)
from medseg.volume import Labels, Mask

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from pydicom.sr.coding import Code

log = logging.getLogger(__name__)

LABEL_MAP_STORAGE = UID("1.2.840.10008.5.1.4.1.1.66.7")
"""Label Map Segmentation Storage (PS3.4 B.5, since 2024d)."""

MAX_FRAME_PIXELS = 1 << 26
"""A frame of more than 8192 x 8192 pixels is no radiological mask; the claim is refused before memory is taken."""

HALF = 0.5
"""A fractional segment holds a voxel when at least half of it, or half the probability, is there."""


@dataclass(frozen=True)
class Segment:
    """One item of Segment Sequence (0062,0002).

    Attributes:
        number: Segment Number (0062,0004).
        label: Segment Label (0062,0005).
        kind: meaning of the segmented property type, such as "Neoplasm"; empty when not given.
    """

    number: int
    label: str
    kind: str = ""


def read_segments(path: Path) -> list[Segment]:
    """Read what a SEG file holds, pixels untouched.

    Raises:
        MaskError: MASK-READ.
    """
    return _segments(_open(path), path)


def segment_numbers(path: Path) -> dict[int, str]:
    """Return segment number to segment label.

    Raises:
        MaskError: MASK-READ.
    """
    return {segment.number: segment.label for segment in read_segments(path)}


def read_dicom_seg(path: Path, grid: Grid, labels: Sequence[str] | None = None) -> dict[str, NDArray[np.bool_]]:
    """Return the voxels of the segments with the given labels (all, when None) on `grid`.

    Segments of one label are merged. Fractional segments count from one half up.

    Args:
        path: SEG file: BINARY, FRACTIONAL or LABELMAP, native or compressed.
        grid: the scan's; its axes in any order, sheared too. The frames must fall on its voxels.
        labels: exact segment labels.

    Returns:
        segment label to `(i, j, k)` bool.

    Raises:
        MaskError: MASK-READ when the file cannot be used, LABEL-UNKNOWN for a label that is not in it, MASK-GRID, with
            the distance in mm, when it does not lie on the grid, MASK-VALUES for values that no segment describes.
    """
    dataset = _open(path)
    segments = _segments(dataset, path)
    known = [segment.label for segment in segments]
    unknown = [label for label in labels or () if label not in known]
    if unknown:
        raise MaskError("LABEL-UNKNOWN", str(path), f"no segment {unknown} among {known}", "Name one that is there.")
    voxels = {label: np.zeros(grid.shape, dtype=bool) for label in known if labels is None or label in labels}
    targets = {segment.number: voxels.get(segment.label) for segment in segments}
    planes: dict[int, list[tuple[int, ...]]] = {number: [] for number in targets}
    with reading(path, "a DICOM segmentation"):
        for index, pixels in enumerate(_frames(dataset, path)):
            place = _place(dataset, index, grid, path)
            for number, inside in _inside(dataset, index, pixels, targets, path):
                planes[number].append((place.axes[0], place.plane))
                target = targets[number]
                if target is not None:
                    place.lay(inside, target, path)
    _check_planes(planes, path)
    return voxels


def _open(path: Path) -> Dataset:
    return open_object(path, [SegmentationStorage, LABEL_MAP_STORAGE], "a DICOM segmentation")


def _segments(dataset: Dataset, path: Path) -> list[Segment]:
    with reading(path, "a DICOM segmentation"):
        return [
            Segment(int(item.SegmentNumber), str(item.get("SegmentLabel", "")), _meaning(item))
            for item in dataset.SegmentSequence
            if int(item.SegmentNumber) > 0  # a label map may describe its background, number 0
        ]


def _meaning(item: Dataset) -> str:
    kinds = item.get("SegmentedPropertyTypeCodeSequence") or [Dataset()]
    return str(kinds[0].get("CodeMeaning", ""))


def _frames(dataset: Dataset, path: Path) -> Iterator[NDArray[np.integer]]:
    """Decode the frames one by one: `(rows, columns)` each, stored values."""
    rows, columns, count = int(dataset.Rows), int(dataset.Columns), int(dataset.get("NumberOfFrames") or 1)
    stated = len(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    if stated != count or rows * columns > MAX_FRAME_PIXELS:
        problem = f"claims {count} frames of {rows} x {columns} pixels, and places {stated} frames"
        raise MaskError("MASK-READ", str(path), problem, "The file is damaged; export it again.")
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        held, wanted = len(dataset.PixelData) * 8, count * rows * columns * int(dataset.BitsAllocated)
        if held < wanted:
            problem = f"holds {held // 8} bytes of pixels, wanted {wanted // 8}"
            raise MaskError("MASK-READ", str(path), problem, "The file is cut off; export it again.")
        if int(dataset.BitsAllocated) == 1:
            yield from _unpacked(dataset.PixelData, rows, columns, count)
            return
    yield from iter_pixels(dataset, raw=True)


def _unpacked(packed: bytes, rows: int, columns: int, count: int) -> Iterator[NDArray[np.uint8]]:
    """Unpack one-bit frames, first pixel in the lowest bit, no padding between frames (PS3.5 8.1.1)."""
    stream = np.frombuffer(packed, dtype=np.uint8)
    size = rows * columns
    for frame in range(count):
        first, last = frame * size, (frame + 1) * size
        bits = np.unpackbits(stream[first // 8 : -(-last // 8)], bitorder="little")
        yield bits[first % 8 : first % 8 + size].reshape(rows, columns)


def _inside(
    dataset: Dataset,
    frame: int,
    pixels: NDArray[np.integer],
    known: dict[int, NDArray[np.bool_] | None],
    path: Path,
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Give the pixels of each segment that one frame holds."""
    kind = str(dataset.SegmentationType)
    if kind == "LABELMAP":
        found = np.flatnonzero(np.bincount(pixels.ravel().astype(np.int64))).tolist()
        numbers = [number for number in found if number not in (0, dataset.get("PixelPaddingValue", 0))]
    elif kind in ("BINARY", "FRACTIONAL"):
        identity = functional_group(dataset, frame, "SegmentIdentificationSequence")
        numbers = [] if identity is None else [int(identity.ReferencedSegmentNumber)]
        if identity is None:
            raise MaskError("MASK-READ", str(path), f"frame {frame + 1} does not say which segment it belongs to")
    else:
        raise MaskError("MASK-READ", str(path), f"segmentation type {kind!r}, wanted BINARY, FRACTIONAL or LABELMAP")
    unknown = [number for number in numbers if number not in known]
    if unknown:
        raise MaskError("MASK-VALUES", str(path), f"frame {frame + 1} holds segments {unknown} that are not described")
    threshold = HALF * int(dataset.get("MaximumFractionalValue") or 255) if kind == "FRACTIONAL" else HALF
    for number in numbers:
        yield number, pixels == number if kind == "LABELMAP" else pixels >= threshold


@dataclass(frozen=True)
class _Place:
    """Where a frame lies on a grid.

    Attributes:
        axes: the grid axes across the frame, down its rows, and along its columns.
        plane: index along the first of these.
        rows, columns: index of each pixel row and column along the other two.
    """

    axes: tuple[int, int, int]
    plane: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    def lay(self, inside: NDArray[np.bool_], voxels: NDArray[np.bool_], path: Path) -> None:
        """Add the frame's pixels to `voxels` `(i, j, k)`; pixels beyond the grid must be background."""
        slices = voxels.transpose(self.axes)
        rows = (self.rows >= 0) & (self.rows < slices.shape[1])
        columns = (self.columns >= 0) & (self.columns < slices.shape[2])
        kept = inside[np.ix_(rows, columns)]
        in_stack = 0 <= self.plane < slices.shape[0]
        beyond = int(inside.sum()) - (int(kept.sum()) if in_stack else 0)
        if beyond:
            problem = f"{beyond} pixels of a segment lie outside the scan (slice index {self.plane})"
            raise MaskError("MASK-GRID", str(path), problem, "Take the scan that it was drawn on.")
        if in_stack:
            slices[self.plane][np.ix_(self.rows[rows], self.columns[columns])] |= kept


def _place(dataset: Dataset, frame: int, grid: Grid, path: Path) -> _Place:
    """Find the voxels under a frame's pixels; the frame's four corners must lie on voxel centres."""
    origin, column_step, row_step, spacing = plane_of(dataset, frame)
    first = grid.to_index(origin)
    steps = np.stack([grid.to_index(origin + step) - first for step in (row_step, column_step)])
    whole = np.round(steps)
    if (np.abs(whole).sum(axis=1) != 1).any() or (whole[0] == whole[1]).all() or (whole[0] == -whole[1]).all():
        voxels = " x ".join(f"{value:.3f}" for value in grid.spacing)
        problem = f"pixels of {spacing[0]:.3f} x {spacing[1]:.3f} mm do not fall on the scan's voxels of {voxels} mm"
        raise MaskError("MASK-GRID", str(path), problem, "Resample the mask, or take the right scan.")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    distance = _misfit_mm(first, steps, (rows - 1, columns - 1), grid)
    if distance > SAME_PLACE_MM:
        problem = (
            f"frame {frame + 1} lies {distance:.2f} mm beside the scan's voxels ({SAME_PLACE_MM} mm is the tolerance)"
        )
        raise MaskError("MASK-GRID", str(path), problem, "Resample the mask, or take the right scan.")
    row_axis, column_axis = (int(np.argmax(np.abs(step))) for step in whole)
    start, across = np.round(first).astype(np.int64), 3 - row_axis - column_axis
    return _Place(
        (across, row_axis, column_axis),
        int(start[across]),
        start[row_axis] + np.arange(rows) * int(whole[0, row_axis]),
        start[column_axis] + np.arange(columns) * int(whole[1, column_axis]),
    )


def _misfit_mm(first: Float, steps: Float, last: tuple[int, int], grid: Grid) -> float:
    corners = first + np.array([(0, 0), (last[0], 0), (0, last[1]), last], dtype=np.float64) @ steps
    ideal = np.round(first) + np.array([(0, 0), (last[0], 0), (0, last[1]), last], dtype=np.float64) @ np.round(steps)
    return float(np.linalg.norm(grid.to_world(corners) - grid.to_world(ideal), axis=1).max())


def _check_planes(planes: dict[int, list[tuple[int, ...]]], path: Path) -> None:
    """Refuse two frames of one segment on one slice (time points); note segments on every second slice or so."""
    for number, places in planes.items():
        if len(set(places)) < len(places):
            problem = f"segment {number} has several frames on one slice"
            raise MaskError("MASK-READ", str(path), problem, "Export one time point.")
        steps = np.diff(sorted(places), axis=0)[:, 1] if len(places) > 2 else np.zeros(0)
        if len(steps) and steps.min() > 1:
            log.warning("%s: segment %d: its slices lie %d apart; nothing is interpolated", path, number, steps.min())


def write_dicom_seg(
    path: Path,
    mask: Mask,
    labels: Labels,
    source_files: Sequence[Path],
    *,
    algorithm: str = "medseg",
    model_hash: str = "",
) -> None:
    """Write a mask as a DICOM segmentation on the series it lies on (PS3.3 A.51).

    BINARY, one bit a voxel, empty frames left out: what every viewer that knows SEG reads. Segment numbers count from
    1 without gaps, as the standard wants, in the order of the labels; the labels' names are the segment labels. A
    mask without any voxel is a valid object whose frames are all empty. Patient and study are those of the source;
    the UIDs follow from source, mask and model.

    Args:
        path: final name.
        mask: on the grid of the series, its axes in any order.
        labels: number to name.
        source_files: the series' files: single frames, or one multi-frame file.
        algorithm: name of what made the mask.
        model_hash: identifies the model that made it; stands as the algorithm's version.

    Raises:
        InputError: MASK-GRID when the mask is not on the series, MASK-VALUES for a number without a name,
            MASK-READ when a source file cannot be read or the series cannot be referred to.
        RunError: RUN-WRITE.
    """
    import highdicom  # 0.4 s to import, and only this function needs it

    source = read_source(source_files)
    placed = mask.placed_on(source.grid)
    check_labels(placed, labels, path)
    uid = derived_uid("seg", *source.uids, content_hash(placed.labels), repr(labels), algorithm, model_hash)
    images, pixels = _images_and_pixels(source, _renumbered(placed, labels), path)
    with warnings.catch_warnings(), _constructing(path):
        warnings.simplefilter("ignore")  # highdicom's warnings quote the patient's name
        segmentation = highdicom.seg.Segmentation(
            source_images=images,
            pixel_array=pixels,
            segmentation_type="BINARY",
            segment_descriptions=_descriptions(labels, algorithm, model_hash),
            series_instance_uid=derived_uid("series", uid),
            series_number=_series_number(source),
            sop_instance_uid=uid,
            instance_number=1,
            manufacturer="medseg",
            manufacturer_model_name=algorithm,
            software_versions=model_hash[:64] or "unknown",
            device_serial_number="none",
            content_label="SEGMENTATION",
            omit_empty_frames=bool(pixels.any()),
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )
    with atomic_path(path) as partial:
        segmentation.save_as(partial, enforce_file_format=True)


@contextmanager
def _constructing(path: Path) -> Iterator[None]:
    """Turn highdicom's refusal of a source header into one message.

    Raises:
        MaskError: MASK-READ.
    """
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        problem = f"the source series cannot carry a DICOM segmentation: {type(error).__name__}"
        raise MaskError("MASK-READ", str(path), problem, "Write NIfTI or RTSTRUCT for this series.") from error


def _renumbered(mask: Mask, labels: Labels) -> NDArray[np.uint16]:
    """Return segment numbers 1, 2, ... `(i, j, k)` in the order of the labels."""
    table = np.zeros(max(labels.names) + 1, dtype=np.uint16)
    for segment, (number, _) in enumerate(labels, start=1):
        table[number] = segment
    return table[mask.labels]


def _images_and_pixels(
    source: Source, segments: NDArray[np.uint16], path: Path
) -> tuple[list[Dataset], NDArray[np.uint16]]:
    """Return the source images and the mask's frames `(n, rows, columns)` in the same order."""
    frames = np.ascontiguousarray(segments.transpose(2, 1, 0))
    if source.frames[0].number is None:
        return [_complete(frame.header, source.grid) for frame in source.frames], frames
    if len(source.headers) > 1:
        problem = f"the series has {len(source.headers)} multi-frame files, wanted one"
        raise MaskError("MASK-READ", str(path), problem, "Write NIfTI or RTSTRUCT for this series.")
    in_file_order = np.argsort([frame.number or 0 for frame in source.frames])
    return [_complete(source.headers[0], source.grid)], frames[in_file_order]


def _complete(header: Dataset, grid: Grid) -> Dataset:
    """Return a copy of a source header in which what the SEG must carry is there, if empty."""
    copy = Dataset(header)
    copy.file_meta = header.file_meta
    carry_patient(copy, header)
    if "PerFrameFunctionalGroupsSequence" in header:  # highdicom wants what all frames share in the shared groups
        shared = Dataset((header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0])
        for macro in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
            setattr(shared, macro, [functional_group(header, 0, macro)])
        copy.SharedFunctionalGroupsSequence = [shared]
    elif header.get("SliceThickness") is None:  # type 2 in the source (PS3.3 C.7.6.2); highdicom wants a number
        copy.SliceThickness = decimals([grid.spacing[2]])[0]
    return copy


def _series_number(source: Source) -> int:
    """Return a number apart from the source's: PS3.3 C.7.3.1 wants one, and viewers sort by it."""
    return int(source.headers[0].get("SeriesNumber") or 0) + 1000


def _descriptions(labels: Labels, algorithm: str, model_hash: str) -> list[SegmentDescription]:
    import highdicom
    from pydicom.sr.codedict import codes

    identification = highdicom.AlgorithmIdentificationSequence(
        name=algorithm, family=codes.cid7162.ArtificialIntelligence, version=model_hash or "unknown"
    )
    descriptions = []
    for segment, (_, name) in enumerate(labels, start=1):
        category, kind = coded_name(name)
        descriptions.append(
            highdicom.seg.SegmentDescription(segment, name[:64], category, kind, "AUTOMATIC", identification)
        )
    return descriptions


TUMOUR_WORDS = ("tumour", "tumor", "neoplasm", "lesion", "gtv", "metasta", "cancer", "carcinoma", "sarcoma", "glioma")


def coded_name(name: str) -> tuple[Code, Code]:
    """Return the codes for what a label's name means: category and type (PS3.16 CID 7150 and 7151).

    Tumours are (108369006, SCT, "Neoplasm"), a morphologically altered structure. Every other name is tissue, which
    claims nothing; the name itself stands in Segment Label.
    """
    from pydicom.sr.coding import Code  # 0.2 s: all codes of the standard come with it

    if any(word in name.casefold() for word in TUMOUR_WORDS):
        altered = Code("49755003", "SCT", "Morphologically Altered Structure")
        return altered, Code("108369006", "SCT", "Neoplasm")
    tissue = Code("85756007", "SCT", "Tissue")
    return tissue, tissue

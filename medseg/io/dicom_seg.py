"""Reading DICOM segmentation objects (SEG): binary, fractional and label map, placed by geometry.

Frames are laid on the scan's grid by their own position, orientation and spacing. Frames that are absent are
background: most writers leave empty ones out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID, SegmentationStorage

from medseg.errors import MaskError
from medseg.grid import SAME_PLACE_MM, Float, Grid
from medseg.io.dicom_objects import (
    functional_group,
    open_object,
    plane_of,
    reading,
)

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

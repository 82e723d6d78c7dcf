"""The door to RT structure sets: contours in, masks out, and masks written as contours.

Contours are placed by geometry alone. The image UIDs that they name are often not in the series at hand (cropped,
re-exported or de-identified series), and they carry no position of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ImplicitVRLittleEndian, RTStructureSetStorage

from medseg.errors import MaskError
from medseg.grid import Float, Grid
from medseg.io.atomic import atomic_path
from medseg.io.dicom_objects import (
    Source,
    SourceFrame,
    carry_patient,
    check_labels,
    content_hash,
    decimals,
    derived_uid,
    lps,
    open_object,
    ras,
    read_source,
    reading,
)
from medseg.io.polygons import fill, outline
from medseg.volume import Labels, Mask

log = logging.getLogger(__name__)

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
"""Contour types that enclose an area (PS3.3 C.8.8.6); points and open lines do not."""

ONE_PLANE = 0.05
"""Contours whose places along the stack differ by less than this part of a slice were drawn in one plane."""

OUTSIDE_PLANE = 0.5
"""A contour may lie, and tilt, this part of a slice away from a slice's plane, not more."""

OUTSIDE_EDGE = 1.0
"""A contour may overshoot the image's edge by one voxel: some programs draw along the outer side of the last one."""

DETACHED_STUDY = "1.2.840.10008.3.1.2.3.1"
"""Class by which RT Referenced Study Sequence (3006,0012) names a study (PS3.3 C.8.8.5); retired, yet required."""


@dataclass(frozen=True, eq=False)
class Structure:
    """One structure of a structure set.

    Attributes:
        number: ROI Number (3006,0022).
        name: ROI Name (3006,0026).
        contours: closed planar contours, `(n, 3)` each, world mm, RAS+.
        left_out: how many contours of each other kind ("POINT", "OPEN_PLANAR", "too few points", ...) were left out.
    """

    number: int
    name: str
    contours: tuple[Float, ...] = field(repr=False)
    left_out: dict[str, int] = field(default_factory=dict)


def read_structures(path: Path) -> list[Structure]:
    """Read every structure of an RTSTRUCT file, in the file's order.

    Raises:
        MaskError: MASK-READ when it is not a readable structure set.
    """
    what = "an RT structure set"
    dataset = open_object(path, [RTStructureSetStorage], what)
    if "StructureSetROISequence" not in dataset or "ROIContourSequence" not in dataset:
        raise MaskError(
            "MASK-READ", str(path), "lists no structures or no contours; it may be cut off", "Export it again."
        )
    with reading(path, what):
        drawn = {int(item.ReferencedROINumber): item for item in dataset.get("ROIContourSequence") or []}
        return [
            _structure(int(item.ROINumber), str(item.get("ROIName", "")), drawn.get(int(item.ROINumber)), path)
            for item in dataset.get("StructureSetROISequence") or []
        ]


def read_rtstruct(path: Path, grid: Grid, names: Sequence[str] | None = None) -> dict[str, NDArray[np.bool_]]:
    """Return the voxels of the named structures (all, when `names` is None) on `grid`.

    Structures of one name are merged. What was left out, or lies oddly, is logged as a warning.

    Args:
        path: RTSTRUCT file.
        grid: any grid, oblique and sheared too.
        names: exact structure names.

    Returns:
        name to `(i, j, k)` bool.

    Raises:
        MaskError: MASK-READ when the file or a contour cannot be used, LABEL-UNKNOWN for a name that is not in the
            file, MASK-GRID when contours lie outside the grid.
    """
    structures = read_structures(path)
    known = [structure.name for structure in structures]
    wanted = list(dict.fromkeys(known if names is None else names))
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise MaskError("LABEL-UNKNOWN", str(path), f"no structure {unknown} among {known}", "Name one that is there.")
    voxels = {name: np.zeros(grid.shape, dtype=bool) for name in wanted}
    for structure in structures:
        if structure.name in voxels:
            found, notes = rasterise(structure, grid, str(path))
            voxels[structure.name] |= found
            for note in notes:
                log.warning("%s: structure %r: %s", path, structure.name, note)
    return voxels


def rasterise(structure: Structure, grid: Grid, where: str = "") -> tuple[NDArray[np.bool_], list[str]]:
    """Return the voxels `(i, j, k)` bool of one structure on `grid`, and notes on what was odd.

    The slices run along the grid axis that the contours are drawn across. Each slice takes the contours of the plane
    nearest to it, not farther than half a slice; a voxel is inside when its centre is, by the even-odd rule over all
    contours of that plane. Nothing is interpolated between planes.

    Raises:
        MaskError: MASK-READ when contours run across the slices, MASK-GRID when they lie outside the grid.
    """
    where = f"{where}: structure {structure.name!r}" if where else f"structure {structure.name!r}"
    notes = [f"{count} contours left out ({kind})" for kind, count in structure.left_out.items()]
    if not structure.contours:
        if structure.left_out:
            raise MaskError("MASK-READ", where, f"encloses no area: {'; '.join(notes)}", "Draw closed planar contours.")
        return np.zeros(grid.shape, dtype=bool), [*notes, "no contours: empty"]
    order = grid.order_to("RAS")  # ties at voxel centres are settled in one direction of the world, not of the array
    upright = grid.reordered(order)
    points = [upright.to_index(contour) for contour in structure.contours]
    axis = _stack_axis(points)
    _check_planar(points, axis, where)
    _check_inside(points, axis, upright, where)
    planes = np.array([contour[:, axis].mean() for contour in points])
    voxels = np.zeros(upright.shape, dtype=bool)
    stack = np.moveaxis(voxels, axis, 0)
    chosen, more = _planes_of_slices(planes, len(stack), upright.spacing[axis])
    in_plane = [a for a in range(3) if a != axis]
    for index, members in chosen.items():
        stack[index] = fill([points[member][:, in_plane] for member in members], stack.shape[1:])
    if not voxels.any():
        more.append("the contours enclose no voxel centre: empty")
    return order.inverse.apply(voxels).astype(bool), notes + more


def _structure(number: int, name: str, drawn: Dataset | None, path: Path) -> Structure:
    contours, left_out = [], dict[str, int]()
    for item in (drawn.get("ContourSequence") if drawn is not None else None) or []:
        kind = str(item.get("ContourGeometricType", "unknown type"))
        points = np.asarray(item.get("ContourData") or [], dtype=np.float64)
        if len(points) % 3 or not np.isfinite(points).all():
            raise ValueError("contour data that are not triples of numbers")
        stated = item.get("NumberOfContourPoints")
        if stated is not None and int(stated) != len(points) // 3:
            problem = f"a contour of structure {name!r} has {len(points) // 3} points and says {stated}"
            raise MaskError("MASK-READ", str(path), problem, "The file is damaged; export it again.")
        if any(float(v) for v in item.get("ContourOffsetVector") or []):  # retired; moves the contour off its slice
            raise MaskError("MASK-READ", str(path), f"structure {name!r} has a contour offset vector", "Remove it.")
        if kind in CLOSED and len(points) < 9:
            kind = "fewer than 3 points"
        if kind in CLOSED:
            contours.append(ras(points.reshape(-1, 3)))
        else:
            left_out[kind] = left_out.get(kind, 0) + 1
    return Structure(number, name, tuple(contours), left_out)


def _stack_axis(points: Sequence[Float]) -> int:
    """Return the index axis across which most of the contours' area lies; Newell's area vectors, in index space."""
    areas = [np.cross(contour, np.roll(contour, -1, axis=0)).sum(axis=0) for contour in points]
    return int(np.argmax(np.abs(areas).sum(axis=0)))


def _check_planar(points: Sequence[Float], axis: int, where: str) -> None:
    tilted = [n + 1 for n, contour in enumerate(points) if np.ptp(contour[:, axis]) > OUTSIDE_PLANE]
    if tilted:
        problem = f"{_some(tilted)} of {len(points)} run across the slices instead of along them"
        raise MaskError("MASK-READ", where, problem, "Draw all contours on the scan's own slices.")


def _check_inside(points: Sequence[Float], axis: int, grid: Grid, where: str) -> None:
    """Refuse contours beyond the first or last slice by half a slice, or beyond the image's edge by a voxel."""
    limit = np.full(3, 0.5 + OUTSIDE_EDGE)
    limit[axis] = OUTSIDE_PLANE + 1e-3  # rounding of stored positions
    beyond = np.array([np.maximum(-limit - c, c - (np.array(grid.shape) - 1) - limit).max(axis=0) for c in points])
    outside = [n + 1 for n, distances in enumerate(beyond) if (distances > 0).any()]
    if outside:
        distance = float(((beyond + limit) * grid.spacing)[beyond > 0].max())
        problem = f"{_some(outside)} of {len(points)} lie outside the scan, up to {distance:.1f} mm from its last voxel"
        raise MaskError("MASK-GRID", where, problem, "Take the scan that the contours were drawn on.")


def _planes_of_slices(planes: Float, slices: int, spacing: float) -> tuple[dict[int, list[int]], list[str]]:
    """Choose the contours of each slice: those of the plane nearest to it.

    Args:
        planes: place of each contour along the stack, in slices.
        slices: how many there are.
        spacing: distance between slices in mm, for the notes.

    Returns:
        slice to the contours' numbers, and notes.
    """
    nearest: dict[int, float] = {}
    for plane in sorted(planes.tolist()):
        index = min(max(round(plane), 0), slices - 1)
        if index not in nearest or abs(plane - index) < abs(nearest[index] - index):
            nearest[index] = plane
    chosen = {
        index: [int(n) for n in np.flatnonzero(np.abs(planes - plane) < ONE_PLANE)] for index, plane in nearest.items()
    }
    notes = []
    unused = len(planes) - sum(len(members) for members in chosen.values())
    if unused:
        notes.append(f"{unused} contours lie between slices, behind a plane that is nearer to the slice; left out")
    off = max(abs(plane - index) for index, plane in nearest.items())
    if off > 2 * ONE_PLANE:
        notes.append(f"contours lie up to {off * spacing:.2f} mm off the planes of their slices")
    gaps = sorted(set(range(min(chosen), max(chosen))) - set(chosen))
    if gaps:
        notes.append(f"no contour on {len(gaps)} slices between others (index {_few(gaps)}); nothing is interpolated")
    return chosen, notes


def _some(numbers: Sequence[int]) -> str:
    return f"contour{'s' if len(numbers) > 1 else ''} {_few(numbers)}"


def _few(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(n) for n in numbers[:5])
    return shown + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")


def write_rtstruct(
    path: Path,
    mask: Mask,
    labels: Labels,
    source_files: Sequence[Path],
    *,
    algorithm: str = "medseg",
    model_hash: str = "",
) -> None:
    """Write a mask as an RT structure set on the series it lies on (PS3.3 A.19).

    Reading it back gives the same voxels. A contour runs half-way between inner and outer voxel centres with corners
    cut at 45 degrees, so that a contour encloses half a voxel less than the voxels it stands for; holes are keyholed.
    A label without voxels is a structure without contours. Patient and study are those of the source series. The
    UIDs follow from the source, the mask and the model: the same work gives the same names.

    Args:
        path: final name.
        mask: on the grid of the series, its axes in any order.
        labels: number to name; each becomes a structure with that ROI number.
        source_files: the series' files.
        algorithm: what made the mask, for ROI Generation Description.
        model_hash: identifies the model that made it.

    Raises:
        InputError: MASK-GRID when the mask is not on the series, MASK-VALUES for a number without a name,
            MASK-READ when a source file cannot be read.
        RunError: RUN-WRITE.
    """
    source = read_source(source_files)
    placed = mask.placed_on(source.grid)
    check_labels(placed, labels, path)
    uid = derived_uid("rtstruct", *source.uids, content_hash(placed.labels), repr(labels), algorithm, model_hash)
    dataset = _structure_set(source, uid)
    sets, drawings, observations = [], [], []
    for row, (number, name) in enumerate(labels):
        sets.append(_roi(number, name, source, f"{algorithm} {model_hash}".strip()))
        drawings.append(_roi_contours(number, row, placed, source))
        observations.append(_observation(number))
    dataset.StructureSetROISequence = sets
    dataset.ROIContourSequence = drawings
    dataset.RTROIObservationsSequence = observations
    with atomic_path(path) as partial:
        dataset.save_as(partial, enforce_file_format=True)


def _structure_set(source: Source, uid: UID) -> Dataset:
    """Return the object without its structures: general modules, and what it refers to."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    # Explicit VR would hold contour data to 64 KiB, about 1,300 points.
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = uid
    carry_patient(dataset, source.headers[0])
    now = datetime.now()
    dataset.SOPClassUID = RTStructureSetStorage
    dataset.SOPInstanceUID = uid
    dataset.InstanceCreationDate = dataset.StructureSetDate = dataset.SeriesDate = f"{now:%Y%m%d}"
    dataset.InstanceCreationTime = dataset.StructureSetTime = dataset.SeriesTime = f"{now:%H%M%S}"
    dataset.Modality = "RTSTRUCT"
    dataset.Manufacturer = dataset.ManufacturerModelName = "medseg"
    dataset.SeriesInstanceUID = derived_uid("series", uid)
    dataset.SeriesNumber = None
    dataset.OperatorsName = None
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.StructureSetLabel = "SEGMENTATION"
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(source)]
    return dataset


def _frame_of_reference(source: Source) -> Dataset:
    header = source.headers[0]
    series = Dataset()
    series.SeriesInstanceUID = header.SeriesInstanceUID
    series.ContourImageSequence = [frame.reference for frame in source.frames]
    study = Dataset()
    study.ReferencedSOPClassUID = DETACHED_STUDY
    study.ReferencedSOPInstanceUID = header.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame = Dataset()
    frame.FrameOfReferenceUID = _frame_uid(source)
    frame.RTReferencedStudySequence = [study]
    return frame


def _frame_uid(source: Source) -> str:
    carried = Dataset()
    carry_patient(carried, source.headers[0])
    return str(carried.FrameOfReferenceUID)


def _roi(number: int, name: str, source: Source, description: str) -> Dataset:
    item = Dataset()
    item.ROINumber = number
    item.ReferencedFrameOfReferenceUID = _frame_uid(source)
    item.ROIName = name
    item.ROIGenerationAlgorithm = "AUTOMATIC"
    item.ROIGenerationDescription = description[:64]  # LO holds 64 characters
    return item


def _observation(number: int) -> Dataset:
    item = Dataset()
    item.ObservationNumber = number
    item.ReferencedROINumber = number
    item.RTROIInterpretedType = ""
    item.ROIInterpreter = ""
    return item


COLOURS = ((230, 80, 60), (60, 160, 220), (110, 190, 90), (240, 190, 60), (160, 110, 200), (90, 200, 190))
"""Display colours of structures, in turn: distinct on a grey image, also for most colour-blind readers."""


def _roi_contours(number: int, row: int, mask: Mask, source: Source) -> Dataset:
    item = Dataset()
    item.ROIDisplayColor = list(COLOURS[row % len(COLOURS)])
    item.ReferencedROINumber = number
    inside = mask.labels == number
    contours = [
        _contour(polygon, k, mask.grid, source.frames[k])
        for k in np.flatnonzero(inside.any(axis=(0, 1))).tolist()
        for polygon in outline(inside[:, :, k])
    ]
    if contours:
        item.ContourSequence = contours
    return item


def _contour(polygon: Float, k: int, grid: Grid, frame: SourceFrame) -> Dataset:
    points = lps(grid.to_world(np.column_stack([polygon, np.full(len(polygon), k)])))
    item = Dataset()
    item.ContourImageSequence = [frame.reference]
    item.ContourGeometricType = "CLOSED_PLANAR"
    item.NumberOfContourPoints = len(points)
    item.ContourData = decimals(points)
    return item

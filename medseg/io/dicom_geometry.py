"""From the frames of one volume to their order and grid; every doubt is an error or a note, nothing is assumed.

DICOM's patient frame is LPS+ and its images are (row, column); here, and nowhere behind, they become RAS+ and i, j, k:
i counts columns, j rows, k slices along the normal (the cross product of the row and the column direction).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DicomError
from medseg.grid import SAME_PLACE_MM, Grid
from medseg.io.dicom_frames import Frame

Float = NDArray[np.float64]
Note = tuple[str, str]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

JITTER_MM = 0.0125
"""Positions rounded to two decimals lie up to 0.005 * sqrt(3) = 0.009 mm off; a fit of the spacing adds a third."""

JITTER_SHARE = 0.05
"""Of the spacing: the most that coarser rounding may excuse, 0.125 mm at 2.5 mm."""

ORIENTATION_NOISE = 2e-3
"""Direction cosines rounded to three decimals are off by 5e-4 each; beyond this it is not rounding."""

SAME_POSITION_MM = 0.01
"""Slices nearer than this along the normal lie at one position."""


@dataclass(frozen=True)
class Layout:
    """The frames of a volume in the order of its last axis, and where they are.

    Attributes:
        order: index into the given frames, slice by slice.
        grid: RAS+.
        notes: (code, message) of what is odd but understood.
    """

    order: tuple[int, ...]
    grid: Grid
    notes: tuple[Note, ...]


def axes(orientation: Sequence[float]) -> Float:
    """Row direction, column direction and normal as the rows of a `(3, 3)` right-handed orthonormal matrix, LPS+.

    The stored cosines are rounded; the nearest orthonormal pair is taken (polar factor, Higham 1986).

    Raises:
        DicomError: DICOM-GEOMETRY when they are not two perpendicular unit vectors within rounding.
    """
    return _axes(tuple(orientation))


@functools.lru_cache(maxsize=1000)
def _axes(orientation: tuple[float, ...]) -> Float:
    """The same; the frames of a series ask for few orientations many times."""
    pair = np.array(orientation, dtype=np.float64).reshape(2, 3)
    if np.abs(pair @ pair.T - np.eye(2)).max() > 2 * ORIENTATION_NOISE:
        problem = "the direction cosines of rows and columns are not two perpendicular unit vectors"
        raise DicomError("DICOM-GEOMETRY", "", problem, "Export the series again from its source.")
    u, _, vt = np.linalg.svd(pair, full_matrices=False)
    row, column = u @ vt
    matrix = np.stack([row, column, np.cross(row, column)])
    matrix.flags.writeable = False
    return matrix


def heights(frames: Sequence[Frame]) -> Float:
    """Position `(n,)` of each frame along the normal of the first, in mm.

    Raises:
        DicomError: DICOM-GEOMETRY when position or orientation is absent or unusable.
    """
    _require_geometry(frames)
    normal = axes(frames[0].orientation or ())[2]
    positions = np.array([frame.position for frame in frames], dtype=np.float64)
    return np.asarray(positions @ normal, dtype=np.float64)


def lay_out(frames: Sequence[Frame], rows: int, columns: int) -> Layout:
    """Order the frames of one volume and make its grid.

    Args:
        frames: all of one size, spacing and orientation (within rounding), each position once; in any order.
        rows: number of rows of each image.
        columns: number of columns.

    Raises:
        DicomError: DICOM-GEOMETRY, DICOM-SINGLE, DICOM-GAP, DICOM-SPACING or DICOM-DUPLICATE; the message counts the
            slices from 1 along the normal and gives their positions.

    Source: PS3.3 C.7.6.2.1.1 (equation C.7.6.2.1-1); the third column of its matrix from the positions of the slices,
        as C.7.6.2.1.1 has none: SliceThickness and SpacingBetweenSlices are not geometry.
    """
    along = heights(frames)
    if len(frames) == 1:
        problem = "a single slice: the distance to the next one, and so the volume, is unknown"
        raise DicomError("DICOM-SINGLE", "", problem, "Give the whole series.")
    order = np.argsort(along, kind="stable")
    frame = axes(np.mean([f.orientation or () for f in frames], axis=0).tolist())
    positions = np.array([frames[n].position for n in order], dtype=np.float64)
    first, step = _fit(positions)
    notes = _check_steps(positions, frame, first, step, _jitter_limit(frames, step @ frame[2]))
    drift = float(np.linalg.norm(step - (step @ frame[2]) * frame[2])) * (len(frames) - 1)
    if drift > _drift_limit(frames, float(np.linalg.norm(step)) * (len(frames) - 1)):
        notes.append(_tilt_note(step, frame, drift))
    else:
        first, step, frame = _straighten(positions, step, frame, frames)
    between_rows, between_columns = frames[0].spacing or (0.0, 0.0)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([frame[0] * between_columns, frame[1] * between_rows, step], axis=1)
    affine[:3, 3] = first
    grid = Grid((columns, rows, len(frames)), LPS_TO_RAS @ affine)
    return Layout(tuple(int(n) for n in order), grid, tuple(notes))


def _require_geometry(frames: Sequence[Frame]) -> None:
    for name, has in (
        ("ImagePositionPatient", [f.position is not None for f in frames]),
        ("ImageOrientationPatient", [f.orientation is not None for f in frames]),
        ("PixelSpacing", [f.spacing is not None and min(f.spacing) > 0 for f in frames]),
    ):
        if not all(has):
            problem = f"{name} is absent or unreadable in {has.count(False)} of {len(has)} images"
            raise DicomError("DICOM-GEOMETRY", "", problem, "Export the series again from its source.")


def _fit(positions: Float) -> tuple[Float, Float]:
    """Least-squares first position and step of equally spaced points, which averages the rounding of their strings."""
    n = np.arange(len(positions)) - (len(positions) - 1) / 2
    step = n @ positions / (n @ n)
    return positions.mean(axis=0) + n[0] * step, step


def _jitter_limit(frames: Sequence[Frame], spacing: float) -> float:
    """How far in mm a slice may lie beside its place: what rounding of the stored decimals can do, within reason."""
    rounding = 0.5 * 10.0 ** -max(f.decimals[0] for f in frames) * 3**0.5 * 1.5
    return max(JITTER_MM, min(rounding, JITTER_SHARE * abs(spacing)))


def _check_steps(positions: Float, frame: Float, first: Float, step: Float, limit: float) -> list[Note]:
    """Refuse uneven steps along the normal and sideways jumps."""
    along = positions @ frame[2]
    _refuse_uneven(along, limit)
    offsets = positions - (first + np.arange(len(positions))[:, None] * step)
    worst = float(np.linalg.norm(offsets, axis=1).max())
    if worst > limit:
        slice_number = int(np.linalg.norm(offsets, axis=1).argmax()) + 1
        problem = f"slice {slice_number} lies {worst:.2f} mm beside the line of the others"
        raise DicomError("DICOM-GEOMETRY", "", problem, "Export the series again, or exclude it.")
    if worst <= JITTER_MM:
        return []
    return [("DICOM-ROUNDED", f"the positions are rounded: slices lie up to {worst:.3f} mm beside their place")]


def _refuse_uneven(along: Float, limit: float) -> None:
    steps = np.diff(along)
    if steps.min() < SAME_POSITION_MM:
        at = int(steps.argmin())
        problem = f"two slices lie at one position ({along[at]:.2f} mm), and differ"
        raise DicomError("DICOM-DUPLICATE", "", problem, "Remove the one that does not belong to the series.")
    even = along[0] + np.arange(len(along)) * (along[-1] - along[0]) / (len(along) - 1)
    if np.abs(along - even).max() <= 2 * limit and np.ptp(steps) <= 4 * limit:
        return
    usual = _usual_step(steps)
    odd = np.flatnonzero(np.abs(steps - usual) > 2 * limit)
    gaps = _whole_gaps(steps[odd], usual, limit) and len(odd) * 3 <= len(steps)
    pairs = ", ".join(_pair(along, steps, int(n)) for n in odd[:3]) + (
        f" and {len(odd) - 3} more" if odd[3:].size else ""
    )
    if gaps:
        missing = int(np.rint(steps[odd] / usual).sum()) - len(odd)
        what = f"{missing} slice{'s are' if missing > 1 else ' is'} missing"
        problem = f"{pairs}, the others {usual:.4g} mm: {what}"
        raise DicomError("DICOM-GAP", "", problem, "Export the series again, or exclude it.")
    problem = f"the slices are unevenly spaced: {pairs}, the others {usual:.4g} mm"
    raise DicomError("DICOM-SPACING", "", problem, "Resample the series to even spacing, or exclude it.")


def _usual_step(steps: Float) -> float:
    """The step that most others resemble (within a hundredth); of equally common ones the smallest."""
    alike = (np.abs(steps[:, None] - steps[None, :]) <= 0.01 * steps[:, None]).sum(axis=1)
    return float(steps[alike == alike.max()].min())


def _whole_gaps(steps: Float, usual: float, limit: float) -> bool:
    times = np.rint(steps / usual)
    return bool(len(steps) and (times >= 2).all() and (np.abs(steps - times * usual) <= 4 * limit + 0.02 * usual).all())


def _pair(along: Float, steps: Float, n: int) -> str:
    place = f"at {along[n]:.2f} and {along[n + 1]:.2f} mm"
    return f"slices {n + 1} and {n + 2} ({place}) are {steps[n]:.4g} mm apart"


def _cosine_noise(frames: Sequence[Frame]) -> float:
    """Angle in radians by which rounding of the cosines may have turned the normal; none for 0 and 1."""
    if set(frames[0].orientation or ()) <= {-1.0, 0.0, 1.0}:
        return 0.0
    # each of the six cosines is off by half a unit of its last place; three of them bear on one direction
    return min(ORIENTATION_NOISE, 3 * 0.5 * 10.0 ** -max(f.decimals[1] for f in frames))


def _place_noise(frames: Sequence[Frame]) -> float:
    """Distance in mm between two stored positions that rounding may add."""
    return float(10.0 ** -max(f.decimals[0] for f in frames) * 3**0.5)


def _drift_limit(frames: Sequence[Frame], length: float) -> float:
    """Sideways drift in mm over the stack's length that is rounding and not a tilt."""
    return max(SAME_PLACE_MM, _cosine_noise(frames) * length + min(_place_noise(frames), SAME_PLACE_MM))


def _tilt_note(step: Float, frame: Float, drift: float) -> Note:
    angle = float(np.degrees(np.arctan2(np.linalg.norm(np.cross(step, frame[2])), step @ frame[2])))
    message = f"the stack leans by {angle:.2f} degrees (tilted gantry), {drift:.1f} mm in all: resample it before use"
    return "DICOM-TILT", message


def _straighten(positions: Float, step: Float, frame: Float, frames: Sequence[Frame]) -> tuple[Float, Float, Float]:
    """Make step and slices perpendicular by turning whichever is known less precisely, about the middle of the stack.

    Returns:
        First position, step, and the axes of `axes`.
    """
    length = float(np.linalg.norm(step)) * (len(positions) - 1)
    if _cosine_noise(frames) > _place_noise(frames) / length:
        along = step / np.linalg.norm(step)
        frame = axes((frame[:2] - np.outer(frame[:2] @ along, along)).ravel().tolist())
    straight = (step @ frame[2]) * frame[2]
    return positions.mean(axis=0) - (len(positions) - 1) / 2 * straight, straight, frame

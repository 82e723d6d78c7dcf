"""From the files of one series to the volumes in it, each with a verdict.

A series may hold several volumes (phases, echoes, time points, a localizer), copies, strangers and damage. It is split
only when every part is a volume of its own over the same positions; parts that complete one another are one broken
volume, and the whole series is refused: half a volume that looks whole is the worst result.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from medseg.errors import DicomError
from medseg.grid import Grid
from medseg.io.dicom_frames import Frame
from medseg.io.dicom_geometry import ORIENTATION_NOISE, Note, axes, heights, lay_out
from medseg.io.dicom_headers import SLICE_CLASSES, Header
from medseg.io.dicom_repeats import each_whole, grouped, interlock, split_repeats, without_copies
from medseg.io.dicom_telling import told_apart

SEPARABLE = ("DICOM-COLOUR", "DICOM-MOSAIC", "DICOM-MULTIFRAME")
"""Faults of files that may be no slices at all (a screenshot, a film loop), rather than damaged slices."""

FEW_SLICES = 5
"""Fewer than this, beside other planes or marked as localizer, are a scout and not a volume."""

FAN_DEGREES, STACK_DEGREES = 20, 3
"""Parallel stacks may be turned against each other by 3 degrees or more (lumbar discs), a few slices by 20 or more (a
localizer); what is turned by less is a fan or a fault."""

INTERLOCKED = "neighbouring slices are of different acquisitions: two stacks that interlock, or one acquired in turns"

ADVICE = {
    "DICOM-READ": "Copy or export the series again.",
    "DICOM-SYNTAX": "Install the codec, or export the series uncompressed.",
    "DICOM-GEOMETRY": "Export the series again from its source.",
    "DICOM-SINGLE": "Give the whole series.",
    "DICOM-GAP": "Export the series again, or exclude it.",
    "DICOM-SPACING": "Resample the series to even spacing, or exclude it.",
    "DICOM-DUPLICATE": "Remove the images that do not belong to the series.",
    "DICOM-MIXED": "Separate the images into series of their own.",
    "DICOM-PATIENT": "Separate the patients; do not use the series as it is.",
    "DICOM-MOSAIC": "Convert it with dcm2niix, and give the NIfTI file.",
}
"""What to do about a refusal, by code."""


@dataclass(frozen=True)
class SeriesVolume:
    """One volume of a series, or what could not become one.

    Attributes:
        headers: the files, in slice order where there is one.
        frames: the images, in slice order where there is one.
        grid: RAS+; None when the geometry could not be made out.
        code: why it is unfit, "" when it is fit.
        reason: the same in words.
        notes: (code, message) warnings.
    """

    headers: tuple[Header, ...]
    frames: tuple[Frame, ...]
    grid: Grid | None = None
    code: str = ""
    reason: str = ""
    notes: tuple[Note, ...] = ()


class _Series:
    """The headers of one series, looked up by path."""

    def __init__(self, headers: Sequence[Header]) -> None:
        self.by_path = {header.path: header for header in headers}

    def headers(self, frames: Sequence[Frame]) -> tuple[Header, ...]:
        return tuple(self.by_path[path] for path in dict.fromkeys(frame.path for frame in frames))

    def rejected(self, frames: Sequence[Frame], code: str, reason: str) -> SeriesVolume:
        return SeriesVolume(self.headers(frames), tuple(frames), None, code, reason)

    def of(self, frame: Frame) -> Header:
        return self.by_path[frame.path]

    def name(self, frame: Frame) -> str:
        place = f" frame {frame.number + 1}" if len(self.of(frame).frames) > 1 else ""
        return shown(frame.path.name) + place


def shown(name: str) -> str:
    """A file name as printable text: undecodable bytes and control characters replaced."""
    text = name.encode("utf-8", "replace").decode("utf-8")
    return "".join(character if character.isprintable() else "?" for character in text)


def plan_volumes(headers: Sequence[Header]) -> list[SeriesVolume]:
    """Split one series into its volumes.

    Args:
        headers: all files of the series, `kind` image, in any order: the result does not depend on it.
    """
    headers = sorted(headers, key=lambda h: (h.path.name, str(h.path)))
    whole = [header for header in headers if header.kind == "image" and header.code != "DICOM-READ"]
    patients = max(len({h.patient for h in whole}), len({h.born for h in whole} - {""}))
    if patients > 1:
        reason = f"the series holds images of {patients} patients"
        return [SeriesVolume(tuple(headers), (), None, "DICOM-PATIENT", reason)]
    placed = {h.sop_class for h in whole if not _has_no_place(h)}
    strangers = [_refused_picture(h) for h in headers if _is_stranger(h, placed)]
    slices = [h for h in headers if not _is_stranger(h, placed)]
    plans = [_faulty(strangers)] if strangers else []
    if slices and any(h.code for h in slices):
        plans.append(_faulty(slices))
    elif slices:
        plans += _plan_slices(_Series(slices), [frame for header in slices for frame in header.frames])
    plans = [replace(plan, notes=(*plan.notes, *_file_notes(plan))) for plan in plans]
    return _noted_split(plans, {header.path: header for header in headers})


def _is_stranger(header: Header, placed: set[str]) -> bool:
    """Whether the file is no slice of its series' stack; one with a position in the patient may be a damaged slice.

    Args:
        header: the file.
        placed: kinds of object (SOP classes) that have a place in the patient, in its series.
    """
    if not _has_no_place(header):
        return False
    picture = bool(placed) and header.sop_class not in placed and header.sop_class not in SLICE_CLASSES
    return header.code in SEPARABLE or (picture and header.kind == "image" and not header.code)


def _has_no_place(header: Header) -> bool:
    return all(frame.position is None for frame in header.frames)


def _refused_picture(header: Header) -> Header:
    reason = "a picture (a screenshot, a report) without a place in the patient"
    return header if header.code else replace(header, code="DICOM-GEOMETRY", reason=reason)


def _faulty(headers: Sequence[Header]) -> SeriesVolume:
    """Reject with the commonest fault, naming the first file that has it."""
    faults = Counter(header.code for header in headers if header.code)
    code, times = faults.most_common(1)[0]
    first = next(header for header in headers if header.code == code)
    where = f"{shown(first.path.name)}: " if times < len(headers) else ""
    others = f" ({times} of {len(headers)} files)" if len(headers) > 1 else ""
    frames = tuple(frame for header in headers for frame in header.frames)
    return SeriesVolume(tuple(headers), frames, None, code, f"{where}{first.reason}{others}")


def _noted_split(plans: list[SeriesVolume], headers: Mapping[Path, Header]) -> list[SeriesVolume]:
    """Note what tells each of several plans from the others."""
    if len(plans) < 2:
        return plans
    apart = told_apart([plan.frames for plan in plans], headers)
    messages = [f"its series holds {len(plans)} sets of images; this one: {what}" for what in apart]
    return [
        replace(plan, notes=(("DICOM-SPLIT", message), *plan.notes))
        for plan, message in zip(plans, messages, strict=True)
    ]


# ---- splitting -----------------------------------------------------------------------------------------------------


def _plan_slices(series: _Series, frames: list[Frame]) -> list[SeriesVolume]:
    """Split off localizers and other planes, then what else makes different volumes."""
    scouts = [frame for frame in frames if "LOCALIZER" in frame.image_type]
    stack = [frame for frame in frames if "LOCALIZER" not in frame.image_type] or frames
    plans = [series.rejected(scouts, "DICOM-LOCALIZER", _scout(scouts))] if scouts and stack is not frames else []
    try:
        heights(stack)
        planes = _by_plane(stack)
    except DicomError as error:
        return [series.rejected(stack, error.code, error.problem), *plans]
    for plane in planes:
        if len(plane) < FEW_SLICES and (len(planes) > 1 or scouts):
            plans.append(series.rejected(plane, "DICOM-LOCALIZER", _scout(plane)))
        else:
            plans += _plan_plane(series, plane)
    return plans


def _scout(frames: Sequence[Frame]) -> str:
    return f"a localizer: {len(frames)} image{'s' if len(frames) > 1 else ''} of its own plane, not a volume"


def _by_plane(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Group frames by orientation, largest group first.

    Raises:
        DicomError: DICOM-MIXED when orientations differ by more than rounding, yet too little for stacks of their own.
    """
    planes: list[list[Frame]] = []
    for frame in frames:
        cosines = np.array(frame.orientation)
        for plane in planes:
            if np.abs(cosines - np.array(plane[0].orientation)).max() <= ORIENTATION_NOISE:
                plane.append(frame)
                break
        else:
            planes.append([frame])
    _refuse_fans(planes)
    return sorted(planes, key=len, reverse=True)


def _refuse_fans(planes: Sequence[Sequence[Frame]]) -> None:
    limit = FAN_DEGREES if any(len(plane) < FEW_SLICES for plane in planes) else STACK_DEGREES
    normals = [axes(plane[0].orientation or ())[2] for plane in planes]
    for n, normal in enumerate(normals):
        if any(abs(float(normal @ other)) > math.cos(math.radians(limit)) for other in normals[:n]):
            raise DicomError("DICOM-MIXED", "", "the slices are not parallel, or are turned against each other")


def _plan_plane(series: _Series, frames: list[Frame]) -> list[SeriesVolume]:
    """Split parallel frames by size, spacing, frame of reference, study and kind."""
    groups = grouped(frames, lambda frame: _hard_key(series, frame, frames[0]))
    if len(groups) > 1 and not each_whole(groups, share=0.5):
        differing = _what_differs(series, groups)
        reason = f"images of one stack differ in {differing} ({', '.join(str(len(g)) for g in groups)} images)"
        return [series.rejected(frames, "DICOM-MIXED", reason)]
    return [plan for group in groups for plan in _plan_like(series, group)]


_HARD_NAMES = ("size", "pixel spacing", "frame of reference", "study", "kind of object", "modality")


def _hard_key(series: _Series, frame: Frame, first: Frame) -> tuple[object, ...]:
    header = series.of(frame)
    size = header.pixels.slice_shape if header.pixels else None
    return size, _spacing_key(frame, first), header.frame_uid, header.study_uid, header.sop_class, header.modality


def _spacing_key(frame: Frame, first: Frame) -> object:
    """The first frame's spacing when this one's is the same within a thousandth, else its own, rounded."""
    own, usual = frame.spacing or (0.0, 0.0), first.spacing or (0.0, 0.0)
    same = all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(own, usual, strict=True))
    return usual if same else tuple(round(s, 3) for s in own)


def _what_differs(series: _Series, groups: list[list[Frame]]) -> str:
    keys = [_hard_key(series, group[0], groups[0][0]) for group in groups]
    return " and ".join(name for n, name in enumerate(_HARD_NAMES) if len({key[n] for key in keys}) > 1)


def _plan_like(series: _Series, frames: list[Frame]) -> list[SeriesVolume]:
    """Frames of one plane and size: drop copies, split by what tells volumes apart if positions repeat."""
    kept, copies = without_copies(frames, series.by_path)
    note = _copy_note(series, copies)
    try:
        groups = split_repeats(kept, series.by_path)
    except DicomError as error:
        return [series.rejected(frames, error.code, error.problem)]
    most = max(len(group) for group in groups)
    plans = [_plan_one(series, group, most) for group in groups]
    return [replace(plan, notes=(*note, *plan.notes)) for plan in plans]


def _copy_note(series: _Series, copies: Sequence[Frame]) -> tuple[Note, ...]:
    if not copies:
        return ()
    times = Counter(path.name for path in series.by_path)
    folders = (f"{shown(f.path.parent.name)}/" if times[f.path.name] > 1 else "" for f in copies[:3])
    places = [folder + series.name(frame) for folder, frame in zip(folders, copies, strict=False)]
    names = ", ".join(places) + (" ..." if copies[3:] else "")
    return (("DICOM-DUPLICATE", f"{len(copies)} identical copies of slices were left out ({names})"),)


# ---- one volume ----------------------------------------------------------------------------------------------------


def _plan_one(series: _Series, frames: list[Frame], most: int) -> SeriesVolume:
    pixels = series.of(frames[0]).pixels
    if len(frames) < most:
        reason = f"the volume has {len(frames)} slices, another one of its series {most}"
        return series.rejected(frames, "DICOM-INCOMPLETE", reason)
    try:
        _check_rescale(series, frames)
        layout = lay_out(frames, *(pixels.slice_shape if pixels else (0, 0)))
        ordered = tuple(frames[n] for n in layout.order)
        if interlock(ordered) and series.of(frames[0]).modality != "MR":  # where slices are acquired every second one
            raise DicomError("DICOM-MIXED", "", INTERLOCKED)
    except DicomError as error:
        return series.rejected(frames, error.code, error.problem)
    notes = (*layout.notes, *_volume_notes(series, ordered))
    return SeriesVolume(series.headers(ordered), ordered, layout.grid, notes=notes)


def _check_rescale(series: _Series, frames: Sequence[Frame]) -> None:
    """Refuse rescale values that cannot be right (PS3.3 C.11.1)."""
    for frame in frames:
        if not math.isfinite(frame.slope * frame.intercept) or frame.slope == 0:
            found = "0" if frame.slope == 0 else "not readable"
            raise DicomError("DICOM-RESCALE", "", f"{series.name(frame)}: the rescale slope or intercept is {found}")
        if any(code == "DICOM-RESCALE" for code, _ in series.of(frame).notes):
            raise DicomError("DICOM-RESCALE", "", "the values need a modality lookup table, which is not read")
    stated = [frame.has_rescale for frame in frames]
    if len(set(stated)) > 1:
        lacking = len(stated) - stated.count(max(stated))
        problem = f"{lacking} of {len(stated)} slices state no rescale slope and intercept, the others do"
        raise DicomError("DICOM-RESCALE", "", problem)


def _volume_notes(series: _Series, frames: Sequence[Frame]) -> list[Note]:
    notes = []
    headers = series.headers(frames)
    notes += _count_notes(series, headers, frames)
    if interlock(frames):
        notes.append(("DICOM-MIXED", INTERLOCKED))
    if len(frames) < 3:
        notes.append(("DICOM-FEW", f"only {len(frames)} slices"))
    if not headers[0].series_uid:
        notes.append(("DICOM-IDENTITY", "no SeriesInstanceUID: the files of its folder were taken as one series"))
    if len({header.image for header in headers}) < len(headers):
        notes.append(("DICOM-IDENTITY", "SOPInstanceUID is absent or not unique; slices were told apart by position"))
    if headers[0].modality == "CT" and frames[0].has_rescale == 0:
        notes.append(("DICOM-RESCALE", "no rescale slope and intercept: the values may not be Hounsfield units"))
    if frames[0].has_rescale == 1:
        notes.append(("DICOM-RESCALE", "only one of rescale slope and intercept is stated; 1 or 0 was taken"))
    return notes


def _count_notes(series: _Series, headers: Sequence[Header], frames: Sequence[Frame]) -> list[Note]:
    """What counts and numbers in the headers say of missing slices, where the geometry shows none."""
    acquisitions = {dict(frame.marks).get("acquisition number") for frame in frames}
    everything = [frame for header in series.by_path.values() for frame in header.frames]
    acquired = sum(dict(frame.marks).get("acquisition number") in acquisitions for frame in everything)
    parts = max(header.parts for header in headers)
    if parts > len(headers):
        return [("DICOM-COUNT", f"its images were divided into {parts} files, of which {len(headers)} are here")]
    claims = (
        (max(header.count for header in headers), acquired),
        (max(header.slices for header in headers), len(frames)),
        (max(header.total for header in headers), len(series.by_path)),
    )
    for claimed, there in claims:
        if claimed > there:
            return [("DICOM-COUNT", f"the header counts {claimed} images, {there} are here: some may be missing")]
    numbers = [header.instance for header in headers if header.instance is not None]
    steps = {later - earlier for earlier, later in pairwise(numbers)}
    if len(numbers) == len(everything) > 2 and len(steps) == 1 and abs(step := steps.pop()) > 1:
        return [("DICOM-COUNT", f"the images are numbered in steps of {abs(step)}: slices between them may be missing")]
    return []


def _file_notes(plan: SeriesVolume) -> list[Note]:
    """The notes of the files, each once."""
    return list(dict.fromkeys(note for header in plan.headers for note in header.notes))

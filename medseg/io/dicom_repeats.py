"""Images of one plane that lie at one position: copies, volumes that share a series, or a fault."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from medseg.errors import DicomError
from medseg.io.dicom_frames import Frame
from medseg.io.dicom_geometry import SAME_POSITION_MM, heights
from medseg.io.dicom_headers import Header
from medseg.io.dicom_open import PARSE_ERRORS, open_data_set

CONTRAST_SHARE = 0.01
"""Echo and inversion times that differ by less are one time, written or rounded in two ways."""


FEWEST_NUMBERED = 3
"""Places that numbers must run through to be believed: by chance two images of two places do, too."""


def without_copies(frames: Sequence[Frame], headers: Mapping[Path, Header]) -> tuple[list[Frame], list[Frame]]:
    """Split into distinct frames and copies: same position, same marks, same stored pixels and rescale."""
    places: dict[object, list[Frame]] = defaultdict(list)
    for frame in frames:
        places[frame.position, frame.marks, frame.image_type, frame.slope, frame.intercept].append(frame)
    kept: list[Frame] = []
    copies: list[Frame] = []
    for alike in places.values():
        seen: set[object] = set()
        for frame in alike:
            digest = _digest(headers[frame.path], frame) if len(alike) > 1 else None
            (copies if digest in seen else kept).append(frame)
            seen.add(digest)
    return kept, copies


def _digest(header: Header, frame: Frame) -> object:
    """Hash of a frame's stored pixels; of the whole pixel data and the frame's number where it is not alone."""
    pixels = header.pixels
    if pixels is None:
        return frame.path
    alone = pixels.is_native and pixels.tiles == 1
    number = frame.number if alone else 0
    length = pixels.frame_bytes if alone else -1
    try:
        with open_data_set(header.path) as data:
            data.seek(pixels.offset + number * pixels.frame_bytes)
            content = hashlib.sha256(data.read(length)).hexdigest()
    except (DicomError, *PARSE_ERRORS):
        return frame.path
    layout = pixels.signed, pixels.stored, pixels.high_bit, pixels.allocated, pixels.little_endian
    return pixels.syntax, layout, content, 0 if alone else frame.number


_SPLITTERS = (
    "series number",
    *("temporal position", "acquisition number", "echo", "b-value", "private b-value", "image type"),
    *("inversion time", "flip angle", "sequence", "tube voltage", "kernel", "contrast agent", "stack"),
    *("image component", "cardiac phase", "unit"),
    *("gradient direction", "trigger time", "frame time", "acquisition time", "content time"),
)
"""Tried one by one, then all but the times together."""

_TIMES = 4
"""The last of the splitters: times, by which too little may be told apart, or too much."""

_CONTRASTS = (
    *("temporal position", "echo", "b-value", "private b-value", "inversion time", "flip angle", "sequence"),
    *("tube voltage", "kernel", "image component", "cardiac phase", "unit", "kind of image"),
)
"""What must not vary inside one volume; the acquisition number may (one for each rotation of a step-and-shoot CT)."""


def _mark(frame: Frame, name: str) -> object:
    if name == "image type":
        return frame.image_type
    if name == "kind of image":  # behind original or derived, primary or secondary (PS3.3 C.7.6.1.1.2)
        return frame.image_type[2:]
    return dict(frame.marks).get(name, "")


def _differ(frames: Sequence[Frame], name: str) -> bool:
    """Whether the frames' marks differ by more than the writing of a number."""
    values = sorted({str(_mark(frame, name)) for frame in frames})
    parts = [value.split("/") for value in values]
    try:
        numbers = np.array([[float(part or "nan") for part in value] for value in parts])
    except ValueError:
        return len(values) > 1
    spread = np.ptp(numbers, axis=0) > CONTRAST_SHARE * np.abs(numbers).max(axis=0)
    absent = np.isnan(numbers).any(axis=0) & ~np.isnan(numbers).all(axis=0)
    return bool((spread | absent).any())


def split_repeats(frames: list[Frame], headers: Mapping[Path, Header]) -> list[list[Frame]]:
    """One group when no position repeats; else groups by one mark, by all, or by the numbers of the images.

    Raises:
        DicomError: DICOM-DUPLICATE when nothing tells images at one position apart, DICOM-MIXED when images at
            different positions differ in contrast.
    """
    if _is_single(frames):
        mixed = _mixed(frames)
        if mixed:
            raise DicomError("DICOM-MIXED", "", f"images of one stack differ in {' and '.join(mixed)}")
        return [frames]
    keys = [*((name,) for name in _SPLITTERS), _SPLITTERS[:-_TIMES]]
    for names in keys:
        groups = grouped(frames, lambda frame, names=names: tuple(_mark(frame, name) for name in names))  # type: ignore[misc]
        sound = all(_is_single(group) and not _mixed(group) for group in groups)
        if len(groups) > 1 and sound and each_whole(groups, share=0.5):
            return groups
    groups = _by_number(frames, headers)
    if groups and not any(_mixed(group) for group in groups):
        return groups
    along = np.sort(heights(frames))
    at = float(along[int(np.diff(along).argmin())])
    times = len(frames) - len(_levels(frames))
    problem = (
        f"{times + 1 if times == 1 else times} images lie where another one does (first at {at:.2f} mm), and differ"
    )
    raise DicomError("DICOM-DUPLICATE", "", problem)


def _by_number(frames: Sequence[Frame], headers: Mapping[Path, Header]) -> list[list[Frame]]:
    """Volumes by the numbers of their images: one volume after the other, or all images of one place, then of the next.

    The numbers are believed when every place has as many images, and all volumes thereby run through the same places in
    the same order; none when they are not.
    """
    numbers = [(headers[frame.path].instance, frame.number) for frame in frames]
    places = len(_levels(frames))
    times, rest = divmod(len(frames), places)
    if rest or places < FEWEST_NUMBERED or len(set(numbers)) < len(frames) or any(n is None for n, _ in numbers):
        return []
    ordered = [frame for _, frame in sorted(zip(numbers, frames, strict=True), key=lambda pair: pair[0])]
    in_blocks = [ordered[n * places : (n + 1) * places] for n in range(times)]
    in_turns = [ordered[n::times] for n in range(times)]
    for groups in (in_blocks, in_turns):
        along = np.array([heights([frames[0], *group])[1:] for group in groups])
        if np.ptp(along, axis=0).max() < SAME_POSITION_MM and all(_is_single(group) for group in groups):
            return groups
    return []


def _mixed(frames: Sequence[Frame]) -> list[str]:
    """In which contrasts the frames of one stack differ."""
    names = [name for name in _CONTRASTS if _differ(frames, name)]
    return [] if _varies_freely(frames, names) else names


def _varies_freely(frames: Sequence[Frame], names: Sequence[str]) -> bool:
    """Whether the marks take a new value for nearly each slice: then they are times or measurements, not volumes."""
    values = {tuple(_mark(frame, name) for name in names) for frame in frames}
    return len(values) > max(2, len(frames) // 2)


def _is_single(frames: Sequence[Frame]) -> bool:
    along = np.sort(heights(frames))
    return bool((np.diff(along) > SAME_POSITION_MM).all())


def interlock(frames: Sequence[Frame]) -> bool:
    """Whether neighbours in a stack, in order, mostly come from different ones of a few acquisitions."""
    numbers = [_mark(frame, "acquisition number") for frame in frames]
    changes = sum(a != b for a, b in pairwise(numbers))
    return len(set(numbers)) <= max(1, len(frames) // 5) and changes > len(frames) // 2


# ---- groups --------------------------------------------------------------------------------------------------------


def grouped(frames: Sequence[Frame], key: Callable[[Frame], object]) -> list[list[Frame]]:
    """Frames by a key, largest group first."""
    groups: dict[object, list[Frame]] = defaultdict(list)
    for frame in frames:
        groups[key(frame)].append(frame)
    return sorted(groups.values(), key=len, reverse=True)


def _levels(frames: Sequence[Frame]) -> set[int]:
    """The positions along the normal, as numbers of `SAME_POSITION_MM` steps, joined where they straddle a step."""
    levels: set[int] = set()
    last = -math.inf
    for height in sorted(heights(frames)):
        if height - last > SAME_POSITION_MM:
            levels.add(round(height / SAME_POSITION_MM))
            last = height
    return levels


def each_whole(groups: list[list[Frame]], share: float) -> bool:
    """Whether every group covers, and shares with the largest, at least `share` of the largest group's positions."""
    normal_of = groups[0][0]
    levels = [_levels([normal_of, *group]) if group is not groups[0] else _levels(group) for group in groups]
    largest = levels[0]
    near = {level + step for level in largest for step in (-2, -1, 0, 1, 2)}
    return (
        all(
            len(group) >= share * len(largest) and len(own & near) >= share * len(largest)
            for group, own in zip(groups, levels, strict=True)
        )
        and len(largest) > 1
    )

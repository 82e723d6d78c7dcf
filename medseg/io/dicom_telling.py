"""What tells the volumes of one series apart, in words: `b-value 800`, `echo 2`, `images 21, 22, 23 ...`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from medseg.errors import DicomError
from medseg.io.dicom_frames import Frame
from medseg.io.dicom_geometry import axes
from medseg.io.dicom_headers import Header

LONGEST_VALUE = 40
"""Characters of a header's value that are shown."""

PLANES = ("sagittal", "coronal", "axial")
"""By the axis (x, y, z) that the normal is nearest to."""

MARKS = {
    "series number": ("series number {}", "no series number"),
    "temporal position": ("time point {}", "no time point"),
    "acquisition number": ("acquisition {}", "no acquisition number"),
    "echo": ("echo {}", "no echo time"),
    "b-value": ("b-value {}", "no b-value"),
    "private b-value": ("b-value {}", "no b-value"),
    "inversion time": ("inversion time {} ms", "no inversion time"),
    "flip angle": ("flip angle {}", "no flip angle"),
    "sequence": ("sequence {}", "no sequence"),
    "tube voltage": ("{} kV", "no tube voltage"),
    "kernel": ("kernel {}", "no kernel"),
    "contrast agent": ("with contrast agent", "no contrast agent"),
    "image component": ("image component {}", "no image component"),
    "cardiac phase": ("{} % of the cardiac cycle", "no cardiac phase"),
    "unit": ("unit {}", "no unit"),
    "stack": ("stack {}", "no stack"),
    "gradient direction": ("gradient direction {}", "no gradient direction"),
    "trigger time": ("trigger time {} ms", "no trigger time"),
}
"""How a mark's value is said, and its absence. A contrast agent is free text; points in time are not kept."""

Teller = Callable[[Frame], str]


def told_apart(groups: Sequence[Sequence[Frame]], headers: Mapping[Path, Header]) -> list[str]:
    """Say for each volume what all of its images have, and none of the others'.

    Args:
        groups: the images of each volume; none where a file holds none.
        headers: of their files.
    """
    tellers = [_plane, *(_mark(name) for name in MARKS), _image_type, _size(headers)]
    told = [[{teller(frame) for frame in group} for group in groups] for teller in tellers]
    return [_first_own(told, number) or _numbers(group, headers) for number, group in enumerate(groups)]


def _first_own(told: Sequence[Sequence[set[str]]], number: int) -> str:
    """The first text that all images of one group have, and no other group's; "" when there is none."""
    for texts in told:
        own = texts[number]
        others = set().union(*(other for n, other in enumerate(texts) if n != number))
        if len(own) == 1 and not own & (others | {""}):
            return next(iter(own))
    return ""


def _mark(name: str) -> Teller:
    def teller(frame: Frame) -> str:
        value = dict(frame.marks).get(name, "")
        parts = [part for part in value.split("/") if part]
        stated, absent = MARKS[name]
        return stated.format(_clean(" ".join(parts))) if parts else absent

    return teller


def _image_type(frame: Frame) -> str:
    return f"image type {_clean(' '.join(frame.image_type))}" if any(frame.image_type) else ""


def _plane(frame: Frame) -> str:
    """The plane, "" without a usable orientation."""
    try:
        normal = axes(frame.orientation or (0.0,) * 6)[2]
    except DicomError:
        return ""
    return f"{PLANES[int(np.abs(normal).argmax())]} images"


def _size(headers: Mapping[Path, Header]) -> Teller:
    def teller(frame: Frame) -> str:
        pixels = headers[frame.path].pixels
        return f"images of {pixels.columns} x {pixels.rows} pixels" if pixels else ""

    return teller


def _numbers(group: Sequence[Frame], headers: Mapping[Path, Header]) -> str:
    """Its images by number, its file, or the first of its files."""
    if not group:
        return "pictures without a place"
    first = group[0].path
    numbers = [headers[frame.path].instance for frame in group]
    if len({frame.path for frame in group}) == 1:
        frames = sorted(frame.number + 1 for frame in group)
        whole = len(group) in (1, len(headers[first].frames))
        return f"file {_clean(first.name)}" if whole else f"frames {_listed(frames)}"
    known = [number for number in numbers if number is not None]
    if len(set(known)) == len(group):
        return f"images {_listed(sorted(known))}"
    return f"file {_clean(min(frame.path.name for frame in group))} and others"


def _listed(numbers: Sequence[int]) -> str:
    """`5 to 16` or `2, 5, 8 ...`."""
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers[:3])) + (" ..." if numbers[3:] else "")


def _clean(text: str) -> str:
    """A header's value as short, printable text."""
    printable = "".join(c if c.isprintable() else "?" for c in text.encode("utf-8", "replace").decode())
    return printable.replace("\\", " ")[:LONGEST_VALUE].strip()

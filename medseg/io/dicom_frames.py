"""`Frame`: one two-dimensional image and where it lies, from a classic header or from functional groups."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset

from medseg.io.dicom_values import (
    Source,
    ascii_text,
    decimals,
    element_of,
    items,
    lookup,
    numbers,
    scalar,
    stand_in,
    stored_bytes,
)

Vector = tuple[float, float, float]
Marks = tuple[tuple[str, str], ...]

MARK_TAGS = {
    "series number": (0x00200011,),
    "temporal position": (0x00200100,),
    "acquisition number": (0x00200012,),
    "echo": (0x00180086, 0x00180081),
    "b-value": (0x00189087,),
    "private b-value": (0x0019100C, 0x00431039, 0x20011003),
    "gradient direction": (0x00189089, 0x0019100E),
    "inversion time": (0x00180082,),
    "flip angle": (0x00181314,),
    "sequence": (0x00180020,),
    "tube voltage": (0x00180060,),
    "kernel": (0x00181210,),
    "contrast agent": (0x00180010,),
    "trigger time": (0x00181060,),
    "frame time": (0x00541300,),
    "acquisition time": (0x00080022, 0x00080032),
    "content time": (0x00080033,),
    "stack": (0x00209056,),
    "image component": (0x00089208, 0x0043102F),
    "cardiac phase": (0x00209241,),
    "unit": (0x00541001,),
}
"""What may tell volumes apart that share a series; the private tags are Siemens', GE's and Philips' b-values, Siemens'
directions, and GE's numbers for magnitude, phase, real and imaginary part."""

PRIVATE_CREATORS = {
    0x0019100A: b"SIEMENS MR HEADER",
    0x0019100C: b"SIEMENS MR HEADER",
    0x0019100E: b"SIEMENS MR HEADER",
    0x20011003: b"Philips Imaging DD 001",
    0x0043102F: b"GEMS_PARM_01",
    0x00431039: b"GEMS_PARM_01",
}
"""Whose private element it is (PS3.5 7.8.1): another maker means another thing by the same number."""

CREATOR_TAGS = tuple({tag & 0xFFFF0000 | 0x0010 for tag in PRIVATE_CREATORS})
"""Where the makers' names stand: their elements have the numbers 10xx."""

_POINTS_IN_TIME = (MARK_TAGS["acquisition time"], MARK_TAGS["content time"])
"""Dates and times tell something of a patient: only whether two are equal is kept."""


@dataclass(frozen=True)
class Frame:
    """One two-dimensional image: a classic file's only one, or one frame of a multi-frame file.

    Attributes:
        path: the file.
        number: its place in the file's pixel data, from 0.
        position: ImagePositionPatient, mm, LPS; None when absent or not three finite numbers.
        orientation: ImageOrientationPatient: direction of a row (growing column index), then of a column.
        spacing: PixelSpacing, mm: between rows, then between columns.
        slope: RescaleSlope, 1 when absent; NaN when unreadable.
        intercept: RescaleIntercept, 0 when absent; NaN when unreadable.
        has_rescale: how many of the two the header states.
        decimals: decimal places of the stored position and orientation.
        image_type: ImageType, upper case.
        marks: (name, value) of what may tell volumes of one series apart, where there is a value.
    """

    path: Path
    number: int
    position: Vector | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, float] | None
    slope: float
    intercept: float
    has_rescale: int
    decimals: tuple[int, int]
    image_type: tuple[str, ...]
    marks: Marks


_MACROS = (
    *(0x00209113, 0x00209116, 0x00289110, 0x00289145, 0x00209111, 0x00209310, 0x00189118),
    *(0x00189114, 0x00189117, 0x00189112, 0x00189115, 0x00189226, 0x00189329, 0x00189314, 0x00189325),
)
"""Functional group macros: plane position, plane orientation, pixel measures, rescale, frame content, temporal
position, cardiac synchronisation; MR echo, diffusion, timing, modifier and frame type; CT frame type, reconstruction
and X-ray details (PS3.3 C.7.6.16.2, C.8.13.5, C.8.15.3)."""


def macros_of(group: Dataset) -> list[Dataset]:
    """The macros' items of one functional group, so that a value is looked up in each."""
    found = [content[0] for tag in _MACROS if (content := items(group, tag))]
    nested = [content[0] for item in found if (content := items(item, 0x00189076))]
    return found + nested


_FRAME_MARKS = {
    "temporal position": (0x00209128, 0x00200100, 0x0020930D),
    "acquisition number": (0x00209156, 0x00200012),
    "echo": (0x00189082, 0x00180086, 0x00180081),
    "b-value": (0x00189087,),
    "gradient direction": (0x00189089, 0x0019100E),
    "trigger time": (0x00209153, 0x00181060),
    "stack": (0x00209056,),
    "inversion time": (0x00189079,),
    "flip angle": (0x00181314,),
    "tube voltage": (0x00180060,),
    "kernel": (0x00181210,),
    "image component": (0x00089208,),
    "cardiac phase": (0x00209241,),
}


def frame_of(path: Path, number: int, sources: Sequence[Source]) -> Frame:
    """One frame, each value from the first source that has it (per-frame group, shared group, top level)."""
    position = lookup(sources, 0x00200032)
    orientation = lookup(sources, 0x00200037)
    marks = _FRAME_MARKS if len(sources) > 1 else MARK_TAGS
    slope, intercept = lookup(sources, 0x00281053), lookup(sources, 0x00281052)
    frame_type = lookup(sources, 0x00089007) or lookup(sources, 0x00080008)
    place = numbers(position, 3)
    spacing = numbers(lookup(sources, 0x00280030), 2)
    return Frame(
        path,
        number,
        position=(place[0], place[1], place[2]) if place else None,
        orientation=numbers(orientation, 6),
        spacing=(spacing[0], spacing[1]) if spacing else None,
        slope=scalar(slope, 1.0),
        intercept=scalar(intercept, 0.0),
        has_rescale=bool(slope) + bool(intercept),
        decimals=(decimals(position), decimals(orientation)),
        image_type=tuple(part.strip().upper() for part in ascii_text(frame_type).split("\\")),
        marks=tuple((name, value) for name, tags in marks.items() if (value := _mark(sources, tags))),
    )


def _mark(sources: Sequence[Source], tags: tuple[int, ...]) -> str:
    """One value, as comparable text; binary values by their bytes; points in time by what stands for them."""
    elements = [element_of(sources, tag) for tag in tags]
    if elements.count(None) == len(elements):  # most tags are absent, and asked for in each file
        return ""
    parts = ["" if is_foreign(sources, tag) else _plain(element) for tag, element in zip(tags, elements, strict=True)]
    if not any(parts):
        return ""
    value = "/".join(parts)
    return stand_in(value.encode(), ascii_text(lookup(sources, 0x0020000E))) if tags in _POINTS_IN_TIME else value


def is_foreign(sources: Sequence[Source], tag: int) -> bool:
    """Whether a private element is another maker's than the one we know; where no maker is named it is taken as known.

    Anonymisers drop the names of makers, and leave elements whose meaning is then a custom.
    """
    known = PRIVATE_CREATORS.get(tag)
    if known is None:
        return False
    named = lookup(sources, tag & 0xFFFF0000 | 0x0010).strip(b" \0")
    return named not in (b"", known)


def _plain(element: RawDataElement | DataElement | None) -> str:
    value = stored_bytes(element)
    code = _BINARY.get(getattr(element, "VR", None) or _usual_vr(element), "")
    if not code or not value or len(value) % struct.calcsize(code):
        return ascii_text(value)
    order = "<" if getattr(element, "is_little_endian", True) else ">"
    found = struct.unpack(f"{order}{len(value) // struct.calcsize(code)}{code}", value)
    return "\\".join(f"{number:.9g}" for number in found)


_BINARY = {"FD": "d", "FL": "f", "US": "H", "UL": "L", "SS": "h", "SL": "l"}


def _usual_vr(element: RawDataElement | DataElement | None) -> str:
    """The VR of a public tag where the file, in implicit VR, states none (PS3.6)."""
    return dictionary_VR(element.tag) if element is not None and dictionary_has_tag(element.tag) else ""

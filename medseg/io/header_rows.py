"""Headers in plain types, for the index and for the pipe between processes: what many have alike stands there once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeGuard

from medseg.io.dicom_extent import PixelElement
from medseg.io.dicom_frames import Frame
from medseg.io.dicom_headers import Header

WHO = ("group", "study_uid", "series_uid", "frame_uid", "description")
"""What a header says of the patient and the study."""

Row = list[Any]
"""A header as lists, texts and numbers, without its path; it begins with the number of its `WHO`."""

_ABSENT = ("kind", "code", "reason", "names", "series_uids")
"""Fields of `Header` that have one value in all rows."""


def _alike(noun: type, *own: str) -> tuple[str, ...]:
    """Fields that many files have alike: all but their own."""
    return tuple(field.name for field in fields(noun) if field.name not in own)


_HEADER = _alike(Header, "path", "image", "instance", "pixels", "frames", *WHO, *_ABSENT)
_PIXELS = _alike(PixelElement, "offset", "length")
_FRAME = _alike(Frame, "path", "number", "position", "marks")


FIELDS = [list(names) for names in (WHO, _HEADER, _PIXELS, _FRAME)]
"""What rows are made of: those of another version have other fields."""


class Numbers(dict[Hashable, int]):
    """Running numbers for values."""

    def of(self, owner: object, names: Sequence[str]) -> int:
        """The number of what some attributes are together, a new one for what is new."""
        return self.setdefault(tuple([getattr(owner, name) for name in names]), len(self))


def has_row(header: Header | None) -> TypeGuard[Header]:
    """Whether a header can become a row: sound images can."""
    return header is not None and header.kind == "image" and not header.code and header.pixels is not None


def to_row(header: Header, who: Numbers, alike: Numbers) -> Row:
    """A sound image's header as a row."""
    pixels = header.pixels
    if pixels is None:
        raise ValueError("only sound images become rows")
    frames = [[alike.of(frame, _FRAME), frame.number, frame.position, frame.marks] for frame in header.frames]
    numbers = [who.of(header, WHO), alike.of(header, _HEADER), alike.of(pixels, _PIXELS)]
    return [*numbers, header.image, header.instance, pixels.offset, pixels.length, frames]


def from_row(path: Path, row: Row, who: Mapping[str, Any], alike: Sequence[tuple[Any, ...]]) -> Header:
    """The header again."""
    _, common, layout, image, instance, offset, length, frames = row
    return Header(
        path,
        kind="image",
        image=image,
        instance=instance,
        pixels=PixelElement(offset, length, **dict(zip(_PIXELS, alike[layout], strict=True))),
        frames=tuple([_frame(path, frame, alike) for frame in frames]),
        **dict(zip(_HEADER, alike[common], strict=True)),
        **who,
    )


def _frame(path: Path, stored: Row, alike: Sequence[tuple[Any, ...]]) -> Frame:
    common, number, position, marks = stored
    return Frame(
        path,
        number,
        position=position and tuple(position),
        marks=tuple([(name, value) for name, value in marks]),
        **dict(zip(_FRAME, alike[common], strict=True)),
    )


def as_tuples(value: Any) -> Any:  # noqa: ANN401  as JSON gives it
    """Lists, which JSON makes of tuples, as tuples again."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value

"""The elements of a plain header, taken from its first bytes: a fraction of what a parser for everything costs.

A plain header is a preamble, meta information, and a little-endian data set whose elements follow one another without
a doubt up to the pixel data. Nothing here repairs or guesses: whatever else is met is left to pydicom. Tests hold the
two equal, on damaged headers too.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass
from struct import Struct
from struct import error as BeyondEnd
from typing import BinaryIO

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

from medseg.io.dicom_end import UNDEFINED

LONG_HEAD_BYTES = 2**20
"""Some scanners' private data take a few hundred KiB."""

DEEPEST = 16
"""Sequences within sequences; what goes deeper is left to pydicom."""

PIXELS = 0x7FE00008
"""From this tag on, elements hold pixels."""

CHARSET = 0x00080005
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
IMPLICIT = "1.2.840.10008.1.2"
NOT_PLAIN = ("1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
"""Big-endian and deflated data sets."""

_WIDE = {vr.encode(): str(vr) for vr in EXPLICIT_VR_LENGTH_32}
_NARROW = {vr.encode(): str(vr) for vr in EXPLICIT_VR_LENGTH_16}
"""Value representations with 4 and with 2 bytes of length (PS3.5 7.1.2), as stored and as text."""

_explicit_head = Struct("<HH2sH").unpack_from
_implicit_head = Struct("<HHL").unpack_from
_length = Struct("<L").unpack_from

tag_of = functools.cache(Tag)
"""A tag as pydicom wants it: making one anew at each look takes a tenth of a header's time."""


class Elements(dict[BaseTag, RawDataElement]):
    """Elements as stored, by tag: what reading stored values needs of pydicom's `Dataset`."""

    def get_item(self, tag: BaseTag, *, keep_deferred: bool) -> RawDataElement | None:
        """Return an element, None when there is none; named as in `Dataset`, where values may wait in the file."""
        return self.get(tag) if keep_deferred else None

    def dataset(self) -> Dataset:
        """The same for pydicom, which converts values."""
        return Dataset(dict(self))


@dataclass(frozen=True)
class Parsed:
    """A header up to its pixel data.

    Attributes:
        elements: the wanted ones, with their values as stored.
        syntax: transfer syntax UID, "" when unsaid.
        implicit: whether VRs are left out.
        little: whether numbers are little-endian.
        tag: of the pixel data.
        vr: of the pixel data, "" when left out.
        offset: of the pixel data's value, from the start of the file; -1 when there is none.
        length: of that value, 0xFFFFFFFF when undefined.
        fault: why it cannot be read on, "" when it can.
    """

    elements: Dataset | Elements
    syntax: str
    implicit: bool
    little: bool
    tag: int = 0
    vr: str = ""
    offset: int = -1
    length: int = 0
    fault: str = ""


class _OddError(Exception):
    """Something that is not plain."""


def read_plain(head: bytes, data: BinaryIO, size: int, wanted: Collection[int]) -> Parsed | None:
    """Read a header; None when it is not plain, or has no pixels.

    Args:
        head: the first bytes of a file; most headers end in the first 32 KiB.
        data: the whole file, where more may be read.
        size: of the file in bytes.
        wanted: tags.
    """
    try:
        try:
            return _parse(head, size, wanted)
        except BeyondEnd:
            data.seek(0)
            return _parse(data.read(LONG_HEAD_BYTES), size, wanted)
    except (_OddError, BeyondEnd, UnicodeDecodeError):
        return None


def _parse(head: bytes, size: int, wanted: Collection[int]) -> Parsed:
    if head[128:132] != b"DICM":
        raise _OddError
    syntax, at = _meta(head)
    implicit = syntax == IMPLICIT
    if syntax in NOT_PLAIN or not syntax.replace(".", "").isdigit() or (implicit and head[at + 4 : at + 6].isupper()):
        raise _OddError
    found = Elements()
    while True:
        tag, vr, length, value = _head(head, at, implicit)
        if tag >= PIXELS:
            return Parsed(found, syntax, implicit, True, tag, vr or "", value, length)
        if tag < 0x00080000:  # commands of the network, or nonsense
            raise _OddError
        if length == UNDEFINED:
            if tag in wanted:
                raise _OddError
            at = _after_sequence(head, value, implicit, tag, vr, 1)
            continue
        at = value + length
        if at > size:
            raise _OddError
        if tag in wanted:
            if at > len(head):
                raise BeyondEnd
            if tag == CHARSET and not head[value:at].decode("ascii").rstrip(" \0").isprintable():
                raise _OddError
            key = tag_of(tag)
            found[key] = RawDataElement(key, vr, length, head[value:at], value, implicit, True)


def _meta(head: bytes) -> tuple[str, int]:
    """The transfer syntax, and where the data set begins: behind the last element of group 0002 (PS3.10 7.1)."""
    at, syntax = 132, b""
    while True:
        tag, _, length, value = _head(head, at, implicit=head[at : at + 2] != b"\2\0")
        if tag >> 16 != 2:
            return syntax.decode("ascii").strip(" \0"), at
        at = value + length
        if tag == 0x00020010:
            syntax = head[value:at]


def _head(head: bytes, at: int, implicit: bool) -> tuple[int, str | None, int, int]:
    """Tag, VR, length and offset of the value of the element at an offset (PS3.5 7.1)."""
    if implicit:
        group, element, length = _implicit_head(head, at)
        return group << 16 | element, None, length, at + 8
    group, element, vr, length = _explicit_head(head, at)
    if vr in _NARROW:
        return group << 16 | element, _NARROW[vr], length, at + 8
    if vr in _WIDE:
        return group << 16 | element, _WIDE[vr], _length(head, at + 8)[0], at + 12
    raise _OddError


def _after_sequence(head: bytes, at: int, implicit: bool, tag: int, vr: str | None, depth: int) -> int:
    """The offset behind a sequence of undefined length whose first item is at `at` (PS3.5 7.5)."""
    if vr is None and dictionary_has_tag(tag):
        vr = dictionary_VR(tag)
    if depth > DEEPEST or vr not in ("SQ", None):
        raise _OddError
    while True:
        item, _, length, at = _head(head, at, implicit=True)  # items have no VR
        if item == SEQUENCE_END:
            return at
        if item != ITEM:
            raise _OddError
        at = _after_item(head, at, None if length == UNDEFINED else at + length, implicit, depth)


def _after_item(head: bytes, at: int, end: int | None, implicit: bool, depth: int) -> int:
    """The offset behind an item, which ends at `end` or at its delimiter."""
    while at != end:
        tag, vr, length, value = _head(head, at, implicit or head[at : at + 2] == b"\xfe\xff")
        if tag == ITEM_END and end is None:
            return value
        if tag >> 16 == 0xFFFE:
            raise _OddError
        at = _after_sequence(head, value, implicit, tag, vr, depth + 1) if length == UNDEFINED else value + length
        if end is not None and at > end:
            raise _OddError
    return at

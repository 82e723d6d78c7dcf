"""Where the reading of a header ends: at the pixel data, or where it becomes absurd."""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO

MOST_ELEMENTS = 100_000
"""Outermost elements of a header: a hundred times what scanners write; a file of zeros would be millions."""

MOST_BYTES = 256 * 2**20
"""Of one element that is read: the descriptions of 100,000 frames of an enhanced object."""

MOST_ITEMS = 500_000
"""Items of sequences: of an object of 50,000 frames. Each empty one takes 8 bytes, and a kilobyte of memory."""

COUNTED_BYTES = 32 * 2**20
"""Of a header, in which items are counted when it is long enough to hold too many."""

UNDEFINED = 0xFFFFFFFF


def breaks_off(file: BinaryIO, start: bytes) -> bool:
    """Whether zeros follow the file meta group, which pydicom would read to the end of the file, 8 bytes at a time.

    Args:
        file: a DICOM file.
        start: its first 256 bytes.
    """
    end = 132 if start[128:132] == b"DICM" else 0
    if start[end : end + 8] == b"\x02\x00\x00\x00UL\x04\x00":  # the group's length is its first element (PS3.10 7.1)
        end += 12 + int.from_bytes(start[end + 8 : end + 12], "little")
    file.seek(end)
    return file.read(8) == bytes(8)


class HeaderEnd:
    """Tells pydicom where to stop: asked before each outermost element, with the file at the element's value.

    Attributes:
        data: the file.
        tag, vr, offset, length: of the pixel data element; -1 stands for its offset when there is none.
        fault: why the header cannot be read on, "" when it can.
    """

    def __init__(self, data: BinaryIO, size: int, wanted: Iterable[int]) -> None:
        self.tag = 0
        self.vr = ""
        self.offset = -1
        self.length = 0
        self.fault = ""
        self.data = data
        self._size = size
        self._wanted = frozenset(wanted)
        self._elements = 0
        self._counted = False

    def __call__(self, tag: int, vr: str | None, length: int) -> bool:
        """Whether to stop."""
        if int.__ge__(tag, 0x7FE00008):  # a pydicom tag compares itself in Python
            self.tag, self.vr, self.offset, self.length = int(tag), vr or "", self.data.tell(), length
            return True
        self._elements += 1
        self.fault = self._fault(int(tag), length)
        return bool(self.fault)

    def _fault(self, tag: int, length: int) -> str:
        if length != UNDEFINED and self.data.tell() + length > self._size:
            return "the header is cut short"
        if tag == 0:
            return "the header breaks off in zeros"
        if self._elements > MOST_ELEMENTS:
            return f"the header has more than {MOST_ELEMENTS:,} elements"
        if length == UNDEFINED or (length > 8 * MOST_ITEMS and tag in self._wanted):
            return self._absurd(length)
        return ""

    def _absurd(self, length: int) -> str:
        """A fault when an element is too long, or sequences hold too many items, for the time and memory they take."""
        if MOST_BYTES < length < UNDEFINED:
            return f"an element of the header claims {length:,} bytes"
        here = self.data.tell()
        if self._counted or self._size - here < 8 * MOST_ITEMS:
            return ""
        self._counted = True
        items = self.data.read(COUNTED_BYTES).count(b"\xfe\xff\x00\xe0")
        self.data.seek(here)
        return f"the sequences of the header have more than {MOST_ITEMS:,} items" if items > MOST_ITEMS else ""

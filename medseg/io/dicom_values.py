"""Values of a parsed data set, taken as stored bytes: nothing raises, nothing is guessed.

A header in the wild holds decimal commas, `nan`, numbers under VR UN and undecodable names; pydicom's own conversion
raises on some of them and repairs others. Here a value is what the standard says, or absent.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as ItemSequence

from medseg.io.dicom_elements import Elements, tag_of
from medseg.io.dicom_open import PARSE_ERRORS, quiet

Source = Dataset | Elements
"""Where values are looked up."""


def element_of(sources: Iterable[Source], tag: int) -> RawDataElement | DataElement | None:
    """The first element with a value among some data sets; None when there is none."""
    key = tag_of(tag)
    for source in sources:
        element = source.get_item(key, keep_deferred=True)
        if element is not None and element.value not in (None, b"", ""):
            return element
    return None


def stored_bytes(element: RawDataElement | DataElement | None) -> bytes:
    """The value as stored; b"" when there is none."""
    if element is None or element.value is None:
        return b""
    return element.value if isinstance(element.value, bytes) else str(element.value).encode()


def lookup(sources: Iterable[Source], tag: int) -> bytes:
    """The first stored value among some data sets."""
    return stored_bytes(element_of(sources, tag))


def bytes_of(source: Source, tag: int) -> bytes:
    """The stored value of one data set."""
    return lookup([source], tag)


def ascii_text(value: bytes) -> str:
    """Text without padding; one character for each byte."""
    return value.decode("latin-1").strip(" \0\t\r\n")


def text(source: Source, tag: int) -> str:
    """A UID or code string."""
    return ascii_text(bytes_of(source, tag))


_SPECIAL = frozenset(b"\\~\x1b")
"""Bytes that separate values, or mean something else in some character sets."""


def decoded(source: Source, tag: int) -> str:
    """Human text in the data set's character set; undecodable bytes as Latin-1 rather than an error."""
    stored = bytes_of(source, tag)
    if stored.isascii() and not _SPECIAL & set(stored):
        return stored.decode().rstrip(" \0")
    try:
        return str(_converted(source, tag))
    except PARSE_ERRORS:
        return text(source, tag)


def stand_in(value: bytes, series_uid: str) -> str:
    """What stands for a value where only equality within one series matters; "" for an empty one.

    A hash that nobody can try out without the series' UID, and hence fit to be kept where the UID is not.
    """
    return hashlib.blake2b(value, digest_size=8, key=series_uid.encode()[:64]).hexdigest() if value else ""


def image_type(source: Source) -> list[str]:
    """The values of ImageType, upper case."""
    return [part.strip() for part in text(source, 0x00080008).upper().split("\\")]


_SHORT = (0x0019100A, 0x00540081, 0x00209162, 0x00209163)
"""Binary numbers (US) outside group 0028."""


def integer(source: Source, tag: int) -> int | None:
    """An integer stored as text (IS) or binary (US, UL), whatever the VR says; None when absent or unreadable."""
    element = element_of([source], tag)
    value = stored_bytes(element)
    group = tag >> 16
    if (group == 0x0028 and tag != 0x00280008 and len(value) in (2, 4)) or tag in _SHORT:
        little = getattr(element, "is_little_endian", True)
        return int.from_bytes(value[:4], "little" if little else "big")
    try:
        return int(float(ascii_text(value).split("\\")[0])) if value else None
    except (ValueError, OverflowError):
        return None


_DECIMAL_STRING = frozenset("0123456789+-.eE \\")
"""Characters of VR DS (PS3.5 6.2); Python would also take `1_0`, `nan` and `infinity`."""


def numbers(value: bytes, wanted: int) -> tuple[float, ...] | None:
    """Exactly `wanted` finite numbers, or None: half a position is no position."""
    stored = ascii_text(value)
    if not set(stored) <= _DECIMAL_STRING:
        return None
    try:
        found = tuple(float(part) for part in stored.split("\\"))
    except ValueError:
        return None
    return found if len(found) == wanted and all(map(math.isfinite, found)) else None


def scalar(value: bytes, absent: float) -> float:
    """One number; `absent` when there is none, NaN when it is unreadable."""
    if not value:
        return absent
    found = numbers(value, 1)
    return found[0] if found else math.nan


def decimals(value: bytes) -> int:
    """Most decimal places of the decimal strings; trailing zeros of one value may be dropped, not of all."""
    places = [0]
    for part in ascii_text(value).lower().split("\\"):
        digits, _, exponent = part.partition("e")
        power = int(exponent) if exponent.lstrip("+-").isdigit() else 0
        places.append(len(digits.partition(".")[2].strip()) - power)
    return max(0, *places)


def items(source: Source, tag: int) -> list[Dataset]:
    """A sequence's items, none when it is absent or damaged."""
    try:
        value = _converted(source, tag)
    except PARSE_ERRORS:
        return []
    return list(value) if isinstance(value, ItemSequence) else []


def _converted(source: Source, tag: int) -> object:
    """The value as pydicom converts it; None when there is none."""
    if tag not in source:
        return None
    if isinstance(source, Dataset):
        return source[tag].value
    with quiet():
        return source.dataset()[tag].value

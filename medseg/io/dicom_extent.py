"""Where a DICOM file's pixel bytes lie, and whether the file can hold what its header claims. Nothing is decoded.

A header may claim terabytes, and a file may end early: both are found here from lengths and end markers alone.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
JPEG = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70))
"""JPEG baseline, extended, lossless: decoded through SimpleITK; the free codecs of pydicom do not cover them."""
LOSSY = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 81))
"""Syntaxes that lose something whatever the header says; JPEG 2000 (91) may or may not."""
JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203))
RLE = "1.2.840.10008.1.2.5"

PLUGINS = dict.fromkeys(JPEG_2000, "pylibjpeg") | dict.fromkeys(JPEG_LS, "pyjpegls") | {RLE: "pydicom"}
"""pydicom's names of the codecs that are trusted: Pillow does not decode 16 bits exactly, and the fast RLE decoder ends
in a Rust panic, which is no `Exception`, on 7 of 100 damaged streams (5 ms a slice instead of 1)."""

_CODECS = dict.fromkeys(JPEG_2000, "pylibjpeg-openjpeg") | dict.fromkeys(JPEG_LS, "pyjpegls")

CLAIM_FLOOR = 64 * 2**20
CLAIM_RATIO = 1000
"""Compressed pixels may claim 64 MiB whatever the file's size (a blank image compresses without limit), beyond that a
thousand times the stored bytes."""

FRAGMENT_LIMIT = 2_000_000
"""More fragments than any object has; a file of empty ones must not keep the reader busy."""


@dataclass(frozen=True)
class PixelElement:
    """The pixel data element and the Image Pixel module (PS3.3 C.7.6.3).

    Attributes:
        offset: of the value, in bytes from the start of the (inflated) data set.
        length: of the value in bytes; None when undefined, as for encapsulated pixels.
        syntax: transfer syntax UID.
        little_endian: byte order of native pixels.
        swapped: pixels of one byte stored as big-endian words: each two bytes have changed places (PS3.5 8.1.1, A.3).
        tiles: slices beside each other, and below each other, in an image that is a mosaic.
    """

    offset: int
    length: int | None
    syntax: str
    little_endian: bool
    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    swapped: bool = False
    tiles: int = 1

    @property
    def is_native(self) -> bool:
        """Whether the pixels are stored as plain numbers."""
        return self.syntax in NATIVE

    @property
    def slice_shape(self) -> tuple[int, int]:
        """Rows and columns of a slice: those of the image, but for mosaics."""
        return self.rows // self.tiles, self.columns // self.tiles

    @property
    def frame_bytes(self) -> int:
        """Size of one decoded frame."""
        return self.rows * self.columns * self.samples * self.allocated // 8


def can_decode(syntax: str) -> bool:
    """Whether a codec for the transfer syntax is installed."""
    if syntax in NATIVE or syntax in JPEG:
        return True
    try:
        available = get_decoder(UID(syntax)).available_plugins
    except NotImplementedError:
        return False
    return PLUGINS[syntax] in available if syntax in PLUGINS else bool(available)


def missing_codec(syntax: str) -> str:
    """Sentence that says what cannot be decoded, and what to install."""
    name = UID(syntax).name if UID(syntax).is_valid and not UID(syntax).is_private else "a private transfer syntax"
    install = f"; install {_CODECS[syntax]}" if syntax in _CODECS else ""
    return f"no codec for the pixels, stored as {name}{install}"


def check_extent(pixels: PixelElement, data: BinaryIO, size: int) -> tuple[str, str, str]:
    """Check a file of `size` bytes against its header's claims.

    Returns:
        Code, reason and note; code and reason are "" when the file is fit, note is "" when nothing is odd.
    """
    fault = _layout_fault(pixels)
    if fault:
        return (*fault, "")
    if pixels.is_native:
        return _check_native(pixels, size)
    if not can_decode(pixels.syntax):
        return "DICOM-SYNTAX", missing_codec(pixels.syntax), ""
    code, reason = _check_encapsulated(pixels, data, size)
    return code, reason, ""


def _layout_fault(pixels: PixelElement) -> tuple[str, str] | None:
    if pixels.rows < 1 or pixels.columns < 1 or pixels.frames < 1:
        return "DICOM-PIXELS", "the header gives no size (rows, columns) for the image"
    if pixels.samples != 1 or pixels.photometric not in ("MONOCHROME1", "MONOCHROME2", ""):
        kind = pixels.photometric[:20] or "colour"
        return "DICOM-COLOUR", f"a colour picture ({kind}), wanted one grey value for each voxel"
    if pixels.allocated not in (8, 16, 32):
        return "DICOM-PIXELS", f"{pixels.allocated} bits allocated for each pixel, wanted 8, 16 or 32"
    if not pixels.stored <= pixels.high_bit + 1 <= pixels.allocated or pixels.stored < 1:
        found = f"{pixels.stored} bits stored, high bit {pixels.high_bit}, {pixels.allocated} bits allocated"
        return "DICOM-PIXELS", f"the pixel layout contradicts itself: {found}"
    return None


def _check_native(pixels: PixelElement, size: int) -> tuple[str, str, str]:
    wanted = pixels.frame_bytes * pixels.frames
    there = size - pixels.offset
    if pixels.length is None:
        return "DICOM-PIXELS", "pixel data of undefined length in an uncompressed file", ""
    claimed = max(wanted, pixels.length)
    if claimed > max(CLAIM_FLOOR, CLAIM_RATIO * size):
        return "DICOM-SIZE", f"{_human(claimed)} of pixels are claimed in a file of {_human(size)}", ""
    if min(wanted, pixels.length) > there:
        claim = f"{_human(pixels.length)} of pixels are claimed, {_human(there)} are there"
        return "DICOM-READ", f"the file is cut short: {claim}", ""
    if pixels.length < wanted:
        return "DICOM-PIXELS", f"the pixel data has {pixels.length} bytes, wanted {wanted}", ""
    extra = pixels.length - wanted
    if extra >= pixels.frame_bytes and extra > 4096:
        return "DICOM-PIXELS", f"the pixel data has {pixels.length} bytes, wanted {wanted}", ""
    if pixels.length > there and extra:
        return "DICOM-READ", "the file ends inside its pixel data", ""
    return "", "", f"{extra} surplus bytes behind the pixels were left out" if extra > 1 else ""


def _human(count: int) -> str:
    for unit, step in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= step:
            return f"{count / step:.3g} {unit}"
    return f"{count} bytes"


def _check_encapsulated(pixels: PixelElement, data: BinaryIO, size: int) -> tuple[str, str]:
    claim = pixels.frame_bytes * pixels.frames
    if claim > max(CLAIM_FLOOR, CLAIM_RATIO * size):
        return "DICOM-SIZE", f"{_human(claim)} of pixels are claimed in a file of {_human(size)}"
    if pixels.length is not None:
        return "DICOM-PIXELS", "compressed pixel data without fragments"
    try:
        fragments = list_fragments(pixels, data, size)
    except ValueError as error:
        return "DICOM-READ", str(error)
    if len(fragments) < pixels.frames:
        return "DICOM-PIXELS", f"{len(fragments)} compressed images for {pixels.frames} frames"
    ends = [fragments[-1]] if pixels.frames == 1 else fragments if len(fragments) == pixels.frames else []
    if any(not _ends_well(pixels.syntax, data, offset, length) for offset, length in ends):
        return "DICOM-PIXELS", "a compressed image breaks off before its end marker"
    return "", ""


def list_fragments(pixels: PixelElement, data: BinaryIO, size: int) -> Sequence[tuple[int, int]]:
    """Offsets and lengths in bytes of the fragments of encapsulated pixel data, the offset table left out (PS3.5 A.4).

    Raises:
        ValueError: when a fragment or the closing delimiter lies beyond the end of the file.
    """
    at = pixels.offset
    found: list[tuple[int, int]] = []
    while len(found) < FRAGMENT_LIMIT:
        data.seek(at, os.SEEK_SET)
        head = data.read(8)
        if len(head) < 8:
            raise ValueError("the file is cut short inside its compressed pixels")
        tag, length = head[:4], struct.unpack("<L", head[4:])[0]
        if tag == b"\xfe\xff\xdd\xe0":
            return found[1:]
        if tag != b"\xfe\xff\x00\xe0" or at + 8 + length > size:
            raise ValueError("a fragment of the compressed pixels reaches beyond the end of the file")
        found.append((at + 8, length))
        at += 8 + length
    raise ValueError(f"more than {FRAGMENT_LIMIT} fragments of compressed pixels")


def _ends_well(syntax: str, data: BinaryIO, offset: int, length: int) -> bool:
    """Whether a JPEG family stream ends with its marker FF D9 (EOI, EOC), padding aside; other codecs have none."""
    if syntax == RLE:
        return True
    tail = min(length, 16)
    data.seek(offset + length - tail)
    return data.read(tail).rstrip(b"\0").endswith(b"\xff\xd9")

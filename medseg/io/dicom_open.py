"""Opening what may be a DICOM file: never a pipe, never a bomb."""

from __future__ import annotations

import logging
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO, FileIO
from pathlib import Path
from typing import BinaryIO

from pydicom.errors import BytesLengthException, InvalidDicomError

from medseg.errors import DicomError

PARSE_ERRORS = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, NotImplementedError, AssertionError),
    *(OSError, EOFError, RuntimeError, MemoryError, struct.error, zlib.error),
    *(BytesLengthException, InvalidDicomError),
)
"""What pydicom's parser raises on damaged or hostile bytes (found by cutting and corrupting files); RuntimeError holds
RecursionError, the end of a header with thousands of nested sequences."""

DEFLATED = b"1.2.840.10008.1.2.1.99"
INFLATE_FLOOR = 64 * 2**20
INFLATE_RATIO = 100
"""A deflated file may grow to 64 MiB, or a hundredfold: scans compress 2 to 5 times, blank ones more, bombs 1000."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom silent: its warnings quote header values, which may be a patient's, and print tracebacks."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def looks_like_dicom(start: bytes) -> bool:
    """Whether a file that begins with `start` (256 bytes or more, if it has them) may be DICOM.

    Either `DICM` after the preamble (PS3.10 7.1), or, as old archives wrote it, a bare data set: then the first
    element is of group 0002 or 0008, with a plausible VR or length.
    """
    if start[128:132] == b"DICM":
        return True
    if len(start) < 12 or start[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08") or max(start[2:4]) > 0x20:
        return False
    implicit_length = int.from_bytes(start[4:8], "little")
    return (start[4:6].isalpha() and start[4:6].isupper()) or implicit_length <= 256


def hidden_dicom(start: bytes) -> str:
    """What keeps a file that begins with `start` from being DICOM, which its content is; "" for any other content."""
    if start.startswith(b"DICM\x02\0"):
        return "the 128 bytes before the mark DICM are missing"
    if start[132:138] == b"\x02\0\0\0UL":
        return "the mark DICM behind the first 128 bytes is missing"
    if start.startswith(b"\x1f\x8b"):
        try:
            inside = zlib.decompressobj(wbits=31).decompress(start, 1024)  # 31: a gzip wrapper
        except zlib.error:
            return ""
        return "the file is packed with gzip: unpack it" if looks_like_dicom(inside) else ""
    return ""


BUFFER_BYTES = 32 * 2**10
"""Of a file's start read at once: most headers, in one call of the operating system."""


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; never a pipe, a socket or a device, which could block for ever.

    Raises:
        OSError: when it is not a regular file, or cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError("not a regular file")
    return BufferedReader(FileIO(handle), BUFFER_BYTES)


def open_data_set(path: Path) -> BinaryIO:
    """Open a DICOM file at its start; a deflated one (PS3.5 A.5) as its inflated data set, within bounds.

    Raises:
        OSError: when it cannot be opened.
        DicomError: DICOM-SIZE for a deflated file that grows beyond reason, DICOM-READ for one that does not inflate.
    """
    return inflated(open_regular(path), path.name)


def inflated(handle: BinaryIO, name: str) -> BinaryIO:
    """Return an open file at its start, or in its place the inflated data set; errors as `open_data_set`."""
    handle.seek(0)
    start = handle.read(1024)
    handle.seek(0)
    if DEFLATED not in start:
        return handle
    with handle:
        content = handle.read()
    return BytesIO(_inflate(content, _end_of_meta(content), name))


def size_of(data: BinaryIO) -> int:
    """Bytes of an open file or an inflated data set."""
    return data.getbuffer().nbytes if isinstance(data, BytesIO) else os.fstat(data.fileno()).st_size


def _end_of_meta(content: bytes) -> int:
    """Offset of the data set behind the file meta group, whose first element gives its length (PS3.10 7.1)."""
    if content[128:140] != b"DICM\x02\x00\x00\x00UL\x04\x00":
        raise DicomError("DICOM-READ", "", "the file is deflated, but its meta information has no length")
    return 144 + int(struct.unpack("<L", content[140:144])[0])


def _inflate(content: bytes, start: int, name: str) -> bytes:
    limit = max(INFLATE_FLOOR, INFLATE_RATIO * len(content))
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = stream.decompress(content[start:], limit)
    except zlib.error as error:
        raise DicomError("DICOM-READ", name, "the deflated data set is damaged") from error
    if stream.unconsumed_tail:
        raise DicomError("DICOM-SIZE", name, f"the deflated data set grows beyond {limit // 2**20} MiB")
    if not stream.eof:
        raise DicomError("DICOM-READ", name, "the deflated data set is cut short")
    return data

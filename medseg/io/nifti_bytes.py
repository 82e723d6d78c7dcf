"""The bytes of a NIfTI file: opened with care, inflated a chunk at a time, the gzip checksum checked to the end."""

from __future__ import annotations

import logging
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from medseg.errors import NiftiError

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
"""Files are read, and streams inflated, a mebibyte at a time: a bomb never gets further than its first chunk."""

HEAD_BYTES = 1024
"""The first of a file: more than a header."""

DEFLATE_RATIO = 1032
"""Deflate cannot shrink further than this (zlib technical notes, "Maximum Compression Factor")."""


class Source:
    """The bytes of one open file from the first to the last, inflated where they are gzip.

    Attributes:
        size: bytes of the file on disk.
        zipped: whether it is gzip, by content.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._path = path
        self.size = os.fstat(file.fileno()).st_size
        start = file.read(512)
        file.seek(0)
        self.zipped = start.startswith(b"\x1f\x8b")
        _refuse_foreign(start, path)
        self._chunks = _inflated(file, path) if self.zipped else iter(lambda: file.read(CHUNK_BYTES), b"")
        self._rest = b""

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes, fewer at the end of the file."""
        parts = []
        while count > 0 and (part := self._next(count)):
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def give_back(self, data: bytes) -> None:
        """Make `data`, just taken, the next bytes again."""
        self._rest = data + self._rest

    def fill(self, view: memoryview) -> None:
        """Fill `view` with the next bytes.

        Raises:
            NiftiError: NIFTI-READ when the file ends before.
        """
        done = 0
        while done < len(view):
            part = self._next(len(view) - done)
            if not part:
                raise truncated(self._path, f"{done:,} of {len(view):,} bytes of voxels are there")
            view[done : done + len(part)] = part
            done += len(part)

    def skip(self, count: int) -> None:
        """Pass over `count` bytes."""
        while count > 0 and (part := self._next(count)):
            count -= len(part)

    def finish(self, spare: int) -> None:
        """Read to the end, which checks the gzip checksum.

        Raises:
            NiftiError: NIFTI-SIZE when `spare` bytes or more follow: the header then describes another array.
        """
        seen = 0
        while part := self._next(CHUNK_BYTES):
            seen += len(part)
            if seen >= spare:
                raise oversized(self._path, "one slice or more follows the voxels that the header describes")

    def _next(self, count: int) -> bytes:
        chunk = self._rest or next(self._chunks, b"")
        self._rest = chunk[count:]
        return chunk[:count]


def regular(path: Path) -> BinaryIO:
    """Open a regular file; opening a pipe would wait for ever.

    Raises:
        NiftiError: NIFTI-READ for a folder, a pipe, a device.
        OSError: as the operating system says.
    """
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise NiftiError("NIFTI-READ", str(path), "is no regular file")
    return path.open("rb")


def holds_nifti(path: Path) -> bool:
    """Whether a file is one NIfTI by its content, whatever its name: by size and magic of nifti1.h and nifti2.h."""
    try:
        with regular(path) as file:
            start = file.read(HEAD_BYTES)
            if start.startswith(b"\x1f\x8b"):
                start = zlib.decompressobj(wbits=31).decompress(start, HEAD_BYTES)
    except (OSError, NiftiError, zlib.error):
        return False
    size = {int.from_bytes(start[:4], order) for order in ("little", "big")}
    return (348 in size and start[344:348] == b"n+1\0") or (540 in size and start[4:8] == b"n+2\0")


def _inflated(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Inflate a gzip file of one or more members (RFC 1952), a chunk at a time; zlib checks sum and length of each.

    Zeros after the last member are padding. Anything else there is passed over as gunzip does, and logged: the sums
    have proved the voxels by then.
    """
    inflater = zlib.decompressobj(wbits=31)  # 31: a gzip wrapper, with its checks
    pending = file.read(CHUNK_BYTES)
    while pending:
        try:
            data = inflater.decompress(pending, CHUNK_BYTES)
        except zlib.error as error:
            raise _corrupt(path, str(error)) from error
        if data:
            yield data
        if not inflater.eof:
            pending = inflater.unconsumed_tail or file.read(CHUNK_BYTES)
            continue
        pending = _after_member(inflater.unused_data, file)
        if pending and not pending.startswith(b"\x1f\x8b"):
            log.warning("%s: bytes after the gzip stream are ignored", path)
            return
        if not pending:
            return
        inflater = zlib.decompressobj(wbits=31)
    raise truncated(path, "the gzip stream has no end")


def _after_member(rest: bytes, file: BinaryIO) -> bytes:
    """Return what follows a gzip member and its padding of zeros, two bytes of it at least; empty at the end."""
    rest = rest.lstrip(b"\0")
    while len(rest) < 2 and (more := file.read(CHUNK_BYTES)):
        rest = (rest + more).lstrip(b"\0")
    return rest


def _refuse_foreign(start: bytes, path: Path) -> None:
    """Name what a file is that is often found in place of an image.

    Raises:
        NiftiError: NIFTI-READ.
    """
    text = start.lstrip().lower()
    if not start:
        problem, advice = "is empty (0 bytes)", "Copy or download it again."
    elif text.startswith((b"version https://git-lfs", b"/annex/objects")) or b".git/annex/objects" in text:
        problem, advice = "is a git-lfs or git-annex pointer, not the data", "Fetch it (git lfs pull, datalad get)."
    elif text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        problem, advice = "is a web page, not an image", "The download failed; repeat it."
    else:
        return
    raise NiftiError("NIFTI-READ", str(path), problem, advice)


def truncated(path: Path, found: str) -> NiftiError:
    """Make the error for a file that ends too early."""
    return NiftiError("NIFTI-READ", str(path), f"is truncated: {found}", "Copy or download it again.")


def oversized(path: Path, found: str) -> NiftiError:
    """Make the error for a header that claims another size than the file, or the memory, has."""
    return NiftiError("NIFTI-SIZE", str(path), f"header and size do not fit: {found}", "Export the scan again.")


def _corrupt(path: Path, reason: str) -> NiftiError:
    code = "NIFTI-CHECKSUM" if "check" in reason else "NIFTI-READ"  # "incorrect data check", "incorrect length check"
    return NiftiError(code, str(path), f"the gzip stream is damaged: {reason}", "Copy or download it again.")

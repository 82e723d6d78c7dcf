"""Headers of many files: read by several processes at once, and remembered until the files change."""

from __future__ import annotations

import gc
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medseg.io.dicom_headers import Header, read_header
from medseg.io.files import Found
from medseg.io.header_index import HeaderIndex
from medseg.io.header_rows import WHO, Numbers, Row, from_row, has_row, to_row
from medseg.io.workers import CrashError, call, call_all, processes_for

log = logging.getLogger(__name__)

MANY = 1000
"""From this many files on the index pays."""

FILES_TO_PAY = 4000
"""Files that pay for one more process: its start takes as much of a processor as the headers of 3,000."""

CHUNK = 200
"""Files in one call of a process: few enough to share them out evenly, enough to hide the cost of a call."""


def read_headers(files: Sequence[Found]) -> list[Header | None]:
    """Read the headers of some files, None for what is not DICOM; in the order of `files`.

    From `MANY` files below one folder on, headers of unchanged files come from an index in the user's cache folder.
    """
    if len(files) < MANY:
        return [read_header(found.path) for found in files]
    with _all_kept():
        headers = _by_root(files)
    return [headers[found.path] for found in files]


@contextmanager
def _all_kept() -> Iterator[None]:
    """Look for no garbage while many objects are made that all stay: it would take as long as making them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _by_root(files: Sequence[Found]) -> dict[Path, Header | None]:
    roots: dict[Path, list[Found]] = defaultdict(list)
    for found in files:
        roots[found.root].append(found)
    headers: dict[Path, Header | None] = {}
    for root, members in roots.items():
        if len(members) < MANY:
            headers.update(zip((m.path for m in members), _read([m.path for m in members]), strict=True))
        else:
            headers.update(_indexed(root, members))
    return headers


def _indexed(root: Path, files: Sequence[Found]) -> dict[Path, Header | None]:
    index = HeaderIndex(root, files)
    first = index.to_read()
    fresh = dict(zip(first, _read(first), strict=True))
    headers = fresh | index.headers(fresh)
    rest = [found.path for found in files if found.path not in headers]
    headers.update(zip(rest, _read(rest), strict=True))
    log.debug("%d of %d headers come from the index", len(files) - len(first) - len(rest), len(files))
    index.save(headers)
    return headers


def _read(paths: Sequence[Path]) -> Iterator[Header | None]:
    """Headers in the order of the paths."""
    processes = processes_for(len(paths), FILES_TO_PAY)
    if processes == 1:
        yield from map(read_header, paths)
        return
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    answers = call_all(read_chunk, [(chunk,) for chunk in chunks], processes)
    for chunk, answer in zip(chunks, answers, strict=True):
        yield from (_unpacked(chunk, answer) if answer is not None else map(_read_alone, chunk))


Chunk = tuple[list[Row | Header | None], list[Any], list[Any]]
"""Headers, most of them as rows, with their `WHO` and with what they have alike."""


def read_chunk(paths: Sequence[Path]) -> Chunk:
    """Headers of some files: what a process is asked for."""
    who, alike = Numbers(), Numbers()
    headers = [read_header(path) for path in paths]
    return [to_row(h, who, alike) if has_row(h) else h for h in headers], list(who), list(alike)


def _unpacked(paths: Sequence[Path], chunk: Chunk) -> Iterator[Header | None]:
    stored, who, alike = chunk
    names = [dict(zip(WHO, values, strict=True)) for values in who]
    for path, one in zip(paths, stored, strict=True):
        yield from_row(path, one, names[one[0]], alike) if isinstance(one, list) else one


def _read_alone(path: Path) -> Header | None:
    """Read one file of a chunk that brought a process down."""
    try:
        return call(read_header, path)
    except CrashError:
        return Header(path, code="DICOM-READ", reason="reading the header crashed the process that read it")

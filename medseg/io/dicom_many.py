"""Headers of many files: read by several processes at once, and remembered until the files change."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from medseg.io.dicom_headers import Header, read_header
from medseg.io.files import Found
from medseg.io.header_index import HeaderIndex
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
    roots: dict[Path, list[Found]] = defaultdict(list)
    for found in files:
        roots[found.root].append(found)
    headers: dict[Path, Header | None] = {}
    for root, members in roots.items():
        if len(members) < MANY:
            headers.update(zip((m.path for m in members), _read([m.path for m in members]), strict=True))
        else:
            headers.update(_indexed(root, members))
    return [headers[found.path] for found in files]


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
    for chunk, headers in zip(chunks, answers, strict=True):
        yield from (headers if headers is not None else map(_read_alone, chunk))


def read_chunk(paths: Sequence[Path]) -> list[Header | None]:
    """Headers of some files: what a process is asked for."""
    return [read_header(path) for path in paths]


def _read_alone(path: Path) -> Header | None:
    """Read one file of a chunk that brought a process down."""
    try:
        return call(read_header, path)
    except CrashError:
        return Header(path, code="DICOM-READ", reason="reading the header crashed the process that read it")

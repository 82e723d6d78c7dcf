"""The index of headers: what was read from each file of a folder, good until the file changes.

It lies in the user's cache folder and may be deleted at any time. It names nobody: a file is known by a hash of its
name and stamp, and whatever tells whose images they are (`WHO`) by a running number; who that is, is read anew from one
file for each number. Damage, or another version, means that everything is read anew.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medseg.errors import RunError
from medseg.io.atomic import atomic_path
from medseg.io.dicom_headers import Header
from medseg.io.files import Found
from medseg.io.header_rows import FIELDS, WHO, Numbers, Row, as_tuples, from_row, has_row, to_row

log = logging.getLogger(__name__)

FORMAT = 7
"""Raised whenever a header is read or kept differently: an index of another format is ignored."""

SETTLED_NS = 2 * 10**9
"""A file changed less than 2 s before it was read may change again within one tick of its clock (FAT: 2 s)."""

HASH_BYTES = 16

Headers = Mapping[Path, Header | None]


class HeaderIndex:
    """What is known of some files below one folder."""

    def __init__(self, root: Path, files: Sequence[Found]) -> None:
        """Open the index of a folder; it is an empty one when there is none that can be trusted."""
        root = root.absolute()
        self._path = cache_folder() / f"{_hash(os.fsencode(root))}.headers"
        self._keys = {found.path: _key(found) for found in files}
        settled = time.time_ns() - SETTLED_NS
        self._settled = {found.path for found in files if max(found.stamp[1:3]) < settled}
        content = _load(self._path)
        self._stored: dict[str, Row | None] = content["files"]
        self._rows = {path: self._stored[key] for path, key in self._keys.items() if key in self._stored}
        self._alike = [as_tuples(values) for values in content["alike"]]

    def to_read(self) -> list[Path]:
        """What must be read: files that are new or changed, and for each number one file that tells who it is."""
        seen: set[int] = set()
        paths = []
        for path in self._keys:
            row = self._rows.get(path, _NEW)
            if row is None or (row and row[0] in seen):
                continue
            seen.update(row[:1])
            paths.append(path)
        return paths

    def headers(self, fresh: Headers) -> dict[Path, Header | None]:
        """The headers that are known, once the files `to_read` were read."""
        who: dict[int, dict[str, Any]] = {}
        for path, header in fresh.items():
            row = self._rows.get(path)
            if row is not None and header is not None:
                names = {name: getattr(header, name) for name in WHO}
                if from_row(path, row, names, self._alike) == header:  # else it was changed a moment ago
                    who[row[0]] = names
        return {
            path: None if row is None else from_row(path, row, who[row[0]], self._alike)
            for path, row in self._rows.items()
            if row is None or row[0] in who
        }

    def save(self, headers: Headers) -> None:
        """Write the index anew when it would change; where that is not possible it is left as it was."""
        kept = {
            key: headers[path] for path, key in self._keys.items() if path in self._settled and _keeps(headers[path])
        }
        if kept.keys() == self._stored.keys():
            return
        who, alike = Numbers(), Numbers()
        rows = {key: None if header is None else to_row(header, who, alike) for key, header in kept.items()}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with atomic_path(self._path, private=True) as partial:
                partial.write_bytes(_packed({"files": rows, "alike": list(alike)}))
        except (RunError, OSError):
            log.debug("the index of headers cannot be written", exc_info=True)


_NEW: Row = []


def _keeps(header: Header | None) -> bool:
    """Whether a header goes into the index: sound images, and what is not DICOM.

    Faults are looked at anew, since a permission may be given or a codec installed. References name structures.
    """
    return header is None or has_row(header)


def _key(found: Found) -> str:
    """A file's name below the folder, and its stamp, as a hash."""
    return _hash(os.fsencode(f"{found.stamp} {'/'.join((*found.parts, found.path.name))}"))


def _hash(content: bytes) -> str:
    return blake2b(content, digest_size=HASH_BYTES).hexdigest()


# ---- the file -------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """The user's folder for what can be made again, by the custom of the system."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local"))
    elif sys.platform == "darwin":
        base = Path("~/Library/Caches")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.path.expanduser(base)) / "medseg"  # noqa: PTH111  `Path.expanduser` raises for a user without a home


def _load(path: Path) -> dict[str, Any]:
    try:
        return _unpacked(path.read_bytes())
    except FileNotFoundError:
        log.debug("there is no index of headers yet")
    except (OSError, ValueError, LookupError, TypeError, zlib.error):
        log.debug("an index of headers cannot be used and is made anew", exc_info=True)
    return {"files": {}, "alike": []}


def _made_by() -> list[object]:
    return [FORMAT, version("medseg"), version("pydicom"), FIELDS]


def _packed(content: Mapping[str, Any]) -> bytes:
    """The content as bytes, behind a hash that tells damage."""
    packed = zlib.compress(json.dumps({"made_by": _made_by(), **content}).encode(), 1)
    return blake2b(packed, digest_size=HASH_BYTES).digest() + packed


def _unpacked(stored: bytes) -> dict[str, Any]:
    """What was packed by this version.

    Raises:
        ValueError: when it is damaged, or was packed by another version.
    """
    packed = stored[HASH_BYTES:]
    if blake2b(packed, digest_size=HASH_BYTES).digest() != stored[:HASH_BYTES]:
        raise ValueError("the index is damaged")
    content: dict[str, Any] = json.loads(zlib.decompress(packed))
    if content["made_by"] != _made_by():
        raise ValueError("the index is of another version")
    return content

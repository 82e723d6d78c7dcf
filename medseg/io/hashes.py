"""Hashes of files' contents, remembered until the files change.

The rule: a file is what it was when path, size, inode, time of the last change of content and time of the last change
of status are what they were when it was hashed, and it had not been touched within the two seconds before. The time of
status is set by the system at every change, and no program can set it back (on Windows it is the time of creation: a
file that is overwritten with as many bytes and gets its old time back passes for unchanged there).
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path

from medseg.errors import InputError
from medseg.io.atomic import write_text

log = logging.getLogger(__name__)

FORMAT = 1

SETTLED_NS = 2 * 10**9
"""A file changed less than 2 s before it was read may change again within one tick of its clock (FAT: 2 s)."""


class Hashes:
    """SHA-256 of files.

    Args:
        memory: the file that remembers them from run to run; without it each file is hashed once.
        others: files of that kind to look into as well.
    """

    def __init__(self, memory: Path | None = None, others: Iterable[Path] = ()) -> None:
        self._memory = memory
        self._known: dict[str, str] = {}
        for path in (*others, *([memory] if memory else [])):
            self._known.update(_load(path))
        self._used: dict[str, str] = {}

    def of(self, path: Path) -> str:
        """Return the hash of a file's content.

        Raises:
            InputError: USAGE-PATH when it cannot be read.
        """
        try:
            key, changed = _stamp(path)
            found = self._known.get(key)
            if found is None:
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if _stamp(path)[0] != key or changed > time.time_ns() - SETTLED_NS:
                    return found  # true now, perhaps not in a moment
        except OSError as error:
            problem = f"cannot be read: {error.strerror or type(error).__name__}"
            raise InputError("USAGE-PATH", path.name, problem, "Check that the file is still there.") from error
        self._known[key] = self._used[key] = found
        return found

    def save(self) -> None:
        """Remember the hashes that were asked for.

        Raises:
            RunError: RUN-WRITE.
        """
        if self._memory is not None and self._used != _load(self._memory):
            write_text(self._memory, json.dumps({"format": FORMAT, "sha256": self._used}) + "\n")


def _stamp(path: Path) -> tuple[str, int]:
    """Return a hash of path and stamp, since a path may name a patient, and the time of the last change in ns."""
    status = path.stat()
    stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    content = f"{stamp} {path.absolute()}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(content, digest_size=16).hexdigest(), max(status.st_mtime_ns, status.st_ctime_ns)


def _load(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(key): str(value) for key, value in content["sha256"].items()} if content["format"] == FORMAT else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        log.debug("remembered hashes cannot be used: files are hashed anew", exc_info=True)
        return {}

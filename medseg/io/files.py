"""Walking folders without being fooled: loops of links, pipes, junk, and names that are not text."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import UsageError

JUNK_NAMES = frozenset({"thumbs.db", "desktop.ini", "dicomdir", "version", "lockfile", "autorun.inf", "icon\r"})
JUNK_ENDINGS = (".tmp", ".part", ".partial", ".crdownload", ".bak", "~")
"""Left by systems, browsers and killed programs; DICOMDIR is an index, whose entries may point anywhere (it is never
followed)."""


JUNK_FOLDERS = frozenset({"__MACOSX", "$RECYCLE.BIN", "System Volume Information"})


@dataclass(frozen=True)
class Found:
    """A regular file, and which of the given paths led to it.

    Attributes:
        path: the file.
        root: the given folder, or the file itself when it was given.
        parts: names of the folders between root and file.
        stamp: size in bytes, times of the last change of content and of status in ns, inode; a changed file has
            another stamp.
    """

    path: Path
    root: Path
    parts: tuple[str, ...]
    stamp: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True)
class Skip:
    """A file that was passed over, and why."""

    path: Path
    code: str
    reason: str


def walk(paths: Sequence[Path]) -> tuple[list[Found], list[Skip]]:
    """Collect the regular files below some files and folders, each path once, in the order of their names.

    Raises:
        UsageError: USAGE-PATH when a path does not exist.
    """
    files: dict[Path, Found] = {}
    skipped: dict[Path, Skip] = {}
    seen: set[tuple[int, int]] = set()
    for given in paths:
        path = Path(given)
        if not path.exists():
            raise UsageError("USAGE-PATH", str(path), "there is no such file or folder", "Check the path.")
        for item in _below(path, seen):
            if isinstance(item, Found):
                files.setdefault(item.path.absolute(), item)
            else:
                skipped.setdefault(item.path.absolute(), item)
    return list(files.values()), list(skipped.values())


def _below(root: Path, seen: set[tuple[int, int]]) -> Iterator[Found | Skip]:
    """Yield what lies at and below `root`; an explicit stack, so that depth has no limit.

    Folders are entered once, whatever links lead to them. Files are not told apart so: two cases may share one file.
    """
    waiting: list[tuple[Path, tuple[str, ...]]] = [(root, ())]
    while waiting:
        here, parts = waiting.pop()
        try:
            status = here.stat()
        except OSError as error:
            yield _unreachable(here, error)
            continue
        if not stat.S_ISDIR(status.st_mode):
            yield _judge(here, root, parts, status)
        elif here != root and (here.name.startswith(".") or here.name in JUNK_FOLDERS):
            yield Skip(here, "SKIP-HIDDEN", "a hidden or system folder")
        elif (status.st_dev, status.st_ino) not in seen or not status.st_ino:
            seen.add((status.st_dev, status.st_ino))
            names = _entries(here)
            if isinstance(names, Skip):
                yield names
                continue
            inner = parts if here == root else (*parts, here.name)
            waiting += [(here / name, inner) for name in reversed(names)]


def _unreachable(path: Path, error: OSError) -> Skip:
    if os.path.islink(path):  # noqa: PTH114  `Path.is_symlink` raises for a path that is too long
        return Skip(path, "SKIP-SPECIAL", "a broken link")
    return Skip(path, "SKIP-UNREADABLE", f"it cannot be reached ({_why(error)})")


def _entries(folder: Path) -> list[str] | Skip:
    try:
        return sorted((entry.name for entry in folder.iterdir()), key=os.fsencode)
    except OSError as error:
        return Skip(folder, "SKIP-UNREADABLE", f"the folder cannot be opened ({_why(error)})")


def _judge(path: Path, root: Path, parts: tuple[str, ...], status: os.stat_result) -> Found | Skip:
    name = path.name.casefold()
    if not stat.S_ISREG(status.st_mode):
        return Skip(path, "SKIP-SPECIAL", "a pipe, socket or device")
    if path != root and (name.startswith(".") or name in JUNK_NAMES or name.endswith(JUNK_ENDINGS)):
        return Skip(path, "SKIP-HIDDEN", "a hidden, temporary or system file")
    stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return Found(path, root, parts, stamp)


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__

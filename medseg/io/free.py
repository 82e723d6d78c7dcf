"""What is left: of the memory and the disk of the machine, and of what a job may take of them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

SYSTEM = Path("/")

NO_LIMIT = 1 << 60
"""The first version of control groups writes a huge number for none."""


def free_memory() -> int | None:
    """Return the bytes that can be had without swapping; None where that is not known.

    Linux' own estimate, or what a job's limit leaves: SLURM and containers set one through control groups.
    """
    free = _number(SYSTEM / "proc/meminfo", r"^MemAvailable:\s+(\d+) kB")
    return None if free is None else max(0, min([free * 1024, *_left_to_job()]))


def free_disk(folder: Path) -> int | None:
    """Bytes that the file system of a folder, made already or not, has left for this user; None when unknown."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        return shutil.disk_usage(there).free
    except OSError:
        return None


def _left_to_job() -> Iterator[int]:
    """Yield what each control group around this process leaves, its cached files counted as free."""
    root = SYSTEM / "sys/fs/cgroup"
    try:
        lines = (SYSTEM / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "memory":
            top, files = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        elif not controllers:  # the second version
            top, files = root, ("memory.max", "memory.current", "inactive_file")
        else:
            continue
        group = top / name.strip("/")
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(top))):
            limit, used = (_number(folder / file, r"^(\d+)$") for file in files[:2])
            if limit is not None and used is not None and limit < NO_LIMIT:
                yield limit - used + (_number(folder / "memory.stat", rf"^{files[2]} (\d+)$") or 0)


def _number(path: Path, pattern: str) -> int | None:
    """Return the number that a pattern finds in a file of the system; None where it does not stand."""
    try:
        found = re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None

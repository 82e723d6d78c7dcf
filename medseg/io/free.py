"""What the machine has left."""

from __future__ import annotations

import re
import shutil
from pathlib import Path


def free_memory() -> int | None:
    """Bytes that can be had without swapping, by Linux' own estimate; None where that is not known."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def free_disk(folder: Path) -> int | None:
    """Bytes that the file system of a folder, made already or not, has left for this user; None when unknown."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        return shutil.disk_usage(there).free
    except OSError:
        return None

"""One process at a time on an output folder, or several that share it, each with a part of its own."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medseg.errors import RunError

log = logging.getLogger(__name__)

LOCK_NAME = ".medseg-lock"

HELD = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
"""What systems say when another process holds the lock. Anything else: the file system has no locks (some clusters)."""


@contextmanager
def exclusive(folder: Path, part: str = "") -> Iterator[bool]:
    """Hold a folder, or a part of one, for this process; the system lets go when the process ends, however it ends.

    Args:
        folder: made when absent.
        part: name of what is held; empty: the folder as a whole.

    Yields:
        Whether it is certain: False where the file system has no locks.

    Raises:
        RunError: RUN-BUSY when another process holds it, RUN-WRITE when it cannot be made.
    """
    with _locked(folder, LOCK_NAME + (f"-{part}" if part else ""), shared=False) as certain:
        yield certain


@contextmanager
def shared(folder: Path) -> Iterator[bool]:
    """Keep others from holding a folder as a whole, while they may share it too; otherwise as `exclusive`."""
    with _locked(folder, LOCK_NAME, shared=True) as certain:
        yield certain


@contextmanager
def _locked(folder: Path, name: str, shared: bool) -> Iterator[bool]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        advice = "Choose another output folder."
        problem = "a file, wanted a folder" if folder.is_file() else f"cannot be used: {error.strerror}"
        raise RunError("RUN-WRITE", str(folder), problem, advice) from error
    try:
        yield _lock(handle, folder, shared)
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path, shared: bool) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt  # it has no shared locks

            if shared:
                return False
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno not in HELD:
            log.warning("%s: %s; only one process at a time may work on it", folder, error.strerror)
            return False
        advice = "Wait for it, or choose another output folder."
        raise RunError("RUN-BUSY", str(folder), "another medseg process is working on this folder", advice) from error

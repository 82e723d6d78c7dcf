"""One process at a time on an output folder."""

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
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the system lets go when the process ends, however it ends.

    Args:
        folder: made when absent.

    Raises:
        RunError: RUN-BUSY when another process holds it, RUN-WRITE when it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        advice = "Choose another output folder."
        raise RunError("RUN-WRITE", str(folder), f"cannot be used: {error.strerror}", advice) from error
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in HELD:
            log.warning("%s: %s; only one process at a time may work on it", folder, error.strerror)
            return
        advice = "Wait for it, or choose another output folder."
        raise RunError("RUN-BUSY", str(folder), "another medseg process is working on this folder", advice) from error

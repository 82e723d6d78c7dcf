"""The state of a training run on disk: tensors and plain types only, so that loading one runs no code.

A checkpoint is torch's archive with its SHA-256 behind it (readers of archives pass over that): torch does not verify
the checksums inside, and a flipped bit would train on unnoticed. The one before is kept, for the day when a disk fails.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from medseg.errors import RunError, first_line
from medseg.io.atomic import atomic_path

log = logging.getLogger(__name__)

State = dict[str, Any]

FORMAT = 3
"""Raised whenever what a state holds has changed."""

DIGEST = hashlib.sha256().digest_size


def save_checkpoint(path: Path, state: State) -> None:
    """Write a checkpoint; the earlier one stays whole until the new one is on disk, and is then the one before.

    Raises:
        RunError: RUN-WRITE.
    """
    archive = io.BytesIO()  # given a path, torch writes by itself, and tells of a full disk in a way of its own
    torch.save(state, archive)
    with atomic_path(path) as partial:
        with partial.open("wb") as file:
            file.write(archive.getbuffer())
            file.write(hashlib.sha256(archive.getbuffer()).digest())
        before = one_before(path)
        with suppress(OSError):  # a file system without links keeps the last one only
            before.unlink(missing_ok=True)
            before.hardlink_to(path)


def one_before(path: Path) -> Path:
    """Return where the checkpoint before the last one is."""
    return path.with_name("before.pt")


def load_last(path: Path) -> State:
    """Read a checkpoint; when it is damaged, the one before.

    Raises:
        RunError: RUN-RESUME when neither can be read.
    """
    try:
        return load_checkpoint(path)
    except RunError as error:
        try:
            state = load_checkpoint(one_before(path))
        except RunError:
            raise error from None
        log.warning("%s: %s; going on from the one before", path, error.problem)
        return state


def load_checkpoint(path: Path) -> State:
    """Read a checkpoint to the CPU.

    Raises:
        RunError: RUN-RESUME when it is damaged or not a checkpoint of medseg's.
    """
    try:
        if not _is_whole(path):
            raise _refused(path, "damaged, or no checkpoint: its hash does not match")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except RunError:
        raise
    except Exception as error:  # torch's unpickler raises whatever it meets, AssertionError too
        raise _refused(path, f"unreadable: {first_line(error)}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise _refused(path, "not a checkpoint of this version")
    return state


def _is_whole(path: Path) -> bool:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        left = max(0, os.fstat(file.fileno()).st_size - DIGEST)
        while left and (part := file.read(min(left, 1 << 20))):
            digest.update(part)
            left -= len(part)
        return file.read() == digest.digest()


def _refused(path: Path, problem: str) -> RunError:
    return RunError("RUN-RESUME", str(path), problem, "Start another run with -o.")

"""Writing without ever showing a half-written file under its final name."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medseg.errors import RunError

PROOF_BYTES = 4 << 20
"""A mask of 512 x 512 x 400 takes less than a megabyte; the ledger of thousands of cases takes one more."""

PARTIAL_PREFIX = ".medseg-part-"
"""Temporary names start so: readers of folders (`medseg.scan`) pass over them; a killed run leaves nothing else."""


@contextmanager
def atomic_path(path: Path, suffix: str | None = None, private: bool = False) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`; on leaving, flush it to disk and rename it to `path`.

    The caller writes the temporary file, and may open and verify it, inside the block. When the block raises, the
    temporary file is removed and `path` is what it was before.

    Args:
        path: the final name; its folder is made when absent.
        suffix: ending of the temporary name, when the writer goes by it; the ending of `path` by default.
        private: nobody but the user may read the file.

    Raises:
        RunError: RUN-WRITE when the file system refuses (full, read-only, not a folder), with its reason.
    """
    ending = "".join(path.suffixes[-2:]) if suffix is None else suffix
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=PARTIAL_PREFIX, suffix=ending, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise _refused(path, error) from error
    partial = Path(name)
    try:
        yield partial
        _flush(partial)
        if not private:  # as mkstemp makes it; an ordinary file follows the umask
            partial.chmod(0o666 & ~_umask())
        partial.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


def prove_room(folder: Path) -> None:
    """Write and remove a file larger than most masks: tells a full or closed folder from a file that cannot be.

    Raises:
        RunError: RUN-WRITE when the file system refuses.
    """
    try:
        with tempfile.NamedTemporaryFile(prefix=PARTIAL_PREFIX, dir=folder) as file:
            file.write(bytes(PROOF_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _refused(folder, error) from error


@contextmanager
def staging(folder: Path, part: str = "") -> Iterator[Path]:
    """Give a folder beside the results for files on their way; gone afterwards, with whatever was not moved.

    Args:
        folder: of the results.
        part: stands in its name, for `remove_partials`.

    Raises:
        RunError: RUN-WRITE.
    """
    try:
        place = Path(tempfile.mkdtemp(prefix=_prefix(part), dir=folder))
    except OSError as error:
        raise _refused(folder, error) from error
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _prefix(part: str) -> str:
    return PARTIAL_PREFIX + (f"{part}-" if part else "")


def move(source: Path, target: Path) -> None:
    """Give a finished file of the same file system its name, on disk when this returns.

    Raises:
        RunError: RUN-WRITE.
    """
    try:
        source.replace(target)
        _flush(target.parent)
    except OSError as error:
        raise _refused(target, error) from error


def remove_partials(folder: Path, part: str = "") -> None:
    """Remove what killed runs left unfinished right in a folder; names tell that it is ours.

    Args:
        folder: held by this process.
        part: of the folder that this process holds: then only what was staged for it.
    """
    for path in list(folder.glob(f"{_prefix(part)}*")):
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 with Unix line ends, atomically.

    Raises:
        RunError: RUN-WRITE.
    """
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot flush a folder
            raise
    finally:
        os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _refused(path: Path, error: OSError) -> RunError:
    reason = error.strerror or str(error)
    return RunError("RUN-WRITE", str(path), f"cannot be written: {reason}", "Free space, or choose another folder.")

"""Files appear whole under their names or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from medseg.errors import MaskError, RunError
from medseg.io.atomic import PARTIAL_PREFIX, atomic_path, write_text

WRITER = """
import sys, pathlib
from medseg.io.atomic import atomic_path
with atomic_path(pathlib.Path(sys.argv[1])) as partial:
    with partial.open("wb") as file:
        file.write(b"new" * 1000)
        file.flush()
        print("half", flush=True)
        sys.stdin.read()
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse(monkeypatch: pytest.MonkeyPatch, what: str, number: int) -> None:
    def failing(*args: object, **more: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, what, failing)


def test_a_new_file_and_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.txt"
    with atomic_path(path) as partial:
        assert not path.exists()
        assert partial.parent == path.parent
        assert partial.name.startswith(PARTIAL_PREFIX)
        partial.write_text("content")
    assert path.read_text() == "content"
    assert names(path.parent) == ["file.txt"]


@pytest.mark.parametrize(
    ("name", "ending"), [("a.nii.gz", ".nii.gz"), ("a.b.nii.gz", ".nii.gz"), ("last.pt", ".pt"), ("README", "")]
)
def test_the_partial_name_ends_like_the_final_one(tmp_path: Path, name: str, ending: str) -> None:
    with atomic_path(tmp_path / name) as partial:
        assert "".join(partial.suffixes) == ending


def test_an_ending_may_be_given(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "odd.name", suffix=".nii.gz") as partial:
        assert partial.name.endswith(".nii.gz")


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError, SystemExit])
def test_any_end_of_the_block_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(error), atomic_path(path) as partial:  # noqa: PT012
        partial.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_an_error_of_the_verification_passes_through(tmp_path: Path) -> None:
    with pytest.raises(MaskError), atomic_path(tmp_path / "file"):
        raise MaskError("MASK-GRID", "", "not the same")
    assert names(tmp_path) == []


def test_who_reads_the_old_file_reads_it_to_its_end(tmp_path: Path) -> None:
    """Renamed into place, never copied over: a copy shows a half-written file while it runs."""
    path = tmp_path / "file"
    write_text(path, "old")
    with path.open() as reader:
        with atomic_path(path) as partial:
            partial.write_text("new")
            written = partial.stat().st_ino
        assert reader.read() == "old"
    assert path.stat().st_ino == written


def test_a_kill_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.kill()
    assert path.read_text() == "old"
    left = [name for name in names(tmp_path) if name != "file"]
    assert all(name.startswith(PARTIAL_PREFIX) for name in left)
    write_text(path, "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("what", ["fsync", "open"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_a_refusing_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, number: int) -> None:
    write_text(tmp_path / "file", "old")
    with monkeypatch.context() as patch:
        refuse(patch, what, number)
        with pytest.raises(RunError, match=os.strerror(number)) as caught:
            write_text(tmp_path / "file", "new")
    assert caught.value.code == "RUN-WRITE"
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_full_disk_while_the_block_writes(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with pytest.raises(RunError, match="No space left") as caught, atomic_path(tmp_path / "file"):
        Path("/dev/full").write_bytes(b"x")
    assert caught.value.code == "RUN-WRITE"
    assert names(tmp_path) == []


def test_file_systems_that_cannot_flush_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "fsync", errno.EINVAL)
    write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"


def test_a_folder_that_is_a_file_or_a_name_that_is_a_folder(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "inner", tmp_path / "folder"):
        with pytest.raises(RunError) as caught:
            write_text(path, "new")
        assert caught.value.code == "RUN-WRITE"
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RunError) as caught:
            write_text(tmp_path / "file", "new")
        assert caught.value.code == "RUN-WRITE"
    finally:
        tmp_path.chmod(0o700)


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "x")
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_line_ends_and_letters_are_the_same_everywhere(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "ä\nb\n")
    assert (tmp_path / "file").read_bytes() == b"\xc3\xa4\nb\n"


def test_many_writers_of_one_name_leave_one_whole_file(tmp_path: Path) -> None:
    texts = [str(number) * 50_000 for number in range(8)]
    threads = [threading.Thread(target=write_text, args=(tmp_path / "file", text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_text() in texts
    assert names(tmp_path) == ["file"]

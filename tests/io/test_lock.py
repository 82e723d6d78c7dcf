"""One process at a time on a folder, and none for ever."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medseg.errors import RunError
from medseg.io.lock import exclusive

HOLDER = """
import sys, pathlib
from medseg.io.lock import exclusive
with exclusive(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def refused(folder: Path) -> RunError:
    with pytest.raises(RunError) as caught, exclusive(folder):
        pass
    return caught.value


def test_another_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert refused(tmp_path).code == "RUN-BUSY"
        process.kill()
        process.wait()
        with exclusive(tmp_path):
            pass


def test_the_same_process_is_refused_too_and_let_in_again(tmp_path: Path) -> None:
    with exclusive(tmp_path / "new"):
        assert refused(tmp_path / "new").code == "RUN-BUSY"
        with exclusive(tmp_path / "other"):
            pass
    with exclusive(tmp_path / "new"):
        pass


def test_a_fault_inside_lets_go(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path):
        raise ZeroDivisionError
    with exclusive(tmp_path):
        pass


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refused(tmp_path / "file").code == "RUN-WRITE"
    assert refused(tmp_path / "file" / "inner").code == "RUN-WRITE"


def test_no_handle_is_left_open(tmp_path: Path) -> None:
    with exclusive(tmp_path):
        before = len(os.listdir("/dev/fd"))  # noqa: PTH208
        for _ in range(5):
            refused(tmp_path)
        assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208


def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with caplog.at_level(logging.WARNING), exclusive(tmp_path):
        pass
    assert "one process at a time" in caplog.text

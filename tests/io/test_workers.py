"""Processes that die, hang or raise: the caller goes on."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import DicomError
from medseg.io.dicom_headers import read_header
from medseg.io.workers import MOST, CrashError, Here, LateError, Worker, call, call_all, call_spread, processes_for


def test_results_and_errors_come_back(tmp_path: Path) -> None:
    assert call(divmod, 7, 2) == (3, 1)
    assert np.array_equal(call(np.arange, 5), np.arange(5))
    with pytest.raises(ValueError, match="invalid literal"):
        call(int, "x")
    (tmp_path / "empty").touch()
    header = call(read_header, tmp_path / "empty")
    assert header is not None
    assert header.code == "DICOM-READ"


def test_a_medseg_error_keeps_its_parts() -> None:
    with pytest.raises(DicomError) as caught:
        call(_raised)
    assert (caught.value.code, caught.value.where) == ("DICOM-GAP", "a")


def _raised() -> None:
    raise DicomError("DICOM-GAP", "a", "b")


def test_death_is_an_error_and_not_the_end() -> None:
    worker = Worker()
    with pytest.raises(CrashError):
        worker.call(os.abort)
    assert worker.call(abs, -1) == 1
    worker.close()
    assert worker.call(abs, -1) == 1
    worker.close()


def test_what_hangs_is_ended() -> None:
    start = time.monotonic()
    with pytest.raises(CrashError):
        call(time.sleep, 60, patience_s=0.5)
    assert time.monotonic() - start < 30
    assert call(abs, -1) == 1


def test_who_is_late_is_told_from_who_died() -> None:
    worker = Worker(apart=True)
    with pytest.raises(LateError):
        worker.call(time.sleep, 60, patience_s=0.5)
    with pytest.raises(CrashError) as caught:
        worker.call(os.abort)
    assert not isinstance(caught.value, LateError)
    worker.close()


class Count:
    """Something that a process keeps."""

    def __init__(self, start: int) -> None:
        self.number = start

    def add(self, values: np.ndarray) -> np.ndarray:
        self.number += int(values.sum())
        return np.asfortranarray(values.T) * self.number

    def die(self) -> None:
        os.abort()


@pytest.mark.parametrize("kind", [Worker, Here])
def test_what_is_held_stays_until_it_is_released(kind: type[Worker] | type[Here]) -> None:
    worker = kind()
    worker.hold(Count, 3)
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    for number in (279, 555):  # 3 + 276, and 276 more
        answer = worker.ask("add", values)
        assert np.array_equal(answer, values.T * number)
        answer[...] = 0  # what came is the caller's own, and may be written to
    assert np.array_equal(worker.ask("add", values[:, ::2]), values[:, ::2].T * (555 + values[:, ::2].sum()))
    with pytest.raises(TypeError):
        worker.ask("add", 1, 2)
    worker.release()
    with pytest.raises(AttributeError):
        worker.ask("add", values)
    if isinstance(worker, Worker):
        worker.hold(Count, 3)
        with pytest.raises(CrashError):
            worker.ask("die")
        with pytest.raises(CrashError):  # a new process would not hold it
            worker.ask("add", values)
        worker.close()


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="the system has no process groups")
def test_what_works_apart_ends_with_all_that_it_started(tmp_path: Path) -> None:
    worker = Worker(apart=True)
    child = worker.call(_start_another)
    assert os.getpgid(worker.call(os.getpid)) != os.getpgid(0)
    worker.close()
    for _ in range(100):
        if not _alive(child):
            return
        time.sleep(0.1)
    pytest.fail("the process of the process goes on")


def _start_another() -> int:
    return call(os.getpid)


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_many_jobs_keep_their_order_and_dead_ones_their_place() -> None:
    assert list(call_all(abs, [(n,) for n in range(-20, 0)], 2)) == list(range(20, 0, -1))
    assert list(call_all(_dies_at_three, [(n,) for n in range(6)], 2)) == [0, 1, 2, None, 4, 5]


def _dies_at_three(number: int) -> int:
    if number == 3:
        os.abort()
    return number


def test_work_is_spread_when_that_pays() -> None:
    jobs = [(n,) for n in range(6)]
    here = os.getpid()
    assert set(call_spread(_who, jobs, start_s=60.0, processes=2)) == {here}  # over long before a process would start
    assert set(call_spread(_who, jobs, start_s=0.0, processes=1)) == {here}
    spread = list(call_spread(_who, jobs, start_s=0.0, processes=2))
    assert spread[0] == here  # the first one tells how long they take
    assert here not in spread[1:]
    assert list(call_spread(_dies_elsewhere, [(here, n) for n in range(6)], 0.0, 2)) == [0, 1, 2, 3, 4, 5]
    assert list(call_spread(abs, [], 0.0, 2)) == []


def _who(number: int) -> int:
    time.sleep(0.01)
    return os.getpid()


def _dies_elsewhere(home: int, number: int) -> int:
    if number == 3 and os.getpid() != home:
        os.abort()
    return number


def test_printing_does_not_spoil_answers() -> None:
    assert call(print, "x" * 100_000) is None
    assert call(abs, -1) == 1


def test_a_forked_child_starts_its_own() -> None:
    """As the processes of a data loader do: two owners of one pipe would read one another's answers."""
    worker = Worker()
    own = worker.call(os.getpid)
    child = os.fork()
    if child == 0:
        os._exit(0 if worker.call(os.getpid) != own else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert worker.call(os.getpid) == own
    worker.close()


def test_without_an_interpreter_the_work_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert Worker().call(os.getpid) == os.getpid()


@pytest.mark.parametrize(("jobs", "wanted"), [(0, 1), (39, 1), (40, 1), (10**6, MOST)])
def test_few_jobs_need_one_process(jobs: int, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)), raising=False)
    assert processes_for(jobs, 40) == wanted

"""Batches come in order, whoever makes them, and what goes wrong comes out."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import Tensor

from medseg.training.ahead import MOST_THREADS, Ahead, threads_for


class Counted:
    """Batches that say which they are, and how many were made at once."""

    def __init__(self, steps: int, pause_s: float = 0.0, fault: int | None = None) -> None:
        self.count, self.pause_s, self.fault = steps, pause_s, fault
        self.made: list[int] = []
        self.busy = self.most = 0
        self.lock = threading.Lock()

    def steps(self, epoch: int) -> int:
        return self.count

    def batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        with self.lock:
            self.made.append(step)
            self.busy += 1
            self.most = max(self.most, self.busy)
        time.sleep(self.pause_s * (1 + (step * 7) % 3))  # some take longer
        with self.lock:
            self.busy -= 1
        if step == self.fault:
            raise ZeroDivisionError
        return torch.tensor([epoch]), torch.tensor([step])


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("steps", [0, 1, 3, 12])
def test_all_batches_come_in_order(threads: int, steps: int) -> None:
    data = Counted(steps, pause_s=0.001)
    found = [(int(images), int(labels)) for images, labels in Ahead(data, 4, threads)]
    assert found == [(4, step) for step in range(steps)]
    assert sorted(data.made) == list(range(steps))
    assert data.most <= threads


def test_no_more_than_needed_is_made_ahead() -> None:
    data = Counted(50)
    for _, (_, step) in zip(range(4), Ahead(data, 0, threads=3), strict=False):
        time.sleep(0.01)
        assert max(data.made) <= int(step) + 3 + 1


def test_threads_work_at_once_and_the_waiting_falls() -> None:
    waited = []
    for threads in (1, 4):
        batches = Ahead(Counted(12, pause_s=0.01), 0, threads)
        assert len(list(batches)) == 12
        waited.append(batches.waited_s)
    assert waited[1] < 0.6 * waited[0]


def test_a_fault_comes_out_at_its_place() -> None:
    batches = iter(Ahead(Counted(9, fault=3), 0, threads=4))
    assert [int(next(batches)[1]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        next(batches)


def test_how_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    gpu = torch.device("cuda")
    assert threads_for(torch.device("cpu"), 1) == 1
    assert [threads_for(gpu, processes) for processes in (1, 2, 4, 8, 64)] == [MOST_THREADS, 7, 3, 1, 1]

"""`Ahead`: batches made by threads while the network works on earlier ones."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""Images `(b, c, h, w)` float32 and label numbers `(b, h, w)` int64."""

MOST_THREADS = 8
"""More bring little: a part of the work on a slice is Python's own, one thread at a time."""


class Data(Protocol):
    """Where batches come from: each a function of epoch and step alone."""

    def steps(self, epoch: int) -> int:
        """Count the batches of an epoch."""

    def batch(self, epoch: int, step: int) -> Batch:
        """Make one batch, on the CPU."""


class Ahead:
    """The batches of one epoch, in order.

    Args:
        data: makes them; array work lets other threads run.
        epoch: its number.
        threads: that make batches at once.
        pinned: in memory that a GPU copies from while it computes.
        first: the batches before it are not made: a resumed epoch has seen them.

    Attributes:
        waited_s: how long the loop waited for batches until now.
    """

    def __init__(self, data: Data, epoch: int, threads: int = 1, pinned: bool = False, first: int = 0) -> None:
        self._data, self._epoch, self._threads, self._pinned, self._first = data, epoch, threads, pinned, first
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[Batch]:
        """Give the batches; at most one for each thread, and one more, is made before its turn."""
        steps = self._data.steps(self._epoch)
        with ThreadPoolExecutor(self._threads) as pool:
            coming: deque[Future[Batch]] = deque()
            try:
                for step in range(self._first, steps):
                    while len(coming) <= self._threads and step + len(coming) < steps:
                        coming.append(pool.submit(self._batch, step + len(coming)))
                    started = time.perf_counter()
                    batch = coming.popleft().result()
                    self.waited_s += time.perf_counter() - started
                    yield batch
            finally:
                pool.shutdown(cancel_futures=True)

    def _batch(self, step: int) -> Batch:
        images, labels = self._data.batch(self._epoch, step)
        return (images.pin_memory(), labels.pin_memory()) if self._pinned else (images, labels)


def threads_for(device: torch.device, processes: int) -> int:
    """Return how many threads make batches: one where the processor trains, since it is busy with the network.

    Args:
        device: that trains.
        processes: that train together, on one machine for all that is known here.
    """
    if device.type != "cuda":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_THREADS, cores // processes - 1))

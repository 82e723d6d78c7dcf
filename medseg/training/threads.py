"""Threads that compute side by side, each what is its own, on the cores that a training process may use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Barrier
from typing import Any

import torch

from medseg.training.team import Team


@dataclass(frozen=True)
class Threads:
    """Threads, or the one that asks.

    They lose little to each other, where threads that share every single operation wait for each other, and for
    whatever else runs on their cores, several hundred times in a step.

    Attributes:
        count: how many.
        map: as the built-in one.
    """

    count: int = 1
    map: Callable[..., Iterable[Any]] = map


ONE = Threads()


@contextmanager
def side_by_side(batch_size: int, device: torch.device, team: Team) -> Iterator[Threads]:
    """Give as many threads as leave no core of a processor without work, with parts of a batch of equal size.

    Each has an equal share of the cores for its operations.

    Args:
        batch_size: slices in a step.
        device: that trains; what is on a GPU, and what shares a processor with other processes, has one thread.
        team: of processes.
    """
    cores = torch.get_num_threads()
    count = max((n for n in range(1, cores + 1) if batch_size % n == 0), key=lambda n: (n * (cores // n), n))
    if device.type != "cpu" or team.count > 1 or count == 1:
        yield ONE
        return
    started = Barrier(count + 1)
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(cores // count,)) as pool:
        try:
            for _ in range(count):
                pool.submit(started.wait)
            started.wait()
            yield Threads(count, pool.map)
        finally:
            started.abort()  # lets go of those that wait, should one of them not have started
            torch.set_num_threads(cores)  # new threads begin with what any thread has set last

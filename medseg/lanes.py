"""Many cases side by side, one network: how the stages of prediction overlap.

    lane (a thread)            its process             the network (a thread)
    -------------------------  ----------------------  -----------------------------------------
    opens the case         ->  hash, read, measure
    prepares a block       <-  cuts out stored voxels
    hands it over          ->                          logits, with other lanes' blocks of its size
    restores, arg-max      <-
    hands the labels back  ->  gathers
    asks for the files     ->  writes, compresses, verifies

A lane has one case at a time, and at most `AHEAD` + 1 of its blocks are under way. What a case holds beside them is its
stored voxels and its mask; the cases under way share `ROOM_BYTES`, and one that is larger is alone. So memory depends
neither on how many scans there are nor, beyond the largest scan, on how many slices.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack

import torch
from torch import Tensor

from medseg.case_work import VOXEL_BYTES, Job, ready
from medseg.io.workers import CrashError, Here, Worker
from medseg.one_case import Network, OneCase, Outcome, Promise, Slot, gave_up
from medseg.prediction import Predictor

log = logging.getLogger(__name__)

ROOM_BYTES = 1 << 30
"""For stored voxels and masks of the cases under way: two scans of 512 x 512 x 400."""

IN_HAND = 2
"""Cases of a worker in a cluster (`medseg.cluster_worker`): one for the network, one beside it."""


def run_cases(
    jobs: Sequence[Job], predictor: Predictor, *, workers: int, timeout_s: float, stopped: Callable[[], bool]
) -> Generator[Outcome]:
    """Predict cases, and yield each as it ends; when the generator is closed, what is under way is dropped.

    A case whose process died is tried once more at the end, alone: a crash in a codec repeats itself and is its own
    fault; where memory was short, it may have been the others'.

    Args:
        jobs: what is to be done.
        predictor: the model on its device.
        workers: processes that read and write; 0: one case after the other, all in this process.
        timeout_s: for each case; not kept without processes.
        stopped: asked before each case whether to stop.
    """
    died: list[Job] = []
    for outcome in _side_by_side(jobs, predictor, workers, timeout_s, stopped):
        if outcome.status == "died":
            log.warning("case %s: its process died; it is tried again at the end", outcome.job.case.id)
            died.append(outcome.job)
        else:
            yield outcome
    for job in died:
        for outcome in _side_by_side([job], predictor, 1, timeout_s, stopped):
            yield gave_up(outcome) if outcome.status == "died" else outcome


def _settle(
    jobs: Sequence[Job], predictor: Predictor, worker: Worker | None, timeout_s: float, stopped: Callable[[], bool]
) -> None:
    """Let the predictor choose its engine, unless it has, on the first case that can be read."""
    for job in jobs:
        if predictor.choice is not None or stopped():
            return
        slot = loaded(worker) if worker else Here()
        OneCase(job, slot, predictor, at_once(predictor), timeout_s).settle()
        slot.release()


def _side_by_side(
    jobs: Sequence[Job], predictor: Predictor, workers: int, timeout_s: float, stopped: Callable[[], bool]
) -> Iterator[Outcome]:
    if workers == 0:
        _settle(jobs, predictor, None, timeout_s, stopped)
        slot = Here()
        for job in jobs:
            if stopped():
                return
            yield OneCase(job, slot, predictor, at_once(predictor), timeout_s).run()
            slot.release()
        return
    with ExitStack() as stack:
        processes = [Worker(apart=True) for _ in range(min(workers, len(jobs)))]
        for process in processes:
            stack.callback(process.close)
        if processes:
            _settle(jobs, predictor, processes[0], timeout_s, stopped)  # here: Ctrl-C ends a proof at once
        lanes = _Lanes(jobs, predictor, processes, timeout_s, stopped)
        stack.callback(lanes.close)
        yield from lanes.outcomes()


def at_once(predictor: Predictor) -> Network:
    """Return a network that keeps its promises before it makes them."""

    def network(images: Tensor) -> Promise:
        promise: Promise = Future()
        start = time.perf_counter()
        promise.set_result((predictor.outputs(images), time.perf_counter() - start))
        return promise

    return network


class SharedNetwork:
    """One predictor for several threads. Blocks of one size that wait together share a batch.

    Attributes:
        predictor: the model on its device.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._waiting: deque[tuple[Tensor, Promise]] = deque()
        self._news = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="medseg-network", daemon=True)
        self._thread.start()

    def __call__(self, images: Tensor) -> Promise:
        """Promise the outputs of slices `(n, c, h, w)`."""
        future: Promise = Future()
        with self._news:
            if self._closed:
                future.set_exception(CrashError("the network is closed"))
            else:
                self._waiting.append((images, future))
                self._news.notify()
        return future

    def close(self) -> None:
        """End; whoever still waits gets a CrashError."""
        with self._news:
            self._closed = True
            while self._waiting:
                self._waiting.popleft()[1].set_exception(CrashError("the network is closed"))
            self._news.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            start = time.perf_counter()
            try:
                images = [images for images, _ in batch]
                outputs = self.predictor.outputs(images[0] if len(images) == 1 else torch.cat(images))
                sizes = [len(images) for images, _ in batch]
            except BaseException as error:  # noqa: BLE001  it belongs to those who wait
                for _, future in batch:
                    future.set_exception(error)
                continue
            each = (time.perf_counter() - start) / sum(sizes)
            for (_, future), part, size in zip(batch, outputs.split(sizes), sizes, strict=True):
                future.set_result((part, each * size))

    def _next_batch(self) -> list[tuple[Tensor, Promise]]:
        """Wait for a block, and take with it those of its size that have waited too; nothing when closed."""
        with self._news:
            self._news.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return []
            batch = [self._waiting.popleft()]
            rest: deque[tuple[Tensor, Promise]] = deque()
            room = self.predictor.config.batch_size - len(batch[0][0])
            for item in self._waiting:
                fits = item[0].shape[1:] == batch[0][0].shape[1:] and len(item[0]) <= room
                (batch if fits else rest).append(item)
                room -= len(item[0]) if fits else 0
            self._waiting = rest
            return batch


class Room:
    """Bytes that the cases under way may hold together; one that needs more waits until it is alone.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int = ROOM_BYTES) -> None:
        self._limit = limit
        self._used = 0
        self._news = threading.Condition()

    def take(self, job: Job) -> None:
        """Wait until there is room for a case, and take it."""
        size = job.voxels * VOXEL_BYTES
        with self._news:
            self._news.wait_for(lambda: self._used == 0 or self._used + size <= self._limit)
            self._used += size

    def give(self, job: Job) -> None:
        """Give back what a case took."""
        with self._news:
            self._used -= job.voxels * VOXEL_BYTES
            self._news.notify_all()


class _Lanes:
    """Threads that take one job after the other, each with a process of its own."""

    def __init__(
        self,
        jobs: Sequence[Job],
        predictor: Predictor,
        workers: Sequence[Worker],
        timeout_s: float,
        stopped: Callable[[], bool],
    ) -> None:
        self._jobs = deque(jobs)
        self._predictor = predictor
        self._timeout_s = timeout_s
        self._stopped = stopped
        self._closed = False
        self._room = Room()
        self._turn = threading.Lock()
        self._network = SharedNetwork(predictor)
        self._ended: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        self._workers = workers
        self._threads = [threading.Thread(target=self._lane, args=(worker,), daemon=True) for worker in self._workers]
        for thread in self._threads:
            thread.start()

    def outcomes(self) -> Iterator[Outcome]:
        """Yield each case as it ends."""
        lanes = len(self._threads)
        while lanes:
            outcome = self._ended.get()
            if outcome is None:
                lanes -= 1
            else:
                yield outcome

    def close(self) -> None:
        """End everything; cases under way are dropped."""
        self._closed = True
        self._network.close()
        for worker, thread in zip(self._workers, self._threads, strict=True):
            while thread.is_alive():
                worker.kill()
                thread.join(0.2)  # it may have been about to start its process

    def _lane(self, worker: Worker) -> None:
        try:
            while (job := self._next()) is not None:
                slot = loaded(worker)
                try:
                    self._ended.put(OneCase(job, slot, self._predictor, self._network, self._timeout_s).run())
                finally:
                    slot.release()
                    self._room.give(job)
        finally:
            worker.close()
            self._ended.put(None)

    def _next(self) -> Job | None:
        """Take the next job once there is room for it; a large one is not overtaken, or it might never start."""
        with self._turn:
            if not self._jobs or self._closed or self._stopped():
                return None
            job = self._jobs.popleft()
            self._room.take(job)
            return job


def loaded(worker: Worker) -> Slot:
    """Let the process load what it needs, before the clock of a case runs; without one, the work is done here."""
    try:
        return Here() if worker.call(ready) == os.getpid() else worker
    except CrashError:
        return worker  # it will say so for the case

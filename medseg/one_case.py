"""One case from its scan to its files, with a network that may be shared: every fault becomes an `Outcome`."""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medseg.agreement import Tally
from medseg.case_work import CaseWork, Done, Failed, Job, Opened
from medseg.devices import is_out_of_memory
from medseg.errors import InputError, MedsegError, first_line
from medseg.io.workers import CrashError, LateError
from medseg.prediction import Outputs, Predictor
from medseg.prepare import cut_blocks, restore_block
from medseg.slices import pad_to

log = logging.getLogger(__name__)

AHEAD = 2
"""Blocks of a case under way beside the one being prepared: one in the network, one waiting for it."""

Promise = Future[tuple[Outputs, float]]
"""Of the outputs of some slices, and the seconds that the network spent on them."""

Network = Callable[[Tensor], Promise]
"""Takes slices `(n, c, h, w)`."""


class Slot(Protocol):
    """Where the work on a case is held: the process of a `medseg.io.workers.Worker`, or `Here`."""

    def hold(self, make: Callable[..., object], *arguments: object, patience_s: float) -> None:
        """Make an object and keep it."""

    def ask(self, method: str, *arguments: object, patience_s: float) -> Any:  # noqa: ANN401  what the method gives
        """Call one of its methods."""

    def release(self) -> None:
        """Let go of the object."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        job: what was to be done.
        status: `died` when the process that worked on it did; otherwise as in the ledger.
        code: why not done.
        message: the same as a sentence.
        remember: what a later run should know.
        seconds: spent on it.
        stages: of them, by kind of work; stages of one case overlap.
    """

    job: Job
    status: Literal["done", "reused", "rejected", "failed", "died"]
    code: str = ""
    message: str = ""
    remember: Done | Failed | None = None
    seconds: float = 0.0
    stages: Mapping[str, float] = field(default_factory=dict)


DIED = (
    "the process that worked on it died twice, the second time apart from others (RUN-DIED). "
    "Its files crash a codec, or there is not enough memory for it"
)


def died(outcome: Outcome) -> Outcome:
    """Return the outcome of a case that is to be tried once more."""
    return replace(outcome, status="died")


def gave_up(outcome: Outcome) -> Outcome:
    """Return the outcome of a case that died the second time."""
    return replace(outcome, status="failed")


class OneCase:
    """The way of one case.

    Args:
        job: what is to be done.
        slot: where its voxels are held.
        predictor: for preparation and settings.
        network: computes logits.
        timeout_s: how long it may take.
    """

    def __init__(self, job: Job, slot: Slot, predictor: Predictor, network: Network, timeout_s: float) -> None:
        self._job = job
        self._slot = slot
        self._predictor = predictor
        self._network = network
        self._start = time.perf_counter()
        self._timeout_s = timeout_s
        self._key = ""
        self._tally = Tally()
        self._stages: defaultdict[str, float] = defaultdict(float)

    def run(self) -> Outcome:
        """Predict, write and verify it, or find that an earlier run did; every fault becomes an outcome."""
        try:
            return self._done()
        except InputError as error:
            return self._ended("rejected", error.code, error.message)
        except MedsegError as error:
            return self._failed(error.code, error.message)
        except (LateError, TimeoutError):
            return self._failed("RUN-TIMEOUT", f"not finished after {self._timeout_s:g} s; --timeout sets the limit")
        except CrashError:
            return died(self._failed("RUN-DIED", DIED))
        except Exception as error:
            if is_out_of_memory(error):
                grid = self._job.case.scans[0].grid
                size = grid.shape if grid else "unknown size"
                return self._failed("RUN-MEMORY", f"not enough memory for a scan of {size}")
            log.exception("case %s failed", self._job.case.id)
            return self._failed("RUN-CRASH", f"{type(error).__name__} inside medseg")

    def settle(self) -> bool:
        """Let the predictor choose its engine on slices of this case; say whether they could be had."""
        try:
            self._slot.hold(CaseWork, self._job, patience_s=self._patience())
            opened: Opened = self._ask("open")
            self._predictor.check(opened.modality)
            self._predictor.settle(self._cut, opened.grid, opened.statistics)
        except Exception as error:  # its own outcome will say what is wrong with it
            log.info("case %s proves no engine: %s", self._job.case.id, first_line(error), exc_info=True)
            return False
        return True

    def _done(self) -> Outcome:
        self._slot.hold(CaseWork, self._job, patience_s=self._patience())
        self._key = self._ask("key", self._predictor.identity)
        if self._ask("is_done", self._key):
            return self._ended("reused", remember=self._job.known)
        known = self._job.known
        if isinstance(known, Failed) and known.key == self._key:
            return self._failed(known.code, known.message)
        opened: Opened = self._ask("open")
        self._predictor.check(opened.modality)
        for start, labels in self._labels(opened):
            self._ask("put", start, labels)
        digest, review = self._ask("finish", self._tally.agreement().by_name(self._job.labels))
        self._stages.update(self._ask("seconds"))  # of other kinds: the slot's
        return self._ended("done", remember=Done(self._key, digest, review.to_dict()))

    def _labels(self, opened: Opened) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield the labels of block after block; while the network works on one, the next are prepared."""
        preparation, patch = self._job.preparation, self._predictor.model.description.patch
        size = self._predictor.config.batch_size
        blocks = cut_blocks(self._cut, opened.grid, opened.statistics, preparation, size)
        waiting: deque[tuple[int, tuple[slice, slice], Promise]] = deque()
        while True:
            with self._timed("prepare"):
                block = next(blocks, None)
                if block is not None:
                    images, (rows, columns) = pad_to(block.images, patch)  # here: equal sizes can share a batch
            if block is not None:
                waiting.append((block.start, (rows, columns), self._network(images)))
            if not waiting:
                return
            if block is None or len(waiting) > AHEAD:
                start, (rows, columns), future = waiting.popleft()
                outputs, seconds = future.result(timeout=self._patience())
                self._stages["network"] += seconds
                with self._timed("restore"):
                    inside = outputs.cropped(rows, columns)
                    self._tally.add(inside.logits, inside.votes)
                    labels = restore_block(inside.logits, opened.grid, preparation)
                yield start, labels

    def _cut(self, axis: int, start: int, stop: int) -> NDArray[np.generic]:
        voxels: NDArray[np.generic] = self._ask("cut", axis, start, stop)
        return voxels

    def _ask(self, method: str, *arguments: object) -> Any:  # noqa: ANN401  what the method gives
        return self._slot.ask(method, *arguments, patience_s=self._patience())

    def _patience(self) -> float:
        """Return the seconds that are left.

        Raises:
            TimeoutError: when none are.
        """
        left = self._start + self._timeout_s - time.perf_counter()
        if left <= 0:
            raise TimeoutError
        return left

    def _failed(self, code: str, message: str) -> Outcome:
        return self._ended("failed", code, message, Failed(self._key, code, message) if self._key else None)

    def _ended(
        self,
        status: Literal["done", "reused", "rejected", "failed", "died"],
        code: str = "",
        message: str = "",
        remember: Done | Failed | None = None,
    ) -> Outcome:
        seconds = time.perf_counter() - self._start
        return Outcome(self._job, status, code, message, remember, seconds, dict(self._stages))

    @contextmanager
    def _timed(self, kind: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._stages[kind] += time.perf_counter() - start

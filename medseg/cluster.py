"""A batch on the workers of a Dask cluster, which others started: `medseg predict --cluster tcp://host:8786`.

Dask carries the calls; who does which case is decided here, two cases to each worker at a time: it reads the one while
it computes the other. A worker that dies takes both with it; each is then tried alone on a worker, so that only a case
that does it again is to blame. Dask's own rule would suspect all in its queue. The model goes to each worker once.
Scans and output folder must be visible to all under one path; nothing but the calls and their outcomes goes over the
wire.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from medseg.case_work import CaseWork, Failed, Job
from medseg.engines import Choice
from medseg.errors import RunError
from medseg.lanes import IN_HAND
from medseg.one_case import DIED, Outcome
from medseg.prediction import Predictor

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often the workers are counted, at least: a dead one is noticed by then."""

PATIENCE_S = 30
"""For the scheduler to answer at all."""


def run_on_cluster(
    jobs: Sequence[Job], predictor: Predictor, address: str, *, timeout_s: float, stopped: Callable[[], bool]
) -> Generator[Outcome]:
    """Predict cases on the workers of a Dask cluster; otherwise as `medseg.lanes.run_cases`.

    Args:
        jobs: what is to be done.
        predictor: model and settings; the workers choose their devices, and all take one engine.
        address: of the scheduler.
        timeout_s: for each case.
        stopped: asked before each case whether to stop.

    Raises:
        RunError: RUN-CLUSTER when the scheduler cannot be reached or goes away, or no worker can work; what is
            recorded is valid.
    """
    try:
        import distributed

        from medseg.cluster_worker import Setup
    except ImportError as error:
        problem, advice = "Dask is not installed", "pip install 'medseg[dask]'."
        raise RunError("RUN-CLUSTER", address, problem, advice) from error
    name = f"medseg-{uuid.uuid4().hex}"
    with _lost(address), distributed.Client(address, timeout=PATIENCE_S, set_as_default=False) as client:
        client.register_plugin(Setup(predictor.model, predictor.config), name=name)
        try:
            yield from _Cluster(client, name, [_absolute(job) for job in jobs], predictor, timeout_s).run(stopped)
        finally:
            # After Ctrl-C too the workers let go of the model and end their processes, if they can still be told.
            with suppress(OSError, TimeoutError):
                if client.status == "running":
                    client.unregister_worker_plugin(name)


@contextmanager
def _lost(address: str) -> Iterator[None]:
    """Make what Dask says of a lost scheduler ours; its errors of connections are OSErrors."""
    try:
        yield
    except (OSError, TimeoutError) as error:
        problem = "the scheduler cannot be reached, or went away"
        advice = "What is recorded is valid; the same command goes on from there."
        raise RunError("RUN-CLUSTER", address, problem, advice) from error


def _absolute(job: Job) -> Job:
    """Workers have another current folder."""
    scans = tuple(
        replace(scan, path=scan.path.absolute(), files=tuple(file.absolute() for file in scan.files))
        for scan in job.case.scans
    )
    case = replace(job.case, scans=scans)
    return replace(job, case=case, output=job.output.absolute(), staging=job.staging.absolute())


class _Cluster:
    """Hands out cases: to each worker as many as it can have in hand."""

    def __init__(self, client: Any, name: str, jobs: Sequence[Job], predictor: Predictor, timeout_s: float) -> None:  # noqa: ANN401  of Dask
        self._client = client
        self._name = name
        self._todo = deque(jobs)
        self._predictor = predictor
        self._timeout_s = timeout_s
        self._running: dict[Any, tuple[Job, str]] = {}
        self._deaths: Counter[str] = Counter()
        self._unfit: dict[str, str] = {}

    def run(self, stopped: Callable[[], bool]) -> Iterator[Outcome]:
        """Yield each case as it ends."""
        try:
            while (self._todo and not stopped()) or self._running:
                workers = set(self._client.nthreads())
                self._check(workers)
                if not stopped():
                    self._hand_out(workers - self._unfit.keys())
                self._wait()
                yield from self._collect(workers)
        finally:
            self._client.cancel(list(self._running))

    def _check(self, workers: set[str]) -> None:
        """Refuse a cluster none of whose workers can work; one without workers may get some.

        Raises:
            RunError: RUN-CLUSTER.
        """
        if workers and not self._running and workers <= self._unfit.keys():
            reason = self._unfit[min(workers)]
            raise RunError("RUN-CLUSTER", min(workers), f"no worker can work: {reason}", "Mend the workers.")
        if not workers:
            log.info("the cluster has no worker yet")

    def _hand_out(self, workers: set[str]) -> None:
        """Give each worker cases; only one in all until the engine is settled on, which all are to take."""
        from medseg.cluster_worker import work  # an extra

        for worker in sorted(workers) * IN_HAND:
            if not self._todo or (self._predictor.choice is None and self._running):
                return
            if not self._fits(self._todo[0], worker):
                continue
            job = self._todo.popleft()
            call = (self._name, job, self._predictor.choice, self._timeout_s)
            future = self._client.submit(work, *call, workers=[worker], allow_other_workers=False, pure=False)
            self._running[future] = (job, worker)

    def _fits(self, job: Job, worker: str) -> bool:
        """Tell whether a worker can take a case now; one that a worker died of is alone with the next."""
        in_hand = [other.case.id for other, place in self._running.values() if place == worker]
        alone = any(self._deaths[case] for case in (job.case.id, *in_hand))
        return len(in_hand) < (1 if alone else IN_HAND)

    def _wait(self) -> None:
        until = time.monotonic() + LOOK_S
        while time.monotonic() < until and not any(future.done() for future in self._running):
            time.sleep(0.02)

    def _collect(self, workers: set[str]) -> Iterator[Outcome]:
        """Yield what came back, and put back the cases of workers that are gone."""
        for future, (job, worker) in list(self._running.items()):
            if not future.done() and worker in workers:
                continue
            del self._running[future]
            if future.status == "finished":
                outcome, choice = self._result(future, job)
                self._predictor.choice = self._predictor.choice or choice  # to hand on: it need not be on this machine
            elif future.status == "error" and type(future.exception()).__name__ != "KilledWorker":
                self._leave_out(worker, job, future.exception())
                continue
            else:
                future.cancel()
                outcome = Outcome(job, "died")
            if outcome.status != "died":
                yield outcome
            else:
                yield from self._died(job)

    def _result(self, future: Any, job: Job) -> tuple[Outcome, Choice | None]:  # noqa: ANN401  of Dask
        """Fetch what a case came to; its worker may die even now, and Dask would wait for it."""
        try:
            outcome, choice = future.result(timeout=PATIENCE_S)
        except TimeoutError:
            return Outcome(job, "died"), None
        return outcome, choice

    def _leave_out(self, worker: str, job: Job, error: BaseException) -> None:
        """Give no more cases to a worker that cannot work at all, and its case to another."""
        self._unfit[worker] = str(error) or type(error).__name__
        log.warning("%s gets no more cases: %s", worker, self._unfit[worker])
        self._todo.appendleft(job)

    def _died(self, job: Job) -> Iterator[Outcome]:
        """Put a case back whose worker died; the second time it is the case's fault."""
        self._deaths[job.case.id] += 1
        if self._deaths[job.case.id] == 1:
            log.warning("case %s: its worker died; it goes to another", job.case.id)
            self._todo.append(job)
        else:
            key = CaseWork(job).key(self._predictor.identity)
            yield Outcome(job, "failed", "RUN-DIED", DIED, Failed(key, "RUN-DIED", DIED))

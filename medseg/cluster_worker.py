"""What runs inside a worker of a Dask cluster: the model, sent once, and the cases.

A worker has two cases in hand, as two lanes of a local run (`medseg.lanes`): while the network works on one, the other
is read, prepared or written, by a process of its own. They share `ROOM_BYTES`; a large one is alone.
"""

from __future__ import annotations

import ctypes
import getpass
import logging
import os
import queue
import sys
import tempfile
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from distributed import WorkerPlugin, get_worker, secede

from medseg.case_work import Job
from medseg.config.settings import PredictConfig
from medseg.engines import Choice
from medseg.errors import RunError
from medseg.io.lock import exclusive
from medseg.io.workers import Worker
from medseg.lanes import IN_HAND, Room, SharedNetwork, loaded
from medseg.models.model_folder import Model
from medseg.one_case import OneCase, Outcome
from medseg.prediction import Predictor

log = logging.getLogger(__name__)


class Setup(WorkerPlugin):  # type: ignore[misc]  # Dask has no types here
    """The model on a worker; Dask sends it to those that join later, too.

    Args:
        model: what to predict with.
        config: settings of prediction.
    """

    def __init__(self, model: Model, config: PredictConfig) -> None:
        self._model = model
        self._config = config

    def setup(self, worker: object) -> None:
        """Make what stays here; the network is started by the first case, not in Dask's own thread."""
        keep_freed_memory()
        self._stack = ExitStack()
        self._room = Room()
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for _ in range(IN_HAND):
            slot = Worker(apart=True)
            self._stack.callback(slot.close)
            self._free.put(slot)
        self._starting = threading.Lock()
        self._network: SharedNetwork | None = None

    def teardown(self, worker: object) -> None:
        """End the network and the processes that read and write, and let go of the GPU."""
        self._stack.close()

    def predict(self, job: Job, choice: Choice | None, timeout_s: float) -> tuple[Outcome, Choice | None]:
        """Predict one case, with the engine that was chosen; the first case of a cluster chooses it.

        Raises:
            RunError: RUN-CLUSTER when this worker lacks what it takes.
        """
        _check_sight(job)
        network = self._started(choice)
        slot = self._free.get()
        self._room.take(job)
        try:
            case = OneCase(job, loaded(slot), network.predictor, network, timeout_s)
            if network.predictor.choice is None:
                case.settle()
            return case.run(), network.predictor.choice
        finally:
            slot.release()
            self._room.give(job)
            self._free.put(slot)

    def _started(self, choice: Choice | None) -> SharedNetwork:
        """Return the network, started by the first case.

        Raises:
            RunError: RUN-CLUSTER when the engine that was chosen is not here.
        """
        with self._starting:
            if self._network is None:
                if self._config.device != "cpu":
                    self._stack.enter_context(pinned(torch.cuda.device_count()))
                self._network = SharedNetwork(Predictor(self._model, self._config))
                self._stack.callback(self._network.close)
            predictor = self._network.predictor
            if choice is not None and predictor.choice != choice and not predictor.adopt(choice):
                raise RunError("RUN-CLUSTER", "", f"{choice.engine}, which others compute by, is not on this worker")
            return self._network


def work(name: str, job: Job, choice: Choice | None, timeout_s: float) -> tuple[Outcome, Choice | None]:
    """Predict one case: what Dask is asked for; `name` is that of the plugin that holds the model."""
    plugin: Setup = get_worker().plugins[name]
    secede()  # a worker of one thread may then begin the next
    return plugin.predict(job, choice, timeout_s)


def keep_freed_memory() -> None:
    """Let malloc use again what was freed, up to 32 MiB a piece, as it learns to in any other process.

    Dask's nanny sets MALLOC_TRIM_THRESHOLD_, which ends that learning: each map of a network is then taken from the
    system anew and given back, which takes 1.4 times the processor time.

    Source: mallopt(3), the note on the dynamic mmap threshold.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # of another C library
            malloc = ctypes.CDLL(None)
            malloc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD; and M_TRIM_THRESHOLD, which glibc keeps at twice that
            malloc.mallopt(-1, 1 << 26)


def _check_sight(job: Job) -> None:
    """Tell a worker without the folders from a scan that is unfit.

    Raises:
        RunError: RUN-CLUSTER.
    """
    wanted = [job.staging, *(scan.files[0] for scan in job.case.scans)]
    unseen = [path for path in wanted if not path.exists()]
    if unseen:
        problem = f"does not see {unseen[0]}; scans and output folder must be under one path everywhere"
        raise RunError("RUN-CLUSTER", "", problem)


def pinned(devices: int, folder: Path | None = None) -> ExitStack:
    """Take the first of several GPUs that no other worker of this machine has, until the stack is closed.

    Args:
        devices: how many this process sees; one alone was chosen by whoever started it.
        folder: of the locks; one for each user by default.
    """
    stack = ExitStack()
    if devices > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
        locks = folder or Path(tempfile.gettempdir()) / f"medseg-gpus-{getpass.getuser()}"
        for device in range(devices):
            try:
                stack.enter_context(exclusive(locks, str(device)))
            except RunError:
                continue
            os.environ["CUDA_VISIBLE_DEVICES"] = str(device)  # read when CUDA starts, which is later
            log.info("this worker has GPU %d", device)
            break
    return stack

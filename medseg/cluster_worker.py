"""What runs inside a worker of a Dask cluster: the model, sent once, and the cases, one at a time."""

from __future__ import annotations

import getpass
import logging
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch
from distributed import WorkerPlugin, get_worker

from medseg.case_work import Job
from medseg.config.settings import PredictConfig
from medseg.engines import Choice
from medseg.errors import RunError
from medseg.io.lock import exclusive
from medseg.io.workers import Worker
from medseg.lanes import at_once
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
        self._stack = ExitStack()
        self._slot = Worker(apart=True)
        self._stack.callback(self._slot.close)
        self._predictor: Predictor | None = None

    def teardown(self, worker: object) -> None:
        """End the process that reads and writes, and let go of the GPU."""
        self._stack.close()

    def predict(self, job: Job, choice: Choice | None, timeout_s: float) -> tuple[Outcome, Choice | None]:
        """Predict one case, with the engine that was chosen; the first case of a cluster chooses it.

        Raises:
            RunError: RUN-CLUSTER when this worker lacks what it takes.
        """
        _check_sight(job)
        if self._predictor is None:
            if self._config.device != "cpu":
                self._stack.enter_context(pinned(torch.cuda.device_count()))
            self._predictor = Predictor(self._model, self._config)
        case = OneCase(job, self._slot, self._predictor, at_once(self._predictor), timeout_s)
        if choice is not None and self._predictor.choice != choice and not self._predictor.adopt(choice):
            raise RunError("RUN-CLUSTER", "", f"{choice.engine}, which others compute by, is not on this worker")
        if self._predictor.choice is None:
            case.settle()
        return case.run(), self._predictor.choice


def work(name: str, job: Job, choice: Choice | None, timeout_s: float) -> tuple[Outcome, Choice | None]:
    """Predict one case: what Dask is asked for; `name` is that of the plugin that holds the model."""
    plugin: Setup = get_worker().plugins[name]
    return plugin.predict(job, choice, timeout_s)


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

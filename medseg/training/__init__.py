"""Training: the run, its folds, the loop, the losses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medseg.config import Config
from medseg.devices import choose_device
from medseg.errors import UsageError
from medseg.progress import Watch, silent
from medseg.training.folds import FoldsResult, train_folds
from medseg.training.history import Epoch
from medseg.training.run import TrainResult, train_once
from medseg.training.team import joined, place_of
from medseg.training.trackers import Tracker

__all__ = ["Epoch", "FoldsResult", "Tracker", "TrainResult", "train"]


def train(
    config: Config,
    output: Path,
    *,
    resume: bool = False,
    fold: int | None = None,
    watch: Watch = silent,
    trackers: Sequence[Tracker] = (),
) -> TrainResult | FoldsResult:
    """Train a network, or one for each fold, as the configuration says.

    Started several times by torchrun or srun, the processes train together; the first one alone tells and writes.

    Args:
        config: as `medseg.config.load` gives it.
        output: the run folder.
        resume: go on with the run that is there.
        fold: train this one only, from 1; another process or machine may train the others.
        watch: is told of each step.
        trackers: are told of each epoch; with folds, once from start to finish for each.

    Raises:
        UsageError: a wrong configuration or path; USAGE-OPTION for a fold that there is not; MODEL-LOSS for a loss
            that cannot learn.
        InputError: DATA-EMPTY when no case can be used.
        RunError: RUN-RESUME when the folder holds a run and `resume` is off, or one of another configuration; RUN-NAN,
            RUN-MEMORY, RUN-WRITE, RUN-DEVICE, RUN-BUSY, RUN-BUDGET; RUN-LAUNCH when processes do not find each other.
    """
    if config.folds is None and fold is not None:
        raise UsageError("USAGE-OPTION", "fold", "the configuration has no folds", "Set folds, such as folds=5.")
    with joined(place_of(), choose_device(config.train.device)) as team:
        if not team.first:
            watch, trackers = silent, ()
        if config.folds is not None:
            return train_folds(config, output, resume=resume, fold=fold, watch=watch, trackers=trackers, team=team)
        return train_once(config, output, resume=resume, watch=watch, trackers=trackers, team=team)

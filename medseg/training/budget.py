"""The budget: a time for the whole training, turned into a fixed number of steps by rehearsing on this machine.

The rehearsal runs the loop itself, for a few steps on the real data, then a part of a validation and the final scoring
of a case or a few. It learns nothing that is kept, and the run that follows is the same as one that was told the
numbers.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from medseg.case import Case
from medseg.config import TrainConfig
from medseg.config.duration import seconds, written
from medseg.errors import RunError
from medseg.io.atomic import PARTIAL_PREFIX
from medseg.models import Network
from medseg.training.ahead import Batch, Data
from medseg.training.data import VolumeDice
from medseg.training.loop import LoopOptions, fit

VALIDATION_SHARE = 0.08
"""The most of the time that validations and checkpoints may take, unless there are but three; with more the network
learns too little."""

REHEARSAL_SHARE = 0.0125
"""Of the budget, for each thing that is timed; they are three."""

LONGEST_REHEARSAL_S = 20.0
"""For each thing: more tells nothing new."""

CHEAP = 0.05
"""Share of the budget up to which the final scoring is estimated from one case: were it to take twice as long,
what is kept back would make up for it."""

MOST_EPOCHS = 25
"""Validations in a run: enough to see the curve and to catch its best point."""

SHORTEST_EPOCH_S = 10.0
"""Shorter epochs flicker by on the screen, and a checkpoint in seconds saves nobody any work."""

LEAST_STEPS = 50
"""With fewer steps no network has learned anything: the learning rate alone takes a twentieth of them to rise."""

SPARE = 0.05
"""Share of the budget kept back, since it is to be an upper bound: start of threads, pictures, a cold disk, and a
machine that is slower in the long run than in the seconds of a rehearsal."""

MOST_SCORED = 8
"""Cases scored in a rehearsal: enough to tell what a case costs from what a report costs."""

WARM_UP = 4
"""Steps that are not timed: the first ones allocate memory and choose kernels."""


@dataclass(frozen=True)
class Pace:
    """What things take on this machine, in seconds.

    Attributes:
        step_s: a training step, its data included.
        close_s: the end of an epoch: history and checkpoint.
        validation_s: a validation of all held-out cases.
        scoring_s: the final prediction and scoring of all held-out cases.
    """

    step_s: float
    close_s: float
    validation_s: float
    scoring_s: float

    def __str__(self) -> str:
        """For people."""
        figures = ((self.step_s, "a step"), (self.validation_s, "a validation"), (self.scoring_s, "the final scoring"))
        return ", ".join(f"{figure:.2g} s for {what}" for figure, what in figures)


Score = Callable[[Network, Sequence[Case], Path], None]
"""Predicts and scores some cases with a network, as at the end of a run, into a folder."""


def within_budget(budget: str, left_s: float, pace: Pace, config: TrainConfig) -> TrainConfig:
    """Fix the epochs and the steps of an epoch so that the run ends within its budget.

    What the settings fix already stays: with `epochs` given, the steps of an epoch are fitted, and the other way about.

    Args:
        budget: as in the configuration, for messages.
        left_s: of it, after the preparation.
        pace: of this machine.
        config: settings of the loop.

    Raises:
        RunError: RUN-BUDGET when there is no time for `LEAST_STEPS`.
    """
    left = left_s - pace.scoring_s - SPARE * seconds(budget)
    round_s = pace.close_s + pace.validation_s / config.validate_every
    epochs = config.epochs or _epochs(left, round_s, pace.step_s, config.steps_per_epoch)
    steps = config.steps_per_epoch or int((left / epochs - round_s) / pace.step_s)
    needed = max(LEAST_STEPS * pace.step_s + round_s, epochs * (max(1, steps) * pace.step_s + round_s))
    if steps < 1 or epochs * steps < LEAST_STEPS or needed > left:
        problem = (
            f"{budget} leaves {max(0, left):.0f} s to train, after reading the scans and without the "
            f"{pace.scoring_s:.0f} s that the final scoring takes; a step takes {pace.step_s:.2g} s, a validation "
            f"{pace.validation_s:.2g} s, and fewer than {LEAST_STEPS} steps teach a network nothing"
        )
        least = written(1.1 * (seconds(budget) + (needed - left) / (1 - SPARE)))
        raise RunError("RUN-BUDGET", "budget", problem, f"Give budget={least} or more, or a smaller network.")
    return config.model_copy(update={"epochs": epochs, "steps_per_epoch": steps})


def _epochs(left: float, round_s: float, step_s: float, steps: int | None) -> int:
    """Return how often to validate: often enough to be seen, seldom enough to leave the time to training."""
    if steps is not None:
        return max(1, int(left / (steps * step_s + round_s)))
    affordable = VALIDATION_SHARE * left / max(round_s, 1e-9)
    most = min(MOST_EPOCHS, int(affordable), int(left / SHORTEST_EPOCH_S))
    return max(most, 3 if 6 * round_s < left else 1)  # an epoch is no more than a third, unless validating is as long


def rehearse(
    network: Network,
    data: Data,
    validate: VolumeDice | None,
    config: TrainConfig,
    options: LoopOptions,
    score: Score,
    held_out: Sequence[Case],
    budget: str,
) -> Pace:
    """Time the parts of a run.

    Args:
        network: as for `fit`; its weights are spoilt.
        data: as for `fit`.
        validate: as for `fit`.
        config: settings of the loop.
        options: where the run will go; a folder in it is used and removed.
        score: predicts and scores.
        held_out: the cases that are scored at the end.
        budget: as in the configuration: the rehearsal usually takes a twentieth of it at the most.

    Raises:
        RunError: as `fit`.
    """
    part_s = min(LONGEST_REHEARSAL_S, REHEARSAL_SHARE * seconds(budget))
    slow = {"epochs": 2, "schedule": "constant", "learning_rate": config.learning_rate / 10, "patience": None}
    with tempfile.TemporaryDirectory(prefix=PARTIAL_PREFIX, dir=options.folder) as name:
        watched = _Watched(data, options, part_s)
        options = replace(options, folder=Path(name), resume=False, watch=watched)
        fit(network, watched, None, config.model_copy(update=slow), options)
        validation_s = 0.0 if validate is None else validate.seconds(network.eval(), part_s)
        cheap_s = CHEAP * seconds(budget)
        scoring_s = _scoring(network, score, held_out, Path(name), part_s, cheap_s) if options.team.first else 0.0
    return Pace(watched.step_s, watched.close_s, validation_s, scoring_s)


def _scoring(
    network: Network, score: Score, cases: Sequence[Case], folder: Path, part_s: float, cheap_s: float
) -> float:
    """Estimate the time of the final scoring from one case, and where that comes to much, from a few.

    A report costs something by itself. What is scored twice counts by the shorter time: what holds the machine up just
    then would count for all cases.
    """

    def took(number: int) -> float:
        place = Path(tempfile.mkdtemp(dir=folder))  # a new one each time: finished masks would be used again
        started = time.perf_counter()
        score(network, cases[:number], place)
        return time.perf_counter() - started

    if not cases:
        return 0.0
    sizes = [max(1, case.voxels) for case in cases]
    number = max(sum(sizes) / sizes[0], len(cases) / 2)  # of cases like the first; small ones cost something, too
    first = took(1)  # and loads what the others find loaded
    one = min(first, took(1)) if first * number > cheap_s else first
    few = min(len(cases), MOST_SCORED, 1 + int(part_s / one))
    if few == 1 or one * number <= cheap_s:
        return one * number
    several = min(took(few), took(few))
    return one + max(0.0, several - one) * (len(cases) - 1) / (few - 1)


class _Watched:
    """Gives the loop its data, and looks at the clock whenever the loop tells of itself."""

    def __init__(self, data: Data, options: LoopOptions, part_s: float) -> None:
        self._data, self._device, self._team, self._part_s = data, options.device, options.team, part_s
        self._ticks: list[float] = []
        self._closed: list[float] = []
        self.step_s = 0.0
        self.close_s = 0.0

    def steps(self, epoch: int) -> int:
        """A few steps to warm up, then as many as go into the time for it."""
        if epoch == 0 or len(self._ticks) < WARM_UP:
            return WARM_UP
        pace = (self._ticks[-1] - self._ticks[1]) / (WARM_UP - 2)
        return self._team.share(lambda: min(200, max(3, int(self._part_s / pace))))

    def batch(self, epoch: int, step: int) -> Batch:
        """A real batch; a small data set goes round."""
        rounds, place = divmod(step, self._data.steps(epoch))
        return self._data.batch(2 * rounds + epoch, place)

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Note the time of a step, or of the end of an epoch."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        if stage != "train":
            self._ticks.append(time.perf_counter())
            return
        self._closed.append(time.perf_counter())
        if len(self._closed) == 2:
            self.step_s = (self._ticks[-1] - self._closed[0]) / (len(self._ticks) - WARM_UP)
            self.close_s = self._closed[1] - self._ticks[-1]

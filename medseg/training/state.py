"""All that changes while a network trains: weights, optimiser, their average, history, random numbers."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg.config.settings import TrainConfig
from medseg.errors import RunError, first_line
from medseg.models import Network
from medseg.training.checkpoint import FORMAT, State
from medseg.training.history import Epoch
from medseg.training.muon import Muon
from medseg.training.team import ALONE, Team
from medseg.training.threads import ONE, Threads


class TrainingState:
    """All that changes while a network trains, and how it goes to a checkpoint and back.

    Attributes:
        epoch: whole ones until now.
        step: steps until now.
        done: steps of the epoch under way.
        loss: sum over those.
    """

    def __init__(self, network: Network, config: TrainConfig, total_steps: int, threads: Threads = ONE) -> None:
        self.network = network
        self.config = config
        self.total_steps = total_steps
        self.optimizer = build_optimizer(network, config, threads)
        self.average = Average(network, config.average) if config.average is not None else None
        self.epoch = 0
        self.step = 0
        self.done = 0
        self.loss = torch.zeros((), device=next(network.parameters()).device)
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}
        self.best_epoch = 0
        self.best_dice = math.nan

    @property
    def averaged(self) -> Network:
        """The network that is validated and kept, in evaluation mode."""
        return (self.average.network if self.average else self.network).eval()

    def require_finite(self) -> None:
        """Look at the loss, and at every weight: the last step can break them after its loss was fine.

        Raises:
            RunError: RUN-NAN.
        """
        mean = float(self.loss) / max(1, self.done)
        if math.isfinite(mean) and all(bool(torch.isfinite(part).all()) for part in self.network.state_dict().values()):
            return
        problem = "the weights became NaN" if math.isfinite(mean) else f"the loss became {mean}"
        advice = "Start another run with -o and a lower train.learning_rate, or with train.precision=fp32."
        raise RunError("RUN-NAN", f"epoch {self.epoch + 1}", problem, advice)

    @property
    def out_of_patience(self) -> bool:
        """Whether the last `patience` validations brought nothing better."""
        if self.config.patience is None or not self.best_epoch:
            return False
        later = [row for row in self.history[self.best_epoch :] if not math.isnan(row.dice)]
        return len(later) >= self.config.patience

    def set_learning_rate(self) -> None:
        """Set the rate of the coming step."""
        rate = learning_rate(self.config, self.step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def after_step(self, loss: Tensor) -> None:
        """Count a step and follow the weights."""
        self.step += 1
        self.done += 1
        self.loss += loss
        if self.average:
            self.average.update(self.network, self.step)

    def close_epoch(self, dice: float, seconds: float, waiting: float) -> None:
        """Count an epoch and keep its weights when they are the best."""
        loss = float(self.loss) / self.done
        self.epoch, self.done = self.epoch + 1, 0
        self.loss.zero_()
        rate = self.optimizer.param_groups[0]["lr"]
        better = math.isnan(dice) and math.isnan(self.best_dice)
        better = better or (not math.isnan(dice) and (math.isnan(self.best_dice) or dice > self.best_dice))
        if better:
            self.best = {name: value.detach().cpu().clone() for name, value in self.averaged.state_dict().items()}
            self.best_epoch, self.best_dice = self.epoch, dice
        self.history.append(Epoch(self.epoch, loss, dice, rate, seconds, better, waiting))

    def to_dict(self, team: Team = ALONE) -> State:
        """Tensors and plain types; the random state is that of each process."""
        return {
            "format": FORMAT,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.network.state_dict() if self.average else None,
            "epoch": self.epoch,
            "step": self.step,
            "done": self.done,
            "loss": self.loss,
            "history": [row.to_dict() for row in self.history],
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_dice": self.best_dice,
            "random": team.gather(random_state()),
        }

    def restore(self, state: State, team: Team = ALONE) -> None:
        """Take up a state; with more processes than it was made by, the new ones go on with fresh random numbers.

        Raises:
            RunError: RUN-RESUME when it is of another network.
        """
        try:
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average:
                self.average.network.load_state_dict(state["average"])
            self.history = [Epoch(**row) for row in state["history"]]
            self.epoch, self.step, self.done = state["epoch"], state["step"], state["done"]
            self.loss.copy_(state["loss"])
            self.best, self.best_epoch, self.best_dice = state["best"], state["best_epoch"], state["best_dice"]
            if team.rank < len(state["random"]):
                cpu, gpu = state["random"][team.rank]
                torch.set_rng_state(cpu)
                if len(gpu) and torch.cuda.is_available():
                    torch.cuda.set_rng_state(gpu)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            problem = f"does not fit this run: {first_line(error)}"
            raise RunError("RUN-RESUME", "checkpoint", problem, "Start another run with -o.") from error


def random_state() -> tuple[Tensor, Tensor]:
    """Return the state of this process's random numbers: on the CPU, and on its GPU (empty without one)."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.empty(0)


class Average:
    """A moving average of a network's weights, which generalises better than the last step's (Polyak 1992)."""

    def __init__(self, network: Network, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: Network, step: int) -> None:
        """Move towards the network; faster in the first steps, when the average still holds the random start."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for mean, value in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if mean.dtype.is_floating_point:
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)


def build_optimizer(network: Network, config: TrainConfig, threads: Threads) -> torch.optim.Optimizer | Muon:
    """Return the optimiser of that name."""
    weights = network.parameters()
    options: dict[str, Any] = {"lr": config.learning_rate, "fused": True}  # half the time of a loop over the weights
    match config.optimizer:
        case "muon" | None:
            return Muon(network, config.learning_rate, config.weight_decay, threads)
        case "adam":
            return torch.optim.Adam(weights, **options)
        case "adamw":
            return torch.optim.AdamW(weights, **options, weight_decay=config.weight_decay)
        case "sgd":
            return torch.optim.SGD(weights, **options, momentum=0.99, nesterov=True, weight_decay=config.weight_decay)


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Return the learning rate of a step.

    The falling schedules rise linearly over the first twentieth of the steps: Adam's first estimates of the second
    moment are poor, and a full step on them can throw a network far off.
    """
    if config.schedule == "constant":
        return config.learning_rate
    rise = max(1, total // 20)
    if step < rise:
        return config.learning_rate * (step + 1) / rise
    left = 1 - (step - rise) / max(1, total - rise)
    if config.schedule == "polynomial":
        return float(config.learning_rate * left**0.9)  # Chen 2018's exponent, which nnU-Net also uses
    return config.learning_rate * 0.5 * (1 - math.cos(math.pi * left))


def seed_everything(seed: int, deterministic: bool) -> None:
    """Fix the random numbers of this process and, if asked for, the order of its sums."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # Else every new tensor is first filled with NaN, to show code that reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # not in the stub
    torch.backends.cudnn.benchmark = not deterministic

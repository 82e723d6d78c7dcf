"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from medseg.config.settings import TrainConfig
from medseg.devices import choose_layout, is_out_of_memory
from medseg.errors import ConfigError, RunError, first_line
from medseg.models import Network
from medseg.progress import Watch, silent
from medseg.stopping import stopping
from medseg.training.ahead import Ahead, Data, threads_for
from medseg.training.checkpoint import FORMAT, State, load_last, save_checkpoint
from medseg.training.history import METRICS, Epoch, line, write_history
from medseg.training.losses import build_loss, supervised_loss
from medseg.training.team import ALONE, Team

CHECKPOINT = Path("checkpoints", "last.pt")
"""In a run folder: the state after the last whole epoch, or within a long one."""

SAVE_EVERY_S = 300.0
"""Of an epoch that takes longer no more is lost; what writing takes is nothing beside it."""

ASK_EVERY = 10
"""Steps after which several processes agree whether to save and to stop: each time costs a message."""


class Validation(Protocol):
    """How good a network is, by whole volume."""

    def __call__(self, network: Network) -> float:
        """Return the mean Dice over validation cases and labels, 0 to 1."""


class AfterEpoch(Protocol):
    """What is done after each epoch; it changes nothing that is learned."""

    def __call__(self, network: Network, history: Sequence[Epoch]) -> None:
        """Look at the network that was validated, and at all epochs until now."""


def nothing(network: Network, history: Sequence[Epoch]) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Fitted:
    """What training leaves behind.

    Attributes:
        weights: of the best epoch (of the last one without validation cases), averaged if the settings say so.
        epochs: one row for each.
        best_epoch: its number, from 1.
        best_dice: its validation Dice; NaN without validation cases.
    """

    weights: dict[str, Tensor]
    epochs: list[Epoch]
    best_epoch: int
    best_dice: float


@dataclass(frozen=True)
class LoopOptions:
    """Where and how a loop runs; none of it changes what is learned, but `dtype`.

    Attributes:
        folder: gets `checkpoints/last.pt` and `metrics.csv` after each epoch, and checkpoints within long ones.
        device: to train on.
        dtype: bfloat16 for mixed precision, float32 otherwise.
        resume: go on from `checkpoints/last.pt` when it is there.
        watch: is told of each step.
        after_epoch: is shown the network and the history, when the checkpoint is safe on disk.
        team: that trains together; its first process alone writes.
    """

    folder: Path
    device: torch.device
    dtype: torch.dtype = torch.float32
    resume: bool = False
    watch: Watch = silent
    after_epoch: AfterEpoch = nothing
    team: Team = ALONE


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has a state that it can go on from."""
    return (folder / CHECKPOINT).is_file()


def fit(network: Network, data: Data, validate: Validation | None, config: TrainConfig, options: LoopOptions) -> Fitted:
    """Train a network.

    Asked to stop, by Ctrl-C or by a cluster's warning signal, it writes a checkpoint after the step in hand.

    Args:
        network: on the CPU, initialised.
        data: the training batches.
        validate: mean Dice of a network; None when no case is held out.
        config: settings of the loop.
        options: where and how.

    Raises:
        RunError: RUN-NAN when the loss is no number (the last checkpoint stays), RUN-MEMORY, RUN-WRITE, RUN-RESUME.
        KeyboardInterrupt: when asked to stop.
    """
    with stopping("the step in hand", at_once=False) as asked:
        return _fit(network, data, validate, config, options, asked)


def _fit(
    network: Network,
    data: Data,
    validate: Validation | None,
    config: TrainConfig,
    options: LoopOptions,
    asked: Callable[[], bool],
) -> Fitted:
    if config.epochs is None:
        raise ConfigError("CONFIG-VALUE", "train.epochs", "is not set", "Give a number, or a budget.")
    epochs, folder, device, watch = config.epochs, options.folder, options.device, options.watch
    mixed, team = options.dtype == torch.bfloat16, options.team
    network = team.normalised_together(network.to(device), device)
    layout = choose_layout(network, device)
    network = network.to(memory_format=layout)  # type: ignore[call-overload]  # not in the stub
    state = TrainingState(network, config, total_steps=sum(data.steps(epoch) for epoch in range(epochs)))
    checkpoint = folder / CHECKPOINT
    if options.resume and checkpoint.is_file():
        state.restore(load_last(checkpoint), team)
        if state.epoch < epochs:
            within = f" and {state.done} steps of the next" if state.done else ""
            watch("train", state.epoch, epochs, f"goes on after {state.epoch} of {epochs} epochs{within}")
    elif options.resume and (folder / METRICS).is_file():
        watch("train", 0, epochs, f"there is no {CHECKPOINT}: it begins anew, and ends as it would have")
    logits_of = team.together(network)
    loss_of = build_loss(config.loss, network.out_channels, team.total)
    saved = time.perf_counter()

    def save() -> None:
        nonlocal saved
        state.require_finite()
        content = state.to_dict(team)
        if team.first:
            write_history(folder, state.history)  # first: what a kill between the two leaves too much is written anew
            save_checkpoint(checkpoint, content)
        saved = time.perf_counter()

    while state.epoch < epochs and not state.out_of_patience:
        started = time.perf_counter()
        steps = data.steps(state.epoch)
        network.train()
        batches = Ahead(data, state.epoch, threads_for(device, team.count), device.type == "cuda", state.done)
        for step, (images, labels) in enumerate(batches, start=state.done):
            images = images.to(device, memory_format=layout, non_blocking=True)
            labels = labels.to(device, non_blocking=True)
            state.set_learning_rate()
            with _memory_explained(images, device):
                with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                    loss = supervised_loss(loss_of, logits_of(images), labels)
                state.optimizer.zero_grad(set_to_none=True)
                (team.count * loss).backward()  # each has its part of the gradient, and the mean is taken of them
                if config.clip_gradient is not None:
                    nn.utils.clip_grad_norm_(network.parameters(), config.clip_gradient)
                state.optimizer.step()
            state.after_step(loss.detach())
            watch(f"epoch {state.epoch + 1}/{epochs}", step + 1, steps)
            if (team.count == 1 or state.step % ASK_EVERY == 0) and team.any(
                asked() or time.perf_counter() - saved > SAVE_EVERY_S
            ):
                save()
                if team.any(asked()):
                    raise KeyboardInterrupt
        state.require_finite()  # waits for a GPU to end its work
        waiting = batches.waited_s / (time.perf_counter() - started)
        last = state.epoch + 1 == epochs
        dice = math.nan
        if validate is not None and (last or (state.epoch + 1) % config.validate_every == 0):
            team.alike(state.averaged)
            dice = validate(state.averaged)
        state.close_epoch(dice, time.perf_counter() - started, waiting)
        save()
        watch("train", state.epoch, epochs, line(state.history, epochs))
        options.after_epoch(state.averaged, state.history)
        if team.any(asked()):
            raise KeyboardInterrupt
    return Fitted(state.best, state.history, state.best_epoch, state.best_dice)


class _memory_explained:  # noqa: N801  a context manager, read as a verb
    """Turn running out of memory into a message with the numbers and the setting that fits."""

    def __init__(self, images: Tensor, device: torch.device) -> None:
        self.images, self.device = images, device

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Explain."""
        if is_out_of_memory(error):
            b, c, h, w = self.images.shape
            problem = f"a batch of {b} slices of {c} x {h} x {w} does not fit on {self.device}"
            smaller = f"train.batch_size={b // 2}, or " if b > 1 else ""
            advice = f"Start another run with -o and {smaller}a smaller train.patch."
            raise RunError("RUN-MEMORY", "train", problem, advice) from error


class TrainingState:
    """All that changes while a network trains, and how it goes to a checkpoint and back.

    Attributes:
        epoch: whole ones until now.
        step: steps until now.
        done: steps of the epoch under way.
        loss: sum over those.
    """

    def __init__(self, network: Network, config: TrainConfig, total_steps: int) -> None:
        self.network = network
        self.config = config
        self.total_steps = total_steps
        self.optimizer = build_optimizer(network, config)
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
        import copy

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


def build_optimizer(network: Network, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser of that name."""
    weights = network.parameters()
    options: dict[str, Any] = {"lr": config.learning_rate, "fused": True}  # half the time of a loop over the weights
    match config.optimizer:
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
    torch.backends.cudnn.benchmark = not deterministic

"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from medseg.config.settings import TrainConfig
from medseg.devices import choose_layout, is_out_of_memory
from medseg.errors import ConfigError, RunError
from medseg.models import Network
from medseg.progress import Watch, silent
from medseg.stopping import stopping
from medseg.training.ahead import Ahead, Data, threads_for
from medseg.training.checkpoint import load_last, save_checkpoint
from medseg.training.gradients import gradients
from medseg.training.history import METRICS, Epoch, line, write_history
from medseg.training.losses import build_loss
from medseg.training.state import TrainingState
from medseg.training.team import ALONE, Team
from medseg.training.threads import Threads, side_by_side

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
    with (
        stopping("the step in hand", at_once=False) as asked,
        side_by_side(config.batch_size or 1, options.device, options.team) as threads,
    ):
        return _fit(network, data, validate, config, options, asked, threads)


def _fit(
    network: Network,
    data: Data,
    validate: Validation | None,
    config: TrainConfig,
    options: LoopOptions,
    asked: Callable[[], bool],
    threads: Threads,
) -> Fitted:
    if config.epochs is None:
        raise ConfigError("CONFIG-VALUE", "train.epochs", "is not set", "Give a number, or a budget.")
    epochs, folder, device, watch = config.epochs, options.folder, options.device, options.watch
    mixed, team = options.dtype == torch.bfloat16, options.team
    network = team.normalised_together(network.to(device), device)
    layout = choose_layout(network, device)
    network = network.to(memory_format=layout)  # type: ignore[call-overload]  # not in the stub
    state = TrainingState(network, config, sum(data.steps(epoch) for epoch in range(epochs)), threads)
    checkpoint = folder / CHECKPOINT
    if options.resume and checkpoint.is_file():
        state.restore(load_last(checkpoint), team)
        if state.epoch < epochs:
            within = f" and {state.done} steps of the next" if state.done else ""
            watch("train", state.epoch, epochs, f"goes on after {state.epoch} of {epochs} epochs{within}")
    elif options.resume and (folder / METRICS).is_file():
        watch("train", 0, epochs, f"there is no {CHECKPOINT}: it begins anew, and ends as it would have")
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

    compute = gradients(network, loss_of, threads, team, mixed)
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
                loss = compute(images, labels)
                if config.clip_gradient is not None:
                    nn.utils.clip_grad_norm_(network.parameters(), config.clip_gradient)
                state.optimizer.step()
            state.after_step(loss)
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

"""How coarse the slices are: where a budget has room for too few steps on fine ones, coarser ones teach more."""

from __future__ import annotations

import copy
import math
import time

import torch

from medseg.config import Config
from medseg.config.duration import seconds
from medseg.devices import choose_layout, is_out_of_memory
from medseg.fingerprint import Fingerprint
from medseg.grid import axis_of
from medseg.models import Network
from medseg.preparation import Preparation
from medseg.training.gradients import gradients
from medseg.training.losses import build_loss
from medseg.training.state import build_optimizer
from medseg.training.team import ALONE, place_of
from medseg.training.threads import side_by_side

ENOUGH_STEPS = 500
"""With 200, coarser slices scored higher in equal time, from 400 on no longer clearly (docs/benchmarks.md, "Coarser
slices for short budgets")."""

COARSER = (1.25, 1.5)
"""Times the cases' median spacing. At twice of it a network soon stopped learning, however many steps there were."""

LEAST_CHORD = 8
"""Pixels that a label's runs keep, in the mean of a case and in nine of ten cases: outlines brought to such pixels and
back have a Dice of 0.97 with themselves, 0.96 in the worst case (the same place)."""

TRAINING_SHARE = 0.8
"""Of a budget: the rest goes into reading, validating and scoring."""

TIMED = 3
"""Steps that are timed, after one that allocates memory and chooses kernels; the shortest counts."""

TIMED_SHARE = 0.02
"""Of a budget: a step that takes longer is timed once."""


def may_be_coarser(config: Config) -> bool:
    """Whether the settings leave the spacing to the plan, and name a time that the training has to fit into."""
    train = config.train
    fixed = (train.epochs is not None and train.steps_per_epoch is not None) or train.patch is not None
    given = config.prepare.spacing_mm is not None or config.start.model is not None
    return config.budget is not None and not given and not fixed


def factors(measured: Fingerprint, preparation: Preparation) -> tuple[float, ...]:
    """Return the factors of `COARSER` with which the training labels keep `LEAST_CHORD` pixels."""
    rows, columns, _ = (axis_of(code) for code in preparation.codes)
    height, width = preparation.spacing_mm
    pixels = [
        chord
        for label in measured.labels
        if label.cases
        for chord in (label.chord_mm[rows] / height, label.chord_mm[columns] / width)
    ]
    return tuple(factor for factor in COARSER if factor * LEAST_CHORD <= min(pixels, default=0))


def steps_within(config: Config, step_s: float) -> int:
    """Return how many steps a budget has room for, roughly."""
    return int(TRAINING_SHARE * _seconds(config) / step_s)


def step_seconds(network: Network, config: Config, device: torch.device) -> float:
    """Time a training step on noise; infinite when memory runs out, which the loop explains.

    Of several processes one alone is timed, with its part of a batch.

    Args:
        network: stays as it is.
        config: its batch size, patch and precision are decided.
        device: that will train.
    """
    train, layout = config.train, choose_layout(network, device)
    network = copy.deepcopy(network).to(device, memory_format=layout).train()  # type: ignore[call-overload]  # no stub
    loss_of = build_loss(train.loss, network.out_channels)
    shape = -(-(train.batch_size or 1) // place_of().count), network.in_channels, *(train.patch or (1, 1))
    took: list[float] = []
    try:
        images = torch.randn(shape, device=device).to(memory_format=layout)
        labels = torch.zeros_like(images[:, 0], dtype=torch.int64)
        with side_by_side(len(images), device, ALONE) as threads:
            compute = gradients(network, loss_of, threads, ALONE, train.precision == "bf16")
            optimizer = build_optimizer(network, train, threads)
            while len(took) <= TIMED and sum(took) < TIMED_SHARE * _seconds(config):
                started = time.perf_counter()
                compute(images, labels)
                optimizer.step()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                took.append(time.perf_counter() - started)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return math.inf
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what is kept for later seems taken to who asks how much is free
    return min(took[1:] or took)


def _seconds(config: Config) -> float:
    """Return the budget of one network: folds share it."""
    return seconds(config.budget or "0s") / (config.folds or 1)

"""`make_plan`: from an examined data set to every decision of a training run, each made once and with its reason.

`medseg plan` shows the plan, `medseg train` follows it. What a configuration leaves open is filled in; what it says
stays as it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from medseg.case import Finding
from medseg.case_measure import CaseMeasure
from medseg.check import Examination
from medseg.config import Config, TrainConfig
from medseg.config.load import dump
from medseg.config.networks import FITTED_WIDTHS
from medseg.config.settings import EPOCHS
from medseg.devices import choose_precision
from medseg.errors import ConfigError, InputError
from medseg.fingerprint import Fingerprint, LabelFingerprint, fingerprint
from medseg.grid import axis_of
from medseg.models import Network, UNet, build
from medseg.models.network import describe
from medseg.preparation import Preparation
from medseg.training import muon
from medseg.training.batch_size import USUAL, fitting_batch
from medseg.training.decisions import Decisions, shown, value_of
from medseg.training.losses import build_loss
from medseg.training.plan_slices import augment_slices, oblong, prepare_slices, stack_of
from medseg.training.resolution import ENOUGH_STEPS, factors, may_be_coarser, step_seconds, steps_within
from medseg.training.sides import unlike_sides
from medseg.training.team import place_of

LEFT_OPEN = (
    "prepare.plane",
    "prepare.spacing_mm",
    "prepare.normalise",
    "prepare.window_hu",
    "augment.mirror",
    "augment.mirror_rows",
    "augment.affine",
    "augment.rotation_deg",
    "augment.scaling",
    "augment.elastic",
    "model.widths",
    "start.hash",
    "train.epochs",
    "train.steps_per_epoch",
    "train.batch_size",
    "train.patch",
    "train.optimizer",
    "train.precision",
)
"""Settings that may be left to the plan; the run folder's own configuration holds what was decided."""

BLOCKING = ("DATA-SPLIT", "DATA-LABEL")
"""Errors about the whole data set: a run that went on would not be the one that was asked for."""

LARGEST_PATCH = 320
"""Longer sides of a training slice are cut: the cost of a step grows with the area, and a crop is augmentation too.
Prediction always sees whole slices."""

MUON_SHARE = 0.5
"""Of the time of a step, that Muon may add to it on a processor: AdamW took half as many steps again for the same Dice
(docs/benchmarks.md, "Optimiser")."""

SMALLEST_MAP = 4
"""Pixels that the shorter side of the slices must leave at the bottom of the network: below, a 3x3 convolution sees
more padding than image (nnU-Net's limit too, Isensee 2021). It scored higher in equal time (docs/benchmarks.md)."""

SPREAD = 2.0
"""From this ratio of the largest spacing to the smallest on, a plan warns: the finest case loses half of its pixels,
or a neighbouring slice is twice as far away as another case's."""


@dataclass(frozen=True)
class Plan:
    """What a training run does.

    Attributes:
        config: with everything filled in that was left open.
        reasons: setting (`section.key`) or section -> why it is what it is.
        warnings: what deserves a second look before hours are spent.
        measured: the training cases in numbers.
        preparation: plane, spacing, normalisation, context.
        out_channels: of the network.
        slices: to train on.
    """

    config: Config
    reasons: Mapping[str, str]
    warnings: tuple[Finding, ...]
    measured: Fingerprint
    preparation: Preparation
    out_channels: int
    slices: int

    def to_yaml(self) -> str:
        """Return the configuration, with each reason as a comment on the line of its setting."""
        return dump(self.config, self.reasons)

    def lines(self) -> list[tuple[str, str, str]]:
        """Return setting, value and reason, for people; sections have no value."""
        rows = [
            (key, shown(value_of(self.config, key)) if "." in key else "", reason)
            for key, reason in self.reasons.items()
        ]
        return [*rows, *((f"label {label.name}", "", _label(label)) for label in self.measured.labels)]


def make_plan(
    config: Config,
    found: Examination,
    device: torch.device | None = None,
    preparation: Preparation | None = None,
    *,
    timed: bool = True,
) -> Plan:
    """Decide how to train on a data set; nothing is written.

    Args:
        config: as `medseg.config.load` gives it.
        found: its data set, examined; divided into folds, what all of them have in common is decided on all cases.
        device: that will train, and is timed where a budget leaves open how coarse slices are; without it, the
            precision stays open, and slices are as fine as the cases.
        preparation: of the scans, when it was decided before; the settings of `prepare` agree with it.
        timed: whether the device may be timed: plans of processes that do not know of each other must be equal.

    Raises:
        ConfigError: DATA-SPLIT when the cases cannot be divided, DATA-LABEL when no case has one of the labels,
            MODEL-LOSS for a loss that cannot learn.
        InputError: DATA-EMPTY when no case is left to train on.
    """
    build_loss(config.train.loss, count_out_channels(config))
    training, held_out = _sides(found)
    measured = fingerprint(training, config)
    draft = partial(_drafted, config, found, training, held_out, measured, device, preparation)
    if preparation is not None or not timed or not may_be_coarser(config):
        return draft(1.0)
    if device is None:
        return _because(draft(1.0), f"where it is left open, a run for which {config.budget} is short takes more")
    return _within_budget(draft, config, device)


def _drafted(
    config: Config,
    found: Examination,
    training: Sequence[CaseMeasure],
    held_out: int,
    measured: Fingerprint,
    device: torch.device | None,
    preparation: Preparation | None,
    coarser: float,
) -> Plan:
    """Return the plan with slices so many times as coarse as the cases'."""
    out_channels = count_out_channels(config)
    decisions = Decisions(config)
    left_out = len(found.dataset.left_out - {case.id for case in found.dataset.cases})
    sides = f"{len(training)} cases to train on, {held_out} to validate"
    if found.folds:
        sides = f"{len(training)} cases in {len(found.folds)} folds: each held out by one, trained on by the others"
    decisions.note("data", f"{sides}, {left_out} left out")
    if config.start.model is not None:
        decisions.note("start", "weights, preparation and patch are those of an earlier model")
    decided = prepare_slices(decisions, measured, coarser)
    preparation = preparation or decided
    augment_slices(decisions, measured, preparation)
    stacks = [stack_of(case, preparation) for case in training]  # (slices, rows, columns) of each case
    rows, columns = np.median(stacks, axis=0)[1:].tolist()
    network = _network(decisions, (rows, columns), preparation, out_channels)
    _patch(decisions, (rows, columns), network.stride)
    trained = set(found.split.train if found.split else ())  # of folds: the first one's
    slices = sum(count for case, (count, _, _) in zip(training, stacks, strict=True) if case.id in trained)
    if device is not None:
        bf16 = choose_precision(decisions.config.train.precision, device) == torch.bfloat16
        why = f"the {device.type} {'computes' if bf16 else 'does not compute'} in bf16"
        decisions.settle("train.precision", "bf16" if bf16 else "fp32", why)
    _batch(decisions, network, device)
    _optimizer(decisions, network, device)
    _training(decisions, measured, preparation, slices)
    warnings = tuple(_warnings(decisions.config, measured, preparation))
    return Plan(decisions.config, decisions.reasons, warnings, measured, preparation, out_channels, slices)


def _within_budget(draft: Callable[[float], Plan], config: Config, device: torch.device) -> Plan:
    """Return the plan with the finest slices for which the budget has room for `ENOUGH_STEPS`, or else for most."""
    fine = draft(1.0)
    pace = step_seconds(_network_of(fine), fine.config, device) / _work(fine)

    def steps(plan: Plan) -> int:
        return steps_within(config, pace * _work(plan))

    plans = [fine]
    for coarser in factors(fine.measured, fine.preparation):
        if steps(plans[-1]) >= ENOUGH_STEPS:
            break
        plans.append(draft(coarser))
    chosen = max(plans, key=steps)
    if chosen is fine:
        return fine
    room = f"{config.budget} has room for about {steps(chosen)} steps so, for {steps(fine)} at the median itself"
    return _because(chosen, room)


def _because(plan: Plan, why: str) -> Plan:
    """Return the plan with a further reason for its spacing."""
    spacing = f"{plan.reasons['prepare.spacing_mm']}; {why}"
    return replace(plan, reasons={**plan.reasons, "prepare.spacing_mm": spacing})


def _network_of(plan: Plan) -> Network:
    return build(plan.config.model, plan.preparation.in_channels, plan.out_channels)


def _work(plan: Plan) -> float:
    """Return the multiply-adds of a step."""
    train, network = plan.config.train, _network_of(plan)
    return _work_on_slices(train, network) + (muon.multiply_adds(network) if train.optimizer == "muon" else 0)


def _work_on_slices(train: TrainConfig, network: Network) -> float:
    """Return the multiply-adds of a step, forth and back, which costs twice as much."""
    share = math.prod(train.patch or (1, 1)) / 256**2
    return 3 * (train.batch_size or USUAL) * share * describe(network, network.in_channels).multiply_adds


def count_out_channels(config: Config) -> int:
    """Return the network's output channels: one behind a sigmoid for the binary losses, else labels and background.

    Raises:
        ConfigError: MODEL-LOSS for a binary loss with several labels.
    """
    if config.train.loss not in ("bce", "dice_bce"):
        return len(config.labels) + 1
    if len(config.labels) > 1:
        problem = f"{config.train.loss} tells one label from background, there are {len(config.labels)}"
        raise ConfigError("MODEL-LOSS", "train.loss", problem, "Use dice_cross_entropy.")
    return 1


def _sides(found: Examination) -> tuple[list[CaseMeasure], int]:
    """Return the training cases' numbers, and how many cases are held out; of folds, all cases and none.

    Raises:
        ConfigError: DATA-SPLIT, DATA-LABEL.
        InputError: DATA-EMPTY.
    """
    for finding in found.dataset.findings:
        if finding.code in BLOCKING and finding.severity == "error":
            raise ConfigError(finding.code, finding.where, finding.message)
    if found.split is None:
        raise ConfigError("DATA-SPLIT", "data.split", "the cases cannot be divided")
    if not found.split.train:
        problem = f"no case is left to train on; {len(found.dataset.left_out)} were left out"
        raise InputError("DATA-EMPTY", "data", problem, "Run medseg check with this configuration.")
    if found.folds:
        return list(found.measures.values()), 0
    return [found.measures[case] for case in found.split.train], len(found.split.validation)


# ---------------------------------------------------------------------------------------------- network and training


def fitted_widths(rows: float, columns: float) -> tuple[int, ...]:
    """Return the widths of a U-Net no deeper than slices of this size allow, and always as wide at the bottom."""
    stages = int(math.log2(max(1, min(rows, columns) / SMALLEST_MAP))) + 1
    return FITTED_WIDTHS[-max(2, stages) :]


def fitted_patch(rows: float, columns: float, stride: int) -> tuple[int, int]:
    """Return the size of training slices: the cases' median, up to a multiple of the network's stride, bounded."""
    largest = LARGEST_PATCH // stride * stride
    height, width = (min(largest, math.ceil(side / stride) * stride) for side in (rows, columns))
    return height, width


def _network(decisions: Decisions, size: tuple[float, float], preparation: Preparation, out_channels: int) -> Network:
    if decisions.config.model.name == "unet":
        decisions.fill("model.widths", fitted_widths(*size))
    network = build(decisions.config.model, preparation.in_channels, out_channels)
    cost = describe(network, preparation.in_channels)
    millions, billions = cost.parameters / 1e6, cost.multiply_adds / 1e9
    text = f"{millions:.2f} million parameters, {billions:.1f} G multiply-adds for 256 x 256 pixels"
    decisions.note("model", f"{text}; {preparation.in_channels} input and {out_channels} output channels")
    if isinstance(network, UNet):
        rows, columns, bottom_rows, bottom_columns = (*size, *(math.ceil(side / network.stride) for side in size))
        leave = f"the median slice of {rows:g} x {columns:g} leaves {bottom_rows} x {bottom_columns} at the bottom"
        decisions.note("model.widths", f"{leave}; each pixel's logits see {network.sees} pixels across")
    return network


def _patch(decisions: Decisions, size: tuple[float, float], stride: int) -> None:
    patch = fitted_patch(*size, stride)
    part = "whole slices: their median size" if min(patch[0] - size[0], patch[1] - size[1]) >= 0 else "part of a slice"
    decisions.settle("train.patch", patch, f"{part} of {size[0]:g} x {size[1]:g}, in multiples of {stride}")


def _batch(decisions: Decisions, network: Network, device: torch.device | None) -> None:
    """Settle how many slices make a step: as usual, or what fits into the memory of the device."""
    train, why = decisions.config.train, ""
    if train.batch_size not in (USUAL, None):
        return decisions.note("train.batch_size", f"as set; usual are {USUAL}")
    if train.batch_size is None and device is not None and train.patch is not None:
        place = train.patch, train.loss, choose_precision(train.precision, device), device
        size, needs = fitting_batch(network, *place, processes=place_of().count)
        decisions.fill("train.batch_size", size)
        why = "" if size == USUAL else f"the most that fits: {needs}"
    if decisions.config.train.batch_size is None:
        why = f"{USUAL}, or fewer where they do not fit into memory"
    decisions.note("train.batch_size", ", ".join(filter(None, ("slices in a step", why))))


def _optimizer(decisions: Decisions, network: Network, device: torch.device | None) -> None:
    """Settle the optimiser: Muon, unless its matrices would take a processor too long beside the slices of a step."""
    train = decisions.config.train
    if device is None and train.optimizer is None:
        return decisions.note("train.optimizer", "muon, or adamw where a processor would take too long for it")
    faster = 2 if train.precision == "bf16" else 1  # not the matrices, which stay in fp32
    longer = muon.multiply_adds(network) / (_work_on_slices(train, network) / place_of().count / faster)
    if longer > MUON_SHARE and device is not None and device.type == "cpu":
        decisions.settle("train.optimizer", "adamw", f"muon would make a step {1 + longer:.1f} times as long here")
    else:
        decisions.settle("train.optimizer", "muon", "orthogonal steps learn more from each batch")


def _training(decisions: Decisions, measured: Fingerprint, preparation: Preparation, slices: int) -> None:
    """Explain the recipe: nothing of it depends on the data, but with a budget the number of steps on the machine."""
    budget = decisions.config.budget
    if budget is None:
        decisions.fill("train.epochs", EPOCHS)
    train = decisions.config.train
    steps = train.steps_per_epoch or -(-slices // (train.batch_size or USUAL))
    partly = ", wholly unannotated ones left out" if decisions.config.unannotated else ""
    each = "every slice once" if train.steps_per_epoch is None else "drawn anew"
    if train.epochs is None or (budget is not None and train.steps_per_epoch is None):
        decisions.note("budget", "fixes the number of steps when the run first starts, by what the machine does")
    else:
        decisions.note("train.epochs", f"of {steps} steps: {train.epochs * steps} steps in all")
    decisions.note("train.steps_per_epoch", f"{slices} training slices, {each}{partly}")
    share = measured.label_slices[axis_of(preparation.codes[2])]
    decisions.keep("train.foreground", f"labels stand in {share:.0%} of a case's slices")
    rarest = min(label.share for label in measured.labels)
    why = f"Dice, since the rarest label is {rarest:.2%} of a scan; cross-entropy for steady steps"
    decisions.keep("train.loss", why)


# ---------------------------------------------------------------------------------------------------------- warnings


def _warnings(config: Config, measured: Fingerprint, preparation: Preparation) -> Iterator[Finding]:
    """Yield what deserves a second look."""
    for low, high in measured.in_plane_range_mm(preparation.codes):
        if high > SPREAD * low:
            text = f"pixels of {low:.3g} to {high:.3g} mm are brought to one size; the finest scans lose detail. "
            advice = "A smaller prepare.spacing_mm keeps it, at the cost of time"
            yield Finding("warning", "DATA-SPACING", "prepare.spacing_mm", text + advice)
            break
    low, high = measured.spacing_range_mm[axis_of(preparation.codes[2])]
    if high > SPREAD * low and preparation.context:
        text = f"slices lie {low:.3g} to {high:.3g} mm apart: neighbours mean other things from case to case. "
        yield Finding("warning", "DATA-SPACING", "prepare.context", text + "prepare.context=0 does without them")
    if oblong(preparation) > SPREAD:
        text = f"pixels of {shown(preparation.spacing_mm)} mm: {preparation.plane} slices cut across the thick slices. "
        advice = f"prepare.plane={measured.plane} follows them" if measured.plane != preparation.plane else ""
        yield Finding("warning", "DATA-PLANE", "prepare.plane", text + (advice or "See medseg check"))
    unlike = unlike_sides(preparation.plane, config.labels, measured)
    for key, asked in (("augment.mirror", config.augment.mirror), ("predict.mirror", config.predict.mirror)):
        if unlike and asked:
            yield Finding("warning", "DATA-SIDES", key, f"mirrors, though {unlike}. Set {key} to 0")


def _label(label: LabelFingerprint) -> str:
    low, middle, high = (f"{ml:.0f}" if ml >= 100 else f"{ml:.3g}" for ml in label.volume_ml)
    sizes = f"{middle} ml in the median ({low} to {high}), {label.share:.2%} of the scan"
    return f"in {label.cases} cases; {sizes}"

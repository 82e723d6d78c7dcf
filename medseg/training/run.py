"""A training run: from a configuration to a run folder with a model, its scores and all that explains them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medseg.batch import predict_cases
from medseg.case import Case, Finding
from medseg.config import Config
from medseg.config.duration import seconds
from medseg.config.load import dump, load, parse
from medseg.config.yaml_text import read_yaml, write_yaml
from medseg.devices import choose_device
from medseg.errors import MedsegError, RunError
from medseg.io.atomic import remove_partials, write_text
from medseg.io.lock import exclusive
from medseg.io.nifti import write_mask
from medseg.models import Network, build
from medseg.models.model_folder import Model, ModelDescription, load_model, save_model
from medseg.prediction import Predictor
from medseg.preparation import Preparation
from medseg.progress import Watch, silent
from medseg.reading import read_case
from medseg.reference import read_reference
from medseg.report import Report, evaluate
from medseg.training.budget import Pace, rehearse, within_budget
from medseg.training.calibration import dice_offsets
from medseg.training.cases import CONFIG, Prepared, Shared, prepare_cases
from medseg.training.data import TrainingSlices, VolumeDice
from medseg.training.loop import Fitted, LoopOptions, fit, has_checkpoint, nothing
from medseg.training.losses import build_loss
from medseg.training.plan import LEFT_OPEN, Plan, count_out_channels
from medseg.training.ranges import input_ranges
from medseg.training.showing import Showing, flat
from medseg.training.start import Start, start_from
from medseg.training.state import seed_everything
from medseg.training.team import ALONE, Team
from medseg.training.trackers import Tracker, require_tensorboard
from medseg.volume import UNANNOTATED, Labels

log = logging.getLogger(__name__)

PREPARATION = "preparation.yaml"
SPLIT = "split.json"

MAY_CHANGE = ("train.device", "train.tensorboard", "train.overlays")
"""Settings that a resumed run may have otherwise: they do not change the result."""


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind.

    Attributes:
        folder: the run folder.
        fitted: epochs and best weights.
        report: of the validation cases on their own grids; None without any.
        left_out: what could not be used, with reasons.
    """

    folder: Path
    fitted: Fitted
    report: Report | None
    left_out: tuple[Finding, ...]

    def summary(self) -> str:
        """A few lines for people."""
        lines = [f"model: {self.folder / 'model'} (best of {len(self.fitted.epochs)} epochs: {self.fitted.best_epoch})"]
        if self.report is not None:
            lines += [self.report.summary(), f"report: {self.folder / 'validation' / 'report.html'}"]
        if self.left_out:
            lines.append(f"{len(self.left_out)} left out, see the messages above")
        return "\n".join(lines)


def train_once(
    config: Config,
    output: Path,
    *,
    resume: bool = False,
    watch: Watch = silent,
    trackers: Sequence[Tracker] = (),
    shared: Shared | None = None,
    team: Team = ALONE,
) -> TrainResult:
    """Train a network on the cases of a configuration.

    Args:
        config: as `medseg.config.load` gives it, without folds.
        output: the run folder; gets `config.yaml`, `cases.json`, `preparation.yaml`, `model/`, `metrics.csv`,
            `curves.png`, `overlays/`, `checkpoints/`, `prepared/`, `validation/`.
        resume: go on with the run that is there.
        watch: is told of each step.
        trackers: are told of each epoch.
        shared: when it is one fold of many.
        team: of processes that train together.

    Raises:
        UsageError: a wrong configuration or path; MODEL-LOSS for a loss that cannot learn.
        InputError: DATA-EMPTY when no case can be used.
        RunError: RUN-RESUME when the folder holds a run and `resume` is off, or one of another configuration; RUN-NAN,
            RUN-MEMORY, RUN-WRITE, RUN-DEVICE, RUN-BUSY; RUN-BUDGET when there is no time for anything useful.
    """
    started = time.perf_counter()
    build_loss(config.train.loss, count_out_channels(config))  # refuses, before any work, a loss that cannot learn
    device = choose_device(config.train.device)
    if config.train.tensorboard:
        require_tensorboard()
    with ExitStack() as held:
        team.share(lambda: held.enter_context(exclusive(output)))
        if team.first:
            _sweep(output, alone=shared is None)
        start, cases = team.share(lambda: _begun(config, output, device, watch, resume, shared))
        options = LoopOptions(output, device, _dtype(cases.plan.config), resume, watch, team=team)
        cases = replace(cases, plan=_with_steps(cases, options, start, started))
        team.share(lambda: _write_down(cases.plan, output))
        network, data, validate = _parts(cases, options, start)
        showing = Showing(output, cases.plan.config, trackers, validate) if team.first else nullcontext(nothing)
        with showing as shown:
            fitted = fit(network, data, validate, cases.plan.config.train, replace(options, after_epoch=shown))
        report = team.share(lambda: _finished(cases, fitted, options))
    return TrainResult(output, fitted, report, cases.left_out)


def _sweep(output: Path, alone: bool) -> None:
    """Remove what a killed run left half-written; in a store of prepared slices only if no other fold may be at it."""
    store = output / "prepared"
    prepared = [store, *store.glob("*/")] if alone else []
    inside = [output / name for name in ("checkpoints", "model", "overlays", "validation", "validation/references")]
    for folder in (output, *inside, *prepared):
        remove_partials(folder)


def _begun(
    config: Config, output: Path, device: torch.device, watch: Watch, resume: bool, shared: Shared | None
) -> tuple[Start | None, Prepared]:
    """Return where the weights come from, None for chance, and the cases: planned and prepared."""
    config = begin(config, output, resume)
    kept = kept_preparation(output) if shared or (output / CONFIG).is_file() else None
    start = None
    if config.start.model is not None and not (resume and has_checkpoint(output)):  # which holds its weights
        start = start_from(config, watch)
        config, kept = start.config, kept or start.preparation
    return start, prepare_cases(config, output, device, watch, kept, shared)


def _write_down(plan: Plan, output: Path) -> None:
    if not (output / CONFIG).is_file():  # a resumed run keeps the words of the plan that it began with
        write_text(output / CONFIG, plan.to_yaml())
    keep_preparation(output, plan.preparation)


def _dtype(config: Config) -> torch.dtype:
    return torch.bfloat16 if config.train.precision == "bf16" else torch.float32


def _parts(
    cases: Prepared, options: LoopOptions, start: Start | None
) -> tuple[Network, TrainingSlices, VolumeDice | None]:
    """Return what the loop works with, fresh: network, batches and validation."""
    config, context = cases.plan.config, cases.plan.preparation.context
    seed_everything(config.seed, config.train.deterministic)
    network = build(config.model, cases.plan.preparation.in_channels, cases.plan.out_channels)
    if start is not None:
        network.load_state_dict(start.network.state_dict())
    data = TrainingSlices(cases.store, config.train, config.augment, context, config.seed, options.team)
    if cases.held_out_store is None:
        return network, data, None
    place = options.device, options.dtype, options.team
    return network, data, VolumeDice(cases.held_out_store, config, context, *place)


def _with_steps(cases: Prepared, options: LoopOptions, start: Start | None, started: float) -> Plan:
    """Return the plan with its number of steps; a budget is for the time since `started`."""
    plan, config = cases.plan, cases.plan.config
    if config.budget is None or (config.train.epochs is not None and config.train.steps_per_epoch is not None):
        return plan

    def score(network: Network, some: Sequence[Case], folder: Path) -> None:
        _saved(cases, network.state_dict(), folder, options.device)
        _scored(load_model(folder / "model"), some, config, folder, silent)

    pace = rehearse(*_parts(cases, options, start), config.train, options, score, cases.held_out, config.budget)
    return options.team.share(lambda: _fixed(plan, pace, started, options.watch))


def _fixed(plan: Plan, pace: Pace, started: float, watch: Watch) -> Plan:
    """Return the plan with the number of steps that the pace allows."""
    config, budget = plan.config, plan.config.budget or ""
    train = within_budget(budget, seconds(budget) - (time.perf_counter() - started), pace, config.train)
    why = f"fits {budget}: {pace}"
    watch("budget", 1, 1, f"{train.epochs} epochs of {train.steps_per_epoch} steps, which {why}")
    reasons = {**plan.reasons, "budget": "as set", "train.epochs": why, "train.steps_per_epoch": why}
    return replace(plan, config=config.model_copy(update={"train": train}), reasons=reasons)


def _finished(cases: Prepared, fitted: Fitted, options: LoopOptions) -> Report | None:
    """Write the model, score the held-out cases with it, and return their report; None without any."""
    folder, config = options.folder, cases.plan.config
    description = _saved(cases, fitted.weights, folder, options.device)
    report = None
    if cases.held_out:
        report = _scored(load_model(folder / "model"), cases.held_out, config, folder, options.watch)
    if report is not None:
        found = {"scores": report.scores(), "dice_offsets": dice_offsets(report, [folder / "validation" / "masks"])}
        save_model(folder / "model", description.model_copy(update=found), fitted.weights)
    return report


def _saved(cases: Prepared, weights: Mapping[str, Tensor], folder: Path, device: torch.device) -> ModelDescription:
    """Write the model without its scores; return its description."""
    description = _described(cases.plan)
    ranges = input_ranges(description, weights, cases.store, device)
    description = description.model_copy(update={"ranges": (ranges,)})
    save_model(folder / "model", description, weights)
    return description


def begin(config: Config, output: Path, resume: bool) -> Config:
    """Return the configuration to run with: the given one, or the resumed run's own with its measured values.

    Raises:
        RunError: RUN-RESUME when there is a run and `resume` is off, or the configuration has changed.
    """
    path = output / CONFIG
    if not path.is_file():
        return config
    if not resume:
        advice = "Add --resume to go on with it, or choose another folder with -o."
        raise RunError("RUN-RESUME", str(output), "the folder holds a training run already", advice)
    stored = load(path)
    given = parse(dump(config), str(path))  # its paths absolute, as they stand in the file
    if given.data.split == output.absolute() / SPLIT:  # its own, wherever the folder was moved
        moved = stored.data.model_copy(update={"split": given.data.split})
        stored = stored.model_copy(update={"data": moved})
    changes = _changes(given.model_dump(mode="json"), stored.model_dump(mode="json"))
    if changes:
        advice = "Resume with the configuration it began with, or start another run with -o."
        raise RunError("RUN-RESUME", str(output), f"the configuration has changed: {'; '.join(changes)}", advice)
    free = config.train.model_dump(include={name.removeprefix("train.") for name in MAY_CHANGE})
    return stored.model_copy(update={"train": stored.train.model_copy(update=free)})


def kept_preparation(output: Path) -> Preparation | None:
    """Return the preparation that a run began with, to the last digit; None when there is none.

    Raises:
        ConfigError: CONFIG-SYNTAX, and
        ModelError: MODEL-FORMAT, when the file is damaged.
    """
    path = output / PREPARATION
    if not path.is_file():
        return None
    content = read_yaml(path.read_text(encoding="utf-8"), str(path)).data
    return Preparation.from_dict(content if isinstance(content, dict) else {})


def keep_preparation(output: Path, preparation: Preparation) -> None:
    """Write `preparation.yaml`."""
    write_text(output / PREPARATION, write_yaml(preparation.to_dict()))


def _changes(given: dict[str, Any], stored: dict[str, Any], prefix: str = "") -> list[str]:
    """Name the settings that differ; what the given configuration leaves to measurement cannot differ."""
    found = []
    for key in sorted(given.keys() | stored.keys()):
        name, new, old = f"{prefix}{key}", given.get(key), stored.get(key)
        if isinstance(new, dict) and isinstance(old, dict):
            found += _changes(new, old, f"{name}.")
        elif new != old and name not in MAY_CHANGE and not (name in LEFT_OPEN and new in ("auto", None)):
            found.append(f"{name} was {old}, now {new}")
    return found


def _recipe(config: Config) -> dict[str, Any]:
    """Return how the run learns, without what does not change it."""
    kept = config.model_dump(mode="json", include={"train": True, "augment": True, "seed": True})
    return {name: value for name, value in flat(kept).items() if name not in MAY_CHANGE}


def _described(plan: Plan) -> ModelDescription:
    config = plan.config
    return ModelDescription(
        network=config.model,
        in_channels=plan.preparation.in_channels,
        out_channels=plan.out_channels,
        labels=dict(config.label_names.names),
        preparation=plan.preparation.to_dict(),
        patch=config.train.patch or (1, 1),
        predict=config.predict,
        trained_on=plan.measured.to_dict(),
        recipe=_recipe(config),
        parent=config.start.hash or "",
    )


def _scored(model: Model, cases: Sequence[Case], config: Config, output: Path, watch: Watch) -> Report | None:
    """Predict the held-out cases as `medseg predict` would, and score them on their own grids."""
    folder = output / "validation"
    for case in cases:
        try:
            grid = read_case(case.scans).grid
            write_mask(folder / "references" / f"{case.id}.nii.gz", read_reference(case, grid, config))
        except MedsegError as error:
            log.warning("%s: no reference to score: %s", case.id, error)
    predict_cases(cases, Predictor(model), folder / "masks", watch=watch)
    return score(folder, cases, model.labels)


def score(folder: Path, cases: Sequence[Case], labels: Labels) -> Report:
    """Score `masks/` of a validation folder against `references/`, by patient, and write the report beside them."""
    patients = sorted({case.group for case in cases})  # numbered: not even a hash of a patient id goes into a report
    groups = {case.id: f"patient-{patients.index(case.group) + 1}" for case in cases}
    places = (folder / "masks", folder / "references", folder)
    return evaluate(*places, labels=labels, groups=groups, unannotated=(UNANNOTATED,))

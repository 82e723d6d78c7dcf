"""A training run: from a configuration to a run folder with a model, its scores and all that explains them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medseg.batch import predict_cases
from medseg.case import Case, Finding, Split
from medseg.check import Examination, examine
from medseg.config import Config
from medseg.config.load import dump, load, parse
from medseg.errors import MedsegError, RunError
from medseg.io.atomic import write_text
from medseg.io.lock import exclusive
from medseg.io.nifti import write_mask
from medseg.models import build
from medseg.models.model_folder import Model, ModelDescription, load_model, save_model
from medseg.prediction import Predictor, choose_device
from medseg.preparation import Preparation
from medseg.progress import Watch, silent
from medseg.reading import read_case
from medseg.reference import describe_all, read_reference
from medseg.report import Report, evaluate
from medseg.store import SliceStore, build_store
from medseg.training.data import TrainingSlices, VolumeDice
from medseg.training.history import require_tensorboard, write_tensorboard
from medseg.training.loop import Fitted, LoopOptions, fit, seed_everything
from medseg.training.losses import build_loss
from medseg.training.plan import LEFT_OPEN, Plan, count_out_channels, make_plan
from medseg.volume import UNANNOTATED

log = logging.getLogger(__name__)

MAY_CHANGE = ("train.device", "train.tensorboard")
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


def train(config: Config, output: Path, *, resume: bool = False, watch: Watch = silent) -> TrainResult:
    """Train a network on the cases of a configuration.

    Args:
        config: as `medseg.config.load` gives it.
        output: the run folder; gets `config.yaml`, `model/`, `metrics.csv`, `checkpoints/`, `prepared/`, `validation/`.
        resume: go on with the run that is there.
        watch: is told of each step.

    Raises:
        UsageError: a wrong configuration or path; MODEL-LOSS for a loss that cannot learn.
        InputError: DATA-EMPTY when no case can be used.
        RunError: RUN-RESUME when the folder holds a run and `resume` is off, or one of another configuration; RUN-NAN,
            RUN-MEMORY, RUN-WRITE, RUN-DEVICE, RUN-BUSY.
    """
    build_loss(config.train.loss, count_out_channels(config))  # refuses, before any work, a loss that cannot learn
    device = choose_device(config.train.device)
    if config.train.tensorboard:
        require_tensorboard()
    with exclusive(output):
        config = _begin(config, output, resume)
        found = examine(config, watch=watch)
        _tell(found, config, watch)
        plan = make_plan(config, found, device)
        for finding in plan.warnings:
            watch("plan", 1, 1, str(finding))
        config, preparation = plan.config, plan.preparation
        training, held_out = _sides(found)
        watch("plan", 1, 1, f"{len(training)} cases to train on, {len(held_out)} to validate")
        store = _prepared(training, preparation, config, output, watch)
        held_out_store = _prepared(held_out, preparation, config, output, watch) if held_out else None

        seed_everything(config.seed, config.train.deterministic)
        network = build(config.model, preparation.in_channels, plan.out_channels)
        if not (output / "config.yaml").is_file():  # a resumed run keeps the words of the plan that it began with
            write_text(output / "config.yaml", plan.to_yaml())
        dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
        data = TrainingSlices(store, config.train, config.augment, preparation.context, config.seed)
        validate = (
            None if held_out_store is None else VolumeDice(held_out_store, config, preparation.context, device, dtype)
        )
        options = LoopOptions(output, device, dtype, resume, watch)
        fitted = fit(network, data, validate, config.train, options)
        description = _described(plan)
        save_model(output / "model", description, fitted.weights)
        report = _scored(load_model(output / "model"), held_out, config, output, watch) if held_out else None
        if report is not None:
            save_model(output / "model", description.model_copy(update={"scores": report.scores()}), fitted.weights)
        if config.train.tensorboard:
            write_tensorboard(output, fitted.epochs)
    left_out = tuple(finding for finding in found.dataset.findings if finding.severity == "error")
    rejected = {**store.rejected, **(held_out_store.rejected if held_out_store else {})}
    left_out += tuple(Finding.from_error(error, case) for case, error in rejected.items())
    return TrainResult(output, fitted, report, left_out)


def _begin(config: Config, output: Path, resume: bool) -> Config:
    """Return the configuration to run with: the given one, or the resumed run's own with its measured values."""
    path = output / "config.yaml"
    if not path.is_file():
        return config
    if not resume:
        advice = "Add --resume to go on with it, or choose another folder with -o."
        raise RunError("RUN-RESUME", str(output), "the folder holds a training run already", advice)
    stored = load(path)
    given = parse(dump(config), str(path))  # its paths absolute, as they stand in the file
    changes = _changes(given.model_dump(mode="json"), stored.model_dump(mode="json"))
    if changes:
        advice = "Resume with the configuration it began with, or start another run with -o."
        raise RunError("RUN-RESUME", str(output), f"the configuration has changed: {'; '.join(changes)}", advice)
    device = {"device": config.train.device, "tensorboard": config.train.tensorboard}
    return stored.model_copy(update={"train": stored.train.model_copy(update=device)})


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


def _tell(found: Examination, config: Config, watch: Watch) -> None:
    for finding in found.dataset.findings:
        if finding.severity != "note":
            watch("check", 1, 1, str(finding))
    for line in describe_all(found.dataset.cases, config):
        watch("check", 1, 1, line)


def _sides(found: Examination) -> tuple[list[Case], list[Case]]:
    """Return the cases to train on and those held out; `make_plan` has seen that there is a split."""
    cases = {case.id: case for case in found.dataset.cases}
    split = found.split or Split((), ())
    return [cases[name] for name in split.train], [cases[name] for name in split.validation]


READ_BY: dict[str, Any] = {
    "labels": True,
    "ignore": True,
    "unannotated": True,
    "data": {"resample_references"},
}
"""The settings that a reference is read by."""


def _prepared(
    cases: Sequence[Case], preparation: Preparation, config: Config, output: Path, watch: Watch
) -> SliceStore:
    done = 0

    def progress(case: Case) -> None:
        nonlocal done
        done += 1
        watch("prepare", done, len(cases))

    settings = config.model_dump(mode="json", include=READ_BY)
    reader = lambda case, grid: read_reference(case, grid, config)  # noqa: E731  the store's callback
    store = build_store(cases, output / "prepared", preparation, reader, settings, progress)
    for case, error in store.rejected.items():
        watch("prepare", done, len(cases), f"error: {case} is left out: {error}")
    return store


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
    patients = sorted({case.group for case in cases})  # numbered: not even a hash of a patient id goes into a report
    groups = {case.id: f"patient-{patients.index(case.group) + 1}" for case in cases}
    return evaluate(
        folder / "masks", folder / "references", folder, labels=model.labels, groups=groups, unannotated=(UNANNOTATED,)
    )

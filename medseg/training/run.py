"""A training run: from a configuration to a run folder with a model, its scores and all that explains them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medseg.batch import predict_cases
from medseg.case import Case, Dataset, Finding, Split
from medseg.check import Examination, examine
from medseg.config import Config
from medseg.config.load import dump, load, parse
from medseg.errors import ConfigError, InputError, MedsegError, RunError
from medseg.fingerprint import Fingerprint, fingerprint
from medseg.io.atomic import write_text
from medseg.io.lock import exclusive
from medseg.io.nifti import write_mask
from medseg.models import Network, build
from medseg.models.model_folder import Model, ModelDescription, load_model, save_model
from medseg.prediction import Predictor, choose_device, choose_precision
from medseg.preparation import Preparation, decide
from medseg.progress import Watch, silent
from medseg.reading import read_case
from medseg.reference import describe_all, read_reference
from medseg.report import Report, evaluate
from medseg.store import SliceStore, build_store
from medseg.training.data import TrainingSlices, VolumeDice, fitted_patch
from medseg.training.history import require_tensorboard, write_tensorboard
from medseg.training.loop import Fitted, LoopOptions, fit, seed_everything
from medseg.training.losses import build_loss
from medseg.volume import UNANNOTATED

log = logging.getLogger(__name__)

MAY_CHANGE = ("train.device", "train.tensorboard")
"""Settings that a resumed run may have otherwise: they do not change the result."""

MEASURED = (
    "prepare.plane",
    "prepare.spacing_mm",
    "prepare.normalise",
    "prepare.window_hu",
    "train.patch",
    "train.precision",
)
"""Settings that may be left to measurement; the run folder's own configuration holds what was measured."""


BLOCKING = ("DATA-SPLIT", "DATA-LABEL")
"""Errors about the whole data set: a run that went on would not be the one that was asked for."""


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
    out_channels = count_out_channels(config)
    build_loss(config.train.loss, out_channels)  # refuses, before any work, a loss that cannot learn
    device = choose_device(config.train.device)
    if config.train.tensorboard:
        require_tensorboard()
    with exclusive(output):
        config = _begin(config, output, resume)
        found = examine(config, watch=watch)
        split = _told(found, config, watch)
        training, held_out = _sides(found.dataset, split)

        measured = fingerprint([found.measures[case.id] for case in training], config)
        preparation = decide(config.prepare, measured, config.data.select)
        store = _prepared(training, preparation, config, output, watch)
        held_out_store = _prepared(held_out, preparation, config, output, watch) if held_out else None

        seed_everything(config.seed, config.train.deterministic)
        network = build(config.model, preparation.in_channels, out_channels)
        config = _resolved(config, preparation, store, network, device)
        write_text(output / "config.yaml", dump(config))
        dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
        augment = config.augment
        if preparation.plane == "sagittal":  # its columns run from front to back, which are not alike
            augment = augment.model_copy(update={"mirror": 0.0})
        data = TrainingSlices(store, config.train, augment, preparation.context, config.seed)
        validate = (
            None if held_out_store is None else VolumeDice(held_out_store, config, preparation.context, device, dtype)
        )
        options = LoopOptions(output, device, dtype, resume, watch)
        fitted = fit(network, data, validate, config.train, options)
        description = _described(config, preparation, measured, out_channels)
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
        elif new != old and name not in MAY_CHANGE and not (name in MEASURED and new in ("auto", None)):
            found.append(f"{name} was {old}, now {new}")
    return found


def _told(found: Examination, config: Config, watch: Watch) -> Split:
    """Say what was found, and return the split.

    Raises:
        ConfigError: DATA-SPLIT when the cases cannot be divided, DATA-LABEL when no case has one of the labels.
        InputError: DATA-EMPTY when no case is left to train on.
    """
    for finding in found.dataset.findings:
        if finding.severity != "note":
            watch("check", 1, 1, str(finding))
    for line in describe_all(found.dataset.cases, config):
        watch("check", 1, 1, line)
    for finding in found.dataset.findings:
        if finding.code in BLOCKING and finding.severity == "error":
            raise ConfigError(finding.code, finding.where, finding.message)
    if found.split is None:
        raise ConfigError("DATA-SPLIT", "data.split", "the cases cannot be divided")
    if not found.split.train:
        problem = f"no case is left to train on; {len(found.dataset.left_out)} were left out"
        raise InputError("DATA-EMPTY", "data", problem, "Run medseg check with this configuration.")
    watch("check", 1, 1, f"{len(found.split.train)} cases to train on, {len(found.split.validation)} to validate")
    return found.split


def _sides(dataset: Dataset, split: Split) -> tuple[list[Case], list[Case]]:
    cases = {case.id: case for case in dataset.cases}
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


def _resolved(
    config: Config, preparation: Preparation, store: SliceStore, network: Network, device: torch.device
) -> Config:
    """Write the measured values into the configuration, so that the run can be read, repeated and resumed."""
    patch = config.train.patch or fitted_patch(list(store), network.stride)
    dtype = choose_precision(config.train.precision, device)
    windows = [channel.window for channel in preparation.channels if channel.window is not None]
    kinds = {channel.normalise for channel in preparation.channels}
    prepare: dict[str, Any] = {"plane": preparation.plane, "spacing_mm": preparation.spacing_mm}
    if len(kinds) == 1:
        prepare |= {"normalise": kinds.pop(), "window_hu": windows[0] if len(set(windows)) == 1 else None}
    train = {"patch": patch, "precision": "bf16" if dtype == torch.bfloat16 else "fp32"}
    updates = {
        "prepare": config.prepare.model_copy(update=prepare),
        "train": config.train.model_copy(update=train),
    }
    return config.model_copy(update=updates)


def _described(config: Config, preparation: Preparation, measured: Fingerprint, out_channels: int) -> ModelDescription:
    return ModelDescription(
        network=config.model,
        in_channels=preparation.in_channels,
        out_channels=out_channels,
        labels=dict(config.label_names.names),
        preparation=preparation.to_dict(),
        patch=config.train.patch or (1, 1),
        predict=config.predict,
        trained_on=measured.to_dict(),
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

"""Cross-validation: a network for each fold of the patients, its scores on patients it never saw, and all in one model.

    RUN/
      config.yaml         of the whole, with everything that was measured
      split.json          the cases of each fold
      preparation.yaml    of the scans: decided once on all cases, the same for all folds
      prepared/           slices on disk, for all folds
      fold-1/ ...         an ordinary run folder each, with its own split.json and preparation.yaml
      validation/         out-of-fold masks of all cases, scored on the scans' own grids
      model/              an ensemble of the folds' networks

A fold is finished when its model knows its scores. What is finished is never trained again, wherever it was trained:
folds may run one after the other, side by side, or on other machines whose folders are then copied together.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from medseg.case import Finding, Split
from medseg.check import Examination, examine
from medseg.config import Config
from medseg.config.duration import seconds, written
from medseg.devices import choose_device
from medseg.errors import RunError, UsageError
from medseg.io.atomic import atomic_path, write_text
from medseg.io.lock import exclusive
from medseg.ledger import Ledger, read_rows
from medseg.models.model_folder import join_models, load_model
from medseg.outputs import claim
from medseg.preparation import Preparation
from medseg.progress import Watch, silent
from medseg.report import Report
from medseg.split import folds_text
from medseg.training.calibration import dice_offsets
from medseg.training.cases import CONFIG, Shared, remembered, tell
from medseg.training.losses import build_loss
from medseg.training.plan import Plan, count_out_channels, make_plan
from medseg.training.run import (
    SPLIT,
    begin,
    keep_preparation,
    kept_preparation,
    score,
    train_once,
)
from medseg.training.start import start_from
from medseg.training.team import ALONE, Team
from medseg.training.trackers import Tracker


@dataclass(frozen=True)
class FoldsResult:
    """What a cross-validation left behind.

    Attributes:
        folder: the run folder.
        folds: how many there are.
        finished: those that are, from 1.
        report: out-of-fold, on the scans' own grids; None until all folds are finished.
        left_out: what could not be used, with reasons.
    """

    folder: Path
    folds: int
    finished: tuple[int, ...]
    report: Report | None
    left_out: tuple[Finding, ...]

    def summary(self) -> str:
        """A few lines for people."""
        if self.report is None:
            missing = [str(number) for number in range(1, self.folds + 1) if number not in self.finished]
            rest = f"still to train: {', '.join(missing)}" if missing else "another process is joining them"
            lines = [f"finished: {len(self.finished)} of {self.folds} folds; {rest}"]
        else:
            lines = [f"model: {self.folder / 'model'} (an ensemble of {self.folds})", "out of fold:"]
            lines += [self.report.summary(), f"report: {self.folder / 'validation' / 'report.html'}"]
        if self.left_out:
            lines.append(f"{len(self.left_out)} left out, see the messages above")
        return "\n".join(lines)


def train_folds(
    config: Config,
    output: Path,
    *,
    resume: bool = False,
    fold: int | None = None,
    watch: Watch = silent,
    trackers: Sequence[Tracker] = (),
    team: Team = ALONE,
) -> FoldsResult:
    """Train all folds that are not finished, or one of them; when all are, score them together and join them.

    Args:
        config: with `folds`.
        output: the run folder.
        resume: go on with what is there.
        fold: train this one only, from 1. Several processes may do so in one folder at once.
        watch: is told of each step.
        trackers: are told of each epoch, once from start to finish for each fold.
        team: of processes that train together.

    Raises:
        UsageError: as `train`; USAGE-OPTION for a fold that there is not.
        InputError: DATA-EMPTY when no case can be used.
        RunError: as `train`.
    """
    count = config.folds or 0
    if fold is not None and not 1 <= fold <= count:
        raise UsageError("USAGE-OPTION", "fold", f"{fold}, wanted 1 to {count}", "Folds count from 1.")
    build_loss(config.train.loss, count_out_channels(config))  # refuses, before any work, a loss that cannot learn
    with ExitStack() as held:
        if not fold:  # a fold alone holds only its own folder
            team.share(lambda: held.enter_context(exclusive(output)))
        plan, found, wanted = team.share(lambda: _begun(config, output, resume, watch, fold is not None))
        left_out = [finding for finding in found.dataset.findings if finding.severity == "error"]
        for number in (fold,) if fold else range(1, count + 1):
            folder, split = output / f"fold-{number}", wanted[number - 1]
            if team.share(partial(_is_finished, folder, split)):
                watch("train", number, count, f"fold {number}/{count}: finished before")
                continue
            team.share(partial(_set_out, folder, split, plan.preparation))
            shared = Shared(replace(found, split=found.folds[number - 1], folds=()), output / "prepared")
            settings, told = fold_config(plan.config, folder), _of_fold(watch, number, count)
            resumed = resume or not fold
            result = train_once(
                settings, folder, resume=resumed, watch=told, trackers=trackers, shared=shared, team=team
            )
            left_out += [finding for finding in result.left_out if finding not in left_out]
    finished, report = team.share(lambda: _ended(output, wanted, found, plan))
    return FoldsResult(output, count, finished, report, tuple(left_out))


def _begun(
    config: Config, output: Path, resume: bool, watch: Watch, lone: bool
) -> tuple[Plan, Examination, list[Split]]:
    """Return what all folds have in common: the plan, the examined data set, and the split of each.

    A lone fold may join others; `train_once` sees to it that the fold itself is new, or resumed.
    """
    config = begin(config, output, resume or lone)
    kept = kept_preparation(output) if (output / CONFIG).is_file() else None
    if config.start.model is not None and kept is None:
        start = start_from(config, watch)
        config, kept = start.config, start.preparation
    known = remembered(output / "prepared")
    found = tell(examine(_with_stored_split(config, output), watch=watch, known=known), config, watch)
    plan = make_plan(config, found, choose_device(config.train.device), kept, timed=not lone)
    if not (output / CONFIG).is_file():
        _write(plan, found, output)
    return plan, found, _stored_splits(output)


def _ended(
    output: Path, wanted: Sequence[Split], found: Examination, plan: Plan
) -> tuple[tuple[int, ...], Report | None]:
    """Return the folds that are finished; when all are, join them and return the report."""
    finished = tuple(n for n, split in enumerate(wanted, start=1) if _is_finished(output / f"fold-{n}", split))
    return finished, _joined(output, found, plan) if len(finished) == len(wanted) else None


def fold_config(config: Config, folder: Path) -> Config:
    """Return the configuration of one fold: an ordinary one, with its own split file and its part of the budget."""
    changes: dict[str, Any] = {"data": config.data.model_copy(update={"split": folder.absolute() / SPLIT})}
    if config.budget is not None and config.folds is not None:
        changes["budget"] = written(seconds(config.budget) // config.folds)
    return config.model_copy(update={**changes, "folds": None})


def _with_stored_split(config: Config, output: Path) -> Config:
    """Let the folds that a run began with hold, also when cases have come or gone since."""
    if not (output / CONFIG).is_file() or not (output / SPLIT).is_file():
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"split": output / SPLIT})})


def _write(plan: Plan, found: Examination, output: Path) -> None:
    """Write down what all folds have in common; `config.yaml` last, since with it the run has begun."""
    write_text(output / SPLIT, folds_text(found.folds))
    keep_preparation(output, plan.preparation)
    write_text(output / CONFIG, plan.to_yaml())


def _stored_splits(output: Path) -> list[Split]:
    """Return the split of each fold as `split.json` has it, cases included that can no longer be used."""
    folds = json.loads((output / SPLIT).read_text(encoding="utf-8-sig"))["folds"]
    return [
        Split(tuple(sorted(case for other in folds if other is not fold for case in other)), tuple(sorted(fold)))
        for fold in folds
    ]


def _set_out(folder: Path, split: Split, preparation: Preparation) -> None:
    """Give a fold its split and its preparation, before it begins.

    Raises:
        RunError: RUN-RESUME when it began with another split: its patients would no longer be the held-out ones.
    """
    begun = (folder / CONFIG).is_file()
    if begun and _split_of(folder) != split:
        problem = "it was begun with other cases than split.json now gives it"
        advice = "Undo the change of split.json, move this folder away to train it anew, or start another run with -o."
        raise RunError("RUN-RESUME", str(folder), problem, advice)
    if not begun:
        sides = {"train": split.train, "validation": split.validation}
        write_text(folder / SPLIT, json.dumps(sides, indent=1, ensure_ascii=False) + "\n")
        keep_preparation(folder, preparation)


def _split_of(folder: Path) -> Split | None:
    try:
        content = json.loads((folder / SPLIT).read_text(encoding="utf-8-sig"))
        return Split(tuple(content["train"]), tuple(content["validation"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _is_finished(folder: Path, split: Split) -> bool:
    """Whether a fold has a whole model that knows its scores, and was trained on this very split."""
    try:
        scored = bool(load_model(folder).description.scores)
    except UsageError:  # no model yet, or a damaged one
        return False
    return scored and (folder / "validation" / "masks" / "cases.csv").is_file() and _split_of(folder) == split


def _of_fold(watch: Watch, number: int, count: int) -> Watch:
    """Return a watch that says which fold it is about."""

    def told(stage: str, done: int, total: int, note: str = "") -> None:
        name = f"fold {number}/{count}"
        watch(f"{name}: {stage}", done, total, note and f"{name}: {note}")

    return told


# ------------------------------------------------------------------------------------------------------------ joining


def _joined(output: Path, found: Examination, plan: Plan) -> Report | None:
    """Score the out-of-fold masks together, and write the ensemble; None when another process is at it.

    Raises:
        ModelError: MODEL-DIFFERS when a fold comes from other settings or other data.
        RunError: RUN-WRITE.
    """
    folders = [output / f"fold-{number}" for number in range(1, len(found.folds) + 1)]
    try:
        with exclusive(output):
            models = [load_model(folder) for folder in folders]
            _gather([folder / "validation" for folder in folders], output / "validation")
            report = score(output / "validation", found.dataset.cases, models[0].labels)
            offsets = dice_offsets(report, [folder / "validation" / "masks" for folder in folders])
            described = {"trained_on": plan.measured.to_dict(), "scores": report.scores(), "dice_offsets": offsets}
            join_models(models, output / "model", **described)
            return report
    except RunError as error:
        if error.code != "RUN-BUSY":
            raise
        return None


def _gather(sources: Sequence[Path], folder: Path) -> None:
    """Copy the masks and references of all folds into one folder, their ledgers joined."""
    masks = folder / "masks"
    rows = [row for source in sources for row in read_rows(source / "masks" / "cases.csv")]
    files = [path for source in sources for path in sorted((source / "masks").glob("*.nii.gz"))]
    claim(masks, "train", ["cases.csv", *(path.name for path in files)])
    for path in files:
        _copy(path, masks / path.name)
    for source in sources:
        for path in sorted((source / "references").glob("*.nii.gz")):
            _copy(path, folder / "references" / path.name)
    Ledger(masks).record(*rows)


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as partial:
        shutil.copyfile(source, partial)

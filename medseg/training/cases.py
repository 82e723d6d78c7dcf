"""The cases of a training run: examined, divided, and prepared in the store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from medseg.case import Case, Finding, Split
from medseg.check import Examination, examine
from medseg.config import Config
from medseg.errors import InputError, RunError, first_line
from medseg.io.atomic import write_text
from medseg.io.hashes import Hashes
from medseg.matching import listed
from medseg.measured import Measures
from medseg.preparation import Preparation
from medseg.progress import Watch
from medseg.reference import READ_BY, describe_all, read_reference
from medseg.store import SliceStore, build_store, stores_beside
from medseg.training.plan import Plan, make_plan

CONFIG = "config.yaml"
"""In a run folder: the settings. With this file the run has begun."""

CASES = "cases.json"
"""In a run folder: the cases that the run began with, by side, each with a hash of its files."""


@dataclass(frozen=True)
class Prepared:
    """What a run trains and validates on.

    Attributes:
        plan: what it does with them.
        held_out: the validation cases.
        store: slices of the training cases.
        held_out_store: slices of the validation cases; None without any.
        left_out: what could not be used, with reasons.
    """

    plan: Plan
    held_out: tuple[Case, ...]
    store: SliceStore
    held_out_store: SliceStore | None
    left_out: tuple[Finding, ...]


@dataclass(frozen=True)
class Shared:
    """What the folds of a cross-validation have in common, made once for all.

    Attributes:
        found: the examined data set, with the split of this fold.
        store: folder of the prepared slices.
    """

    found: Examination
    store: Path


def prepare_cases(
    config: Config,
    output: Path,
    device: torch.device,
    watch: Watch,
    preparation: Preparation | None = None,
    shared: Shared | None = None,
) -> Prepared:
    """Examine the data set of a configuration, plan, and prepare the slices.

    Args:
        config: as `medseg.config.load` gives it.
        output: the run folder.
        device: that will train.
        watch: is told of each case and finding.
        preparation: of the scans, when it was decided before.
        shared: with other folds.

    Raises:
        UsageError: as `medseg.check.examine` and `make_plan`.
        InputError: DATA-EMPTY when no case can be used.
        RunError: RUN-WRITE; RUN-RESUME when the run began with other cases.
    """
    place = shared.store if shared else output / "prepared"
    known = remembered(place)
    found = shared.found if shared else tell(examine(config, watch=watch, known=known), config, watch)
    training, held_out = _sides(found)
    _keep_or_compare(output, {"train": training, "validation": held_out}, known.hashes)
    plan = make_plan(config, found, device, preparation)
    for finding in plan.warnings:
        watch("plan", 1, 1, str(finding))
    watch("plan", 1, 1, f"{len(training)} cases to train on, {len(held_out)} to validate")
    store = _stored(training, plan.preparation, config, place, known, watch)
    held_out_store = _stored(held_out, plan.preparation, config, place, known, watch) if held_out else None
    known.hashes.save()
    left_out = tuple(finding for finding in found.dataset.findings if finding.severity == "error")
    rejected = {**store.rejected, **(held_out_store.rejected if held_out_store else {})}
    left_out += tuple(Finding.from_error(error, case) for case, error in rejected.items())
    return Prepared(plan, tuple(held_out), store, held_out_store, left_out)


def remembered(store: Path) -> Measures:
    """Return what is known of cases and files in a store, or in the stores beside it."""
    others = stores_beside(store)
    hashes = Hashes(store / "hashes.json", [other / "hashes.json" for other in others])
    return Measures(store / "measures", hashes, [other / "measures" for other in others])


def tell(found: Examination, config: Config, watch: Watch) -> Examination:
    """Say what the examination found, before anything is planned; return it."""
    for finding in found.dataset.findings:
        if finding.severity != "note":
            watch("check", 1, 1, str(finding))
    for line in describe_all(found.dataset.cases, config):
        watch("check", 1, 1, line)
    return found


def _sides(found: Examination) -> tuple[list[Case], list[Case]]:
    """Return the cases to train on and those held out; `make_plan` has seen that there is a split."""
    cases = {case.id: case for case in found.dataset.cases}
    split = found.split or Split((), ())
    return [cases[name] for name in split.train], [cases[name] for name in split.validation]


def _keep_or_compare(folder: Path, sides: Mapping[str, Sequence[Case]], hashes: Hashes) -> None:
    """Write down the cases that a run begins with, or make sure that a resumed one goes on with the same.

    Raises:
        RunError: RUN-RESUME with what has changed.
    """
    now = {side: {case.id: hash_case(case, hashes) for case in cases} for side, cases in sides.items()}
    path = folder / CASES
    if not path.is_file() or not (folder / CONFIG).is_file():
        write_text(path, json.dumps(now, indent=1, ensure_ascii=False) + "\n")
        return
    try:
        began = json.loads(path.read_text(encoding="utf-8"))
        changes = _changes({name: dict(began[name]) for name in sides}, now)
    except (OSError, ValueError, LookupError, TypeError) as error:
        problem = f"cannot be read: {first_line(error)}"
        raise RunError("RUN-RESUME", str(path), problem, "Start another run with -o.") from error
    if changes:
        advice = "Put the data back as they were, or start another run with -o."
        raise RunError("RUN-RESUME", "data", f"the cases have changed since the run began: {changes}", advice)


def hash_case(case: Case, hashes: Hashes) -> str:
    """Return a hash of everything that a case is read from; empty when a file cannot be read."""
    references = [item if isinstance(item, Path) else item.path for item in case.references]
    try:
        files = [[hashes.of(path) for path in group] for group in (*(scan.files for scan in case.scans), references)]
    except InputError:  # it is rejected with its reason when it is prepared
        return ""
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:32]


Sides = Mapping[str, Mapping[str, str]]
"""Side -> case id -> hash."""


def _changes(began: Sides, now: Sides) -> str:
    """Say what became of the cases; empty when they are the same."""
    before = {case: (side, digest) for side, cases in began.items() for case, digest in cases.items()}
    after = {case: (side, digest) for side, cases in now.items() for case, digest in cases.items()}
    both = before.keys() & after.keys()
    kinds = {
        "gone or left out": before.keys() - after.keys(),
        "new": after.keys() - before.keys(),
        "with other files": {case for case in both if before[case][1] != after[case][1]},
        "on the other side of the split": {case for case in both if before[case][0] != after[case][0]},
    }
    return "; ".join(f"{kind}: {listed(sorted(cases))}" for kind, cases in kinds.items() if cases)


def _stored(
    cases: Sequence[Case], preparation: Preparation, config: Config, place: Path, known: Measures, watch: Watch
) -> SliceStore:
    done = 0

    def progress(case: Case) -> None:
        nonlocal done
        done += 1
        watch("prepare", done, len(cases))

    settings = config.model_dump(mode="json", include=READ_BY)
    reader = partial(read_reference, config=config)
    store = build_store(cases, place, preparation, reader, settings, progress, known.hashes)
    for case, error in store.rejected.items():
        watch("prepare", done, len(cases), f"error: {case} is left out: {error}")
    return store

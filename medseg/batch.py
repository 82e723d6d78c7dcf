"""Prediction over many scans: a ledger, re-use by content, and one bad scan never stops the others."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg.case import Case, Dataset
from medseg.case_work import ENDINGS, Done, Format, Job
from medseg.config.settings import BatchConfig, PredictConfig
from medseg.dataset import select_cases
from medseg.engines import Choice
from medseg.facts import seen_by
from medseg.io.atomic import move, prove_room, remove_partials, staging, write_text
from medseg.io.workers import MOST
from medseg.lanes import run_cases
from medseg.ledger import CASES, NOT_SELECTED, Ledger, Row, Status, rejected_rows, scan_row
from medseg.models.model_folder import Model, versions
from medseg.one_case import Outcome
from medseg.outputs import claim, outside
from medseg.prediction import Predictor
from medseg.preflight import Forecast, look_ahead, no_scans
from medseg.progress import Watch, silent
from medseg.review import REVIEW, Reviews
from medseg.run_file import RUN, RunFile, read_facts
from medseg.scan import Inventory, take_inventory
from medseg.shards import Shard, check_company, held, join_parts, join_when_last, parts_of
from medseg.stopping import stopping

log = logging.getLogger(__name__)

NOT_TOLD = (
    "the model does not tell how far its training cases reach (an older version trained it): "
    "scans and masks are not compared with them"
)

NOT_CALIBRATED = (
    "too few validation cases told what the model's expected Dice is worth ({}): it ranks the cases in review.csv, and "
    "flags none"
)

FEW_VOXELS = 1 << 23
"""32 slices of 512 x 512: read and written in about the second of processor time that a process takes to start. They
go without, since compressed pixels are decoded in processes of their own anyway."""

STALE = ".stale"
"""Ending of a mask of an earlier run whose case has none now: no program takes it for a mask, and nothing is lost."""


def predict_folder(
    paths: Sequence[Path],
    model: Model,
    output: Path,
    *,
    config: PredictConfig | None = None,
    formats: Sequence[Format] = ("nifti",),
    batch: BatchConfig | None = None,
    watch: Watch = silent,
) -> Ledger:
    """Segment every scan that the model takes.

    Args:
        paths: folders or files with scans.
        model: what to predict with; loaded once.
        output: gets `<case>.nii.gz`, the names of the labels in `labels.json`, the ledger `cases.csv`, what to look at
            first in `review.csv`, and `run.json`.
        config: settings of prediction; the model's own when absent.
        formats: what to write; NIfTI is always written, the DICOM forms for DICOM scans only.
        batch: how many at once, how long each may take.
        watch: is told of each case.

    Returns:
        The ledger: a row for each case. A case whose scan, model and settings are those of an earlier run, and whose
        mask is still the one written, is `reused`; one that failed so is not tried again unless `batch` says so.

    Raises:
        UsageError: USAGE-PATH when a path does not exist, or the output folder holds scans or other results.
        RunError: RUN-BUSY or RUN-WRITE when the output folder cannot be used or is full, RUN-DEVICE.
        KeyboardInterrupt: after Ctrl-C; what is finished is recorded.
    """
    inventory = outside(take_inventory(list(paths)), paths, output)
    cases, rows = choose_cases(inventory, model, paths)
    predictor = Predictor(model, config)
    shard = Shard.parse(batch.shard if batch else None)
    ahead = look_ahead(
        [case for case in cases if shard.has(case.id)],
        [row for row in rows if shard.has(row.case)],
        RunFile(output / RUN),
        model.preparation,
        output,
        objects=len(model.labels) if "dicom-seg" in formats else 0,
    )
    watch("predict", 0, ahead.cases, ahead.text())
    if cases:
        tell_what_is_not_compared(model, watch)
    elif inventory.skipped:
        watch("predict", 0, 0, no_scans(inventory.skipped))
    for line in ahead.warnings():
        log.warning("%s", line)
    return predict_cases(cases, predictor, output, rows=rows, formats=formats, batch=batch, watch=watch)


def predict_cases(
    cases: Sequence[Case],
    predictor: Predictor,
    output: Path,
    *,
    rows: Sequence[Row] = (),
    kept: Sequence[Row] = (),
    formats: Sequence[Format] = ("nifti",),
    batch: BatchConfig | None = None,
    watch: Watch = silent,
) -> Ledger:
    """Segment cases that are chosen already; otherwise as `predict_folder`.

    Args:
        cases: to predict.
        predictor: the model on its device.
        output: the output folder.
        rows: of the ledger, for what is not to be predicted; masks of an earlier run are set aside.
        kept: rows of earlier runs that hold, with their masks.
        formats: what to write.
        batch: how many at once, how long each may take.
        watch: is told of each case.
    """
    batch = batch or BatchConfig()
    shard = Shard.parse(batch.shard)
    cases = [case for case in cases if shard.has(case.id)]
    with held(output, shard), stopping("the cases in hand") as stopped:
        run = _Run(cases, predictor, output, tuple(dict.fromkeys(("nifti", *formats))), batch)
        run.begin([row for row in rows if shard.has(row.case)], kept)
        forecast = Forecast(cases, predictor.model.preparation)
        with staging(output, shard.name) as place:
            jobs = [run.job(case, place) for case in cases]
            with closing(_outcomes(jobs, predictor, batch, stopped)) as outcomes:
                for number, outcome in enumerate(outcomes, start=1):
                    row = run.record(outcome)
                    told = [f"{row.case}: {row.status}{run.remark(row)}"]
                    told.append(forecast.after(row.case, computed=row.status == "done"))
                    watch("predict", number, len(cases), "\n".join(filter(None, told)))
        run.save(complete=not stopped())
    if shard.name:
        join_when_last(output)
    return run.ledger


def _outcomes(
    jobs: Sequence[Job], predictor: Predictor, batch: BatchConfig, stopped: Callable[[], bool]
) -> Generator[Outcome]:
    """Predict here or on a cluster."""
    if batch.cluster:
        from medseg.cluster import run_on_cluster  # an extra

        return run_on_cluster(jobs, predictor, batch.cluster, timeout_s=batch.timeout_s, stopped=stopped)
    count = processes(batch, jobs)
    return run_cases(jobs, predictor, workers=count, timeout_s=batch.timeout_s, stopped=stopped)


def processes(batch: BatchConfig, jobs: Sequence[Job]) -> int:
    """How many processes read and write: as asked, else one for each core; none where starting them costs more."""
    if batch.workers is not None:
        return batch.workers
    if sum(job.voxels for job in jobs) < FEW_VOXELS:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST)


def tell_what_is_not_compared(model: Model, watch: Watch) -> None:
    """Say, once for a command, what the model does not tell: how far its training cases reach, what its doubt means."""
    if seen_by(model.description.trained_on) is None:
        watch("predict", 0, 0, NOT_TOLD)
    if missing := [name for _, name in model.labels if name not in model.description.dice_offsets]:
        watch("predict", 0, 0, NOT_CALIBRATED.format(", ".join(missing)))


def choose_cases(inventory: Inventory, model: Model, roots: Sequence[Path]) -> tuple[tuple[Case, ...], list[Row]]:
    """Choose what a model takes.

    Args:
        inventory: what was found.
        model: says by its channels what it takes.
        roots: the files and folders that were given.

    Returns:
        The cases, and the rows of all that is not to be predicted.
    """
    selection = select_cases(inventory, [channel.select for channel in model.preparation.channels], list(roots))
    return selection.cases, [*rejected_rows(inventory), *_passed_over(inventory, selection)]


def _passed_over(inventory: Inventory, selection: Dataset) -> list[Row]:
    """Return the rows of scans that the model does not take, and of cases that could not be put together."""
    scans = {scan.case_id: scan for scan in inventory.scans}
    rows = []
    for finding in selection.findings:
        scan = scans.get(finding.where)
        if finding.severity == "error" or finding.code == NOT_SELECTED:
            row = scan_row(scan, "rejected") if scan else Row(finding.where, "", "rejected")
            rows.append(replace(row, code=finding.code, message=finding.message))
    return rows


class _Run:
    """One batch in one output folder: what is to be done, and the record of what was."""

    def __init__(
        self,
        cases: Sequence[Case],
        predictor: Predictor,
        output: Path,
        formats: tuple[Format, ...],
        batch: BatchConfig,
    ) -> None:
        self.cases = cases
        self.predictor = predictor
        self.output = output
        self.formats = formats
        self.batch = batch
        self.started = time.time()
        self.shard = Shard.parse(batch.shard)
        self.ledger = Ledger(output, self.shard.named(CASES))
        self.file = RunFile(output / self.shard.named(RUN))
        self._adopt_engine()
        self.ours: frozenset[str] = frozenset()
        self.stages: defaultdict[str, float] = defaultdict(float)
        self.seen = seen_by(predictor.model.description.trained_on)
        self.reviews = Reviews(output / self.shard.named(REVIEW), [name for _, name in predictor.model.labels])

    def begin(self, rows: Sequence[Row], kept: Sequence[Row]) -> None:
        """Claim the folder, clear what a killed run left, and write down what is known before the first case."""
        records = [name for file in (CASES, REVIEW, RUN) for name in (file, self.shard.named(file))] + ["labels.json"]
        masks = [name for case in self.cases for name in self.names(case).values()]
        self.ours = claim(self.output, "predict", [*records, *masks], self.shard.name)
        remove_partials(self.output, self.shard.name)
        if self.shard.name:
            check_company(self.output, self.predictor.model.hash)
            self.file.fill(RunFile(self.output / RUN), self.shard.has)
        elif parts_of(self.output):
            join_parts(self.output)
            self.file = RunFile(self.output / RUN)
        self.ledger.record(*kept, *(self._set_aside(row) for row in rows))
        labels = {str(number): name for number, name in self.predictor.model.labels}
        write_text(self.output / "labels.json", json.dumps(labels, indent=1, ensure_ascii=False))
        self.reviews.record({row.case: review for row in kept if (review := self.file.review(row.case))})

    def _adopt_engine(self) -> None:
        """Take the engine that an earlier run on this folder chose; its masks were made by it."""
        for name in (self.shard.named(RUN), RUN):
            found = read_facts(self.output / name).get("engine")
            if self.predictor.choice is None and found:
                with suppress(ValueError):  # of another version
                    self.predictor.adopt(Choice.model_validate(found))

    def names(self, case: Case) -> dict[Format, str]:
        """Return the name of each file that a case gets."""
        return {form: f"{case.id}{ENDINGS[form]}" for form in self.formats if form == "nifti" or _is_dicom(case)}

    def job(self, case: Case, place: Path) -> Job:
        """Return what is to be done for a case; `place` takes its files until they are whole."""
        predictor, known = self.predictor, self.file.known(case.id)
        return Job(
            case,
            predictor.model.preparation,
            predictor.model.labels,
            predictor.model.hash,
            predictor.rules,
            self.seen,
            predictor.model.description.dice_offsets,
            names=self.names(case),
            output=self.output,
            staging=place,
            known=known if isinstance(known, Done) or not self.batch.retry_failed else None,
        )

    def record(self, outcome: Outcome) -> Row:
        """Give a case's files their names, and write down what became of it.

        Raises:
            RunError: RUN-WRITE when the folder takes no more; what is recorded so far is valid.
        """
        if outcome.code == "RUN-WRITE":
            prove_room(self.output)  # a full disk would fail all the others too, one after the other
        job, case = outcome.job, outcome.job.case
        for kind, seconds in outcome.stages.items():
            self.stages[kind] += seconds
        row = replace(scan_row(case.scans[0], "done"), case=case.id, warnings=_warnings(case), seconds=outcome.seconds)
        if outcome.status in ("done", "reused"):
            if outcome.status == "done":
                for name in job.names.values():
                    move(job.staging / name, self.output / name)
            row = replace(row, status=outcome.status, output="; ".join(job.names.values()))
        else:
            status: Status = "rejected" if outcome.status == "rejected" else "failed"
            row = self._set_aside(replace(row, status=status, code=outcome.code, message=outcome.message))
        self.file.remember(case.id, outcome.remember)
        self.save()  # first: a kill between the two leaves a finished case to be re-used, not done again
        if review := self.file.review(case.id):
            self.reviews.record({case.id: review})
        self.ledger.record(row)
        return row

    def remark(self, row: Row) -> str:
        """Return what is to be said of a case beside its status: why it has no mask, or the flags of the one it has."""
        review = self.file.review(row.case)
        if row.status in ("rejected", "failed") or review is None:
            return f": {row.message}" if row.message else ""
        return "".join(f", {flag.code}" for flag in review.flags)

    def save(self, complete: bool = False) -> None:
        """Write `run.json`; `complete` says that no case is left."""
        model = self.predictor.model
        facts: dict[str, Any] = {
            "versions": versions(),
            "device": self.batch.cluster or str(self.predictor.device),
            "engine": self.predictor.choice and self.predictor.choice.model_dump(mode="json"),
            "model": model.hash,
            "labels": model.description.labels,
            "settings": self.predictor.config.model_dump(mode="json"),
            "complete": complete,
            "totals": self.ledger.counts(),
            "seconds": round(time.time() - self.started, 2),
            "seconds_by_stage": {kind: round(seconds, 2) for kind, seconds in sorted(self.stages.items())},
        }
        self.file.save(facts)

    def _set_aside(self, row: Row) -> Row:
        """Rename the files that an earlier run wrote for a case that has none now, and say so in its row."""
        names = [f"{row.case}{ending}" for ending in ENDINGS.values()]
        aside = [self.output / name for name in names if name in self.ours and (self.output / name).is_file()]
        for path in aside:
            move(path, _free(path.with_name(path.name + STALE)))
        if not aside:
            return row
        self.file.remember(row.case, None)
        told = f"{', '.join(path.name for path in aside)} of an earlier run renamed to ...{STALE}"
        return replace(row, warnings="; ".join(filter(None, (row.warnings, told))))


def _free(path: Path) -> Path:
    number = 1
    while path.exists():
        number += 1
        path = path.with_suffix(f"{STALE}-{number}")
    return path


def _warnings(case: Case) -> str:
    notes = [note for scan in case.scans for note in scan.warnings]
    return "; ".join(f"{note.message} ({note.code})" for note in notes)


def _is_dicom(case: Case) -> bool:
    return case.scans[0].kind == "dicom"

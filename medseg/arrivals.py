"""`medseg watch`: what arrives in a folder is predicted once it has kept still for a while.

The folder is looked at again and again; nothing of the operating system is asked to report changes, which network
shares do not do. A study is complete when none of its files has changed for some seconds. One that grows later is
predicted again. What was done is known from the output folder, by content, so that a restart goes on where it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medseg.batch import choose_cases, predict_cases, tell_what_is_not_compared
from medseg.case import Case
from medseg.case_work import Format
from medseg.config.settings import BatchConfig
from medseg.errors import RunError, UsageError
from medseg.io.files import Found, walk
from medseg.io.lock import exclusive
from medseg.ledger import CASES, Ledger, Row, read_rows
from medseg.outputs import outside
from medseg.prediction import Predictor
from medseg.progress import Watch, silent
from medseg.scan import Inventory, Scan, take_inventory

log = logging.getLogger(__name__)

INTERVAL_S = 30.0
"""Looking at 10,000 files takes about a second on a network share."""

QUIET_S = 60.0
"""Scanners and archives send a series without pauses of a minute."""

Stamp = tuple[int, int, int, int]
Stamps = dict[Path, Stamp]


@dataclass(frozen=True)
class Rhythm:
    """When to look.

    Attributes:
        interval_s: seconds between two looks.
        quiet_s: seconds for which the files of a study must not have changed.
        clock: the seconds of this machine; those of a file server may differ.
        sleep: waits some seconds.
    """

    interval_s: float = INTERVAL_S
    quiet_s: float = QUIET_S
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def predict_arrivals(
    folder: Path,
    predictor: Predictor,
    output: Path,
    *,
    formats: Sequence[Format] = ("nifti",),
    batch: BatchConfig | None = None,
    rhythm: Rhythm | None = None,
    once: bool = False,
    watch: Watch = silent,
) -> Ledger | None:
    """Predict what is in a folder and what arrives there, until the process is stopped.

    Args:
        folder: searched to any depth.
        predictor: the model on its device.
        output: as for `medseg.batch.predict_cases`; may lie in the folder.
        formats: what to write.
        batch: how many at once, how long each may take.
        rhythm: when to look.
        once: end after what keeps still now, rather than wait for more.
        watch: is told of each case.

    Returns:
        With `once` the ledger; None when nothing was there to do.

    Raises:
        UsageError: USAGE-PATH when the folder does not exist, or the output folder holds scans or other results.
        RunError: RUN-BUSY when another process watches into the output folder; RUN-WRITE or RUN-BUSY when it cannot be
            used from the beginning. Later it is said, and tried again at the next look.
        KeyboardInterrupt: after Ctrl-C; what is finished is recorded.
    """
    rhythm = rhythm or Rhythm()
    if not folder.is_dir():
        raise UsageError("USAGE-PATH", str(folder), "there is no such folder", "Check the path.")
    if folder.resolve() == output.resolve():
        problem = "the output folder is the one that is watched, and results are named like scans"
        raise UsageError("USAGE-PATH", str(output), problem, "Choose another folder, such as one below it.")
    with exclusive(output, "watch"):
        arrivals = _Arrivals(folder, predictor, output, formats, batch, rhythm.quiet_s, watch)
        arrivals.look(rhythm.clock())
        tell_what_is_not_compared(predictor.model, watch)
        if once:
            rhythm.sleep(rhythm.quiet_s)
            return arrivals.predict(rhythm.clock())
        patient = False
        while True:
            try:
                arrivals.predict(rhythm.clock())
                patient = True
            except (RunError, UsageError) as error:
                if not patient:
                    raise
                log.warning("%s Trying again in %.0f s.", error, rhythm.interval_s)
            rhythm.sleep(rhythm.interval_s)


class _Arrivals:
    """What is in the folder, since when each file is as it is, and what was done with it."""

    def __init__(
        self,
        folder: Path,
        predictor: Predictor,
        output: Path,
        formats: Sequence[Format],
        batch: BatchConfig | None,
        quiet_s: float,
        watch: Watch,
    ) -> None:
        self._folder = folder
        self._predictor = predictor
        self._output = output
        self._formats = formats
        self._batch = batch
        self._quiet_s = quiet_s
        self._watch = watch
        self._since: dict[Path, tuple[Stamp, float]] = {}
        self._judged: Stamps = {}
        self._rows: list[Row] = []
        self._done: dict[str, Stamps] = {}

    def look(self, now: float) -> Stamps:
        """Look at the files, and return those that have kept still for long enough, with their stamps."""
        files = walk([self._folder])[0]
        own, folder = self._output.resolve(), self._folder.resolve()
        if own.is_relative_to(folder):
            parts = own.relative_to(folder).parts
            files = [found for found in files if found.parts[: len(parts)] != parts]
        self._since = {found.path: self._seen(found, now) for found in files}
        return {path: stamp for path, (stamp, since) in self._since.items() if now - since >= self._quiet_s}

    def _seen(self, found: Found, now: float) -> tuple[Stamp, float]:
        before = self._since.get(found.path)
        return before if before and before[0] == found.stamp else (found.stamp, now)

    def predict(self, now: float) -> Ledger | None:
        """Predict the cases that are complete, and new or changed; None when there is nothing to do."""
        still = self.look(now)
        if still == self._judged:
            return None
        inventory = outside(take_inventory([self._folder], lasting_ids=True), [self._folder], self._output)
        cases, rows = choose_cases(_complete(inventory, still), self._predictor.model, [self._folder])
        stamps = {case.id: _stamps(case, still) for case in cases}
        due = [case for case in cases if stamps[case.id] != self._done.get(case.id)]
        ledger = None
        if due or rows != self._rows:
            kept = _kept(self._output / CASES, {case.id for case in due} | {row.case for row in rows})
            ledger = predict_cases(
                due,
                self._predictor,
                self._output,
                rows=rows,
                kept=kept,
                formats=self._formats,
                batch=self._batch,
                watch=self._watch,
            )
            self._done.update({case.id: stamps[case.id] for case in due})
            self._rows = rows
        self._judged = still
        return ledger


def _complete(inventory: Inventory, still: Mapping[Path, Stamp]) -> Inventory:
    """Leave out the studies of which a file may still change, and files that may still become something."""
    moving = {_study(scan) for scan in inventory.scans if any(file not in still for file in scan.files)}
    return replace(
        inventory,
        scans=tuple(scan for scan in inventory.scans if _study(scan) not in moving),
        skipped=tuple(skipped for skipped in inventory.skipped if skipped.path in still),
    )


def _study(scan: Scan) -> str:
    return scan.study_uid or str(scan.path)


def _stamps(case: Case, still: Mapping[Path, Stamp]) -> Stamps:
    return {file: still[file] for scan in case.scans for file in scan.files}


def _kept(ledger: Path, judged: set[str]) -> list[Row]:
    """Return the earlier rows of cases that are not judged now; their scans may have been taken away since.

    Rejections are judged anew from what is there.
    """
    try:
        rows = read_rows(ledger)
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        log.warning("%s cannot be read: it begins anew", ledger)
        return []
    return [row for row in rows if row.status != "rejected" and row.case not in judged]

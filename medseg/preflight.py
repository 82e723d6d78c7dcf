"""What a batch is about to do, from headers alone, and how long it takes once the first case tells.

Nothing here stops a batch: a person may have started it and gone home.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.case import Case
from medseg.case_work import VOXEL_BYTES, Done
from medseg.codes import CODES
from medseg.io.free import free_disk, free_memory
from medseg.ledger import NOT_SELECTED, Row
from medseg.preparation import Preparation, working_grid
from medseg.run_file import RunFile
from medseg.scan import Skipped

MASK_SHARE = 0.01
"""Bytes on disk for each voxel of a mask: 0.002 measured for five tumours, 0.005 with specks all over."""

OBJECT_SHARE = 1 / 8
"""The same for a DICOM SEG, which is one bit for each voxel and label."""


@dataclass(frozen=True)
class Preflight:
    """What headers tell of a batch.

    Attributes:
        cases: how many will be predicted.
        finished: how many of them an earlier run finished: re-used, unless scan, model or settings have changed.
        refused: code to how many.
        passed_over: scans that the model does not take.
        slices: of all cases, as the model cuts them.
        largest: id, size and bytes in memory of the largest case; None without any.
        disk: bytes that the results take at the most.
        free: bytes of memory and disk that are left; None where that is not known.
    """

    cases: int
    finished: int
    refused: Mapping[str, int]
    passed_over: int
    slices: int
    largest: tuple[str, str, int] | None
    disk: int
    free: tuple[int | None, int | None]

    def text(self) -> str:
        """Return what to tell a person: one line for each matter."""
        again = f", {self.finished} of them finished before: re-used unless something has changed" * bool(self.finished)
        lines = [f"to predict: {self.cases} cases of {self.slices} slices{again}"]
        if self.refused:
            lines.append(f"refused: {sum(self.refused.values())} ({_counted(self.refused)})")
        if self.passed_over:
            lines.append(f"passed over: {self.passed_over} that the model does not take")
        if self.largest:
            case, size, needed = self.largest
            lines.append(f"memory: up to {_bytes(needed)} for the largest, {case} ({size}){_left(self.free[0])}")
            lines.append(f"disk: up to {_bytes(self.disk)} for the results{_left(self.free[1])}")
        return "\n".join(lines)

    def warnings(self) -> list[str]:
        """Return what is likely to go wrong."""
        memory, disk = self.free
        found = []
        if self.largest and memory is not None and self.largest[2] > memory:
            found.append(f"{self.largest[0]} may need more memory than is free; it fails alone, the others go on")
        if disk is not None and self.disk > disk:
            found.append("the disk may fill up; free space while the batch runs, or start again afterwards: it goes on")
        return found


def look_ahead(
    cases: Sequence[Case],
    rows: Sequence[Row],
    known: RunFile,
    preparation: Preparation,
    output: Path,
    *,
    objects: int = 0,
) -> Preflight:
    """Sum up a batch before its first scan is read.

    Args:
        cases: to predict.
        rows: of the ledger, for what is not to be predicted.
        known: what earlier runs on that folder finished.
        preparation: how the model cuts them.
        output: where the results go.
        objects: labels for which a DICOM SEG is written.
    """
    codes = Counter({(row.case, row.source): row.code for row in rows}.values())  # as the ledger: one row for each
    passed_over = codes.pop(NOT_SELECTED, 0)
    sizes = {case.id: voxels_of(case) for case in cases}
    largest = max(cases, key=lambda case: sizes[case.id], default=None)
    voxels = sum(math.prod(grid.shape) for case in cases if (grid := case.scans[0].grid))
    return Preflight(
        cases=len(cases),
        finished=sum(isinstance(known.known(case.id), Done) for case in cases),
        refused=dict(codes),
        passed_over=passed_over,
        slices=sum(working_grid(grid, preparation).shape[2] for case in cases if (grid := case.scans[0].grid)),
        largest=(largest.id, _size(largest), sizes[largest.id] * VOXEL_BYTES) if largest else None,
        disk=int(voxels * (MASK_SHARE + OBJECT_SHARE * objects)),
        free=(free_memory(), free_disk(output)),
    )


def voxels_of(case: Case) -> int:
    """Return the voxels of all its scans; 0 when no header tells."""
    return sum(math.prod(scan.grid.shape) for scan in case.scans if scan.grid)


def _size(case: Case) -> str:
    grid = case.scans[0].grid
    size = "x".join(map(str, grid.shape)) if grid else "unknown size"
    return f"{size}, {len(case.scans)} channels" if len(case.scans) > 1 else size


def no_scans(skipped: Sequence[Skipped]) -> str:
    """Return what was found where no scan was."""
    return f"no scan among {len(skipped)} files: {_counted(Counter(each.code for each in skipped))}"


def _counted(codes: Mapping[str, int]) -> str:
    """Return codes with their meaning, the most frequent first."""
    ordered = sorted(codes, key=lambda code: (-codes[code], code))
    return "; ".join(f"{codes[code]} x {code}, {_meaning(code)}" for code in ordered)


def _meaning(code: str) -> str:
    return CODES.get(code, "").split(";")[0]


def _left(free: int | None) -> str:
    return "" if free is None else f", {_bytes(free // 10**6 * 10**6)} free"  # whole MB, never too many


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{math.ceil(count / 1e6)} MB"


class Forecast:
    """How long a batch still takes, by the pace of the cases behind it.

    The network's work goes by the pixels of the working grid. A case that was re-used or refused tells nothing of it;
    while all were, the clock does not run.

    Args:
        cases: of the batch.
        preparation: how the model cuts them.
        clock: seconds.
    """

    def __init__(
        self, cases: Sequence[Case], preparation: Preparation, clock: Callable[[], float] = time.monotonic
    ) -> None:
        grids = {case.id: case.scans[0].grid for case in cases}
        self._left = {
            case: math.prod(working_grid(grid, preparation).shape) if grid else 0 for case, grid in grids.items()
        }
        self._done = 0
        self._told = False
        self._clock = clock
        self._start = clock()

    def after(self, case: str, computed: bool) -> str:
        """Take note of a case that ended; return what to tell: once, after the first that was computed.

        Args:
            case: its id.
            computed: it was predicted, not re-used, refused or failed.
        """
        work = self._left.pop(case, 0)
        if computed:
            self._done += work
        elif not self._done:
            self._start = self._clock()
        if self._told or not self._done or not self._left:
            return ""
        self._told = True
        seconds = (self._clock() - self._start) / self._done * sum(self._left.values())
        return f"{case} took {shown(self._clock() - self._start)}; the others take about {shown(seconds)} at this pace"


def shown(seconds: float) -> str:
    """Return a length of time in the unit that a person would use."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"

"""`convert`: each usable scan of a folder as NIfTI, with exact voxels and geometry."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from medseg.errors import InputError, MedsegError
from medseg.io.lock import exclusive
from medseg.io.nifti import write_volume
from medseg.ledger import Ledger, Row, Status, rejected_rows, scan_row
from medseg.outputs import claim, outside
from medseg.progress import Watch, silent
from medseg.scan import Scan, read, take_inventory


def convert(paths: Sequence[Path], output: Path, *, watch: Watch = silent) -> Ledger:
    """Write each usable scan as `<case>.nii.gz`, and the ledger `cases.csv`.

    Args:
        paths: folders or files.
        output: folder for the results.
        watch: is told of each case.

    Raises:
        UsageError: USAGE-PATH when a path does not exist, or the output folder holds scans or other results.
        RunError: RUN-BUSY or RUN-WRITE when the output folder cannot be used.
    """
    inventory = outside(take_inventory(list(paths)), paths, output)
    with exclusive(output):
        usable = [scan for scan in inventory.scans if scan.usable]
        claim(output, "convert", ["cases.csv", *(f"{scan.case_id}.nii.gz" for scan in usable)])
        ledger = Ledger(output)
        ledger.record(*rejected_rows(inventory))
        for number, scan in enumerate(usable, start=1):
            row = _convert_one(scan, output)
            ledger.record(row)
            watch("convert", number, len(usable), _news(row))
    return ledger


def _news(row: Row) -> str:
    return f"{row.case}: {row.status}{': ' if row.message else ''}{row.message}"


def _convert_one(scan: Scan, output: Path) -> Row:
    start = time.perf_counter()
    try:
        write_volume(output / f"{scan.case_id}.nii.gz", read(scan))
    except MedsegError as error:
        status: Status = "rejected" if isinstance(error, InputError) else "failed"
        return scan_row(scan, status, error.code, error.message, seconds=time.perf_counter() - start)
    return scan_row(scan, "done", output=f"{scan.case_id}.nii.gz", seconds=time.perf_counter() - start)

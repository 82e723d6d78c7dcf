"""`Ledger`: one row for each case of a batch, on disk after every case."""

from __future__ import annotations

import csv
import io
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from medseg.io.atomic import write_text
from medseg.scan import Inventory, Scan

log = logging.getLogger(__name__)

Status = Literal["done", "reused", "rejected", "failed"]

NOT_SELECTED = "NOT-SELECTED"
"""Code of a scan that was passed over on purpose: in the ledger, but no fault of the batch."""


UNREAD = ("SKIP-DAMAGED", "SKIP-UNREADABLE")
"""Codes of files that may have been scans; the other skipped ones are known to be none."""


FORMULA = ("=", "+", "-", "@", "\t")


@dataclass(frozen=True)
class Row:
    """What became of one case.

    Attributes:
        case: its id.
        source: the file or folder it came from.
        status: `done`; `reused` from an earlier run; `rejected`, the input is unfit; `failed`, medseg or the machine.
        code: why it was rejected or failed.
        message: the same as a sentence.
        warnings: what was noticed and did not stop it.
        output: what was written, relative to the output folder.
        seconds: time spent on it.
    """

    case: str
    source: str
    status: Status
    code: str = ""
    message: str = ""
    warnings: str = ""
    output: str = ""
    seconds: float = 0.0


COLUMNS = tuple(field.name for field in fields(Row))


CASES = "cases.csv"


class Ledger:
    """The rows of a batch and their file; current on disk after each row.

    Args:
        folder: the output folder.
        name: of the file.
    """

    def __init__(self, folder: Path, name: str = CASES) -> None:
        self.path = folder / name
        self._rows: dict[tuple[str, str], Row] = {}
        self._lines: dict[tuple[str, str], str] = {}

    def __iter__(self) -> Iterator[Row]:
        """Iterate over the rows, by case id."""
        return iter(sorted(self._rows.values(), key=lambda row: (row.case, row.source)))

    def __len__(self) -> int:
        """Count the cases."""
        return len(self._rows)

    def record(self, *rows: Row) -> None:
        """Add or replace rows, and write the file.

        Raises:
            RunError: RUN-WRITE.
        """
        for row in rows:
            place = row.case, row.source  # unread files of several folders may share a name
            self._rows[place] = row
            self._lines[place] = _line(asdict(row) | {"seconds": f"{row.seconds:.2f}"})  # once: there may be thousands
        head = _line({name: name for name in COLUMNS})
        write_text(self.path, head + "".join(self._lines[place] for place in sorted(self._lines)))

    def counts(self) -> dict[str, int]:
        """Count the rows of each status; scans not selected stand apart."""
        return dict(Counter("not selected" if row.code == NOT_SELECTED else row.status for row in self))

    @property
    def exit_code(self) -> int:
        """0 when all is done, 1 when nothing could be done, 3 when some cases were rejected or failed."""
        counts = self.counts()
        if not counts.get("done", 0) + counts.get("reused", 0):
            return 1
        return 3 if counts.get("rejected", 0) + counts.get("failed", 0) else 0


def scan_row(
    scan: Scan, status: Status, code: str = "", message: str = "", output: str = "", seconds: float = 0.0
) -> Row:
    """Return the row of one scan; its warnings come along."""
    warnings = "; ".join(f"{note.message} ({note.code})" for note in scan.warnings)
    return Row(scan.case_id, str(scan.path), status, code, message, warnings, output, seconds)


def rejected_rows(inventory: Inventory) -> list[Row]:
    """Return the rows of what cannot be used: rejected scans, and files that could not be read; junk is passed over."""
    rows = [scan_row(scan, "rejected", scan.code, scan.reason) for scan in inventory.scans if not scan.usable]
    rows += [
        Row(skipped.path.name, str(skipped.path), "rejected", skipped.code, skipped.reason)
        for skipped in inventory.skipped
        if skipped.code in UNREAD or not skipped.code.startswith("SKIP-")
    ]
    return rows


def read_rows(path: Path) -> list[Row]:
    """Read a `cases.csv`.

    Raises:
        ValueError: not such a file.
    """
    with path.open(encoding="utf-8", newline="") as file:
        return [_row({key: _plain(value) for key, value in record.items()}) for record in csv.DictReader(file)]


def _row(record: dict[str, str]) -> Row:
    status = record.get("status", "")
    if status not in ("done", "reused", "rejected", "failed"):
        raise ValueError(f"status {status!r}")
    texts = {name: record.get(name, "") for name in ("case", "source", "code", "message", "warnings", "output")}
    return Row(status=status, seconds=float(record.get("seconds") or 0), **texts)  # type: ignore[arg-type]


def _line(record: Mapping[str, object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cell(str(record[name])) for name in COLUMNS)
    return text.getvalue()


def cell(text: str) -> str:
    """Make a text safe as a CSV cell: spreadsheets run cells that begin with = + - @ or a tab as formulas (OWASP).

    Bytes of a file name that are not UTF-8 become question marks; a carriage return, which Python's csv writes unquoted
    and every reader takes for the end of the row, becomes a space.
    """
    clean = text.encode("utf-8", "replace").decode().replace("\r", " ")
    return f"'{clean}" if clean[:1] in FORMULA else clean


def _plain(value: str | None) -> str:
    text = value or ""
    return text[1:] if text[:1] == "'" and text[1:2] in FORMULA else text

"""The listing of `medseg scan`: one row for each series or NIfTI, for people, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from rich.cells import cell_len
from rich.text import Text

from medseg.codes import CODES
from medseg.io.dicom_series import ADVICE
from medseg.ledger import UNREAD, cell
from medseg.scan import Inventory, Scan, Skipped

COLOURS = {"usable": "green", "warning": "yellow", "rejected": "red"}
TITLES = ("case", "kind", "voxels", "spacing mm", "axes", "verdict")
TO_DO = ADVICE | {
    "DICOM-COLOUR": "Pictures and reports are no scans; nothing is lost.",
    "DICOM-LOCALIZER": "It served to plan the others; nothing is lost.",
    "NIFTI-READ": "Copy or download it again.",
    "NIFTI-CHECKSUM": "Copy or download it again.",
    "NIFTI-GEOMETRY": "Convert the scan again from its DICOM files.",
    "NIFTI-DIMENSIONS": "Write each volume to a file of its own.",
    "SKIP-DAMAGED": "Copy or export it again.",
}
"""What to do about a refusal, by code."""

GAP = "  "
INDENT = "    "

NARROWEST = 24
"""Columns of the terminal that ids get at least; longer ids stand on a line of their own."""


@dataclass(frozen=True)
class Listed:
    """One row.

    Attributes:
        case: case id, or the name of a file that could not be read.
        kind: `dicom` or `nifti`, empty for such a file.
        modality: DICOM modality, empty when unknown.
        shape: voxels along i, j, k, such as `512x512x60`.
        spacing_mm: along i, j, k, such as `0.78x0.78x5`.
        orientation: where i, j, k grow to, such as `LPS`.
        verdict: `usable` or `rejected`.
        code: why it is rejected.
        reason: the same as a sentence.
        warnings: what to look at.
        files: number of files.
        source: file or folder.
    """

    case: str
    kind: str
    modality: str
    shape: str
    spacing_mm: str
    orientation: str
    verdict: str
    code: str
    reason: str
    warnings: str
    files: int
    source: str

    @property
    def why(self) -> str:
        """What there is to say about it: the reason with its code and what to do, the warnings."""
        if not self.code:
            return self.warnings
        return " ".join(filter(None, (f"{self.reason} ({self.code}).", TO_DO.get(self.code, ""), self.warnings)))

    @property
    def cells(self) -> tuple[str, ...]:
        """The texts under `TITLES`."""
        kind = self.modality or {"nifti": "NIfTI", "dicom": "DICOM"}.get(self.kind, "")
        texts = (self.case, kind, self.shape, self.spacing_mm, self.orientation, self.verdict)
        return tuple(printable(text) for text in texts)


def table_rows(inventory: Inventory) -> list[Listed]:
    """Return the rows of an inventory: usable scans, rejected ones, then files that may have been scans.

    Files of one folder with one fault are one row; junk is passed over.
    """
    scans = sorted(inventory.scans, key=lambda scan: not scan.usable)
    alike: dict[tuple[Path, str, str], list[Path]] = defaultdict(list)
    for skipped in _unread(inventory):
        alike[skipped.path.parent, skipped.code, skipped.reason].append(skipped.path)
    return [*map(_listed, scans), *(_unread_row(*fault, paths) for fault, paths in alike.items())]


def _unread_row(folder: Path, code: str, reason: str, paths: Sequence[Path]) -> Listed:
    name = and_more([path.name for path in paths])
    source = folder if len(paths) > 1 else paths[0]
    return Listed(name, "", "", "", "", "", "rejected", code, reason, "", len(paths), str(source))


def and_more(names: Sequence[str]) -> str:
    """Return the first of some names, and how many follow."""
    return names[0] + (f" and {len(names) - 1} more" if names[1:] else "")


def _unread(inventory: Inventory) -> list[Skipped]:
    return [skipped for skipped in inventory.skipped if skipped.code in UNREAD]


def _listed(scan: Scan) -> Listed:
    grid = scan.grid
    return Listed(
        case=scan.case_id,
        kind=scan.kind,
        modality=scan.modality,
        shape="x".join(str(n) for n in grid.shape) if grid else "",
        spacing_mm="x".join(f"{s:.3g}" for s in grid.spacing) if grid else "",
        orientation=grid.orientation if grid else "",
        verdict="usable" if scan.usable else "rejected",
        code=scan.code,
        reason=scan.reason,
        warnings="; ".join(f"{note.message} ({note.code})" for note in scan.warnings),
        files=len(scan.files),
        source=str(scan.path),
    )


def summary(inventory: Inventory) -> str:
    """Return the line under the table: how many of what."""
    rows = table_rows(inventory)
    usable = sum(row.verdict == "usable" for row in rows)
    others = Counter(skipped.code for skipped in inventory.skipped if skipped.code not in UNREAD)
    parts = [f"{usable} usable, {len(rows) - usable} rejected" if rows else "no scan found"]
    if inventory.references:
        parts.append(f"{_count(len(inventory.references), 'RTSTRUCT or SEG object')}")
    if others:
        kinds = ", ".join(f"{number} x {CODES[code]}" for code, number in sorted(others.items()))
        parts.append(f"{_count(others.total(), 'other file')} passed over: {kinds}")
    return "; ".join(parts)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# ----------------------------------------------------------------------------------------------------- for people


def to_text(rows: Sequence[Listed], width: int | None = None) -> Text:
    """Return the table: aligned columns, nothing cut; empty without rows.

    Args:
        rows: what to show.
        width: columns of the terminal. A reason that does not fit behind its row is wrapped below it. Without a
            terminal every row is exactly one line, for `grep`.
    """
    if not rows:
        return Text()
    widths = [max(map(cell_len, column)) for column in zip(TITLES, *(row.cells for row in rows), strict=True)]
    if width is not None:
        widths[0] = min(widths[0], max(NARROWEST, width - sum(widths[1:]) - len(GAP) * len(TITLES[1:])))
    header = _aligned(TITLES, widths) + (f"{GAP}why, or what to look at" if any(row.why for row in rows) else "")
    if width is not None:
        header = header[:width].rstrip()
    return Text("\n").join([Text(header, "bold"), *(_row(row, widths, width) for row in rows)])


def _row(row: Listed, widths: Sequence[int], width: int | None) -> Text:
    colour = COLOURS["warning" if row.verdict == "usable" and row.warnings else row.verdict]
    *texts, verdict = row.cells
    line = Text(_aligned(texts, widths) + GAP)
    line.append(verdict, colour)
    why = printable(row.why)
    if not why:
        return line
    room = sum(widths) + len(GAP) * len(widths)
    if width is None or (cell_len(texts[0]) <= widths[0] and room + cell_len(why) <= width):
        return line.append(" " * (widths[-1] - cell_len(verdict)) + GAP + why)
    return line.append("\n" + hanging(why, width, INDENT, INDENT))


def _aligned(texts: Sequence[str], widths: Sequence[int]) -> str:
    """Pad texts to their columns; a first one that is too long gets a line of its own."""
    padded = [text + " " * (size - cell_len(text)) for text, size in zip(texts, widths, strict=False)]
    if cell_len(texts[0]) > widths[0]:
        padded[0] = f"{texts[0]}\n{' ' * widths[0]}"
    return GAP.join(padded)


def hanging(text: str, width: int | None, first: str = "", rest: str = INDENT) -> str:
    """Wrap a text at words, later lines indented; one line without a width. Codes and names are never broken."""
    if width is None:
        return first + text
    return textwrap.fill(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def printable(text: str) -> str:
    """Bytes of a file name that are not UTF-8 become question marks; control characters become spaces."""
    clean = text.encode("utf-8", "replace").decode()
    return "".join(" " if not c.isprintable() else c for c in clean)


# ---------------------------------------------------------------------------------------------------- for machines


def to_csv(rows: Sequence[Listed]) -> str:
    """Return the rows as CSV, formulas in cells disarmed."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Listed)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: cell(str(value)) for key, value in asdict(row).items()})
    return text.getvalue()


def to_json(rows: Sequence[Listed]) -> str:
    """Return the rows as a JSON list."""
    return json.dumps(
        [{k: printable(v) if isinstance(v, str) else v for k, v in asdict(row).items()} for row in rows], indent=1
    )

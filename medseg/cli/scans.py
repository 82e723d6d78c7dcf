"""`medseg scan` and `medseg convert`."""

from __future__ import annotations

from pathlib import Path

from medseg.cli.terminal import DONE, NOTHING_DONE, SOME_REJECTED, Output, close_batch, given, out, plain, screen, width


def scan(*paths: Path, csv: Path | None = None, json: Path | None = None) -> int:
    """List every series and NIfTI below the paths: what it is, whether it can be used, and why not.

    Args:
        paths: folders or files.
        csv: also write the table as CSV.
        json: also write the table as JSON.
    """
    from medseg.io.atomic import write_text
    from medseg.listing import hanging, summary, table_rows, to_csv, to_json, to_text
    from medseg.scan import take_inventory

    inventory = take_inventory(given(paths))
    rows = table_rows(inventory)
    for path, text in ((csv, to_csv), (json, to_json)):
        if path is not None:
            write_text(path, text(rows))
    if rows:
        out.print(to_text(rows, width()))
    out.print(plain(hanging(summary(inventory), width())))
    usable = sum(row.verdict == "usable" for row in rows)
    if not usable:
        return NOTHING_DONE
    return DONE if usable == len(rows) else SOME_REJECTED


def convert(*paths: Path, output: Output) -> int:
    """Write each usable scan as NIfTI with exact voxels and geometry, and the ledger cases.csv.

    Args:
        paths: folders or files.
        output: folder for the results.
    """
    from medseg.convert import convert as run

    return close_batch(run(given(paths), output, watch=screen), output)

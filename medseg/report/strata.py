"""Strata: the same figures for a part of the cases, by a column of a CSV such as site, scanner or sex.

Only columns that are asked for are read, since such tables often hold names and birth dates too.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medseg.errors import UsageError

Columns = dict[str, dict[str, str]]

CASE_COLUMN = "case"

NOT_GIVEN = "not given"
"""Stratum of the cases that have no value."""

MOST_STRATA = 12
"""More different texts in one column are identifiers or free text, not strata."""

PARTS = 3
"""A column of more different numbers than this many times two is cut into so many parts of equal count."""


def read_strata(path: Path, columns: Sequence[str]) -> Columns:
    """Read columns of a CSV that has the case ids in a column `case`.

    Args:
        path: UTF-8, separated by commas or semicolons, first row the names.
        columns: which to read.

    Returns:
        Column to case id to stratum, in the order asked for. Numbers are cut into thirds by rank.

    Raises:
        UsageError: USAGE-PATH when the file cannot be read so; USAGE-OPTION for a column that is not there, or that has
            too many different texts.
    """
    rows = read_rows(path)
    missing = [name for name in (CASE_COLUMN, *columns) if rows and name not in rows[0]]
    if missing or not rows:
        problem = f"no column {missing[0]!r}" if missing else "no row"
        raise UsageError("USAGE-OPTION", path.name, problem, f"The table needs {CASE_COLUMN!r} and what is asked for.")
    return {
        name: _parts(path, name, {row[CASE_COLUMN] or "": (row[name] or "").strip() for row in rows})
        for name in columns
    }


def place(cases: Sequence[str], values: Mapping[str, str]) -> dict[str, list[str]]:
    """Return stratum to its cases, letter case of the ids aside; the cases without a value come last."""
    known = {case.casefold(): value for case, value in values.items()}
    order = list(dict.fromkeys(values.values()))
    found: dict[str, list[str]] = {value: [] for value in [*order, NOT_GIVEN]}
    for case in cases:
        found[known.get(case.casefold(), NOT_GIVEN)].append(case)
    return {value: members for value, members in found.items() if members}


def read_rows(path: Path) -> list[dict[str, str | None]]:
    """Read a CSV, separated by commas or semicolons, as one mapping of column to text for each row.

    Raises:
        UsageError: USAGE-PATH when it cannot be read so.
    """
    try:
        text = path.read_text("utf-8-sig")
        first = text.partition("\n")[0]
        separator = ";" if first.count(";") > first.count(",") else ","
        return [dict(row) for row in csv.DictReader(text.splitlines(), delimiter=separator)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problem = f"not readable as a table ({type(error).__name__})"
        raise UsageError("USAGE-PATH", path.name, problem, "Give a CSV in UTF-8.") from error


def _parts(path: Path, column: str, values: Mapping[str, str]) -> dict[str, str]:
    given = {case: value for case, value in values.items() if value}
    numbers = _numbers(list(given.values()))
    different = len(set(given.values()))
    if numbers is not None and different > 2 * PARTS:
        return _thirds(list(given), numbers)
    if different > MOST_STRATA:
        problem = f"column {column!r} has {different} different values, wanted at most {MOST_STRATA}"
        raise UsageError("USAGE-OPTION", path.name, problem, "Group them, or take another column.")
    return dict(sorted(given.items(), key=lambda item: item[1] if numbers is None else float(item[1])))


def _numbers(texts: Sequence[str]) -> list[float] | None:
    try:
        found = [float(text) for text in texts]
    except ValueError:
        return None
    return found if np.isfinite(found).all() else None


def _thirds(cases: Sequence[str], numbers: Sequence[float]) -> dict[str, str]:
    low, high = (float(q) for q in np.quantile(numbers, (1 / PARTS, 2 / PARTS)))
    names = (f"up to {low:.4g}", f"{low:.4g} to {high:.4g}", f"above {high:.4g}")
    placed = [(int(n > low) + int(n > high), case) for case, n in zip(cases, numbers, strict=True)]
    return {case: names[part] for part, case in sorted(placed)}

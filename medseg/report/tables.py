"""Tables: `scores.csv` with one row for each case, label and metric; LaTeX and Markdown for a paper."""

from __future__ import annotations

import csv
import io
import re

from medseg.ledger import cell
from medseg.metrics import METRICS, OUTCOMES, LabelScores, Metric
from medseg.report.results import Report, Summary
from medseg.statistics import Interval

PAPER_METRICS = ("dice", "iou", "surface_dice", "hd95_mm", "assd_mm", "sensitivity", "precision", "difference_ml")
"""Of a table for a paper; the others stand in the report."""

HEADINGS = ("Label", "Metric", "Cases", "Blank", "Mean (95 % CI)", "Median (95 % CI)")


def to_csv(report: Report) -> str:
    """Return the scores as tidy CSV with the columns `case, label, metric, value`.

    Values are numbers, and empty where blank. Each outcome is a metric of its own (1 or 0). A case whose prediction is
    missing has the further row `missing`, one that was refused only the row `refused`, both without a label and with
    value 1; the reasons are in `report.json`. Texts that a spreadsheet would run as a formula get a leading quote.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "label", "metric", "value"])
    for case in report.cases:
        if case.missing:
            writer.writerow([cell(case.case), "", "missing", 1])
        for scores in case.labels:
            writer.writerows([cell(case.case), cell(scores.label), name, value] for name, value in _rows(scores))
    for refusal in report.refused:
        writer.writerow([cell(refusal.case), "", "refused", 1])
    return text.getvalue()


def _rows(scores: LabelScores) -> list[tuple[str, str]]:
    numbers = [(metric.name, scores.value(metric.name)) for metric in METRICS]
    outcomes = [(outcome.replace(" ", "_"), int(scores.outcome == outcome)) for outcome in OUTCOMES]
    return [(name, "" if value is None else repr(value)) for name, value in numbers] + [
        (n, str(v)) for n, v in outcomes
    ]


def to_markdown(report: Report) -> str:
    """Return the summary as a Markdown table, with the outcomes and the rule for empty masks below it."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---|---|--:|--:|--:|--:|"]
    lines += ["| " + " | ".join(_markdown(text) for text in row) + " |" for row in _table(report)]
    return "\n".join([*lines, "", *(_markdown(note) for note in _notes(report))]) + "\n"


def to_latex(report: Report) -> str:
    """Return the summary as a LaTeX table for the package booktabs; names are escaped, and cannot be commands.

    Each label is a line above its metrics, and the letters are small: so it fits the page of a plain article.
    """
    rows, above = [], ""
    for label, *cells in _table(report):
        if label != above:
            rows.append(rf"\multicolumn{{5}}{{l}}{{\emph{{{_latex(label)}}}}} \\")
        rows.append(" & ".join(_latex(text) for text in cells) + r" \\")
        above = label
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
            r"\caption{" + " ".join(_latex(note) for note in _notes(report)) + "}",
            r"\begin{tabular}{lrrrr}",
            r"\toprule",
            " & ".join(_latex(text) for text in HEADINGS[1:]) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _table(report: Report) -> list[tuple[str, ...]]:
    return [
        _row(report, result.label, metric, result.summary(metric.name))
        for result in report.results
        for metric in METRICS
        if metric.name in PAPER_METRICS
    ]


def _row(report: Report, label: str, metric: Metric, summary: Summary) -> tuple[str, ...]:
    title = metric.title + (f" at {report.tolerance_mm:g} mm" if metric.name == "surface_dice" else "")
    digits = 2 if metric.unit else 3
    return (
        label,
        f"{title} ({metric.unit})" if metric.unit else title,
        str(summary.cases),
        str(summary.blank),
        _estimate(summary.mean, summary.mean_interval, digits),
        _estimate(summary.median, summary.median_interval, digits),
    )


def _estimate(value: float | None, ends: Interval | None, digits: int) -> str:
    if value is None:
        return "–"
    spread = f" ({ends.low:.{digits}f} to {ends.high:.{digits}f})" if ends else ""
    return f"{value:.{digits}f}{spread}".replace("-", "−")


def _notes(report: Report) -> list[str]:
    notes = []
    for result in report.results:
        counts = ", ".join(f"{result.outcomes[outcome]} {outcome}" for outcome in OUTCOMES)
        missing = f" ({result.missing} without a mask)" if result.missing else ""
        notes.append(f"{result.label}: {counts}{missing}.")
    if report.refused:
        notes.append(f"{len(report.refused)} cases were refused and are not in the figures.")
    return [*notes, report.rule, "Intervals: 95 %, over patients."]


def _markdown(text: str) -> str:
    # HTML too is Markdown; a line break would end the row.
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~$&-])", r"\\\1", " ".join(text.split()))


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "–": "--",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",  # after a line's end it would open that command's argument
    "]": "{]}",
} | {sign: f"\\{sign}" for sign in "&%$#_{}"}


def _latex(text: str) -> str:
    clean = "".join(sign if sign.isprintable() else " " for sign in text)
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(clean.split()))

"""Figures for a paper, as SVG and PNG: drawn without a screen, in colours that everybody can tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from medseg.io.atomic import atomic_path
from medseg.metrics import METRICS
from medseg.report.compare import Difference
from medseg.report.results import LabelReport, Report

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#5b6877"
"""From the palette of Okabe and Ito (2008)."""

MARKERS = {"hit": "o", "missed": "x", "false alarm": "^"}

INCHES = (5.0, 3.2)
"""Within the width of a column and a half."""

DPI = 300
"""What journals ask of raster figures."""

STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a label is text, not a formula, whatever dollar signs it holds
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "medseg",  # the same report gives the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def write_figures(report: Report, folder: Path) -> list[Path]:
    """Write the figures of a report: Dice by label, and for each label Dice against size and agreement of volumes.

    Returns:
        The files. A figure with fewer than three cases is left out.

    Raises:
        RunError: RUN-WRITE.
    """
    written = _save(dice_figure(report), folder, "dice")
    for number, result in enumerate(report.results, start=1):  # by number: a label's name need not fit a file's
        for name, figure in (("size", size_figure(report, result)), ("volumes", volume_figure(report, result))):
            written += _save(figure, folder, f"{name}-{number}") if figure else []
    return written


def write_difference_figure(difference: Difference, folder: Path, name: str) -> list[Path]:
    """Write the figure of one comparison as `name`.svg and `name`.png.

    Raises:
        RunError: RUN-WRITE.
    """
    return _save(difference_figure(difference), folder, name)


def dice_figure(report: Report) -> Figure:
    """Draw every case's Dice by label, over the box of the quartiles, with the mean and its 95 % interval."""
    with mpl.rc_context(STYLE):
        figure, axes = _new((INCHES[0], 1.0 + 0.7 * len(report.results)))
        rng = np.random.default_rng(0)  # dots of equal Dice are set apart, the same way each time
        for row, result in enumerate(report.results):
            _row(axes, report, result, row, rng)
        axes.set_yticks(range(len(report.results)), [result.label for result in report.results])
        axes.set_ylim(len(report.results) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel("Dice (diamond and bar: mean and its 95 % interval)")
    return figure


def size_figure(report: Report, result: LabelReport) -> Figure | None:
    """Draw Dice against the reference's volume; None with fewer than three such cases."""
    scores = [case.label(result.label) for case in report.cases]
    shown = [(s.reference_ml, s.dice, s.outcome) for s in scores if s.dice is not None and s.reference_ml > 0]
    if len(shown) < 3:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = _new(INCHES)
        for outcome, marker in MARKERS.items():
            here = [(volume, dice) for volume, dice, found in shown if found == outcome]
            if here:
                volumes, dice = np.array(here).T
                axes.plot(volumes, dice, marker, color=BLUE if outcome == "hit" else ORANGE, ms=4, label=outcome)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        # The scale's own formatter writes formulas, and formulas are switched off.
        axes.xaxis.set_major_formatter(FuncFormatter(lambda volume, _: f"{volume:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("Reference volume (ml)")
        axes.set_ylabel(f"Dice, {result.label}")
        axes.legend(frameon=False)
    return figure


def volume_figure(report: Report, result: LabelReport) -> Figure | None:
    """Draw the plot of Bland and Altman; None without agreement statistics."""
    if result.volumes is None:
        return None
    scores = [s for case in report.cases if (s := case.label(result.label)).outcome != "truly empty"]
    pairs = [(s.reference_ml, s.prediction_ml) for s in scores if s.prediction_ml is not None]
    reference, prediction = np.array(pairs).T
    with mpl.rc_context(STYLE):
        figure, axes = _new(INCHES)
        axes.plot((reference + prediction) / 2, prediction - reference, "o", color=BLUE, ms=4)
        for level, line in ((result.volumes.bias, "-"), (result.volumes.low, "--"), (result.volumes.high, "--")):
            axes.axhline(level, color=GREY, ls=line, lw=1)
            text = f"{level:.3g}".replace("-", "−")
            axes.annotate(text, (1, level), xycoords=("axes fraction", "data"), fontsize=8, va="bottom")
        axes.set_xlabel("Mean of mask and reference (ml)")
        axes.set_ylabel(f"Mask minus reference (ml), {result.label}")
    return figure


def difference_figure(difference: Difference) -> Figure:
    """Draw the change of each case, worst first, with the mean change and its 95 % interval."""
    metric = next(metric for metric in METRICS if metric.name == difference.metric)
    gain = -1 if metric.better == "lower" else 1
    changes = np.array([change.change for change in difference.changes])
    with mpl.rc_context(STYLE):
        figure, axes = _new(INCHES)
        place = np.arange(len(changes))
        for sign, colour, marker in ((1, BLUE, "o"), (0, GREY, "o"), (-1, ORANGE, "v")):
            here = np.sign(gain * changes) == sign
            axes.vlines(place[here], 0, changes[here], color=colour, lw=1)
            axes.plot(place[here], changes[here], marker, color=colour, ms=4)
        axes.axhline(0, color="black", lw=0.8)
        axes.axhline(difference.test.difference, color=GREY, lw=1.2)
        if difference.test.interval:
            axes.axhspan(difference.test.interval.low, difference.test.interval.high, color=GREY, alpha=0.2, lw=0)
        unit = f" ({metric.unit})" if metric.unit else ""
        axes.set_xticks([])
        axes.set_xlabel(f"{len(changes)} cases, {difference.label} (line and band: mean and its 95 % interval)")
        axes.set_ylabel(f"{metric.title}{unit}: {difference.second} minus {difference.first}")
    return figure


def _row(axes: Axes, report: Report, result: LabelReport, row: int, rng: np.random.Generator) -> None:
    summary = result.summary("dice")
    scores = [case.label(result.label) for case in report.cases]
    for outcome, marker in MARKERS.items():
        values = [s.dice for s in scores if s.outcome == outcome and s.dice is not None]
        lift = row + rng.uniform(-0.18, 0.18, len(values))
        axes.plot(values, lift, marker, color=BLUE if outcome == "hit" else ORANGE, ms=3, alpha=0.7)
    if summary.quartiles and summary.median is not None:
        low, high = summary.quartiles
        axes.barh(row, high - low, 0.5, low, color=BLUE, alpha=0.15, lw=0)
        axes.plot([summary.median] * 2, [row - 0.25, row + 0.25], color=BLUE, lw=1.5)
    if summary.mean is not None:
        axes.plot(summary.mean, row, "D", color="black", ms=5)
    if summary.mean_interval:
        axes.plot([summary.mean_interval.low, summary.mean_interval.high], [row, row], color="black", lw=2)


def _new(inches: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=inches, layout="constrained")
    return figure, figure.add_subplot()


def _save(figure: Figure, folder: Path, name: str) -> list[Path]:
    written = []
    with mpl.rc_context(STYLE):
        for kind in ("svg", "png"):
            path = folder / f"{name}.{kind}"
            with atomic_path(path) as partial:
                # No date: the same report gives the same file.
                figure.savefig(partial, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
            written.append(path)
    return written

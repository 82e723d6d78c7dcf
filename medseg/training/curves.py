"""`curves.png`: how loss, validation Dice and learning rate went, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medseg.io.atomic import atomic_path
from medseg.training.history import Epoch

BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
"""From the palette of Okabe and Ito (2008): told apart by everybody; the panels carry their names all the same."""

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}

INCHES = (7.0, 6.0)
DPI = 100


def write_curves(path: Path, history: Sequence[Epoch], epochs: int) -> None:
    """Write the curves of a run as a PNG; one that is there is replaced in one step.

    Args:
        path: of the picture.
        history: one epoch or more.
        epochs: that the run will have: the right end of the axis, so that one sees how far it is.

    Raises:
        RunError: RUN-WRITE.
    """
    with mpl.rc_context(STYLE):
        figure = curves(history, epochs)
        with atomic_path(path) as partial:
            figure.savefig(partial, format="png", dpi=DPI)


def curves(history: Sequence[Epoch], epochs: int) -> Figure:
    """Draw loss, Dice (when anything was validated) and learning rate, one above the other."""
    scored = [row for row in history if not math.isnan(row.dice)]
    figure = Figure(figsize=INCHES, layout="constrained")
    panels = list(figure.subplots(3 if scored else 2, 1, sharex=True, height_ratios=[3, 3, 2] if scored else [3, 2]))
    _line(panels[0], history, [row.loss for row in history], BLUE, "training loss")
    if scored:
        _dice(panels[1], scored)
    _line(panels[-1], history, [row.learning_rate for row in history], GREEN, "learning rate")
    panels[-1].set_ylim(bottom=0)
    panels[-1].set_xlabel("epoch")
    panels[-1].set_xlim(0.5, max(epochs, len(history)) + 0.5)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels()
    return figure


def _dice(axes: Axes, scored: Sequence[Epoch]) -> None:
    _line(axes, scored, [row.dice for row in scored], ORANGE, "validation Dice")
    best = max(scored, key=lambda row: row.dice)
    axes.plot(best.epoch, best.dice, "D", color="black", ms=5, label=f"best: {best.dice:.3f}, epoch {best.epoch}")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, loc="lower right")


def _line(axes: Axes, rows: Sequence[Epoch], values: Sequence[float], colour: str, name: str) -> None:
    few = len(rows) <= 50  # then each epoch gets a dot of its own
    axes.plot([row.epoch for row in rows], values, color=colour, lw=1.5, marker="o" if few else None, ms=3)
    axes.set_ylabel(name)

"""What happened epoch by epoch: as `metrics.csv`, and as lines with the time left."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from medseg.io.atomic import write_text

METRICS = "metrics.csv"
"""In a run folder: a row for each epoch."""


@dataclass(frozen=True)
class Epoch:
    """One epoch.

    Attributes:
        epoch: its number, from 1.
        loss: mean training loss of its steps.
        dice: mean validation Dice by whole volume on the working grid; NaN when not validated.
        learning_rate: of its last step.
        seconds: it took, validation included.
        best: whether its weights were the best so far.
        waiting: share of the training time in which the network waited for data, 0 to 1.
    """

    epoch: int
    loss: float
    dice: float
    learning_rate: float
    seconds: float
    best: bool
    waiting: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)


RECENT = 10
"""Epochs whose mean time tells how long the others will take: few enough to follow a machine that others use too."""


def line(history: Sequence[Epoch], epochs: int) -> str:
    """Return one line for people about the last epoch, with the time left for the others."""
    row, recent = history[-1], history[-RECENT:]
    dice = "" if math.isnan(row.dice) else f"  Dice {row.dice:.4f}{' (best)' if row.best else ''}"
    left = (epochs - row.epoch) * sum(epoch.seconds for epoch in recent) / len(recent)
    rest = f", {time_left(left)}" if left else ""
    return f"epoch {row.epoch:>3}/{epochs}  loss {row.loss:.4f}{dice}  {row.seconds:.0f} s{rest}"


LATE = 1.1
"""Times its budget a run may take before a word is said: the number of steps was counted from a few of them."""


def overrun_s(history: Sequence[Epoch], epochs: int, budget_s: float) -> float:
    """Return by how many seconds the epochs alone will exceed a budget; 0 when they do not, or not clearly.

    One slow epoch among two or more says little: what is to come is reckoned by the median.
    """
    if len(history) < 2:
        return 0.0
    done, each = sum(epoch.seconds for epoch in history), median(epoch.seconds for epoch in history[-RECENT:])
    whole = done + (epochs - history[-1].epoch) * each
    return whole - budget_s if whole > LATE * budget_s else 0.0


def write_history(folder: Path, history: Sequence[Epoch]) -> None:
    """Write `metrics.csv`; a cell without a number is empty.

    Raises:
        RunError: RUN-WRITE.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Epoch)], lineterminator="\n")
    writer.writeheader()
    for row in history:
        record = row.to_dict()
        writer.writerow({key: "" if isinstance(v, float) and math.isnan(v) else v for key, v in record.items()})
    write_text(folder / METRICS, text.getvalue())


def time_left(seconds: float) -> str:
    """Return a rough time for people: "about 1 h 4 min left"."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute left"
    hours, minutes = divmod(minutes, 60)
    return f"about {f'{hours} h ' if hours else ''}{minutes} min left"

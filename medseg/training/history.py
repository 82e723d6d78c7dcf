"""What happened epoch by epoch: `metrics.csv` and, as an extra, TensorBoard."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medseg.errors import ConfigError
from medseg.io.atomic import write_text


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
    """

    epoch: int
    loss: float
    dice: float
    learning_rate: float
    seconds: float
    best: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)

    def line(self, epochs: int) -> str:
        """One line for people."""
        dice = "" if math.isnan(self.dice) else f"  Dice {self.dice:.4f}{' (best)' if self.best else ''}"
        return f"epoch {self.epoch:>3}/{epochs}  loss {self.loss:.4f}{dice}  {self.seconds:.0f} s"


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
    write_text(folder / "metrics.csv", text.getvalue())


def require_tensorboard() -> None:
    """Make sure that TensorBoard is there (extra `tensorboard`), before a run that is to write its events.

    Raises:
        ConfigError: CONFIG-VALUE when the package is absent.
    """
    if find_spec("tensorboard") is None:
        advice = "Install medseg[tensorboard], or leave train.tensorboard out."
        raise ConfigError("CONFIG-VALUE", "train.tensorboard", "the package tensorboard is not installed", advice)


def write_tensorboard(folder: Path, history: Sequence[Epoch]) -> None:
    """Write the same curves as TensorBoard events."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for row in history:
            for name in ("loss", "dice", "learning_rate"):
                value = getattr(row, name)
                if not math.isnan(value):
                    writer.add_scalar(name, value, row.epoch)

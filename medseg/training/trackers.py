"""`Tracker`: what follows a run elsewhere, such as TensorBoard, MLflow or a laboratory's own web page.

Trackers are objects that a script hands to `medseg.training.train`; a configuration can only switch on the ones that
are known by name here, because it must never run code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from medseg.errors import ConfigError
from medseg.training.history import Epoch

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Tracker(Protocol):
    """Told of a run as it goes. What it raises costs a warning and the tracker, never the run."""

    def start(self, settings: Mapping[str, object]) -> None:
        """Begin.

        Args:
            settings: `section.key` to value, and the name of the run's `folder`; no paths.
        """

    def epoch(self, row: Epoch) -> None:
        """Take one epoch; a resumed run first tells all epochs that it had."""

    def finish(self) -> None:
        """End; not called when the process is killed."""


class TensorBoard:
    """Writes loss, Dice and learning rate as TensorBoard events (extra `tensorboard`).

    Args:
        folder: for the events.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def start(self, settings: Mapping[str, object]) -> None:
        """Write the settings as a table, and hide what a run that was stopped had written."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=1)
        rows = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
        self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}", 0)

    def epoch(self, row: Epoch) -> None:
        """Write the numbers that there are; they can be seen at once."""
        if self._writer is None:
            return
        for name in ("loss", "dice", "learning_rate"):
            value = getattr(row, name)
            if not math.isnan(value):
                self._writer.add_scalar(name, value, row.epoch)
        self._writer.flush()

    def finish(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


def require_tensorboard() -> None:
    """Make sure that TensorBoard is there (extra `tensorboard`), before a run that is to write its events.

    Raises:
        ConfigError: CONFIG-VALUE when the package is absent.
    """
    if find_spec("tensorboard") is None:
        advice = "Install medseg[tensorboard], or leave train.tensorboard out."
        raise ConfigError("CONFIG-VALUE", "train.tensorboard", "the package tensorboard is not installed", advice)

"""`Showing`: everything that can be seen of a run while it goes: curves, overlays, trackers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from operator import methodcaller
from pathlib import Path
from typing import Any, Self

from medseg.config import Config
from medseg.config.duration import seconds, written
from medseg.errors import first_line
from medseg.models import Network
from medseg.training.curves import write_curves
from medseg.training.data import VolumeDice
from medseg.training.history import Epoch, overrun_s
from medseg.training.overlays import choose_slices, write_overlay
from medseg.training.trackers import TensorBoard, Tracker

log = logging.getLogger(__name__)

LARGEST_SHARE = 0.01
"""Of the run's time may go into drawing curves: where epochs take seconds, not every one is drawn."""


class Showing:
    """Shows a run; called after each epoch, a context around the whole.

    Args:
        folder: the run folder.
        config: of the run, filled in.
        trackers: to tell.
        validation: the held-out cases; None without any.
    """

    def __init__(
        self, folder: Path, config: Config, trackers: Sequence[Tracker], validation: VolumeDice | None
    ) -> None:
        self._folder = folder
        self._config = config
        self._trackers = [*trackers, *([TensorBoard(folder / "tensorboard")] if config.train.tensorboard else [])]
        self._validation = validation
        self._slices = choose_slices(validation.store) if validation and config.train.overlays else []
        self._epochs = config.train.epochs or 1
        self._history: Sequence[Epoch] = ()
        self._drawn, self._draw_again_s = 0, 0.0
        self._late = False

    def __enter__(self) -> Self:
        """Tell the trackers that the run begins."""
        paths: dict[str, Any] = {"data": True, "start": {"model"}}  # nobody else's business
        settings = {"folder": self._folder.name, **flat(self._config.model_dump(mode="json", exclude=paths))}
        self._tell(methodcaller("start", settings))
        return self

    def __call__(self, network: Network, history: Sequence[Epoch]) -> None:
        """Show what the last epoch gave.

        Raises:
            RunError: RUN-WRITE.
        """
        new = history[len(self._history) :]
        self._history = list(history)
        for row in new:
            self._tell(methodcaller("epoch", row))
        if time.perf_counter() >= self._draw_again_s:
            self._draw()
        if self._config.budget and not self._late:
            self._late = self._is_late(self._config.budget)
        epoch, epochs = history[-1].epoch, self._epochs
        if self._slices and self._validation and is_shown(epoch, epochs, self._config.train.overlays):
            rows_mm, columns_mm = self._config.prepare.spacing_mm or (1.0, 1.0)
            path = self._folder / "overlays" / f"epoch-{epoch:03}.png"
            title = f"epoch {epoch} of {epochs}"
            write_overlay(path, title, self._slices, network, self._validation, rows_mm / columns_mm)

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """Draw what was not drawn, and tell the trackers that it is over."""
        if kind is None and self._drawn < len(self._history):
            self._draw()
        self._tell(methodcaller("finish"))

    def _is_late(self, budget: str) -> bool:
        """Say so, once, when the machine does less than it did when the steps were counted."""
        late_s = overrun_s(self._history, self._epochs, seconds(budget))
        if late_s:
            log.warning(
                "the machine is slower than when the steps were counted: it will take about %s more than the budget of "
                "%s. The steps stay as they are, so that the result does; Ctrl-C keeps what is there for --resume",
                written(late_s),
                budget,
            )
        return bool(late_s)

    def _draw(self) -> None:
        started = time.perf_counter()
        write_curves(self._folder / "curves.png", self._history, self._epochs)
        now = time.perf_counter()
        self._drawn, self._draw_again_s = len(self._history), now + (now - started) / LARGEST_SHARE

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                what(tracker)
            except Exception as error:  # noqa: BLE001  others' code: hours of training are worth more
                self._trackers.remove(tracker)
                name = type(tracker).__name__
                log.warning("the tracker %s failed and is told no more: %s", name, first_line(error))


def is_shown(epoch: int, epochs: int, pictures: int) -> bool:
    """Tell whether an epoch (from 1) gets one of the pictures, which are evenly spread and include the last epoch."""
    return epoch * pictures // epochs > (epoch - 1) * pictures // epochs


def flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested settings as `section.key` to value."""
    found: dict[str, object] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found

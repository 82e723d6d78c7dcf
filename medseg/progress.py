"""How long work tells of itself: the library calls a `Watch`, the command line shows it."""

from __future__ import annotations

from typing import Protocol


class Watch(Protocol):
    """Called as work goes on."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Take one step of news.

        Args:
            stage: what is being done ("prepare", "epoch 3", "predict").
            done: steps behind.
            total: steps in all.
            note: something worth a line of its own; empty for plain progress.
        """


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Watch nothing."""

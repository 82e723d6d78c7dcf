"""Ctrl-C that finishes what is in hand: the first asks, the second drops. SIGTERM, which worse follows soon, drops."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether to stop; on leaving, KeyboardInterrupt when it came to that.

    Only a program's main thread hears signals; in any other the function says no.

    Raises:
        KeyboardInterrupt: at the end after a first Ctrl-C; at once, wherever the main thread is, after a second and
            after SIGTERM.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def hear(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM or asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        log.warning("stopping after the cases in hand; once more drops them")

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked.is_set():
        raise KeyboardInterrupt

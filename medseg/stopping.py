"""Signals to stop: the first Ctrl-C asks to finish what is in hand, the second drops it.

SIGTERM, which worse follows soon, drops what may take long, and asks where a moment is enough.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)

WARNINGS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
"""What clusters send before they kill a job: SIGTERM, or what `sbatch --signal=USR1@60` names."""


@contextmanager
def stopping(in_hand: str, at_once: bool = True) -> Iterator[Callable[[], bool]]:
    """Give a function that says whether to stop; on leaving, KeyboardInterrupt when it came to that.

    Only a program's main thread hears signals; in any other the function says no.

    Args:
        in_hand: what is finished first, for the message.
        at_once: whether SIGTERM drops it; otherwise SIGTERM and SIGUSR1 ask, as a first Ctrl-C does.

    Raises:
        KeyboardInterrupt: at the end after a first Ctrl-C; at once, wherever the main thread is, after a second, and
            after SIGTERM if it drops.
    """
    signals = [signal.SIGINT, *([signal.SIGTERM] if at_once else WARNINGS)]
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def hear(number: int, frame: FrameType | None) -> None:
        if (at_once and number == signal.SIGTERM) or asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        log.warning("stopping after %s; once more stops at once", in_hand)

    before = {number: signal.signal(number, hear) for number in signals}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked.is_set():
        raise KeyboardInterrupt

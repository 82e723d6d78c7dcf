"""Work done in processes of their own: a codec that crashes or hangs costs one file, and many headers are read at once.

The processes are plain Python interpreters that are told what to call through a pipe. `multiprocessing` is not used:
its children run the user's main script again, and a pool that loses a child loses the whole work.
"""

from __future__ import annotations

import atexit
import logging
import os
import pickle  # the two ends of a private pipe are one program: nothing from outside is ever unpickled
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, TypeVar

log = logging.getLogger(__name__)

Result = TypeVar("Result")

PATIENCE_S = 300.0
"""Longest time for one call: the slowest honest frame (4096 x 4096, JPEG 2000) takes a few seconds."""

MOST = 4
"""Processes at most: a hospital workstation's disk is busy with four, and each holds 60 MB."""

PIPE_BYTES = 1 << 20
"""The most that Linux grants to anybody; elsewhere it is ignored."""

_LENGTH = struct.Struct("<Q")


class CrashError(Exception):
    """The process died, or had to be ended, during a call."""


class Worker:
    """One process, started at its first call and again after a crash."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def call(self, function: Callable[..., Result], *arguments: object, patience_s: float = PATIENCE_S) -> Result:
        """Call a function of some module in the process.

        Raises:
            CrashError: when the process died or took longer than `patience_s`; the next call starts a new one.
            Exception: what the function raised.
        """
        try:
            process = self._running()
        except OSError:  # no interpreter to start (a frozen program), or no room for one
            log.warning("no process can be started: the work is done without its protection", exc_info=True)
            return function(*arguments)
        timer = threading.Timer(patience_s, process.kill)
        timer.start()
        try:
            assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018  both are pipes
            _send(process.stdin, (function, arguments))
            reply = _receive(process.stdout)
        except (OSError, EOFError) as error:
            self.close()
            raise CrashError("the process that did the work died") from error
        except BaseException:  # interrupted between question and answer: the answer must not meet another question
            self.close()
            raise
        finally:
            timer.cancel()
        succeeded, value = reply
        if not succeeded:
            raise value
        return value  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    _close(pipe)
            process.wait()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._owner != os.getpid():  # forked: the process belongs to the parent
            self._process = None
        if self._process is None or self._process.poll() is not None:
            self.close()
            start = f"import sys; sys.path[:] = {sys.path!r}; from medseg.io.workers import serve; serve()"
            self._process = subprocess.Popen(  # noqa: S603  our own code
                [sys.executable, "-c", start],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # codecs print to it what nobody can use
                pipesize=PIPE_BYTES,
            )
            self._owner = os.getpid()
        return self._process


def _close(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except OSError:  # what was not yet sent has nobody to go to
        return


_idle: list[Worker] = []
_lock = threading.Lock()


@atexit.register
def _end_all() -> None:
    while _idle:
        _idle.pop().close()


def call(function: Callable[..., Result], *arguments: object, patience_s: float = PATIENCE_S) -> Result:
    """Call a function in a process of its own, which is kept for the next call; errors as `Worker.call`."""
    with _lock:
        worker = _idle.pop() if _idle else Worker()
    try:
        return worker.call(function, *arguments, patience_s=patience_s)
    finally:
        with _lock:
            _idle.append(worker)


def call_all(
    function: Callable[..., Result], jobs: Iterable[tuple[object, ...]], processes: int
) -> Iterator[Result | None]:
    """Call a function for each tuple of arguments in some processes, and yield the results in the order of the jobs.

    At most two jobs for each process are under way or waiting to be taken, so that memory does not grow with the jobs.
    A job that brought its process down gives None.

    Raises:
        Exception: at its place, what the function raised.
    """
    waiting: deque[Future[Result | None]] = deque()
    with ThreadPoolExecutor(processes) as threads:
        try:
            for job in jobs:
                waiting.append(threads.submit(_call_or_none, function, *job))
                if len(waiting) > 2 * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            threads.shutdown(wait=True, cancel_futures=True)


def _call_or_none(function: Callable[..., Result], *arguments: object) -> Result | None:
    try:
        return call(function, *arguments)
    except CrashError:
        return None


def processes_for(jobs: int, each: int) -> int:
    """How many processes pay for their start (about a second) when each takes at least `each` jobs; 1 to `MOST`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, MOST, jobs // each))


def serve() -> None:
    """Answer calls until the pipe is closed: what a worker process does."""
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not print into the answers
    while True:
        try:
            function, arguments = _receive(inbox)
        except EOFError:
            return
        try:
            reply = True, function(*arguments)
        except Exception as error:  # noqa: BLE001  it is raised again in the process that asked
            reply = False, error if _survives(error) else RuntimeError(type(error).__name__)
        _send(outbox, reply)


def _survives(error: Exception) -> bool:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  our own
    except Exception:  # noqa: BLE001  whatever its __init__ wants that `args` lacks
        return False
    return True


def _send(pipe: IO[bytes], content: object) -> None:
    data = pickle.dumps(content, protocol=5)
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:  # noqa: ANN401  what was sent
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError
    return pickle.loads(data)  # noqa: S301  our own

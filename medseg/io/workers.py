"""Work done in processes of their own: a codec that crashes or hangs costs one file, and many headers are read at once.

The processes are plain Python interpreters that are told what to call through a pipe. `multiprocessing` is not used:
its children run the user's main script again, and a pool that loses a child loses the whole work.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import pickle  # the two ends of a private pipe are one program: nothing from outside is ever unpickled
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, TypeVar

from medseg.io.free import free_memory

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


class LateError(CrashError):
    """The process had to be ended, because a call took too long."""


class Worker:
    """One process, started at its first call and again after a crash.

    Args:
        apart: the process and those that it starts are a group of their own: Ctrl-C in a terminal does not reach them,
            and they end together.
    """

    def __init__(self, apart: bool = False) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._apart = apart

    def call(self, function: Callable[..., Result], *arguments: object, patience_s: float = PATIENCE_S) -> Result:
        """Call a function of some module in the process.

        Raises:
            CrashError: when the process died; the next call starts a new one.
            LateError: when the call took longer than `patience_s`.
            Exception: what the function raised.
        """
        try:
            process = self._running()
        except OSError:  # no interpreter to start (a frozen program), or no room for one
            log.warning("no process can be started: the work is done without its protection", exc_info=True)
            return function(*arguments)
        result: Result = self._ask(process, (function, arguments), patience_s)
        return result

    def hold(self, make: Callable[..., object], *arguments: object, patience_s: float = PATIENCE_S) -> None:
        """Make an object in the process and keep it there for `ask`, in place of an earlier one; errors as `call`.

        Raises:
            OSError: when no process can be started.
        """
        self._ask(self._running(), (_Hold(make), arguments), patience_s)

    def ask(self, method: str, *arguments: object, patience_s: float = PATIENCE_S) -> Any:  # noqa: ANN401  what it gives
        """Call a method of the object that the process holds; errors as `call`."""
        if self._process is None:
            raise CrashError("the process that did the work is gone")
        return self._ask(self._process, (method, arguments), patience_s)

    def release(self) -> None:
        """Let the process let go of the object."""
        if self._process is not None:
            with suppress(CrashError):
                self.hold(object)

    def _ask(self, process: subprocess.Popen[bytes], question: tuple[object, ...], patience_s: float) -> Any:  # noqa: ANN401
        late = threading.Event()

        def end() -> None:
            late.set()
            self.kill()

        timer = threading.Timer(patience_s, end)
        timer.start()
        try:
            assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018  both are pipes
            _send(process.stdin, (*question, patience_s))
            reply = _receive(process.stdout)
        except (OSError, EOFError, ValueError) as error:  # ValueError: closed by another thread
            self.close()
            if late.is_set():
                raise LateError(f"the work took longer than {patience_s:.0f} s") from error
            raise CrashError("the process that did the work died") from error
        except BaseException:  # interrupted between question and answer: the answer must not meet another question
            self.close()
            raise
        finally:
            timer.cancel()
        succeeded, value = reply
        if not succeeded:
            raise value
        return value

    def kill(self) -> None:
        """End the process at once; a call that waits for it, in another thread, raises CrashError."""
        process = self._process
        if process is None or self._owner != os.getpid() or process.poll() is not None:
            return
        if self._apart and hasattr(os, "killpg"):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()

    def close(self) -> None:
        """End the process."""
        self.kill()
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
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
                start_new_session=self._apart,
                env={**os.environ, "OMP_NUM_THREADS": "1"},  # the processes share the cores
            )
            self._owner = os.getpid()
        return self._process


class Here:
    """What a `Worker` does, in this process: no protection, and nothing to start."""

    def __init__(self) -> None:
        self._held: object = None

    def hold(self, make: Callable[..., object], *arguments: object, patience_s: float = PATIENCE_S) -> None:
        """Make an object and keep it; nothing ends it when it takes longer than `patience_s`."""
        self._held = None
        self._held = make(*arguments)

    def ask(self, method: str, *arguments: object, patience_s: float = PATIENCE_S) -> Any:  # noqa: ANN401  what it gives
        """Call a method of the object."""
        return getattr(self._held, method)(*arguments)

    def release(self) -> None:
        """Let go of the object."""
        self._held = None


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


def call_spread(
    function: Callable[..., Result], jobs: Sequence[tuple[object, ...]], start_s: float, processes: int
) -> Iterator[Result]:
    """Call a function for each tuple of arguments, and yield the results in the order of the jobs.

    The calls are made in this process at first, and spread over some when what is left would take much longer than
    they take to start. A job that brought its process down is done again in this one.

    Args:
        function: of some module; what it raises ends the work.
        jobs: its arguments.
        start_s: what a process takes to start and to import what the function needs.
        processes: at most.
    """
    started = time.perf_counter()
    for number, job in enumerate(jobs):
        left_s = (time.perf_counter() - started) / number * (len(jobs) - number) if number else 0.0
        if processes > 1 and left_s > 4 * start_s:
            left = jobs[number:]
            for own, result in zip(left, call_all(function, left, processes), strict=True):
                yield function(*own) if result is None else result
            return
        yield function(*job)


def processes_for(jobs: int, each: int, memory: int = 0) -> int:
    """How many processes pay for their start (about a second) when each takes at least `each` jobs; 1 to `MOST`.

    Args:
        jobs: to do.
        each: as above.
        memory: bytes that a job takes; no more processes than fit into what is free.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = free_memory()
    room = MOST if free is None or not memory else free // memory
    return max(1, min(cores, MOST, jobs // each, room))


@dataclass(frozen=True)
class _Hold:
    """The question to make an object and keep it."""

    make: Callable[..., object]


def serve() -> None:
    """Answer calls until the pipe is closed: what a worker process does."""
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not print into the answers
    held: object = None
    while True:
        try:
            question, arguments, patience_s = _receive(inbox)
        except EOFError:
            return
        try:
            with _limited(patience_s):
                if isinstance(question, _Hold):
                    held = None  # the earlier one's memory is free for the next
                    held = question.make(*arguments)
                    reply: tuple[bool, object] = True, None
                elif isinstance(question, str):
                    reply = True, getattr(held, question)(*arguments)
                else:
                    reply = True, question(*arguments)
        except Exception as error:  # noqa: BLE001  it is raised again in the process that asked
            reply = False, _portable(error)
        _send(outbox, reply)
        reply = True, None  # a large answer is not kept while waiting


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """End this process when a call takes too long and the process that asked, which would see to it, is gone."""
    alarm = getattr(signal, "alarm", None)  # not on Windows
    if alarm:
        alarm(min(math.ceil(seconds) + 1, 1 << 30))
    try:
        yield
    finally:
        if alarm:
            alarm(0)


def _portable(error: Exception) -> Exception:
    """Return the error, or one that pickle can carry; either notes where it was raised, for the log."""
    try:
        error.add_note("".join(traceback.format_tb(error.__traceback__)))
        pickle.loads(pickle.dumps(error))  # noqa: S301  our own
    except Exception:  # noqa: BLE001  whatever its __init__ wants that `args` lacks
        return RuntimeError(type(error).__name__)
    return error


def _send(pipe: IO[bytes], content: object) -> None:
    """Send an object; its arrays go as they lie in memory, not copied into the pickle first."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(content, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(data), *(buffer.raw() for buffer in buffers)]
    pipe.write(_LENGTH.pack(len(parts)))
    for part in parts:
        pipe.write(_LENGTH.pack(part.nbytes))
        pipe.write(part)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:  # noqa: ANN401  what was sent
    data, *buffers = [_take(pipe, _length(pipe)) for _ in range(_length(pipe))]
    return pickle.loads(data, buffers=buffers)  # noqa: S301  our own


def _length(pipe: IO[bytes]) -> int:
    (length,) = _LENGTH.unpack(_take(pipe, _LENGTH.size))
    return int(length)


def _take(pipe: IO[bytes], count: int) -> bytearray:
    data = bytearray(count)
    view, done = memoryview(data), 0
    while done < count:
        got = pipe.readinto(view[done:])  # type: ignore[attr-defined]  # of buffered readers
        if not got:
            raise EOFError
        done += got
    return data

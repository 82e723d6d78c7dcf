"""What the commands share: the two streams, the progress bar, exit codes and common options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from medseg.errors import UsageError

if TYPE_CHECKING:
    from medseg.ledger import Ledger


DONE, NOTHING_DONE, WRONG_USAGE, SOME_REJECTED = 0, 1, 2, 3
STOPPED, UNREAD_OUTPUT = 130, 141
"""128 + SIGINT and 128 + SIGPIPE, as shells count a program that was interrupted, or whose reader went away."""

EXIT_CODES = (
    "Exit codes: 0 all done; 1 nothing could be done; 2 wrong usage or configuration; 3 done, but some cases were "
    "rejected or failed."
)


class _Console(Console):
    """Leaves the end of its reader to `_run`."""

    def on_broken_pipe(self) -> None:
        """Pass the fault on, where rich would end the process with its own code."""
        raise


out = _Console(highlight=False, soft_wrap=True)
err = _Console(stderr=True, highlight=False, soft_wrap=True)


OUTPUT_NAMES = Parameter(name=["--output", "-o"])
Output = Annotated[Path, OUTPUT_NAMES]
Seed = Annotated[int, Parameter(validator=Number(gte=0, lt=2**32))]
Positive = Annotated[int, Parameter(validator=Number(gte=1))]


class Screen:
    """Show long work: a progress bar on a terminal, plain lines when there is none."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show one step."""
        if note:
            out.print(plain(note))
        if not out.is_terminal:
            return
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=out, transient=True)
            self._bar.start()
        if stage != self._stage or self._task is None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task, self._stage = self._bar.add_task(escape(stage), total=total), stage
        self._bar.update(self._task, completed=done, total=total)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None


screen = Screen()


def plain(text: str) -> Text:
    """Return a text to print as it is, without the codes of a terminal that a file's name may hold."""
    from medseg.listing import printable

    return Text("\n".join(printable(line) for line in text.split("\n")))


def width(stream: Console = out) -> int | None:
    """Return the columns of the terminal, None when output goes elsewhere."""
    return stream.width if stream.is_terminal else None


def given(paths: Sequence[Path]) -> list[Path]:
    """Return the paths of a command line.

    Raises:
        UsageError: USAGE-PATH when there is none.
    """
    if not paths:
        raise UsageError("USAGE-PATH", "PATHS", "no folder or file is given", "Name at least one.")
    return list(paths)


def close_batch(ledger: Ledger, output: Path) -> int:
    """Say what is to be said at the end of a batch: warnings and reasons on standard error, then the counts."""
    from medseg.ledger import NOT_SELECTED
    from medseg.listing import and_more, hanging

    screen.close()
    alike: dict[str, list[str]] = {}
    for row in ledger:
        if row.code == NOT_SELECTED:
            continue  # counted below, each with its reason in the ledger
        if row.warnings:
            alike.setdefault(f"warning: {row.warnings}", []).append(row.case)
        if row.status in ("rejected", "failed"):
            code = "" if row.code in row.message else f" ({row.code})"
            alike.setdefault(f"{row.status}: {row.message}{code}", []).append(row.case)
    for what, cases in alike.items():
        err.print(plain(hanging(f"{and_more(cases)}: {what}", width(err))))
    counted = ledger.counts()
    kinds = ("done", "reused", "rejected", "failed", "not selected")
    counts = ", ".join(f"{counted[kind]} {kind}" for kind in kinds if counted.get(kind)) or "no scan found"
    out.print(plain(f"{counts}; ledger: {ledger.path}"))
    return ledger.exit_code


def told(message: str, code: int) -> int:
    """Say a last sentence on standard error and return the exit code."""
    screen.close()
    err.print(plain(message))
    return code

"""`medseg`: parse, call, print; nothing else. torch and MONAI are imported by the commands that need them."""

from __future__ import annotations

import gc
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from cyclopts import App, CycloptsError, Parameter

from medseg.cli.data import check, plan
from medseg.cli.machine import doctor
from medseg.cli.prediction import merge, predict
from medseg.cli.reports import compare, evaluate
from medseg.cli.scans import convert, scan
from medseg.cli.terminal import (
    DONE,
    EXIT_CODES,
    NOTHING_DONE,
    STOPPED,
    UNREAD_OUTPUT,
    WRONG_USAGE,
    err,
    plain,
    screen,
    told,
)
from medseg.cli.training import demo, join, train
from medseg.cli.watching import watch
from medseg.errors import MedsegError

app = App(
    name="medseg",
    help="From a folder of scans to tumour masks that sit exactly on the scan, with Dice reports.",
    help_epilogue=EXIT_CODES,
    version_flags=["--version"],
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,  # `_run` has something to say about it
)

COMMANDS = (demo, scan, convert, check, plan, train, join, predict, watch, merge, evaluate, compare, doctor)
for command in COMMANDS:
    app.command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    _quieten()
    code = _run(arguments)
    gc.freeze()  # or Python looks through every object for cycles before it ends: 0.5 s once torch is loaded
    sys.exit(code)


def _quieten() -> None:
    """Let users see medseg's own words only: libraries advise programmers.

    `python -W` and PYTHONWARNINGS bring their warnings back.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported; its C++ writes to stderr
    logging.getLogger().addHandler(logging.NullHandler())
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)  # has a handler of its own
    logging.getLogger("medseg").addHandler(_Log(logging.WARNING))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows "?"


class _Log(logging.Handler):
    """Warnings of medseg as plain lines on standard error, above a progress bar; tracebacks are for files."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        err.print(plain(f"{record.levelname.lower()}: {record.getMessage()}"))


def _run(arguments: Sequence[str] | None) -> int:
    try:
        result = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        return result if isinstance(result, int) else DONE
    except CycloptsError as error:
        command = " ".join(("medseg", *(error.command_chain or ())))
        return told(f"{error}\nSee {command} --help.", WRONG_USAGE)
    except MedsegError as error:
        return told(str(error), error.exit_code)
    except KeyboardInterrupt:
        return told(
            "stopped. What was finished is kept; the same command goes on from there (train: add --resume).", STOPPED
        )
    except BrokenPipeError:
        return _unread()
    except OSError as error:
        return told(f"{error.filename or 'the system'}: {error.strerror or error} (RUN-WRITE)", NOTHING_DONE)
    except MemoryError:
        return told("not enough memory (RUN-MEMORY). Close other programs, or work on smaller scans.", NOTHING_DONE)
    except Exception as error:  # noqa: BLE001  the last word to a user is a sentence, never a traceback
        place = traceback.extract_tb(error.__traceback__)[-1]
        fault = f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}"
        return told(f"an unexpected fault inside medseg: {fault} (RUN-CRASH). Please report it with the command.", 1)
    finally:
        screen.close()


def _unread() -> int:
    """Leave quietly when the reader of our output went away, as `head` does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python still flushes at its end
    return UNREAD_OUTPUT

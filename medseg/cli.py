"""`medseg`: parse, call, print; nothing else. torch and MONAI are imported by the commands that need them."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from medseg.errors import MedsegError, UsageError

if TYPE_CHECKING:
    from medseg.case import Finding
    from medseg.ledger import Ledger
    from medseg.report import Report

DONE, NOTHING_DONE, WRONG_USAGE, SOME_REJECTED = 0, 1, 2, 3
STOPPED, UNREAD_OUTPUT = 130, 141
"""128 + SIGINT and 128 + SIGPIPE, as shells count a program that was interrupted, or whose reader went away."""

EXIT_CODES = (
    "Exit codes: 0 all done; 1 nothing could be done; 2 wrong usage or configuration; 3 done, but some cases were "
    "rejected or failed."
)

app = App(
    name="medseg",
    help="From a folder of scans to tumour masks that sit exactly on the scan, with Dice reports.",
    help_epilogue=EXIT_CODES,
    version_flags=["--version"],
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,  # `_run` has something to say about it
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
Format = Literal["nifti", "dicom-seg", "rtstruct"]
Formats = Annotated[tuple[Format, ...], Parameter(consume_multiple=True, show_default=False)]


class Screen:
    """Show long work: a progress bar on a terminal, plain lines when there is none."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show one step."""
        if note:
            out.print(_plain(note))
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


@app.command
def demo(*, output: Output = Path("medseg-demo"), seed: Seed = 0) -> int:
    """Make phantom patients, train on them, predict the held-out ones and write the Dice report; minutes on a CPU.

    Args:
        output: folder for everything the demo makes.
        seed: of the phantoms and the training.
    """
    from medseg.demo import run_demo

    result = run_demo(output, seed=seed, watch=_screen)
    _screen.close()
    out.print(_plain(result.summary()))
    return DONE


@app.command
def scan(*paths: Path, csv: Path | None = None, json: Path | None = None) -> int:
    """List every series and NIfTI below the paths: what it is, whether it can be used, and why not.

    Args:
        paths: folders or files.
        csv: also write the table as CSV.
        json: also write the table as JSON.
    """
    from medseg.io.atomic import write_text
    from medseg.listing import summary, table_rows, to_csv, to_json, to_text
    from medseg.scan import take_inventory

    inventory = take_inventory(_given(paths))
    rows = table_rows(inventory)
    for path, text in ((csv, to_csv), (json, to_json)):
        if path is not None:
            write_text(path, text(rows))
    if rows:
        out.print(to_text(rows, _width()))
    out.print(_plain(summary(inventory)))
    usable = sum(row.verdict == "usable" for row in rows)
    if not usable:
        return NOTHING_DONE
    return DONE if usable == len(rows) else SOME_REJECTED


@app.command
def convert(*paths: Path, output: Output) -> int:
    """Write each usable scan as NIfTI with exact voxels and geometry, and the ledger cases.csv.

    Args:
        paths: folders or files.
        output: folder for the results.
    """
    from medseg.convert import convert as run

    return _close_batch(run(_given(paths), output, watch=_screen), output)


@app.command
def check(config: Path, /, *overrides: str, json: Path | None = None) -> int:
    """Check a data set: pairs, geometry, labels, duplicates, leaks. Nothing is trained.

    Args:
        config: configuration file.
        overrides: settings as key=value, such as data.validation=0.3.
        json: also write the findings as JSON.
    """
    from medseg.check import examine
    from medseg.config import load
    from medseg.io.atomic import write_text

    found = examine(load(config, overrides), watch=_screen)
    _screen.close()
    _show_findings(found.dataset.findings)
    errors = sum(finding.severity == "error" for finding in found.dataset.findings)
    sides = (
        f", {len(found.split.train)} to train on and {len(found.split.validation)} to validate" if found.split else ""
    )
    out.print(f"{len(found.dataset.cases)} cases can be used{sides}; {errors} error{'' if errors == 1 else 's'}")
    if json is not None:
        write_text(json, found.to_json())
    if not found.dataset.cases or found.split is None:
        return NOTHING_DONE
    return SOME_REJECTED if errors else DONE


@app.command
def plan(config: Path, /, *overrides: str) -> int:
    """Measure a data set and show what train would do with it. Nothing is trained or written.

    Args:
        config: configuration file.
        overrides: settings as key=value, such as train.epochs=20.
    """
    from medseg.config import load
    from medseg.listing import hanging
    from medseg.training.plan import make_plan

    made = make_plan(load(config, overrides), watch=_screen)
    _screen.close()
    lines = made.lines()
    longest = max(len(what) for what, _ in lines)
    for what, text in lines:
        out.print(_plain(hanging(text, _width(), f"{what:<{longest}}  ", " " * (longest + 2))))
    errors = any(finding.severity == "error" for finding in made.found.dataset.findings)
    if errors:
        out.print(_plain(f"what is left out, and why: medseg check {config}"))
    return SOME_REJECTED if errors else DONE


@app.command
def train(config: Path, /, *overrides: str, output: Output = Path("run"), resume: bool = False) -> int:
    """Train a network on the scans and reference masks that a configuration names.

    Args:
        config: configuration file.
        overrides: settings as key=value, such as train.epochs=20.
        output: the run folder.
        resume: go on with a run that was stopped.
    """
    from medseg.config import load
    from medseg.training import train as run

    result = run(load(config, overrides), output, resume=resume, watch=_screen)
    _screen.close()
    out.print(_plain(result.summary()))
    return SOME_REJECTED if result.left_out else DONE


@app.command
def predict(
    *paths: Path,
    model: Path,
    output: Output,
    format: Formats = ("nifti",),
    batch_size: Positive | None = None,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    precision: Literal["auto", "fp32", "bf16"] | None = None,
    mirror: Annotated[bool | None, Parameter(negative="--no-mirror")] = None,
) -> int:
    """Segment every scan below the paths; masks lie on each scan's own grid.

    Args:
        paths: folders or files.
        model: model or run folder.
        output: folder for masks and the ledger cases.csv.
        format: NIfTI is always written; the DICOM forms too, for scans that were DICOM.
        batch_size: slices in a forward pass.
        device: where to compute.
        precision: arithmetic of the network.
        mirror: average with the left-right mirror image: twice the work.
    """
    given = _given(paths)
    from medseg.batch import predict_folder
    from medseg.models.model_folder import load_model

    loaded = load_model(model)
    asked = {"batch_size": batch_size, "device": device, "precision": precision, "mirror": mirror}
    changes = {key: value for key, value in asked.items() if value is not None}
    settings = type(loaded.description.predict).model_validate(loaded.description.predict.model_dump() | changes)
    ledger = predict_folder(given, loaded, output, config=settings, formats=format, watch=_screen)
    return _close_batch(ledger, output)


@app.command
def evaluate(
    *,
    masks: Path,
    references: Path,
    output: Output,
    labels: str | None = None,
    groups: Path | None = None,
    strata: Path | None = None,
    by: str | None = None,
    paper: bool = False,
    fail_under: str | None = None,
) -> int:
    """Score masks against references: Dice, IoU, distances, volumes; report.json, scores.csv and report.html.

    Args:
        masks: folder of predicted masks.
        references: folder of reference masks.
        output: folder for the report.
        labels: names of the labels in order, separated by commas; by default those of labels.json beside the masks.
        groups: CSV file with the columns case and group: which cases are one patient's.
        strata: CSV file with the column case and those of --by.
        by: columns of --strata, separated by commas: each value gets its own means and intervals.
        paper: also write tables (LaTeX, Markdown) and figures (PNG, SVG) to the report's folder paper.
        fail_under: such as dice=0.8: exit code 3 when a label's mean is lower.
    """
    from medseg.report import evaluate as run
    from medseg.volume import Labels

    names = None
    if labels:
        names = Labels({number: name.strip() for number, name in enumerate(labels.split(","), start=1)})
    metric, least = _threshold(fail_under) if fail_under else ("", 0.0)
    patients = _read_groups(groups) if groups else None
    columns = _read_strata(strata, by)
    report = run(masks, references, output, labels=names, groups=patients, strata=columns, watch=_count_cases)
    _screen.close()
    if paper:
        from medseg.report.paper import write_paper

        write_paper(report, output / "paper")
    out.print(_plain(report.summary()))
    out.print(_plain(f"report: {output / 'report.html'}"))
    low = _below(report, metric, least) if metric else []
    for sentence in low:
        err.print(_plain(sentence))
    return DONE if report.complete and not low else SOME_REJECTED


@app.command
def compare(*paths: Path, metric: str = "dice", output: Annotated[Path | None, OUTPUT_NAMES] = None) -> int:
    """Compare two or more reports on the same cases, with a test that holds its level for few cases.

    Args:
        paths: a report.json each, or the folders that hold them.
        metric: what to compare, such as dice, surface_dice or hd95_mm.
        output: folder for compare.html, compare.json and compare.csv.
    """
    from medseg.listing import hanging
    from medseg.report import compare as run
    from medseg.report import write_comparison

    if len(paths) < 2:
        raise UsageError("USAGE-PATH", "paths", f"{len(paths)} report is given, wanted two or more", "Name them.")
    names = [str(path) if paths.count(path) == 1 else f"{path} ({n})" for n, path in enumerate(paths, start=1)]
    differences = run({name: _read_report(path) for name, path in zip(names, paths, strict=True)}, metric)
    for difference in differences:
        for sentence in (difference.sentence(), *difference.notes()):
            out.print(_plain(hanging(sentence, _width())))
    if output is not None:
        write_comparison(differences, output)
        out.print(_plain(f"comparison: {output / 'compare.html'}"))
    return DONE


@app.command
def doctor() -> int:
    """Say what this machine can do, and what is missing."""
    from medseg.doctor import examine
    from medseg.listing import hanging

    findings = examine()
    for finding in findings:
        out.print(_plain(hanging(str(finding), _width(), rest=" " * 6)))
    return DONE if all(finding.good for finding in findings) else SOME_REJECTED


_screen = Screen()


def _plain(text: str) -> Text:
    """Return a text to print as it is, without the codes of a terminal that a file's name may hold."""
    from medseg.listing import printable

    return Text("\n".join(printable(line) for line in text.split("\n")))


def _width() -> int | None:
    return out.width if out.is_terminal else None


def _given(paths: Sequence[Path]) -> list[Path]:
    if not paths:
        raise UsageError("USAGE-PATH", "PATHS", "no folder or file is given", "Name at least one.")
    return list(paths)


def _count_cases(done: int, total: int) -> None:
    _screen("evaluate", done, total)


def _show_findings(findings: Sequence[Finding]) -> None:
    """Print findings, errors first: under headings on a terminal, else as whole lines for `grep`."""
    from medseg.listing import hanging

    if not findings:
        return
    for severity, colour in (("error", "red"), ("warning", "yellow"), ("note", "cyan")):
        group = sorted((f for f in findings if f.severity == severity), key=lambda f: (f.where, f.code))
        if group and out.is_terminal:
            out.print(Text(f"{len(group)} {severity}{'' if len(group) == 1 else 's'}", f"bold {colour}"))
        for finding in group:
            line = f"{finding.where}: {finding.message} ({finding.code})" if out.is_terminal else str(finding)
            out.print(_plain(hanging(line, _width(), "  " if out.is_terminal else "")))


def _threshold(text: str) -> tuple[str, float]:
    """Read `dice=0.8`.

    Raises:
        UsageError: USAGE-OPTION.
    """
    from medseg.metrics import METRICS

    known = [metric.name for metric in METRICS if metric.better == "higher"]
    name, _, number = text.partition("=")
    try:
        least = float(number)
    except ValueError:
        least = -1.0
    if name not in known or not 0 <= least <= 1:
        problem = f"{text!r}, wanted a metric and its smallest mean, such as dice=0.8"
        raise UsageError("USAGE-OPTION", "--fail-under", problem, f"Metrics: {', '.join(known)}.")
    return name, least


def _below(report: Report, metric: str, least: float) -> list[str]:
    """Say which labels' means lie below a bound; one without any score does."""
    means = {result.label: result.summary(metric).mean for result in report.results}
    shown = {label: "blank" if mean is None else f"{mean:.3f}" for label, mean in means.items()}
    low = [label for label, mean in means.items() if mean is None or mean < least]
    return [f"{label}: mean {metric} {shown[label]}, wanted {least:g} (--fail-under)" for label in low]


def _read_groups(path: Path) -> dict[str, str]:
    """Read case id to patient.

    Raises:
        UsageError: USAGE-PATH when the file is not such a table.
    """
    import csv

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return {row["case"]: row["group"] for row in csv.DictReader(file)}
    except (OSError, UnicodeDecodeError, KeyError, csv.Error) as error:
        problem = "not readable as a CSV file with the columns case and group"
        raise UsageError("USAGE-PATH", str(path), problem, "Its first line is: case,group") from error


def _read_strata(path: Path | None, columns: str | None) -> dict[str, dict[str, str]] | None:
    from medseg.report import read_strata

    if (path is None) != (columns is None):
        advice = "Give a CSV file with --strata and its columns with --by."
        raise UsageError("USAGE-OPTION", "--strata", "--strata and --by belong together", advice)
    if path is None or columns is None:
        return None
    return read_strata(path, [column.strip() for column in columns.split(",")])


def _read_report(path: Path) -> Report:
    from medseg.report import Report

    file = path / "report.json" if path.is_dir() else path
    try:
        return Report.from_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        advice = "Give a report.json that medseg evaluate wrote, or its folder."
        raise UsageError("USAGE-PATH", str(file), f"cannot be read: {reason}", advice) from error
    except UsageError as error:
        raise UsageError(error.code, str(file), error.problem, error.advice) from error


def _close_batch(ledger: Ledger, output: Path) -> int:
    """Say what is to be said at the end of a batch: warnings and reasons on standard error, then the counts."""
    from medseg.ledger import NOT_SELECTED

    _screen.close()
    for row in ledger:
        if row.code == NOT_SELECTED:
            continue  # counted below, each with its reason in the ledger
        if row.warnings:
            err.print(_plain(f"{row.case}: warning: {row.warnings}"))
        if row.status in ("rejected", "failed"):
            err.print(_plain(f"{row.case}: {row.status}: {row.message}"))
    counted = ledger.counts()
    kinds = ("done", "reused", "rejected", "failed", "not selected")
    counts = ", ".join(f"{counted[kind]} {kind}" for kind in kinds if counted.get(kind)) or "no scan found"
    out.print(_plain(f"{counts}; ledger: {ledger.path}"))
    return ledger.exit_code


# -------------------------------------------------------------------------------------------------- the process


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    _quieten()
    sys.exit(_run(arguments))


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
        err.print(_plain(f"{record.levelname.lower()}: {record.getMessage()}"))


def _run(arguments: Sequence[str] | None) -> int:
    try:
        result = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        return result if isinstance(result, int) else DONE
    except CycloptsError as error:
        command = " ".join(("medseg", *(error.command_chain or ())))
        return _told(f"{error}\nSee {command} --help.", WRONG_USAGE)
    except MedsegError as error:
        return _told(str(error), WRONG_USAGE if isinstance(error, UsageError) else NOTHING_DONE)
    except KeyboardInterrupt:
        return _told(
            "stopped. What was finished is kept; the same command goes on from there (train: add --resume).", STOPPED
        )
    except BrokenPipeError:
        return _unread()
    except OSError as error:
        return _told(f"{error.filename or 'the system'}: {error.strerror or error} (RUN-WRITE)", NOTHING_DONE)
    except MemoryError:
        return _told("not enough memory (RUN-MEMORY). Close other programs, or work on smaller scans.", NOTHING_DONE)
    except Exception as error:  # noqa: BLE001  the last word to a user is a sentence, never a traceback
        place = traceback.extract_tb(error.__traceback__)[-1]
        fault = f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}"
        return _told(f"an unexpected fault inside medseg: {fault} (RUN-CRASH). Please report it with the command.", 1)
    finally:
        _screen.close()


def _told(message: str, code: int) -> int:
    _screen.close()
    err.print(_plain(message))
    return code


def _unread() -> int:
    """Leave quietly when the reader of our output went away, as `head` does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python still flushes at its end
    return UNREAD_OUTPUT

"""`medseg check` and `medseg plan`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.text import Text

from medseg.cli.terminal import DONE, NOTHING_DONE, OUTPUT_NAMES, SOME_REJECTED, out, plain, screen, width
from medseg.errors import UsageError

if TYPE_CHECKING:
    from medseg.case import Finding


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

    found = examine(load(config, overrides), watch=screen)
    screen.close()
    show_findings(found.dataset.findings)
    errors = sum(finding.severity == "error" for finding in found.dataset.findings)
    sides = ""
    if found.folds:
        sizes = sorted(len(fold.validation) for fold in found.folds)
        sides = f" in {len(found.folds)} folds of {sizes[0]} to {sizes[-1]}"
    elif found.split:
        sides = f", {len(found.split.train)} to train on and {len(found.split.validation)} to validate"
    out.print(f"{len(found.dataset.cases)} cases can be used{sides}; {errors} error{'' if errors == 1 else 's'}")
    if json is not None:
        write_text(json, found.to_json())
    if not found.dataset.cases or found.split is None:
        return NOTHING_DONE
    return SOME_REJECTED if errors else DONE


def plan(config: Path, /, *overrides: str, output: Annotated[Path | None, OUTPUT_NAMES] = None) -> int:
    """Measure a data set and show what train would do with it, and why. Nothing is trained.

    Args:
        config: configuration file.
        overrides: settings as key=value, such as train.epochs=20.
        output: file for the whole configuration, each decision with its reason: what train takes, and you may change.
    """
    from medseg.check import examine
    from medseg.config import load
    from medseg.io.atomic import write_text
    from medseg.listing import hanging
    from medseg.training.plan import make_plan

    if output is not None and output.exists() and output.samefile(config):
        advice = "Name another file."
        raise UsageError("USAGE-PATH", str(output), "is the configuration that the plan is made from", advice)
    settings = load(config, overrides)
    found = examine(settings, watch=screen)
    screen.close()
    made = make_plan(settings, found)
    rows = made.lines()
    key, value = (max(len(row[n]) for row in rows) for n in (0, 1))
    for what, chosen, why in rows:
        start = f"{what:<{key}}  {chosen:<{value}}  "
        out.print(plain(hanging(why, width(), start, " " * len(start))))
    show_findings(made.warnings)
    if output is not None:
        write_text(output, made.to_yaml())
    errors = any(finding.severity == "error" for finding in found.dataset.findings)
    if errors:
        out.print(plain(f"what is left out, and why: medseg check {config}"))
    return SOME_REJECTED if errors else DONE


def show_findings(findings: Sequence[Finding]) -> None:
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
            out.print(plain(hanging(line, width(), "  " if out.is_terminal else "")))

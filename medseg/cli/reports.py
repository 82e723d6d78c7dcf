"""`medseg evaluate` and `medseg compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from medseg.cli.terminal import DONE, OUTPUT_NAMES, SOME_REJECTED, Output, err, out, plain, screen, width
from medseg.errors import UsageError

if TYPE_CHECKING:
    from medseg.report import Report


def evaluate(
    *,
    masks: Path,
    references: Path,
    output: Output,
    labels: str | None = None,
    groups: Path | None = None,
    strata: Path | None = None,
    by: str | None = None,
    unannotated: Annotated[tuple[int, ...], Parameter(consume_multiple=True, show_default=False)] = (),
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
        unannotated: numbers of the references that mark what nobody annotated: there neither mask counts.
        paper: also write tables (LaTeX, Markdown) and figures (PNG, SVG) to the report's folder paper.
        fail_under: such as dice=0.8: exit code 3 when a label's mean is lower.
    """
    from medseg.report import evaluate as run
    from medseg.volume import Labels

    names = None
    if labels:
        given = [name.strip() for name in labels.split(",")]
        if not all(given):
            raise UsageError("USAGE-OPTION", "--labels", f"{labels!r} holds an empty name", "Name 1, 2, ... in order.")
        names = Labels(dict(enumerate(given, start=1)))
    metric, least = _threshold(fail_under) if fail_under else ("", 0.0)
    patients = _read_groups(groups) if groups else None
    columns = _read_strata(strata, by)
    report = run(
        masks,
        references,
        output,
        labels=names,
        groups=patients,
        strata=columns,
        unannotated=unannotated,
        command=_command(masks, references, labels, groups, strata, by, unannotated),
        watch=_count_cases,
    )
    screen.close()
    if paper:
        from medseg.report.paper import write_paper

        write_paper(report, output / "paper")
    out.print(plain(report.summary()))
    out.print(plain(f"report: {output / 'report.html'}"))
    low = _below(report, metric, least) if metric else []
    for sentence in low:
        err.print(plain(sentence))
    return DONE if report.complete and not low else SOME_REJECTED


def compare(
    *paths: Path, metric: str = "dice", output: Annotated[Path | None, OUTPUT_NAMES] = None, paper: bool = False
) -> int:
    """Compare two or more reports on the same cases, with a test that holds its level for few cases.

    Args:
        paths: a report.json each, or the folders that hold them.
        metric: what to compare, such as dice, surface_dice or hd95_mm.
        output: folder for compare.html, compare.json and compare.csv.
        paper: also write figures (PNG, SVG) and the sentences to the folder paper below it.
    """
    from medseg.listing import hanging
    from medseg.report import compare as run
    from medseg.report import write_comparison

    if paper and output is None:
        raise UsageError("USAGE-OPTION", "--paper", "there is no folder to write to", "Give one with --output.")
    if len(paths) < 2:
        raise UsageError("USAGE-PATH", "paths", f"{len(paths)} report is given, wanted two or more", "Name them.")
    differences = run({name: _read_report(path) for name, path in zip(_short(paths), paths, strict=True)}, metric)
    for difference in differences:
        for sentence in (difference.sentence(), *difference.notes()):
            out.print(plain(hanging(sentence, width())))
    if output is not None:
        write_comparison(differences, output)
        if paper:
            from medseg.report.paper import write_comparison_paper

            write_comparison_paper(differences, output / "paper")
        out.print(plain(f"comparison: {output / 'compare.html'}"))
    return DONE


def _command(
    masks: Path,
    references: Path,
    labels: str | None,
    groups: Path | None,
    strata: Path | None,
    by: str | None,
    unannotated: tuple[int, ...],
) -> str:
    """Return what decides the figures, for the report: folders and files by name, since a path may hold a person's."""
    import shlex

    paths = {"--masks": masks, "--references": references, "--groups": groups, "--strata": strata}
    texts = {"--labels": labels, "--by": by, "--unannotated": " ".join(str(n) for n in unannotated)}
    named = [f"{option} {shlex.quote(path.resolve().name)}" for option, path in paths.items() if path]
    plain_texts = [f"{option} {shlex.quote(text)}" for option, text in texts.items() if text]
    return " ".join(["medseg evaluate", *named, *plain_texts])


def _short(paths: Sequence[Path]) -> list[str]:
    """Name each report by as much of the end of its path as tells it from the others; equal ones get a number."""
    places = [(path.parent if path.name == "report.json" else path).resolve().parts for path in paths]
    names = []
    for number, place in enumerate(places):
        others = [other for n, other in enumerate(places) if n != number]
        least = next((n for n in range(1, len(place)) if all(other[-n:] != place[-n:] for other in others)), 0)
        names.append("/".join(place[-least:]) if least else f"{place[-1]} ({number + 1})")
    return names


def _count_cases(done: int, total: int) -> None:
    screen("evaluate", done, total)


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
    from medseg.report.strata import read_rows

    rows = read_rows(path)
    if not rows or not {"case", "group"} <= set(rows[0]):
        raise UsageError("USAGE-PATH", str(path), "has no columns case and group", "Its first line is: case,group")
    return {row["case"] or "": (row["group"] or "").strip() for row in rows}


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

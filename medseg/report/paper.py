"""Everything that a paper takes from a report: tables in LaTeX and Markdown, figures in SVG and PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medseg.io.atomic import write_text
from medseg.report.compare import Difference
from medseg.report.figures import write_difference_figure, write_figures
from medseg.report.results import Report
from medseg.report.tables import to_latex, to_markdown


def write_paper(report: Report, folder: Path) -> list[Path]:
    """Write `table.tex`, `table.md` and the figures.

    Returns:
        The files.

    Raises:
        RunError: RUN-WRITE.
    """
    write_text(folder / "table.tex", to_latex(report))
    write_text(folder / "table.md", to_markdown(report))
    return [folder / "table.tex", folder / "table.md", *write_figures(report, folder)]


def write_comparison_paper(differences: Sequence[Difference], folder: Path) -> list[Path]:
    """Write a figure of each comparison, numbered in their order, and `sentences.txt`.

    Returns:
        The files.

    Raises:
        RunError: RUN-WRITE.
    """
    written = []
    for number, difference in enumerate(differences, start=1):
        written += write_difference_figure(difference, folder, f"differences-{number}")
    text = "\n\n".join("\n".join((d.sentence(), *d.notes())) for d in differences)
    write_text(folder / "sentences.txt", text + "\n")
    return [*written, folder / "sentences.txt"]

"""Everything that a paper takes from a report: tables in LaTeX and Markdown, figures in SVG and PNG."""

from __future__ import annotations

from pathlib import Path

from medseg.io.atomic import write_text
from medseg.report.figures import write_figures
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

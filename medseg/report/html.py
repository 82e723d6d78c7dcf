"""`report.html`: one file that opens anywhere, without a network, under a policy that lets nothing else in."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files

import numpy as np
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from medseg.metrics import METRICS, OUTCOMES, CaseScores, Metric
from medseg.report.charts import changes, interval_bar, size_against_dice, strip, volume_agreement
from medseg.report.compare import Difference
from medseg.report.pictures import Picture
from medseg.report.results import Report
from medseg.report.viewer import Embedded
from medseg.statistics import FEWEST

FIRST_CARDS = 12
"""Cards shown at once; the others are one click away."""


@dataclass(frozen=True)
class Entry:
    """One card: a case, its number in the report, its mean Dice, its pictures, and its volume for the viewer."""

    number: int
    case: CaseScores
    dice: float | None
    views: tuple[Picture, ...]
    note: str = ""
    volume: Embedded | None = None

    @property
    def meta(self) -> dict[str, object]:
        """What the viewer must know beside the bytes."""
        if self.volume is None:
            return {}
        return {name: value for name, value in asdict(self.volume).items() if name != "payload"}


def render(
    report: Report,
    pictures: Mapping[str, tuple[Picture, ...]],
    notes: Mapping[str, str] | None = None,
    volumes: Mapping[str, Embedded] | None = None,
) -> str:
    """Return the page.

    Everything that came from outside (ids, labels, messages) is escaped; style and script are allowed by their hashes
    alone, so that nothing in a name can run even if it got through.

    Args:
        report: what to show.
        pictures: case id to pictures.
        notes: case id to a remark below them.
        volumes: case id to what the viewer shows.
    """
    style, script = _text("page.css"), _text("page.js") + "\n" + _text("viewer.js")
    return _page("page.html.j2").render(
        report=report,
        metrics=METRICS,
        outcomes=OUTCOMES,
        entries=worst_first(report, pictures, notes or {}, volumes or {}),
        in_viewer=len(volumes or {}),
        first=FIRST_CARDS,
        patients=len({case.group or case.case for case in report.cases}),
        floors=any(result.floor for result in report.results),
        bars=[interval_bar(r.summary("dice"), r.floor.mean_dice if r.floor else None) for r in report.results],
        strip=strip(report, "dice"),
        scatters=[(r, size_against_dice(report, r), volume_agreement(report, r)) for r in report.results],
        style=Markup(style),  # noqa: S704 - our own files
        script=Markup(script),  # noqa: S704
        style_hash=_hash(style),
        script_hash=_hash(script),
        fewest=FEWEST,
    )


def render_comparison(differences: Sequence[Difference]) -> str:
    """Return the page of a comparison: the figures, the sentences, every case's change. It needs no script."""
    metric, style = next(m for m in METRICS if m.name == differences[0].metric), _text("page.css")
    return _page("compare.html.j2").render(
        differences=differences,
        names=list(dict.fromkeys(name for d in differences for name in (d.first, d.second))),
        metric=metric,
        form=_form(metric),
        charts=[changes(difference) for difference in differences],
        style=Markup(style),  # noqa: S704 - our own file
        style_hash=_hash(style),
    )


def _page(name: str) -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"show": _show, "mm": lambda value: f"{value:.2f}", "form": _form, "p": _p}
    return environment.from_string(_text(name))


def worst_first(
    report: Report,
    pictures: Mapping[str, tuple[Picture, ...]],
    notes: Mapping[str, str],
    volumes: Mapping[str, Embedded],
) -> Sequence[Entry]:
    """Return the cases by mean Dice of their labels; the missing come first, the truly empty last."""
    entries = []
    for number, case in enumerate(report.cases):
        name = case.case
        views, note, volume = pictures.get(name, ()), notes.get(name, ""), volumes.get(name)
        entries.append(Entry(number, case, case_dice(case), views, note, volume))
    return sorted(entries, key=lambda e: (not e.case.missing, 2.0 if e.dice is None else e.dice))


def case_dice(case: CaseScores) -> float | None:
    """Mean Dice of a case over its labels; None when all are truly empty."""
    values = [scores.dice for scores in case.labels if scores.dice is not None]
    return float(np.mean(values)) if values else None


def _form(metric: Metric) -> str:
    return metric.unit or ("count" if metric.name.startswith("lesions") else "score")


def _show(value: float | None, form: str) -> str:
    """Format a number for people; a blank is a dash, a minus sign is one."""
    if value is None:
        return "–"
    size = abs(value)
    digits = {"score": 3, "count": 0 if float(value).is_integer() else 1, "mm": 2 if size < 10 else 1}.get(form)
    if digits is None:  # ml: three significant digits, no more than 0.001 ml
        digits = int(np.clip(2 - np.floor(np.log10(size)), 0, 3)) if size > 0 else 0
    return f"{value:.{digits}f}".replace("-", "−")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _text(name: str) -> str:
    return files("medseg.report").joinpath(name).read_text("utf-8").strip("\n")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")

"""`compare`: two or more reports on the same cases, case by case, with a test that holds its level for few cases.

Only cases that both reports scored against the same reference are compared; all others are counted and said. The rule
for empty masks (`medseg.metrics.EMPTY_RULE`) is the reports' own: a case that is blank in either report has no
difference, and the false alarms that hide behind such blanks are counted beside the result.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from pydantic import TypeAdapter

from medseg.errors import UsageError
from medseg.ledger import cell
from medseg.metrics import METRICS, CaseScores, Metric
from medseg.report.results import Report
from medseg.statistics import FEW, Paired, holm, paired

LEVEL = 0.05
"""A corrected p below it is called a difference."""

REGRESSIONS = 5
"""Cases named as the worst regressions."""


@dataclass(frozen=True)
class Change:
    """One case in both reports; `change` is second minus first."""

    case: str
    first: float
    second: float
    change: float


@dataclass(frozen=True)
class Difference:
    """One metric of one label in two reports.

    Attributes:
        label: its name.
        metric: a name in `medseg.metrics.METRICS`.
        first: name of the report that the other is compared with.
        second: name of the other.
        first_mean: over the compared cases.
        second_mean: likewise.
        test: of second minus first, by patient.
        corrected_p: Holm's, over all comparisons of one call.
        comparisons: how many those were.
        changes: every compared case, the one that the second report does worst by first.
        only_first: cases that the second report does not hold.
        only_second: likewise.
        unlike: cases whose references differ in content or volume: not the same reference, so not compared.
        blank: cases without a value in one report or in both.
        alarms: false alarms in the first and in the second report, among the cases of both.
        left_out: labels that are in one of the two reports only.
    """

    label: str
    metric: str
    first: str
    second: str
    first_mean: float
    second_mean: float
    test: Paired
    corrected_p: float
    comparisons: int
    changes: tuple[Change, ...]
    only_first: tuple[str, ...] = ()
    only_second: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()
    blank: tuple[str, ...] = ()
    alarms: tuple[int, int] = (0, 0)
    left_out: tuple[str, ...] = ()

    @property
    def wins(self) -> int:
        """Cases in which the second report is better."""
        return self.test.worse if _metric(self.metric).better == "lower" else self.test.better

    @property
    def losses(self) -> int:
        """Cases in which the second report is worse."""
        return self.test.better if _metric(self.metric).better == "lower" else self.test.worse

    @property
    def regressions(self) -> tuple[Change, ...]:
        """The cases that the second report does worse, by most first; a few."""
        sign = _sign(_metric(self.metric))
        return tuple(change for change in self.changes if sign * change.change < 0)[:REGRESSIONS]

    @property
    def shown(self) -> bool:
        """Whether the corrected test calls it a difference."""
        return self.corrected_p < LEVEL

    def sentence(self) -> str:
        """Return what a paper can say, in plain words."""
        return " ".join((self._figures(), self._verdict()))

    def notes(self) -> tuple[str, ...]:
        """Return what the figures leave out or do not carry, one sentence each."""
        said = [
            _listed(self.only_first, f"only in {self.first}, not compared"),
            _listed(self.only_second, f"only in {self.second}, not compared"),
            _listed(self.unlike, "scored against different references, not compared"),
            _listed(self.blank, "blank in one report or in both, not compared"),
            f"Labels in one report only, not compared: {', '.join(self.left_out)}." if self.left_out else "",
        ]
        if any(self.alarms):
            mine, theirs = self.alarms
            said.append(
                f"False alarms where the reference is empty: {mine} in {self.first}, {theirs} in {self.second}."
            )
        if self.test.smallest_p * self.comparisons >= LEVEL:
            said.append(
                f"The test cannot give p < {LEVEL:g} here, however large the difference: too few patients have one."
            )
        if self.test.groups < FEW:
            interval = "The interval is wide" if self.test.interval else "Too few for an interval"
            said.append(f"Few cases: {_counted(self.test.groups, 'patient')}. {interval}.")
        return tuple(sentence for sentence in said if sentence)

    def _figures(self) -> str:
        metric, test = _metric(self.metric), self.test
        unit = f" {metric.unit}" if metric.unit else ""
        ends = test.interval
        spread = f"95 % CI {_signed(ends.low, metric)} to {_signed(ends.high, metric)}; " if ends else ""
        effect = f"; Cohen's d_z {test.effect:.2f}".replace("-", "−") if test.effect is not None else ""
        return (
            f"{self.label}: on {_counted(test.cases, 'case')} of {_counted(test.groups, 'patient')} the mean "
            f"{metric.title} was {self.first_mean:.{_digits(metric)}f}{unit} with {self.first} and "
            f"{self.second_mean:.{_digits(metric)}f}{unit} with {self.second}, a difference of "
            f"{_signed(test.difference, metric)}{unit} ({spread}{self._test()}{effect}); {self.second} was better in "
            f"{self.wins}, worse in {self.losses} and equal in {test.cases - self.wins - self.losses}."
        )

    def _test(self) -> str:
        kind = "exact" if self.test.exact else "Monte Carlo"
        text = f"{kind} sign-flip permutation test by patient, p {_p(self.test.p)}"
        if self.comparisons > 1:
            text += f", after Holm's correction for {self.comparisons} comparisons {_p(self.corrected_p)}"
        return text

    def _verdict(self) -> str:
        metric = _metric(self.metric)
        if not self.shown:
            return f"No difference in {metric.title} is shown; that is not evidence that there is none."
        if metric.better == "none":
            return f"The {metric.title.lower()} differs."
        better = self.second if self.test.difference * _sign(metric) > 0 else self.first
        return f"{better} is better in {metric.title}."


_ADAPTER: TypeAdapter[tuple[Difference, ...]] = TypeAdapter(tuple[Difference, ...])


def compare(reports: Mapping[str, Report], metric: str = "dice") -> tuple[Difference, ...]:
    """Compare reports in pairs, label by label, on the cases they share.

    The test exchanges the two scores of a patient (`medseg.statistics.paired`); its p values are corrected over all
    pairs and labels of this call (Holm 1979).

    Args:
        reports: name to report, at least two; the first is what the others are compared with first.
        metric: a name in `medseg.metrics.METRICS`.

    Returns:
        One for each pair of reports and label that both hold, pairs in the order of `reports`.

    Raises:
        UsageError: USAGE-OPTION for an unknown metric, fewer than two reports, or surface Dice at unlike tolerances;
            DATA-EMPTY when two reports share no case or no label.
    """
    if metric not in {known.name for known in METRICS}:
        names = ", ".join(known.name for known in METRICS)
        raise UsageError("USAGE-OPTION", "metric", f"{metric!r} is not a metric", f"Name one of {names}.")
    if len(reports) < 2:
        raise UsageError("USAGE-OPTION", "reports", f"{len(reports)} given, wanted two or more")
    found = [
        difference
        for (one, first), (other, second) in combinations(reports.items(), 2)
        for difference in _pair(one, first, other, second, metric)
    ]
    corrected = holm([difference.test.p for difference in found])
    return tuple(replace(d, corrected_p=p, comparisons=len(found)) for d, p in zip(found, corrected, strict=True))


def differences_to_json(differences: Sequence[Difference]) -> str:
    """Return the comparison as JSON text."""
    return _ADAPTER.dump_json(tuple(differences), indent=1).decode("utf-8") + "\n"


def differences_to_csv(differences: Sequence[Difference]) -> str:
    """Return a CSV row for each compared case: reports, label, metric, case, both values and their change."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["first", "second", "label", "metric", "case", "first_value", "second_value", "change"])
    for d in differences:
        names = [cell(d.first), cell(d.second), cell(d.label), d.metric]
        writer.writerows([*names, cell(c.case), repr(c.first), repr(c.second), repr(c.change)] for c in d.changes)
    return text.getvalue()


def _pair(one: str, first: Report, other: str, second: Report, metric: str) -> list[Difference]:
    if metric == "surface_dice" and first.tolerance_mm != second.tolerance_mm:
        problem = f"surface Dice at {first.tolerance_mm:g} mm and at {second.tolerance_mm:g} mm"
        raise UsageError("USAGE-OPTION", f"{one}, {other}", problem, "Score both with one tolerance.")
    mine, theirs = ({case.case: case for case in report.cases} for report in (first, second))
    both = sorted(set(mine) & set(theirs))
    labels = [name for name in first.labels.values() if name in second.labels.values()]
    if not both or not labels:
        problem = "no label of this name in both" if both else "no case of the same id in both"
        raise UsageError("DATA-EMPTY", f"{one}, {other}", problem, "Compare reports on the same references.")
    shared = [(mine[case], theirs[case]) for case in both]
    only = tuple(sorted(set(mine) - set(theirs))), tuple(sorted(set(theirs) - set(mine)))
    left = tuple(sorted(set(first.labels.values()) ^ set(second.labels.values())))
    found = [_label(one, other, shared, name, _metric(metric)) for name in labels]
    kept = [replace(d, only_first=only[0], only_second=only[1], left_out=left) for d in found if d is not None]
    if not kept:
        problem = f"no case has {_metric(metric).title} against the same reference in both"
        raise UsageError("DATA-EMPTY", f"{one}, {other}", problem, "Compare reports on the same references.")
    return kept


def _label(
    one: str, other: str, shared: Sequence[tuple[CaseScores, CaseScores]], label: str, metric: Metric
) -> Difference | None:
    """Compare one label; None when no case is left."""
    changes, groups, unlike, blank = [], [], [], []
    for a, b in shared:
        mine, theirs = a.label(label), b.label(label)
        if _other_reference(a, b) or not np.isclose(mine.reference_ml, theirs.reference_ml, rtol=1e-6, atol=1e-9):
            unlike.append(a.case)
            continue
        x, y = mine.value(metric.name), theirs.value(metric.name)
        if x is None or y is None or "truly empty" in (mine.outcome, theirs.outcome):
            blank.append(a.case)
            continue
        changes.append(Change(a.case, x, y, y - x))
        groups.append(a.group or b.group or a.case)
    if not changes:
        return None
    test = paired([c.first for c in changes], [c.second for c in changes], groups)
    compared = [(a, b) for a, b in shared if a.case not in unlike]
    return Difference(
        label,
        metric.name,
        one,
        other,
        float(np.mean([c.first for c in changes])),
        float(np.mean([c.second for c in changes])),
        test,
        corrected_p=test.p,
        comparisons=1,
        changes=tuple(sorted(changes, key=lambda c: (_sign(metric) * c.change, c.case))),
        unlike=tuple(unlike),
        blank=tuple(blank),
        alarms=(_alarms([a for a, _ in compared], label), _alarms([b for _, b in compared], label)),
    )


def _other_reference(a: CaseScores, b: CaseScores) -> bool:
    """Reports of before there were hashes are told apart by volume alone; its tolerance is rounding of the affine."""
    return bool(a.reference_hash and b.reference_hash) and a.reference_hash != b.reference_hash


def _alarms(cases: Sequence[CaseScores], label: str) -> int:
    return sum(case.label(label).outcome == "false alarm" for case in cases)


def _metric(name: str) -> Metric:
    return next(metric for metric in METRICS if metric.name == name)


def _sign(metric: Metric) -> int:
    return -1 if metric.better == "lower" else 1


def _digits(metric: Metric) -> int:
    return {"mm": 2, "ml": 2}.get(metric.unit, 3)


def _signed(value: float, metric: Metric) -> str:
    return f"{value:+.{_digits(metric)}f}".replace("-", "−")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _listed(cases: Sequence[str], what: str) -> str:
    if not cases:
        return ""
    names = ", ".join(cases[:5]) + (", ..." if len(cases) > 5 else "")
    return f"{_counted(len(cases), 'case')} {what}: {names}."

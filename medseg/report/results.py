"""`Report`: everything that an evaluation found, as plain data that goes to JSON and comes back equal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import TypeAdapter, ValidationError

from medseg.errors import UsageError
from medseg.metrics import EMPTY_RULE, METRICS, OUTCOMES, CaseScores, LabelScores, Metric
from medseg.report.floor import Floor
from medseg.report.lesions import LesionSize, by_size
from medseg.report.strata import place
from medseg.statistics import FEW, Agreement, Interval, agreement, mean_interval, median_interval, rate_interval
from medseg.volume import Labels

FORMAT = "medseg-report/1"
"""Grows when a field of `report.json` changes its meaning."""

STRATA_METRICS = ("dice", "surface_dice", "hd95_mm")
"""Given for each stratum; all others would bury the few that are read."""


@dataclass(frozen=True)
class Refusal:
    """A case that was not scored, and why.

    Attributes:
        case: case id.
        code: stable code of the error.
        message: the sentence for people.
    """

    case: str
    code: str
    message: str


@dataclass(frozen=True)
class Summary:
    """One metric of one label over the cases.

    Attributes:
        label: its name.
        metric: a name in `medseg.metrics.METRICS`.
        cases: how many cases have a value.
        blank: how many have none.
        mean: None, as the following, when no case has a value.
        mean_interval: 95 %, by patient (`medseg.statistics.mean_interval`); None with too few patients.
        median: of the values.
        median_interval: 95 %, percentile bootstrap by patient.
        deviation: standard deviation over cases; None with fewer than two.
        quartiles: 25th and 75th percentile.
        extremes: smallest and largest value.
    """

    label: str
    metric: str
    cases: int
    blank: int
    mean: float | None = None
    mean_interval: Interval | None = None
    median: float | None = None
    median_interval: Interval | None = None
    deviation: float | None = None
    quartiles: tuple[float, float] | None = None
    extremes: tuple[float, float] | None = None


@dataclass(frozen=True)
class LabelReport:
    """One label over the cases.

    Attributes:
        label: its name.
        outcomes: how many cases came out as each of `medseg.metrics.OUTCOMES`.
        missing: how many of the missed are so because there is no prediction.
        summaries: one for each metric, in the order of `METRICS`.
        floor: what a mask that never looks at the image scores on the same cases.
        volumes: agreement of mask and reference volumes in ml, where both are there.
        if_refused_counted: mean Dice when every refused case counted as 0; None when none was refused.
        missed_rate: 95 % interval of the share of cases missed among those that hold the label; cases count as
            independent. None when no case holds it.
        lesions: found, missed and false ones by size.
    """

    label: str
    outcomes: dict[str, int]
    missing: int
    summaries: tuple[Summary, ...]
    floor: Floor | None = None
    volumes: Agreement | None = None
    if_refused_counted: float | None = None
    missed_rate: Interval | None = None
    lesions: tuple[LesionSize, ...] = ()

    def summary(self, metric: str) -> Summary:
        """Return the summary of one metric by name."""
        return next(summary for summary in self.summaries if summary.metric == metric)


@dataclass(frozen=True)
class Stratum:
    """The cases that share a value in a column, and one label over them.

    Attributes:
        column: its name.
        value: what the cases share.
        patients: how many they come from.
        refused: how many more cases of this stratum were refused, and are not in the figures.
        result: with the metrics `STRATA_METRICS` only, and without a floor.
    """

    column: str
    value: str
    patients: int
    refused: int
    result: LabelReport


@dataclass(frozen=True)
class Report:
    """An evaluation.

    Attributes:
        labels: number to name.
        tolerance_mm: of surface Dice.
        cases: the scored ones, missing predictions among them, ordered by id.
        refused: cases with a reference and a mask that could not be compared.
        unscored: scans of the batch that were rejected or failed and have no reference.
        unreferenced: case ids of masks without a reference.
        results: by label.
        warnings: sentences about what the numbers do not carry.
        provenance: versions and settings, by name.
        strata: the figures again by parts of the cases.
        rule: how empty masks count.
        format: of `report.json`.
    """

    labels: dict[int, str]
    tolerance_mm: float
    cases: tuple[CaseScores, ...]
    refused: tuple[Refusal, ...]
    unscored: tuple[Refusal, ...]
    unreferenced: tuple[str, ...]
    results: tuple[LabelReport, ...]
    warnings: tuple[str, ...]
    provenance: dict[str, str]
    strata: tuple[Stratum, ...] = ()
    rule: str = EMPTY_RULE
    format: str = FORMAT

    @property
    def missing(self) -> tuple[CaseScores, ...]:
        """The cases whose prediction is missing."""
        return tuple(case for case in self.cases if case.missing)

    @property
    def complete(self) -> bool:
        """Whether every reference had a mask that could be scored."""
        return not self.missing and not self.refused

    @property
    def mean_dice(self) -> float | None:
        """Mean over the labels of their mean Dice; None when nothing was scored."""
        means = [mean for result in self.results if (mean := result.summary("dice").mean) is not None]
        return float(np.mean(means)) if means else None

    def label(self, name: str) -> LabelReport:
        """Return the results of one label by name."""
        return next(result for result in self.results if result.label == name)

    def summary(self) -> str:
        """Return a few plain lines for a terminal."""
        lines = [line for result in self.results for line in _lines(result)]
        if self.missing:
            names = _some([case.case for case in self.missing])
            lines.append(f"{len(self.missing)} without a mask, counted as Dice 0: {names}")
        lines.extend(f"refused, not scored: {refusal.case}: {refusal.message}" for refusal in self.refused)
        if self.unreferenced:
            count = f"{len(self.unreferenced)} mask{'' if len(self.unreferenced) == 1 else 's'}"
            lines.append(f"{count} without a reference, not scored: {_some(self.unreferenced)}")
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])

    def scores(self) -> dict[str, dict[str, float | int | None]]:
        """Return the main figures of each label as plain types, for a model's description."""
        return {result.label: _figures(result) for result in self.results}

    def to_json(self) -> str:
        """Return the report as JSON text; blanks are null, never NaN."""
        return _ADAPTER.dump_json(self, indent=1).decode("utf-8") + "\n"

    @staticmethod
    def from_json(text: str) -> Report:
        """Read what `to_json` wrote.

        Raises:
            UsageError: USAGE-PATH when the text is not such a report.
        """
        try:
            report = _ADAPTER.validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "top level"
            problem = f"not a report of medseg: {first['msg']} at {where}"
            raise UsageError(
                "USAGE-PATH", "report.json", problem, "Give the report.json that `evaluate` wrote."
            ) from error
        if report.format != FORMAT:
            raise UsageError("USAGE-PATH", "report.json", f"format {report.format!r}, wanted {FORMAT!r}")
        return report


_ADAPTER: TypeAdapter[Report] = TypeAdapter(Report)


def json_schema() -> dict[str, object]:
    """Return the JSON schema of `report.json`."""
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, **_ADAPTER.json_schema(mode="serialization")}


def summarise(
    labels: Labels,
    tolerance_mm: float,
    cases: Sequence[CaseScores],
    refused: Sequence[Refusal] = (),
    *,
    floors: Mapping[str, Floor] | None = None,
    unscored: Sequence[Refusal] = (),
    unreferenced: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
    strata: Mapping[str, Mapping[str, str]] | None = None,
    remarks: Sequence[str] = (),
) -> Report:
    """Turn the scores of cases into a report.

    `strata` are as from `medseg.report.strata.read_strata`; `remarks` stand before the report's own warnings.
    """
    ordered = sorted(cases, key=lambda case: case.case)
    results = tuple(_result(name, ordered, len(refused), (floors or {}).get(name)) for _, name in labels)
    return Report(
        labels=dict(labels.names),
        tolerance_mm=tolerance_mm,
        cases=tuple(ordered),
        refused=tuple(sorted(refused, key=lambda refusal: refusal.case)),
        unscored=tuple(unscored),
        unreferenced=tuple(sorted(unreferenced)),
        results=results,
        warnings=(*remarks, *_warnings(ordered, results)),
        provenance=dict(provenance or {}),
        strata=tuple(_strata(labels, ordered, refused, strata or {})),
    )


def _strata(
    labels: Labels,
    cases: Sequence[CaseScores],
    refused: Sequence[Refusal],
    columns: Mapping[str, Mapping[str, str]],
) -> Iterator[Stratum]:
    ids, lost = [case.case for case in cases], {refusal.case for refusal in refused}
    metrics = [metric for metric in METRICS if metric.name in STRATA_METRICS]
    for column, values in columns.items():
        for value, members in place([*ids, *sorted(lost)], values).items():
            inside = [case for case in cases if case.case in set(members)]
            patients, gone = len({case.group or case.case for case in inside}), len(lost & set(members))
            for _, name in labels:
                yield Stratum(column, value, patients, gone, _result(name, inside, gone, None, metrics))


def _result(
    label: str,
    cases: Sequence[CaseScores],
    refused: int,
    floor: Floor | None,
    metrics: Sequence[Metric] = METRICS,
) -> LabelReport:
    scores = [case.label(label) for case in cases]
    groups = [case.group or case.case for case in cases]
    both = [s for s in scores if s.outcome != "truly empty" and s.prediction_ml is not None]
    dice = [s.dice for s in scores if s.dice is not None]
    outcomes: dict[str, int] = {outcome: sum(s.outcome == outcome for s in scores) for outcome in OUTCOMES}
    return LabelReport(
        label,
        outcomes=outcomes,
        missing=sum(bool(case.missing) for case in cases),
        summaries=tuple(_summary(label, metric, scores, groups) for metric in metrics),
        floor=floor,
        volumes=agreement([s.reference_ml for s in both], [s.prediction_ml or 0.0 for s in both]),
        if_refused_counted=sum(dice) / (len(dice) + refused) if refused and dice else None,
        missed_rate=rate_interval(outcomes["missed"], outcomes["hit"] + outcomes["missed"]),
        lesions=by_size(scores),
    )


def _summary(label: str, metric: Metric, scores: Sequence[LabelScores], groups: Sequence[str]) -> Summary:
    found = [(v, g) for s, g in zip(scores, groups, strict=True) if (v := _counted(s, metric)) is not None]
    blank = len(scores) - len(found)
    if not found:
        return Summary(label, metric.name, 0, blank)
    values, members = [v for v, _ in found], [g for _, g in found]
    quarter, median, third = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
    return Summary(
        label,
        metric.name,
        len(values),
        blank,
        mean=float(np.mean(values)),
        mean_interval=mean_interval(values, members, low=metric.low, high=metric.high),
        median=median,
        median_interval=median_interval(values, members),
        deviation=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        quartiles=(quarter, third),
        extremes=(min(values), max(values)),
    )


def _figures(result: LabelReport) -> dict[str, float | int | None]:
    dice, hd95 = result.summary("dice"), result.summary("hd95_mm")
    return {
        "cases": dice.cases,
        "mean_dice": dice.mean,
        "mean_dice_low": dice.mean_interval.low if dice.mean_interval else None,
        "mean_dice_high": dice.mean_interval.high if dice.mean_interval else None,
        "median_dice": dice.median,
        "median_hd95_mm": hd95.median,
        "location_floor": result.floor.mean_dice if result.floor else None,
    }


def _lines(result: LabelReport) -> list[str]:
    dice, hd95 = result.summary("dice"), result.summary("hd95_mm")
    if dice.mean is None:
        return [f"{result.label}: nothing to score"]
    ends = dice.mean_interval
    spread = f" (95 % CI {ends.low:.3f} to {ends.high:.3f})" if ends else ""
    floor = f"; location-only floor {result.floor.mean_dice:.2f}" if result.floor else ""
    counts = ", ".join(f"{result.outcomes[outcome]} {outcome}" for outcome in OUTCOMES)
    distance = f"; median HD95 {hd95.median:.1f} mm" if hd95.median is not None else ""
    return [
        f"{result.label}: mean Dice {dice.mean:.3f}{spread}, median {dice.median:.3f}, "
        f"{dice.cases} case{'' if dice.cases == 1 else 's'}{floor}",
        f"  {counts}{distance}",
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _counted(scores: LabelScores, metric: Metric) -> float | None:
    """A truly empty case has volumes of 0 ml, but is counted beside the mean and not in it."""
    return None if scores.outcome == "truly empty" else scores.value(metric.name)


def _warnings(cases: Sequence[CaseScores], results: Sequence[LabelReport]) -> list[str]:
    said = []
    patients = len({case.group or case.case for case in cases})
    if patients < FEW:
        said.append(
            f"Few cases: {patients} patient{'' if patients == 1 else 's'}. Intervals are wide, and those of distances "
            f"and volumes may hold the true mean less often than 95 % below {FEW} patients. Do not rank methods."
        )
    if partly := [case.unannotated_ml for case in cases if case.unannotated_ml]:
        said.append(
            f"Annotated in part: in {len(partly)} of {len(cases)} cases {sum(partly):.3g} ml that nobody annotated "
            "were left out. Neither mask nor reference counts there, in any figure."
        )
    for result in results:
        dice, floor = result.summary("dice"), result.floor
        low = dice.mean_interval.low if dice.mean_interval else dice.mean
        if floor and low is not None and low <= floor.mean_dice:
            said.append(
                f"{result.label}: the mean Dice is not shown to be above the location-only floor "
                f"({floor.mean_dice:.2f}): a mask that never looks at the image scores about as well."
            )
        elif floor and floor.mean_dice >= 0.5:  # a mask that overlaps more than not, from the crop alone
            said.append(
                f"{result.label}: a mask that never looks at the image scores {floor.mean_dice:.2f}; the images are "
                "cropped around the target, and Dice on whole scans will be lower."
            )
    return said

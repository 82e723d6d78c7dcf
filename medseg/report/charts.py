"""Charts as inline SVG: no script, no style of their own; the page's classes give light, dark and print colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from medseg.metrics import METRICS
from medseg.report.compare import Difference
from medseg.report.results import LabelReport, Report, Summary

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 14, 42


@dataclass(frozen=True)
class Dot:
    """One case in a chart: its position in data units, its number in the page, its tooltip and its outcome."""

    x: float
    y: float
    number: int
    text: str
    outcome: str = "hit"


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    ticks: tuple[float, ...]
    title: str
    log: bool = False

    def at(self, value: float) -> float:
        """Return the place of a value as a share of the axis, cut at its ends."""
        low, high, v = (np.log10(max(n, 1e-12)) if self.log else n for n in (self.low, self.high, value))
        return float(np.clip((v - low) / (high - low), 0, 1))


def interval_bar(summary: Summary, floor: float | None) -> Markup:
    """Draw a score from 0 to 1 on a line: mean with its 95 % interval, median, and the floor."""
    width, middle = 320, 20

    def at(value: float) -> float:
        return 8 + value * (width - 16)

    parts = [_line(at(0), middle, at(1), middle, "axis")]
    parts += [
        _line(at(t), middle - 3, at(t), middle + 3, "axis") + _text(at(t), 40, f"{t:g}", "tick") for t in (0, 0.5, 1)
    ]
    if floor is not None:
        parts.append(_line(at(floor), 6, at(floor), 34, "floor", f"location-only floor {floor:.2f}"))
    if summary.mean_interval:
        ends = summary.mean_interval
        text = f"95 % interval of the mean: {ends.low:.3f} to {ends.high:.3f}"
        parts.append(_line(at(ends.low), middle, at(ends.high), middle, "ci", text))
    if summary.median is not None and summary.mean is not None:
        m = at(summary.median)
        parts.append(
            Markup('<path class="median" d="M{} 11l5 9l-5 9l-5 -9z">{}</path>').format(
                _n(m), _title(f"median {summary.median:.3f}")
            )
        )
        parts.append(_circle(at(summary.mean), middle, 6, "mean", f"mean {summary.mean:.3f}"))
    label = f"mean {summary.mean:.3f}" if summary.mean is not None else "no value"
    return _svg(width, 46, parts, f"Dice from 0 to 1: {label}")


def strip(report: Report, metric: str) -> Markup:
    """Draw every case's score from 0 to 1, one row for each label, over the quartile box."""
    row, names = 74, [result.label for result in report.results]
    height = TOP + row * len(names) + BOTTOM
    x = _Axis(0, 1, (0, 0.2, 0.4, 0.6, 0.8, 1), "Dice")
    parts = [*_x_axis(x, height)]
    for n, result in enumerate(report.results):
        middle = TOP + row * n + row / 2
        parts.append(_text(LEFT, TOP + row * n + 12, result.label, "rowname"))
        parts += _box(result.summary(metric), x, middle + 6)
        found = [(number, case.case, case.label(result.label)) for number, case in enumerate(report.cases)]
        shown = [(number, name, s, v) for number, name, s in found if (v := s.value(metric)) is not None]
        for (number, name, scores, value), lift in zip(shown, _swarm([v for *_, v in shown]), strict=True):
            dot = Dot(value, lift, number, f"{name}: {value:.3f} ({scores.outcome})", scores.outcome)
            parts.append(_dot(dot, _across(x, value), middle + 6 + lift))
    return _svg(WIDTH, height, parts, "Distribution of Dice over the cases")


def size_against_dice(report: Report, result: LabelReport) -> Markup | None:
    """Draw Dice over the reference's volume (logarithmic), or None with fewer than three such cases."""
    dots = [
        Dot(s.reference_ml, s.dice, number, f"{case.case}: {s.reference_ml:.3g} ml, Dice {s.dice:.3f}", s.outcome)
        for number, case in enumerate(report.cases)
        if (s := case.label(result.label)).dice is not None and s.reference_ml > 0
    ]
    if len(dots) < 3:
        return None
    x = _log_axis([d.x for d in dots], "Reference volume (ml)")
    return _scatter(dots, x, _Axis(0, 1, (0, 0.25, 0.5, 0.75, 1), "Dice"), [], "Dice against the size of the reference")


def volume_agreement(report: Report, result: LabelReport) -> Markup | None:
    """Draw the Bland-Altman plot of the volumes, or None without agreement statistics."""
    if result.volumes is None:
        return None
    dots = []
    for number, case in enumerate(report.cases):
        s = case.label(result.label)
        if s.outcome != "truly empty" and s.prediction_ml is not None and s.difference_ml is not None:
            text = f"{case.case}: mask {s.prediction_ml:.3g} ml, reference {s.reference_ml:.3g} ml"
            dots.append(Dot((s.prediction_ml + s.reference_ml) / 2, s.difference_ml, number, text, s.outcome))
    lines = [(result.volumes.bias, "bias"), (result.volumes.low, "limit"), (result.volumes.high, "limit")]
    every = [d.y for d in dots] + [level for level, _ in lines] + [0.0]
    x = _linear_axis([d.x for d in dots] + [0.0], "Mean of mask and reference (ml)")
    return _scatter(dots, x, _linear_axis(every, "Mask minus reference (ml)"), lines, "Agreement of volumes")


def changes(difference: Difference) -> Markup:
    """Draw the change of every case, worst first, over the mean change and its 95 % interval."""
    metric = next(metric for metric in METRICS if metric.name == difference.metric)
    gain = -1 if metric.better == "lower" else 1
    ends = difference.test.interval
    levels = [0.0, difference.test.difference, *((ends.low, ends.high) if ends else ())]
    unit = f" ({metric.unit})" if metric.unit else ""
    y = _linear_axis(
        [c.change for c in difference.changes] + levels,
        f"{metric.title}{unit}: {difference.second} minus {difference.first}",
    )
    x = _Axis(-1, len(difference.changes), (), "Cases")
    parts = [*_x_axis(x, HEIGHT), *_y_axis(y)]
    if ends:
        band = Markup('<rect class="box" x="{}" y="{}" width="{}" height="{}"/>')
        top, height = _up(y, ends.high), _up(y, ends.low) - _up(y, ends.high)
        parts.append(band.format(LEFT, _n(top), WIDTH - LEFT - RIGHT, _n(max(height, 1))))
    parts.append(_line(LEFT, _up(y, 0), WIDTH - RIGHT, _up(y, 0), "axis"))
    mean = difference.test.difference
    parts.append(_line(LEFT, _up(y, mean), WIDTH - RIGHT, _up(y, mean), "bias", f"mean change {mean:.3g}"))
    for n, change in enumerate(difference.changes):
        place, tip = _across(x, n), f"{change.case}: {change.first:.3g} to {change.second:.3g}"
        worse = gain * change.change < 0
        parts.append(_line(place, _up(y, 0), place, _up(y, change.change), "whisker"))
        parts.append(_mark("false alarm" if worse else "hit", place, _up(y, change.change), tip))
    return _svg(WIDTH, HEIGHT, parts, f"Change of {metric.title} by case")


def _scatter(dots: Sequence[Dot], x: _Axis, y: _Axis, lines: Sequence[tuple[float, str]], title: str) -> Markup:
    parts = [*_x_axis(x, HEIGHT), *_y_axis(y)]
    for level, kind in lines:
        parts.append(_line(LEFT, _up(y, level), WIDTH - RIGHT, _up(y, level), kind, f"{kind} {level:.3g}"))
    parts += [_dot(dot, _across(x, dot.x), _up(y, dot.y)) for dot in dots]
    return _svg(WIDTH, HEIGHT, parts, title)


def _swarm(values: Sequence[float]) -> list[float]:
    """Return offsets in pixels that keep dots of nearly equal values apart."""
    offsets = [0.0] * len(values)
    lanes = [0.0, -7.0, 7.0, -14.0, 14.0, -21.0, 21.0]
    last = dict.fromkeys(lanes, -np.inf)
    for n in np.argsort(values, kind="stable"):
        place = values[n] * (WIDTH - LEFT - RIGHT)
        free = [lane for lane in lanes if place - last[lane] >= 8]
        offsets[n] = free[0] if free else min(lanes, key=lambda lane: last[lane])
        last[offsets[n]] = place
    return offsets


def _box(summary: Summary, x: _Axis, middle: float) -> list[Markup]:
    if summary.quartiles is None or summary.median is None or summary.extremes is None:
        return []
    low, high = (_across(x, v) for v in summary.quartiles)
    left, right = (_across(x, v) for v in summary.extremes)
    median = _across(x, summary.median)
    box = Markup('<rect class="box" x="{}" y="{}" width="{}" height="32" rx="3"/>').format(
        _n(low), _n(middle - 16), _n(max(high - low, 1))
    )
    return [
        _line(left, middle, right, middle, "whisker"),
        box,
        _line(median, middle - 16, median, middle + 16, "middle"),
    ]


def _linear_axis(values: Sequence[float], title: str) -> _Axis:
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    low, high = low - 0.06 * span * (low < 0), high + 0.06 * span
    raw = (high - low) / 4
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    first = np.ceil(low / step)
    ticks = tuple(float(step * t) for t in np.arange(first, np.floor(high / step) + 1))
    return _Axis(low, high, ticks, title)


def _log_axis(values: Sequence[float], title: str) -> _Axis:
    low, high = np.log10(min(values)) - 0.1, np.log10(max(values)) + 0.1
    every = [m * 10.0**p for p in range(int(np.floor(low)), int(np.ceil(high)) + 1) for m in (1, 2, 5)]
    ticks = tuple(t for t in every if 10**low <= t <= 10**high)
    if len(ticks) > 6:
        ticks = tuple(t for t in ticks if np.isclose(np.log10(t) % 1, 0) or np.isclose(np.log10(t) % 1, 1))
    return _Axis(float(10**low), float(10**high), ticks, title, log=True)


def _x_axis(axis: _Axis, height: float) -> list[Markup]:
    base = height - BOTTOM
    parts = [_line(_across(axis, t), TOP, _across(axis, t), base, "grid") for t in axis.ticks]
    parts += [_text(_across(axis, t), base + 16, f"{t + 0:g}", "tick") for t in axis.ticks]  # + 0: no "-0"
    return [*parts, _text((LEFT + WIDTH - RIGHT) / 2, height - 6, axis.title, "title")]


def _y_axis(axis: _Axis) -> list[Markup]:
    parts = [_line(LEFT, _up(axis, t), WIDTH - RIGHT, _up(axis, t), "grid") for t in axis.ticks]
    parts += [_text(LEFT - 8, _up(axis, t) + 4, f"{t + 0:g}", "tick end") for t in axis.ticks]
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = Markup('<text class="title" transform="translate(14 {}) rotate(-90)">{}</text>').format(
        _n(middle), axis.title
    )
    return [*parts, turned]


def _across(axis: _Axis, value: float) -> float:
    return LEFT + axis.at(value) * (WIDTH - LEFT - RIGHT)


def _up(axis: _Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.at(value) * (HEIGHT - TOP - BOTTOM)


def _dot(dot: Dot, x: float, y: float) -> Markup:
    return Markup('<a href="#case-{}">{}</a>').format(dot.number, _mark(dot.outcome, x, y, dot.text))


def _mark(outcome: str, x: float, y: float, text: str) -> Markup:
    # Missed and false alarms differ in shape, not only in colour.
    kind = outcome.replace(" ", "-")
    shapes: dict[str, Callable[[], Markup]] = {
        "missed": lambda: Markup('<path class="dot missed" d="M{0} {1}m-4 -4l8 8m0 -8l-8 8">{2}</path>').format(
            _n(x), _n(y), _title(text)
        ),
        "false-alarm": lambda: Markup('<path class="dot false-alarm" d="M{0} {1}m0 -5l5 9h-10z">{2}</path>').format(
            _n(x), _n(y), _title(text)
        ),
    }
    return shapes.get(kind, lambda: _circle(x, y, 3.6, "dot hit", text))()


def _svg(width: float, height: float, parts: Sequence[Markup], title: str) -> Markup:
    head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
        _n(width), _n(height), title
    )
    return head + Markup("").join(parts) + Markup("</svg>")


def _line(x1: float, y1: float, x2: float, y2: float, kind: str, text: str = "") -> Markup:
    place = (_n(x1), _n(y1), _n(x2), _n(y2))
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}">{}</line>').format(kind, *place, _title(text))


def _circle(x: float, y: float, radius: float, kind: str, text: str) -> Markup:
    return Markup('<circle class="{}" cx="{}" cy="{}" r="{}">{}</circle>').format(
        kind, _n(x), _n(y), radius, _title(text)
    )


def _text(x: float, y: float, text: str, kind: str) -> Markup:
    return Markup('<text class="{}" x="{}" y="{}">{}</text>').format(kind, _n(x), _n(y), text)


def _title(text: str) -> Markup:
    return Markup("<title>{}</title>").format(escape(text)) if text else Markup("")


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")

"""A scan and its mask in a few numbers, and how far the training cases reach in each: the same numbers on both sides.

training:    case -> CaseFacts -> seen_in ... joined -> Seen, kept in model.yaml
prediction:  scan -> ScanFacts, mask -> LabelFacts, held against Seen (`medseg.quality`)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from medseg.pieces import Numbers, Pieces, boxes, slowest_first
from medseg.volume import Mask, Volume

Sample = NDArray[np.float32]
Range = tuple[float, float]
"""Smallest and largest."""

SAMPLE = 100_000
"""Voxels that tell what the body of a scan looks like: a fifth of a field of view is body, at the least, and the 5
percentile of 20,000 values rests on 1,000 of them."""

PROFILE = (5.0, 25.0, 50.0, 75.0, 95.0)
"""Percentiles of the body's values."""

BODY_SHARE = 0.1
"""Body: what lies above the low end of the intensity range by more than this share of it; air in MR is less."""


# ------------------------------------------------------------------------------------------------------------ one case


@dataclass(frozen=True)
class ScanFacts:
    """The scans of one case.

    Attributes:
        body_part: as the first scan's header says; empty when unknown.
        spacing_mm: along x, y, z (the axes nearest to them).
        shape: voxels along x, y, z.
        modalities: of each channel; empty when unknown.
        profiles: of each channel, `PROFILE` of the values inside the body, in its unit (CT: HU); None without any.
    """

    body_part: str
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    modalities: tuple[str, ...]
    profiles: tuple[tuple[float, ...] | None, ...]

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Field of view along x, y, z."""
        x, y, z = (count * mm for count, mm in zip(self.shape, self.spacing_mm, strict=True))
        return x, y, z


@dataclass(frozen=True)
class LabelFacts:
    """One label of one mask.

    Attributes:
        volume_ml: 0 when it is absent.
        pieces: number of connected pieces.
        at_border: whether it reaches the border of the scan across x, y, z.
    """

    volume_ml: float = 0.0
    pieces: int = 0
    at_border: tuple[bool, bool, bool] = (False, False, False)


def scan_facts(volume: Volume, modalities: Sequence[str], body_part: str = "") -> ScanFacts:
    """Measure the scans of one case.

    Args:
        volume: `(c, i, j, k)`.
        modalities: of each channel; empty when unknown.
        body_part: as the header says.
    """
    grid = volume.grid.reordered(volume.grid.order_to("RAS"))
    bodies = (body_sample(voxels, modality) for voxels, modality in zip(volume.voxels, modalities, strict=True))
    return ScanFacts(body_part, grid.spacing, grid.shape, tuple(modalities), tuple(profile_of(body) for body in bodies))


def body_sample(voxels: NDArray[np.generic], modality: str) -> Sample:
    """Return the values inside the body among `SAMPLE` evenly spread voxels of `(i, j, k)`, in the scan's unit."""
    values = _strided(voxels, SAMPLE)
    return values[values > _body_threshold(values, modality)]


def _strided(voxels: NDArray[np.generic], wanted: int) -> Sample:
    """Return about `wanted` values, evenly spread.

    The stride shares no factor with the shape: it would meet the same columns again and others never.
    """
    step = max(1, voxels.size // wanted)
    while any(math.gcd(step, n) > 1 for n in voxels.shape if n > 1) and step > 1:
        step += 1
    return np.asarray(voxels.flat[::step], dtype=np.float32)


def _body_threshold(values: Sample, modality: str) -> float:
    if modality == "CT":
        return -500.0  # half-way between air (-1000 HU) and water (0 HU)
    low, high = np.percentile(values, (0.5, 99.5))
    return float(low + BODY_SHARE * (high - low)) if high > low else -math.inf


def profile_of(body: Sample) -> tuple[float, ...] | None:
    """Return the percentiles `PROFILE`; None without values."""
    return tuple(np.percentile(body, PROFILE).tolist()) if body.size else None


def label_facts(mask: Mask, count: int) -> tuple[LabelFacts, ...]:
    """Measure the labels 1 to `count`; memory beyond the mask does not grow with it."""
    order = mask.grid.order_to("RAS")
    labels: Numbers = order.apply(mask.labels)  # type: ignore[assignment]  # a view of the same type
    as_it_lies = slowest_first(labels)  # how many pieces there are does not depend on the order of the axes
    found = {}
    for number, box in boxes(labels).items():
        if number <= count:
            pieces = Pieces(labels[box].transpose(as_it_lies), number)
            x, y, z = (side.start == 0 or side.stop == size for side, size in zip(box, labels.shape, strict=True))
            found[number] = LabelFacts(int(pieces.sizes.sum()) * mask.grid.voxel_ml, len(pieces), (x, y, z))
    return tuple(found.get(number, LabelFacts()) for number in range(1, count + 1))


# -------------------------------------------------------------------------------------------------- the training cases


@dataclass(frozen=True)
class SeenChannel:
    """One channel of the training cases.

    Attributes:
        modalities: how many cases have which; empty: unknown.
        profile: of each percentile `PROFILE`, over the cases.
        relative: the same after putting each case's first percentile at 0 and its last at 1.
    """

    modalities: Mapping[str, int]
    profile: tuple[Range, ...] | None
    relative: tuple[Range, ...] | None


@dataclass(frozen=True)
class SeenLabel:
    """One label of the training cases.

    Attributes:
        cases: how many hold it.
        volume_ml: in those; None when no case holds it.
        most_pieces: in one case.
        at_border: in how many cases it reaches the border of the scan across x, y, z.
    """

    cases: int
    volume_ml: Range | None
    most_pieces: int
    at_border: tuple[int, int, int]


@dataclass(frozen=True)
class Seen:
    """How far the training cases reach.

    Attributes:
        cases: how many.
        body_parts: how many cases have which; empty: unknown.
        spacing_mm: smallest and largest along x, y, z.
        extent_mm: smallest and largest field of view along x, y, z.
        channels: in order.
        labels: by name.
    """

    cases: int
    body_parts: Mapping[str, int]
    spacing_mm: tuple[Range, Range, Range]
    extent_mm: tuple[Range, Range, Range]
    channels: tuple[SeenChannel, ...]
    labels: Mapping[str, SeenLabel]


def seen_in(scan: ScanFacts, labels: Mapping[str, LabelFacts]) -> Seen:
    """Return how far one case reaches."""
    return Seen(
        1,
        {scan.body_part: 1},
        _points(scan.spacing_mm),
        _points(scan.extent_mm),
        tuple(_channel_in(*channel) for channel in zip(scan.modalities, scan.profiles, strict=True)),
        {name: _label_in(facts) for name, facts in labels.items()},
    )


def _points(values: Iterable[float]) -> tuple[Range, Range, Range]:
    x, y, z = ((float(value), float(value)) for value in values)
    return x, y, z


def _channel_in(modality: str, profile: tuple[float, ...] | None) -> SeenChannel:
    spread = relative(profile)
    points = None if profile is None else tuple((value, value) for value in profile)
    return SeenChannel({modality: 1}, points, None if spread is None else tuple((value, value) for value in spread))


def relative(profile: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """Put the first percentile at 0 and the last at 1; None when they are equal or there are none."""
    if profile is None or not profile[0] < profile[-1]:
        return None
    return tuple((value - profile[0]) / (profile[-1] - profile[0]) for value in profile)


def _label_in(facts: LabelFacts) -> SeenLabel:
    there = facts.pieces > 0
    x, y, z = map(int, facts.at_border)
    return SeenLabel(int(there), (facts.volume_ml, facts.volume_ml) if there else None, facts.pieces, (x, y, z))


def joined(parts: Sequence[Seen]) -> Seen:
    """Return how far several sets of cases reach together; labels and channels are those of the first."""
    first = parts[0]
    return Seen(
        sum(part.cases for part in parts),
        _counts(part.body_parts for part in parts),
        _axes([part.spacing_mm for part in parts]),
        _axes([part.extent_mm for part in parts]),
        tuple(_join_channels([part.channels[n] for part in parts]) for n in range(len(first.channels))),
        {name: _join_labels([part.labels[name] for part in parts]) for name in first.labels},
    )


def _counts(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    return dict(sorted(sum((Counter(part) for part in parts), Counter()).items()))


def _axes(parts: Sequence[tuple[Range, Range, Range]]) -> tuple[Range, Range, Range]:
    x, y, z = (_span(axis) for axis in zip(*parts, strict=True))
    return x, y, z


def _span(ranges: Sequence[Range]) -> Range:
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _join_channels(parts: Sequence[SeenChannel]) -> SeenChannel:
    profiles = [part.profile for part in parts if part.profile is not None]
    spreads = [part.relative for part in parts if part.relative is not None]
    return SeenChannel(
        _counts(part.modalities for part in parts),
        tuple(_span(ranges) for ranges in zip(*profiles, strict=True)) or None,
        tuple(_span(ranges) for ranges in zip(*spreads, strict=True)) or None,
    )


def _join_labels(parts: Sequence[SeenLabel]) -> SeenLabel:
    volumes = [part.volume_ml for part in parts if part.volume_ml is not None]
    x, y, z = (sum(counts) for counts in zip(*(part.at_border for part in parts), strict=True))
    return SeenLabel(
        sum(part.cases for part in parts),
        _span(volumes) if volumes else None,
        max(part.most_pieces for part in parts),
        (x, y, z),
    )


_SEEN = TypeAdapter(Seen)


def seen_by(trained_on: Mapping[str, Any]) -> Seen | None:
    """Return how far the training cases of a model reach; None when its description does not tell (an older one).

    Args:
        trained_on: of the model's description; an ensemble's holds `members`, and reaches as far as they do together.
    """
    try:
        members = trained_on.get("members") or [trained_on]
        return joined([_SEEN.validate_python(member["seen"]) for member in members])
    except (ValidationError, LookupError, TypeError, AttributeError, ValueError):
        return None  # whatever stands there, it is not what this version compares with

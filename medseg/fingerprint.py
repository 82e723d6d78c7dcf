"""What a data set looks like in numbers: the measures of its cases summed up, by which training decides.

Training chooses plane, spacing and intensity window from the fingerprint, and keeps it in `model.yaml`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from medseg.case_measure import SAMPLE, Box, CaseMeasure, ChannelMeasure, Sample
from medseg.config.settings import Config, Plane
from medseg.errors import UsageError
from medseg.facts import Seen, joined, seen_in
from medseg.grid import axis_of

PERCENTILES = (0.5, 5.0, 25.0, 50.0, 75.0, 95.0, 99.5)
"""The outer two bound the window, the others describe."""

MIN_PAIRED = 3
MOST = 0.8
"""At least so many cases, and this share of them, show two labels left and right of each other."""


@dataclass(frozen=True)
class ChannelFingerprint:
    """One channel over all cases; every case weighs the same.

    Attributes:
        modality: of most cases; empty when unknown.
        modalities: how many cases have which.
        foreground_percentiles: 0.5 and 99.5 percentile of the voxels under any label.
        foreground_mean: of the same voxels.
        foreground_sd: of the same voxels.
        foreground: percentile to value, `PERCENTILES`; without any foreground the body's values, as all of the above.
        body: the same inside the body.
    """

    modality: str
    modalities: Mapping[str, int]
    foreground_percentiles: tuple[float, float]
    foreground_mean: float
    foreground_sd: float
    foreground: Mapping[str, float]
    body: Mapping[str, float]


@dataclass(frozen=True)
class LabelFingerprint:
    """One label over all cases.

    Attributes:
        name: as in the configuration.
        cases: how many have at least a voxel of it.
        volume_ml: smallest, median and largest volume among those; zeros when there is none.
        share: median share of the scan's voxels among those.
        chord_mm: how far it goes on along x, y, z (`CaseMeasure.label_chords_mm`), at least, in nine of ten of those.
    """

    name: str
    cases: int
    volume_ml: tuple[float, float, float]
    share: float
    chord_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Fingerprint:
    """What the training cases look like: plain numbers.

    Attributes:
        cases: how many.
        plane: in which the references of most cases were drawn; axial when votes are equal.
        drawn: votes for it (`medseg.case_measure.drawn_plane`; where a reference does not tell, its scan's native one).
        native: native plane of most cases.
        planes: votes for that.
        spacing_mm: median along x, y, z.
        spacing_range_mm: smallest and largest along x, y, z.
        shape: median number of voxels along x, y, z.
        channels: intensities.
        labels: sizes.
        label_slices: median share of the slices that hold any label, across x, y, z.
        mirrored: pairs of labels of which one is the other's mirror image, left and right, by their place and size.
        seen: how far the cases reach, for the flags of predicted cases.
    """

    cases: int
    plane: Plane
    drawn: Mapping[str, int]
    native: Plane
    planes: Mapping[str, int]
    spacing_mm: tuple[float, float, float]
    spacing_range_mm: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
    shape: tuple[int, int, int]
    channels: tuple[ChannelFingerprint, ...]
    labels: tuple[LabelFingerprint, ...]
    label_slices: tuple[float, float, float]
    mirrored: tuple[tuple[str, str], ...]
    seen: Seen

    def in_plane_spacing_mm(self, codes: str) -> tuple[float, float]:
        """Median spacing along the first two axes of cases in orientation `codes` (such as "PLS": rows run along y)."""
        rows, columns = (self.spacing_mm[axis_of(code)] for code in codes[:2])
        return rows, columns

    def in_plane_range_mm(self, codes: str) -> tuple[tuple[float, float], tuple[float, float]]:
        """Smallest and largest spacing along the same two axes."""
        rows, columns = (self.spacing_range_mm[axis_of(code)] for code in codes[:2])
        return rows, columns

    def to_dict(self) -> dict[str, object]:
        """Plain types for JSON and YAML."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def fingerprint(measures: Sequence[CaseMeasure], config: Config) -> Fingerprint:
    """Sum up the measures of some cases, in any order.

    Raises:
        UsageError: DATA-EMPTY without cases.
    """
    if not measures:
        raise UsageError("DATA-EMPTY", "data", "no case is left", "Add cases under data.scans.")
    drawn, native = (Counter(planes) for planes in ([m.drawn for m in measures], [m.plane for m in measures]))
    spacing = np.array([measure.spacing_mm for measure in measures])
    x, y, z = np.median(spacing, axis=0).tolist()
    ranges = [(float(axis.min()), float(axis.max())) for axis in spacing.T]
    i, j, k = (round(n) for n in np.median([measure.shape for measure in measures], axis=0).tolist())
    return Fingerprint(
        cases=len(measures),
        plane=_elected(drawn),
        drawn=dict(sorted(drawn.items())),
        native=_elected(native),
        planes=dict(sorted(native.items())),
        spacing_mm=(x, y, z),
        spacing_range_mm=(ranges[0], ranges[1], ranges[2]),
        shape=(i, j, k),
        channels=tuple(
            _channel([measure.channels[number] for measure in measures]) for number in range(len(config.data.select))
        ),
        labels=tuple(_label(name, number, measures) for number, name in enumerate(config.labels)),
        label_slices=_shares(measures),
        mirrored=_mirrored(list(config.labels), [measure.label_boxes_mm for measure in measures]),
        seen=joined([seen_in(m.scan_facts, dict(zip(config.labels, m.label_facts, strict=True))) for m in measures]),
    )


def _elected(votes: Mapping[Plane, int]) -> Plane:
    return max(sorted(votes), key=lambda plane: votes[plane])  # a < c < s: equal votes are axial's first


def _channel(measures: Sequence[ChannelMeasure]) -> ChannelFingerprint:
    modalities = Counter(measure.modality for measure in measures)
    body = _pooled(measure.body for measure in measures)
    foreground = _pooled(measure.foreground for measure in measures)
    if not foreground.size:
        foreground = body
    return ChannelFingerprint(
        modality=max(sorted(modalities), key=lambda name: modalities[name]),
        modalities=dict(sorted(modalities.items())),
        foreground_percentiles=(_percentiles(foreground)["0.5"], _percentiles(foreground)["99.5"]),
        foreground_mean=float(foreground.mean(dtype=np.float64)) if foreground.size else 0.0,
        foreground_sd=float(foreground.std(dtype=np.float64)) if foreground.size else 0.0,
        foreground=_percentiles(foreground),
        body=_percentiles(body),
    )


def _pooled(samples: Iterable[Sample]) -> Sample:
    """Join the samples, each repeated or thinned to the same weight: a large tumour says no more than a small one.

    In ascending order: sums of floats depend on the order, and the order of the cases must not matter.
    """
    evened = []
    for sample in samples:
        if sample.size:
            evened.append(sample[np.linspace(0, sample.size - 1, SAMPLE // 10).astype(np.int64)])
    return np.sort(np.concatenate(evened)) if evened else np.zeros(0, dtype=np.float32)


def _percentiles(values: Sample) -> dict[str, float]:
    found = np.percentile(values, PERCENTILES).tolist() if values.size else [0.0] * len(PERCENTILES)
    return {f"{percent:g}": float(value) for percent, value in zip(PERCENTILES, found, strict=True)}


def _label(name: str, number: int, measures: Sequence[CaseMeasure]) -> LabelFingerprint:
    there = [measure for measure in measures if measure.label_voxels[number]]
    if not there:
        return LabelFingerprint(name, 0, (0.0, 0.0, 0.0), 0.0, (0.0, 0.0, 0.0))
    volumes = [measure.label_voxels[number] * measure.voxel_ml for measure in there]
    shares = [measure.label_voxels[number] / measure.voxels for measure in there]
    x, y, z = np.percentile([measure.label_chords_mm[number] for measure in there], 10, axis=0).tolist()
    sizes = min(volumes), float(np.median(volumes)), max(volumes)
    return LabelFingerprint(name, len(there), sizes, float(np.median(shares)), (x, y, z))


def _shares(measures: Sequence[CaseMeasure]) -> tuple[float, float, float]:
    shares = [np.divide(measure.label_slices, measure.shape) for measure in measures]
    x, y, z = np.median(shares, axis=0).tolist()
    return x, y, z


def _mirrored(names: Sequence[str], boxes: Sequence[Sequence[Box | None]]) -> tuple[tuple[str, str], ...]:
    """Return the pairs of labels that lie beside each other, left and right, and are of one size, in most cases."""
    pairs = itertools.combinations(range(len(names)), 2)
    return tuple((names[a], names[b]) for a, b in pairs if _is_mirrored([(case[a], case[b]) for case in boxes]))


def _is_mirrored(boxes: Sequence[tuple[Box | None, Box | None]]) -> bool:
    """Tell whether two labels are one organ's left and right: the same one always on the same side, neither larger.

    Two cases agree by chance; three begin to tell. Boxes of the two sides of one body differ by less than a factor 2,
    and lie apart from left to right twice as far as in any other direction.
    """
    both = np.array([pair for pair in boxes if None not in pair])  # (cases, 2, 3, 2)
    if len(both) < MIN_PAIRED:
        return False
    apart = np.diff(both.mean(axis=3), axis=1)[:, 0]
    ratio = np.divide(*np.moveaxis(np.ptp(both, axis=3), 1, 0))
    fits = (np.abs(apart[:, 0]) > 2 * np.abs(apart[:, 1:]).max(axis=1)) & (np.abs(np.log2(ratio)) < 1).all(axis=1)
    to_one_side = max(int((fits & (apart[:, 0] > 0)).sum()), int((fits & (apart[:, 0] < 0)).sum()))
    return to_one_side >= MOST * len(both)

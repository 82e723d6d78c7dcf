"""What a data set looks like in numbers: `measure_case` reads one case, `fingerprint` sums up many.

One streaming pass, one case in memory at a time. Training chooses plane, spacing and intensity window from the
fingerprint, and keeps it in `model.yaml`.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainSerializer, PlainValidator
from scipy import ndimage

from medseg.case import Case, Finding
from medseg.config.settings import Config, Plane
from medseg.errors import InputError, UsageError
from medseg.facts import LabelFacts, ScanFacts, Seen, body_sample, joined, label_facts, profile_of, seen_in
from medseg.grid import Grid
from medseg.reference import open_reference
from medseg.scan import Scan, read
from medseg.volume import UNANNOTATED, Mask, Volume


def _from_text(text: object) -> NDArray[np.float32]:
    return np.frombuffer(b64decode(str(text), validate=True), dtype="<f4")


def _to_text(sample: NDArray[np.float32]) -> str:
    return b64encode(sample.astype("<f4").tobytes()).decode()


Sample = Annotated[NDArray[np.float32], PlainValidator(_from_text), PlainSerializer(_to_text)]
"""Values; in JSON the base64 of their bytes (`medseg.measured`)."""

Box = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
"""Start and stop along x, y, z in mm."""

SAMPLE = 20_000
"""Voxels kept of each case, channel and region: every case weighs the same, and a thousand cases need 240 MB."""

PERCENTILES = (0.5, 5.0, 25.0, 50.0, 75.0, 95.0, 99.5)
"""The outer two bound the window, the others describe."""

THICK = 1.25
"""An axis whose spacing exceeds the next one's by this factor is the stack axis of a NIfTI; below it (thin CT, 3-D MR)
the spacing does not tell."""

MIN_PAIRED = 3
MOST = 0.8
"""At least so many cases, and this share of them, show two labels left and right of each other."""

_NORMAL: tuple[Plane, Plane, Plane] = ("sagittal", "coronal", "axial")  # of the world axes x, y, z


@dataclass(frozen=True, eq=False)
class ChannelMeasure:
    """One channel of one case.

    Attributes:
        modality: as the scan or the configuration says; empty when unknown.
        low: smallest value.
        high: largest value.
        body: sample of the voxels inside the body, in the scan's unit (CT: HU).
        foreground: sample of the voxels under any label.
        digest: hash of the voxels in RAS order, equal for equal images whatever their file format.
    """

    modality: str
    low: float
    high: float
    body: Sample
    foreground: Sample
    digest: str


@dataclass(frozen=True, eq=False)
class CaseMeasure:
    """One case in numbers.

    Attributes:
        id: case id.
        shape: voxels along x, y, z (the axes nearest to them).
        spacing_mm: along x, y, z.
        plane: native plane, see `native_plane`.
        voxel_ml: volume of a voxel.
        channels: in order.
        label_voxels: of each label, in the order of the configuration.
        label_boxes_mm: where each lies: start and stop along x, y, z, from the scan's first voxel; None when absent.
        label_slices: number of slices that hold any label, across x, y, z.
        label_facts: what masks are compared by after prediction, of each label.
        body_part: as the first scan's header says; empty when unknown.
        unannotated: voxels that nobody annotated.
    """

    id: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    plane: Plane
    voxel_ml: float
    channels: tuple[ChannelMeasure, ...]
    label_voxels: tuple[int, ...]
    label_boxes_mm: tuple[Box | None, ...]
    label_slices: tuple[int, int, int]
    label_facts: tuple[LabelFacts, ...]
    body_part: str = ""
    unannotated: int = 0

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def scan_facts(self) -> ScanFacts:
        """What scans are compared by before prediction."""
        profiles = tuple(profile_of(channel.body) for channel in self.channels)
        modalities = tuple(channel.modality for channel in self.channels)
        return ScanFacts(self.body_part, self.spacing_mm, self.shape, modalities, profiles)


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
    """

    name: str
    cases: int
    volume_ml: tuple[float, float, float]
    share: float


@dataclass(frozen=True)
class Fingerprint:
    """What the training cases look like: plain numbers.

    Attributes:
        cases: how many.
        plane: native plane of most cases; axial when votes are equal.
        planes: votes.
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


def axis_of(code: str) -> int:
    """Return 0, 1 or 2 for a letter of direction along x, y or z."""
    return next(axis for axis, letters in enumerate(("LR", "PA", "IS")) if code in letters)


# ----------------------------------------------------------------------------------------------------------- one case


def measure_case(case: Case, config: Config) -> tuple[CaseMeasure, tuple[Finding, ...]]:
    """Read and measure one case.

    Returns:
        Its numbers, and what reading the reference noticed.

    Raises:
        InputError: a scan or the reference is unfit; DATA-VALUES for NaN or infinity in a scan.
    """
    first = read(case.scans[0])
    reading = open_reference(case, first.grid, config)
    channels = []
    for number, scan in enumerate(case.scans):
        volume = first if number == 0 else read(scan)
        modality = volume.modality or scan.modality or config.data.select[number].modality or ""
        channels.append(_measure_channel(volume, reading.mask, modality, case.id))
    mask = reading.mask
    order = mask.grid.order_to("RAS")
    ordered = mask.grid.reordered(order)
    counts = np.bincount(mask.labels.ravel(order="K"), minlength=UNANNOTATED + 1)
    labels = order.apply(mask.labels)
    measured = CaseMeasure(
        id=case.id,
        shape=ordered.shape,
        spacing_mm=ordered.spacing,
        plane=native_plane(case.scans[0], mask.grid),
        voxel_ml=mask.grid.voxel_ml,
        channels=tuple(channels),
        label_voxels=tuple(counts[1 : len(config.labels) + 1].tolist()),
        label_boxes_mm=_boxes(labels, ordered.spacing, len(config.labels)),
        label_slices=_slices_with_labels(labels),
        label_facts=label_facts(mask, len(config.labels)),
        body_part=case.scans[0].body_part,
        unannotated=int(counts[UNANNOTATED]),
    )
    return measured, reading.findings


def _boxes(labels: NDArray[Any], spacing: tuple[float, ...], count: int) -> tuple[Box | None, ...]:
    """Return the box of each label in a mask whose axes run along x, y, z."""
    found: list[Box | None] = []
    for box in ndimage.find_objects(labels, max_label=count):
        sides = [(axis.start * mm, axis.stop * mm) for axis, mm in zip(box, spacing, strict=True)] if box else []
        found.append((sides[0], sides[1], sides[2]) if sides else None)
    return tuple(found)


def _slices_with_labels(labels: NDArray[Any]) -> tuple[int, int, int]:
    labelled = (labels > 0) & (labels != UNANNOTATED)
    x, y, z = (int(labelled.any(axis=axes).sum()) for axes in ((1, 2), (0, 2), (0, 1)))
    return x, y, z


def native_plane(scan: Scan, grid: Grid) -> Plane:
    """Return the anatomical plane that a scan was acquired in.

    DICOM: the plane across the stack of slices. NIfTI has forgotten its stack: across the axis of clearly the largest
    spacing, axial when none is.
    """
    axis = 2
    if scan.kind == "nifti":
        ascending = np.argsort(grid.spacing)
        if grid.spacing[ascending[2]] < THICK * grid.spacing[ascending[1]]:
            return "axial"
        axis = int(ascending[2])
    return _NORMAL[axis_of(grid.orientation[axis])]


def _measure_channel(volume: Volume, mask: Mask, modality: str, case_id: str) -> ChannelMeasure:
    voxels = volume.voxels[0]
    low, high = _range(voxels, case_id)
    body = body_sample(voxels, modality)
    thin = max(1, -(-len(body) // SAMPLE))
    return ChannelMeasure(
        modality=modality,
        low=low,
        high=high,
        body=body[::thin].copy(),  # a view would keep all of `body` in memory, for every case
        foreground=_under_labels(volume, mask),
        digest=_digest(volume),
    )


def _range(voxels: NDArray[np.generic], case_id: str) -> tuple[float, float]:
    """Return the smallest and the largest value.

    Raises:
        InputError: DATA-VALUES for NaN or infinity.
    """
    slices = range(voxels.shape[2])
    low, high = (float(f([f(voxels[..., k]) for k in slices])) for f in (np.min, np.max))
    if not math.isfinite(high - low):
        raise InputError("DATA-VALUES", case_id, "the scan holds NaN or infinity", "Export it again.")
    return low, high


def _under_labels(volume: Volume, mask: Mask) -> Sample:
    """Return at most `SAMPLE` values under the mask's labels, evenly spread; the volume's grid may be another."""
    labelled = (mask.labels > 0) & (mask.labels != UNANNOTATED)
    step = max(1, -(-int(np.count_nonzero(labelled)) // SAMPLE))
    found, passed = [], 0
    for k in range(mask.grid.shape[2]):
        inside = np.argwhere(labelled[..., k])
        chosen = inside[(-passed) % step :: step]
        passed += len(inside)
        found.append(np.column_stack([chosen, np.full(len(chosen), k)]))
    index = np.rint(volume.grid.to_index(mask.grid.to_world(np.concatenate(found)))).astype(np.int64)
    index = index[((index >= 0) & (index < volume.grid.shape)).all(axis=1)]
    return np.asarray(volume.voxels[0][tuple(index.T)], dtype=np.float32)


def _digest(volume: Volume) -> str:
    """Hash the values in RAS order as float32, slice by slice: the same image has the same hash in every format."""
    order = volume.grid.order_to("RAS")
    voxels = order.apply(volume.voxels[0])
    state = hashlib.blake2b(repr(voxels.shape).encode(), digest_size=16)
    for k in range(voxels.shape[2]):
        state.update(np.ascontiguousarray(voxels[..., k], dtype="<f4").data)
    return state.hexdigest()


# --------------------------------------------------------------------------------------------------------- many cases


def fingerprint(measures: Sequence[CaseMeasure], config: Config) -> Fingerprint:
    """Sum up the measures of some cases, in any order.

    Raises:
        UsageError: DATA-EMPTY without cases.
    """
    if not measures:
        raise UsageError("DATA-EMPTY", "data", "no case is left", "Add cases under data.scans.")
    votes = Counter(measure.plane for measure in measures)
    spacing = np.array([measure.spacing_mm for measure in measures])
    x, y, z = np.median(spacing, axis=0).tolist()
    ranges = [(float(axis.min()), float(axis.max())) for axis in spacing.T]
    i, j, k = (round(n) for n in np.median([measure.shape for measure in measures], axis=0).tolist())
    return Fingerprint(
        cases=len(measures),
        plane=max(sorted(votes), key=lambda plane: votes[plane]),  # a < c < s: equal votes are axial's first
        planes=dict(sorted(votes.items())),
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
        return LabelFingerprint(name, 0, (0.0, 0.0, 0.0), 0.0)
    volumes = [measure.label_voxels[number] * measure.voxel_ml for measure in there]
    shares = [measure.label_voxels[number] / measure.voxels for measure in there]
    return LabelFingerprint(
        name, len(there), (min(volumes), float(np.median(volumes)), max(volumes)), float(np.median(shares))
    )


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

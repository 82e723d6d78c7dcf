"""One case in numbers: what `medseg check` compares, and what training decides by (`medseg.fingerprint`)."""

from __future__ import annotations

import hashlib
import math
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainSerializer, PlainValidator
from scipy import ndimage

from medseg.case import Case, Finding
from medseg.config.settings import Config, Plane
from medseg.errors import InputError
from medseg.facts import LabelFacts, ScanFacts, body_sample, label_facts, profile_of
from medseg.grid import Grid, axis_of
from medseg.pieces import boxes
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

THICK = 1.25
"""An axis whose spacing exceeds the next one's by this factor is the stack axis of a NIfTI; below it (thin CT, 3-D MR)
the spacing does not tell."""

RAGGED = 1.5
"""So many times the flicker across the native plane shows that the reference was drawn in another: where people had
drawn, it was four to five times that of a plane in which they had not (docs/benchmarks.md)."""

FLICKERS = 10
"""Fewer flickering voxels than this tell nothing."""

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
        drawn: the plane that its reference was drawn in, see `drawn_plane`.
        voxel_ml: volume of a voxel.
        channels: in order.
        label_voxels: of each label, in the order of the configuration.
        label_boxes_mm: where each lies: start and stop along x, y, z, from the scan's first voxel; None when absent.
        label_chords_mm: how far each goes on along x, y, z, in the mean of all runs of its voxels; zeros when absent.
        label_slices: number of slices that hold any label, across x, y, z.
        label_facts: what masks are compared by after prediction, of each label.
        body_part: as the first scan's header says; empty when unknown.
        unannotated: voxels that nobody annotated.
    """

    id: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    plane: Plane
    drawn: Plane
    voxel_ml: float
    channels: tuple[ChannelMeasure, ...]
    label_voxels: tuple[int, ...]
    label_boxes_mm: tuple[Box | None, ...]
    label_chords_mm: tuple[tuple[float, float, float], ...]
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
    native = native_plane(case.scans[0], mask.grid)
    around = _around(labels, len(config.labels))
    measured = CaseMeasure(
        id=case.id,
        shape=ordered.shape,
        spacing_mm=ordered.spacing,
        plane=native,
        drawn=drawn_plane(labels, ordered.spacing, native),
        voxel_ml=mask.grid.voxel_ml,
        channels=tuple(channels),
        label_voxels=tuple(counts[1 : len(config.labels) + 1].tolist()),
        label_boxes_mm=tuple(_box(box, ordered.spacing) for box in around),
        label_chords_mm=tuple(_chords(labels, n, box, ordered.spacing) for n, box in enumerate(around, start=1)),
        label_slices=_slices_with_labels(labels),
        label_facts=label_facts(mask, len(config.labels)),
        body_part=case.scans[0].body_part,
        unannotated=int(counts[UNANNOTATED]),
    )
    return measured, reading.findings


def _around(labels: NDArray[Any], count: int) -> list[tuple[slice, ...] | None]:
    """Return the voxels between which each label lies; None for one that is absent."""
    return list(ndimage.find_objects(labels, max_label=count))


def _box(box: tuple[slice, ...] | None, spacing: Sequence[float]) -> Box | None:
    """Return a box of voxels in mm."""
    sides = [(axis.start * mm, axis.stop * mm) for axis, mm in zip(box, spacing, strict=True)] if box else []
    return (sides[0], sides[1], sides[2]) if sides else None


def _chords(
    labels: NDArray[Any], number: int, box: tuple[slice, ...] | None, spacing: Sequence[float]
) -> tuple[float, float, float]:
    """Return the mean length of the runs of a label's voxels along each axis: thin things have short ones."""
    if box is None:
        return 0.0, 0.0, 0.0
    inside = labels[box] == number
    voxels = int(np.count_nonzero(inside))
    along = [np.moveaxis(inside, axis, 0) for axis in range(3)]
    runs = [voxels - int(np.count_nonzero(one[1:] & one[:-1])) for one in along]
    x, y, z = (mm * voxels / count for mm, count in zip(spacing, runs, strict=True))
    return x, y, z


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


def drawn_plane(labels: NDArray[Any], spacing: Sequence[float], native: Plane) -> Plane:
    """Return the plane that a reference was drawn in, slice by slice.

    Outlines are smooth in the plane in which they were drawn; across it each was drawn anew, and voxels flicker: they
    differ from both neighbours, which agree. The plane with the most flicker across it is the one.

    Args:
        labels: label numbers along x, y, z; voxels that nobody annotated tell nothing.
        spacing: of the voxels in mm.
        native: what is returned unless voxels are about as long as wide and the flicker is clear.
    """
    if max(spacing) >= THICK * min(spacing):
        return native
    box = boxes((labels > 0).view(np.uint8)).get(1)
    if box is None:
        return native
    around = labels[tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)]
    found = [_flicker(np.moveaxis(around, axis, 0)) for axis in range(3)]
    shares = [flickers / max(1, changes) for flickers, changes in found]
    most = int(np.argmax(shares))
    clear = found[most][0] >= FLICKERS and shares[most] >= RAGGED * shares[_NORMAL.index(native)]
    return _NORMAL[most] if clear else native


def _flicker(slices: NDArray[Any]) -> tuple[int, int]:
    """Count the voxels that differ from both neighbouring slices, which agree; and all changes from slice to slice."""
    flickers = changes = 0
    before = None
    for one, other in pairwise(slices):
        changed = (one != other) & (one != UNANNOTATED) & (other != UNANNOTATED)
        changes += int(changed.sum())
        if before is not None:
            earlier, changed_before = before
            flickers += int((changed_before & changed & (earlier == other)).sum())
        before = one, changed
    return flickers, changes


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

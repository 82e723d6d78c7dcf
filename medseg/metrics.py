"""How well a mask agrees with its reference: overlap, distances in mm, volumes in ml, lesions found.

The rule for empty masks (`EMPTY_RULE`) stands here once; every mean in a report is read by it. All distances are
between voxel centres in the world, so anisotropic, oblique and sheared grids need no special case.

Sources: Reinke et al. 2024, "Understanding metric-related pitfalls in image analysis validation", Nature Methods 21,
for what each metric can and cannot say; Nikolov et al. 2021 for surface Dice; definitions are in `METRICS`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from medseg.errors import MaskError
from medseg.grid import Grid
from medseg.pieces import TOUCHING, Box, boxes
from medseg.surfaces import Bools, surface_distances
from medseg.volume import Labels, Mask

Outcome = Literal["hit", "missed", "false alarm", "truly empty"]

OUTCOMES: tuple[Outcome, ...] = ("hit", "missed", "false alarm", "truly empty")

TOLERANCE_MM = 2.0
"""Default tolerance of surface Dice: about what two readers of a clinical scan differ by, and no less than a voxel of
most. Set it from the task; the report names it."""

EMPTY_RULE = (
    "Both masks empty: not scored, but counted (truly empty). Only one of them empty, or no overlap at all: Dice 0. "
    "A prediction that is missing: Dice 0. Distances are blank where a surface is missing, and the blanks are counted. "
    "A mask that does not lie on its reference, or holds an unknown label, is refused and never scored."
)


@dataclass(frozen=True)
class Metric:
    """What a column of a report means.

    Attributes:
        name: field of `LabelScores`, and the metric's name in `scores.csv`.
        title: for people.
        unit: "", "mm" or "ml".
        better: which way is good; "none" for a plain description.
        low: smallest possible value, or None.
        high: largest possible value, or None.
        definition: one or two sentences, for the report.
    """

    name: str
    title: str
    unit: str
    better: Literal["higher", "lower", "none"]
    low: float | None
    high: float | None
    definition: str


METRICS: tuple[Metric, ...] = (
    Metric("dice", "Dice", "", "higher", 0, 1, "2 |P and R| / (|P| + |R|), over the voxels of the whole volume."),
    Metric("iou", "IoU", "", "higher", 0, 1, "|P and R| / |P or R| (Jaccard), over the voxels of the whole volume."),
    Metric(
        "surface_dice",
        "Surface Dice",
        "",
        "higher",
        0,
        1,
        "Share of the surface voxels of both masks that lie within the tolerance of the other surface, each voxel "
        "counted once; 0 where only one of the masks is empty.",
    ),
    Metric(
        "hd95_mm",
        "HD95",
        "mm",
        "lower",
        0,
        None,
        "The larger of the two directed 95th percentiles (linear interpolation) of the distances from the surface "
        "voxels of one mask to the nearest surface voxel of the other. A surface voxel has a face neighbour outside "
        "its mask, or lies on the edge of the image.",
    ),
    Metric(
        "assd_mm",
        "Average surface distance",
        "mm",
        "lower",
        0,
        None,
        "Mean of the distances of all surface voxels of both masks to the nearest surface voxel of the other.",
    ),
    Metric("sensitivity", "Sensitivity", "", "higher", 0, 1, "|P and R| / |R|; blank without a reference."),
    Metric("precision", "Precision", "", "higher", 0, 1, "|P and R| / |P|; blank without a prediction."),
    Metric(
        "slice_dice",
        "Dice by slice",
        "",
        "higher",
        0,
        1,
        "Mean of the Dice of the slices that hold the label in either mask, along the axis of the largest spacing "
        "(the last one when equal).",
    ),
    Metric("reference_ml", "Reference volume", "ml", "none", 0, None, "Voxels of the reference times their volume."),
    Metric("prediction_ml", "Mask volume", "ml", "none", 0, None, "Voxels of the mask times their volume."),
    Metric("difference_ml", "Volume difference", "ml", "none", None, None, "Mask minus reference."),
    Metric(
        "lesions_found",
        "Lesions found",
        "",
        "none",
        0,
        None,
        "Connected pieces of the reference (26 neighbours) that the mask touches by at least one voxel.",
    ),
    Metric(
        "lesions_missed", "Lesions missed", "", "none", 0, None, "Pieces of the reference that the mask does not touch."
    ),
    Metric("lesions_false", "False lesions", "", "none", 0, None, "Pieces of the mask that touch no reference."),
)
"""Every number that is given for a case and label, in the order of the report."""


@dataclass(frozen=True)
class Lesion:
    """One connected piece of a reference: its size, and whether the mask touches it."""

    volume_ml: float
    found: bool


@dataclass(frozen=True)
class LabelScores:
    """The scores of one label in one case; None is blank (undefined, by `EMPTY_RULE`).

    Attributes:
        label: its name.
        outcome: hit (both masks hold it and overlap), missed (the reference holds it, the mask does not touch it, or
            there is no mask), false alarm (only the mask holds it), truly empty (neither does).
        dice: and the further metrics as defined in `METRICS`.
        lesions: the pieces of the reference, largest first.
        false_ml: volumes of the pieces of the mask that touch no reference, largest first.
    """

    label: str
    outcome: Outcome
    dice: float | None = None
    iou: float | None = None
    surface_dice: float | None = None
    hd95_mm: float | None = None
    assd_mm: float | None = None
    sensitivity: float | None = None
    precision: float | None = None
    slice_dice: float | None = None
    reference_ml: float = 0.0
    prediction_ml: float | None = None
    difference_ml: float | None = None
    lesions_found: int = 0
    lesions_missed: int = 0
    lesions_false: int | None = None
    lesions: tuple[Lesion, ...] = ()
    false_ml: tuple[float, ...] = ()

    def value(self, metric: str) -> float | None:
        """Return one metric by its name in `METRICS`."""
        number = getattr(self, metric)
        return None if number is None else float(number)


@dataclass(frozen=True)
class CaseScores:
    """The scores of one case.

    Attributes:
        case: case id.
        labels: one entry for each label, in the order of the labels' numbers.
        missing: why there is no prediction; empty when there is one.
        group: the patient, for statistics by patient; the case itself when empty.
        unannotated_ml: volume that nobody annotated; nothing in it was scored.
        reference_hash: of the reference's label numbers; tells whether two reports judge by the same one.
    """

    case: str
    labels: tuple[LabelScores, ...]
    missing: str = ""
    group: str = ""
    unannotated_ml: float = 0.0
    reference_hash: str = ""

    def label(self, name: str) -> LabelScores:
        """Return the scores of one label by name."""
        return next(scores for scores in self.labels if scores.label == name)


def annotated_part(mask: Mask, reference: Mask, unannotated: Collection[int]) -> Mask:
    """Return a mask with background wherever its reference says that nobody looked.

    Args:
        mask: on the reference's grid; may be the reference itself.
        reference: with the numbers of labels, and perhaps those of `unannotated`.
        unannotated: numbers that mark what nobody annotated.
    """
    unknown = np.isin(reference.labels, sorted(unannotated))
    return Mask(np.where(unknown, mask.labels.dtype.type(0), mask.labels), mask.grid) if unknown.any() else mask


def score_case(
    prediction: Mask,
    reference: Mask,
    labels: Labels,
    case_id: str,
    *,
    tolerance_mm: float = TOLERANCE_MM,
    unannotated: Collection[int] = (),
) -> CaseScores:
    """Compare a mask with its reference, label by label, after proving that both lie in one place.

    The mask may be stored in another axis order than the reference; nothing is resampled.

    Args:
        prediction: the mask to judge.
        reference: what it is judged by; its grid is the one that distances and volumes are taken on.
        labels: the numbers that both may hold, and their names.
        case_id: names the case in the result and in errors.
        tolerance_mm: of the surface Dice.
        unannotated: numbers of the reference that mark what nobody annotated; there neither mask counts.

    Raises:
        MaskError: MASK-GRID when the mask does not lie on the reference, MASK-VALUES for a number that is not among
            the labels.
    """
    try:
        placed = prediction.placed_on(reference.grid)
    except MaskError as error:
        raise MaskError(
            error.code, case_id, error.problem, "It is not scored. Write the mask on its scan's grid."
        ) from error
    unscored_ml = _volume_ml(reference, unannotated)
    placed = annotated_part(placed, reference, unannotated)
    reference = annotated_part(reference, reference, unannotated)
    mine, theirs = _boxes(placed, labels, f"{case_id} (mask)"), _boxes(reference, labels, f"{case_id} (reference)")
    scores = []
    for number, name in labels:
        box = _union(mine.get(number), theirs.get(number))
        predicted, wanted = placed.labels[box] == number, reference.labels[box] == number
        scores.append(_score_label(name, predicted, wanted, reference.grid, tolerance_mm))
    return CaseScores(case_id, tuple(scores), unannotated_ml=unscored_ml)


def _volume_ml(reference: Mask, numbers: Collection[int]) -> float:
    return sum(reference.volume_ml(number) for number in sorted(set(numbers)))


def score_missing(
    reference: Mask, labels: Labels, case_id: str, reason: str, unannotated: Collection[int] = ()
) -> CaseScores:
    """Score a case that has a reference but no prediction: Dice 0 and missed, for each label.

    Raises:
        MaskError: MASK-VALUES for a number that is not among the labels.
    """
    unscored_ml = _volume_ml(reference, unannotated)
    reference = annotated_part(reference, reference, unannotated)
    found = _boxes(reference, labels, f"{case_id} (reference)")
    scores = []
    for number, name in labels:
        wanted = reference.labels[_union(found.get(number), None)] == number
        lesions = _lesions(wanted, np.zeros_like(wanted), reference.grid.voxel_ml)
        scores.append(
            LabelScores(
                name,
                "missed",
                dice=0.0,
                iou=0.0,
                surface_dice=0.0,
                sensitivity=0.0 if wanted.any() else None,
                slice_dice=0.0,
                reference_ml=int(np.count_nonzero(wanted)) * reference.grid.voxel_ml,
                lesions_missed=len(lesions),
                lesions=lesions,
            )
        )
    return CaseScores(case_id, tuple(scores), missing=reason, unannotated_ml=unscored_ml)


def _score_label(name: str, predicted: Bools, wanted: Bools, grid: Grid, tolerance_mm: float) -> LabelScores:
    p, r = int(np.count_nonzero(predicted)), int(np.count_nonzero(wanted))
    if p == r == 0:
        return LabelScores(name, "truly empty", prediction_ml=0.0, difference_ml=0.0, lesions_false=0)
    both = int(np.count_nonzero(predicted & wanted))
    hd95, assd, surface = _distances(predicted, wanted, grid, tolerance_mm) if p and r else (None, None, 0.0)
    lesions, pieces = _lesions(wanted, predicted, grid.voxel_ml), _lesions(predicted, wanted, grid.voxel_ml)
    return LabelScores(
        name,
        "hit" if both else "missed" if r else "false alarm",
        dice=2 * both / (p + r),
        iou=both / (p + r - both),
        surface_dice=surface,
        hd95_mm=hd95,
        assd_mm=assd,
        sensitivity=both / r if r else None,
        precision=both / p if p else None,
        slice_dice=_slice_dice(predicted, wanted, stack_axis(grid)),
        reference_ml=r * grid.voxel_ml,
        prediction_ml=p * grid.voxel_ml,
        difference_ml=(p - r) * grid.voxel_ml,
        lesions_found=sum(lesion.found for lesion in lesions),
        lesions_missed=sum(not lesion.found for lesion in lesions),
        lesions_false=sum(not piece.found for piece in pieces),
        lesions=lesions,
        false_ml=tuple(piece.volume_ml for piece in pieces if not piece.found),
    )


def _distances(predicted: Bools, wanted: Bools, grid: Grid, tolerance_mm: float) -> tuple[float, float, float]:
    forth, back = surface_distances(predicted, wanted, grid)
    hd95 = max(float(np.percentile(forth, 95)), float(np.percentile(back, 95)))
    every = np.concatenate([forth, back])
    # Spacings come from decimal strings: a distance equal to the tolerance must not fall out by a rounding error.
    near = np.count_nonzero(every <= tolerance_mm + 1e-6)
    return hd95, float(every.mean()), float(near / every.size)


def _lesions(pieces_of: Bools, touched_by: Bools, voxel_ml: float) -> tuple[Lesion, ...]:
    pieces, count = ndimage.label(pieces_of, structure=TOUCHING)
    if not count:
        return ()
    sizes = np.bincount(pieces[pieces_of], minlength=count + 1)[1:]
    found = np.bincount(pieces[pieces_of & touched_by], minlength=count + 1)[1:] > 0
    order = np.argsort(-sizes, kind="stable")
    return tuple(Lesion(int(sizes[n]) * voxel_ml, bool(found[n])) for n in order)


def stack_axis(grid: Grid) -> int:
    """Return the array axis that slices are stacked along: the one of the largest spacing, the last one when equal."""
    # Rounded to 1 um: equal spacings differ in their last digits.
    spacing = np.round(grid.spacing, 3)
    return int(2 - np.argmax(spacing[::-1]))


def _slice_dice(predicted: Bools, wanted: Bools, axis: int) -> float:
    plane = tuple(a for a in range(3) if a != axis)
    both = np.count_nonzero(predicted & wanted, axis=plane)
    total = np.count_nonzero(predicted, axis=plane) + np.count_nonzero(wanted, axis=plane)
    some = total > 0
    return float((2 * both[some] / total[some]).mean())


def _boxes(mask: Mask, labels: Labels, where: str) -> dict[int, Box]:
    """Return the bounding box of each number that occurs; one pass over the voxels."""
    found = boxes(mask.labels)
    unknown = sorted(set(found) - set(labels.names))
    if unknown:
        shown = ", ".join(str(n) for n in unknown[:8]) + (", ..." if len(unknown) > 8 else "")
        problem = f"holds the number {shown}, which is not among the labels {dict(labels.names)}"
        raise MaskError("MASK-VALUES", where, problem, "It is not scored. Name the label, or take the right mask.")
    return found


def _union(one: Box | None, other: Box | None) -> Box:
    both = [box for box in (one, other) if box is not None]
    if not both:
        return slice(0, 0), slice(0, 0), slice(0, 0)
    i, j, k = (slice(min(b[a].start for b in both), max(b[a].stop for b in both)) for a in range(3))
    return i, j, k

"""What a plan decides about slices: how they are cut, normalised and changed, by what the training cases show."""

from __future__ import annotations

from medseg.augment import LIGHT, STRONG
from medseg.case_measure import CaseMeasure
from medseg.config import Config
from medseg.config.settings import Plane
from medseg.fingerprint import Fingerprint
from medseg.grid import axis_of
from medseg.preparation import PLANES, Preparation, decide, usual_normalisation
from medseg.training.decisions import Decisions
from medseg.training.sides import unlike_sides

FEW_CASES = 50
"""Below, slices are changed strongly and a step holds more: few patients are soon learned by heart, many later. The
border is a judgement (docs/benchmarks.md, "Augmentation", "How many slices make a step")."""

OBLONG = 1.25
"""From this ratio of its sides on a pixel counts as oblong: 20 degrees then tilt a shape in mm by 5 more or less."""


# ------------------------------------------------------------------------------------------------------- preparation


def prepare_slices(decisions: Decisions, measured: Fingerprint, coarser: float) -> Preparation:
    """Settle how slices are cut, at so many times the cases' median spacing, and how they are normalised."""
    cases = f"{measured.cases} training cases"
    decisions.settle("prepare.plane", measured.plane, _votes(measured))
    codes = PLANES[_plane(decisions.config)]
    spacing = tuple(_rounded(coarser * mm, 6) for mm in measured.in_plane_spacing_mm(codes))
    ranges = [(f"{low:.3g}", f"{high:.3g}") for low, high in measured.in_plane_range_mm(codes)]
    spans = ["all alike" if low == high else f"{low} to {high}" for low, high in ranges]
    span = spans[0] if spans[0] == spans[1] else f"rows {spans[0]}, columns {spans[1]}"
    times = f"{coarser:g} times the " if coarser > 1 else ""
    decisions.settle("prepare.spacing_mm", spacing, f"{times}median of {cases} ({span})")
    _normalise(decisions, measured)
    preparation = decide(decisions.config.prepare, measured, decisions.config.data.select)
    decisions.note("prepare.context", f"neighbours on each side: {preparation.in_channels} input channels")
    return preparation


def _votes(measured: Fingerprint) -> str:
    """Say which cases speak for the plane."""
    plane, cases = measured.plane, f"{measured.cases} training cases"
    drawn = plane != measured.native
    votes = measured.drawn if drawn else measured.planes
    others = ", ".join(f"{other} {count}" for other, count in votes.items() if other != plane)
    others = others and f" (others: {others})"
    if not drawn:
        return f"native plane of {votes[plane]} of {cases}{others}"
    return f"the outlines of {votes[plane]} of {cases} were drawn in it, by their steps from slice to slice{others}"


def _normalise(decisions: Decisions, measured: Fingerprint) -> None:
    """Settle how values are normalised, where that is the same for all channels; else the settings stay open."""
    select = decisions.config.data.select
    kinds = [usual_normalisation(*pair) for pair in zip(select, measured.channels, strict=True)]
    modalities = sorted({name or "unknown modality" for channel in measured.channels for name in channel.modalities})
    if len(set(kinds)) > 1 and decisions.config.prepare.normalise == "auto":
        each = ", ".join(f"{channel.name} by {kind}" for channel, kind in zip(select, kinds, strict=True))
        decisions.note("prepare.normalise", f"each channel its own: {each}")
        return
    scale = "one scale for all scans" if kinds[0] == "window" else "no common scale, so each scan by its own body"
    decisions.settle("prepare.normalise", kinds[0], f"{', '.join(modalities)}: {scale}")
    windows = {tuple(_rounded(x, 4) for x in channel.foreground_percentiles) for channel in measured.channels}
    if decisions.config.prepare.normalise == "window" and len(windows) == 1:
        why = "0.5 and 99.5 percentile of the voxels under the training labels"
        decisions.settle("prepare.window_hu", windows.pop(), why)


def _plane(config: Config) -> Plane:
    return "axial" if config.prepare.plane == "auto" else config.prepare.plane


def _rounded(value: float, digits: int) -> float:
    """Round to significant digits: a header's 32-bit 0.97656202 is meant as 0.976562, and a person can read it."""
    return float(f"{value:.{digits}g}")


# ----------------------------------------------------------------------------------------------------- augmentation


def augment_slices(decisions: Decisions, measured: Fingerprint, preparation: Preparation) -> None:
    """Settle how slices are changed at random."""
    decisions.note("augment", "drawn anew for every slice of every epoch")
    unlike = unlike_sides(preparation.plane, decisions.config.labels, measured)
    few = measured.cases < FEW_CASES
    usual = STRONG if few else LIGHT
    why = f"{measured.cases} training cases: {'few' if few else 'many'}, the border is {FEW_CASES}"
    alike = f"{'left and right are taken to be alike; ' * few}{why}"
    decisions.settle("augment.mirror", 0.0 if unlike else usual["mirror"], unlike or alike)
    for name in ("affine", "scaling", "elastic"):
        decisions.settle(f"augment.{name}", usual[name], why)
    decisions.settle("augment.mirror_rows", *_upside_down(len(decisions.config.labels), usual["mirror_rows"], why))
    ratio = oblong(preparation)
    if ratio > OBLONG:
        less = f"{usual['rotation_deg']:g} / {ratio:.3g}: pixels are so many times as long as wide, and turning shears"
        decisions.settle("augment.rotation_deg", _rounded(usual["rotation_deg"] / ratio, 3), less)
    else:
        decisions.settle("augment.rotation_deg", usual["rotation_deg"], f"pixels are square, or nearly; {why}")


def _upside_down(labels: int, usual: float, why: str) -> tuple[float, str]:
    """Return how often rows are turned upside down, and why: a tumour has no front, but a set of labels may have."""
    return (usual, why) if labels == 1 else (0.0, "several labels may be told apart by where they lie")


def oblong(preparation: Preparation) -> float:
    """Return how many times as long as wide pixels are, or the other way about."""
    return max(preparation.spacing_mm) / min(preparation.spacing_mm)


def stack_of(case: CaseMeasure, preparation: Preparation) -> tuple[int, int, int]:
    """Return slices, rows and columns that a case has after preparation, counted as `working_grid` counts them."""
    rows, columns, normal = (axis_of(code) for code in preparation.codes)
    height, width = preparation.spacing_mm
    return (
        case.shape[normal],
        max(1, round(case.shape[rows] * case.spacing_mm[rows] / height)),
        max(1, round(case.shape[columns] * case.spacing_mm[columns] / width)),
    )

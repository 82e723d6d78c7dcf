"""Flags of a predicted case: what a person should look at, without a reference, and why.

Each flag has a stable code (`medseg.codes`), a severity and an advice. A scan is held against the training scans
(`medseg.facts.Seen`); a mask against the training masks, and against the network's own doubt. The limits below are
stated with their reasons and tuned on no data: a flag says "look", never "wrong".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from medseg.config.settings import Plane
from medseg.facts import PROFILE, LabelFacts, Range, ScanFacts, Seen, SeenChannel, SeenLabel, relative
from medseg.preparation import Preparation

SPACING_FACTOR = 1.5
"""Spacing beyond the training range by more. Training shows objects up to a fifth larger and smaller (augmentation),
and the next scan of the same kind may well lie some percent beyond those that were drawn for training."""

FIELD_FACTOR = 1.5
"""Field of view beyond the training range by more: another region, or another kind of scan. How many slices it takes is
a matter of spacing."""

RANGE_MARGIN = 0.5
"""A percentile of the body outside the training range by more than this share of the range's width. Of a normal
distribution the range of 30 cases is about 2 standard deviations to either side, that of 8 cases 1.4 (Tippett 1925):
with half the width more it takes 4, or 3, to be flagged."""

LEAST_MARGIN = 0.1
"""Where training cases hardly differ, a percentile may lie beside them by this share of the body's spread from 5 to
95 %: some 35 HU of a CT, more than calibrated scanners differ by."""

VOLUME_FACTOR = 2
"""Volume beyond the training range by more; a factor 2 in volume is one of 1.26 in diameter."""

PIECES_FACTOR = 2
"""More pieces than any training mask, times this."""

USUAL = 0.9
"""What at least this share of the training cases has is usual, what less than the rest of them has is not: with nine in
ten, one alarm in ten cases of the training set's own kind would be false."""

LOW_DICE = 0.7
"""Two outlines with a lower Dice are generally held to disagree (Zijdenbos et al. 1994; Bartko 1991)."""

Severity = Literal["high", "medium", "low"]

WEIGHTS: dict[Severity, float] = {"high": 10.0, "medium": 3.0, "low": 1.0}
"""What a flag adds to a case's score, by severity. The expected Dice adds 10 x (1 - Dice): a Dice of 0 weighs as much
as one flag of the highest severity."""


@dataclass(frozen=True)
class Kind:
    """What all flags of a code share: how much they weigh, and what to do."""

    severity: Severity
    advice: str


KINDS: dict[str, Kind] = {
    "REVIEW-MODALITY": Kind("high", "Do not use the mask; predict scans of the kind that the model was trained on."),
    "REVIEW-EMPTY": Kind("high", "Look through the scan: either there is nothing, or the model missed it."),
    "REVIEW-DICE": Kind("high", "Check the outline in every slice, and correct it before use."),
    "REVIEW-BODY-PART": Kind("medium", "Check that the scan shows the region that the model was trained on."),
    "REVIEW-INTENSITY": Kind("medium", "Check sequence, contrast agent and units of the scan; then look at the mask."),
    "REVIEW-SPACING": Kind(
        "medium", "Look at small and thin parts of the mask: training never showed this resolution."
    ),
    "REVIEW-LABEL": Kind("medium", "Look whether it is there."),
    "REVIEW-VOLUME": Kind("medium", "Look for missed parts when it is small, for spill into other tissue when large."),
    "REVIEW-PIECES": Kind(
        "medium", "Look for false alarms away from the target; `predict.clean` can leave small ones out."
    ),
    "REVIEW-FIELD": Kind("low", "Check that the target is whole in the scan, and look for false alarms at its ends."),
    "REVIEW-BORDER": Kind("low", "Look whether the target goes on outside the scan; its volume is then too small."),
}
"""By code, the heaviest first."""


@dataclass(frozen=True)
class Flag:
    """One reason to look at a case.

    Attributes:
        code: a key of `KINDS`.
        found: what was found and what was usual, without a final stop.
    """

    code: str
    found: str

    def __post_init__(self) -> None:
        """Check the code.

        Raises:
            ValueError: there is no such flag.
        """
        if self.code not in KINDS:
            raise ValueError(f"no flag {self.code!r}")

    @property
    def weight(self) -> float:
        """What it adds to the score."""
        return WEIGHTS[KINDS[self.code].severity]

    def __str__(self) -> str:
        """Return the whole sentence: what was found, the code, what to do."""
        return f"{self.found} ({self.code}). {KINDS[self.code].advice}"


# ------------------------------------------------------------------------------------------------------------ the scan


def judge_scan(scan: ScanFacts, seen: Seen, preparation: Preparation) -> list[Flag]:
    """Hold a scan against the training scans.

    Args:
        scan: as measured.
        seen: by the model in training.
        preparation: how the model takes a scan; where it brings each scan to its own scale, grey values are compared
            after putting the body's 5 percentile at 0 and its 95 percentile at 1.
    """
    flags = [*_other_kind(scan, seen), *_spacing(scan, seen), *_field(scan, seen)]
    for number, channel in enumerate(preparation.channels):
        name = f"channel {channel.name!r}: " if len(preparation.channels) > 1 else ""
        profile, known = scan.profiles[number], seen.channels[number]
        flags += [Flag(f.code, name + f.found) for f in _grey_values(profile, known, channel.normalise == "window")]
    return flags


def _other_kind(scan: ScanFacts, seen: Seen) -> Iterator[Flag]:
    for modality, channel in zip(scan.modalities, seen.channels, strict=True):
        known = [name for name in channel.modalities if name]
        if modality and known and modality not in known:
            yield Flag("REVIEW-MODALITY", f"a {modality} scan, the training scans are {', '.join(known)}")
    known = [name for name in seen.body_parts if name]
    part = scan.body_part
    # Terms nest: CHEST and CHESTABDOMEN are no contradiction.
    if part and known and not any(part in name or name in part for name in known):
        yield Flag("REVIEW-BODY-PART", f"the header says {part}, those of the training scans {', '.join(known)}")


def _spacing(scan: ScanFacts, seen: Seen) -> Iterator[Flag]:
    odd = [
        f"{mm:.3g} mm along {axis}, in training {_shown(known)} mm"
        for axis, mm, known in zip("xyz", scan.spacing_mm, seen.spacing_mm, strict=True)
        if _beyond(mm, known, SPACING_FACTOR)
    ]
    if odd:
        yield Flag("REVIEW-SPACING", f"voxels of {'; '.join(odd)}")


def _field(scan: ScanFacts, seen: Seen) -> Iterator[Flag]:
    odd = [
        f"{extent:.3g} mm along {axis}, in training {_shown(known)} mm"
        for axis, extent, known in zip("xyz", scan.extent_mm, seen.extent_mm, strict=True)
        if _beyond(extent, known, FIELD_FACTOR)
    ]
    if odd:
        yield Flag("REVIEW-FIELD", f"the scan covers {'; '.join(odd)}")


def _grey_values(profile: tuple[float, ...] | None, seen: SeenChannel, absolute: bool) -> Iterator[Flag]:
    values, ranges = (profile, seen.profile) if absolute else (relative(profile), seen.relative)
    if values is None or ranges is None:
        return
    least = LEAST_MARGIN * (ranges[-1][1] - ranges[0][0])
    for percent, value, (low, high) in zip(PROFILE, values, ranges, strict=True):
        margin = max(least, RANGE_MARGIN * (high - low))
        if not low - margin <= value <= high + margin:
            how = "" if absolute else ", counted from the darkest (0) to the brightest (1)"
            problem = f"the {percent:g} percentile of the body is {value:.3g}, in training {_shown((low, high))}{how}"
            yield Flag("REVIEW-INTENSITY", problem)
            return  # the others follow from the same cause


def _beyond(value: float, known: Range, factor: float) -> bool:
    return not known[0] / factor <= value <= known[1] * factor


def _shown(known: Range) -> str:
    low, high = (f"{value:.3g}" for value in known)
    return low if low == high else f"{low} to {high}"


# ------------------------------------------------------------------------------------------------------------ the mask


def judge_mask(labels: Mapping[str, LabelFacts], seen: Seen | None, plane: Plane) -> list[Flag]:
    """Look at a mask, and hold it against the training masks when the model tells of them.

    Args:
        labels: as measured, by name.
        seen: by the model in training.
        plane: of the model's slices.
    """
    if not any(facts.pieces for facts in labels.values()):
        return [Flag("REVIEW-EMPTY", "nothing was found")]
    flags = []
    for name, facts in labels.items():
        known = seen.labels.get(name) if seen else None
        if facts.pieces:
            flags += [*_against(name, facts, known), *_border(name, facts, known, plane)]
        elif seen and known and known.cases >= USUAL * seen.cases:
            problem = f"{name} was not found; {known.cases} of {seen.cases} training cases have it"
            flags.append(Flag("REVIEW-LABEL", problem))
    return flags


def _against(name: str, facts: LabelFacts, seen: SeenLabel | None) -> Iterator[Flag]:
    if seen is None or seen.volume_ml is None:
        return
    if _beyond(facts.volume_ml, seen.volume_ml, VOLUME_FACTOR):
        yield Flag("REVIEW-VOLUME", f"{name} of {facts.volume_ml:.3g} ml, in training {_shown(seen.volume_ml)} ml")
    if facts.pieces > PIECES_FACTOR * seen.most_pieces:
        yield Flag("REVIEW-PIECES", f"{name} in {facts.pieces} pieces, in training {seen.most_pieces} at the most")


NORMAL: dict[Plane, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Axis of the world across the slices of a plane."""


def _border(name: str, facts: LabelFacts, seen: SeenLabel | None, plane: Plane) -> Iterator[Flag]:
    """Name the borders that a label reaches, but for those where it is not unusual."""
    places = []
    for axis, reaches in enumerate(facts.at_border):
        usual = seen is not None and seen.at_border[axis] > (1 - USUAL) * seen.cases
        if reaches and not usual:
            places.append("its first or last slice" if axis == NORMAL[plane] else f"its border along {'xyz'[axis]}")
    if places:
        yield Flag("REVIEW-BORDER", f"{name} touches the end of the scan: {' and '.join(places)}")


def calibrated(expected_dice: Mapping[str, float], offsets: Mapping[str, float]) -> dict[str, float]:
    """Return the Dice that masks reach, in the mean over validation cases, where the model expects so much by itself.

    How sure a network is, is a matter of its training: a short one leaves a little probability in every voxel of the
    background, a long one too little. The order of cases stays.

    Args:
        expected_dice: by label name, from 0 to 1.
        offsets: to be added to the log odds, by label name; a label without one keeps its value.
    """
    return {name: shifted(dice, offsets.get(name, 0.0)) for name, dice in expected_dice.items()}


def shifted(dice: float, offset: float) -> float:
    """Add to the log odds of a Dice; 0 and 1 stay."""
    odds = math.exp(offset)
    return dice * odds / (1 - dice + dice * odds)


def judge_doubt(expected_dice: Mapping[str, float]) -> list[Flag]:
    """Flag labels whose outline the model itself is not sure of.

    Args:
        expected_dice: by label name, from 0 to 1, calibrated; labels without an estimate do not occur.
    """
    low = sorted((dice, name) for name, dice in expected_dice.items() if dice < LOW_DICE)
    return [Flag("REVIEW-DICE", f"the expected Dice of {name} is {dice:.2f}") for dice, name in low]


def score_of(flags: Sequence[Flag], expected_dice: Mapping[str, float]) -> float:
    """Return by how much a case should be looked at before others: from 0, without an upper bound."""
    doubt = WEIGHTS["high"] * (1 - min(expected_dice.values())) if expected_dice else 0.0
    return doubt + sum(flag.weight for flag in flags)

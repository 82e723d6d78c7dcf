"""Lesions by size: how many of each size were found, missed, and seen where there are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medseg.metrics import LabelScores
from medseg.statistics import Interval, rate_interval

BOUNDS_ML = (0.1, 1.0, 10.0, 100.0)
"""Decades: a sphere of 6, 12, 27 and 58 mm across. What is found changes over decades, not within one."""


@dataclass(frozen=True)
class LesionSize:
    """The lesions of one size, over all cases.

    Attributes:
        low_ml: this size and larger.
        high_ml: smaller than this; None for the largest.
        found: pieces of references that their mask touches.
        missed: pieces of references that it does not, those without a mask among them.
        false: pieces of masks that touch no reference.
        rate: exact 95 % interval of the share found; lesions count as independent. None without any in the references.
    """

    low_ml: float
    high_ml: float | None
    found: int
    missed: int
    false: int
    rate: Interval | None


def by_size(scores: Sequence[LabelScores]) -> tuple[LesionSize, ...]:
    """Count the lesions of one label, smallest first; sizes that occur in no case are left out."""
    counted = []
    for low, high in zip((0.0, *BOUNDS_ML), (*BOUNDS_ML, None), strict=True):
        wanted = [lesion.found for s in scores for lesion in s.lesions if _within(lesion.volume_ml, low, high)]
        false = sum(_within(volume, low, high) for s in scores for volume in s.false_ml)
        if wanted or false:
            found = sum(wanted)
            counted.append(LesionSize(low, high, found, len(wanted) - found, false, rate_interval(found, len(wanted))))
    return tuple(counted)


def _within(volume: float, low: float, high: float | None) -> bool:
    volume = round(volume, 6)  # a count of voxels times their size: rounding must not move it across a bound
    return low <= volume and (high is None or volume < high)

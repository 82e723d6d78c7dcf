"""Masks that would fit better elsewhere: mirrored, or one voxel aside. Of that, geometry knows only what headers say.

A mask whose voxels were flipped or shifted, but not its affine, lies on its reference by all that is written. It
scores low where the target lies on one side, but only a few hundredths too low where it lies in the middle, and the
mean would be quietly wrong.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from medseg.pieces import boxes
from medseg.surfaces import Bools, Floats
from medseg.volume import Mask

MIRRORED = ("left to right", "front to back", "head to feet")

SHIFTED = ("to the right", "to the left", "to the front", "to the back", "to the head", "to the feet")

PLACES = (*(f"mirrored {way}" for way in MIRRORED), *(f"one voxel further {way}" for way in SHIFTED))

ONE_CASE = 0.3
"""Dice that mirroring one case must gain before it is named: more than two readings of one target differ."""

ALL_CASES = 0.01
"""Mean Dice that moving all cases alike must gain before it is said: less changes no conclusion."""

RARE = 0.001
"""How rarely cases that scatter evenly would be better to such an extent (sign test); nine places are tried."""


def other_places(mask: Mask, reference: Mask) -> Floats:
    """Return the Dice of everything in the mask where it lies, and at each of `PLACES`.

    Args:
        mask: on the reference's grid.
        reference: with the same background.

    Returns:
        float64 `(10,)`; NaN throughout when one of them is empty.
    """
    order = reference.grid.order_to("RAS")
    (a, at), (b, there) = (_cut(np.asarray(order.apply(m.labels) != 0)) for m in (mask, reference))
    total = np.count_nonzero(a) + np.count_nonzero(b)
    if not (a.any() and b.any()):
        return np.full(1 + len(PLACES), np.nan)
    shape = np.array(order.apply(mask.labels).shape)
    moved = [_common(a, at, b, there)]
    for axis in range(3):
        mirrored = at.copy()
        mirrored[axis] = shape[axis] - at[axis] - a.shape[axis]
        moved.append(_common(np.flip(a, axis), mirrored, b, there))
    for axis in range(3):
        moved.extend(_common(a, at + step * np.eye(3, dtype=np.int64)[axis], b, there) for step in (1, -1))
    return 2 * np.array(moved, dtype=np.float64) / total


def suspicions(found: Mapping[str, Floats]) -> list[str]:
    """Say which masks, or whether all of them, seem to lie elsewhere than their references.

    Args:
        found: case id to what `other_places` returned.
    """
    table = {case: dice for case, dice in found.items() if np.isfinite(dice).all()}
    said = [sentence for place in range(len(MIRRORED)) if (sentence := _flipped(table, place + 1))]
    everywhere = np.array(list(table.values())) if table else np.zeros((0, 1 + len(PLACES)))
    return said + [sentence for place in range(len(PLACES)) if (sentence := _all_moved(everywhere, place + 1))]


def _flipped(table: Mapping[str, Floats], place: int) -> str:
    cases = [case for case, dice in table.items() if dice[place] - dice[0] >= ONE_CASE and dice[place] == dice.max()]
    if not cases:
        return ""
    now, then = (float(np.mean([table[case][n] for case in cases])) for n in (0, place))
    where, count = PLACES[place - 1], f"{len(cases)} of {len(table)} masks"
    names = ", ".join(sorted(cases)[:5]) + (", ..." if len(cases) > 5 else "")
    return (
        f"Flipped? {count} would fit far better {where} (Dice {then:.2f} instead of {now:.2f}): {names}. "
        "They count as they are. Check what wrote them."
    )


def _all_moved(dice: Floats, place: int) -> str:
    """Say that masks are all off in one way; empty when chance may do it."""
    gain = dice[:, place] - dice[:, 0]
    better, changed = int((gain > 0).sum()), int((gain != 0).sum())
    if not changed or gain.mean() < ALL_CASES or binom.sf(better - 1, changed, 0.5) >= RARE:
        return ""
    if dice[:, place].mean() < dice.mean(axis=0).max():
        return ""  # another place fits better still, and is named
    now, then = dice[:, 0].mean(), dice[:, place].mean()
    return (
        f"Misplaced? {better} of {len(dice)} masks would fit better {PLACES[place - 1]} (mean Dice of all labels as "
        f"one {then:.3f} instead of {now:.3f}). They count as they are. Check what wrote them."
    )


def _cut(some: Bools) -> tuple[Bools, NDArray[np.int64]]:
    box = boxes(some.view(np.uint8)).get(1)
    if box is None:
        return np.zeros((0, 0, 0), bool), np.zeros(3, np.int64)
    return some[box], np.array([part.start for part in box])


def _common(a: Bools, at: NDArray[np.int64], b: Bools, there: NDArray[np.int64]) -> int:
    """Count the voxels that two boxes of voxels share, each from its first index on."""
    low = np.maximum(at, there)
    high = np.minimum(at + a.shape, there + b.shape)
    if (low >= high).any():
        return 0
    mine, theirs = (tuple(map(slice, low - start, high - start)) for start in (at, there))
    return int(np.count_nonzero(a[mine] & b[theirs]))

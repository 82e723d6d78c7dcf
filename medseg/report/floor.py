"""The location-only floor: what a mask scores that never looks at the image.

Images that were cropped around their target give it away. A centred ellipsoid, whose semi-axes are one fixed share of
every image's extent, scores some Dice by place alone; the share is the one that does best on the very cases at hand. A
Dice means something only as far as it lies above this floor.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.surfaces import Floats
from medseg.volume import Mask

SHARES: Floats = np.arange(1, 61) / 40.0
"""Semi-axes tried, as shares of half the extent: 0.025 to 1.5 (1 touches the faces, 1.73 the corners)."""

SAMPLES = 2_000_000
"""An image with more voxels is thinned evenly along all axes: a floor in two digits needs no more."""


@dataclass(frozen=True)
class Floor:
    """The best centred ellipsoid.

    Attributes:
        mean_dice: over the cases whose reference holds the label.
        median_dice: likewise.
        share: its semi-axes, as share of half the image's extent.
    """

    mean_dice: float
    median_dice: float
    share: float


def location_curve(reference: Mask, label: int, unannotated: Collection[int] = ()) -> Floats | None:
    """Return the Dice of the centred ellipsoid for each of `SHARES`; None when the reference lacks the label.

    Voxels with a number of `unannotated` count neither way, as in every score.
    """
    step = int(np.ceil((reference.labels.size / SAMPLES) ** (1 / 3)))
    thin = (slice(None, None, step),) * 3
    wanted = reference.labels[thin] == label
    if not wanted.any():
        return None
    # Distance from the centre in half extents, squared; an edge voxel's centre lies just inside 1.
    i, j, k = (((np.arange(n, dtype=np.float32) - (n - 1) / 2) / (n / 2)) ** 2 for n in reference.grid.shape)
    radius = np.sqrt(i[thin[0], None, None] + j[None, thin[1], None] + k[None, None, thin[2]])
    edges = np.concatenate([[0.0], SHARES])
    scored = radius[~np.isin(reference.labels[thin], sorted(unannotated))] if unannotated else radius
    inside = np.cumsum(np.histogram(scored, edges)[0])
    both = np.cumsum(np.histogram(radius[wanted], edges)[0])
    dice: NDArray[np.float64] = 2 * both / (inside + np.count_nonzero(wanted))
    return dice


def location_floor(curves: Sequence[Floats | None]) -> Floor | None:
    """Choose the share with the best mean over the cases' curves; cases that lack the label are left out.

    A real mask can be empty where the reference is; the ellipsoid cannot, and is not blamed for it.
    """
    table = [curve for curve in curves if curve is not None]
    if not table:
        return None
    dice = np.stack(table)
    best = int(dice.mean(axis=0).argmax())
    return Floor(float(dice[:, best].mean()), float(np.median(dice[:, best])), float(SHARES[best]))

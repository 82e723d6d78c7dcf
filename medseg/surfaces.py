"""Distances between the surfaces of two masks, in mm, on any grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from medseg.grid import Grid

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


def surface_distances(predicted: Bools, wanted: Bools, grid: Grid) -> tuple[Floats, Floats]:
    """Distances from each surface voxel of one mask to the nearest surface voxel of the other.

    Points are compared in the world by a k-d tree, not on the lattice by a distance transform: exact on sheared grids
    too, and its cost goes with the surfaces and not with the box around them.

    Args:
        predicted: bool `(i, j, k)`, not empty.
        wanted: bool of the same shape, not empty.
        grid: gives the directions and spacing (both arrays may be the same part cut out of it).

    Returns:
        mm, float64: `(n,)` from the prediction's surface, and `(m,)` from the reference's.
    """
    step = grid.affine[:3, :3].T
    mine, theirs = (np.argwhere(_surface(mask)) @ step for mask in (predicted, wanted))
    return _nearest(mine, theirs), _nearest(theirs, mine)


def _nearest(points: Floats, targets: Floats) -> Floats:
    # An unbalanced tree is built several times faster and queried as fast on lattice points.
    tree = cKDTree(targets, balanced_tree=False, compact_nodes=False)
    return np.asarray(tree.query(points)[0], dtype=np.float64)


def _surface(mask: Bools) -> Bools:
    padded = np.pad(mask, 1)
    inside = mask.copy()
    for axis in range(3):
        for step in (-1, 1):
            moved = [slice(1, -1)] * 3
            moved[axis] = slice(1 + step, padded.shape[axis] - 1 + step)
            inside &= padded[tuple(moved)]
    return mask & ~inside

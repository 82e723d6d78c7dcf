"""Connected pieces of a label, and the box that a label lies in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Box = tuple[slice, slice, slice]

TOUCHING = np.ones((3, 3, 3), bool)
"""Voxels that share a face, an edge or a corner belong together (26 neighbours), as for lesions in reports."""


def boxes(labels: NDArray[np.integer]) -> dict[int, Box]:
    """Return the smallest box around each label number that occurs in `(i, j, k)`; one pass, no copy."""
    found = enumerate(ndimage.find_objects(labels), start=1)
    return {number: (box[0], box[1], box[2]) for number, box in found if box is not None}


def number_pieces(inside: NDArray[np.bool_]) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Number the connected pieces of `(i, j, k)` in the order of their first voxels.

    Returns:
        The number of each voxel's piece, 0 outside (4 bytes a voxel: give the label's box, not the whole scan); and the
        voxels of each piece, those outside first.
    """
    numbers, count = ndimage.label(inside, TOUCHING)
    # Slice by slice: bincount makes 8 bytes of every number.
    sizes = sum((np.bincount(part.ravel(), minlength=count + 1) for part in numbers), np.zeros(count + 1, np.int64))
    return numbers, sizes

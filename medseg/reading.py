"""The scans of one case as one volume: several sequences become channels on the first one's grid."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.errors import InputError
from medseg.grid import Grid
from medseg.scan import Scan, read
from medseg.volume import Volume

log = logging.getLogger(__name__)

MIN_OVERLAP = 0.1
"""Two sequences that share less than a tenth of the first one's field of view show different regions."""


def read_case(scans: Sequence[Scan]) -> Volume:
    """Read the scans of one case as channels on the first one's grid.

    A scan on the same voxels, in whatever axis order, is only re-ordered. Another is resampled linearly, a slice at a
    time; where it does not reach, its lowest value stands (air).

    Returns:
        Voxels `(c, i, j, k)`: one scan as stored, several in a type that holds them all.

    Raises:
        InputError: DATA-OVERLAP when two scans do not show the same region; the doors' codes for unfit scans.
    """
    first: Volume = read(scans[0])
    if len(scans) == 1:
        return first
    others = [_on_grid(read(scan), first.grid, scan.case_id) for scan in scans[1:]]
    return Volume(np.concatenate([first.voxels, *others]), first.grid, first.modality)


def _on_grid(volume: Volume, grid: Grid, where: str) -> NDArray[np.generic]:
    order = volume.grid.order_onto(grid)
    if order is not None:
        return order.apply(volume.voxels)
    share = grid.overlap(volume.grid)
    if share < MIN_OVERLAP:
        problem = f"covers {share:.0%} of the first channel's scan, wanted at least {MIN_OVERLAP:.0%}"
        raise InputError(
            "DATA-OVERLAP", where, problem, "Check that both scans are of one patient and one examination."
        )
    log.info("%s: resampled linearly onto the first channel's grid, of which it covers %.0f %%", where, 100 * share)
    return np.stack([_resampled(channel, volume.grid, grid) for channel in volume.voxels])


def _resampled(voxels: NDArray[np.generic], source: Grid, target: Grid) -> NDArray[np.float32]:
    """Sample voxels `(i, j, k)` of `source` linearly at the voxel centres of `target`; the result has its shape."""
    out = np.empty(target.shape, np.float32)
    numbers = np.asarray(voxels, dtype=np.float32)
    lowest = numbers.min()
    limits = np.array(source.shape) - 0.5
    for k in range(target.shape[2]):  # a slice at a time: float64 coordinates are many times the voxels they find
        part = target.block(2, k, k + 1)
        index = source.to_index(part.to_world(np.moveaxis(np.indices(part.shape), 0, -1)))
        values = ndimage.map_coordinates(numbers, np.moveaxis(index, -1, 0), np.float32, order=1, mode="nearest")
        outside = ((index < -0.5) | (index > limits)).any(-1)
        out[..., k : k + 1] = np.where(outside, lowest, values)
    return out

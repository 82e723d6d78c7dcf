"""Volumes inside the report, for its viewer: cropped, 8 bits, packed, and under a size limit.

The page holds the bytes of each volume as text; its script unpacks them with the browser's own inflater, so that the
report stays one file that opens from a disk and asks no network.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.grid import Grid
from medseg.pieces import Box
from medseg.report.pictures import CT_WINDOW, PLANES, crop_axis, main_plane
from medseg.volume import Mask, Volume

MOST_VOXELS = 2_000_000
"""Voxels of one embedded volume, about 1.5 MB of text for an MR; a larger one is thinned along its finest axes."""

LIMIT_MB = 20.0
"""Text of all embedded volumes: a report can then still be sent by mail and opened on a phone."""

CT_RANGE = (-500.0, 780.0)
"""HU that the 256 grey values stand for, 5 HU each: lung's edge to bone."""

TAILS = (0.1, 99.9)
"""Percentiles that they stand for without such a scale; a few hot voxels must not darken all others."""

MOST_NUMBERS = 256
"""Different labels (background included) that fit the byte which each voxel has for them."""


@dataclass(frozen=True)
class Embedded:
    """One case for the viewer. Axis 0 counts to the head, 1 to the back, 2 to the patient's left.

    Attributes:
        shape: embedded voxels along the three axes.
        spacing_mm: between them.
        start: number of the first slice along each axis, from 0.
        step: slices from one embedded to the next, along each axis.
        full: slices of the whole scan along each axis.
        numbers: the label numbers that stand behind the bytes 0, 1, 2, ...
        low: what the grey value 0 stands for.
        high: what 255 stands for.
        window: low and high end of the first display window.
        unit: of these, "HU" or "".
        grey: whether there is a scan.
        plane: the one that the slices were acquired in.
        payload: base64 of the zlib stream of grey (each voxel as the difference to the one before), reference, mask.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    start: tuple[int, int, int]
    step: tuple[int, int, int]
    full: tuple[int, int, int]
    numbers: tuple[int, ...]
    low: float
    high: float
    window: tuple[float, float]
    unit: str
    grey: bool
    plane: str
    payload: str


def embed(reference: Mask, mask: Mask | None, scan: Volume | None, most: int = MOST_VOXELS) -> Embedded | None:
    """Cut out, thin and pack what the viewer shows of one case; None with more labels than a byte can tell.

    Args:
        reference: gives the grid.
        mask: on the same place in any axis order; None when it is missing.
        scan: likewise; its first channel is shown. A scan in another place is left out.
        most: voxels that are embedded.

    Raises:
        MaskError: MASK-GRID when the mask lies elsewhere.
    """
    placed = mask.placed_on(reference.grid).labels if mask else np.zeros_like(reference.labels)
    order = reference.grid.order_to(PLANES["axial"])
    grid = reference.grid.reordered(order)
    wanted, found = order.apply(reference.labels), order.apply(placed)
    part = _part(wanted, found, grid, most)
    wanted, found = wanted[part], found[part]
    numbers = np.unique(np.concatenate([[0], np.unique(wanted), np.unique(found)]))
    if len(numbers) > MOST_NUMBERS:
        return None
    laid = scan.grid.order_onto(grid) if scan else None
    grey, low, high = _grey(laid.apply(scan.voxels[0])[part], scan.modality) if scan and laid else (None, 0.0, 1.0)
    ct = scan is not None and scan.modality == "CT"
    bytes_of = [np.searchsorted(numbers, labels).astype(np.uint8).tobytes() for labels in (wanted, found)]
    if grey is not None:  # differences of neighbours pack better than values
        bytes_of.insert(0, np.diff(grey.ravel(), prepend=np.uint8(0)).tobytes())
    i, j, k = part
    return Embedded(
        shape=(wanted.shape[0], wanted.shape[1], wanted.shape[2]),
        spacing_mm=(grid.spacing[0] * i.step, grid.spacing[1] * j.step, grid.spacing[2] * k.step),
        start=(i.start, j.start, k.start),
        step=(i.step, j.step, k.step),
        full=grid.shape,
        numbers=tuple(int(n) for n in numbers),
        low=low,
        high=high,
        window=(max(low, CT_WINDOW[0]), min(high, CT_WINDOW[1])) if ct else (low, high),
        unit="HU" if ct else "",
        grey=grey is not None,
        plane=main_plane(reference.grid),
        payload=base64.b64encode(zlib.compress(b"".join(bytes_of), 9)).decode("ascii"),
    )


def _part(wanted: NDArray[np.generic], found: NDArray[np.generic], grid: Grid, most: int) -> Box:
    """Return the surroundings of both masks (all of an empty case), thinned along the finest axes to `most` voxels."""
    some = (wanted != 0) | (found != 0)
    box = [crop_axis(some, grid, axis) if some.any() else slice(0, grid.shape[axis]) for axis in range(3)]
    sizes, steps = np.array([b.stop - b.start for b in box]), np.ones(3, dtype=np.int64)
    while np.prod(-(-sizes // steps)) > most:
        steps[np.argmin(steps * np.array(grid.spacing))] += 1
    i, j, k = (slice(b.start, b.stop, int(step)) for b, step in zip(box, steps, strict=True))
    return i, j, k


def _grey(voxels: NDArray[np.generic], modality: str) -> tuple[NDArray[np.uint8], float, float]:
    values = voxels.astype(np.float32)
    low, high = CT_RANGE if modality == "CT" else (float(v) for v in np.percentile(values, TAILS))
    if not high > low:
        return np.zeros(values.shape, np.uint8), low, low + 1.0
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8), low, high

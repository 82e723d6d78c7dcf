"""Closed polygons to pixels and back: the even-odd rule at pixel centres.

Both ways work on one slice in index coordinates (u, v), where pixel `[u, v]` has its centre at whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import contourpy
import numpy as np
from numpy.typing import NDArray

from medseg.grid import Float

SNAP = 1e-4
"""Coordinates are rounded to a ten-thousandth of a voxel first: contours drawn through pixel centres are stored with
three to six decimals, and without it their last digit would decide on which side of the line a centre lies."""


def fill(polygons: Sequence[Float], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels `[u, v]` whose centres lie inside an odd number of turns of the polygons.

    Holes as separate contours and holes joined by a keyhole channel come out alike: an edge walked twice cancels.
    A centre exactly on an edge counts as inside on the edge's low-u, low-v side, and as outside on the other
    (half-open), so that two polygons that share an edge share no pixel.

    Args:
        polygons: `(n, 2)` each, index coordinates; the last point joins the first.
        shape: number of pixels along u and v; pixels outside are not made.
    """
    toggles = np.zeros((shape[0], shape[1] + 1), dtype=np.int32)
    starts = np.concatenate([np.zeros((0, 2)), *polygons])
    ends = np.concatenate([np.zeros((0, 2)), *(np.roll(polygon, -1, axis=0) for polygon in polygons)])
    starts, ends = np.round(starts / SNAP) * SNAP, np.round(ends / SNAP) * SNAP
    downward = starts[:, 0] > ends[:, 0]  # one direction for all, so that an edge walked twice crosses at equal floats
    low, high = np.where(downward[:, None], ends, starts), np.where(downward[:, None], starts, ends)
    first = np.clip(np.ceil(low[:, 0] - SNAP / 2), 0, shape[0]).astype(np.int64)
    stop = np.clip(np.ceil(high[:, 0] - SNAP / 2), 0, shape[0]).astype(np.int64)
    edge = np.repeat(np.arange(len(low)), stop - first)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(stop - first) - stop, stop - first)
    slope = (high[edge, 1] - low[edge, 1]) / (high[edge, 0] - low[edge, 0])
    crossing = low[edge, 1] + (row - low[edge, 0]) * slope
    column = np.clip(np.ceil(crossing - SNAP / 2), 0, shape[1]).astype(np.int64)
    np.add.at(toggles, (row, column), 1)
    return (np.cumsum(toggles[:, :-1], axis=1) % 2).astype(bool)


def outline(pixels: NDArray[np.bool_]) -> list[Float]:
    """Return closed polygons `(n, 2)` that `fill` turns back into exactly `pixels`; holes are keyholed.

    Edges run half-way between the centres of inner and outer pixels, corners are cut at 45 degrees: every centre is
    at least 0.35 pixels from the line, so any reader's rule for points on a line gives the same pixels.
    """
    padded = np.pad(pixels, 1).astype(np.float64)
    generator = contourpy.contour_generator(z=padded, fill_type=contourpy.FillType.OuterOffset)
    polygons = []
    filled: Any = generator.filled(0.5, 1.5)  # its type depends on fill_type
    points, offsets = filled
    for loop_points, loop_offsets in zip(points, offsets, strict=True):
        # contourpy's x is the last axis; the pad shifts by one; closed loops repeat their first point.
        loops: list[Float] = [loop_points[a : b - 1, ::-1] - 1.0 for a, b in pairwise(loop_offsets)]
        polygon = loops[0]
        for hole in loops[1:]:
            polygon = _keyhole(polygon, hole)
        polygons.append(_without_straight_points(polygon))
    return polygons


def _keyhole(outer: Float, hole: Float) -> Float:
    """Join a hole to its outer contour by a channel of no width (PS3.3 C.8.8.6.3), so that none can fill it.

    The channel runs along a line of constant, half-integer v: it meets no pixel centre.
    """
    on_line = np.flatnonzero(np.abs(hole[:, 1] % 1 - 0.5) < SNAP)
    begin = int(on_line[np.argmin(hole[on_line, 0])])
    u, v = hole[begin]
    following = np.roll(outer, -1, axis=0)
    crosses = (np.minimum(outer[:, 1], following[:, 1]) <= v) & (np.maximum(outer[:, 1], following[:, 1]) >= v)
    span = following[:, 1] - outer[:, 1]
    share = np.divide(v - outer[:, 1], span, out=np.zeros_like(span), where=span != 0)
    meets = outer[:, 0] + share * (following[:, 0] - outer[:, 0])
    reachable = np.flatnonzero(crosses & (meets < u))
    edge = int(reachable[np.argmax(meets[reachable])])
    gate = np.array([[meets[edge], v]])
    loop = np.concatenate([hole[begin:], hole[: begin + 1]])
    return np.concatenate([outer[: edge + 1], gate, loop, gate, outer[edge + 1 :]])


def _without_straight_points(polygon: Float) -> Float:
    """Drop repeated points and points in the middle of straight runs; the polygon's shape stays."""
    polygon = polygon[np.any(polygon != np.roll(polygon, 1, axis=0), axis=1)]
    before, after = polygon - np.roll(polygon, 1, axis=0), np.roll(polygon, -1, axis=0) - polygon
    cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    turns_back = (before * after).sum(axis=1) < 0  # the ends of a keyhole channel
    corners: Float = polygon[(cross != 0) | turns_back]
    return corners

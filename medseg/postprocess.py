"""Cleaning a mask after prediction: pieces left out, holes filled, label by label; nothing unless asked for.

Everything happens on the scan's own grid, so that millilitres are those of the scan's voxels, oblique and sheared grids
included. No label grows into another: removed pieces become background, and holes are filled out of background alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.config.settings import EVERY_LABEL, CleanConfig
from medseg.pieces import Box, Numbers, Pieces, boxes
from medseg.volume import Labels, Mask

ROUNDING = 1e-6
"""Share of a volume by which a piece may miss `smallest_ml`: affines are stored as 32-bit numbers."""


def rules_for(labels: Labels, config: Mapping[str, CleanConfig]) -> dict[int, CleanConfig]:
    """Return how each label is cleaned, by its number; labels that are left as they are do not occur.

    Args:
        labels: of the model.
        config: by label name; `all` holds for the labels that are not named.

    Raises:
        UsageError: LABEL-UNKNOWN for a name that is not among the labels.
    """
    for name in config:
        if name != EVERY_LABEL:
            labels.number(name)
    chosen = {number: config.get(name, config.get(EVERY_LABEL)) for number, name in labels}
    return {number: rule for number, rule in chosen.items() if rule and rule != CleanConfig()}


def clean(mask: Mask, rules: Mapping[int, CleanConfig]) -> Mask:
    """Leave out pieces, then fill holes; cleaning twice changes nothing more.

    A piece is joined by faces, edges or corners (26 neighbours). A hole is background that is joined by faces (6
    neighbours), does not reach the border of the scan, and has one label alone around it, which fills it. Holes are
    those of the volume: a ring in one slice that is open above or below is none.

    Args:
        mask: as predicted; not changed.
        rules: for each label number, as `rules_for` gives them.

    Returns:
        A new mask, the same one without rules. Memory beyond it: where holes are filled, about 8 bytes for each voxel
        of the box around all labels.
    """
    if not rules:
        return mask
    labels = mask.labels.copy(order="K")  # as voxels lie in memory: the other way takes a second
    ordered: Numbers = mask.grid.order_to("RAS").apply(labels)  # type: ignore[assignment]  # a view of the same type
    # In RAS order, so that the choice between two pieces of equal size does not depend on how the scan is stored.
    for number, box in boxes(ordered).items():
        if number in rules:
            _leave_out_pieces(ordered[box], number, rules[number], mask.grid.voxel_ml)
    _fill_holes(ordered, [number for number, rule in rules.items() if rule.fill_holes])
    return Mask(labels, mask.grid)


def _leave_out_pieces(region: Numbers, number: int, rule: CleanConfig, voxel_ml: float) -> None:
    if not rule.largest_only and not rule.smallest_ml:
        return
    pieces = Pieces(region, number)
    stays = pieces.sizes * voxel_ml >= rule.smallest_ml * (1 - ROUNDING)
    if rule.largest_only:
        stays &= np.arange(len(pieces)) == np.argmax(pieces.sizes)  # the first of several
    if stays.all():
        return
    stays_or_outside = np.concatenate([[True], stays])
    for block, numbers in pieces.numbered():
        block[~stays_or_outside[numbers]] = 0


def _fill_holes(labels: Numbers, fillers: Collection[int]) -> None:
    around = boxes(labels)
    if not around or not fillers:
        return
    region = labels[_joined(list(around.values()))]
    empty, count = ndimage.label(region == 0)
    lowest, highest = _labels_around(region, empty, count)
    closed = (lowest == highest) & np.isin(highest, list(fillers))
    for axis in range(3):  # beyond the box there is background, or the border of the scan
        for end in (0, -1):
            closed[empty.take(end, axis)] = False
    region += (highest * closed)[empty]


def _joined(parts: list[Box]) -> Box:
    """Return the box around several."""
    i, j, k = (slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in zip(*parts, strict=True))
    return i, j, k


def _labels_around(region: Numbers, empty: NDArray[np.integer], count: int) -> tuple[Numbers, Numbers]:
    """Return the lowest and the highest label number that shares a face with each of `count` empty spaces, 1 first.

    The entry 0 stands for what is not empty: 0 and 0.
    """
    lowest = np.full(count + 1, np.iinfo(region.dtype).max, region.dtype)
    highest = np.zeros(count + 1, region.dtype)
    for axis in range(3):
        spaces, sides = np.moveaxis(empty, axis, 0), np.moveaxis(region, axis, 0)
        for here, beside in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
            met = (spaces[here] > 0) & (sides[beside] > 0)
            np.minimum.at(lowest, spaces[here][met], sides[beside][met])
            np.maximum.at(highest, spaces[here][met], sides[beside][met])
    lowest[0] = 0
    return lowest, highest

"""Pieces and boxes, by arithmetic."""

from __future__ import annotations

import numpy as np

from medseg.pieces import boxes, number_pieces


def test_boxes_of_the_labels_that_occur() -> None:
    labels = np.zeros((6, 5, 4), np.uint8)
    labels[1:3, 2, 3] = 7
    labels[5, 0, 0] = 2
    assert boxes(labels) == {7: np.s_[1:3, 2:3, 3:4], 2: np.s_[5:6, 0:1, 0:1]}
    assert boxes(np.zeros((2, 2, 2), np.uint8)) == {}


def test_pieces_touch_by_corners() -> None:
    inside = np.zeros((6, 4, 4), bool)
    inside[0, 0, 0] = inside[1, 1, 1] = True  # a corner in common: one piece of 2
    inside[3, 0, 0] = True  # two steps from the first: another
    inside[5] = True  # 16 voxels
    numbers, sizes = number_pieces(inside)
    assert sizes.tolist() == [96 - 19, 2, 1, 16]
    assert numbers[1, 1, 1] == numbers[0, 0, 0] == 1
    assert numbers[3, 0, 0] == 2

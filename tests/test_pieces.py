"""Pieces and boxes: by arithmetic, and against scipy on whole arrays however they are cut into blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy import ndimage

from medseg import pieces as module
from medseg.pieces import TOUCHING, Pieces, boxes


def test_boxes_of_the_labels_that_occur() -> None:
    labels = np.zeros((6, 5, 4), np.uint8)
    labels[1:3, 2, 3] = 7
    labels[5, 0, 0] = 2
    for stored in (labels, np.asfortranarray(labels), labels.transpose(1, 2, 0).copy().transpose(2, 0, 1)):
        assert boxes(stored) == {7: np.s_[1:3, 2:3, 3:4], 2: np.s_[5:6, 0:1, 0:1]}
    assert boxes(np.zeros((2, 2, 2), np.uint8)) == {}


@pytest.mark.parametrize("block", [1, 32, 1 << 22])
def test_pieces_touch_by_corners(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_VOXELS", block)
    labels = np.zeros((6, 4, 4), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = 3  # a corner in common: one piece of 2
    labels[3, 0, 0] = 3  # two steps from the first: another
    labels[4, 0, 0] = 2  # another label
    labels[5] = 3  # 16 voxels
    pieces = Pieces(labels, 3)
    assert pieces.sizes.tolist() == [2, 1, 16]
    numbers = np.concatenate([numbers for _, numbers in pieces.numbered()])
    assert numbers[1, 1, 1] == numbers[0, 0, 0] == 1
    assert numbers[3, 0, 0] == 2
    assert (numbers > 0).tolist() == (labels == 3).tolist()


def test_a_label_that_is_not_there_has_none() -> None:
    pieces = Pieces(np.ones((3, 3, 3), np.uint8), 2)
    assert len(pieces) == 0
    assert not np.concatenate([numbers for _, numbers in pieces.numbered()]).any()


@hypothesis(max_examples=60)
@given(arrays.arrays(np.uint8, st.tuples(*3 * [st.integers(1, 6)]), elements=st.integers(0, 1)), st.integers(1, 100))
def test_blocks_change_nothing(labels: NDArray[np.uint8], block: int) -> None:
    whole, count = ndimage.label(labels, TOUCHING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_VOXELS", block)
        pieces = Pieces(labels, 1)
        numbers = np.concatenate([numbers for _, numbers in pieces.numbered()])
    assert np.array_equal(numbers, whole)  # scipy too numbers in the order of first voxels
    assert pieces.sizes.tolist() == np.bincount(whole.ravel(), minlength=count + 1)[1:].tolist()

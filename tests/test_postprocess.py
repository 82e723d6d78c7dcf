"""Cleaning masks: millilitres of the scan's own voxels, no label grows into another, nothing unless asked for."""

from __future__ import annotations

from collections import deque
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from medseg.config import parse
from medseg.config.settings import CleanConfig
from medseg.errors import ConfigError, UsageError
from medseg.grid import Grid
from medseg.postprocess import clean, rules_for
from medseg.volume import Labels, Mask
from tests.strategies import ORIENTATIONS, affine

LABELS = Labels({1: "kidney", 2: "tumour"})
LARGEST = CleanConfig(largest_only=True)
FILL = CleanConfig(fill_holes=True)

SMALL = arrays.arrays(np.uint8, st.tuples(*3 * [st.integers(1, 5)]), elements=st.sampled_from([0, 1, 1, 1, 1, 1, 1, 2]))
RULES = st.fixed_dictionaries(
    {
        number: st.builds(
            CleanConfig, largest_only=st.booleans(), smallest_ml=st.floats(0, 0.01), fill_holes=st.booleans()
        )
        for number in (1, 2)
    }
)


def mask(labels: NDArray[np.uint8], matrix: NDArray[np.float64] | None = None) -> Mask:
    return Mask(labels, Grid(labels.shape, np.eye(4) if matrix is None else matrix))  # type: ignore[arg-type]


def test_nothing_is_changed_by_default() -> None:
    given_mask = mask(np.ones((2, 2, 2), np.uint8))
    assert rules_for(LABELS, {}) == {}
    assert rules_for(LABELS, {"all": CleanConfig()}) == {}
    assert clean(given_mask, {}) is given_mask


def test_a_label_goes_by_its_own_name_before_all() -> None:
    assert rules_for(LABELS, {"all": LARGEST, "tumour": FILL}) == {1: LARGEST, 2: FILL}
    assert rules_for(LABELS, {"all": LARGEST, "tumour": CleanConfig()}) == {1: LARGEST}
    with pytest.raises(UsageError, match="tumor"):
        rules_for(LABELS, {"tumor": LARGEST})


def test_the_configuration_knows_its_labels() -> None:
    text = "labels: {tumour: 1}\npredict: {clean: {tumour: {smallest_ml: 0.5}, all: {fill_holes: true}}}"
    assert parse(text, "study.yaml").predict.clean["tumour"] == CleanConfig(smallest_ml=0.5)
    with pytest.raises(ConfigError, match=r"predict\.clean names 'tumor'"):
        parse("predict: {clean: {tumor: {fill_holes: true}}}", "study.yaml")
    with pytest.raises(ConfigError, match="largest_only"):
        parse("predict: {clean: {tumour: {largest: true}}}", "study.yaml")


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_millilitres_are_those_of_oblique_anisotropic_voxels(codes: str) -> None:
    """A voxel of 0.5 x 2 x 5 mm is 0.005 ml: two are 0.01 ml, three 0.015 ml."""
    labels = np.zeros((8, 4, 4), np.uint8)
    labels[0:2, 0, 0] = labels[4:7, 2, 2] = 1
    placed = mask(labels, affine(codes, (13.0, -8.0, 21.0), (0.5, 2.0, 5.0), (100.0, -50.0, 7.0)))
    for least, left in ((0.01, 5), (0.0101, 3), (0.015, 3), (0.0151, 0)):
        assert np.count_nonzero(clean(placed, {1: CleanConfig(smallest_ml=least)}).labels) == left
    assert np.count_nonzero(placed.labels) == 5


def test_millilitres_of_a_sheared_grid() -> None:
    sheared = np.array([[1.0, 0, 0.9, 0], [0, 1.0, 0, 0], [0, 0, 10.0, 0], [0, 0, 0, 1]])  # a cell of 10 mm^3: 0.01 ml
    labels = np.zeros((3, 3, 3), np.uint8)
    labels[1, 1, 1] = 1
    assert clean(mask(labels, sheared), {1: CleanConfig(smallest_ml=0.01)}).labels.any()
    assert not clean(mask(labels, sheared), {1: CleanConfig(smallest_ml=0.01003)}).labels.any()


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_which_of_two_equal_pieces_stays_is_a_matter_of_the_patient_not_of_the_file(codes: str) -> None:
    labels = np.zeros((5, 6, 7), np.uint8)
    labels[0, 1:3, 2] = labels[4, 3:5, 5] = 1
    placed = mask(labels)
    order = placed.grid.order_to(codes)
    stored = Mask(np.ascontiguousarray(order.apply(labels)), placed.grid.reordered(order))
    back = clean(stored, {1: LARGEST}).placed_on(placed.grid)
    assert np.array_equal(back.labels, clean(placed, {1: LARGEST}).labels)
    assert np.count_nonzero(back.labels) == 2


def test_a_larger_piece_of_another_label_does_not_count() -> None:
    labels = np.zeros((9, 3, 3), np.uint8)
    labels[0:4] = 1
    labels[5, 0, 0] = 2
    labels[7, 0:2, 0] = 2
    cleaned = clean(mask(labels), {2: LARGEST}).labels
    assert np.count_nonzero(cleaned == 1) == 36
    assert np.argwhere(cleaned == 2).tolist() == [[7, 0, 0], [7, 1, 0]]


def shell(label: int = 1) -> NDArray[np.uint8]:
    """A box of 5 x 5 x 5 in 9 x 9 x 9 with a hole of 3 x 3 x 3."""
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[2:7, 2:7, 2:7] = label
    labels[3:6, 3:6, 3:6] = 0
    return labels


def test_a_closed_hole_is_filled() -> None:
    filled = clean(mask(shell()), {1: FILL}).labels
    assert np.count_nonzero(filled) == 125
    assert not clean(mask(shell()), {2: FILL}).labels[4, 4, 4]


def test_a_wall_that_is_closed_by_corners_alone_holds() -> None:
    """Pieces join by corners, so their background must not pass there: six voxels around one make a closed wall."""
    labels = np.zeros((5, 5, 5), np.uint8)
    for axis, step in product(range(3), (-1, 1)):
        labels[tuple(np.array([2, 2, 2]) + step * np.eye(3, dtype=int)[axis])] = 1
    assert clean(mask(labels), {1: FILL}).labels[2, 2, 2] == 1


def test_open_holes_stay() -> None:
    tunnel = shell()
    tunnel[4, 4, 6] = 0  # opens into the background
    assert np.array_equal(clean(mask(tunnel), {1: FILL}).labels, tunnel)
    cut = shell()[:, :, 4:]  # the scan ends in the middle of the hole
    assert np.array_equal(clean(mask(cut), {1: FILL}).labels, cut)
    ring = shell()
    ring[:, :, 5:] = 0  # closed below and in each slice, open above
    assert np.array_equal(clean(mask(ring), {1: FILL}).labels, ring)


def test_labels_do_not_grow_into_one_another() -> None:
    """A tumour with a hole inside a kidney with a hole: the tumour's is the tumour's, the gap between them nobody's."""
    nested = shell(1)
    nested[4, 4, 4] = 2
    assert np.array_equal(clean(mask(nested), {1: FILL, 2: FILL}).labels, nested)  # the gap touches both
    inner = np.ones((9, 9, 9), np.uint8)
    inner[2:7, 2:7, 2:7] = shell(2)[2:7, 2:7, 2:7]
    for rules, middle in (({1: FILL, 2: FILL}, 2), ({1: FILL}, 0)):
        cleaned = clean(mask(inner), rules).labels
        assert np.all(cleaned[3:6, 3:6, 3:6] == middle)
        assert np.array_equal(cleaned[inner > 0], inner[inner > 0])


def test_a_piece_that_was_left_out_may_leave_a_hole() -> None:
    """A speck of tumour in a kidney is below the limit: the kidney closes over it."""
    labels = np.ones((5, 5, 5), np.uint8)
    labels[2, 2, 2] = 2
    cleaned = clean(mask(labels), {1: FILL, 2: CleanConfig(smallest_ml=0.002)}).labels  # a voxel is 0.001 ml
    assert np.all(cleaned == 1)


def flood(labels: NDArray[np.uint8], start: tuple[int, ...], corners: bool) -> set[tuple[int, ...]]:
    """Return the voxels of the start's label that are reached from it; an implementation of its own."""
    steps = [s for s in product((-1, 0, 1), repeat=3) if any(s) and (corners or sum(map(abs, s)) == 1)]
    seen, waiting = {start}, deque([start])
    while waiting:
        here = waiting.popleft()
        for step in steps:
            there = tuple(a + b for a, b in zip(here, step, strict=True))
            inside = all(0 <= a < n for a, n in zip(there, labels.shape, strict=True))
            if inside and there not in seen and labels[there] == labels[start]:
                seen.add(there)
                waiting.append(there)
    return seen


def pieces_of(labels: NDArray[np.uint8], label: int, corners: bool = True) -> list[set[tuple[int, ...]]]:
    left = {tuple(map(int, index)) for index in np.argwhere(labels == label)}
    found = []
    while left:
        found.append(flood(labels, min(left), corners))
        left -= found[-1]
    return found


def expected(labels: NDArray[np.uint8], rules: dict[int, CleanConfig]) -> NDArray[np.uint8]:
    """Say again what `clean` does, voxel by voxel, for voxels of 1 mm^3."""
    out = labels.copy()
    for number, rule in rules.items():
        pieces = sorted(pieces_of(labels, number), key=lambda piece: (-len(piece), min(piece)))
        kept = pieces[:1] if rule.largest_only else pieces
        for piece in pieces:
            if piece not in kept or len(piece) * 0.001 < rule.smallest_ml * (1 - 1e-6):
                for index in piece:
                    out[index] = 0
    before = out.copy()
    for hole in pieces_of(before, 0, corners=False):
        around: set[int] = set()
        for index, axis, step in product(hole, range(3), (-1, 1)):
            there = list(index)
            there[axis] += step
            around.add(int(before[tuple(there)]) if 0 <= there[axis] < before.shape[axis] else -1)
        around -= {0}
        if len(around) == 1 and (label := around.pop()) in rules and rules[label].fill_holes:
            for index in hole:
                out[index] = label
    return out


@given(SMALL, RULES)
def test_every_small_mask(labels: NDArray[np.uint8], rules: dict[int, CleanConfig]) -> None:
    cleaned = clean(mask(labels), rules)
    assert np.array_equal(cleaned.labels, expected(labels, rules))
    assert np.array_equal(clean(cleaned, rules).labels, cleaned.labels)  # once is enough


@given(SMALL, RULES, st.sampled_from(ORIENTATIONS))
def test_axis_order_changes_nothing(labels: NDArray[np.uint8], rules: dict[int, CleanConfig], codes: str) -> None:
    placed = mask(labels)
    order = placed.grid.order_to(codes)
    stored = Mask(np.asfortranarray(order.apply(labels)), placed.grid.reordered(order))
    assert np.array_equal(clean(stored, rules).placed_on(placed.grid).labels, clean(placed, rules).labels)

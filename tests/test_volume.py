from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.errors import InputError, MaskError, UsageError
from medseg.grid import Grid
from medseg.volume import Labels, Mask, Volume
from tests.strategies import GRIDS, ORIENTATIONS, affine


def numbered(grid: Grid) -> Mask:
    """A mask in which (nearly) every voxel has its own number, so that each flip and transpose shows."""
    return Mask(np.arange(math.prod(grid.shape), dtype=np.uint16).reshape(grid.shape), grid)


def places(mask: Mask) -> dict[int, tuple[float, ...]]:
    index = np.argwhere(mask.labels >= 0)
    world = mask.grid.to_world(index).round(6) + 0.0
    return {int(mask.labels[tuple(i)]): tuple(w) for i, w in zip(index, world, strict=True)}


@given(GRIDS, st.sampled_from(ORIENTATIONS))
def test_placed_on_keeps_every_label_at_its_place(grid, codes):
    scan = grid.reordered(grid.order_to(codes))
    placed = numbered(grid).placed_on(scan)
    assert placed.grid is scan
    before, after = places(numbered(grid)), places(placed)
    assert before.keys() == after.keys()
    assert all(np.allclose(before[label], after[label], atol=1e-5) for label in before)


@given(GRIDS, st.sampled_from(ORIENTATIONS), st.integers(0, 216))
def test_volume_does_not_depend_on_the_order_of_axes(grid, codes, label):
    mask = numbered(grid)
    placed = mask.placed_on(grid.reordered(grid.order_to(codes)))
    assert math.isclose(mask.volume_ml(label), placed.volume_ml(label), rel_tol=1e-9)


def test_volume_by_hand():
    grid = Grid((4, 4, 4), np.diag([0.5, 2, 5, 1.0]))
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[:2, :2, :2] = 3  # 8 voxels of 0.5 * 2 * 5 = 5 cubic millimetres are 0.04 ml
    assert math.isclose(Mask(labels, grid).volume_ml(3), 0.04)
    assert Mask(labels, grid).volume_ml(1) == 0


SCAN = Grid((8, 7, 6), affine("LPS", (5, 0, 0), (1, 1, 3), (10, 20, 30)))


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (Grid((8, 7, 6), SCAN.affine + 30 * np.eye(4, k=3)), "30.00 mm"),
        # one slice of 3 mm less, at one end
        (Grid((8, 7, 5), SCAN.affine), r"\(8, 7, 5\) voxels, its scan \(8, 7, 6\); .* up to 3.00 mm apart"),
        (Grid((8, 7, 6), np.eye(4)), "mm beside its scan"),
        (SCAN.with_shape((4, 4, 6)), "voxels, its scan .* up to 0.00 mm apart"),  # the same box
    ],
)
def test_placed_on_refuses_another_place(grid, words):
    with pytest.raises(MaskError, match=words) as error:
        numbered(grid).placed_on(SCAN)
    assert error.value.code == "MASK-GRID"


def test_placed_on_allows_rounding():
    rounded = SCAN.affine.copy()
    rounded[:3] += 1e-5
    assert np.array_equal(numbered(Grid(SCAN.shape, rounded)).placed_on(SCAN).labels, numbered(SCAN).labels)


def test_refuses_what_does_not_fit():
    with pytest.raises(InputError) as error:
        Volume(np.zeros((8, 7, 6)), SCAN)
    assert error.value.code == "GRID-SHAPE"
    with pytest.raises(MaskError) as error:
        Mask(np.zeros((8, 7, 5), np.uint8), SCAN)
    assert error.value.code == "GRID-SHAPE"
    with pytest.raises(MaskError) as error:
        Mask(np.zeros((8, 7, 6), np.int16), SCAN)
    assert error.value.code == "MASK-VALUES"


def test_labels():
    labels = Labels({5: "edema", 1: "tumour"})
    assert list(labels) == [(1, "tumour"), (5, "edema")]
    assert labels.number("edema") == 5
    assert len(labels) == 2


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ({1: "a", 2: "a"}, "LABEL-DUPLICATE"),
        ({0: "background"}, "LABEL-UNKNOWN"),
        ({65536: "a"}, "LABEL-UNKNOWN"),
        ({}, "LABEL-UNKNOWN"),
    ],
)
def test_labels_refuse(names, code):
    with pytest.raises(UsageError) as error:
        Labels(names)
    assert error.value.code == code


def test_labels_name_what_is_there():
    with pytest.raises(UsageError, match=r"'liver'.*'tumour'"):
        Labels({1: "tumour"}).number("liver")

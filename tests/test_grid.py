from __future__ import annotations

import math

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.affines import apply_affine, voxel_sizes

from medseg.errors import InputError
from medseg.grid import AxisOrder, Grid
from tests.strategies import GRIDS, ORIENTATIONS, affine

ORDERS = st.builds(AxisOrder, st.permutations(range(3)).map(tuple), st.tuples(*3 * [st.booleans()]))
CT = Grid((64, 56, 20), affine("LPS", (0, 0, 0), (0.9, 0.7, 2.5), (25, 17, -300)))


def every_index(grid: Grid) -> np.ndarray:
    return np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)


def voxel_centres(grid: Grid) -> np.ndarray:
    """World coordinates as an image of three channels `(3, i, j, k)`."""
    return np.moveaxis(grid.to_world(every_index(grid)), -1, 0)


@given(GRIDS)
def test_index_to_world_and_back(grid):
    index = every_index(grid)
    assert np.allclose(grid.to_index(grid.to_world(index)), index, atol=1e-9)


@given(GRIDS)
def test_agrees_with_nibabel(grid):
    index = every_index(grid)
    assert np.allclose(grid.to_world(index), apply_affine(grid.affine, index))
    assert np.allclose(grid.spacing, voxel_sizes(grid.affine))
    assert grid.orientation == "".join(nib.aff2axcodes(grid.affine))


def test_to_world_by_hand():
    # LPS: i runs to the left (-x), j to the back (-y), k to the head: 25 - 2 * 0.9, 17 - 3 * 0.7, -300 + 4 * 2.5
    assert np.allclose(CT.to_world([2, 3, 4]), [23.2, 14.9, -290])
    assert CT.orientation == "LPS"
    assert math.isclose(CT.voxel_ml, 0.9 * 0.7 * 2.5 / 1000)


@given(GRIDS, ORDERS)
def test_reordered_voxels_stay_where_they_are(grid, order):
    moved = grid.reordered(order)
    assert np.allclose(voxel_centres(moved), order.apply(voxel_centres(grid)), atol=1e-9)


@given(GRIDS, ORDERS)
def test_an_order_and_its_inverse_cancel(grid, order):
    there = grid.reordered(order)
    assert there.reordered(order.inverse).distance_mm(grid) < 1e-9
    voxels = every_index(grid)[..., 0]
    assert np.array_equal(order.inverse.apply(order.apply(voxels)), voxels)


@given(GRIDS, st.sampled_from(ORIENTATIONS))
def test_order_to_agrees_with_nibabel_as_reoriented(grid, codes):
    voxels = np.arange(math.prod(grid.shape), dtype=np.int32).reshape(grid.shape)
    order = grid.order_to(codes)
    image = nib.Nifti1Image(voxels, grid.affine)
    move = nib.orientations.ornt_transform(nib.io_orientation(grid.affine), nib.orientations.axcodes2ornt(codes))
    expected = image.as_reoriented(move)
    assert np.array_equal(order.apply(voxels), np.asarray(expected.dataobj))
    assert np.allclose(grid.reordered(order).affine, expected.affine, atol=1e-9)
    assert grid.reordered(order).orientation == codes


@given(GRIDS, ORDERS)
def test_order_onto_finds_the_way_back(grid, order):
    shuffled = grid.reordered(order)
    found = shuffled.order_onto(grid)
    assert found is not None
    assert np.allclose(found.apply(voxel_centres(shuffled)), voxel_centres(grid), atol=1e-9)


@given(GRIDS, ORDERS)
def test_order_onto_refuses_another_place(grid, order):
    # 0.06 mm is beyond the tolerance of 0.05 mm; no other numbering of the same voxels can lie nearer than that,
    # unless the grid is symmetric about the shift, which a shift along one axis by less than half a voxel never is.
    shifted = grid.affine.copy()
    shifted[0, 3] += 0.06
    assert Grid(grid.shape, shifted).order_onto(grid.reordered(order)) is None


def test_order_onto_does_not_depend_on_letters():
    # At 45 degrees the letters of twins that differ by rounding differ; they are the same place all the same.
    left = Grid((5, 6, 7), affine("RAS", (0, 0, 45 - 1e-7), (1, 1, 1), (0, 0, 0)))
    right = Grid((5, 6, 7), affine("RAS", (0, 0, 45 + 1e-7), (1, 1, 1), (0, 0, 0)))
    assert left.orientation != right.orientation
    assert left.order_onto(right) == AxisOrder((0, 1, 2), (False, False, False))


@given(GRIDS, st.tuples(*3 * [st.integers(1, 9)]))
def test_with_shape_keeps_the_box(grid, shape):
    other = grid.with_shape(shape)
    assert np.allclose(other.to_world([-0.5] * 3), grid.to_world([-0.5] * 3), atol=1e-6)
    assert np.allclose(other.to_world(np.array(shape) - 0.5), grid.to_world(np.array(grid.shape) - 0.5), atol=1e-6)


def test_with_shape_by_hand():
    # 4 voxels of 3 mm are 12 mm, so 2 voxels have 6 mm; the box begins at -1.5, so the first centre is at -1.5 + 3.
    halved = Grid((4, 1, 1), np.diag([3.0, 1, 1, 1])).with_shape((2, 1, 1))
    assert np.allclose(halved.affine, [[6, 0, 0, 1.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def tilted(degrees: float) -> Grid:
    """The CT grid with its k axis leaning towards x."""
    angle = math.radians(degrees)
    matrix = np.diag([0.9, 0.7, 2.5, 1.0])
    matrix[:3, 2] = [2.5 * math.sin(angle), 0, 2.5 * math.cos(angle)]
    return Grid((64, 56, 20), matrix)


def test_shear_by_hand():
    # The nearest right-angled pair to unit axes that stand 90 - a apart has each turned outwards by a / 2, so that the
    # differences are (1 - cos a/2, sin a/2) and (sin a - sin a/2, cos a - cos a/2). They are longest at the far corner:
    # 63 steps of 0.9 mm along i and 19 of 2.5 mm along k.
    a = math.radians(18)
    first = np.array([1 - math.cos(a / 2), math.sin(a / 2)])
    second = np.array([math.sin(a) - math.sin(a / 2), math.cos(a) - math.cos(a / 2)])
    expected = np.linalg.norm(63 * 0.9 * first + 19 * 2.5 * second)  # 10.68 mm
    assert math.isclose(tilted(18).shear_mm, expected, rel_tol=1e-9)
    assert tilted(18).is_sheared
    assert math.isclose(tilted(18).voxel_ml, 0.9 * 0.7 * 2.5 * math.cos(a) / 1000)


@given(GRIDS)
def test_right_angles_are_no_shear_even_in_float32(grid):
    rounded = Grid((512, 512, 300), grid.affine.astype(np.float32))
    assert not rounded.is_sheared


@given(GRIDS, st.tuples(*3 * [st.floats(-50, 50)]))
def test_distance_is_the_shift(grid, shift):
    matrix = grid.affine.copy()
    matrix[:3, 3] += shift
    assert math.isclose(grid.distance_mm(Grid(grid.shape, matrix)), np.linalg.norm(shift), abs_tol=1e-6)


def test_same_place():
    assert CT.same_place(Grid(CT.shape, CT.affine + 1e-5 * np.eye(4, k=3)))
    assert CT.same_place(Grid(CT.shape, CT.affine.astype(np.float32)))
    assert not CT.same_place(Grid(CT.shape, np.eye(4)))
    assert CT.distance_mm(Grid((64, 56, 19), CT.affine)) == math.inf


def test_overlap_by_hand():
    grid = Grid((16, 4, 4), np.eye(4))
    shifted = np.eye(4)
    shifted[0, 3] = 8  # voxels 8 to 15 of 16 lie inside the box that begins at 8: one half
    assert grid.overlap(grid) == 1
    assert grid.overlap(Grid((16, 4, 4), shifted)) == 0.5
    shifted[0, 3] = 100
    assert grid.overlap(Grid((16, 4, 4), shifted)) == 0


@given(GRIDS, st.integers(0, 2), st.data())
def test_block_is_a_part(grid, axis, data):
    start = data.draw(st.integers(0, grid.shape[axis] - 1))
    stop = data.draw(st.integers(start + 1, grid.shape[axis]))
    part = np.take(voxel_centres(grid), range(start, stop), axis=axis + 1)
    assert np.allclose(voxel_centres(grid.block(axis, start, stop)), part, atol=1e-9)


@pytest.mark.parametrize("shape", [(0, 1, 1), (2, 2), (1, 1, 1, 1), (-3, 4, 5)])
def test_refuses_a_shape(shape):
    with pytest.raises(InputError) as error:
        Grid(shape, np.eye(4))
    assert error.value.code == "GRID-SHAPE"


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((4, 4)),
        np.diag([1.0, 1, 0, 1]),
        np.diag([1.0, math.nan, 1, 1]),
        np.diag([1.0, 1, 1, 2]),
        np.eye(3),
        np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    ],
)
def test_refuses_an_affine(matrix):
    with pytest.raises(InputError) as error:
        Grid((2, 2, 2), matrix)
    assert error.value.code == "GRID-AFFINE"


def test_is_frozen():
    with pytest.raises(ValueError, match="read-only"):
        CT.affine[0, 0] = 1
    mine = np.eye(4)
    grid = Grid((2, 2, 2), mine)
    mine[0, 0] = 5
    assert grid.spacing == (1, 1, 1)


def test_to_dict_is_plain():
    assert CT.to_dict()["shape"] == [64, 56, 20]
    assert CT.to_dict()["affine"][0] == [-0.9, 0.0, 0.0, 25.0]


def test_accepts_thick_oblique_slices():
    # Columns, not rows, are the axes: in rows the long step of 100 mm is mixed into all three.
    thick = affine("RAS", (24, 24, 24), (0.1, 0.1, 100), (0, 0, 0))
    assert np.allclose(Grid((4, 4, 4), thick).spacing, (0.1, 0.1, 100))

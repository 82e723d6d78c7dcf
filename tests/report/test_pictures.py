"""Overlay pictures: outlines, directions and the grey image."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medseg.errors import MaskError
from medseg.grid import Grid
from medseg.report.pictures import draw, outline
from medseg.volume import Mask, Volume

from .study import GRID, scan, tumour


def filled(path, shape):
    """Fill an outline by the even-odd rule, counting crossings of vertical edges to the left of each pixel."""
    crossings = np.zeros((shape[0], shape[1] + 1), int)
    for x, y, n in re.findall(r"M(\d+) (\d+)v(\d+)", path):
        crossings[int(y) : int(y) + int(n), int(x)] += 1
    return np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1


@settings(max_examples=60)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_an_outline_filled_is_the_mask(plane):
    path = outline(plane.astype(np.int32))
    assert (filled(path, plane.shape) == plane).all()
    # Transposed, the horizontal edges are the vertical ones.
    turned = re.sub(r"M(\d+) (\d+)h", r"M\2 \1V", path).replace("v", "h").replace("V", "v")
    assert (filled(turned, plane.T.shape) == plane.T).all()


def decoded(png):
    image = pytest.importorskip("matplotlib.image")
    return image.imread(io.BytesIO(base64.b64decode(png.removeprefix("data:image/png;base64,"))), format="png")


def marked(axes):
    """A thick-sliced scan with one bright voxel at the patient's right, front, and in the middle slice."""
    spacing = {"axial": (1.0, 1.0, 4.0), "coronal": (1.0, 4.0, 1.0), "sagittal": (4.0, 1.0, 1.0)}[axes]
    shape = tuple(5 if s == 4.0 else 41 for s in spacing)
    grid = Grid(shape, np.diag([*spacing, 1.0]))  # stored RAS
    labels, voxels = np.zeros(shape, np.uint8), np.zeros((1, *shape), np.int16)
    middle = [n // 2 for n in shape]
    labels[tuple(slice(m - 1, m + 2) for m in middle)] = 1
    corner = [m if s == 4.0 else 40 for m, s in zip(middle, spacing, strict=True)]  # far right, front, head
    voxels[(0, *corner)] = 1000
    return Mask(labels, grid), Volume(voxels, grid, "MR")


@pytest.mark.parametrize(
    ("plane", "edges", "row", "column"),
    [
        # RAS index 40 is the patient's right, front or head: the picture's left, top or top.
        ("axial", ("R", "L", "A", "P"), 0, 0),
        ("coronal", ("R", "L", "S", "I"), 0, 0),
        ("sagittal", ("A", "P", "S", "I"), 0, 0),
    ],
)
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA"])
def test_the_picture_is_the_radiologists_view_however_it_is_stored(plane, edges, row, column, codes):
    mask, volume = marked(plane)
    order = mask.grid.order_to(codes)
    turned = Mask(np.ascontiguousarray(order.apply(mask.labels)), mask.grid.reordered(order))
    picture = draw(turned, mask, volume)[0]
    assert picture.caption == f"{plane} slice 3 of 5"
    assert picture.edges == edges
    image = decoded(picture.png)
    assert image.shape == (picture.rows, picture.columns)
    assert np.unravel_index(image.argmax(), image.shape) == (row, column)
    assert (picture.width_mm, picture.height_mm) == (41, 41)


def test_two_slices_when_they_differ_and_one_when_not():
    assert [v.title for v in draw(tumour(), tumour(), scan())] == ["Largest part of the reference", "Across", "Across"]
    labels = tumour().labels.copy()
    labels[2:20, 2:16, 8] = 1
    views = draw(tumour(), Mask(labels, GRID), scan())
    assert [v.title for v in views] == ["Largest part of the reference", "Most disagreement", "Across", "Across"]
    assert [v.caption for v in views[:2]] == ["axial slice 5 of 10", "axial slice 9 of 10"]
    # The box covers i 6 to 11 of 24 and j 5 to 10 of 20; x and y fall with i and j, so i counts to L and j to P.
    assert [v.caption for v in views[2:]] == ["coronal slice 9 of 20", "sagittal slice 10 of 24"]
    assert views[1].reference == ""


def test_empty_missing_and_misplaced():
    empty = Mask(np.zeros(GRID.shape, np.uint8), GRID)
    assert draw(empty, None, None)[0].png == ""
    assert draw(tumour(), None, None)[0].mask == ""
    assert draw(empty, tumour(), None)[0].title == "Most disagreement"
    with pytest.raises(MaskError):
        draw(tumour(), Mask(np.zeros((3, 3, 3), np.uint8), Grid((3, 3, 3), np.eye(4))), None)


def test_ct_is_shown_in_a_soft_tissue_window():
    voxels = np.full((1, *GRID.shape), -1000, np.int16)
    voxels[:, :, :10] = 3000
    image = decoded(draw(tumour(), None, Volume(voxels, GRID, "CT"))[0].png)
    assert set(np.unique(image)) == {0.0, 1.0}

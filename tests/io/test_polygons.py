from __future__ import annotations

import matplotlib.path
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from medseg.io.polygons import fill, outline

PIXELS = npst.arrays(bool, npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


@given(PIXELS)
def test_outline_then_fill_is_the_identity(pixels):
    assert (fill(outline(pixels), pixels.shape) == pixels).all()


@given(PIXELS)
def test_outline_reads_the_same_with_axes_swapped(pixels):
    swapped = [polygon[:, ::-1] for polygon in outline(pixels)]
    assert (fill(swapped, pixels.shape[::-1]) == pixels.T).all()


@given(PIXELS)
def test_outline_encloses_half_a_pixel_less_for_each_loop(pixels):
    # Each convex corner cuts 1/8 of a pixel, each concave one adds it. A closed curve has four convex corners more than
    # concave ones: 4/8. An outer loop loses half a pixel, a hole (turned the other way) gives half a pixel back.
    import scipy.ndimage

    def shoelace(polygon):
        u, v = polygon.T
        return (u * np.roll(v, -1) - v * np.roll(u, -1)).sum() / 2

    area = sum(abs(shoelace(polygon)) for polygon in outline(pixels))
    # At a saddle contourpy joins either diagonal, so pieces are counted by the Euler number of one of the two choices.
    padded = np.pad(pixels, 1)
    loops = {
        8: scipy.ndimage.label(padded, np.ones((3, 3)))[1] - (scipy.ndimage.label(~padded)[1] - 1),
        4: scipy.ndimage.label(padded)[1] - (scipy.ndimage.label(~padded, np.ones((3, 3)))[1] - 1),
    }
    lowest, highest = sorted(pixels.sum() - loops[c] / 2 for c in (4, 8))
    assert lowest - 1e-9 <= area <= highest + 1e-9


@given(st.integers(3, 9), st.integers(0, 2**32 - 1))
def test_fill_agrees_with_matplotlib_away_from_edges(corners, seed):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    polygon = 10 + rng.uniform(2, 9, (corners, 1)) * np.column_stack([np.cos(angles), np.sin(angles)])
    centres = np.argwhere(np.ones((20, 20)))
    inside = matplotlib.path.Path(np.vstack([polygon, polygon[:1]])).contains_points(centres).reshape(20, 20)
    wrong = np.argwhere(fill([polygon], (20, 20)) != inside)
    starts, ends = polygon, np.roll(polygon, -1, axis=0)
    for pixel in wrong:  # only centres on an edge (to the snap's ten-thousandth) may differ
        share = np.clip(((pixel - starts) * (ends - starts)).sum(1) / ((ends - starts) ** 2).sum(1), 0, 1)
        assert np.linalg.norm(starts + share[:, None] * (ends - starts) - pixel, axis=1).min() < 2e-4


def test_a_hole_counts_by_even_odd_and_by_keyhole():
    outer = np.array([[0.5, 0.5], [0.5, 6.5], [6.5, 6.5], [6.5, 0.5]])
    hole = np.array([[2.5, 2.5], [2.5, 4.5], [4.5, 4.5], [4.5, 2.5]])
    keyhole = np.concatenate([outer, outer[:1], hole, hole[:1]])
    separate = fill([outer, hole], (8, 8))
    assert separate.sum() == 6 * 6 - 2 * 2
    assert (fill([keyhole], (8, 8)) == separate).all()


def test_a_keyhole_channel_through_pixel_centres_leaves_no_trace():
    outer = np.array([[0.5, 0.5], [0.5, 6.5], [6.5, 6.5], [6.5, 0.5]])
    hole = np.array([[2.5, 3], [3.0, 3.5], [3.5, 3], [3.0, 2.5]])
    slanted = np.concatenate([[[0.5, 1.0]], hole, hole[:1], [[0.5, 1.0]], outer[1:], outer[:1]])  # meets centres
    assert fill([slanted], (8, 8)).sum() == 35


def test_contours_through_centres_are_half_open_whatever_their_last_digit():
    square = np.array([[1.0, 1.0], [1.0, 4.0], [4.0, 4.0], [4.0, 1.0]])
    want = np.zeros((6, 6), bool)
    want[1:4, 1:4] = True
    for noise in (0.0, 3e-5, -3e-5):
        assert (fill([square + noise], (6, 6)) == want).all()


def test_nothing_outside_the_image_is_made():
    far = np.array([[-5.0, -5.0], [-5.0, 30.0], [30.0, 30.0], [30.0, -5.0]])
    assert fill([far], (4, 3)).all()
    assert not fill([far - 100], (4, 3)).any()
    assert not fill([], (4, 3)).any()

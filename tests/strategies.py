"""What hypothesis may throw at geometry: every orientation, oblique angles, odd spacings, far origins."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
from hypothesis import strategies as st

from medseg.grid import Grid

ORIENTATIONS = ["".join(codes) for axes in permutations(("LR", "PA", "IS")) for codes in product(*axes)]
"""All 48, as three letters."""


def direction(codes: str) -> np.ndarray:
    """Return the `(3, 3)` matrix whose columns point where the letters say, RAS+."""
    vectors = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    return np.array([vectors[code] for code in codes], dtype=np.float64).T


def rotation(x_deg: float, y_deg: float, z_deg: float) -> np.ndarray:
    """Return the `(3, 3)` rotation about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.radians([x_deg, y_deg, z_deg])), np.sin(np.radians([x_deg, y_deg, z_deg]))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


Triple = tuple[float, float, float]


def affine(codes: str, angles: Triple, spacing: Triple, origin: Triple) -> np.ndarray:
    """Return the `(4, 4)` affine of the parts."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(*angles) @ direction(codes) * np.array(spacing)
    matrix[:3, 3] = origin
    return matrix


def _three(low: float, high: float) -> st.SearchStrategy[Triple]:
    one = st.floats(low, high, allow_nan=False)
    return st.tuples(one, one, one)


ANGLES = st.one_of(st.just((0.0, 0.0, 0.0)), _three(-0.2, 0.2), _three(-24, 24))
"""Degrees: none, nearly none (where quaternions lose precision), and clearly oblique."""

SHAPES = st.tuples(*3 * [st.integers(1, 6)])

AFFINES = st.builds(affine, st.sampled_from(ORIENTATIONS), ANGLES, _three(0.3, 6), _three(-400, 400))

GRIDS = st.builds(Grid, SHAPES, AFFINES)

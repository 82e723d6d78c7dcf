"""`Grid`: where voxels are. All affine arithmetic of medseg lives here.

World coordinates (x, y, z) are millimetres in RAS+, the frame of NIfTI: x grows towards the patient's right, y to the
front, z to the head (pictures in `docs/conventions.md`). Index coordinates (i, j, k) name voxel centres.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from nibabel.orientations import (
    aff2axcodes,
    axcodes2ornt,
    io_orientation,
    ornt_transform,
)
from numpy.typing import ArrayLike, NDArray

from medseg.errors import InputError

Float = NDArray[np.float64]
Shape = tuple[int, int, int]

SAME_PLACE_MM = 0.05
"""Grids whose corner voxels all lie this close are one place: above the noise of short decimal strings and float32
headers (about 0.01 mm), far below half a voxel of any clinical scan."""

SHEAR_NOISE_MM = 0.01
"""Shear below this at the corners is rounding of the stored direction cosines."""


@dataclass(frozen=True)
class AxisOrder:
    """A way to re-order and flip array axes: output axis `n` is input axis `axes[n]`, reversed where `flips[n]`."""

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def apply(self, voxels: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return a view of `voxels` (its last three axes are i, j, k; any dtype) in the new order; no copy."""
        lead = voxels.ndim - 3
        moved = voxels.transpose(*range(lead), *(lead + a for a in self.axes))
        return moved[(Ellipsis, *(slice(None, None, -1) if flip else slice(None) for flip in self.flips))]

    @property
    def inverse(self) -> AxisOrder:
        """The order that undoes this one."""
        back = tuple(self.axes.index(a) for a in range(3))
        return AxisOrder((back[0], back[1], back[2]), (self.flips[back[0]], self.flips[back[1]], self.flips[back[2]]))


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular lattice of voxel centres in the world.

    Attributes:
        shape: number of voxels along i, j, k, each at least 1.
        affine: `(4, 4)` float64, index (i, j, k, 1) to world (x, y, z, 1) in mm, RAS+. Read-only. May be
            sheared (tilted gantry).

    Raises:
        InputError: GRID-SHAPE for an empty or non-3-D shape, GRID-AFFINE for an affine that is not finite, not
            invertible, or whose last row is not 0 0 0 1.
    """

    shape: Shape
    affine: Float

    def __post_init__(self) -> None:
        """Check and freeze."""
        if len(self.shape) != 3 or any(n < 1 for n in self.shape):
            raise InputError("GRID-SHAPE", "", f"shape {tuple(self.shape)}, wanted three numbers of at least 1")
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.array_equal(affine[3], [0, 0, 0, 1]):
            raise InputError("GRID-AFFINE", "", "the affine is not a finite 4 x 4 matrix with last row 0 0 0 1")
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        # The volume of the unit cell over that of a box with the same edges: 1 for right angles, 0 for flat.
        if (lengths < 1e-6).any() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
            raise InputError("GRID-AFFINE", "", "the affine is singular: its axes do not span space")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "affine", affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along i, j, k in mm."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres (a sheared cell included)."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def orientation(self) -> str:
        """The direction each index grows to, as three letters of RL, AP, SI: `"RAS"`, `"LPS"`, `"PIR"`, ..."""
        return "".join(str(code) for code in aff2axcodes(self.affine))

    def to_world(self, index: ArrayLike) -> Float:
        """Map index coordinates `(..., 3)` to world coordinates `(..., 3)` in mm, RAS+."""
        world: Float = np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]
        return world

    def to_index(self, world: ArrayLike) -> Float:
        """Map world coordinates `(..., 3)` in mm, RAS+, to continuous index coordinates `(..., 3)`."""
        inverse = np.linalg.inv(self.affine)
        index: Float = np.asarray(world, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]
        return index

    @property
    def corners(self) -> Float:
        """World coordinates `(8, 3)` in mm of the eight corner voxel centres, in index order."""
        return self.to_world(list(product(*((0, n - 1) for n in self.shape))))

    @property
    def shear_mm(self) -> float:
        """How far, in mm, the corners lie from those of the nearest grid with right angles (0 for an ordinary scan).

        The nearest set of right-angled directions is the orthogonal polar factor of the unit axes (Higham 1986).
        """
        directions = self.affine[:3, :3] / self.spacing
        u, _, vt = np.linalg.svd(directions)
        skew = (directions - u @ vt) * self.spacing
        steps = np.array(list(product(*((0, n - 1) for n in self.shape))), dtype=np.float64)
        return float(np.linalg.norm(steps @ skew.T, axis=1).max())

    @property
    def is_sheared(self) -> bool:
        """Whether the axes are not at right angles by more than rounding (`SHEAR_NOISE_MM` at the corners)."""
        return self.shear_mm > SHEAR_NOISE_MM

    def distance_mm(self, other: Grid) -> float:
        """Largest distance in mm between corresponding corner voxels; infinite when the shapes differ."""
        if self.shape != other.shape:
            return float("inf")
        return float(np.linalg.norm(self.corners - other.corners, axis=1).max())

    def same_place(self, other: Grid, tolerance_mm: float = SAME_PLACE_MM) -> bool:
        """Whether every voxel of `other` lies on the same-numbered voxel of this grid within `tolerance_mm`."""
        return self.distance_mm(other) <= tolerance_mm

    def order_to(self, codes: str) -> AxisOrder:
        """Return the axis order that brings this grid closest to orientation `codes` (such as `"RAS"`)."""
        return _axis_order(ornt_transform(io_orientation(self.affine), axcodes2ornt(tuple(codes))))

    def order_like(self, other: Grid) -> AxisOrder:
        """Return the axis order that brings this grid's axes closest to `other`'s.

        The axes are compared with one another, not by their letters: two grids at 45 degrees to the body may be a
        rounding error apart and yet have different letters.
        """
        return _axis_order(io_orientation(np.linalg.inv(other.affine) @ self.affine))

    def reordered(self, order: AxisOrder) -> Grid:
        """Return the grid of `order.apply(voxels)`: the same voxel centres, numbered in another order."""
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1
        for out, (axis, flip) in enumerate(zip(order.axes, order.flips, strict=True)):
            matrix[axis, out] = -1 if flip else 1
            matrix[axis, 3] = self.shape[axis] - 1 if flip else 0
        i, j, k = (self.shape[a] for a in order.axes)
        return Grid((i, j, k), self.affine @ matrix)

    def order_onto(self, other: Grid, tolerance_mm: float = SAME_PLACE_MM) -> AxisOrder | None:
        """Return the axis order that lays this grid voxel for voxel on `other`, or None when none does."""
        order = self.order_like(other)
        return order if self.reordered(order).same_place(other, tolerance_mm) else None

    def with_shape(self, shape: Shape) -> Grid:
        """Return the grid that fills the same box (voxel edge to voxel edge) with another number of voxels.

        The spacing becomes `n_old / n_new` times the old one along each axis, and the first centre moves by half the
        difference, as `torch.nn.functional.interpolate(align_corners=False)` places its samples.
        """
        step = np.array(self.shape, dtype=np.float64) / np.array(shape)
        scale = np.diag([*step, 1.0])
        scale[:3, 3] = (step - 1) / 2
        return Grid(shape, self.affine @ scale)

    def block(self, axis: int, start: int, stop: int) -> Grid:
        """Return the part of the grid with index `start` to `stop - 1` along `axis`."""
        first = np.zeros(3)
        first[axis] = start
        affine = self.affine.copy()
        affine[:3, 3] = self.to_world(first)
        shape = list(self.shape)
        shape[axis] = stop - start
        return Grid((shape[0], shape[1], shape[2]), affine)

    def overlap(self, other: Grid) -> float:
        """Share (0 to 1) of this grid's voxels, sampled on a coarse lattice, that lie inside `other`'s box."""
        steps = [np.linspace(0, n - 1, min(n, 16)) for n in self.shape]
        index = other.to_index(self.to_world(np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1)))
        inside = ((index >= -0.5) & (index <= np.array(other.shape) - 0.5)).all(axis=-1)
        return float(inside.mean())

    def to_dict(self) -> dict[str, list[int] | list[list[float]]]:
        """Plain types for JSON and YAML."""
        return {"shape": list(self.shape), "affine": [[float(v) for v in row] for row in self.affine]}


def _axis_order(move: Float) -> AxisOrder:
    """Turn nibabel's `(3, 2)` orientation (rows: where each input axis goes) around: where each output comes from."""
    source = [int(np.flatnonzero(move[:, 0] == out)[0]) for out in range(3)]
    flips = [bool(move[axis, 1] < 0) for axis in source]
    return AxisOrder((source[0], source[1], source[2]), (flips[0], flips[1], flips[2]))


def axis_of(code: str) -> int:
    """Return 0, 1 or 2 for a letter of direction along x, y or z."""
    return next(axis for axis, letters in enumerate(("LR", "PA", "IS")) if code in letters)

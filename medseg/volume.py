"""`Volume`, `Mask` and `Labels`: voxels that know where they are, and what their numbers mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from medseg.errors import InputError, MaskError, UsageError
from medseg.grid import SAME_PLACE_MM, Grid

UNANNOTATED = 255
"""In a reference for training: a voxel that nobody annotated. It is neither foreground nor background."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan's voxels on their grid.

    Attributes:
        voxels: `(c, i, j, k)`, channels first, in the smallest stored type that holds the values exactly; CT in HU,
            PET in its stored unit (BQML, ...), MR in arbitrary units.
        grid: where they are.
        modality: DICOM modality ("CT", "MR", "PT", ...), empty when unknown.

    Raises:
        InputError: GRID-SHAPE when voxels and grid do not agree.
    """

    voxels: NDArray[np.generic]
    grid: Grid
    modality: str = ""

    def __post_init__(self) -> None:
        """Check the shapes."""
        if self.voxels.ndim != 4 or self.voxels.shape[1:] != self.grid.shape:
            problem = f"voxels {self.voxels.shape} on a grid of {self.grid.shape}, wanted (channels, i, j, k)"
            raise InputError("GRID-SHAPE", "", problem)

    def cut(self, axis: int, start: int, stop: int) -> NDArray[np.generic]:
        """Return a view of the voxels `(c, i, j, k)` with index `start` to `stop - 1` along `axis` (0: i)."""
        part = [slice(None)] * 4
        part[1 + axis] = slice(start, stop)
        return self.voxels[tuple(part)]


@dataclass(frozen=True, eq=False)
class Mask:
    """Label numbers on a grid.

    Attributes:
        labels: `(i, j, k)` uint8 or uint16; 0 is background.
        grid: where they are.

    Raises:
        MaskError: GRID-SHAPE when labels and grid do not agree, MASK-VALUES for another dtype.
    """

    labels: NDArray[np.uint8] | NDArray[np.uint16]
    grid: Grid

    def __post_init__(self) -> None:
        """Check shape and dtype."""
        if self.labels.shape != self.grid.shape:
            raise MaskError("GRID-SHAPE", "", f"labels {self.labels.shape} on a grid of {self.grid.shape}")
        if self.labels.dtype not in (np.uint8, np.uint16):
            raise MaskError("MASK-VALUES", "", f"labels of type {self.labels.dtype}, wanted uint8 or uint16")

    def volume_ml(self, label: int) -> float:
        """Volume of one label in millilitres."""
        return int(np.count_nonzero(self.labels == label)) * self.grid.voxel_ml

    def placed_on(self, grid: Grid, tolerance_mm: float = SAME_PLACE_MM) -> Mask:
        """Return the same mask numbered as `grid` is, when the voxel centres coincide; no value changes.

        A mask stored LPS, or with permuted axes, lies on its RAS scan all the same; comparing the arrays index by
        index would mirror it.

        Raises:
            MaskError: MASK-GRID, with the distance in mm, when the mask is not on the grid.
        """
        order = self.grid.order_onto(grid, tolerance_mm)
        if order is None:
            raise MaskError("MASK-GRID", "", _misfit(self.grid, grid), "Resample the mask, or take the right one.")
        labels = np.ascontiguousarray(order.apply(self.labels))
        return Mask(labels, grid)


def _misfit(mask: Grid, scan: Grid) -> str:
    moved = mask.reordered(mask.order_like(scan))
    if moved.shape != scan.shape:
        apart = np.linalg.norm(_outer_corners(moved) - _outer_corners(scan), axis=1).max()
        shapes = f"the mask has {moved.shape} voxels, its scan {scan.shape}"
        return f"{shapes}; their outer corners lie up to {apart:.2f} mm apart"
    distance = moved.distance_mm(scan)
    return f"the mask lies up to {distance:.2f} mm beside its scan (corner voxels; {SAME_PLACE_MM} mm is the tolerance)"


def _outer_corners(grid: Grid) -> NDArray[np.float64]:
    """World coordinates `(8, 3)` in mm of the corners of the field of view, voxel edges included."""
    return grid.to_world(list(product(*((-0.5, n - 0.5) for n in grid.shape))))


@dataclass(frozen=True)
class Labels:
    """Label numbers and their names, unique both ways; background (0) is not among them.

    Attributes:
        names: number to name, numbers 1 to 65535 in ascending order.

    Raises:
        UsageError: LABEL-DUPLICATE for a repeated name, LABEL-UNKNOWN for a number out of range.
    """

    names: Mapping[int, str]

    def __post_init__(self) -> None:
        """Check and order."""
        if len(set(self.names.values())) != len(self.names):
            raise UsageError("LABEL-DUPLICATE", "labels", f"a name stands twice in {sorted(self.names.values())}")
        if not self.names or any(not 1 <= number <= 65535 for number in self.names):
            raise UsageError("LABEL-UNKNOWN", "labels", f"numbers {sorted(self.names)}, wanted some from 1 to 65535")
        object.__setattr__(self, "names", dict(sorted(self.names.items())))

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Iterate over (number, name)."""
        return iter(self.names.items())

    def __len__(self) -> int:
        """Count the labels, background not among them."""
        return len(self.names)

    def number(self, name: str) -> int:
        """Return the number of a name.

        Raises:
            UsageError: LABEL-UNKNOWN.
        """
        for number, known in self.names.items():
            if known == name:
                return number
        raise UsageError("LABEL-UNKNOWN", "labels", f"no label {name!r} among {list(self.names.values())}")

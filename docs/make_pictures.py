"""Draw the pictures of conventions.md from a phantom: `python docs/make_pictures.py` (needs matplotlib).

Every position in them is computed by `medseg.grid`, so that the pictures show what the code does.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from medseg.grid import Grid
from medseg.io.atomic import atomic_path
from medseg.phantom import draw_patient, tumour_of
from medseg.preparation import PLANES
from medseg.volume import Mask, Volume

HERE = Path(__file__).parent / "pictures"
RED, BLUE, GREY = "#d62728", "#1f77b4", "#888888"
OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


def planes() -> Figure:
    """Draw the three planes through the tumour, as a model sees them: row 0 on top, column 0 on the left."""
    volume, mask = draw_patient(2, 0)
    mask = tumour_of(mask)
    figure = Figure(figsize=(8.4, 3.3), layout="constrained")
    for axes, (plane, codes) in zip(figure.subplots(1, 3), PLANES.items(), strict=True):
        order = volume.grid.order_to(codes)
        grid = volume.grid.reordered(order)
        voxels, labels = order.apply(volume.voxels[0]), order.apply(mask.labels).astype(np.uint8)
        middle = int(np.argmax((labels > 0).sum((0, 1))))
        aspect = grid.spacing[0] / grid.spacing[1]
        axes.imshow(voxels[..., middle], cmap="gray", vmax=_bright(volume), aspect=aspect)
        axes.contour(labels[..., middle], [0.5], colors=RED, linewidths=1.5)
        axes.set_title(f"{plane}: {codes}", fontsize=11)
        axes.set_xlabel(f"columns grow to {codes[1]}, slices to {codes[2]}", fontsize=8)
        axes.set_ylabel(f"rows grow to {codes[0]}", fontsize=8)
        _letters(axes, codes)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


def _letters(axes: Axes, codes: str) -> None:
    """Write which side of the patient each edge of the picture is."""
    style: dict[str, Any] = {"color": "yellow", "fontsize": 11, "fontweight": "bold", "transform": axes.transAxes}
    axes.text(0.5, 0.97, OPPOSITE[codes[0]], ha="center", va="top", **style)
    axes.text(0.5, 0.03, codes[0], ha="center", va="bottom", **style)
    axes.text(0.03, 0.5, OPPOSITE[codes[1]], ha="left", va="center", **style)
    axes.text(0.97, 0.5, codes[1], ha="right", va="center", **style)


def grids() -> Figure:
    """Draw a small turned grid in the world, and the working grid over it."""
    turn = np.deg2rad(12)
    affine = np.eye(4)
    # Columns to the left, rows to the back: the axis order of an axial DICOM series.
    directions = np.array([[-np.cos(turn), np.sin(turn), 0], [-np.sin(turn), -np.cos(turn), 0], [0, 0, 1]])
    affine[:3, :3] = directions @ np.diag([10.0, 10.0, 5.0])
    affine[:3, 3] = (28, 26, 0)
    grid = Grid((6, 5, 1), affine)
    figure = Figure(figsize=(8.4, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    _voxels(left, grid)
    for (i, j), place in zip(np.ndindex(6, 5), _centres(grid), strict=True):
        if i == 0 or j == 0:
            left.annotate(f"({i},{j})", place[:2], xytext=(3, 3), textcoords="offset points", fontsize=7)
    left.set_title("a grid: voxel centres (i, j) in the world", fontsize=10)
    _voxels(right, grid)
    working = grid.with_shape((4, 3, 1))
    places = _centres(working)
    right.plot(places[:, 0], places[:, 1], "s", color=RED, markersize=6)
    right.set_title("red: the same box with fewer, larger pixels", fontsize=10)
    for axes in (left, right):
        axes.set_aspect("equal")
        axes.set_xlabel("x in mm, to the patient's right", fontsize=9)
        axes.set_ylabel("y in mm, to the front", fontsize=9)
        axes.grid(visible=True, color="#eeeeee")
        axes.set_axisbelow(True)
    return figure


def _voxels(axes: Axes, grid: Grid) -> None:
    for i in range(grid.shape[0]):
        for j in range(grid.shape[1]):
            edge = grid.to_world([(i + a, j + b, 0) for a, b in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))])
            axes.fill(edge[:, 0], edge[:, 1], facecolor="none", edgecolor=GREY, linewidth=0.7)
    places = _centres(grid)
    axes.plot(places[:, 0], places[:, 1], "o", color=BLUE, markersize=4)


def _centres(grid: Grid) -> NDArray[np.float64]:
    return grid.to_world(list(np.ndindex(*grid.shape)))


def mirrored() -> Figure:
    """Draw one mask over its scan by array index, and by geometry."""
    volume, mask = draw_patient(2, 0)
    mask = tumour_of(mask)
    order = mask.grid.order_to("RAS")
    stored = Mask(np.ascontiguousarray(order.apply(mask.labels)), mask.grid.reordered(order))
    right = stored.placed_on(volume.grid)
    figure = Figure(figsize=(6.4, 3.3), layout="constrained")
    axes_by_index, axes_by_place = figure.subplots(1, 2)
    middle = int(np.argmax((mask.labels > 0).sum((0, 1))))
    _overlay(axes_by_index, volume, stored.labels, middle)
    axes_by_index.set_title("arrays compared: wrong", fontsize=10)
    _overlay(axes_by_place, volume, right.labels, middle)
    axes_by_place.set_title("grids compared: right", fontsize=10)
    return figure


def _overlay(axes: Axes, volume: Volume, labels: NDArray[np.generic], index: int) -> None:
    axes.imshow(volume.voxels[0, :, :, index].T, cmap="gray", vmax=_bright(volume))
    axes.contour(labels[:, :, index].T.astype(float), [0.5], colors=RED, linewidths=1.5)
    axes.set_axis_off()


def _bright(volume: Volume) -> float:
    return float(np.percentile(volume.voxels.astype(float), 99.5))


def save(figure: Figure, name: str) -> None:
    """Write a figure as PNG with a palette, which halves its size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90, format="png")
    with atomic_path(HERE / name) as partial:
        Image.open(buffer).convert("RGB").quantize(96, dither=Image.Dither.NONE).save(
            partial, format="PNG", optimize=True
        )


if __name__ == "__main__":
    mpl.rcParams["font.family"] = "DejaVu Sans"
    save(planes(), "planes.png")
    save(grids(), "grids.png")
    save(mirrored(), "mirrored.png")

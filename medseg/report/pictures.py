"""Overlay pictures: a slice of the scan in grey, the outlines of reference and mask on it, as parts of an SVG.

A picture shows the slice as a radiologist sees it: the patient's right on the left, front or head up.
"""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.grid import Grid
from medseg.metrics import stack_axis
from medseg.surfaces import Bools
from medseg.volume import Mask, Volume

Plane = NDArray[np.generic]

MARGIN_MM = 25.0
"""Shown around the masks: enough of the anatomy to know where one is."""

SMALLEST_MM = 80.0
"""Least width and height shown, where the scan has them: a small lesion needs its surroundings."""

LARGEST = 320
"""Pixels along the longer side; larger slices are thinned, since the picture is shown at about this size."""

ANISOTROPIC = 1.25
"""From this ratio of largest to smallest spacing on, slices are shown as acquired; else the axial plane is."""

CT_WINDOW = (-200.0, 300.0)
"""Widest window for CT in HU: beyond it lie air and metal, which would flatten the soft tissue."""


@dataclass(frozen=True)
class Picture:
    """One slice.

    Attributes:
        title: what the slice was chosen for.
        caption: plane and number of the slice.
        columns: pixels of the shown part along x.
        rows: pixels along y.
        width_mm: size of the shown part.
        height_mm: likewise.
        png: data URI of the grey slice, or "" when there is no scan.
        reference: SVG path of the reference's outline, in pixels.
        mask: SVG path of the mask's outline.
        edges: letters for the left, right, top and bottom edge (R L A P S I).
    """

    title: str
    caption: str
    columns: int
    rows: int
    width_mm: float
    height_mm: float
    png: str
    reference: str
    mask: str
    edges: tuple[str, str, str, str]


@dataclass(frozen=True)
class _View:
    """A case turned for display: axis 0 counts slices, 1 goes down the page, 2 to the right."""

    grid: Grid
    reference: NDArray[np.integer]
    mask: NDArray[np.integer]
    scan: NDArray[np.generic] | None
    modality: str
    plane: str
    edges: tuple[str, str, str, str]


def draw(reference: Mask, mask: Mask | None, scan: Volume | None) -> tuple[Picture, ...]:
    """Draw the slice with most of the reference, the one with most disagreement when it is another, and two across.

    The first are slices as acquired; those across are of the two other planes, where they hold most of the target.

    Args:
        reference: gives the grid.
        mask: on the same place in any axis order; None when it is missing.
        scan: likewise; its first channel is shown. A scan in another place is left out.

    Raises:
        MaskError: MASK-GRID when the mask lies elsewhere.
    """
    main = main_plane(reference.grid)
    placed = mask.placed_on(reference.grid).labels if mask else np.zeros_like(reference.labels)
    view = _turned(reference, placed, scan, main)
    some = (view.reference > 0) | (view.mask > 0)
    if not some.any():
        return (_picture(view, len(some) // 2, "Middle slice", slice(None), slice(None)),)
    across = (_turned(reference, placed, scan, plane) for plane in PLANES if plane != main)
    return _as_acquired(view) + tuple(_across(other) for other in across)


def _as_acquired(view: _View) -> tuple[Picture, ...]:
    wanted, wrong = view.reference > 0, view.reference != view.mask
    area, error = (np.count_nonzero(part, axis=(1, 2)) for part in (wanted, wrong))
    rows, columns = _crop(wanted | (view.mask > 0), view.grid)
    most, worst = _peak(area), _peak(error)
    chosen = {worst: "Most disagreement"} if error.any() else {}
    if area.any():
        chosen = {most: "Largest part of the reference" + (", most disagreement" if most in chosen else "")} | {
            n: title for n, title in chosen.items() if n != most
        }
    return tuple(_picture(view, n, title, rows, columns) for n, title in chosen.items())


def _across(view: _View) -> Picture:
    some = (view.reference > 0) | (view.mask > 0)
    target = view.reference > 0 if view.reference.any() else some
    rows, columns = _crop(some, view.grid)
    return _picture(view, _peak(np.count_nonzero(target, axis=(1, 2))), "Across", rows, columns)


def _peak(counts: NDArray[np.integer]) -> int:
    """Return the middle one of the slices with the largest count."""
    tied = np.flatnonzero(counts == counts.max())
    return int(tied[len(tied) // 2])


def _turned(reference: Mask, placed: NDArray[np.integer], scan: Volume | None, plane: str) -> _View:
    codes = PLANES[plane]
    order = reference.grid.order_to(codes)
    grid = reference.grid.reordered(order)
    laid = scan.grid.order_onto(grid) if scan else None
    return _View(
        grid,
        np.asarray(order.apply(reference.labels), dtype=np.int32),
        np.asarray(order.apply(placed), dtype=np.int32),
        laid.apply(scan.voxels[0]) if scan and laid else None,
        scan.modality if scan else "",
        plane,
        (_OPPOSITE[codes[2]], codes[2], _OPPOSITE[codes[1]], codes[1]),
    )


PLANES = {"axial": "SPL", "coronal": "PIL", "sagittal": "LIP"}
"""Directions in which slices count, rows go down and columns go right: the patient's right is on the left."""

_OPPOSITE = dict(zip("LRAPSI", "RLPAIS", strict=True))


def main_plane(grid: Grid) -> str:
    """Return the plane that slices were acquired in; axial where the voxels are about as long as wide."""
    along = "S"
    if max(grid.spacing) / min(grid.spacing) > ANISOTROPIC:
        along = grid.orientation[stack_axis(grid)]
    return "axial" if along in "SI" else "coronal" if along in "AP" else "sagittal"


def _crop(some: Bools, grid: Grid) -> tuple[slice, slice]:
    return crop_axis(some, grid, 1), crop_axis(some, grid, 2)


def crop_axis(some: Bools, grid: Grid, axis: int) -> slice:
    """Return the part of one axis that holds `some` and its surroundings (`MARGIN_MM`, `SMALLEST_MM`)."""
    step, size = grid.spacing[axis], grid.shape[axis]
    hit = np.flatnonzero(some.any(axis=tuple(a for a in range(3) if a != axis)))
    margin = max(MARGIN_MM, (SMALLEST_MM - (hit[-1] - hit[0] + 1) * step) / 2) / step
    return slice(max(0, int(hit[0] - margin)), min(size, int(hit[-1] + margin) + 2))


def _picture(view: _View, n: int, title: str, rows: slice, columns: slice) -> Picture:
    reference, mask = view.reference[n][rows, columns], view.mask[n][rows, columns]
    height, width = reference.shape
    _, down, right = view.grid.spacing
    return Picture(
        title=title,
        caption=f"{view.plane} slice {n + 1} of {len(view.reference)}",
        columns=width,
        rows=height,
        width_mm=width * right,
        height_mm=height * down,
        png="" if view.scan is None else _grey(view.scan[n][rows, columns], view.modality),
        reference=outline(reference),
        mask=outline(mask),
        edges=view.edges,
    )


def outline(labels: NDArray[np.integer]) -> str:
    """Return an SVG path along the pixel edges between different numbers, background included.

    Args:
        labels: integer `(rows, columns)`; pixel (r, c) covers the square from (c, r) to (c + 1, r + 1).
    """
    padded = np.pad(labels, 1)
    flat = [f"M{c} {r}h{n}" for r, c, n in _runs(padded[1:, 1:-1] != padded[:-1, 1:-1])]
    upright = [f"M{r} {c}v{n}" for r, c, n in _runs((padded[1:-1, 1:] != padded[1:-1, :-1]).T)]
    return "".join(flat + upright)


def _runs(edges: Bools) -> list[tuple[int, int, int]]:
    """Return row, start and length of each run of True along the rows."""
    change = np.diff(np.pad(edges, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row, start = np.nonzero(change == 1)
    stop = np.nonzero(change == -1)[1]
    return [(int(r), int(a), int(b - a)) for r, a, b in zip(row, start, stop, strict=True)]


def _grey(plane: Plane, modality: str) -> str:
    step = max(1, int(np.ceil(max(plane.shape) / LARGEST)))
    values = plane[::step, ::step].astype(np.float32)
    low, high = (float(v) for v in np.percentile(values, (1, 99.5)))
    if modality == "CT":
        low, high = max(low, CT_WINDOW[0]), min(high, CT_WINDOW[1])
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    png = _png((np.clip(scaled, 0, 1) * 255).astype(np.uint8))
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _png(grey: NDArray[np.uint8]) -> bytes:
    """Write an 8-bit grey PNG (W3C Portable Network Graphics, sections 5 and 11)."""
    rows, columns = grey.shape
    # Filter 2 (up): each row as the difference to the one above, which packs a smooth image better.
    lines = np.diff(grey, axis=0, prepend=np.zeros((1, columns), np.uint8))
    raw = np.insert(lines, 0, 2, axis=1).tobytes()
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in chunks)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

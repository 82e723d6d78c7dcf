"""The door to DICOM image series: files in, a `Volume` with modality values on a RAS+ grid out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DicomError
from medseg.grid import Grid
from medseg.io.dicom_headers import Header, read_header
from medseg.io.dicom_pixels import modality_values, stack_values, stored_runs
from medseg.io.dicom_series import SeriesVolume, plan_volumes
from medseg.volume import Volume

CHANGED_ADVICE = "List the folder again, and read when nothing writes to it."

AFFINE_NOISE_MM = 1e-6
"""Reading the same files twice gives the same numbers; only the order of a sum may differ."""


def read_volume(files: Sequence[Path], frames: Sequence[tuple[int, int]], grid: Grid) -> Volume:
    """Read one verified volume: given frames of given files, in slice order, which must still lie on `grid`.

    Args:
        files: the files.
        frames: for each slice, the number of its file in `files` and of its frame in that file, from 0.
        grid: where the slices were when the files were listed.

    Returns:
        Voxels `(1, i, j, k)`: rescaled by each slice's own slope and intercept (HU for CT), the smallest integer type
        that holds them exactly, float32 when they are fractions.

    Raises:
        DicomError: DICOM-CHANGED when the files are no longer what they were, or the fault that was found in them.
    """
    headers = _headers(files)
    chosen = {(files[file], frame) for file, frame in frames}
    parts = []
    for header in headers:
        wanted = tuple(frame for frame in header.frames if (header.path, frame.number) in chosen)
        parts.append(header.with_frames(wanted))
    plans = plan_volumes(parts)
    if len(plans) != 1 or (plans[0].grid is not None and not plans[0].grid.same_place(grid, AFFINE_NOISE_MM)):
        raise DicomError("DICOM-CHANGED", "", "the files changed since they were listed", CHANGED_ADVICE)
    return _volume(plans[0])


def _headers(files: Sequence[Path]) -> list[Header]:
    headers = []
    for path in files:
        header = read_header(path)
        if header is None or header.kind != "image":
            reason = header.reason if header else "not a DICOM file"
            code = header.code if header and header.code else "DICOM-READ"
            raise DicomError(code, path.name, reason or "not an image")
        headers.append(header)
    if not headers:
        raise DicomError("DICOM-READ", "", "no files were given")
    return headers


def _volume(plan: SeriesVolume) -> Volume:
    if plan.code or plan.grid is None:
        raise DicomError(plan.code or "DICOM-GEOMETRY", "", plan.reason)
    columns, rows, count = plan.grid.shape
    stack = stack_values(_slices(plan), count, rows, columns)
    return Volume(np.transpose(stack)[None], plan.grid, plan.headers[0].modality)


def _slices(plan: SeriesVolume) -> Iterator[NDArray[np.generic]]:
    """Modality values of each slice in order; runs of frames of one file are read in one go."""
    by_path = {header.path: header for header in plan.headers}
    runs = [
        (by_path[path], [frame.number for frame in run])
        for path, run in groupby(plan.frames, key=lambda frame: frame.path)
    ]
    for frame, values in zip(plan.frames, stored_runs(runs), strict=True):
        yield modality_values(values, frame)

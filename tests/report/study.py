"""A small study on disk: masks, references, ledger, with every way a case can go wrong."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from medseg.grid import Grid
from medseg.io.nifti import write_mask, write_volume
from medseg.volume import Mask, Volume

GRID = Grid((24, 20, 10), np.array([[-1.0, 0, 0, 12], [0, -1.2, 0, 8], [0, 0, 3.0, -5], [0, 0, 0, 1.0]]))
COLUMNS = ("case", "source", "status", "code", "message", "warnings", "output", "seconds")


def tumour(start=6, size=6, number=1) -> Mask:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[start : start + size, 5:11, 3:6] = number
    return Mask(labels, GRID)


def scan(seed=0) -> Volume:
    voxels = np.random.default_rng(seed).normal(400, 60, GRID.shape)
    voxels[tumour().labels > 0] += 300
    return Volume(voxels.astype(np.int16)[None], GRID, "MR")


def write_ledger(folder: Path, *rows: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "cases.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)


def make_study(folder: Path) -> tuple[Path, Path]:
    """Six usable cases, a missing mask, a shifted one, an unknown label, an unreferenced mask, a rejected scan."""
    masks, references = folder / "masks", folder / "references"
    for n in range(6):
        write_mask(references / f"case_{n}.nii.gz", tumour())
        write_mask(masks / f"case_{n}.nii.gz", tumour(start=6 + n % 3))
    write_mask(references / "missing.nii.gz", tumour())
    write_mask(references / "shifted.nii.gz", tumour())
    affine = GRID.affine.copy()
    affine[0, 3] += 1
    write_mask(masks / "shifted.nii.gz", Mask(tumour().labels, Grid(GRID.shape, affine)))
    write_mask(references / "unknown.nii.gz", tumour())
    write_mask(masks / "unknown.nii.gz", tumour(number=7))
    write_mask(masks / "extra.nii.gz", tumour())
    write_volume(folder / "scans" / "case_0.nii.gz", scan())
    source = str(folder / "scans" / "case_0.nii.gz")
    write_ledger(
        masks,
        {"case": "case_0", "source": source, "status": "done", "output": "case_0.nii.gz"},
        {"case": "missing", "status": "rejected", "code": "DICOM-GAP", "message": "slices 4 and 6 are 5 mm apart"},
        {"case": "other", "status": "failed", "code": "RUN-MEMORY", "message": "not enough memory"},
    )
    return masks, references

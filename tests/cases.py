"""Small data sets for tests: NIfTI files on disk, and scans as headers tell them, without files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medseg.config import Config, DataConfig
from medseg.grid import Grid
from medseg.scan import Inventory, ReferenceFile, Scan

SHAPE = (8, 7, 6)
AFFINE = np.array([[-0.9, 0, 0, 20.0], [0, 0.7, 0, -11.0], [0, 0, 2.5, 5.0], [0, 0, 0, 1.0]])
"""Anisotropic and left-handed, so that flips, transposes and swapped spacings show."""


def nifti(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, affine, dtype=voxels.dtype)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def image(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(100, 1000, shape).astype(np.int16)


def blob(shape: tuple[int, int, int] = SHAPE, value: int = 1) -> np.ndarray:
    """An asymmetric label: 2 x 3 x 2 = 12 voxels in one corner region."""
    labels = np.zeros(shape, np.uint8)
    labels[1:3, 2:5, 3:5] = value
    return labels


def data_set(folder: Path, count: int = 3) -> Config:
    for number in range(count):
        nifti(folder / f"images/case_{number:02}.nii.gz", image(number))
        nifti(folder / f"labels/case_{number:02}.nii.gz", blob())
    return config(folder)


def config(folder: Path, labels: Any = None, **data: Any) -> Config:
    paths = {"scans": folder / "images", "references": folder / "labels", **data}
    return Config(data=DataConfig(**paths), labels=labels or {"tumour": 1})


def scan(name: str, kind: str = "nifti", **more: Any) -> Scan:
    """A usable scan as headers tell it; its id is made from the path below `/data`."""
    path = Path("/data") / name
    stem = name.replace("/", "_").removesuffix(".gz").removesuffix(".nii")
    more.setdefault("grid", Grid(SHAPE, AFFINE))
    return Scan(case_id=more.pop("case_id", stem), path=path, files=(path,), kind=kind, **more)  # type: ignore[arg-type]


def series(name: str, uid: str, **more: Any) -> Scan:
    more = {"modality": "MR", "group": "patient-1", "study_uid": "1.2", "frame_uid": "1.3", **more}
    return scan(name, "dicom", series_uid=uid, **more)


def structures(name: str, uids: Sequence[str] = (), **more: Any) -> ReferenceFile:
    more = {"group": "patient-1", "frame_uid": "", "names": ("GTV",), **more}
    return ReferenceFile(Path("/data") / name, "rtstruct", frozenset(uids), **more)


def inventory(*scans: Scan, references: Sequence[ReferenceFile] = ()) -> Inventory:
    return Inventory(scans, tuple(references), ())

"""Tiny studies that a tiny network learns in seconds, and networks that are known functions.

A scan is noise around 200 with one bright block of 600: a threshold tells the tumour from the rest.
"""

from __future__ import annotations

import gzip
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel import orientations as o
from numpy.typing import NDArray
from pydicom import dcmread

from medseg.config import Config, DataConfig, PredictConfig, TrainConfig
from medseg.config.networks import UNetConfig
from medseg.config.settings import AugmentConfig
from medseg.grid import Grid
from medseg.io.dicom_write import SeriesIdentity, write_series
from medseg.io.nifti import write_mask, write_volume
from medseg.io.rtstruct import write_rtstruct
from medseg.models import build
from medseg.models.model_folder import Model, ModelDescription
from medseg.preparation import Channel, Plane, Preparation
from medseg.volume import Labels, Mask, Volume

SHAPE = (20, 24, 5)
AFFINE = np.array([[-1.0, 0, 0, 20.0], [0, 1.0, 0, -11.0], [0, 0, 3.0, 5.0], [0, 0, 0, 1.0]])
GRID = Grid(SHAPE, AFFINE)
LABELS = Labels({1: "tumour"})
STILL = AugmentConfig(mirror=0, affine=0, intensity=0, blur=0, low_resolution=0)

SECRETS = {
    "PatientName": "Quixote^Dulcinea",
    "PatientID": "MRN-778812",
    "PatientBirthDate": "19431127",
    "PatientAddress": "Windmill Lane 7",
    "AccessionNumber": "ACC990017",
    "ReferringPhysicianName": "Panza^Sancho",
    "InstitutionName": "Hospital of Toboso",
    "StudyDescription": "follow-up of Quixote",
    "SeriesDescription": "T1 for Dulcinea",
    "PatientComments": "prefers giants",
}


def voxels(seed: int, shape: tuple[int, int, int] = SHAPE) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Return a scan and its mask `(i, j, k)`: a bright block of a place and size of its own."""
    rng = np.random.default_rng(seed)
    scan = rng.normal(200, 15, shape)
    mask = np.zeros(shape, np.uint8)
    i, j = rng.integers(2, shape[0] - 10), rng.integers(2, shape[1] - 10)
    first = int(rng.integers(0, max(1, shape[2] - 2)))
    mask[i : i + rng.integers(5, 8), j : j + rng.integers(5, 8), first : first + 3] = 1
    return (scan + 400.0 * mask).astype(np.int16), mask


def nifti_case(folder: Path, name: str, seed: int, grid: Grid = GRID, references: Path | None = None) -> Path:
    """Write `scans/<name>.nii.gz` and `masks/<name>.nii.gz`; return the scan's path."""
    scan, mask = voxels(seed, grid.shape)
    path = folder / "scans" / f"{name}.nii.gz"
    write_volume(path, Volume(scan[None], grid))
    write_mask((references or folder / "masks") / f"{name}.nii.gz", Mask(mask, grid))
    return path


def nifti_study(folder: Path, count: int = 5) -> Path:
    """Write `count` patients; return the folder."""
    for number in range(count):
        nifti_case(folder, f"p{number}", number)
    return folder


def dicom_patient(folder: Path, seed: int, modality: str = "MR", grid: Grid = GRID, reference: bool = True) -> Path:
    """Write a series with secrets in its headers, and its RTSTRUCT; return the folder of the series."""
    scan, mask = voxels(seed, grid.shape)
    identity = SeriesIdentity(f"{SECRETS['PatientID']}-{seed}", description=SECRETS["SeriesDescription"])
    place = folder / f"case_{seed}" / "series"
    files = write_series(Volume(scan[None], grid, modality), place, identity)
    for file in files:
        dataset = dcmread(file)
        for keyword, value in SECRETS.items():
            setattr(dataset, keyword, f"{value}-{seed}" if keyword == "PatientID" else value)
        dataset.save_as(file)
    if reference:
        write_rtstruct(place.parent / "rs.dcm", Mask(mask, grid), Labels({1: "GTV_Mass"}), files)
    return place


def settings(data: Path | DataConfig, **changes: Any) -> Config:
    """Return a configuration that learns such a study in seconds; `changes` are of `train`, but for whole sections."""
    if isinstance(data, Path):
        data = DataConfig(scans=data / "scans", references=data / "masks", validation=0.4)  # type: ignore[arg-type]
    sections = {key: changes.pop(key) for key in ("labels", "prepare", "model", "seed", "predict") if key in changes}
    train = {
        "epochs": 3,
        "batch_size": 4,
        "learning_rate": 0.02,
        "optimizer": "adam",
        "precision": "fp32",
        "device": "cpu",
        "average": None,
        **changes,
    }
    defaults: dict[str, Any] = {
        "labels": {"tumour": (1, "GTV*")},
        "model": UNetConfig(widths=(6, 8), norm="instance"),
        "predict": PredictConfig(engine="torch", precision="fp32", device="cpu"),
        **sections,
    }
    return Config(data=data, train=TrainConfig(**train), augment=STILL, **defaults)


def preparation(plane: Plane = "axial", spacing_mm: tuple[float, float] = (1.0, 1.0), context: int = 1) -> Preparation:
    """Return a preparation whose numbers are the scan's own: the window is wider than any value."""
    channel = Channel("image", "window", window=(-2000.0, 2000.0))
    return Preparation(plane, spacing_mm, (channel,), context=context)


def threshold_model(
    above: float,
    *,
    prepare: Preparation | None = None,
    tap: tuple[int, int, int] = (0, 0, 0),
    patch: tuple[int, int] = (2, 2),
    binary: bool = False,
) -> Model:
    """Return a U-Net whose weights are set so that it says: foreground where a voxel's value is above `above`.

    Args:
        above: in the scan's unit.
        prepare: its preparation.
        tap: which voxel is looked at: slices, rows and columns (working order) away from the one that is labelled.
        patch: slices are padded to it.
        binary: one output channel rather than two.
    """
    prepare = prepare or preparation()
    out_channels = 1 if binary else 2
    network = build(UNetConfig(widths=(2, 2)), prepare.in_channels, out_channels)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        weights = dict(network.named_parameters())
        # Values pass all rectifiers unchanged when shifted above zero; 2000 is the largest magnitude in the window.
        weights["enc1.0.weight"][0, prepare.context + tap[0], 1 + tap[1], 1 + tap[2]] = 1
        weights["enc1.0.bias"][0] = 2000
        weights["enc1.2.weight"][0, 0, 1, 1] = 1
        weights["dec1.0.weight"][0, 2, 1, 1] = 1  # channels 0 and 1 come from below, 2 and 3 over the bridge
        weights["dec1.2.weight"][0, 0, 1, 1] = 1
        weights["final.weight"][-1, 0, 0, 0] = 1
        weights["final.bias"][-1] = -2000 - above
    description = ModelDescription(
        network=UNetConfig(widths=(2, 2)),
        in_channels=prepare.in_channels,
        out_channels=out_channels,
        labels={1: "tumour"},
        preparation=prepare.to_dict(),
        patch=patch,
        predict=PredictConfig(engine="torch", precision="fp32", device="cpu"),
        weights={"weights.safetensors": f"{above} {tap}"},  # stands for the weights in the model's hash
    )
    return Model((network.eval(),), description, prepare)


def random_model() -> Model:
    """A network whose logits are close to one another: a change in their last bits changes labels."""
    plain = threshold_model(400)
    torch.manual_seed(0)
    network = build(UNetConfig(widths=(4, 8), norm="instance"), 3, 2).eval()
    return Model((network,), plain.description, plain.preparation)


def random_volume(grid: Grid, seed: int = 0) -> Volume:
    """Return whole numbers from -500 to 500, none of them 0."""
    values = np.random.default_rng(seed).integers(1, 501, grid.shape)
    sign = np.random.default_rng(seed + 1).choice([-1, 1], grid.shape)
    return Volume((values * sign).astype(np.int16)[None], grid)


def in_order(array: NDArray[Any], affine: NDArray[Any], codes: str) -> tuple[NDArray[Any], Any]:
    """Re-order an array to `codes` by nibabel, which knows nothing of medseg; the second value undoes it."""
    forth = o.ornt_transform(o.io_orientation(affine), o.axcodes2ornt(codes))
    back = o.ornt_transform(o.axcodes2ornt(codes), o.io_orientation(affine))
    return o.apply_orientation(array, forth), lambda other: o.apply_orientation(other, back)


def stored_labels(path: Path) -> NDArray[Any]:
    """Read a mask's numbers by nibabel."""
    return np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]


def everything(folder: Path) -> bytes:
    """Return names and contents of all files below a folder, compressed ones opened."""
    parts: list[bytes] = []
    for path in sorted(folder.rglob("*")):
        parts.append(str(path.relative_to(folder)).encode())
        if path.is_file():
            content = path.read_bytes()
            parts += [content, gzip.decompress(content)] if path.suffix == ".gz" else [content]
    return b"\0".join(parts)


def leaked(content: bytes, more: Sequence[str] = ()) -> list[str]:
    """Name the secrets that stand in `content`, whole or any word of a name."""
    words = [word for value in SECRETS.values() for word in value.replace("^", " ").split() if len(word) > 3]
    found = {
        word
        for word in (*SECRETS.values(), *words, *more)
        if word.encode() in content or word.encode("utf-16-le") in content
    }
    return sorted(found - {"follow-up", "prefers", "Hospital", "Lane"} - {"T1", "for"})


def kill_after(work: Callable[[], object], seconds: float) -> bool:
    """Do some work in a process of its own and end that by SIGKILL; return whether it was still at work."""
    child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)  # the threads of the parent are not in the child
            work()
        finally:
            os._exit(0)
    time.sleep(seconds)
    finished, _ = os.waitpid(child, os.WNOHANG)
    if not finished:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return not finished

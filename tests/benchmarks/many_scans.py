"""A folder of phantom scans as an archive gives it, and a model for them: what the benchmarks of prediction work on."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medseg.config.networks import ModelConfig, UNetConfig
from medseg.config.settings import PredictConfig
from medseg.grid import Grid
from medseg.io.dicom_write import SeriesIdentity, write_series
from medseg.io.nifti import write_volume
from medseg.models import build
from medseg.models.model_folder import ModelDescription, save_model
from medseg.preparation import Channel, Preparation
from medseg.volume import Volume

if TYPE_CHECKING:
    import torch

DEFAULT = UNetConfig(widths=(16, 32, 64, 128, 256), norm="instance", activation="leaky_relu")
"""The network that `medseg train` takes by default."""

SIZES = ((256, 256), (192, 224), (160, 160), (256, 208))
SPACING_MM = (0.8, 0.8)


def make_scans(folder: Path, count: int, broken: int, large: tuple[int, int, int]) -> list[Path]:
    """Write `count` scans of about 20 slices, DICOM and NIfTI in turn, one large one, and some that are broken.

    Returns:
        The path of each sound scan: a NIfTI file, or the folder of a series.
    """
    made = [_scan(folder, number) for number in range(count)]
    if large[2]:
        write_volume(folder / "large.nii.gz", Volume(texture(large, 77)[None], grid(large)))
        made.append(folder / "large.nii.gz")
    for number in range(broken):
        _broken(folder / "broken", number, made[0] if made[0].is_file() else made[1])
    return made


def grid(shape: tuple[int, int, int]) -> Grid:
    """An axial grid, LPS as scanners store it."""
    return Grid(shape, np.diag([-SPACING_MM[0], -SPACING_MM[1], 3.0, 1.0]))


def texture(shape: tuple[int, int, int], seed: int) -> NDArray[np.int16]:
    """Make a body with structures of several sizes, and the noise of a scanner."""
    rng = np.random.default_rng(seed)
    i, j = (np.linspace(-1, 1, n) for n in shape[:2])
    slices = []
    for k in range(shape[2]):
        waves = np.add.outer(np.sin(i * (7 + seed % 5) + k / 9), np.cos(j * 5 + k / 7))
        body = np.where(np.add.outer(i**2, j**2) < 0.8, 1000 + 60 * waves, 0)
        slices.append((body + rng.normal(0, 12, shape[:2])).astype(np.int16))
    return np.stack(slices, axis=-1)


def _scan(folder: Path, number: int) -> Path:
    rows, columns = SIZES[number % len(SIZES)]
    shape = (columns, rows, 16 + number % 9)
    volume = Volume(texture(shape, number)[None], grid(shape), "MR")
    if number % 2:
        write_series(volume, folder / f"series_{number:03}", SeriesIdentity(f"P{number:03}"))
        return folder / f"series_{number:03}"
    write_volume(folder / f"scan_{number:03}.nii.gz", volume)
    return folder / f"scan_{number:03}.nii.gz"


def _broken(folder: Path, number: int, sound: Path) -> None:
    """Break in one of four ways: cut short, empty, other bytes, a slice of a series missing."""
    folder.mkdir(parents=True, exist_ok=True)
    name = folder / f"broken_{number:02}.nii.gz"
    match number % 4:
        case 0:
            name.write_bytes(sound.read_bytes()[:-5000])
        case 1:
            name.touch()
        case 2:
            content = bytearray(gzip.decompress(sound.read_bytes()))
            name.write_bytes(gzip.compress(bytes(content[: len(content) // 2]), 1))
        case _:
            shape = (160, 160, 16)
            volume = Volume(texture(shape, number)[None], grid(shape), "MR")
            write_series(volume, folder / f"gap_{number:02}", SeriesIdentity(f"B{number:03}"))[5].unlink()


def make_model(folder: Path, network: ModelConfig = DEFAULT, precision: str = "auto", steps: int = 0) -> Path:
    """Write a model folder: random weights, or what a few steps make of them, whose masks are solid, not noise."""
    import torch

    torch.manual_seed(0)
    prepare = Preparation("axial", SPACING_MM, (Channel("image", "percentile"),), context=1)
    built = build(network, prepare.in_channels, 2)
    learn(built, prepare, steps)
    description = ModelDescription(
        network=network,
        in_channels=prepare.in_channels,
        out_channels=2,
        labels={1: "tumour"},
        preparation=prepare.to_dict(),
        patch=(64, 64),
        predict=PredictConfig(precision=precision, device="cpu"),  # type: ignore[arg-type]  # one of its words
    )
    save_model(folder, description, built.state_dict())
    return folder


def learn(network: torch.nn.Module, prepare: Preparation, steps: int) -> None:
    """Teach a network to draw the brighter parts of the body, without their noise."""
    import torch
    from torch.nn import functional as F

    from medseg.prepare import prepared_blocks

    shape = (128, 128, 8)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(steps):
        voxels = texture(shape, step)
        images = next(prepared_blocks(Volume(voxels[None], grid(shape), "MR"), prepare, block=shape[2])).images
        smooth = F.avg_pool2d(images[:, prepare.context], 9, stride=1, padding=4)
        loss = F.cross_entropy(network(images), (smooth > smooth.quantile(0.8)).long())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

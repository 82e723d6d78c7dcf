"""Every metric beside MONAI's and SimpleITK's on random masks, and how long each takes on a large one.

python tests/benchmarks/agreement.py --pairs 500 --size 256 256 200
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its own name for itself
import torch
from monai import metrics
from numpy.typing import NDArray
from scipy import ndimage

from medseg.grid import Grid
from medseg.metrics import LabelScores, score_case
from medseg.volume import Labels, Mask

Bools = NDArray[np.bool_]
TOLERANCE_MM = 1.7


def pair(rng: np.random.Generator, n: int) -> tuple[Bools, Bools]:
    """Make two masks: anisotropic later, here touching borders, of one voxel, of many pieces, full, or empty."""
    shape = tuple(int(s) for s in rng.integers(3, 20, 3))
    field = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0.3, 1.6))
    a = field > np.quantile(field, 1 - rng.uniform(0.005, 0.4))
    b = [ndimage.shift(a, rng.integers(-2, 3, 3), order=0), rng.random(shape) < 0.05, ~a][n % 3]
    if n % 5 == 0:
        a = np.zeros(shape, bool)
        a[tuple(rng.integers(0, shape))] = True
    if n % 11 == 0:
        b = np.ones(shape, bool)
    if n % 13 == 0:
        b = np.zeros(shape, bool)
    return a, b


def ours(a: Bools, b: Bools, spacing: tuple[float, ...]) -> LabelScores:
    """Score by medseg."""
    grid = Grid((a.shape[0], a.shape[1], a.shape[2]), np.diag([*spacing, 1.0]))
    masks = (Mask(x.astype(np.uint8), grid) for x in (a, b))
    return score_case(*masks, Labels({1: "x"}), "case", tolerance_mm=TOLERANCE_MM).labels[0]


def monai(a: Bools, b: Bools, spacing: tuple[float, ...]) -> dict[str, float]:
    """Score by MONAI."""
    one, two = (torch.as_tensor(x[None, None].astype(np.float32)) for x in (a, b))
    found = {"dice": metrics.compute_dice(one, two), "iou": metrics.compute_iou(one, two)}
    if a.any() and b.any():
        options = {"include_background": True, "spacing": spacing}
        found |= {
            "hd95_mm": metrics.compute_hausdorff_distance(one, two, percentile=95, **options),
            "assd_mm": metrics.compute_average_surface_distance(one, two, symmetric=True, **options),
            "surface_dice": metrics.compute_surface_dice(one, two, [TOLERANCE_MM], **options),
        }
    return {name: float(value) for name, value in found.items()}


def itk(a: Bools, b: Bools) -> dict[str, float]:
    """Score overlap by SimpleITK."""
    measure = sitk.LabelOverlapMeasuresImageFilter()
    measure.Execute(*(sitk.GetImageFromArray(x.astype(np.uint8)) for x in (a, b)))
    return {
        "dice": measure.GetDiceCoefficient(1),
        "iou": measure.GetJaccardCoefficient(1),
        "sensitivity": 1 - measure.GetFalseNegativeError(1),
        "precision": 1 - measure.GetFalseDiscoveryRate(1),
    }


def agree(pairs: int) -> None:
    """Print the largest difference of each metric."""
    rng, largest, counts = np.random.default_rng(0), {}, {}
    for n in range(pairs):
        a, b = pair(rng, n)
        spacing = tuple(float(s) for s in rng.uniform(0.3, 5, 3))
        mine = ours(a, b, spacing)
        for source, theirs in (("MONAI", monai(a, b, spacing)), ("SimpleITK", itk(a, b) if (a & b).any() else {})):
            for name, value in theirs.items():
                own = mine.value(name)
                if own is None or np.isnan(value):
                    continue
                key = name, source
                largest[key], counts[key] = max(largest.get(key, 0.0), abs(own - value)), counts.get(key, 0) + 1
    print("| metric | beside | pairs | largest difference |\n|---|---|---|---|")
    for (name, source), value in sorted(largest.items()):
        print(f"| `{name}` | {source} | {counts[name, source]} | {value:.1e} |")


def race(size: list[int]) -> None:
    """Print seconds for one large pair."""
    axes = np.ogrid[tuple(slice(-1, 1, 1j * n) for n in size)]
    a = sum((x / 0.4) ** 2 for x in axes) < 1
    b = np.roll(a, 4, 0)
    spacing = (0.8, 0.8, 1.5)

    def seconds(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    mine, theirs = seconds(lambda: ours(a, b, spacing)), seconds(lambda: monai(a, b, spacing))
    shape = " x ".join(str(n) for n in size)
    print(f"{shape}: all metrics {mine:.2f} s; MONAI's five {theirs:.2f} s; ratio {theirs / mine:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--size", type=int, nargs=3, default=[256, 256, 200])
    given = parser.parse_args()
    agree(given.pairs)
    race(given.size)

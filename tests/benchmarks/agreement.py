"""Every metric beside other implementations on random masks, and how long each takes on large ones.

    python tests/benchmarks/agreement.py masks --pairs 500
    python tests/benchmarks/agreement.py speed --size 256 256 200

MONAI, SimpleITK and scikit-image come with the test packages; `pip install surface-distance` adds the fourth (0.1 was
used). "Arithmetic" is every distance between every two surface voxels in the world, without a tree or a crop.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its own name for itself
import torch
from monai import metrics
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import cdist
from skimage import measure

from medseg.grid import Grid
from medseg.metrics import LabelScores, score_case
from medseg.volume import Labels, Mask

Bools = NDArray[np.bool_]
TOLERANCE_MM = 1.7


def pair(rng: np.random.Generator, n: int) -> tuple[Bools, Bools]:
    """Make two masks: of a few or many pieces, touching borders, of one voxel, full, or empty."""
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


def oblique(rng: np.random.Generator, spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Make an affine that is turned, and sheared a little."""
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing) @ (np.eye(3) + np.triu(rng.uniform(-0.2, 0.2, (3, 3)), 1))
    return affine


def ours(a: Bools, b: Bools, affine: NDArray[np.float64]) -> LabelScores:
    """Score by medseg."""
    grid = Grid((a.shape[0], a.shape[1], a.shape[2]), affine)
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
    if not (a & b).any():
        return {}
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*(sitk.GetImageFromArray(x.astype(np.uint8)) for x in (a, b)))
    return {
        "dice": overlap.GetDiceCoefficient(1),
        "iou": overlap.GetJaccardCoefficient(1),
        "sensitivity": 1 - overlap.GetFalseNegativeError(1),
        "precision": 1 - overlap.GetFalseDiscoveryRate(1),
    }


def surface_distance(a: Bools, b: Bools, spacing: tuple[float, ...]) -> dict[str, float]:
    """Score by surface-distance; nothing when it is not installed, or when a mask is empty."""
    other = package("surface_distance")
    if other is None or not (a.any() and b.any()):
        return {}
    found = other.compute_surface_distances(b, a, spacing)
    return {
        "dice": float(other.compute_dice_coefficient(b, a)),
        "hd95_mm": float(other.compute_robust_hausdorff(found, 95)),
        "surface_dice": float(other.compute_surface_dice_at_tolerance(found, TOLERANCE_MM)),
        "assd_mm": float(np.mean(other.compute_average_surface_distance(found))),
    }


def package(name: str) -> Any:
    """Import what need not be installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def arithmetic(a: Bools, b: Bools, affine: NDArray[np.float64]) -> dict[str, float]:
    """Score by the definitions: plain counts, and every distance between two surface voxels."""
    p, r, both = float(a.sum()), float(b.sum()), float((a & b).sum())
    ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    found = {"reference_ml": r * ml, "prediction_ml": p * ml, "difference_ml": (p - r) * ml}
    pieces = {name: measure.label(x, connectivity=3) for name, x in (("a", a), ("b", b))}
    touched = {name: set(np.unique(labels[a & b])) - {0} for name, labels in pieces.items()}
    found |= {
        "lesions_found": float(len(touched["b"])),
        "lesions_missed": float(pieces["b"].max() - len(touched["b"])),
        "lesions_false": float(pieces["a"].max() - len(touched["a"])),
    }
    if not p + r:
        return found
    found |= {"dice": 2 * both / (p + r), "iou": both / (p + r - both)}
    found |= {"sensitivity": both / r} if r else {}
    found |= {"precision": both / p} if p else {}
    spacing = np.round(np.sqrt((affine[:3, :3] ** 2).sum(axis=0)), 3)
    axis = max(range(3), key=lambda n: (spacing[n], n))
    slices = [(x, y) for x, y in zip(np.moveaxis(a, axis, 0), np.moveaxis(b, axis, 0), strict=True) if (x | y).any()]
    found["slice_dice"] = float(np.mean([2 * (x & y).sum() / (x.sum() + y.sum()) for x, y in slices]))
    if p and r:
        cross = ndimage.generate_binary_structure(3, 1)
        surfaces = [x & ~ndimage.binary_erosion(x, cross) for x in (a, b)]
        every = cdist(*(np.argwhere(x) @ affine[:3, :3].T for x in surfaces))
        ways = every.min(axis=1), every.min(axis=0)
        joined = np.concatenate(ways)
        found["hd95_mm"] = float(max(np.percentile(way, 95) for way in ways))
        found["assd_mm"] = float(joined.mean())
        found["surface_dice"] = float((joined <= TOLERANCE_MM).mean())
    return found


def masks(pairs: int) -> None:
    """Print the largest and the median difference of each metric."""
    rng, differences = np.random.default_rng(0), defaultdict(list)
    for n in range(pairs):
        a, b = pair(rng, n)
        spacing = tuple(float(s) for s in rng.uniform(0.3, 5, 3))
        straight, turned = np.diag([*spacing, 1.0]), oblique(rng, spacing)
        mine, slanted = ours(a, b, straight), ours(a, b, turned)
        for source, scores, theirs in (
            ("MONAI", mine, monai(a, b, spacing)),
            ("SimpleITK", mine, itk(a, b)),
            ("surface-distance", mine, surface_distance(a, b, spacing)),
            ("arithmetic, oblique", slanted, arithmetic(a, b, turned)),
        ):
            for name, value in theirs.items():
                own = scores.value(name)
                if own is not None and not np.isnan(value):
                    differences[name, source].append(abs(own - value))
    print("| metric | beside | pairs | largest difference | median difference |\n|---|---|---|---|---|")
    for (name, source), found in sorted(differences.items()):
        print(f"| `{name}` | {source} | {len(found)} | {max(found):.1e} | {np.median(found):.1e} |")


def speed(size: list[int]) -> None:
    """Print processor seconds of HD95 and surface Dice together, for masks of three kinds in one large volume."""
    spacing = (0.8, 0.8, 1.5)
    axes = np.ogrid[tuple(slice(-1, 1, 1j * n) for n in size)]
    rng = np.random.default_rng(0)
    spots = ndimage.gaussian_filter((rng.random(tuple(size)) < 2e-6).astype(np.float32), 3) > 1e-3
    kinds = {
        "tumour": sum((x / 0.1) ** 2 for x in axes) < 1,
        "organ": sum((x / 0.5) ** 2 for x in axes) < 1,
        "many pieces": spots,
    }
    print(
        "| mask | voxels of it | medseg, all metrics | MONAI | surface-distance | ratios |\n|---|---|---|---|---|---|"
    )
    for name, a in kinds.items():
        b = np.roll(a, 4, 0)
        mine = seconds(lambda a=a, b=b: ours(a, b, np.diag([*spacing, 1.0])))
        theirs = seconds(lambda a=a, b=b: two_by_monai(a, b, spacing))
        other = seconds(lambda a=a, b=b: two_by_surface_distance(a, b, spacing))
        ratios = f"{theirs / mine:.1f}, {other / mine:.1f}"
        print(f"| {name} | {int(a.sum())} | {mine:.2f} s | {theirs:.2f} s | {other:.2f} s | {ratios} |", flush=True)


def two_by_monai(a: Bools, b: Bools, spacing: tuple[float, ...]) -> None:
    """HD95 and surface Dice by MONAI."""
    one, two = (torch.as_tensor(x[None, None].astype(np.float32)) for x in (a, b))
    options = {"include_background": True, "spacing": spacing}
    metrics.compute_hausdorff_distance(one, two, percentile=95, **options)
    metrics.compute_surface_dice(one, two, [TOLERANCE_MM], **options)


def two_by_surface_distance(a: Bools, b: Bools, spacing: tuple[float, ...]) -> None:
    """HD95 and surface Dice by surface-distance."""
    other = package("surface_distance")
    if other is not None:
        found = other.compute_surface_distances(b, a, spacing)
        other.compute_robust_hausdorff(found, 95)
        other.compute_surface_dice_at_tolerance(found, TOLERANCE_MM)


def seconds(work: Callable[[], object]) -> float:
    """Return the processor seconds of the faster of two runs."""
    found = []
    for _ in range(2):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("masks", "speed"))
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--size", type=int, nargs=3, default=[256, 256, 200])
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.table == "masks":
        masks(given.pairs)
    else:
        speed(given.size)

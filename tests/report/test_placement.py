"""Planted faults: each is refused, counted or told, and no mean is quietly wrong (table in docs/metrics.md)."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.grid import Grid
from medseg.io.nifti import write_mask
from medseg.report import evaluate
from medseg.report.placement import PLACES, other_places, suspicions
from medseg.volume import Labels, Mask

SHAPE = (20, 18, 12)
AFFINE = np.array([[-1.0, 0, 0, 9], [0, -1.2, 0, 8], [0, 0, 3.0, -5], [0, 0, 0, 1.0]])  # LPS, as most scans are
GRID = Grid(SHAPE, AFFINE)
TUMOUR = Labels({1: "tumour"})


def block(start=(2, 3, 4), size=(6, 6, 4), grid=GRID, number=1) -> Mask:
    labels = np.zeros(SHAPE, np.uint8)
    labels[tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))] = number
    return Mask(labels, grid)


def moved(column: np.ndarray) -> Grid:
    affine = AFFINE.copy()
    affine[:3, 3] += column
    return Grid(SHAPE, affine)


MIRROR = np.diag([-1.0, 1, 1, 1])
EMPTY = Mask(np.zeros(SHAPE, np.uint8), GRID)

FAULTS = {
    "header flipped left to right": (block(grid=Grid(SHAPE, MIRROR @ AFFINE)), "refused", "MASK-GRID"),
    "header one voxel aside": (block(grid=moved(np.array([1.0, 0, 0]))), "refused", "MASK-GRID"),
    "another grid": (Mask(np.ones((5, 5, 5), np.uint8), Grid((5, 5, 5), AFFINE)), "refused", "MASK-GRID"),
    "unknown label": (block(number=7), "refused", "MASK-VALUES"),
    "missing": (None, "missed", 0.0),
    "empty": (EMPTY, "missed", 0.0),
    "voxels flipped left to right": (Mask(block().labels[::-1].copy(), GRID), "missed", 0.0),
    "voxels one aside": (block(start=(3, 3, 4)), "hit", 5 / 6),
    "turned, header and voxels": (
        Mask(block().labels[::-1].copy(), Grid(SHAPE, AFFINE @ np.array([[-1, 0, 0, 19], *np.eye(4)[1:]]))),
        "hit",
        1.0,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_refused_or_counted(tmp_path, fault):
    planted, outcome, wanted = FAULTS[fault]
    for name in ("a", "b", "planted"):
        write_mask(tmp_path / "references" / f"{name}.nii.gz", block())
        if name != "planted":
            write_mask(tmp_path / "masks" / f"{name}.nii.gz", block())
    write_mask(tmp_path / "masks" / "extra.nii.gz", block())
    if planted is not None:
        write_mask(tmp_path / "masks" / "planted.nii.gz", planted)
    report = evaluate(tmp_path / "masks", tmp_path / "references", tmp_path / "out", labels=TUMOUR, pictures=0)
    result = report.label("tumour")
    assert report.unreferenced == ("extra",)
    assert report.complete is (outcome != "refused" and planted is not None)
    if outcome == "refused":
        assert [refusal.code for refusal in report.refused] == [wanted]
        assert (result.summary("dice").mean, result.if_refused_counted) == (1.0, pytest.approx(2 / 3))
    else:
        assert result.summary("dice").mean == pytest.approx((2 + wanted) / 3)
        assert result.outcomes[outcome] == (3 if outcome == "hit" else 1)
    assert any("Flipped?" in warning for warning in report.warnings) is (fault == "voxels flipped left to right")


def test_both_empty_is_counted_and_not_scored(tmp_path):
    for name in ("a", "b", "nothing"):
        write_mask(tmp_path / "references" / f"{name}.nii.gz", EMPTY if name == "nothing" else block())
        write_mask(tmp_path / "masks" / f"{name}.nii.gz", EMPTY if name == "nothing" else block(start=(3, 3, 4)))
    report = evaluate(tmp_path / "masks", tmp_path / "references", tmp_path / "out", labels=TUMOUR, pictures=0)
    result = report.label("tumour")
    assert (result.summary("dice").mean, result.summary("dice").cases) == (pytest.approx(5 / 6), 2)
    assert result.outcomes == {"hit": 2, "missed": 0, "false alarm": 0, "truly empty": 1}


@pytest.mark.parametrize(("axis", "way"), [(0, "left to right"), (1, "front to back"), (2, "head to feet")])
def test_each_mirror_is_told_by_its_name(axis, way):
    reference = block(start=(2, 3, 1))
    flipped = Mask(np.flip(reference.labels, axis).copy(), GRID)
    (said,) = suspicions({"a": other_places(flipped, reference), "b": other_places(reference, reference)})
    assert said.startswith(f"Flipped? 1 of 2 masks would fit far better mirrored {way} (Dice 1.00 instead of ")
    assert ": a. They count" in said


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("step", [1, -1])
def test_masks_that_are_all_one_voxel_aside_are_told_where_they_belong(axis, step):
    # The grid counts to the left, to the front and to the head... of which the first two run against RAS.
    ways = (("left", "right"), ("front", "back"), ("head", "feet"))
    positive = {0: "left", 1: "back" if AFFINE[1, 1] < 0 else "front", 2: "head"}[axis]
    other = next(b if a == positive else a for a, b in ways if positive in (a, b))
    back = other if step == 1 else positive  # a mask that lies too far one way belongs further the other
    found = {}
    for n in range(12):
        reference, start = block(size=(6, 5 + n % 2, 4)), [2, 3, 4]
        start[axis] += step
        found[str(n)] = other_places(block(start=tuple(start), size=(6, 5 + n % 2, 4)), reference)
    (said,) = suspicions(found)
    assert f"12 of 12 masks would fit better one voxel further to the {back} (mean Dice" in said
    assert "1.000 instead of" in said


def test_scatter_and_symmetry_are_not_suspected():
    rng = np.random.default_rng(0)
    found = {str(n): other_places(block(start=tuple(rng.integers(1, 4, 3))), block(start=(2, 2, 2))) for n in range(40)}
    found["empty"] = other_places(EMPTY, block())
    assert suspicions(found) == []
    middle = block(start=(7, 6, 4))  # symmetric left to right: mirrored it is as good, not better
    assert suspicions({str(n): other_places(middle, middle) for n in range(20)}) == []
    assert suspicions({}) == []


def test_dice_of_the_other_places_by_hand():
    # 6 x 6 x 4 voxels, in RAS order from (12, 9, 4) of (20, 18, 12); mirrored along x they begin at 2: apart.
    dice = other_places(block(), block())
    assert dice.shape == (1 + len(PLACES),)
    # Along y from 9 to 15, mirrored from 3 to 9: apart; along z from 4 to 8, mirrored the same: 1.
    assert dice[:4].tolist() == [1, 0, 0, 1]
    assert dice[4:] == pytest.approx([5 / 6, 5 / 6, 5 / 6, 5 / 6, 3 / 4, 3 / 4])

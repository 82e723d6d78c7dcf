"""How well the estimates of Dice without a reference rank the true Dice of held-out cases.

python tests/benchmarks/estimates.py --model run --scans validation_scans --references validation_masks

A folder or file of `--scans` and the reference in `--references` pair by name; `--cases` is a JSON file with the list
`validation` of names, as `data.split` takes it, when there are others beside them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from medseg.config import PredictConfig
from medseg.grid import Grid
from medseg.io.nifti import read_mask
from medseg.metrics import score_case
from medseg.models.model_folder import Model, load_model
from medseg.prediction import Predictor
from medseg.quality import LOW_DICE, shifted
from medseg.scan import find_scans, read
from medseg.training.calibration import offset
from medseg.volume import Mask

Row = dict[str, float]


def main() -> None:
    """Predict every case with and without mirroring, and print the ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--scans", type=Path, required=True)
    parser.add_argument("--references", type=Path, required=True)
    parser.add_argument("--cases", type=Path)
    given = parser.parse_args()
    references = {path.name.split(".")[0]: path for path in sorted(given.references.glob("*.nii*"))}
    chosen = set(json.loads(given.cases.read_text())["validation"]) if given.cases else set(references)
    model = load_model(given.model)
    scans = {path.name.split(".")[0]: path for path in given.scans.iterdir()}
    rows = {name: row_of(model, scans[name], path) for name, path in references.items() if name in chosen}
    kinds = ["dice", "expected", "mirrored dice", "mirrored expected", "mirrored between"]
    print("| case | " + " | ".join(kinds) + " |\n|---|" + "---|" * len(kinds))
    for name, row in sorted(rows.items(), key=lambda item: item[1]["dice"]):
        print(f"| {name} | " + " | ".join(f"{row[kind]:.3f}" for kind in kinds) + " |")
    for truth, estimate in (("dice", kinds[1]), ("mirrored dice", kinds[3]), ("mirrored dice", kinds[4])):
        columns = [np.array([row[kind] for row in rows.values()]) for kind in (truth, estimate)]
        print(f"{estimate}: {ranks(*columns)}")
    told_of_calibration(*(np.array([row[kind] for row in rows.values()]) for kind in ("dice", "expected")))


def told_of_calibration(truth: NDArray[np.float64], expected: NDArray[np.float64]) -> None:
    """Print how far off the expected Dice is, and whom it flags, as it is and calibrated on all other cases."""
    others = [np.arange(len(truth)) != number for number in range(len(truth))]
    apart = [shifted(dice, offset(expected[rest], truth[rest])) for dice, rest in zip(expected, others, strict=True)]
    low = truth < LOW_DICE
    for name, estimate in (("as it is", expected), ("calibrated on the others", np.array(apart))):
        flagged, off = estimate < LOW_DICE, float(np.mean(np.abs(estimate - truth)))
        print(
            f"{name}: off by {off:.3f} in the mean; flagged {np.sum(flagged & low)} of {np.sum(low)} below {LOW_DICE}, "
            f"{np.sum(flagged & ~low)} of {np.sum(~low)} above"
        )


def row_of(model: Model, scan: Path, reference: Path) -> Row:
    """Return the true Dice of one case (the mean over its labels) and every estimate of it."""
    volume = read(next(found for found in find_scans(scan) if found.usable))
    row: Row = {}
    for prefix, mirror in (("", False), ("mirrored ", True)):
        settings = PredictConfig(engine="torch", precision="fp32", device="cpu", mirror=mirror)
        found = Predictor(model, settings).predict(volume)
        truth = on_grid(read_mask(reference), volume.grid)
        scores = score_case(found.mask, truth, model.labels, reference.name, tolerance_mm=2)
        values = [each.value("dice") for each in scores.labels]
        row[f"{prefix}dice"] = float(np.mean([value for value in values if value is not None]))
        row[f"{prefix}expected"] = float(np.mean(list(found.agreement.expected.values())))
        row[f"{prefix}between"] = float(np.mean(list(found.agreement.between.values()) or [np.nan]))
    return row


def on_grid(mask: Mask, grid: Grid) -> Mask:
    """Return a mask of the same place in the axis order of `grid`."""
    order = mask.grid.order_onto(grid)
    if order is None:
        raise SystemExit(f"a reference does not lie on its scan: {mask.grid.shape}, {grid.shape}")
    return Mask(np.ascontiguousarray(order.apply(mask.labels)), grid)


def ranks(truth: NDArray[np.float64], estimate: NDArray[np.float64]) -> str:
    """Return Spearman's correlation with its permutation test, and by how much the estimate is off in the mean."""
    found = stats.spearmanr(truth, estimate)

    def correlation(order: NDArray[np.float64]) -> float:
        return float(stats.spearmanr(order, estimate).statistic)

    test = stats.permutation_test((truth,), correlation, permutation_type="pairings", n_resamples=9999, rng=0)
    off = float(np.mean(estimate - truth))
    return (
        f"Spearman {found.statistic:.2f} (p {test.pvalue:.4f}, {len(truth)} cases), too high by {off:.2f} in the mean"
    )


if __name__ == "__main__":
    main()

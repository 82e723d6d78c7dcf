"""What the Dice that a model expects of its own masks is worth: learned from the validation cases, after training.

One number for each label, added to the log odds, such that the expected Dice is right in the mean (recalibration "in
the large": Cox 1958; Steyerberg, Clinical Prediction Models, 2009, chapter 20). It is the least that corrects a network
that is too sure or not sure enough, it cannot turn the order of cases, and few cases suffice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from medseg.quality import shifted
from medseg.report import Report
from medseg.run_file import RUN, RunFile

FEWEST = 3
"""Cases that hold a label in mask and reference: the log odds of a single case lie about 0.5 beside those of the others
(sarcoma), a mean of three is within 0.3, less than what is to be corrected (0.8 there, 2 after a short training)."""

LIMIT = 10.0
"""Of an offset: it makes 0.00005 of 0.5."""


def dice_offsets(report: Report, folders: Sequence[Path]) -> dict[str, float]:
    """Return what calibrates the expected Dice, by label; a label with few cases has no entry.

    Args:
        report: of the validation cases.
        folders: with their masks, predicted by networks without offsets, and the `run.json` that holds what was
            expected.
    """
    files = [RunFile(folder / RUN) for folder in folders]
    reviews = {
        case.case: review for case in report.cases for file in files if (review := file.review(case.case)) is not None
    }
    found = {}
    for name in report.labels.values():
        pairs = [
            (reviews[case.case].expected_dice[name], dice)
            for case in report.cases
            if case.case in reviews and name in reviews[case.case].expected_dice
            if (dice := case.label(name).dice) is not None
        ]
        if len(pairs) >= FEWEST:
            expected, reached = np.array(pairs).T
            found[name] = round(offset(expected, reached), 4)
    return found


def offset(expected: NDArray[np.float64], reached: NDArray[np.float64]) -> float:
    """Return the number which, added to the log odds of the expected Dice, makes their mean that of the reached."""

    def excess(number: float) -> float:
        return float(np.mean([shifted(dice, number) for dice in expected]) - np.mean(reached))

    if excess(-LIMIT) >= 0:
        return -LIMIT
    return float(brentq(excess, -LIMIT, LIMIT)) if excess(LIMIT) > 0 else LIMIT

"""Calibration of the expected Dice: one number for each label, worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.case_work import Done
from medseg.metrics import CaseScores, LabelScores
from medseg.quality import calibrated, shifted
from medseg.report.results import Report, summarise
from medseg.review import Review
from medseg.run_file import RUN, RunFile
from medseg.training.calibration import LIMIT, dice_offsets, offset
from medseg.volume import Labels

DICE = st.lists(st.floats(0.01, 0.99), min_size=1, max_size=20)


def test_an_offset_by_hand() -> None:
    """Odds of 1 (Dice 0.5) must become odds of 4 (Dice 0.8)."""
    assert offset(np.array([0.5, 0.5]), np.array([0.7, 0.9])) == pytest.approx(math.log(4))
    assert offset(np.array([0.8]), np.array([0.5])) == pytest.approx(-math.log(4))


@settings(max_examples=30)
@given(DICE, st.floats(-3, 3))
def test_what_was_shifted_is_found_again(expected: list[float], number: float) -> None:
    values = np.array(expected)
    assert offset(values, shifted_all(values, number)) == pytest.approx(number, abs=1e-6)


@settings(max_examples=30)
@given(DICE, DICE)
def test_the_mean_is_right_afterwards(expected: list[float], reached: list[float]) -> None:
    values = np.array(expected)
    found = offset(values, np.array(reached))
    assert np.mean(shifted_all(values, found)) == pytest.approx(np.mean(reached), abs=1e-6)


def shifted_all(values: np.ndarray, number: float) -> np.ndarray:
    return np.array([shifted(value, number) for value in values])


def test_ends_stay_and_nothing_is_without_bound() -> None:
    assert calibrated({"a": 0.0, "b": 1.0, "c": 0.5, "d": 0.3}, {"a": 2, "b": -2, "c": math.log(3)}) == {
        "a": 0,
        "b": 1,
        "c": pytest.approx(0.75),
        "d": 0.3,
    }
    assert offset(np.array([0.5]), np.array([0.0])) == -LIMIT
    assert offset(np.array([0.5]), np.array([1.0])) == LIMIT
    assert offset(np.array([1.0]), np.array([0.5])) == -LIMIT  # which changes nothing


def validated(folder: Path, cases: dict[str, tuple[float | None, float | None]]) -> Report:
    """Write what a batch remembers, and return the report: expected and reached Dice of each case."""
    file = RunFile(folder / RUN)
    scores = []
    for case, (expected, reached) in cases.items():
        told = {} if expected is None else {"tumour": expected}
        file.remember(case, Done("key", "hash", Review((), {}, told).to_dict()))
        scores.append(CaseScores(case, (LabelScores("tumour", "hit", dice=reached),)))
    folder.mkdir()
    file.save({"versions": {}})
    return summarise(Labels({1: "tumour"}), 1.0, scores)


def test_the_validation_cases_tell(tmp_path: Path) -> None:
    """Those without an estimate (an empty mask) or without a score (both empty) say nothing."""
    cases = {"a": (0.5, 0.7), "b": (0.5, 0.8), "c": (0.5, 0.9), "empty": (None, 0.0), "nothing": (0.1, None)}
    report = validated(tmp_path / "masks", cases)
    assert dice_offsets(report, [tmp_path / "masks"]) == {"tumour": round(math.log(4), 4)}


def test_few_cases_tell_nothing(tmp_path: Path) -> None:
    report = validated(tmp_path / "masks", {"a": (0.5, 0.7), "b": (0.5, 0.8)})
    assert dice_offsets(report, [tmp_path / "masks"]) == {}
    assert dice_offsets(report, [tmp_path / "nowhere"]) == {}

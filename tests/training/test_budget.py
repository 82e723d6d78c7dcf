"""A time becomes a number of steps once, and the run is then like any other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from medseg.case import Case
from medseg.config import Config, TrainConfig, load
from medseg.config.duration import seconds, written
from medseg.errors import RunError
from medseg.models import Network, build
from medseg.training import budget as budget_module
from medseg.training import run as run_module
from medseg.training import train
from medseg.training.budget import Pace, rehearse, within_budget
from medseg.training.loop import LoopOptions
from tests.studies import nifti_study, settings
from tests.training.test_loop import Blobs
from tests.training.test_run import equal, refused

PACE = Pace(step_s=0.5, close_s=1.0, validation_s=9.0, scoring_s=30.0)


def fixed(left_s: float = 600, pace: Pace = PACE, budget: str = "10m", **given: int) -> tuple[int, int]:
    config = within_budget(budget, left_s, pace, TrainConfig(**given))  # type: ignore[arg-type]
    assert config.epochs is not None
    assert config.steps_per_epoch is not None
    return config.epochs, config.steps_per_epoch


def test_durations() -> None:
    assert [seconds(text) for text in ("90s", "10m", "1h30m", "2h", "1h2m3s")] == [90, 600, 5400, 7200, 3723]
    for total in (1, 59, 60, 61, 3600, 3661, 86399):
        assert seconds(written(total)) == total
    assert written(59.2) == "1m"
    for text in ("", "10", "0s", "m", "1.5h", "10 m", "5m1h", "-5m"):
        with pytest.raises(ValueError, match="wanted a duration such as"):
            seconds(text)


@pytest.mark.parametrize("value", ["10", "soon", "0m", "600"])
def test_a_budget_that_is_no_duration_is_a_fault_of_the_configuration(tmp_path: Path, value: str) -> None:
    (tmp_path / "study.yaml").write_text(f"budget: {value}\n")
    with pytest.raises(Exception, match=rf"study.yaml:1: budget: '{value}', wanted a duration"):
        load(tmp_path / "study.yaml")


def test_time_is_shared_out_by_hand() -> None:
    # 600 - 30 for scoring - 5 % of 600 leaves 540 s. 8 % of it buys 4 rounds of 10 s (4.3); an epoch is 135 s,
    # less its round 125 s: 250 steps of 0.5 s.
    assert fixed() == (4, 250)
    # Validated every second epoch, a round costs 1 + 9 / 2 = 5.5 s: 7 epochs of 77.14 - 5.5 s.
    assert fixed(validate_every=2) == (7, 143)
    # What is given stays: 5 epochs of 108 - 10 s; epochs of 100 steps take 50 + 10 s.
    assert fixed(epochs=5) == (5, 196)
    assert fixed(steps_per_epoch=100) == (9, 100)


def test_validations_are_neither_many_nor_few() -> None:
    fast = Pace(step_s=0.01, close_s=0.1, validation_s=0.1, scoring_s=1.0)
    assert fixed(pace=fast)[0] == 25  # not thousands
    assert fixed(left_s=57, pace=fast, budget="1m")[0] == 5  # none shorter than ten seconds
    slow = Pace(step_s=0.5, close_s=1.0, validation_s=80.0, scoring_s=30.0)
    assert fixed(pace=slow)[0] == 3  # an epoch is a third at the most
    assert fixed(pace=Pace(0.5, 1.0, 200.0, 30.0))[0] == 1  # unless there is no time for three validations


@pytest.mark.parametrize("left_s", [60, 200, 600, 5000])
@pytest.mark.parametrize("pace", [PACE, Pace(0.2, 0.5, 0.0, 0.0), Pace(0.9, 3.0, 1.0, 2.0)])
def test_the_plan_keeps_the_budget_and_uses_it(left_s: float, pace: Pace) -> None:
    try:
        epochs, steps = fixed(left_s=left_s, pace=pace)
    except RunError:
        assert left_s - pace.scoring_s - 30 < 50 * pace.step_s + pace.close_s + pace.validation_s
        return
    planned = epochs * (steps * pace.step_s + pace.close_s + pace.validation_s) + pace.scoring_s
    assert left_s - 30 - epochs * pace.step_s - 1e-6 <= planned <= left_s - 30


@pytest.mark.parametrize(
    ("left_s", "given"), [(-5, {}), (30, {}), (70, {}), (600, {"epochs": 60}), (600, {"steps_per_epoch": 5000})]
)
def test_too_small_a_budget_says_what_would_do(left_s: float, given: dict[str, int]) -> None:
    with pytest.raises(RunError, match=r"Give budget=\w+ or more") as caught:
        fixed(left_s=left_s, **given)
    assert caught.value.code == "RUN-BUDGET"
    enough = str(caught.value).partition("budget=")[2].partition(" ")[0]
    more = seconds(enough) - seconds("10m")
    assert more > 0
    epochs, steps = fixed(left_s=left_s + more, budget=enough, **given)
    assert epochs * steps >= 50


class Slow(Blobs):
    """Batches that take a while."""

    asked: list[tuple[int, int]]

    def batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        time.sleep(0.03)
        self.asked.append((epoch, step))
        assert step < self.count
        return super().batch(epoch, step)


def test_a_rehearsal_times_the_loop_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[int] = []

    def score(network: Network, cases: Sequence[Case], folder: Path) -> None:
        assert not list(folder.iterdir())  # finished masks would be used again
        (folder / "mask").write_text("a file")
        scored.append(len(cases))
        time.sleep(0.1 + 0.02 * len(cases))

    data = Slow(steps=3)
    data.asked = []
    network = build(settings(tmp_path).model, 1, 2)
    options = LoopOptions(tmp_path, torch.device("cpu"), resume=True)
    cases: list[Case] = [Case(f"c{number}", "g", ()) for number in range(11)]
    config = settings(tmp_path, schedule="polynomial").train
    pace = rehearse(network, data, None, config, options, score, cases, "25s")
    assert 0.03 < pace.step_s < 0.3
    assert pace.validation_s == 0
    assert len(set(data.asked)) > 3  # a small data set goes round, with other batches
    assert scored[:2] == [1, 1]  # the first one loads what the others find loaded
    assert 2 <= scored[2] <= 3  # as many as go into 0.3 s, at 0.12 s, beside the first
    assert scored[2:] == 2 * [scored[2]]
    assert 0.1 + 11 * 0.01 <= pace.scoring_s < 2
    assert list(tmp_path.iterdir()) == []
    scored.clear()
    pace = rehearse(network, data, None, config, options, score, cases, "60s")
    assert scored == [1]  # 11 times 0.12 s are cheap enough in a minute
    assert 1.3 < pace.scoring_s < 3


@pytest.mark.parametrize(("sizes", "like_the_first"), [((1, 1, 1), 3), ((1, 5, 6), 12), ((8, 1, 1), 1.5)])
def test_scoring_is_estimated_by_the_size_of_the_cases(
    sizes: tuple[int, ...], like_the_first: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter((0.0, 2.0))
    monkeypatch.setattr(budget_module, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    cases: Any = [SimpleNamespace(voxels=size) for size in sizes]
    network = build(settings(tmp_path).model, 1, 2)
    found = budget_module._scoring(network, lambda *args: None, cases, tmp_path, part_s=1, cheap_s=100)
    assert found == 2 * like_the_first


def told_pace(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []

    def instead(*args: object) -> Pace:
        asked.append(str(args[-1]))
        return Pace(step_s=0.5, close_s=0.0, validation_s=10.0, scoring_s=0.0)

    monkeypatch.setattr(run_module, "rehearse", instead)
    monkeypatch.setattr(budget_module, "SPARE", 0.0)
    monkeypatch.setattr(run_module, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    return asked


def with_budget(study: Path, budget: str, **changes: object) -> Config:
    return settings(study, epochs=None, **changes).model_copy(update={"budget": budget})


def test_a_run_with_a_budget_is_the_run_with_those_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = nifti_study(tmp_path / "study")
    asked = told_pace(monkeypatch)
    config = with_budget(study, "50s")
    result = train(config, tmp_path / "run")
    # 50 s, a round takes 10 s: 6 of them would take more than all of it, so that there is one epoch of 80 steps.
    assert asked == ["50s"]
    assert len(result.fitted.epochs) == 1
    stored = load(tmp_path / "run" / "config.yaml")
    assert (stored.budget, stored.train.epochs, stored.train.steps_per_epoch) == ("50s", 1, 80)
    plain = settings(study, epochs=1, steps_per_epoch=80)
    train(plain, tmp_path / "plain")
    assert equal(tmp_path / "run", tmp_path / "plain")

    again = train(config, tmp_path / "run", resume=True)  # decided once: nothing is timed again
    assert asked == ["50s"]
    assert again.fitted.best_epoch == result.fitted.best_epoch
    error = refused(with_budget(study, "60s"), tmp_path / "run", resume=True)
    assert (error.code, "budget was 50s, now 60s" in str(error)) == ("RUN-RESUME", True)


def test_without_a_budget_there_are_forty_epochs(tmp_path: Path) -> None:
    study = nifti_study(tmp_path / "study")
    result = train(settings(study, epochs=None, patience=1, learning_rate=1e-9), tmp_path / "run")
    assert load(tmp_path / "run" / "config.yaml").train.epochs == 40
    assert len(result.fitted.epochs) < 40  # out of patience: it learns nothing

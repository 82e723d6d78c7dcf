"""Slices become coarser where a budget is short, and only as far as the training labels allow."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg.check import Examination
from medseg.config import Config, PrepareConfig, load
from medseg.config.networks import UNetConfig
from medseg.config.settings import StartConfig
from medseg.fingerprint import fingerprint
from medseg.models import build
from medseg.training import plan as plan_module
from medseg.training import run as run_module
from medseg.training import train
from medseg.training.budget import Pace
from medseg.training.folds import train_folds
from medseg.training.plan import Plan, make_plan
from medseg.training.resolution import factors, may_be_coarser, step_seconds, steps_within
from tests.studies import settings

CPU = torch.device("cpu")


def open_settings(study: Path, budget: str | None = "10m", **changes: Any) -> Config:
    model = UNetConfig(widths=None, norm="instance")
    config = settings(study, epochs=None, **{"model": model, "patch": None, **changes})
    return config.model_copy(update={"budget": budget})


def thick(found: Examination, *chord: float) -> Examination:
    """The same cases with one label of this thickness along x, y, z."""
    x, y, z = chord
    measures = {name: replace(case, label_chords_mm=((x, y, z),)) for name, case in found.measures.items()}
    return replace(found, measures=measures)


def planned(study: Path, found: Examination, step_s: float, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Plan:
    """The plan of a machine that takes so long for a step at the cases' own spacing of 1 mm."""
    monkeypatch.setattr(plan_module, "step_seconds", lambda *args: step_s)
    return make_plan(open_settings(study, **changes), found, CPU)


def test_labels_keep_eight_pixels(study: Path, found: Examination) -> None:
    plan = make_plan(open_settings(study), found)

    def allowed(*chord: float) -> tuple[float, ...]:
        measured = fingerprint(list(thick(found, *chord).measures.values()), plan.config)
        return factors(measured, plan.preparation)

    assert allowed(100, 100, 1) == (1.25, 1.5)  # across the slices nothing is resampled
    assert allowed(10, 100, 100) == allowed(100, 10, 100) == (1.25,)
    assert allowed(9.9, 9.9, 100) == ()
    absent = replace(fingerprint(list(found.measures.values()), plan.config), labels=())
    assert factors(absent, plan.preparation) == ()


def test_spacing_stays_unless_it_is_open_and_a_time_is_named(study: Path) -> None:
    config = open_settings(study)
    assert may_be_coarser(config)
    assert may_be_coarser(open_settings(study, steps_per_epoch=10))
    assert not may_be_coarser(open_settings(study, budget=None))
    assert not may_be_coarser(open_settings(study, prepare=PrepareConfig(spacing_mm=(1, 1))))
    assert not may_be_coarser(open_settings(study, patch=(16, 16)))
    assert not may_be_coarser(config.model_copy(update={"start": StartConfig(model=Path("model"))}))
    both = config.train.model_copy(update={"epochs": 2, "steps_per_epoch": 5})
    assert not may_be_coarser(config.model_copy(update={"train": both}))


def test_steps_of_a_budget_by_hand(study: Path) -> None:
    config = open_settings(study)
    assert steps_within(config, 0.5) == 960  # 0.8 x 600 / 0.5
    assert steps_within(config.model_copy(update={"folds": 5}), 0.5) == 192


def test_the_finest_slices_with_enough_steps_are_taken(
    study: Path, found: Examination, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = thick(found, 100, 100, 100)
    told = make_plan(open_settings(study), cases)  # nothing is timed without a device
    assert told.config.prepare.spacing_mm == (1, 1)
    assert told.reasons["prepare.spacing_mm"].endswith(
        "; where it is left open, a run for which 10m is short takes more"
    )
    fine = planned(study, cases, 0.96, monkeypatch)  # 480 s, 500 steps
    assert fine.config.prepare.spacing_mm == (1, 1)
    assert fine.reasons["prepare.spacing_mm"] == "median of 3 training cases (all alike)"
    # 24 x 20 pixels in multiples of 4 at 1 mm, 20 x 16 at 1.25 mm (19.2 x 16): 480 and 320 pixels, so that steps take
    # two thirds of the time. 360 steps become 540.
    coarse = planned(study, cases, 480 / 360, monkeypatch)
    assert coarse.config.prepare.spacing_mm == coarse.preparation.spacing_mm == (1.25, 1.25)
    assert coarse.config.train.patch == (20, 16)
    why = coarse.reasons["prepare.spacing_mm"]
    assert why.startswith("1.25 times the median of 3 training cases (all alike); ")
    assert why.endswith("; 10m has room for about 540 steps so, for 360 at the median itself")


def test_without_enough_steps_anywhere_the_cheapest_slices_are_taken(
    study: Path, found: Examination, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = UNetConfig(widths=(8, 16), norm="instance")
    plan = planned(study, thick(found, 100, 100, 100), 100, monkeypatch, model=model)
    assert plan.config.prepare.spacing_mm == (1.5, 1.5)
    plan = planned(study, thick(found, 11, 100, 100), 100, monkeypatch, model=model)
    assert plan.config.prepare.spacing_mm == (1.25, 1.25)  # the labels allow no more
    # Left open, the network is wider for slices of 16 x 13 pixels: one step of it would take longer.
    plan = planned(study, thick(found, 100, 100, 100), 100, monkeypatch)
    assert plan.config.prepare.spacing_mm == (1.25, 1.25)
    thin = planned(study, thick(found, 9, 100, 100), 100, monkeypatch)
    assert thin.config.prepare.spacing_mm == (1, 1)
    monkeypatch.setattr(plan_module, "LARGEST_PATCH", 4)  # of whatever slices the patch is the same: no step is saved
    assert planned(study, thick(found, 100, 100, 100), 100, monkeypatch).config.prepare.spacing_mm == (1, 1)


def test_a_step_on_noise_is_timed(study: Path, found: Examination, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(open_settings(study, budget=None), found, CPU)
    network = build(plan.config.model, plan.preparation.in_channels, plan.out_channels)
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def timed(budget: str, **changes: Any) -> float:
        train = plan.config.train.model_copy(update=changes)
        return step_seconds(network, plan.config.model_copy(update={"train": train, "budget": budget}), CPU)

    for precision in ("fp32", "bf16"):
        assert 0 < timed("10m", precision=precision) < 60
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    ticks = iter(range(100))
    monkeypatch.setattr("medseg.training.resolution.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert timed("10m") == 1
    assert next(ticks) == 8  # four steps, the first to warm up
    assert timed("10s") == 1
    assert next(ticks) == 11  # one: a second is more than 2 % of ten
    assert timed("10m", batch_size=10**12) == math.inf  # the loop will say what is too large


def test_folds_of_one_process_are_coarse_and_lone_ones_are_not(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "step_seconds", lambda *args: 1.0)
    monkeypatch.setattr(plan_module, "factors", lambda *args: (2.0,))
    monkeypatch.setattr(run_module, "rehearse", lambda *args: Pace(0.5, 0.0, 0.0, 0.0))
    config = open_settings(study, budget="4m").model_copy(update={"folds": 2})
    train_folds(config, tmp_path / "lone", fold=1)
    assert load(tmp_path / "lone" / "config.yaml").prepare.spacing_mm == (1, 1)  # another may be on another machine
    train_folds(config, tmp_path / "all")
    for folder in ("", "fold-1", "fold-2"):
        assert load(tmp_path / "all" / folder / "config.yaml").prepare.spacing_mm == (2, 2)
    assert "2 times the median" in (tmp_path / "all" / "config.yaml").read_text()


def test_a_run_trains_on_coarse_slices_and_its_masks_lie_on_the_scans(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "step_seconds", lambda *args: 1.0)
    monkeypatch.setattr(plan_module, "factors", lambda *args: (1.25, 2.0))
    monkeypatch.setattr(run_module, "rehearse", lambda *args: Pace(0.5, 0.0, 0.0, 0.0))
    config = open_settings(study, budget="2m")
    train(config, tmp_path / "run")
    stored = load(tmp_path / "run" / "config.yaml")
    assert stored.prepare.spacing_mm == (2, 2)
    assert "2 times the median" in (tmp_path / "run" / "config.yaml").read_text()
    masks = list((tmp_path / "run" / "validation" / "masks").glob("*.nii.gz"))
    assert masks
    for mask in masks:
        scan = nib.load(study / "scans" / mask.name)
        assert nib.load(mask).shape == scan.shape
        assert np.array_equal(nib.load(mask).affine, scan.affine)
    monkeypatch.setattr(plan_module, "step_seconds", lambda *args: pytest.fail("decided once"))
    train(config, tmp_path / "run", resume=True)

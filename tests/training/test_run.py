"""A training run from scans to a run folder: what it holds, what it keeps to itself, how it is gone on with."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import random
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medseg.batch import predict_folder
from medseg.cli import _run as command
from medseg.config import ChannelConfig, Config, DataConfig, PrepareConfig, load
from medseg.config.load import dump
from medseg.errors import ConfigError, InputError, MedsegError, RunError
from medseg.grid import Grid
from medseg.io.lock import exclusive
from medseg.models.model_folder import load_model
from medseg.training import TrainResult, gradients, train
from medseg.training import cases as cases_module
from tests.studies import (
    AFFINE,
    GRID,
    dicom_patient,
    everything,
    kill_after,
    leaked,
    nifti_case,
    nifti_study,
    settings,
    stored_labels,
    voxels,
)

FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")


@pytest.fixture(scope="module")
def whole(study: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, TrainResult]:
    """One unbroken run that others are compared with."""
    config = settings(study, average=0.9, epochs=3)
    return config, train(config, tmp_path_factory.mktemp("whole") / "run")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "weights.safetensors")


def equal(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def refused(config: Config, folder: Path, *, resume: bool = False) -> MedsegError:
    with pytest.raises(MedsegError) as caught:
        train(config, folder, resume=resume)
    return caught.value


# ------------------------------------------------------------------------------------------------------ the run folder


def test_the_run_folder(whole: tuple[Config, TrainResult]) -> None:
    config, result = whole
    names = {path.name for path in result.folder.iterdir() if not path.name.startswith(".")}
    files = {"config.yaml", "cases.json", "preparation.yaml", "metrics.csv", "curves.png"}
    assert names == files | {"model", "overlays", "validation", "checkpoints", "prepared"}
    model = sorted(path.name for path in (result.folder / "model").iterdir())
    assert model == ["README.md", "model.yaml", "weights.safetensors"]
    resolved = load(result.folder / "config.yaml")
    assert resolved.data == config.data
    assert resolved.train.patch is not None
    assert resolved.prepare.plane == "axial"
    assert resolved.prepare.spacing_mm == pytest.approx((1.0, 1.0))
    with (result.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert all(math.isfinite(float(row["loss"])) and 0 <= float(row["dice"]) <= 1 for row in rows)


def test_the_validation_cases_are_scored_on_their_own_grids(whole: tuple[Config, TrainResult]) -> None:
    _, result = whole
    folder = result.folder / "validation"
    assert result.report is not None
    cases = [case.case for case in result.report.cases]
    assert len(cases) == 2  # 0.4 of 5 patients
    for case in cases:
        number = int(case[1:])
        mask = stored_labels(folder / "masks" / f"{case}.nii.gz")
        reference = voxels(number)[1]
        assert np.array_equal(stored_labels(folder / "references" / f"{case}.nii.gz"), reference)
        dice = 2 * (mask & reference).sum() / (mask.sum() + reference.sum())
        (scored,) = [scores.labels[0].dice for scores in result.report.cases if scores.case == case]
        assert scored == pytest.approx(dice)
    for name in ("report.json", "report.html", "scores.csv", "masks/cases.csv"):
        assert (folder / name).is_file()
    assert load_model(result.folder).description.scores


def test_what_int8_needs_is_recorded(whole: tuple[Config, TrainResult]) -> None:
    model = load_model(whole[1].folder)
    (ranges,) = model.description.ranges
    kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    assert ranges.keys() == {name for name, module in model.networks[0].named_modules() if isinstance(module, kinds)}


def test_it_learns(tmp_path: Path) -> None:
    nifti_study(tmp_path / "study", 8)
    result = train(settings(tmp_path / "study", epochs=20), tmp_path / "run")
    assert result.report is not None
    assert result.report.mean_dice is not None
    assert result.report.mean_dice > 0.8
    nifti_case(tmp_path, "new", 41)
    predict_folder([tmp_path / "scans"], load_model(result.folder), tmp_path / "out")
    mask, reference = stored_labels(tmp_path / "out" / "new.nii.gz"), voxels(41)[1]
    assert 2 * (mask & reference).sum() / (mask.sum() + reference.sum()) > 0.8
    assert "best of 20 epochs" in result.summary()


def test_equal_seeds_give_equal_models_and_other_seeds_others(
    study: Path, tmp_path: Path, whole: tuple[Config, TrainResult]
) -> None:
    config, result = whole
    train(config, tmp_path / "again")
    assert equal(tmp_path / "again", result.folder)
    assert load_model(tmp_path / "again").hash == load_model(result.folder).hash
    train(config.model_copy(update={"seed": 1}), tmp_path / "other")
    assert not equal(tmp_path / "other", result.folder)


# ------------------------------------------------------------------------------------------------------------ resuming


def test_a_second_run_is_refused_without_resume(whole: tuple[Config, TrainResult]) -> None:
    config, result = whole
    before = everything(result.folder)
    error = refused(config, result.folder)
    assert error.code == "RUN-RESUME"
    assert "--resume" in str(error)
    assert everything(result.folder) == before


def test_a_finished_run_is_not_trained_again(
    whole: tuple[Config, TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, result = whole
    before = weights(result.folder)

    def never(*args: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(gradients, "supervised_loss", never)
    again = train(config, result.folder, resume=True)
    assert again.fitted.best_epoch == result.fitted.best_epoch
    assert again.report is not None
    assert result.report is not None
    assert again.report.mean_dice == result.report.mean_dice
    assert all(torch.equal(before[name], value) for name, value in weights(result.folder).items())
    masks = result.folder / "validation" / "masks" / "cases.csv"
    assert "reused" in masks.read_text()


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("train", {"learning_rate": 0.5}),
        ("train", {"epochs": 99}),
        ("train", {"clip_gradient": None}),
        ("train", {"average": None}),
        ("train", {"batch_size": 1}),
        ("prepare", {"context": 0}),
        ("data", {"validation": 0.2}),
    ],
)
def test_changed_settings_are_named(whole: tuple[Config, TrainResult], section: str, change: dict[str, Any]) -> None:
    config, result = whole
    changed = config.model_copy(update={section: getattr(config, section).model_copy(update=change)})
    error = refused(changed, result.folder, resume=True)
    assert error.code == "RUN-RESUME"
    assert f"{section}.{next(iter(change))} was" in str(error)


def test_a_label_less_or_more_is_a_change(whole: tuple[Config, TrainResult]) -> None:
    config, result = whole
    for labels in ({"tumour": (1,)}, {"tumour": (1, "GTV*"), "edema": (2,)}, {"lesion": (1, "GTV*")}):
        error = refused(config.model_copy(update={"labels": labels}), result.folder, resume=True)
        assert "labels." in str(error)


def _change_a_mask(study: Path) -> None:
    voxels_of_another = (study / "masks" / "p2.nii.gz").read_bytes()
    (study / "masks" / "p1.nii.gz").write_bytes(voxels_of_another)


def _remove_a_case(study: Path) -> None:
    (study / "scans" / "p1.nii.gz").unlink()
    (study / "masks" / "p1.nii.gz").unlink()


def _add_a_case(study: Path) -> None:
    nifti_case(study, "p7", 7)


def _move_a_case_over(study: Path) -> None:
    (study / "split.json").write_text('{"train": ["p0", "p2"], "validation": ["p1", "p3", "p4"]}')


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_change_a_mask, "with other files: p1"),
        (_remove_a_case, "gone or left out: p1"),
        (_add_a_case, "new: p7"),
        (_move_a_case_over, "on the other side of the split: p1"),
    ],
)
def test_changed_cases_are_named(tmp_path: Path, change: Any, said: str) -> None:
    study = nifti_study(tmp_path / "study")
    config = settings(study, epochs=1)
    if change is _move_a_case_over:
        (study / "split.json").write_text('{"train": ["p0", "p1", "p2"], "validation": ["p3", "p4"]}')
        config = config.model_copy(update={"data": config.data.model_copy(update={"split": study / "split.json"})})
    train(config, tmp_path / "run")
    change(study)
    before = everything(tmp_path / "run" / "model") + everything(tmp_path / "run" / "checkpoints")
    error = refused(config, tmp_path / "run", resume=True)
    assert error.code == "RUN-RESUME"
    assert said in str(error)
    assert everything(tmp_path / "run" / "model") + everything(tmp_path / "run" / "checkpoints") == before
    train(config, tmp_path / "another")  # which has not begun


def test_a_run_that_never_began_may_begin_with_other_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = nifti_study(tmp_path / "study")
    config = settings(study, epochs=1)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cases_module, "make_plan", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run")
    _add_a_case(study)
    train(config, tmp_path / "run")
    assert sum(len(side) for side in json.loads((tmp_path / "run" / "cases.json").read_text()).values()) == 6


def test_relative_paths_are_the_same_paths(
    whole: tuple[Config, TrainResult], study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, result = whole
    monkeypatch.chdir(study)
    relative = config.data.model_copy(update={"scans": (Path("scans"),), "references": (Path("masks"),)})
    again = train(config.model_copy(update={"data": relative}), result.folder, resume=True)
    assert again.fitted.best_epoch == result.fitted.best_epoch


def test_two_at_once(study: Path, tmp_path: Path) -> None:
    with exclusive(tmp_path / "run"):
        assert refused(settings(study), tmp_path / "run").code == "RUN-BUSY"


@FORK
def test_killed_at_any_moment_it_ends_as_an_unbroken_run(study: Path, tmp_path: Path) -> None:
    config = settings(study, average=0.9, epochs=4)
    started = time.perf_counter()
    result = train(config, tmp_path / "whole")
    seconds = time.perf_counter() - started
    chance, killed = random.Random(2), 0
    for moment in range(3):
        folder = tmp_path / f"run{moment}"
        share = 0.2 + 0.25 * (moment + chance.random())
        killed += kill_after(partial(train, config, folder), share * seconds)
        if (folder / "model" / "model.yaml").exists():
            load_model(folder)  # there is a whole one or none
        again = train(config, folder, resume=True)
        assert equal(folder, tmp_path / "whole")
        assert [(row.epoch, row.loss, row.dice) for row in again.fitted.epochs] == [
            (row.epoch, row.loss, row.dice) for row in result.fitted.epochs
        ]
        for path in sorted((tmp_path / "whole" / "validation" / "masks").glob("*.nii.gz")):
            assert np.array_equal(stored_labels(path), stored_labels(folder / "validation" / "masks" / path.name))
    assert killed


def test_a_damaged_checkpoint_gives_way_to_the_one_before_or_is_refused(study: Path, tmp_path: Path) -> None:
    config = settings(study, epochs=2)
    train(config, tmp_path / "run")
    whole = weights(tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:-100])
    train(config, tmp_path / "run", resume=True)
    assert all(torch.equal(whole[name], value) for name, value in weights(tmp_path / "run").items())
    for name in ("last.pt", "before.pt"):
        path.with_name(name).write_bytes(b"zeros")
    assert refused(config, tmp_path / "run", resume=True).code == "RUN-RESUME"


# ---------------------------------------------------------------------------------------------------- unusual data sets


def test_without_validation(study: Path, tmp_path: Path) -> None:
    config = settings(study, epochs=2)
    config = config.model_copy(update={"data": config.data.model_copy(update={"validation": 0.0})})
    result = train(config, tmp_path / "run")
    assert result.report is None
    assert result.fitted.best_epoch == 2
    assert not (tmp_path / "run" / "validation").exists()
    assert load_model(tmp_path / "run").description.trained_on["cases"] == 5


def test_one_case(tmp_path: Path) -> None:
    nifti_study(tmp_path, 1)
    config = settings(tmp_path, epochs=1)
    error = refused(config, tmp_path / "run")
    assert error.code == "DATA-SPLIT"
    assert "validation" in str(error)
    config = config.model_copy(update={"data": config.data.model_copy(update={"validation": 0.0})})
    assert train(config, tmp_path / "run").report is None


def test_no_case(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises((InputError, ConfigError)) as caught:
        train(settings(tmp_path), tmp_path / "run")
    assert caught.value.code in ("DATA-EMPTY", "DATA-SPLIT")


def test_a_bad_case_is_left_out_and_told(tmp_path: Path) -> None:
    nifti_study(tmp_path)
    path = tmp_path / "masks" / "p2.nii.gz"
    path.write_bytes(path.read_bytes()[:60])
    told: list[str] = []
    result = train(settings(tmp_path, epochs=1), tmp_path / "run", watch=lambda s, d, t, note="": told.append(note))
    assert any(finding.where == "p2" for finding in result.left_out)
    assert any("p2" in note for note in told)
    assert (
        load_model(tmp_path / "run").description.trained_on["cases"] + len(result.report.cases if result.report else ())
        == 4
    )


def test_a_loss_that_cannot_learn_is_refused_before_any_work(study: Path, tmp_path: Path) -> None:
    two = {"tumour": (1,), "edema": (2,)}
    error = refused(settings(study, loss="dice_bce", labels=two), tmp_path / "run")
    assert error.code == "MODEL-LOSS"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("loss", ["bce", "dice_bce", "dice", "cross_entropy"])
def test_every_loss_makes_a_model(study: Path, tmp_path: Path, loss: str) -> None:
    train(settings(study, epochs=1, loss=loss), tmp_path / "run")
    model = load_model(tmp_path / "run")
    assert model.description.out_channels == (1 if "bce" in loss else 2)
    ledger = predict_folder([study / "scans" / "p0.nii.gz"], model, tmp_path / "out")
    assert [row.status for row in ledger] == ["done"]


def test_bf16_trains_and_keeps_plain_weights(study: Path, tmp_path: Path) -> None:
    result = train(settings(study, epochs=8, precision="bf16"), tmp_path / "run")
    assert {value.dtype for value in weights(tmp_path / "run").values()} == {torch.float32}
    assert result.report is not None
    assert (result.report.mean_dice or 0) > 0.5


# --------------------------------------------------------------------------------------------------- DICOM and channels


def test_ct_from_dicom_uses_the_window_of_its_tumours(tmp_path: Path) -> None:
    for seed in range(4):
        dicom_patient(tmp_path / "in", seed, "CT")
    data = DataConfig(scans=tmp_path / "in", validation=0.25)  # type: ignore[arg-type]
    result = train(settings(data, epochs=16), tmp_path / "run")
    (channel,) = load_model(tmp_path / "run").preparation.channels
    assert channel.normalise == "window"
    low, high = channel.window or (0, 0)
    assert 500 < low < 600 < high < 700  # tumours are 600, give or take noise of 15
    assert result.report is not None
    assert (result.report.mean_dice or 0) > 0.8


def test_a_window_may_be_given(tmp_path: Path) -> None:
    for seed in range(3):
        dicom_patient(tmp_path / "in", seed, "CT")
    data = DataConfig(scans=tmp_path / "in", validation=0.3)  # type: ignore[arg-type]
    train(settings(data, epochs=1, prepare=PrepareConfig(window_hu=(-160, 240), context=0)), tmp_path / "run")
    preparation = load_model(tmp_path / "run").preparation
    assert preparation.channels[0].window == (-160, 240)
    assert preparation.in_channels == 1


def test_two_sequences_on_different_grids(tmp_path: Path) -> None:
    wide = np.array(AFFINE)
    wide[:3, :3] *= 0.8  # smaller voxels on a grid of its own
    for number in range(4):
        nifti_case(tmp_path, f"p{number}_t1", number)
        nifti_case(tmp_path, f"p{number}_t2", number, Grid((24, 28, 6), wide), references=tmp_path / "unused")
        (tmp_path / "masks" / f"p{number}_t1.nii.gz").rename(tmp_path / "masks" / f"p{number}.nii.gz")
    select = (ChannelConfig(name="t1", description="*t1"), ChannelConfig(name="t2", description="*t2"))
    data = DataConfig(
        scans=tmp_path / "scans",  # type: ignore[arg-type]
        references=tmp_path / "masks",  # type: ignore[arg-type]
        select=select,
        validation=0.25,
    )
    result = train(settings(data, epochs=4), tmp_path / "run")
    model = load_model(tmp_path / "run")
    assert [channel.name for channel in model.preparation.channels] == ["t1", "t2"]
    assert model.description.in_channels == 6  # two sequences, three slices
    assert not result.left_out
    ledger = predict_folder([tmp_path / "scans"], model, tmp_path / "out")
    done = [row for row in ledger if row.status == "done"]
    assert len(done) == 4
    assert stored_labels(tmp_path / "out" / done[0].output).shape == GRID.shape


def test_nobody_can_be_known_from_a_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        dicom_patient(tmp_path / "in", seed)
    (dicom_patient(tmp_path / "in", 3) / "0002.dcm").unlink()  # a gap: refused, with a message
    data = DataConfig(scans=tmp_path / "in", validation=0.3)  # type: ignore[arg-type]
    told: list[str] = []
    with caplog.at_level(logging.DEBUG, logger="medseg"):
        config = settings(data, epochs=1)
        result = train(config, tmp_path / "run", watch=lambda *args: told.append(str(args)))
    assert result.report is not None
    streams = capfd.readouterr()
    texts = "\n".join([caplog.text, *told, streams.out, streams.err, repr(result.left_out), result.summary()])
    assert leaked(everything(tmp_path / "run") + texts.encode()) == []


def test_the_command_line_tells_nobodys_name_either(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        dicom_patient(tmp_path / "in", seed)
    (dicom_patient(tmp_path / "in", 3) / "0002.dcm").unlink()
    data = DataConfig(scans=tmp_path / "in", validation=0.3)  # type: ignore[arg-type]
    (tmp_path / "config.yaml").write_text(dump(settings(data, epochs=1)))
    run, out = tmp_path / "run", tmp_path / "out"
    assert command(["check", str(tmp_path / "config.yaml")]) == 3
    assert command(["train", str(tmp_path / "config.yaml"), "-o", str(run)]) == 3
    assert command(["train", str(tmp_path / "config.yaml"), "-o", str(run)]) == 1
    assert command(["train", str(tmp_path / "config.yaml"), "-o", str(run), "--resume"]) == 3
    assert command(["predict", str(tmp_path / "in"), "--model", str(run), "-o", str(out)]) == 3
    assert command(["scan", str(tmp_path / "in")]) == 3
    streams = capfd.readouterr()
    assert "1 slice is missing" in streams.err
    assert leaked(everything(run) + everything(out) + (streams.out + streams.err).encode()) == []


def test_patients_are_kept_on_one_side(tmp_path: Path) -> None:
    for seed in range(4):
        dicom_patient(tmp_path / "in", seed)
    data = DataConfig(scans=tmp_path / "in", validation=0.5)  # type: ignore[arg-type]
    result = train(settings(data, epochs=1), tmp_path / "run")
    assert result.report is not None
    assert len(result.report.cases) == 2
    report = json.loads((tmp_path / "run" / "validation" / "report.json").read_text())
    assert report
    assert replace(result, report=None).summary().count("\n") == 0


def test_a_disk_that_refuses(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    assert refused(settings(study), tmp_path / "file").code == "RUN-WRITE"
    calls = []
    flush = os.fsync

    def failing(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 40:
            raise OSError(28, os.strerror(28))
        flush(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        error = refused(settings(study, epochs=6), tmp_path / "run")
    assert error.code == "RUN-WRITE"
    assert isinstance(error, RunError)
    result = train(settings(study, epochs=6), tmp_path / "run", resume=True)
    assert len(result.fitted.epochs) == 6

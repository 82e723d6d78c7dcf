"""Cross-validation: folds that stand alone, scores of patients that no network saw, and all networks in one model."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.batch import predict_folder
from medseg.cli import _run as command
from medseg.config import Config, load
from medseg.config.load import dump
from medseg.errors import MedsegError
from medseg.models.model_folder import load_model
from medseg.training import FoldsResult, folds, gradients, showing, train
from tests.studies import everything, kill_after, nifti_case, nifti_study, settings, stored_labels, voxels

FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")


def folded(study: Path, count: int = 2, epochs: int = 2) -> Config:
    return settings(study, epochs=epochs, steps_per_epoch=1, overlays=0).model_copy(update={"folds": count})


@pytest.fixture(scope="module", autouse=True)
def without_curves() -> Iterator[None]:
    """Leave out the picture of the curves, half of a tiny run's time, which has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(showing, "write_curves", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nifti_study(tmp_path_factory.mktemp("study"), 6)


@pytest.fixture(scope="module")
def whole(study: Path, tmp_path_factory: pytest.TempPathFactory) -> FoldsResult:
    """One unbroken cross-validation that others are compared with."""
    result = train(folded(study), tmp_path_factory.mktemp("whole") / "run")
    assert isinstance(result, FoldsResult)
    return result


def refused(config: Config, folder: Path, **options: object) -> MedsegError:
    with pytest.raises(MedsegError) as caught:
        train(config, folder, **options)  # type: ignore[arg-type]
    return caught.value


def equal(one: Path, other: Path) -> bool:
    """Whether two model folders hold the same networks."""
    pairs = zip(load_model(one).networks, load_model(other).networks, strict=True)
    states = [(a.state_dict(), b.state_dict()) for a, b in pairs]
    return all(torch.equal(a[name], b[name]) for a, b in states for name in a)


def never(*args: object) -> None:
    raise AssertionError("trained again")


# ------------------------------------------------------------------------------------------------------- what it leaves


def test_the_run_folder(whole: FoldsResult) -> None:
    names = {path.name for path in whole.folder.iterdir() if not path.name.startswith(".")}
    folders = {"fold-1", "fold-2"}
    assert names == {"config.yaml", "split.json", "preparation.yaml", "prepared", "model", "validation"} | folders
    assert load(whole.folder / "config.yaml").folds == 2
    for number in (1, 2):
        inside = {path.name for path in (whole.folder / f"fold-{number}").iterdir() if not path.name.startswith(".")}
        assert inside >= {"config.yaml", "split.json", "preparation.yaml", "metrics.csv", "model", "validation"}
        assert "prepared" not in inside  # the store is shared
    assert len(list((whole.folder / "prepared").glob("*/entry.json"))) == 6
    assert whole.finished == (1, 2)
    assert "an ensemble of 2" in whole.summary()


def test_every_case_is_predicted_by_a_network_that_never_saw_it(whole: FoldsResult) -> None:
    split = json.loads((whole.folder / "split.json").read_text())["folds"]
    assert sorted(case for fold in split for case in fold) == [f"p{n}" for n in range(6)]
    for number, fold in enumerate(split, start=1):
        own = json.loads((whole.folder / f"fold-{number}" / "split.json").read_text())
        assert own["validation"] == fold
        assert not set(own["train"]) & set(fold)
        for case in fold:
            mask = f"validation/masks/{case}.nii.gz"
            one, other = (stored_labels(place / mask) for place in (whole.folder, whole.folder / f"fold-{number}"))
            assert np.array_equal(one, other)


def test_the_out_of_fold_dice_is_that_of_all_cases(whole: FoldsResult) -> None:
    assert whole.report is not None
    assert [case.case for case in whole.report.cases] == [f"p{n}" for n in range(6)]
    for case in whole.report.cases:
        mask = stored_labels(whole.folder / "validation" / "masks" / f"{case.case}.nii.gz")
        reference = voxels(int(case.case[1:]))[1]
        assert case.labels[0].dice == pytest.approx(2 * (mask & reference).sum() / (mask.sum() + reference.sum()))
    assert len({case.group for case in whole.report.cases}) == 6
    assert whole.report.results[0].summary("dice").mean_interval is not None  # six patients are enough for one
    for name in ("report.json", "report.html", "scores.csv", "masks/cases.csv"):
        assert (whole.folder / "validation" / name).is_file()


def test_the_model_is_the_ensemble(whole: FoldsResult, tmp_path: Path) -> None:
    model = load_model(whole.folder)
    assert len(model.networks) == 2
    for number, network in enumerate(model.networks, start=1):
        own = load_model(whole.folder / f"fold-{number}").networks[0].state_dict()
        assert all(torch.equal(own[name], value) for name, value in network.state_dict().items())
    assert whole.report is not None
    assert model.description.scores == whole.report.scores()
    assert model.description.dice_offsets.keys() == {"tumour"}
    assert model.description.trained_on["cases"] == 6
    assert load_model(whole.folder / "fold-1").description.trained_on["cases"] == 3
    nifti_case(tmp_path, "new", 41)
    ledger = predict_folder([tmp_path / "scans"], model, tmp_path / "out")
    assert [row.status for row in ledger] == ["done"]


def test_all_folds_share_one_preparation_and_patch(whole: FoldsResult) -> None:
    descriptions = [load_model(whole.folder / f"fold-{number}").description for number in (1, 2)]
    assert len({str(description.preparation) for description in descriptions}) == 1
    assert len({description.patch for description in descriptions}) == 1
    assert len({(whole.folder / f"fold-{n}" / "preparation.yaml").read_text() for n in (1, 2)}) == 1
    assert load_model(whole.folder).preparation == load_model(whole.folder / "fold-2").preparation


def test_a_fold_is_an_ordinary_run(whole: FoldsResult, tmp_path: Path) -> None:
    shutil.copytree(whole.folder / "fold-2", tmp_path / "fold-2")
    shutil.rmtree(tmp_path / "fold-2" / "model")
    shutil.rmtree(tmp_path / "fold-2" / "checkpoints")
    train(load(tmp_path / "fold-2" / "config.yaml"), tmp_path / "fold-2", resume=True)
    assert equal(tmp_path / "fold-2", whole.folder / "fold-2")


# ------------------------------------------------------------------------------------------------------------ resuming


def test_a_second_run_is_refused_without_resume(whole: FoldsResult, study: Path) -> None:
    before = everything(whole.folder)
    error = refused(folded(study), whole.folder)
    assert (error.code, "--resume" in str(error)) == ("RUN-RESUME", True)
    assert everything(whole.folder) == before
    assert "folds was 2, now 3" in str(refused(folded(study, 3), whole.folder, resume=True))
    assert "folds was 2, now None" in str(
        refused(settings(study, epochs=2, steps_per_epoch=1, overlays=0), whole.folder, resume=True)
    )


def test_what_is_finished_is_not_trained_again(
    whole: FoldsResult, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole.folder, tmp_path / "run")
    monkeypatch.setattr(gradients, "supervised_loss", never)
    shutil.rmtree(tmp_path / "run" / "model")
    again = train(folded(study), tmp_path / "run", resume=True)
    assert isinstance(again, FoldsResult)
    assert again.report is not None
    assert whole.report is not None
    assert again.report.mean_dice == whole.report.mean_dice
    assert equal(tmp_path / "run", whole.folder)
    (tmp_path / "run" / "fold-2" / "model" / "weights.safetensors").write_bytes(b"damaged")
    train(folded(study), tmp_path / "run", resume=True)  # taken from the checkpoint, without a step
    assert equal(tmp_path / "run", whole.folder)


@FORK
def test_killed_at_any_moment_it_ends_as_an_unbroken_run(study: Path, tmp_path: Path, whole: FoldsResult) -> None:
    config, folder = folded(study), tmp_path / "run"
    chance, killed, seconds = random.Random(1), 0, 0.5
    while kill_after(partial(train, config, folder, resume=True), seconds):
        killed += 1
        seconds += 3 * chance.random()  # so that it comes to its end
    assert killed
    train(config, folder, resume=True)
    assert equal(folder, whole.folder)
    for path in sorted((whole.folder / "validation" / "masks").glob("*.nii.gz")):
        assert np.array_equal(stored_labels(path), stored_labels(folder / "validation" / "masks" / path.name))


def test_cases_that_come_later_change_no_fold_and_a_changed_split_is_refused(
    study: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(study, tmp_path / "study")
    config, run = folded(tmp_path / "study", epochs=1), tmp_path / "run"
    train(config, run, fold=1)
    kept, split = (run / "preparation.yaml").read_text(), (run / "split.json").read_text()
    one, two = json.loads(split)["folds"]
    (run / "split.json").write_text(json.dumps({"folds": [two, one]}))
    error = refused(config, run, resume=True, fold=1)
    assert (error.code, "split.json" in str(error)) == ("RUN-RESUME", True)
    (run / "split.json").write_text(split)
    nifti_case(tmp_path / "study", "p9", 9)
    result = train(config, run, resume=True)
    assert result.report is not None
    assert [case.case for case in result.report.cases] == [f"p{n}" for n in range(6)]
    assert "p9" in caplog.text
    assert (run / "fold-2" / "preparation.yaml").read_text() == kept


# --------------------------------------------------------------------------------------------------- one fold elsewhere


def test_folds_trained_on_other_machines_are_joined_by_the_last(
    whole: FoldsResult, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, here, there = folded(study), tmp_path / "here", tmp_path / "there"
    result = train(config, there, fold=2)
    assert isinstance(result, FoldsResult)
    assert (result.finished, result.report) == ((2,), None)
    assert "finished: 1 of 2 folds; still to train: 1" in result.summary()
    assert not (there / "model").exists()
    shutil.copytree(there / "fold-2", here / "fold-2")
    result = train(config, here, fold=1)
    assert isinstance(result, FoldsResult)
    assert result.finished == (1, 2)
    assert result.report is not None
    assert equal(here, whole.folder)
    shutil.copytree(here / "fold-1", there / "fold-1")
    monkeypatch.setattr(gradients, "supervised_loss", never)
    train(config, there, resume=True)
    assert equal(there, whole.folder)


def test_a_fold_of_other_settings_is_not_joined(study: Path, tmp_path: Path) -> None:
    config = folded(study, epochs=1)
    train(config, tmp_path / "run", fold=1)
    train(config.model_copy(update={"labels": {"lesion": (1,)}}), tmp_path / "other", fold=2)
    shutil.copytree(tmp_path / "other" / "fold-2", tmp_path / "run" / "fold-2")
    error = refused(config, tmp_path / "run", resume=True)
    assert error.code == "MODEL-DIFFERS"
    assert "labels" in str(error)


def test_folds_that_there_are_not(study: Path, tmp_path: Path) -> None:
    assert refused(folded(study), tmp_path / "run", fold=4).code == "USAGE-OPTION"
    assert refused(settings(study), tmp_path / "run", fold=1).code == "USAGE-OPTION"
    error = refused(folded(study, 7), tmp_path / "run")
    assert error.code == "DATA-SPLIT"
    assert "7 folds need as many patients with a label, there are 6" in str(error)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_the_command_with_folds_of_one_s_own(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, split = tmp_path / "study.yaml", tmp_path / "mine.json"
    path.write_text(dump(settings(study, epochs=1, steps_per_epoch=1, overlays=0)), encoding="utf-8")
    split.write_text(json.dumps({"folds": [["p0", "p5"], ["p1", "p2", "p3", "p4"]]}))
    words = [str(path), "folds=2", f"data.split={split}"]
    run = ["train", *words, "-o", str(tmp_path / "run")]
    assert command([*run, "--fold", "1"]) == 0
    assert "finished: 1 of 2 folds; still to train: 2" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "split.json").read_text())["folds"][0] == ["p0", "p5"]
    assert json.loads((tmp_path / "run" / "fold-1" / "split.json").read_text())["validation"] == ["p0", "p5"]
    assert command([*run, "--resume"]) == 0
    out = capsys.readouterr().out
    assert "fold 1/2: finished before" in out
    assert "out of fold:" in out
    assert command(["check", *words]) == 0
    assert "6 cases can be used in 2 folds of 2 to 4" in capsys.readouterr().out
    assert command(["plan", *words]) == 0
    assert "6 cases in 2 folds" in capsys.readouterr().out


def test_the_configuration_of_a_fold_is_an_ordinary_one(study: Path) -> None:
    one = folds.fold_config(folded(study), Path("run/fold-1"))
    assert one.folds is None
    assert one.data.split == Path("run/fold-1/split.json").absolute()
    assert one.train == folded(study).train
    timed = folded(study, 3).model_copy(update={"budget": "1h20m"})
    assert folds.fold_config(timed, Path("run/fold-1")).budget == "26m40s"

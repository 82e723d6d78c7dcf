"""Training from an earlier model: its weights are taken, its preparation is kept, what does not fit is refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg.cli import _run as command
from medseg.config import Config, PrepareConfig, load
from medseg.config.load import dump
from medseg.config.networks import UNetConfig
from medseg.config.settings import ChannelConfig, StartConfig
from medseg.errors import MedsegError
from medseg.io.nifti import read_volume, write_volume
from medseg.models.model_folder import join_models, load_model
from medseg.training import FoldsResult, showing, train
from medseg.volume import Volume
from tests.studies import kill_after, settings

FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")


@pytest.fixture(scope="module", autouse=True)
def without_curves() -> Iterator[None]:
    """Leave out the picture of the curves, half of a tiny run's time, which has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(showing, "write_curves", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def parent(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An earlier run, on scans of three times the intensities."""
    folder = tmp_path_factory.mktemp("earlier")
    shutil.copytree(study, folder / "study")
    for path in (folder / "study" / "scans").iterdir():
        volume = read_volume(path)
        write_volume(path, Volume((3 * volume.voxels).astype(np.int16), volume.grid))
    settled = PrepareConfig(normalise="window")  # measured on those scans
    train(settings(folder / "study", epochs=1, overlays=0, prepare=settled), folder / "run")
    return folder / "run"


def starting(study: Path, parent: Path, **changes: Any) -> Config:
    """The settings of a run that starts from the parent and hardly moves."""
    slow = {"epochs": 1, "steps_per_epoch": 1, "learning_rate": 1e-9, "overlays": 0, **changes}
    return settings(study, **slow).model_copy(update={"start": StartConfig(model=parent)})


def refused(config: Config, folder: Path, **options: Any) -> MedsegError:
    with pytest.raises(MedsegError) as caught:
        train(config, folder, **options)
    return caught.value


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder).networks[0].state_dict()


def test_weights_and_preparation_are_those_of_the_parent(study: Path, parent: Path, tmp_path: Path) -> None:
    train(starting(study, parent), tmp_path / "run")
    before, after = load_model(parent), load_model(tmp_path / "run")
    for name, value in state(tmp_path / "run").items():
        assert torch.allclose(value, state(parent)[name], atol=1e-6)
    assert after.preparation == before.preparation  # though the new scans' window is another
    assert after.description.patch == before.description.patch
    assert after.description.parent == before.hash
    assert after.description.trained_on != before.description.trained_on
    written = load(tmp_path / "run" / "config.yaml")
    assert written.start == StartConfig(model=parent, hash=before.hash)
    assert written.prepare.window_hu == before.preparation.channels[0].window
    assert load_model(parent).description.parent == ""


def test_another_model_in_its_place_is_not_taken(study: Path, parent: Path, tmp_path: Path) -> None:
    shutil.copytree(parent / "model", tmp_path / "earlier")
    begun = starting(study, tmp_path / "earlier")
    hashed = StartConfig(model=tmp_path / "earlier", hash="0123456789abcdef")  # as in a run's own configuration
    error = refused(begun.model_copy(update={"start": hashed}), tmp_path / "run")
    assert error.code == "RUN-RESUME"
    assert "start.hash is 0123456789abcdef" in str(error)


def test_new_scans_may_be_selected_otherwise(study: Path, parent: Path, tmp_path: Path) -> None:
    config = starting(study, parent)
    data = config.data.model_copy(update={"select": (ChannelConfig(description="p*", modality="MR"),)})
    train(config.model_copy(update={"data": data}), tmp_path / "run")
    (channel,) = load_model(tmp_path / "run").preparation.channels
    assert (channel.description, channel.modality) == ("p*", "MR")
    assert channel.window == load_model(parent).preparation.channels[0].window


@pytest.mark.parametrize(
    ("section", "change", "told"),
    [
        ("model", UNetConfig(widths=(4, 8), norm="instance"), "model.widths is [6, 8] in the model, [4, 8] here"),
        ("model", UNetConfig(widths=(6, 8), norm="batch"), "model.norm is instance in the model, batch here"),
        ("labels", {"lesion": (1,)}, "labels is ['tumour'] in the model, ['lesion'] here"),
        ("labels", {"tumour": (1,), "edema": (2,)}, "labels is ['tumour']"),
        ("train", {"loss": "dice_bce"}, "output channels is 2 in the model, 1 here"),
        ("train", {"patch": (64, 64)}, "train.patch is"),
        ("prepare", {"context": 0}, "prepare.context is 1 in the model, 0 here"),
        ("prepare", {"plane": "coronal"}, "prepare.plane is axial"),
        ("prepare", {"spacing_mm": (2.0, 2.0)}, "prepare.spacing_mm is"),
        ("prepare", {"normalise": "zscore"}, "prepare.normalise is window in the model, zscore here"),
        ("prepare", {"window_hu": (-10.0, 10.0)}, "prepare.window_hu is"),
        ("data", {"select": (ChannelConfig(name="T2"),)}, "channels is ['image'] in the model, ['T2'] here"),
        ("data", {"select": (ChannelConfig(), ChannelConfig(name="T2"))}, "channels is ['image']"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_differs_is_refused_by_name(
    study: Path, parent: Path, tmp_path: Path, section: str, change: Any, told: str
) -> None:
    config = starting(study, parent)
    if isinstance(change, dict) and section != "labels":
        change = getattr(config, section).model_copy(update=change)
    error = refused(config.model_copy(update={section: change}), tmp_path / "run")
    assert error.code == "MODEL-DIFFERS"
    assert told in str(error)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_everything_that_differs_is_said_at_once(study: Path, parent: Path, tmp_path: Path) -> None:
    config = starting(study, parent, patch=(64, 64)).model_copy(update={"labels": {"lesion": (1,)}})
    text = str(refused(config, tmp_path / "run"))
    assert "labels is" in text
    assert "train.patch is" in text


def test_an_ensemble_and_no_model_are_refused(study: Path, parent: Path, tmp_path: Path) -> None:
    join_models([load_model(parent)] * 2, tmp_path / "two")
    assert refused(starting(study, tmp_path / "two"), tmp_path / "run").code == "MODEL-DIFFERS"
    assert refused(starting(study, tmp_path / "none"), tmp_path / "run").code == "USAGE-PATH"


# ------------------------------------------------------------------------------------------------------------ resuming


@FORK
def test_killed_it_ends_as_an_unbroken_run_also_when_the_parent_is_gone(
    study: Path, parent: Path, tmp_path: Path
) -> None:
    shutil.copytree(parent / "model", tmp_path / "earlier")
    config = starting(study, tmp_path / "earlier", epochs=4, learning_rate=0.02, average=0.9)
    train(config, tmp_path / "whole")
    assert any(not torch.allclose(value, state(parent)[name]) for name, value in state(tmp_path / "whole").items())
    seconds = 0.5
    while not (tmp_path / "run" / "checkpoints" / "last.pt").is_file():  # killed before the first epoch's end too
        kill_after(partial(train, config, tmp_path / "run", resume=True), seconds)
        seconds += 1
    shutil.rmtree(tmp_path / "earlier")
    train(config, tmp_path / "run", resume=True)
    for name, value in state(tmp_path / "run").items():
        assert torch.equal(value, state(tmp_path / "whole")[name])


def test_folds_start_from_it_too(study: Path, parent: Path, tmp_path: Path) -> None:
    told: list[str] = []
    config = starting(study, parent).model_copy(update={"folds": 2})
    result = train(config, tmp_path / "run", watch=lambda s, d, t, note="": told.append(note))
    assert isinstance(result, FoldsResult)
    model = load_model(tmp_path / "run")
    assert model.preparation == load_model(parent).preparation
    assert model.description.parent == load_model(parent).hash
    for network in model.networks:
        assert all(torch.allclose(v, state(parent)[n], atol=1e-6) for n, v in network.state_dict().items())
    assert any("held out now" in note for note in told)


def test_the_command(study: Path, parent: Path, tmp_path: Path) -> None:
    place = tmp_path / "an earlier: model"
    shutil.copytree(parent / "model", place)
    path = tmp_path / "study.yaml"
    path.write_text(dump(settings(study, epochs=1, steps_per_epoch=1)), encoding="utf-8")
    run = ["train", str(path), "-o", str(tmp_path / "run"), "--from", str(place)]
    assert command(run) == 0
    assert load(tmp_path / "run" / "config.yaml").start.model == place
    assert command([*run, "--resume"]) == 0
    assert command([*run[:-1], str(tmp_path / "none"), "-o", str(tmp_path / "other")]) == 2

"""The files in `configs/`: all load, and those that claim to equal something do."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from medseg.config import Config, load
from medseg.config.networks import UNetConfig

FOLDER = Path(__file__).resolve().parents[1] / "configs"
FILES = sorted(FOLDER.glob("*.yaml"))


def test_there_are_some() -> None:
    assert {"default.yaml", "seed.yaml", "segnet.yaml", "deeplab.yaml", "bisenet.yaml"} <= {f.name for f in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_loads(path: Path) -> None:
    config = load(path, ["data.scans=somewhere"])
    assert config.data.scans == (Path.cwd() / "somewhere",)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_holds_no_path_of_anybody(path: Path) -> None:
    assert load(path).data == Config().data


@pytest.mark.parametrize("name", ["segnet", "deeplab", "bisenet"])
def test_network_files_change_the_network_only(name: str) -> None:
    config = load(FOLDER / f"{name}.yaml")
    assert config.model.name == name
    assert config.model_copy(update={"model": Config().model}) == Config()


def test_default_is_the_default() -> None:
    """The file writes the recipe out; only its label sources are its own."""
    config = load(FOLDER / "default.yaml")
    assert list(config.labels) == ["tumour"]
    assert config.labels["tumour"][0] == 1
    assert config.model_copy(update={"labels": Config().labels}) == Config()


def test_seed_is_the_document_s_recipe_value_by_value() -> None:
    """U-Net 64-128-256 without norm, Adam at 0.001, cross-entropy, 10 epochs, three slices in: nothing else acts."""
    config = load(FOLDER / "seed.yaml")
    assert config.model == UNetConfig()
    assert (config.model.widths, config.model.norm, config.model.activation) == ((64, 128, 256), "none", "relu")
    assert (config.model.residual, config.model.deep_supervision, config.model.dropout) == (False, False, 0)
    assert 2 * config.prepare.context + 1 == 3
    train = config.train
    assert (train.epochs, train.loss, train.optimizer, train.learning_rate) == (10, "cross_entropy", "adam", 0.001)
    assert train.schedule == "constant"
    nothing = (train.clip_gradient, train.average, train.foreground, train.patience, train.steps_per_epoch)
    assert nothing == (None,) * 5
    augment = config.augment
    off = (augment.mirror, augment.affine, augment.intensity, augment.blur, augment.low_resolution)
    assert off == (0,) * 5


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_begins_with_a_sentence_that_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert yaml.safe_load(text)

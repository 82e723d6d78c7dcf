from __future__ import annotations

from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from medseg.config import AugmentConfig, Config, DataConfig, PrepareConfig, TrainConfig
from medseg.config.networks import UNetConfig
from medseg.config.settings import ChannelConfig, PredictConfig
from medseg.volume import Labels


def models(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models(argument)]


SECTIONS = [
    Config,
    *(model for info in Config.model_fields.values() for model in models(info.annotation)),
    ChannelConfig,
]


@pytest.mark.parametrize("section", SECTIONS)
def test_sections_are_strict_and_frozen(section):
    with pytest.raises(ValidationError, match="not permitted"):
        section(surprise=1)
    made = section()
    field = next(iter(section.model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(made, field, getattr(made, field))


@pytest.mark.parametrize(
    "section", [AugmentConfig, DataConfig, PrepareConfig, TrainConfig, PredictConfig, UNetConfig, ChannelConfig]
)
def test_every_setting_says_what_it_is(section):
    assert [name for name, info in section.model_fields.items() if not info.description and name != "name"] == []


def test_labels_are_numbered_in_the_order_of_the_file():
    config = Config(labels={"tumour": "GTV*", "edema": [2, "EDEMA"]})
    assert config.label_names == Labels({1: "tumour", 2: "edema"})
    assert config.labels == {"tumour": ("GTV*",), "edema": (2, "EDEMA")}


@pytest.mark.parametrize("background", [0, [0]])
def test_background_is_no_label(background):
    assert Config(labels={"background": background, "tumour": 1}).labels == {"tumour": (1,)}


@pytest.mark.parametrize(
    "labels",
    [{}, {"a": 0}, {"a": []}, {" ": 1}, {"a": 1, "b": 1}, {"a": ["x", "x"]}, {"a": -1}, {"a": 1.5}, {"background": 0}],
)
def test_labels_that_make_no_sense(labels):
    with pytest.raises(ValidationError):
        Config(labels=labels)


@pytest.mark.parametrize(
    "prepare",
    [
        {"window_hu": (100, 100)},
        {"percentiles": (99, 1)},
        {"spacing_mm": (0, 1)},
        {"spacing_mm": (1, float("nan"))},
        {"context": -1},
        {"plane": "oblique"},
    ],
)
def test_preparations_that_make_no_sense(prepare):
    with pytest.raises(ValidationError):
        PrepareConfig(**prepare)


@pytest.mark.parametrize("share", [-0.1, 1])
def test_some_patients_must_remain_for_training(share):
    with pytest.raises(ValidationError):
        DataConfig(validation=share)


def test_one_path_is_a_list_of_one():
    assert DataConfig(scans="ct").scans == DataConfig(scans=["ct"]).scans
    assert DataConfig(references=None).references == ()


def test_one_channel_is_a_list_of_one():
    assert DataConfig(select={"modality": "CT"}).select == (ChannelConfig(modality="CT"),)
    with pytest.raises(ValidationError):
        DataConfig(select=[])


def test_networks_are_chosen_by_name():
    assert Config(model={"name": "segnet"}).model.name == "segnet"
    with pytest.raises(ValidationError):
        Config(model={"name": "os.system"})


@pytest.mark.parametrize(
    "given",
    [
        {"labels": {"tumour": [1, "GTV"]}, "unannotated": 1},
        {"labels": {"tumour": [1, "GTV"]}, "unannotated": ["GTV"]},
        {"ignore": [3], "unannotated": [2, 3]},
        {"labels": {f"label {n}": n for n in range(1, 256)}},  # 255 is the number of what nobody annotated
    ],
    ids=["number", "name", "ignored", "255 labels"],
)
def test_what_is_not_annotated_is_no_label_and_not_ignored(given):
    with pytest.raises(ValidationError):
        Config.model_validate(given)


def test_254_labels_and_an_unannotated_zero_are_fine():
    config = Config.model_validate({"labels": {f"label {n}": n for n in range(1, 255)}, "unannotated": 0})
    assert config.unannotated == (0,)

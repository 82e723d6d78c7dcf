from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from medseg.config import Config, load, parse
from medseg.config.load import dump
from medseg.config.yaml_text import plain_value, read_yaml, write_yaml
from medseg.errors import ConfigError, UsageError

ORIGIN = "/study/run.yaml"


def fault(text: str, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        parse(text, ORIGIN, overrides)
    return error.value


# --- read right -------------------------------------------------------------------------------------------------------


def test_only_what_differs_needs_to_stand_there():
    config = parse("train:\n  epochs: 3\n", ORIGIN)
    assert config.train.epochs == 3
    assert config == Config(train={"epochs": 3})


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_marks_and_line_ends_of_other_systems(tmp_path, mark, end):
    path = tmp_path / "run.yaml"
    path.write_bytes(mark + end.join([b"# Pr\xc3\xbcfung", b"train:", b"  epochs: 3", b""]))
    assert load(path).train.epochs == 3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-2.", -2.0),
        ("007", 7),
        ("+4", 4),
        ("no", "no"),
        ("off", "off"),
        ("true", "true"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("2024-01-02", "2024-01-02"),
        ("=", "="),
        ("<<", "<<"),
        ("~", None),
        ("", None),
        ("null", None),
        ("nul", "nul"),
        (".inf", math.inf),
        ("-.inf", -math.inf),
    ],
)
def test_plain_values_follow_yaml_1_2(text, value):
    found = plain_value(text)
    assert found == value
    assert type(found) is type(value)


def test_quoted_values_are_text():
    assert read_yaml("a: '1'\nb: \"null\"\nc: |\n  2\n", ORIGIN).data == {"a": "1", "b": "null", "c": "2\n"}


def test_words_of_yaml_1_1_stay_words():
    config = parse("data: {select: {modality: no}}\nlabels: {off: on}", ORIGIN)
    assert config.data.select[0].modality == "no"
    assert config.labels == {"off": ("on",)}


def test_switches_take_the_usual_words():
    train = parse("train: {tensorboard: true, deterministic: off, patience: null}", ORIGIN).train
    assert (train.tensorboard, train.deterministic, train.patience) == (True, False, None)


def test_an_empty_section_changes_nothing():
    assert parse("train:\n#  epochs: 3\n", ORIGIN) == Config()


def test_a_network_without_a_name_is_the_default_one():
    assert parse("model: {widths: [8, 16]}", ORIGIN).model.name == Config().model.name


def test_copied_label_tables():
    assert parse("labels: {background: 0, tumour: 1, edema: 5}", ORIGIN).labels == {"tumour": (1,), "edema": (5,)}


def test_paths_count_from_the_file_and_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "data: {scans: ct, references: [../masks, /far/away], split: split.json}"
    config = parse(text, ORIGIN, ["data.split=mine.json"])
    assert config.data.scans == (Path("/study/ct"),)
    assert config.data.references == (Path("/masks"), Path("/far/away"))
    assert config.data.split == tmp_path / "mine.json"


def test_home_is_known(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parse("data: {scans: ~/ct}", ORIGIN).data.scans == (Path("/home/me/ct"),)


def test_overrides():
    overrides = [
        "train.epochs=9",
        "prepare.spacing_mm=[1, 2]",
        "train.patience=",
        "labels.liver=[2, 'LIV*']",
        "seed= 5",
    ]
    config = parse("train: {epochs: 3, patience: 4}", ORIGIN, overrides)
    assert (config.train.epochs, config.train.patience, config.seed) == (9, None, 5)
    assert config.prepare.spacing_mm == (1, 2)
    assert config.labels == {"liver": (2, "LIV*")}


def test_overrides_reach_into_lists():
    config = parse("data: {select: [{name: t1}, {name: t2}]}", ORIGIN, ["data.select.1.modality=MR"])
    assert [channel.modality for channel in config.data.select] == [None, "MR"]


# --- written and read again -------------------------------------------------------------------------------------------

NAMES = st.text(min_size=1).filter(lambda s: s.strip() and s != "background" and not s.startswith("$"))
ODD_WORDS = st.sampled_from(
    ["1e-3", "no", "null", "~", "true", "0x1", "2024-01-01", "", " a ", "a: b", "# c", "*x", "&x", "007"]
)
VALUES = st.recursive(  # no text that begins with $, which is refused
    st.none() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | NAMES | ODD_WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | ODD_WORDS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(NAMES | ODD_WORDS, VALUES, min_size=1))
def test_yaml_comes_back(data):
    assert read_yaml(write_yaml(data), ORIGIN).data == data


@given(st.dictionaries(NAMES, VALUES, min_size=1))
def test_readers_of_yaml_1_1_read_the_same(data):
    assert yaml.safe_load(write_yaml(data)) == data


@pytest.mark.parametrize("network", ["unet", "segnet", "deeplab", "bisenet"])
def test_dump_comes_back(network):
    text = f"""
    data: {{scans: [a, 'b c'], split: s.json, select: [{{name: t1, modality: MR}}, {{name: no, referenced: true}}]}}
    labels: {{'1e-3': ['1e-3', 3], 'true': 'GTV*'}}
    model: {{name: {network}}}
    train: {{learning_rate: 1e-5, patch: [64, 96]}}
    prepare: {{window_hu: [-100, 240.5]}}
    """
    config = parse(text, ORIGIN)
    assert parse(dump(config), "/elsewhere/x.yaml") == config


def test_dump_has_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse(dump(Config(data={"scans": "ct"})), ORIGIN).data.scans == (tmp_path / "ct",)


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("x: !!python/object/apply:os.system ['true']", "CONFIG-UNSAFE", ":1:4: the tag"),
        ("train: {epochs: !!int 3}", "CONFIG-UNSAFE", "the tag"),
        ("!custom {}", "CONFIG-UNSAFE", "the tag"),
        ("train:\n  epochs: $@epochs * 2", "CONFIG-UNSAFE", ":2:11: '$@epochs * 2' is an expression"),
        ("labels: {tumour: '$import os'}", "CONFIG-UNSAFE", "is an expression"),
        ("model:\n  _target_: os.system", "CONFIG-UNSAFE", ":2:3: `_target_` asks for code"),
        ("a: &a [1]\nb: [*a, *a]", "CONFIG-UNSAFE", ":1:4: anchors"),
        ("train: {<<: *other}", "CONFIG-UNSAFE", "anchors"),
        ("[" * 100_000, "CONFIG-UNSAFE", "levels deep"),
        ("{a: " * 1000 + "1" + "}" * 1000, "CONFIG-UNSAFE", "levels deep"),
        ("# " + "x" * (1 << 20), "CONFIG-UNSAFE", "characters"),
        ("", "CONFIG-SYNTAX", "the file is empty"),
        ("# nothing but a remark\n", "CONFIG-SYNTAX", "the file is empty"),
        ("- 1\n- 2\n", "CONFIG-SYNTAX", "holds [1, 2], wanted sections"),
        ("just words", "CONFIG-SYNTAX", "holds 'just words', wanted sections"),
        ("train:\n\tepochs: 3", "CONFIG-SYNTAX", ":2:1: found character '\\t'"),
        ("train: [1", "CONFIG-SYNTAX", ":1:10: expected ',' or ']'"),
        ("a: 1\n b: 2", "CONFIG-SYNTAX", ":2:3: mapping values are not allowed"),
        ("a: 1\n---\nb: 2", "CONFIG-SYNTAX", ":2:1: a second document"),
        ("? [a, b]\n: 1", "CONFIG-SYNTAX", "stands as a key"),
        ("a: \x07", "CONFIG-SYNTAX", "U+0007"),
        ("seed: 1\nseed: 2", "CONFIG-KEY", ":1: seed: stands twice, again in line 2"),
        (
            "train: {learning_rte: 1}",
            "CONFIG-KEY",
            ":1: train.learning_rte: unknown key, did you mean 'learning_rate'?",
        ),
        ("epochs: 3", "CONFIG-KEY", "epochs: unknown key here; it belongs under `train:`"),
        ("train: {prepare: {}}", "CONFIG-KEY", "train.prepare: unknown key here; it belongs at the top level"),
        ("model: {encoder: resnet18}", "CONFIG-KEY", "it belongs under `model:` (name: deeplab)"),
        ("lerning_rate: 3", "CONFIG-KEY", "did you mean 'learning_rate', which belongs under `train:`?"),
        (
            "data: {select: [{}, {modalty: CT}]}",
            "CONFIG-KEY",
            "data.select.1.modalty: unknown key, did you mean 'modality'?",
        ),
        ("data: {select: {output: off}}", "CONFIG-KEY", "known here: name, modality, description, referenced"),
        ("train:\n  epochs: ten", "CONFIG-VALUE", ":2: train.epochs: 'ten', wanted a whole number"),
        ("train: {epochs: 1.5}", "CONFIG-VALUE", "1.5, wanted a whole number"),
        ("train: {epochs: true}", "CONFIG-VALUE", "'true', wanted a whole number"),
        ("train: {epochs: -1}", "CONFIG-VALUE", "-1, wanted at least 1"),
        ("train: {learning_rate: .nan}", "CONFIG-VALUE", "nan, wanted a finite number"),
        ("train: {learning_rate: .inf}", "CONFIG-VALUE", "inf, wanted"),
        ("train: {tensorboard: maybe}", "CONFIG-VALUE", "'maybe', wanted true or false"),
        ("train: {optimizer: lion}", "CONFIG-VALUE", "'lion', wanted 'muon', 'adamw', 'adam' or 'sgd'"),
        ("train: 3", "CONFIG-VALUE", "3, wanted a section"),
        ("prepare: {spacing_mm: [1]}", "CONFIG-VALUE", "[1], wanted one value more"),
        ("prepare: {spacing_mm: [1, 2, 3]}", "CONFIG-VALUE", "wanted at most 2"),
        ("prepare: {window_hu: [3, 1]}", "CONFIG-VALUE", ":1: prepare: the lower bound 3.0 is not below"),
        (
            "model: {name: vnet}",
            "CONFIG-VALUE",
            "model.name: 'vnet', wanted one of 'unet', 'segnet', 'deeplab', 'bisenet'",
        ),
        ("data: {split: 3}", "CONFIG-VALUE", "3, wanted a path"),
        ("labels: [tumour]", "CONFIG-VALUE", "labels: ['tumour'], wanted a section"),
        ("labels: {a: 1, b: 1}", "CONFIG-VALUE", "labels 'a' and 'b' both take 1"),
        ("labels: {a: -1}", "CONFIG-VALUE", "-1, wanted at least 0 or text"),
        ("data: {select: {modality: 3}}", "CONFIG-VALUE", "data.select.modality: 3, wanted text (in quotes"),
        ("seed: " + "9" * 300, "CONFIG-VALUE", "seed: 9999"),
        ("seed: " + "9" * 5000, "CONFIG-VALUE", "seed: inf"),
    ],
)
def test_refuses(text, code, message):
    error = fault(text)
    assert error.code == code
    assert message in str(error)
    assert str(error).startswith(ORIGIN)
    assert len(str(error)) < 400


def test_all_faults_at_once_in_the_order_of_their_lines():
    text = "train:\n  learning_rte: 1\n  epochs: ten\n  epochs: 4\nprepare:\n  plane: up\nlabels:\n  a: [1.5]\n"
    error = fault(text, "seed=x", "predict.batch=2")
    assert error.code == "CONFIG-KEY"
    lines = str(error).splitlines()
    assert lines[0] == f"{ORIGIN}: 7 faults"
    assert [line.split(": ")[:2] for line in lines[1:-1]] == [
        [f"  {ORIGIN}:2", "train.learning_rte"],
        [f"  {ORIGIN}:3", "train.epochs"],
        [f"  {ORIGIN}:3", "train.epochs"],
        [f"  {ORIGIN}:6", "prepare.plane"],
        [f"  {ORIGIN}:8", "labels.a.0"],
        ["  command line", "predict.batch"],
        ["  command line", "seed"],
    ]


def test_billion_laughs_end_at_once():
    text = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(20)
    )
    start = time.perf_counter()
    assert fault(text).code == "CONFIG-UNSAFE"
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    ("override", "code", "message"),
    [
        ("epochs", "CONFIG-SYNTAX", "command line: 'epochs', wanted `section.key=value`"),
        ("=3", "CONFIG-SYNTAX", "wanted `section.key=value`"),
        ("train..epochs=3", "CONFIG-SYNTAX", "wanted `section.key=value`"),
        ("train.epochs=[1", "CONFIG-SYNTAX", "command line: train.epochs:1:3"),
        ("train.epochs=!!python/name:os.system", "CONFIG-UNSAFE", "the tag"),
        ("train.epochs=$x", "CONFIG-UNSAFE", "command line: train.epochs"),
        ("train.epochs=ten", "CONFIG-VALUE", "command line: train.epochs: 'ten'"),
        ("train.epoch=3", "CONFIG-KEY", "command line: train.epoch: unknown key, did you mean 'epochs'?"),
        ("seed.x=3", "CONFIG-VALUE", "command line: seed: a section, wanted a whole number"),
        ("ignore.3.x=3", "CONFIG-KEY", "command line: ignore.3.x: '3' is no position in a list of 1"),
    ],
)
def test_refuses_an_override(override, code, message):
    error = fault("seed: 1\nignore: [a]\n", override)
    assert error.code == code
    assert message in str(error)


def test_refuses_what_is_not_utf_8(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes("seed: 1\n# Prüfung".encode("latin-1"))
    with pytest.raises(ConfigError, match="0xFC is not UTF-8") as error:
        load(path)
    assert error.value.code == "CONFIG-SYNTAX"
    assert error.value.where == f"{path}:2"


def test_refuses_what_is_not_there(tmp_path):
    for path in (tmp_path, tmp_path / "absent.yaml"):
        with pytest.raises(UsageError) as error:
            load(path)
        assert error.value.code == "USAGE-PATH"


@given(st.text())
def test_no_text_ends_in_a_traceback(text):
    try:
        parse(text, ORIGIN)
    except ConfigError:
        return


@given(st.binary())
def test_no_bytes_end_in_a_traceback(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(data)
    try:
        load(path)
    except ConfigError:
        return

"""The model card: true, complete, and never more than text, whatever names a study has."""

from __future__ import annotations

import re
from dataclasses import asdict
from html import unescape
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt  # an independent reader, which comes with rich

from medseg.facts import LabelFacts, ScanFacts, joined, seen_in
from medseg.models import build
from medseg.models.card import LONGEST, card, plain
from medseg.models.model_folder import join_models, load_model, save_model
from tests.models.test_model_folder import NETWORKS, described

HOSTILE = "[x](javascript:run) <img src=x onerror=run> | `b` *c* __d__ ~~e~~ $f$ @me www.evil.com http://evil &lt;"


def seen(*volumes_ml: float, label: str = "tumour") -> dict[str, object]:
    """Cases of 1 x 1 x 3 mm, one for each volume."""
    scans = ScanFacts("THIGH", (1.0, 1.0, 3.0), (200, 100, 20), ("MR",), (None,))
    return {"seen": asdict(joined([seen_in(scans, {label: LabelFacts(ml, 1)}) for ml in volumes_ml]))}


SCORES = {
    "tumour": {"cases": 10, "mean_dice": 0.629, "mean_dice_low": 0.407, "mean_dice_high": 0.765, "median_dice": 0.732}
}


def rows(text: str) -> dict[str, list[str]]:
    """First cell of each table row to the others."""
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return {first: others for first, *others in cells}


def tags(text: str) -> list[str]:
    return re.findall(r"<(\w+)", MarkdownIt("gfm-like", {"linkify": False}).render(text))


def test_it_says_what_the_model_knows(tmp_path: Path) -> None:
    description = described(
        NETWORKS[0], trained_on=seen(20, 3.5, 400), scores=SCORES, recipe={"train.loss": "dice_cross_entropy"}
    )
    save_model(tmp_path / "model", description, build(NETWORKS[0], 3, 2).state_dict())
    text, model = (tmp_path / "model" / "README.md").read_text(), load_model(tmp_path / "model")
    found = rows(text)
    assert found["number"] == ["3"]
    assert found["modality of channel 1"] == ["MR (3)"]
    assert found["spacing along x, y, z (mm)"] == ["1 x 1 x 3"]
    assert found["field of view along x, y, z (mm)"] == ["200 x 100 x 60"]
    assert found["`train.loss`"] == ["dice\\_cross\\_entropy"]
    assert "| tumour | 3 | 3.5 to 400 | 1 |" in text
    assert "| tumour | 10 | 0.629 | 0.407 to 0.765 | 0.732 |" in text
    assert "not for clinical use" in text
    digest = model.description.weights["weights.safetensors"]
    assert digest in text
    assert f"by the model {digest[:12]}, trained on 3 cases" in text
    assert model.description.versions["torch"].replace("+", "+") in text


def test_it_says_what_it_does_not_know() -> None:
    text = card(described(NETWORKS[0]))
    assert "Not recorded." in text
    assert "Not measured" in text
    few = {"tumour": {"cases": 3, "mean_dice": 0.5, "mean_dice_low": None, "mean_dice_high": None}}
    assert "too few patients" in card(described(NETWORKS[0], scores=few))


def test_an_ensemble_reaches_as_far_as_its_members(tmp_path: Path) -> None:
    network = build(NETWORKS[0], 3, 2).state_dict()
    for name, volume, epochs in (("a", 2, 5), ("b", 70, 5), ("c", 9, 6)):
        description = described(NETWORKS[0], trained_on=seen(volume), recipe={"train.epochs": epochs})
        save_model(tmp_path / name, description, network)
    models = [load_model(tmp_path / name) for name in "abc"]
    join_models(models, tmp_path / "all")
    text = (tmp_path / "all" / "README.md").read_text()
    assert "An ensemble of 3 networks" in text
    assert "| tumour | 3 | 2 to 70 | 1 |" in text
    assert "train.epochs" not in text  # they differ
    join_models(models[:2], tmp_path / "two")
    assert rows((tmp_path / "two" / "README.md").read_text())["`train.epochs`"] == ["5"]


@pytest.mark.parametrize("name", [HOSTILE, "a\n\n# b\n", "x\r\n| y | z |\n|---|---|", "\u202e<script>"])
def test_names_are_text_and_nothing_else(name: str) -> None:
    def of(label: str) -> str:
        scores = {label: SCORES["tumour"]}
        return card(described(NETWORKS[0], labels={1: label}, trained_on=seen(1, label=label), scores=scores))

    assert tags(of(name)) == tags(of("tumour"))


@given(st.text(max_size=LONGEST))
def test_a_name_is_shown_as_it_is(name: str) -> None:
    shown = unescape(MarkdownIt("gfm-like", {"linkify": False}).renderInline(plain(f"x{name}")))
    wanted = " ".join("".join(letter if letter.isprintable() else " " for letter in f"x{name}").split())
    assert shown.removesuffix("...") == wanted[:LONGEST]

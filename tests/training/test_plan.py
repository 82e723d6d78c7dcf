"""The plan: every decision once, with its reason, in a file that says it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg.augment import LIGHT, STRONG
from medseg.case import Split
from medseg.case_measure import CaseMeasure
from medseg.check import Examination, examine
from medseg.config import AugmentConfig, Config, PrepareConfig, load
from medseg.config.networks import UNetConfig
from medseg.fingerprint import fingerprint
from medseg.models import UNet
from medseg.preparation import working_grid
from medseg.store import SliceStore
from medseg.training import cases, train
from medseg.training.plan import LEFT_OPEN, Plan, fitted_patch, fitted_widths, make_plan
from medseg.training.plan_slices import _upside_down, stack_of
from medseg.training.sides import labels_with_a_side
from tests.studies import GRID, settings


def open_settings(study: Path, **changes: Any) -> Config:
    """Nothing is decided but what `changes` say."""
    config = settings(study, **{"model": UNetConfig(widths=None, norm="instance"), "precision": "auto", **changes})
    return config.model_copy(update={"augment": AugmentConfig()})


def changed(found: Examination, change: Callable[[int, CaseMeasure], CaseMeasure]) -> Examination:
    return replace(found, measures={name: change(n, m) for n, (name, m) in enumerate(found.measures.items())})


def comments(plan: Plan) -> dict[str, str]:
    """What stands behind each key of the file, the name of its section in front."""
    section, found = "", {}
    for line in plan.to_yaml().splitlines():
        key, _, rest = line.partition(":")
        section = section if line.startswith(" ") else f"{key}."
        found[section + key.strip() if line.startswith(" ") else key] = rest.partition("  # ")[2]
    return found


# --------------------------------------------------------------------------------------------------------- the file


def test_what_is_open_is_filled_in_with_a_reason_and_said_again(study: Path, found: Examination) -> None:
    plan = make_plan(open_settings(study), found, torch.device("cpu"))
    file = study / "plan.yaml"
    file.write_text(plan.to_yaml())
    loaded = load(file)
    assert loaded.prepare.plane == "axial"
    assert loaded.model.widths == (64, 128, 256)  # type: ignore[union-attr]  # 20 pixels: 10, 5; half of 5 is below 4
    assert loaded.train.patch == (24, 20)  # rows along y: 24 is a multiple of 4 already, as is 20
    said = comments(plan)
    for key in LEFT_OPEN:
        if key not in ("prepare.window_hu", "start.hash"):  # stay open: no CT, no earlier model
            assert said[key], key
    assert said["prepare.plane"] == "native plane of 3 of 3 training cases"
    assert said["prepare.spacing_mm"] == "median of 3 training cases (all alike)"
    # Three cases of 5 slices in steps of 4; the median slice of 24 x 20 pools twice.
    assert said["train.epochs"] == "of 4 steps: 12 steps in all"
    assert "24 x 20 leaves 6 x 5 at the bottom" in said["model.widths"]
    again = make_plan(loaded, found, torch.device("cpu"))
    assert again.config == loaded
    assert again.to_yaml() == plan.to_yaml()


def test_a_given_value_stays_and_its_line_says_what_was_measured(study: Path, found: Examination) -> None:
    prepare = PrepareConfig(spacing_mm=(2, 2), plane="coronal")
    plan = make_plan(open_settings(study, prepare=prepare, patch=(8, 8), loss="dice"), found)
    assert plan.config.prepare.spacing_mm == (2, 2)
    assert plan.config.train.patch == (8, 8)
    assert plan.config.train.precision == "auto"  # no device was named
    said = comments(plan)
    assert said["prepare.plane"].startswith("as set; measured: axial, native plane of 3 of 3")
    assert said["prepare.spacing_mm"].startswith("as set; measured: [3, 1]")  # rows of a coronal slice run along z
    assert said["train.loss"] == "as set; the default is dice_cross_entropy"
    assert said["train.precision"] == ""


def test_slices_follow_the_references(study: Path, found: Examination) -> None:
    plan = make_plan(open_settings(study), changed(found, lambda _, case: replace(case, drawn="coronal")))
    assert plan.preparation.plane == "coronal"
    why = "the outlines of 3 of 3 training cases were drawn in it, by their steps from slice to slice"
    assert comments(plan)["prepare.plane"] == why


def test_training_follows_the_plan_and_a_resumed_run_keeps_its_words(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores: list[SliceStore] = []
    build = cases.build_store
    monkeypatch.setattr(cases, "build_store", lambda *args: stores.append(build(*args)) or stores[-1])
    config = open_settings(study, epochs=1)
    train(config, tmp_path / "run")
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert text == make_plan(config, examine(config), torch.device("cpu")).to_yaml()
    # The plan counts slices from the measures of the cases: they are those that are really prepared.
    slices = sum(entry.shape[0] for entry in stores[0])
    assert f"{slices} training slices" in text
    train(config, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "config.yaml").read_text() == text


# ------------------------------------------------------------------------------------------------------ the decisions


def test_sizes_are_those_of_the_working_grid(study: Path, found: Examination) -> None:
    for plane in ("axial", "coronal", "sagittal"):
        prepare = PrepareConfig(plane=plane, spacing_mm=(0.7, 1.3))
        plan = make_plan(open_settings(study, prepare=prepare), found)
        for case in found.dataset.cases:
            rows, columns, count = working_grid(GRID, plan.preparation).shape
            assert stack_of(found.measures[case.id], plan.preparation) == (count, rows, columns)


@pytest.mark.parametrize(
    ("size", "widths"),
    [
        ((512, 512), (16, 32, 64, 128, 256)),
        ((64, 500), (16, 32, 64, 128, 256)),  # 64 / 16 = 4
        ((63, 500), (32, 64, 128, 256)),
        ((36, 50), (32, 64, 128, 256)),
        ((8, 8), (128, 256)),
        ((1, 1), (128, 256)),
    ],
)
def test_a_network_is_no_deeper_than_its_slices(size: tuple[int, int], widths: tuple[int, ...]) -> None:
    assert fitted_widths(*size) == widths


def test_a_patch_is_a_whole_slice_up_to_a_limit() -> None:
    assert fitted_patch(137.5, 147, 16) == (144, 160)
    assert fitted_patch(900, 3, 16) == (320, 16)
    assert fitted_patch(900, 900, 128) == (256, 256)  # 320 is no multiple of 128


@pytest.mark.parametrize("widths", [(2, 3), (2, 2, 3)])
@pytest.mark.parametrize("convs", [1, 2])
def test_a_logit_sees_as_far_as_its_gradient_reaches(widths: tuple[int, ...], convs: int) -> None:
    network = UNet(1, 1, widths=widths, convs_per_stage=convs)
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, 0.01)  # nothing cancels, no unit is off
    image = torch.rand(1, 1, 64, 64, requires_grad=True)
    # Where the winner of a pooling stands is chance: every pixel of its window counts, as in a mean.
    for name, module in list(network.named_children()):
        if isinstance(module, torch.nn.MaxPool2d):
            setattr(network, name, torch.nn.AvgPool2d(2))
    reach = 0
    for place in range(30, 34):  # the far end depends on where in its coarsest pixel a logit lies
        image.grad = None
        network(image)[0, 0, place, place].backward()
        seen = np.flatnonzero(image.grad[0, 0].abs().sum(1).numpy())  # type: ignore[union-attr]
        reach = max(reach, int(seen[-1] - seen[0]) + 1)
    assert reach == network.sees


def test_labels_of_one_side_are_known_by_name() -> None:
    assert labels_with_a_side(["kidney left", "liver"]) == ["kidney left"]
    assert labels_with_a_side(["LungRight", "lung_LEFT"]) == ["LungRight", "lung_LEFT"]
    assert labels_with_a_side(["eye_l", "eye_r", "l"]) == ["eye_l", "eye_r"]
    assert labels_with_a_side(["tumour", "leftover", "bright", "type l", "R"]) == []


def boxes(x: float, y: float, size: float = 20.0) -> Any:
    return ((x, x + size), (y, y + size), (30.0, 60.0))


@pytest.mark.parametrize(
    ("second", "pair"),
    [
        (boxes(80, 12), True),
        (boxes(80, 60), False),  # as far in front as beside
        (boxes(80, 12, 45.0), False),  # more than twice as long
        (boxes(10, 80), False),
    ],
)
def test_labels_of_one_size_beside_each_other_are_left_and_right(
    study: Path, found: Examination, second: Any, pair: bool
) -> None:
    config = open_settings(study, labels={"one": (1,), "two": (2,)})
    two = [
        replace(
            measure,
            label_voxels=(9, 9),
            label_chords_mm=2 * measure.label_chords_mm,
            label_facts=2 * measure.label_facts,
            label_boxes_mm=(boxes(10, 10), second),
        )
        for measure in found.measures.values()
    ]
    assert fingerprint(two, config).mirrored == ((("one", "two"),) if pair else ())
    assert fingerprint(two[:2], config).mirrored == ()  # two cases say nothing
    swapped = [replace(m, label_boxes_mm=m.label_boxes_mm[::-1]) if n % 2 else m for n, m in enumerate(two)]
    assert fingerprint(swapped, config).mirrored == ()  # not always on the same side


def test_nothing_is_mirrored_where_sides_differ(study: Path, found: Examination) -> None:
    plan = make_plan(open_settings(study), found)
    assert plan.config.augment.mirror == 0.5
    plan = make_plan(open_settings(study, prepare=PrepareConfig(plane="sagittal")), found)
    assert plan.config.augment.mirror == 0
    assert "front to back" in plan.reasons["augment.mirror"]
    plan = make_plan(open_settings(study, labels={"left kidney": (1,)}), found)
    assert plan.config.augment.mirror == 0
    assert "'left kidney'" in plan.reasons["augment.mirror"]
    assert plan.warnings == ()
    asked = open_settings(study, labels={"left kidney": (1,)})
    plan = make_plan(asked.model_copy(update={"augment": AugmentConfig(mirror=0.5)}), found)
    assert plan.config.augment.mirror == 0.5
    assert [finding.code for finding in plan.warnings] == ["DATA-SIDES"]


def test_oblong_pixels_turn_less(study: Path, found: Examination) -> None:
    plan = make_plan(open_settings(study), found)
    assert plan.config.augment.rotation_deg == 40  # a few cases
    plan = make_plan(open_settings(study, prepare=PrepareConfig(plane="coronal")), found)  # 3 mm by 1 mm
    assert plan.config.augment.rotation_deg == pytest.approx(13.3)
    assert [(finding.code, finding.where) for finding in plan.warnings] == [("DATA-PLANE", "prepare.plane")]


def test_few_cases_are_changed_strongly_and_many_lightly(study: Path, found: Examination) -> None:
    few = make_plan(open_settings(study), found)
    assert [getattr(few.config.augment, name) for name in STRONG] == list(STRONG.values())
    names = [f"{name}-{copy}" for copy in range(20) for name in found.measures]
    measures = {name: replace(found.measures[name.rsplit("-", 1)[0]], id=name) for name in names}
    many = replace(found, measures=measures, split=Split(tuple(names), ()))
    plan = make_plan(open_settings(study, batch_size=None), many)
    assert [getattr(plan.config.augment, name) for name in LIGHT] == list(LIGHT.values())
    assert "many" in plan.reasons["augment.affine"]
    assert plan.config.train.batch_size is None  # without a device
    assert plan.reasons["train.batch_size"].startswith("slices in a step, 12, or fewer where they")
    here = make_plan(open_settings(study, batch_size=None), many, torch.device("cpu"))
    assert here.config.train.batch_size == 12
    again = make_plan(here.config, many, torch.device("cpu"))
    assert again.reasons["train.batch_size"] == here.reasons["train.batch_size"]


def test_muon_unless_its_matrices_take_a_processor_too_long(study: Path, found: Examination) -> None:
    def planned(patch: int, **changes: Any) -> Plan:
        model = UNetConfig(widths=(8, 512), norm="instance")
        config = open_settings(study, **{"model": model, "patch": (patch, patch), "optimizer": None, **changes})
        return make_plan(config, found, torch.device("cpu"))

    large = planned(512)
    assert (large.config.train.optimizer, large.reasons["train.optimizer"][:10]) == ("muon", "orthogonal")
    small = planned(8, batch_size=1)
    assert small.config.train.optimizer == "adamw"
    assert "times as long here" in small.reasons["train.optimizer"]
    assert planned(8, batch_size=1, optimizer="muon").config.train.optimizer == "muon"
    assert planned(512, optimizer="sgd").config.train.optimizer == "sgd"
    # Twice as long in bf16, where all but Muon is faster; left open where no device is known.
    share = next(patch for patch in range(8, 512, 8) if planned(patch).config.train.optimizer == "muon")
    assert planned(share, precision="bf16").config.train.optimizer == "adamw"
    assert planned(2 * share, precision="bf16").config.train.optimizer == "muon"
    unknown = make_plan(open_settings(study, optimizer=None), found)
    assert unknown.config.train.optimizer is None
    assert unknown.reasons["train.optimizer"].startswith("muon, or adamw")


def test_several_labels_are_not_turned_upside_down() -> None:
    assert _upside_down(1, 0.5, "few") == (0.5, "few")
    assert _upside_down(2, 0.5, "few")[0] == 0


@pytest.mark.parametrize(("axis", "where"), [(0, "prepare.spacing_mm"), (2, "prepare.context")])
def test_spacings_that_vary_are_told(study: Path, found: Examination, axis: int, where: str) -> None:
    def stretched(number: int, measure: CaseMeasure) -> CaseMeasure:
        spacing = list(measure.spacing_mm)
        spacing[axis] *= 1 + number
        return replace(measure, spacing_mm=tuple(spacing))

    plan = make_plan(open_settings(study), changed(found, stretched))
    assert [(finding.code, finding.where) for finding in plan.warnings if finding.code == "DATA-SPACING"] == [
        ("DATA-SPACING", where)
    ]

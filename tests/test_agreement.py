"""Estimates of Dice without a reference: by arithmetic, by chance, and through the whole prediction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medseg.agreement import Agreement, Tally
from medseg.config import PredictConfig
from medseg.config.networks import UNetConfig
from medseg.models import build
from medseg.models.model_folder import Model
from medseg.prediction import Outputs, Predictor
from medseg.volume import Labels, Volume
from tests.studies import GRID, random_volume, threshold_model

NO_VOTES = torch.zeros(1, 0, 1, 4, dtype=torch.uint8)


def logits_of(*probabilities: list[float]) -> Tensor:
    """One slice of four pixels; a row for each class."""
    return torch.tensor(probabilities).log()[None, :, None]


def tallied(logits: Tensor, votes: Tensor = NO_VOTES) -> Agreement:
    tally = Tally()
    tally.add(logits, votes)
    return tally.agreement()


def test_expected_dice_by_hand() -> None:
    foreground = [0.9, 0.6, 0.4, 0.1]  # the mask: the first two
    found = tallied(logits_of([1 - p for p in foreground], foreground))
    assert found.expected[1] == pytest.approx(2 * (0.9 + 0.6) / (2 + 0.9 + 0.6 + 0.4 + 0.1))
    assert found.between == {}
    sigmoid = torch.tensor(foreground).logit()[None, None, None]
    assert tallied(sigmoid).expected[1] == pytest.approx(found.expected[1])


def test_each_label_by_itself_and_none_for_a_label_that_is_absent() -> None:
    one, two, three = [0.8, 0.3, 0.1, 0.1], [0.1, 0.6, 0.7, 0.2], [0.0, 0.05, 0.1, 0.1]  # the mask: 1, 2, 2, 0
    background = [1 - sum(each) for each in zip(one, two, three, strict=True)]
    found = tallied(logits_of(background, one, two, three)).expected
    assert found == pytest.approx({1: 2 * 0.8 / (1 + 1.3), 2: 2 * (0.6 + 0.7) / (2 + 1.6)})


def test_votes_by_hand() -> None:
    logits = logits_of([0.1, 0.1, 0.9, 0.9], [0.9, 0.9, 0.1, 0.1])  # the mask: the first two
    votes = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.uint8)[None, :, None]
    assert tallied(logits, votes).between == pytest.approx({1: (2 / 3 + 4 / 6 + 0) / 3})


def test_a_certain_mask_is_expected_to_be_right() -> None:
    found = tallied(torch.tensor([[[-50.0, -50, 50, 50]], [[50.0, 50, -50, -50]]])[None])
    assert found.expected[1] == pytest.approx(1)
    assert tallied(logits_of([0.9] * 4, [0.1] * 4)) == Agreement({}, {})  # nothing in the mask


def test_it_is_the_mean_dice_of_truths_drawn_from_the_probabilities() -> None:
    rng = np.random.default_rng(0)
    p = np.clip(rng.beta(0.4, 0.8, (1, 100, 100)), 1e-3, 1 - 1e-3)
    mask = p > 0.5
    drawn = [rng.random(p.shape) < p for _ in range(50)]
    dice = [2 * (mask & truth).sum() / (mask.sum() + truth.sum()) for truth in drawn]
    logits = torch.tensor(np.log(p / (1 - p)), dtype=torch.float32)[:, None]
    votes = torch.zeros(1, 0, 100, 100, dtype=torch.uint8)
    assert tallied(logits, votes).expected[1] == pytest.approx(np.mean(dice), abs=0.002)  # 10,000 pixels, 50 draws


def test_slices_may_come_in_any_parts_and_order() -> None:
    torch.manual_seed(0)
    outputs = Outputs(torch.randn(7, 4, 9, 8), torch.randint(0, 4, (7, 3, 9, 8), dtype=torch.uint8))
    parts = outputs.split([2, 1, 4])
    whole, pieces = Tally(), Tally()
    whole.add(outputs.logits, outputs.votes)
    for part in (parts[2], parts[0], parts[1]):
        pieces.add(part.logits, part.votes)
    assert pieces.agreement().expected == pytest.approx(whole.agreement().expected)
    assert pieces.agreement().between == pytest.approx(whole.agreement().between)
    again = Outputs.join(parts)
    assert torch.equal(again.logits, outputs.logits)
    assert torch.equal(again.votes, outputs.votes)


def test_names_take_the_place_of_numbers() -> None:
    found = Agreement({1: 0.9, 3: 0.5}, {})
    assert found.by_name(Labels({1: "kidney", 2: "cyst", 3: "tumour"})) == {"kidney": 0.9, "tumour": 0.5}


# --------------------------------------------------------------------------------------- through the whole prediction


def predicted(model: Model, volume: Volume, **changes: object) -> Agreement:
    settings = {"engine": "torch", "precision": "fp32", "device": "cpu", **changes}
    return Predictor(model, PredictConfig.model_validate(settings)).predict(volume).agreement


def test_networks_of_one_mind_agree_and_a_single_one_has_nobody_to_agree_with() -> None:
    volume, model = random_volume(GRID), threshold_model(30)
    assert predicted(model, volume).between == {}
    twins = Model(model.networks * 2, model.description, model.preparation)
    assert predicted(twins, volume).between == {1: 1.0}
    assert predicted(model, volume, mirror=True).between == {1: 1.0}  # it looks at one pixel
    assert predicted(model, volume).expected == pytest.approx({1: 1.0}, abs=0.01)  # and is sure: its logits are whole


def test_disagreement_of_networks_and_of_mirrored_views_is_seen() -> None:
    volume, low, high = random_volume(GRID), threshold_model(100), threshold_model(300)
    both = Model((*low.networks, *high.networks), low.description, low.preparation)
    above = [int((volume.voxels > level).sum()) for level in (100, 200, 300)]
    # Their mean is foreground where 2 x value - 400 > 0 (no value is 200 to a thousandth): the nearer one is surer.
    dice = [2 * min(above[1], own) / (above[1] + own) for own in (above[0], above[2])]
    assert predicted(both, volume).between == pytest.approx({1: sum(dice) / 2}, abs=0.01)
    sideways = threshold_model(30, tap=(0, 0, -1))
    assert predicted(sideways, volume, mirror=True).between[1] < 0.9


@pytest.mark.parametrize("mirror", [False, True])
def test_the_batch_size_changes_no_estimate(mirror: bool) -> None:
    torch.manual_seed(0)
    plain = threshold_model(0, patch=(32, 32))
    model = Model(
        (build(UNetConfig(widths=(4, 8), norm="instance"), 3, 2).eval(),), plain.description, plain.preparation
    )
    volume = random_volume(GRID)
    one, many = (predicted(model, volume, batch_size=size, mirror=mirror) for size in (2, 100))
    assert one.expected == pytest.approx(many.expected, abs=1e-6)
    assert one.between == pytest.approx(many.between, abs=1e-3)
    assert 0 < one.expected[1] < 1

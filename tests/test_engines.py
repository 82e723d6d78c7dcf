"""Every engine beside torch in float32, the exact one: the same logits, the same masks, or it is not taken."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medseg import engines
from medseg.config import PredictConfig
from medseg.config.networks import BiSeNetConfig, DeepLabConfig, ModelConfig, SegNetConfig, UNetConfig
from medseg.engines import ENOUGH, EQUAL, Choice, Engine, Ranges, choose, installed, mask_dice, offered, start
from medseg.errors import RunError
from medseg.models import Network, build
from medseg.prediction import Predictor, predict
from tests.studies import GRID, random_model, random_volume, threshold_model

CPU = torch.device("cpu")
NETWORKS: dict[str, ModelConfig] = {
    "plain U-Net": UNetConfig(widths=(8, 16, 32)),
    "U-Net, instance": UNetConfig(widths=(8, 16, 32), norm="instance", activation="leaky_relu"),
    "U-Net, group, residual": UNetConfig(widths=(8, 16), norm="group", residual=True, deep_supervision=True),
    "U-Net, batch": UNetConfig(widths=(8, 16), norm="batch", dropout=0.2),
    "SegNet": SegNetConfig(widths=(8, 16, 32), convs_per_stage=(2, 2, 2)),
    "DeepLab": DeepLabConfig(encoder="resnet18", width=32),
    "DeepLab, stride 8": DeepLabConfig(encoder="resnet18", width=32, output_stride=8),
    "BiSeNet": BiSeNetConfig(head_width=64),
}
SIZES = [(2, 64, 64), (3, 33, 70), (1, 7, 5), (2, 64, 96)]
EXTRAS = [
    pytest.param(name, marks=pytest.mark.skipif(not installed(name), reason=f"pip install 'medseg[{name}]'"))
    for name in ("openvino", "onnx")
]


def engine(name: str, precision: str = "fp32") -> Engine:
    return Engine.model_validate({"name": name, "precision": precision, "version": "1"})


def network(config: ModelConfig, classes: int = 2) -> Network:
    """Random weights and running statistics, in evaluation mode."""
    torch.manual_seed(0)
    built = build(config, 3, classes)
    built(torch.randn(4, 3, 64, 64))  # in training mode: batch normalisation takes statistics that are not 0 and 1
    return built.eval()


def smooth(*shape: int, seed: int = 0) -> Tensor:
    """Images as soft as scans: noise enlarged."""
    torch.manual_seed(seed)
    coarse = torch.randn(*shape[:2], shape[2] // 8 + 2, shape[3] // 8 + 2)
    return nn.functional.interpolate(coarse, shape[2:], mode="bicubic")


# ------------------------------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_every_network_on_every_engine_gives_torchs_logits_at_any_size(kind: str, name: str) -> None:
    exact = network(NETWORKS[kind])
    weights = {key: value.clone() for key, value in exact.state_dict().items()}
    compute = start(engine(name), exact, CPU)
    for count, rows, columns in SIZES:
        images = smooth(count, 3, rows, columns)
        with torch.inference_mode():
            wanted = exact(images)
        found = compute(images)
        assert found.shape == wanted.shape
        assert found.dtype == torch.float32
        # SegNet's pooling may take the other of two pixels that differ in the last bit: a few pixels may be off.
        close = torch.isclose(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
        assert close.float().mean() > (0.98 if kind == "SegNet" else 0.9999)
        assert torch.equal(found, compute(images))  # to the last bit
    assert all(torch.equal(weights[key], value) for key, value in exact.state_dict().items())
    assert not exact.training


@pytest.mark.parametrize("name", EXTRAS)
def test_a_slice_does_not_depend_on_the_others_in_its_batch(name: str) -> None:
    for config in NETWORKS["U-Net, instance"], NETWORKS["BiSeNet"]:
        compute = start(engine(name), network(config), CPU)
        images = smooth(5, 3, 64, 48)
        whole = compute(images)
        assert torch.equal(compute(images[1:4]), whole[1:4])


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize("binary", [False, True])
def test_a_known_mask_on_every_engine(name: str, binary: bool) -> None:
    volume = random_volume(GRID)
    config = PredictConfig.model_validate({"engine": name, "precision": "fp32", "mirror": True, "batch_size": 3})
    predictor = Predictor(threshold_model(30.5, binary=binary), config)
    assert np.array_equal(predictor.predict(volume).mask.labels, volume.voxels[0] > 30)
    assert predictor.choice is not None
    assert predictor.choice.engine.name == name
    assert predictor.choice.proofs[0].dice == (1.0,)


@pytest.mark.skipif(not installed("openvino"), reason="pip install 'medseg[openvino]'")
def test_openvino_does_not_report_to_its_makers() -> None:
    code = "import sys; from medseg.engines import _quiet_openvino as o; o(); print(sys.modules['openvino_telemetry'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"


# ------------------------------------------------------------------------------------------------------- the proof


def logits_of(*margins: list[float]) -> Tensor:
    """One slice of two classes, the background's logit 0."""
    one = torch.tensor(margins)
    return torch.stack([torch.zeros_like(one), one])[None]


def test_dice_between_two_engines_is_that_of_their_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "LEAST_PIXELS", 1)
    one, two = logits_of([3, 2, 1, -1], [-1, -1, -1, -1]), logits_of([3, 2, -1, 1], [1, -1, -1, -1])
    assert mask_dice(one, two) == [2 * 2 / (3 + 4)]  # {0, 1, 2} and {0, 1, 3, 4}
    assert mask_dice(one[:, 1:], two[:, 1:]) == [4 / 7]  # the same as a sigmoid's
    assert mask_dice(one, one) == [1.0]


def test_each_label_is_judged_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "LEAST_PIXELS", 1)
    one = torch.tensor([[0, 0, 0, 0], [1, 1, -1, -1], [-1, 2, 2, -1.0]])[None, :, None]  # labels 1, 2, 2, 0
    two = torch.tensor([[0, 0, 0, 0], [1, 3, -1, -1], [-1, 2, 2, -1.0]])[None, :, None]  # labels 1, 1, 2, 0
    assert mask_dice(one, two) == [2 / 3, 2 / 3]  # {0} and {0, 1}; {1, 2} and {2}


def test_few_pixels_are_judged_at_the_level_that_gives_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "LEAST_PIXELS", 2)
    one, two = logits_of([-1, -2, -3, -4]), logits_of([-1, -3, -2, -4])  # no pixel wins in either
    assert mask_dice(one, two) == [2 * 1 / (2 + 2)]  # above -3, the third largest: {0, 1} and {0, 2}
    assert mask_dice(one, one) == [1.0]
    flat = logits_of([5, 5, 5, 5])
    assert mask_dice(flat, flat) == [1.0]


def faulty(by: float, *only: Network) -> Any:
    """Engines with planted faults: `openvino` moves the threshold of (these) networks by so much, `onnx` fails."""

    def start_faulty(engine: Engine, network: Network, device: torch.device, ranges: Any = None) -> Any:
        if engine.name == "onnx":
            raise RuntimeError("cannot be converted")
        exact = start(Engine(name="torch", precision="fp32", version="1"), network, device)
        wrong = engine.name == "openvino" and (not only or network in only)
        return lambda images: exact(images + by) if wrong else exact(images)

    return start_faulty


def thresholds(above: float = 30.5) -> Network:
    return threshold_model(above).networks[0]


SOFT = 100 * smooth(4, 3, 48, 48)
"""About 3,500 of 9,216 pixels are above 30.5; one in a hundred between 30.5 and 32."""


def test_the_first_engine_that_is_proved_is_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ladder = [engine("openvino", "bf16"), engine("onnx"), engine("torch", "bf16"), engine("torch")]
    for by, taken, tried in ((0.0, 0, 1), (0.01, 0, 1), (2.0, 2, 3)):
        monkeypatch.setattr(engines, "start", faulty(by))
        choice = choose(ladder, [thresholds()], SOFT, CPU)
        assert choice.engine == ladder[taken]
        assert len(choice.proofs) == tried
        assert choice.slices == 4
    assert "openvino 1 bf16: Dice 0.9" in caplog.text
    assert "onnx 1 fp32 cannot be used: cannot be converted" in caplog.text


def test_every_network_of_an_ensemble_must_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = thresholds(), thresholds()
    monkeypatch.setattr(engines, "start", faulty(2.0, bad))
    ladder = [engine("openvino", "bf16"), engine("torch")]
    assert choose(ladder, [good, good], SOFT, CPU).engine.name == "openvino"
    assert choose(ladder, [good, bad], SOFT, CPU).engine.exact


def test_a_scan_without_the_label_proves_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pixel is above 500; the level that a thousand reach tells the engines apart nevertheless."""
    monkeypatch.setattr(engines, "start", faulty(2.0))
    ladder = [engine("openvino", "bf16"), engine("torch")]
    assert choose(ladder, [thresholds(500)], SOFT, CPU).engine.exact


def test_the_last_engine_is_taken_with_a_warning_and_its_failure_is_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engines, "start", faulty(2.0))
    choice = choose([engine("openvino", "bf16")], [thresholds()], SOFT, CPU)
    assert choice.engine.name == "openvino"
    assert not choice.proofs[0].holds()
    assert "used because it is asked for" in caplog.text
    with pytest.raises(RuntimeError, match="cannot be converted"):
        choose([engine("onnx")], [thresholds()], SOFT, CPU)


def test_a_precision_that_is_asked_for_may_round_but_not_be_wrong(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ladder = [engine("openvino", "bf16"), engine("torch", "bf16")]
    for by, wanted, taken in ((0.7, EQUAL, 1), (0.7, ENOUGH, 0), (4.0, ENOUGH, 1)):
        monkeypatch.setattr(engines, "start", faulty(by))
        choice = choose(ladder, [thresholds()], SOFT, CPU, wanted)
        assert choice.engine == ladder[taken]
        assert ENOUGH < choice.proofs[0].dice[0] < EQUAL or by == 4
    assert caplog.text.count("used because it is asked for") == 1  # torch's masks are exact here


def test_a_choice_survives_json_and_knows_its_model() -> None:
    model, volume = threshold_model(30), random_volume(GRID)
    settings = PredictConfig(engine="torch", device="cpu", precision="bf16")
    first = Predictor(model, settings)
    first.predict(volume)
    choice = first.choice
    assert choice is not None
    again = Choice.model_validate_json(choice.model_dump_json())
    assert again == choice
    second = Predictor(model, settings)
    assert second.adopt(again)
    assert second.identity == first.identity != Predictor(model, settings).identity
    assert not Predictor(threshold_model(31), settings).adopt(again)  # of another model
    assert not Predictor(model, PredictConfig(engine="torch", precision="fp32")).adopt(again)  # not what is asked for


def test_int8_that_is_too_coarse_gives_way_to_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    ladder = [engine("openvino", "int8"), engine("torch", "bf16")]
    for by, taken in ((0.7, 0), (4.0, 1)):
        monkeypatch.setattr(engines, "start", faulty(by))
        assert choose(ladder, [thresholds()], SOFT, CPU, ENOUGH).engine == ladder[taken]


def test_int8_needs_the_ranges_that_training_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "installed", lambda name: True)
    monkeypatch.setattr(engines, "version", lambda package: "1")
    with pytest.raises(RunError, match="holds no ranges") as caught:
        Predictor(threshold_model(30), PredictConfig(precision="int8"))
    assert caught.value.code == "RUN-ENGINE"


# ------------------------------------------------------------------------------------------------------------ int8


def ranges(exact: Network, images: Tensor) -> Ranges:
    """From end to end."""
    found: dict[str, tuple[float, float]] = {}

    def note(name: str, _: nn.Module, inputs: tuple[Tensor]) -> None:
        found[name] = (float(inputs[0].min()), float(inputs[0].max()))

    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    modules = {name: module for name, module in exact.named_modules() if isinstance(module, kinds)}
    hooks = [module.register_forward_pre_hook(partial(note, name)) for name, module in modules.items()]
    with torch.inference_mode():
        exact(images)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.skipif(not installed("openvino"), reason="pip install 'medseg[openvino]'")
@pytest.mark.parametrize("kind", NETWORKS)
def test_every_network_in_int8_gives_nearly_torchs_logits(kind: str) -> None:
    exact, images = network(NETWORKS[kind]), smooth(3, 3, 64, 96)
    own = ranges(exact, images)
    compute = start(engine("openvino", "int8"), exact, CPU, own)
    with torch.inference_mode():
        wanted = exact(images)
    found = compute(images)
    assert not torch.equal(found, start(engine("openvino"), exact, CPU)(images))
    assert torch.equal(found, compute(images))
    assert torch.equal(found[1:], compute(images[1:]))
    if kind != "SegNet":  # whose pooling takes the other of two pixels when rounding makes them equal
        apart = (found - wanted).square().mean().sqrt() / wanted.std()
        assert apart < 0.1  # 0.03 to 0.05 for those that normalise; a wrong scale or order makes 1
    with pytest.raises(ValueError, match="zip"):
        start(engine("openvino", "int8"), exact, CPU, dict(list(own.items())[1:]))


@pytest.mark.skipif(not installed("openvino"), reason="pip install 'medseg[openvino]'")
def test_int8_by_name_is_proved_and_predicts() -> None:
    plain, volume = random_model(), random_volume(GRID)
    known = ranges(plain.networks[0], smooth(2, 3, 20, 24))
    model = replace(plain, description=plain.description.model_copy(update={"ranges": (known,)}))
    predictor = Predictor(model, PredictConfig(engine="openvino", precision="int8"))
    mask = predictor.predict(volume).mask
    assert predictor.choice is not None
    assert predictor.choice.engine.precision == "int8"
    assert len(predictor.choice.proofs) == 1
    again = Predictor(model, PredictConfig(engine="openvino", precision="int8"))
    assert again.adopt(predictor.choice)
    assert np.array_equal(again.predict(volume).mask.labels, mask.labels)
    assert again.identity == predictor.identity


# ------------------------------------------------------------------------------------------------- what is offered


def names(config: PredictConfig, device: torch.device = CPU, kind: str = "plain U-Net") -> list[str]:
    return [f"{each.name} {each.precision}" for each in offered(config, device, network(NETWORKS[kind]))]


def test_what_is_installed_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "version", lambda package: "1")
    monkeypatch.setattr(engines, "choose_precision", lambda name, device: torch.bfloat16)
    there = {"torch"}
    monkeypatch.setattr(engines, "installed", lambda name: name in there)
    auto = PredictConfig()
    assert names(auto) == ["torch bf16", "torch fp32"]
    with pytest.raises(RunError, match="not installed") as caught:
        names(PredictConfig(engine="openvino"))
    assert (caught.value.code, caught.value.advice[:30]) == ("RUN-ENGINE", "pip install 'medseg[openvino]'")
    there |= {"openvino", "onnx"}
    assert names(auto) == ["openvino bf16", "torch bf16", "openvino fp32", "onnx fp32", "torch fp32"]
    assert names(PredictConfig(precision="fp32")) == ["openvino fp32", "onnx fp32", "torch fp32"]
    assert names(PredictConfig(engine="openvino")) == ["openvino bf16", "openvino fp32", "torch fp32"]
    assert names(PredictConfig(engine="openvino", precision="bf16")) == ["openvino bf16"]
    assert names(PredictConfig(engine="onnx")) == ["onnx fp32", "torch fp32"]
    assert names(PredictConfig(precision="int8")) == ["openvino int8", "openvino bf16", "torch bf16"]
    assert names(PredictConfig(engine="openvino", precision="int8")) == ["openvino int8"]
    assert names(auto, kind="SegNet") == names(auto, torch.device("cuda")) == ["torch bf16", "torch fp32"]
    monkeypatch.setattr(engines, "choose_precision", lambda name, device: torch.float32)
    assert names(auto) == ["openvino fp32", "onnx fp32", "torch fp32"]
    assert names(PredictConfig(precision="int8")) == ["openvino int8", "openvino fp32", "torch fp32"]
    there -= {"openvino"}
    with pytest.raises(RunError, match="int8 is asked for, and openvino not installed"):
        names(PredictConfig(precision="int8"))


@pytest.mark.parametrize(
    ("config", "device"),
    [
        (PredictConfig(engine="onnx", precision="bf16"), CPU),
        (PredictConfig(engine="onnx", precision="int8"), CPU),
        (PredictConfig(engine="torch", precision="int8"), CPU),
        (PredictConfig(engine="onnx"), torch.device("cuda")),
        (PredictConfig(precision="int8"), torch.device("cuda")),
    ],
)
def test_what_an_engine_cannot_do_is_refused(
    config: PredictConfig, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "installed", lambda name: True)
    with pytest.raises(RunError) as caught:
        names(config, device)
    assert caught.value.code == "RUN-ENGINE"


def test_the_ladder_goes_down_in_precision_within_each_library() -> None:
    for name in engines.PACKAGES:
        precisions = [precision for each, precision in engines.FASTEST_FIRST if each == name]
        assert precisions == [each for each in ("int8", "bf16", "fp32") if each in precisions]
    assert engines.FASTEST_FIRST[-1] == ("torch", "fp32")


def test_predict_takes_the_setting() -> None:
    volume = random_volume(GRID)
    settings = PredictConfig(engine="torch", precision="auto", device="cpu")
    assert np.array_equal(predict(threshold_model(30), volume, settings).labels, volume.voxels[0] > 30)

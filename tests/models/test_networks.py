"""What every network promises: the call, the padding, the training call, precision, determinism, cost."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from medseg.config.networks import BiSeNetConfig, DeepLabConfig, ModelConfig, SegNetConfig, UNetConfig
from medseg.errors import ConfigError, ModelError
from medseg.models import BiSeNet, DeepLab, Network, SegNet, UNet, build, describe

SMALL: dict[str, ModelConfig] = {
    "unet": UNetConfig(widths=(8, 16, 16)),
    "unet-deep": UNetConfig(
        widths=(8, 8, 16, 16), norm="instance", activation="leaky_relu", residual=True, deep_supervision=True
    ),
    "unet-batch": UNetConfig(widths=(8, 16), norm="batch", dropout=0.1),
    "unet-group": UNetConfig(widths=(12, 16), norm="group"),
    "segnet": SegNetConfig(widths=(8, 16, 16), convs_per_stage=(1, 2, 2)),
    "deeplab": DeepLabConfig(encoder="resnet18", width=16, low_level_width=8),
    "deeplab-8": DeepLabConfig(encoder="resnet18", output_stride=8, width=16, low_level_width=8),
    "bisenet": BiSeNetConfig(
        detail_widths=(8, 8, 16), semantic_widths=(8, 8, 16, 16), head_width=16, booster_width=16, expansion=2
    ),
}
HEADS = {
    "unet": 1,
    "unet-deep": 3,
    "unet-batch": 1,
    "unet-group": 1,
    "segnet": 1,
    "deeplab": 1,
    "deeplab-8": 1,
    "bisenet": 5,
}
every_network = pytest.mark.parametrize("name", SMALL)


def small(name: str, in_channels: int = 3, out_channels: int = 2) -> Network:
    torch.manual_seed(0)
    return build(SMALL[name], in_channels, out_channels)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are too small to gain from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=SMALL)
def network(request: pytest.FixtureRequest) -> Network:
    return small(request.param)


@settings(max_examples=12)
@given(b=st.integers(1, 2), h=st.integers(1, 75), w=st.integers(1, 75), training=st.booleans())
def test_every_size_comes_back_at_its_own_size(network: Network, b: int, h: int, w: int, training: bool) -> None:
    logits = network.train(training)(torch.randn(b, 3, h, w))
    assert logits.shape == (b, 2, h, w)
    assert torch.isfinite(logits).all()


@every_network
@pytest.mark.parametrize("size", [(1, 1), (33, 47)])
def test_a_batch_of_one_trains(name: str, size: tuple[int, int]) -> None:
    network = small(name).train()
    losses = [logits.square().mean() for logits in network.training_logits(torch.randn(1, 3, *size))]
    torch.stack(losses).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@every_network
@pytest.mark.parametrize(("h", "w"), [(64, 64), (64, 96), (33, 47), (65, 64), (1, 90)])
def test_padding_repeats_the_edge_below_and_right_and_moves_nothing(name: str, h: int, w: int) -> None:
    network = small(name).eval()
    x = torch.randn(1, 3, h, w)
    height, width = (network.stride * math.ceil(n / network.stride) for n in (h, w))
    height, width = max(height, network.smallest), max(width, network.smallest)
    padded = torch.from_numpy(np.pad(x.numpy(), ((0, 0), (0, 0), (0, height - h), (0, width - w)), mode="edge"))
    with torch.no_grad():
        torch.testing.assert_close(network(x), network(padded)[..., :h, :w], rtol=0, atol=0)


@every_network
def test_an_input_that_fits_reaches_the_layers_untouched(name: str) -> None:
    network = small(name).eval()
    seen: list[Tensor] = []
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    x = torch.randn(1, 3, 2 * network.stride, 3 * network.stride)
    network(x)
    assert seen[0] is x


@every_network
def test_training_logits_start_with_the_main_head_and_have_full_resolution(name: str) -> None:
    network = small(name).eval()
    x = torch.randn(2, 3, 50, 70)
    with torch.no_grad():
        logits = network.training_logits(x)
        assert torch.equal(logits[0], network(x))
    assert [each.shape for each in logits] == [(2, 2, 50, 70)] * HEADS[name]
    assert all(not torch.equal(logits[0], each) for each in logits[1:])


@every_network
def test_a_gradient_reaches_every_parameter(name: str) -> None:
    network = small(name).train()
    torch.manual_seed(1)
    target = torch.randint(0, 2, (2, 96, 96))
    for logits in network.training_logits(torch.randn(2, 3, 96, 96)):
        nn.functional.cross_entropy(logits, target).backward(retain_graph=True)
    without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def two_blobs() -> tuple[Tensor, Tensor]:
    """An image with a small and a large bright blob in noise, and their mask; no symmetry."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    mask = (((y - 20) ** 2 + (x - 18) ** 2) < 10**2) | (((y - 44) ** 2 / 2 + (x - 45) ** 2) < 9**2)
    noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    return (mask + 0.2 * noise)[None, None], mask[None, None].float()


@pytest.mark.parametrize(
    ("name", "steps"), [("unet", 90), ("unet-deep", 90), ("segnet", 90), ("deeplab", 60), ("bisenet", 90)]
)
def test_learns_two_blobs(name: str, steps: int) -> None:
    network = small(name, 1, 1).train()
    image, mask = two_blobs()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.003)
    for _ in range(steps):
        heads = network.training_logits(image)
        loss = torch.stack([nn.functional.binary_cross_entropy_with_logits(each, mask) for each in heads]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = (network.eval()(image) > 0).float()
    # The blobs' share p of the image is about 0.16: all foreground would have Dice 2 p / (1 + p), under 0.3.
    assert 2 * (found * mask).sum() / (found.sum() + mask.sum()) > 0.9


@every_network
def test_bf16_stays_close_to_fp32(name: str) -> None:
    network = small(name).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        full = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x)
    # bfloat16 keeps 8 bits, a relative rounding of 2**-9 a layer; some twenty layers make it about one per cent. In
    # SegNet a rounded tie also moves a value to another pixel of its window: untrained, on noise, it costs ten.
    assert (half.float() - full).abs().mean() < (0.2 if name == "segnet" else 0.05) * full.std()


@every_network
def test_bf16_trains(name: str) -> None:
    network = small(name).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = torch.stack(
            [each.float().square().mean() for each in network.training_logits(torch.randn(1, 3, 40, 64))]
        )
    loss.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@every_network
def test_channels_last_gives_the_same(name: str) -> None:
    network = small(name).eval()
    x = torch.randn(2, 3, 64, 70)
    with torch.no_grad():
        plain = network(x)
        network.to(memory_format=torch.channels_last)
        last = network(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, plain, rtol=1e-3, atol=1e-4)


@every_network
def test_equal_seeds_give_equal_runs_and_deterministic_mode_is_allowed(name: str) -> None:
    def gradients() -> list[Tensor]:
        network = small(name).train()
        torch.stack(
            [each.square().mean() for each in network.training_logits(torch.randn(1, 3, 50, 64))]
        ).sum().backward()
        return [p.grad for p in network.parameters() if p.grad is not None]

    torch.use_deterministic_algorithms(True)
    try:
        assert all(torch.equal(a, b) for a, b in zip(gradients(), gradients(), strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


@every_network
def test_prediction_does_not_depend_on_the_call_or_on_the_batch(name: str) -> None:
    network = small(name).eval()
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        together = network(x)
        assert torch.equal(together, network(x))
        torch.testing.assert_close(torch.cat([network(each[None]) for each in x]), together, rtol=1e-3, atol=1e-4)


@every_network
def test_a_saved_state_dict_restores_the_network(name: str) -> None:
    network, file = small(name).eval(), io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    torch.manual_seed(99)
    other = build(SMALL[name], 3, 2).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(other(x), network(x))
        other.load_state_dict(torch.load(file, weights_only=True), strict=True)
        assert torch.equal(other(x), network(x))


@every_network
@pytest.mark.parametrize("shape", [(1, 2, 64, 64), (1, 4, 64, 64), (3, 64, 64), (1, 3, 0, 64), (0, 3, 64, 64)])
def test_another_shape_is_refused_by_name(name: str, shape: tuple[int, ...]) -> None:
    network = small(name)
    for call in (network, network.training_logits):
        with pytest.raises(ModelError) as caught:
            call(torch.zeros(shape))
        assert caught.value.code == "MODEL-SHAPE"
        assert f"{shape}, wanted (b, 3, h, w)" in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: UNet(0, 1),
        lambda: UNet(1, 0),
        lambda: UNet(widths=(64,)),
        lambda: UNet(widths=(64, 0)),
        lambda: UNet(convs_per_stage=0),
        lambda: SegNet(widths=(8, 8), convs_per_stage=(1,)),
        lambda: SegNet(widths=(), convs_per_stage=()),
        lambda: DeepLab(rates=(0, 1, 2)),
        lambda: BiSeNet(head_width=0),
        lambda: BiSeNet(semantic_widths=(1, 8, 8, 8)),
    ],
)
def test_settings_that_make_no_network_are_refused(wrong) -> None:
    with pytest.raises(ConfigError) as caught:
        wrong()
    assert caught.value.code == "CONFIG-VALUE"


@pytest.mark.parametrize(
    ("settings_", "cls"),
    [
        ({"name": "unet"}, UNet),
        ({"name": "segnet"}, SegNet),
        ({"name": "deeplab"}, DeepLab),
        ({"name": "bisenet"}, BiSeNet),
    ],
)
def test_the_settings_default_to_the_classes_defaults(settings_: dict[str, str], cls: type[Network]) -> None:
    with torch.device("meta"):
        built = build(TypeAdapter(ModelConfig).validate_python(settings_), 3, 1)
        plain = cls(3, 1)
    assert type(built) is cls
    assert {k: v.shape for k, v in built.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "resnet"},
        {"name": "unet", "norm": "layer"},
        {"name": "unet", "width": 3},
        {"name": "unet", "widths": [64]},
        {"name": "segnet", "widths": [8, 8]},
        {"name": "deeplab", "output_stride": 32},
        {"name": "bisenet", "expansion": 0},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(ModelConfig).validate_python(wrong)


def counted_by_hooks(network: Network, size: int) -> int:
    """Multiply-adds counted another way: from the shapes that each convolution really sees."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        # Each weight of a convolution meets each output pixel once, of a transposed one each input pixel.
        pixels = (inputs[0] if isinstance(module, nn.ConvTranspose2d) else output)[0, 0].numel()
        total += module.weight.numel() * pixels

    hooks = [
        m.register_forward_hook(count) for m in network.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))
    ]
    network(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return total


@every_network
def test_cost_agrees_with_a_count_by_hand(name: str) -> None:
    network = small(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    cost = describe(network, 3, 64)
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert cost.parameters == sum(p.numel() for p in network.parameters())
    assert cost.multiply_adds == counted_by_hooks(network.eval(), 64)


def test_cost_refuses_other_channels() -> None:
    with pytest.raises(ModelError):
        describe(small("unet"), 1)


@pytest.mark.parametrize("cls", [UNet, SegNet, DeepLab, BiSeNet])
def test_the_documented_cost_is_true(cls: type[Network]) -> None:
    with torch.device("meta"):
        cost = describe(cls(3, 1), 3)
    sentence = f"{cost.parameters / 1e6:.3g} million parameters, {cost.multiply_adds / 1e9:.3g} G multiply-adds"
    assert sentence in " ".join(cls.__doc__.split())

"""Gradients are those of the whole batch, whoever computes which part of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medseg.config.networks import UNetConfig
from medseg.models import Network, build
from medseg.training.gradients import gradients
from medseg.training.loop import LoopOptions, fit
from medseg.training.losses import build_loss, supervised_loss
from medseg.training.state import seed_everything
from medseg.training.team import ALONE
from medseg.training.threads import side_by_side
from tests.training.test_loop import CPU, Blobs, dice, settings

LOSS = "dice_cross_entropy"


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def network(**changes: Any) -> Network:
    torch.manual_seed(0)
    return build(UNetConfig(**{"widths": (4, 8, 16), "norm": "instance", **changes}), 2, 3).train()


def batch(size: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(size)
    labels = (torch.rand(size, 16, 20, generator=source) * 4).long() % 3
    labels[0, :4] = 255  # not annotated
    return torch.randn(size, 2, 16, 20, generator=source), labels


def by_autograd(one: Network, images: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
    loss = supervised_loss(build_loss(LOSS, 3), one.training_logits(images), labels)
    return loss.detach(), list(torch.autograd.grad(loss, list(one.parameters())))


def computed(
    one: Network, images: Tensor, labels: Tensor, size: int, mixed: bool = False
) -> tuple[Tensor, list[Tensor]]:
    with side_by_side(size, CPU, ALONE) as threads:
        loss = gradients(one, build_loss(LOSS, 3), threads, ALONE, mixed)(images, labels)
    found = [weight.grad for weight in one.parameters()]
    assert all(gradient is not None for gradient in found)
    return loss, [gradient.clone() for gradient in found if gradient is not None]


def seen_parts(one: Network, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Note the slices and the threads of each forward pass."""
    seen: list[tuple[int, int]] = []
    whole = one.training_logits

    def noted(images: Tensor) -> list[Tensor]:
        seen.append((len(images), torch.get_num_threads()))
        return whole(images)

    monkeypatch.setattr(one, "training_logits", noted)
    return seen


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize(("threads", "size", "last"), [(2, 6, 6), (3, 6, 5), (4, 6, 1), (5, 3, 2), (1, 4, 4)])
def test_parts_add_up_to_the_gradients_of_the_batch(threads: int, size: int, last: int, deep_supervision: bool) -> None:
    one = network(deep_supervision=deep_supervision)
    images, labels = batch(last)
    loss, expected = by_autograd(one, images, labels)
    torch.set_num_threads(threads)
    found_loss, found = computed(one, images, labels, size)
    assert torch.allclose(found_loss, loss, rtol=1e-6)
    for gradient, other in zip(found, expected, strict=True):
        assert torch.allclose(gradient, other, rtol=1e-4, atol=1e-6)
    again_loss, again = computed(one, images, labels, size)  # the same to the last bit, and not added to the first
    assert torch.equal(found_loss, again_loss)
    assert all(map(torch.equal, found, again))


@pytest.mark.parametrize(
    ("threads", "size", "parts"),
    [
        (2, 4, [(2, 1)] * 2),
        (4, 4, [(1, 1)] * 4),
        (9, 4, [(4, 9)]),  # in two parts of four threads, or in four of two, one thread would have nothing to do
        (8, 12, [(3, 2)] * 4),
        (2, 3, [(3, 2)]),
    ],
)
def test_a_batch_is_divided_evenly_and_no_thread_is_idle(
    threads: int, size: int, parts: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(threads)
    one = network()
    seen = seen_parts(one, monkeypatch)
    computed(one, *batch(size), size)
    assert seen == parts
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("changes", [{"norm": "batch"}, {"dropout": 0.5}])
def test_what_sees_the_batch_as_one_is_not_divided(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    one = network(**changes)
    seen = seen_parts(one, monkeypatch)
    computed(one, *batch(4), 4)
    assert seen == [(4, 2)]


def test_bf16_is_mixed_in_each_part() -> None:
    one = network()
    images, labels = batch(4)
    torch.set_num_threads(1)
    _, whole = computed(one, images, labels, 4, mixed=True)
    torch.set_num_threads(2)
    types: list[torch.dtype] = []
    one.final.register_forward_hook(lambda module, given, logits: types.append(logits.dtype))
    _, found = computed(one, images, labels, 4, mixed=True)
    assert types == 2 * [torch.bfloat16]
    for gradient, other in zip(found, whole, strict=True):
        assert gradient.dtype == torch.float32
        assert float((gradient - other).norm()) <= 0.05 * float(other.norm()) + 1e-4


def test_an_error_in_a_part_is_told() -> None:
    torch.set_num_threads(2)
    with pytest.raises(Exception, match="channels"):
        computed(network(), torch.zeros(4, 5, 16, 16), torch.zeros(4, 16, 16, dtype=torch.long), 4)
    assert torch.get_num_threads() == 2


def test_a_thread_that_does_not_start_is_an_error_and_nothing_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    start, started = threading.Thread.start, []

    def fails(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fails)
    with pytest.raises(RuntimeError, match="can't start"):
        computed(network(), *batch(4), 4)
    assert torch.get_num_threads() == 2


def test_a_run_in_parts_resumes_to_the_same_weights(tmp_path: Path) -> None:
    torch.set_num_threads(2)

    def run(folder: Path, epochs: int, resume: bool = False) -> dict[str, Tensor]:
        seed_everything(3, deterministic=True)
        one = build(UNetConfig(widths=(4, 8), norm="instance"), 1, 2)
        config = settings(schedule="constant", epochs=epochs)
        return fit(one, Blobs(), dice, config, LoopOptions(folder, CPU, resume=resume)).weights

    unbroken = run(tmp_path / "whole", 4)
    run(tmp_path / "broken", 2)
    resumed = run(tmp_path / "broken", 4, resume=True)
    assert unbroken.keys() == resumed.keys()
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)

"""The estimate of memory is that of real tensors, and the batch follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medseg.config import load
from medseg.config.networks import ModelConfig, SegNetConfig, UNetConfig
from medseg.models import build
from medseg.training import batch_size as module
from medseg.training import train
from medseg.training.batch_size import SMALLER, USABLE, USUAL, fitting_batch, kept_bytes
from medseg.training.losses import build_loss, supervised_loss
from tests.studies import nifti_study, settings

CPU = torch.device("cpu")


def really_kept(config: ModelConfig, slices: int, size: int) -> int:
    """Run the step and add up the distinct pieces of memory that autograd holds, weights left out."""
    network = build(config, 3, 2)
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    seen: dict[int, Tensor] = {}  # the tensors are held, so that no piece is used twice

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    labels = torch.zeros(slices, size, size, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = network.training_logits(torch.randn(slices, 3, size, size))
        supervised_loss(build_loss("dice_cross_entropy", 2), logits, labels)
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


@pytest.mark.parametrize(
    "config",
    [
        UNetConfig(widths=(8, 16, 32), norm="instance", activation="leaky_relu"),
        UNetConfig(widths=(8, 16), norm="batch", residual=True, deep_supervision=True),
        UNetConfig(widths=(8, 16)),
    ],
)
def test_what_is_counted_is_what_is_kept(config: ModelConfig) -> None:
    counted = kept_bytes(build(config, 3, 2), 2, (32, 32), "dice_cross_entropy", torch.float32)
    assert counted == pytest.approx(really_kept(config, 2, 32), rel=0.1)


def test_half_the_bytes_take_half_the_memory_and_twice_the_slices_twice() -> None:
    network = build(SegNetConfig(), 3, 2)
    kept = {
        (slices, dtype): kept_bytes(network, slices, (64, 64), "cross_entropy", dtype)
        for slices in (1, 2, 3)
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert kept[3, torch.float32] - kept[2, torch.float32] == kept[2, torch.float32] - kept[1, torch.float32]
    assert 0.4 < kept[2, torch.bfloat16] / kept[2, torch.float32] < 0.8
    assert next(network.parameters()).device == CPU  # it stays where it was
    assert next(network.parameters()).dtype == torch.float32


def fitted(network: Any, free: int, monkeypatch: pytest.MonkeyPatch, processes: int = 1) -> int:
    monkeypatch.setattr(module, "free_memory", lambda: free)
    return fitting_batch(network, (64, 64), "dice_cross_entropy", torch.float32, CPU, processes=processes)[0]


def sizes() -> Iterator[int]:
    yield from (USUAL, *SMALLER)


def test_the_batch_is_the_largest_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build(UNetConfig(widths=(8, 16)), 3, 2)
    one, two = (kept_bytes(network, n, (64, 64), "dice_cross_entropy", torch.float32) for n in (1, 2))
    weights = 5 * 4 * sum(parameter.numel() for parameter in network.parameters())
    for size in sizes():
        needed = (weights + one + (size - 1) * (two - one)) / USABLE
        assert fitted(network, int(needed) + 2, monkeypatch) == size
        assert fitted(network, int(needed) - 2, monkeypatch) == max([n for n in sizes() if n < size], default=1)
    alone = fitted(network, int((weights + one + 2 * (two - one)) / USABLE) + 2, monkeypatch)
    shared = fitted(network, int((weights + one + 2 * (two - one)) / USABLE) + 2, monkeypatch, processes=4)
    assert (alone, shared) == (3, USUAL)  # three slices for each of four
    monkeypatch.setattr(module, "free_memory", lambda: None)
    assert fitting_batch(network, (64, 64), "dice", torch.float32, CPU)[0] == USUAL


def test_a_run_writes_down_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = nifti_study(tmp_path / "study")
    train(settings(study, epochs=1, batch_size=None), tmp_path / "roomy")
    assert load(tmp_path / "roomy" / "config.yaml").train.batch_size == USUAL
    monkeypatch.setattr(module, "free_memory", lambda: 0)
    config = settings(study, epochs=1, batch_size=None)
    train(config, tmp_path / "narrow")
    text = (tmp_path / "narrow" / "config.yaml").read_text()
    assert load(tmp_path / "narrow" / "config.yaml").train.batch_size == 1
    assert "batch_size: 1  # slices in a step, the most that fits: about " in text
    monkeypatch.undo()
    train(config, tmp_path / "narrow", resume=True)  # decided once
    assert (tmp_path / "narrow" / "config.yaml").read_text() == text

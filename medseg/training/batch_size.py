"""How many slices of a step fit into the memory there is."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from medseg.io.free import free_memory
from medseg.models import Network
from medseg.training.losses import build_loss, supervised_loss

USUAL = 12
"""Slices in a step where memory does not decide."""

SMALL = 4
"""The same for many training cases on a processor of few cores, where a slice costs little more in a small batch: up to
three times the steps in the same time (docs/benchmarks.md, "How many slices make a step")."""

FEW_CORES = 2
"""More are not measured, and have little to share in a small batch."""

SMALLER = (8, 6, 4, 3, 2, 1)

USABLE = 0.6
"""Part of the free memory that the estimate may fill: a step took up to 1.45 times as much as it keeps."""

COPIES = 5
"""Of the weights: themselves, gradients, two moments of Adam, the moving average."""


def usual_batch(network: Network, many: bool, device: torch.device, cores: int) -> tuple[int, str]:
    """Return the slices of a step where memory does not decide, and why they are not `USUAL`.

    Args:
        network: normalising by batch, it needs several slices to do so.
        many: whether there are many training cases; of few, more steps in the same time were no better.
        device: that will train; on a GPU, small batches leave most of it idle.
        cores: of the processor, that share a step.
    """
    by_batch = any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    if not many or by_batch or device.type != "cpu" or cores > FEW_CORES:
        return USUAL, ""
    return SMALL, "a small batch costs few cores little more for a slice, and more steps teach many cases sooner"


def fitting_batch(
    network: Network,
    patch: tuple[int, int],
    loss: str,
    dtype: torch.dtype,
    device: torch.device,
    *,
    usual: int = USUAL,
    processes: int = 1,
) -> tuple[int, str]:
    """Return the slices of a step that fit into the free memory of a device, at most `usual`, and what they take.

    Args:
        network: on any device; it stays as it is.
        patch: rows and columns of a slice.
        loss: its name.
        dtype: of the arithmetic.
        device: that will train.
        usual: slices, where they fit.
        processes: that share a step, each with a device of its own.
    """
    weights = COPIES * sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    one, two = (kept_bytes(network, slices, patch, loss, dtype) for slices in (1, 2))
    free = _free(device)
    if free is None:
        return usual, "the free memory is not known here"
    for size in (usual, *[size for size in SMALLER if size < usual]):
        needed = weights + one + (-(-size // processes) - 1) * (two - one)
        if needed <= USABLE * free:
            break
    return size, f"about {needed / 2**30:.2g} GiB beside room to work in, {free / 2**30:.2g} GiB are free"


def kept_bytes(network: Network, slices: int, patch: tuple[int, int], loss: str, dtype: torch.dtype) -> int:
    """Count the bytes that a forward pass keeps for the backward one.

    Nothing is computed: shapes alone go through the layers and the loss.
    """
    double = copy.deepcopy(network).to("meta", dtype).train()
    known = {_place(parameter) for parameter in double.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if _place(tensor) not in known:
            kept[_place(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    images = torch.empty(slices, network.in_channels, *patch, device="meta", dtype=dtype)
    labels = torch.zeros(slices, *patch, device="meta", dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        supervised_loss(build_loss(loss, network.out_channels), double.training_logits(images), labels)
    return sum(kept.values())


def _place(tensor: Tensor) -> int:
    """Return what views of one piece of memory have in common."""
    return int(tensor.untyped_storage()._cdata)


def _free(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory()

"""How many slices of a step fit into the memory there is."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from medseg.io.free import free_memory
from medseg.models import Network
from medseg.training.losses import build_loss, supervised_loss

USUAL = 12
"""Slices in a step where memory does not decide."""

SMALLER = (8, 6, 4, 3, 2, 1)

USABLE = 0.6
"""Part of the free memory that the estimate may fill: a step took up to 1.45 times as much as it keeps."""

COPIES = 5
"""Of the weights: themselves, gradients, two moments of Adam, the moving average."""


def fitting_batch(
    network: Network,
    patch: tuple[int, int],
    loss: str,
    dtype: torch.dtype,
    device: torch.device,
    *,
    processes: int = 1,
) -> tuple[int, str]:
    """Return the slices of a step that fit into the free memory of a device, at most `USUAL`, and what they take.

    Args:
        network: on any device; it stays as it is.
        patch: rows and columns of a slice.
        loss: its name.
        dtype: of the arithmetic.
        device: that will train.
        processes: that share a step, each with a device of its own.
    """
    weights = COPIES * sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    one, two = (kept_bytes(network, slices, patch, loss, dtype) for slices in (1, 2))
    free = _free(device)
    if free is None:
        return USUAL, "the free memory is not known here"
    for size in (USUAL, *SMALLER):
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

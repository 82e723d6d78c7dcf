"""The gradients of a batch: what a step learns, before the optimiser makes use of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from medseg.models import Network
from medseg.training.losses import Loss, supervised_loss
from medseg.training.team import Team
from medseg.training.threads import Threads

Gradients = Callable[[Tensor, Tensor], Tensor]
"""Takes images `(b, c, h, w)` and labels `(b, h, w)`, leaves the gradients in the network, and returns the loss."""

OF_THE_WHOLE = (nn.BatchNorm2d, nn.Dropout, nn.Dropout2d)
"""Layers to which a batch is one: by its statistics, or by the order of random numbers."""


def gradients(network: Network, loss_of: Loss, threads: Threads, team: Team, mixed: bool) -> Gradients:
    """Return what computes gradients: in a part for each thread where there are several, else of the whole batch.

    Args:
        network: on the device that trains.
        loss_of: the loss.
        threads: that share a batch.
        team: whose mean the gradients are.
        mixed: bfloat16 arithmetic.
    """
    if threads.count == 1 or any(isinstance(module, OF_THE_WHOLE) for module in network.modules()):
        return _of_the_whole(network, loss_of, team, mixed)
    return _in_parts(network, loss_of, threads, mixed)


def _of_the_whole(network: Network, loss_of: Loss, team: Team, mixed: bool) -> Gradients:
    logits_of = team.together(network)

    def compute(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=mixed):
            loss = supervised_loss(loss_of, logits_of(images), labels)
        network.zero_grad(set_to_none=True)
        (team.count * loss).backward()  # each has its part of the gradient, and the mean is taken of them
        return loss.detach()

    return compute


def _in_parts(network: Network, loss_of: Loss, threads: Threads, mixed: bool) -> Gradients:
    """Return what computes parts of a batch, each on its own thread; they meet for the loss of all."""
    weights = list(network.parameters())

    def forward(images: Tensor) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            return network.training_logits(images)

    def backward(logits: Sequence[Tensor], slopes: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(logits, weights, slopes)

    def compute(images: Tensor, labels: Tensor) -> Tensor:
        network.zero_grad(set_to_none=True)
        logits = list(threads.map(forward, images.chunk(threads.count)))
        heads = [torch.cat(pieces).detach().requires_grad_() for pieces in zip(*logits, strict=True)]
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = supervised_loss(loss_of, heads, labels)
        slopes = [slope.chunk(threads.count) for slope in torch.autograd.grad(loss, heads)]
        found = list(threads.map(backward, logits, zip(*slopes, strict=True)))
        for weight, *added in zip(weights, *found, strict=True):
            weight.grad = sum(added[1:], start=added[0])  # always in this order
        return loss.detach()

    return compute

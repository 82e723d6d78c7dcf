"""The gradients of a batch: what a step learns, before the optimiser makes use of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier

import torch
from torch import Tensor, nn

from medseg.models import Network
from medseg.training.losses import Loss, supervised_loss
from medseg.training.team import Team

Gradients = Callable[[Tensor, Tensor], Tensor]
"""Takes images `(b, c, h, w)` and labels `(b, h, w)`, leaves the gradients in the network, and returns the loss."""

OF_THE_WHOLE = (nn.BatchNorm2d, nn.Dropout, nn.Dropout2d)
"""Layers to which a batch is one: by its statistics, or by the order of random numbers."""


@contextmanager
def gradients(network: Network, loss_of: Loss, batch_size: int, team: Team, mixed: bool) -> Iterator[Gradients]:
    """Give what computes gradients: in parts side by side on a processor of several cores, else of the whole batch.

    There are as many parts as leave no core without work, of equal size.

    Args:
        network: on the device that trains.
        loss_of: the loss.
        batch_size: slices in a step; the last one of an epoch may have fewer.
        team: whose mean the gradients are.
        mixed: bfloat16 arithmetic.
    """
    threads = torch.get_num_threads()
    parts = max((n for n in range(1, threads + 1) if batch_size % n == 0), key=lambda n: (n * (threads // n), n))
    alone = next(network.parameters()).device.type == "cpu" and team.count == 1
    if not alone or parts == 1 or any(isinstance(module, OF_THE_WHOLE) for module in network.modules()):
        yield _of_the_whole(network, loss_of, team, mixed)
        return
    started = Barrier(parts + 1)
    with ThreadPoolExecutor(parts, initializer=torch.set_num_threads, initargs=(threads // parts,)) as pool:
        try:
            for _ in range(parts):
                pool.submit(started.wait)
            started.wait()
            yield _in_parts(network, loss_of, pool, parts, mixed)
        finally:
            started.abort()  # lets go of those that wait, should one of them not have started
            torch.set_num_threads(threads)  # new threads begin with what any thread has set last


def _of_the_whole(network: Network, loss_of: Loss, team: Team, mixed: bool) -> Gradients:
    logits_of = team.together(network)

    def compute(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=mixed):
            loss = supervised_loss(loss_of, logits_of(images), labels)
        network.zero_grad(set_to_none=True)
        (team.count * loss).backward()  # each has its part of the gradient, and the mean is taken of them
        return loss.detach()

    return compute


def _in_parts(network: Network, loss_of: Loss, pool: ThreadPoolExecutor, parts: int, mixed: bool) -> Gradients:
    """Return what computes parts of a batch on threads of their own; the loss is that of the whole batch.

    Threads that share every single operation wait for each other, and for whatever else runs on their cores, several
    hundred times in a step; these meet twice.
    """
    weights = list(network.parameters())

    def forward(images: Tensor) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            return network.training_logits(images)

    def backward(logits: Sequence[Tensor], slopes: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(logits, weights, slopes)

    def compute(images: Tensor, labels: Tensor) -> Tensor:
        network.zero_grad(set_to_none=True)
        logits = list(pool.map(forward, images.chunk(parts)))
        heads = [torch.cat(pieces).detach().requires_grad_() for pieces in zip(*logits, strict=True)]
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = supervised_loss(loss_of, heads, labels)
        slopes = [slope.chunk(parts) for slope in torch.autograd.grad(loss, heads)]
        found = list(pool.map(backward, logits, zip(*slopes, strict=True)))
        for weight, *added in zip(weights, *found, strict=True):
            weight.grad = sum(added[1:], start=added[0])  # always in this order
        return loss.detach()

    return compute

"""Muon: weights of convolutions learn by orthogonal steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from medseg.models import Network
from medseg.training.threads import ONE, Threads

MOMENTUM = 0.95

ROUNDS = 5
POLYNOMIAL = (3.4445, -4.7750, 2.0315)
"""Of `x, x^3, x^5`: five rounds bring singular values from 0.003 to 1 between 0.68 and 1.21 (Jordan 2024)."""

LEAST = 1e-7
"""Norm of a gradient below which steps become shorter: all that is left where a layer has nothing more to learn."""

LENGTH = 0.4
"""Root mean square of a step for a learning rate of 1. With 0.2, which is Adam's (Liu 2025, arXiv:2502.16982), Adam's
learning rates serve; twice as much learned more (docs/benchmarks.md, "Optimiser")."""


class Muon:
    """Muon for the weights of hidden convolutions, AdamW for biases, normalisation, and the first and last layers.

    A convolution's weights are taken as a matrix: output channels by all that each of them sums over (of a transposed
    convolution, input channels by all that each of them adds to). Its step is the gradient, averaged over steps, with
    all singular values made alike: what few examples show is learned as fast as what all of them show. A step is as
    long for any scale of the gradient.

    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon; alike in length for all shapes: Liu 2025,
    arXiv:2502.16982. Here the polynomials are of the small square matrix `x x^T`, in float32, which costs a third.

    Args:
        network: whose weights are to learn, on the device that trains.
        learning_rate: as for AdamW.
        weight_decay: likewise.
        threads: that share the matrices.
    """

    def __init__(self, network: Network, learning_rate: float, weight_decay: float, threads: Threads = ONE) -> None:
        self.hidden = sorted(_hidden(network), key=Tensor.numel, reverse=True)  # so the threads end at about one time
        apart = {id(weight) for weight in self.hidden}
        others = [weight for weight in network.parameters() if id(weight) not in apart]
        self.adamw = torch.optim.AdamW(others, lr=learning_rate, weight_decay=weight_decay, fused=True)
        self.weight_decay = weight_decay
        self.threads = threads
        self.means = [torch.zeros_like(weight) for weight in self.hidden]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """As of torch's optimisers; the learning rate of the first one holds for all weights."""
        return self.adamw.param_groups

    def step(self) -> None:
        """Change every weight that has a gradient."""
        for _ in self.threads.map(self._turn, self.hidden, self.means):
            pass
        self.adamw.step()

    @torch.no_grad()
    def _turn(self, weight: Tensor, mean: Tensor) -> None:
        if weight.grad is None:
            return
        rate = self.param_groups[0]["lr"]
        mean.lerp_(weight.grad, 1 - MOMENTUM)
        step = orthogonal(weight.grad.lerp(mean, MOMENTUM).flatten(1))
        weight.mul_(1 - rate * self.weight_decay)
        weight.add_(step.view(weight.shape), alpha=-rate * LENGTH * max(step.shape) ** 0.5)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types."""
        return {"adamw": self.adamw.state_dict(), "means": self.means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of a network of the same layers."""
        self.adamw.load_state_dict(state["adamw"])
        for mean, known in zip(self.means, state["means"], strict=True):
            if mean.shape != known.shape:
                raise ValueError(f"averaged gradients of {tuple(known.shape)}, wanted {tuple(mean.shape)}")
            mean.copy_(known)


def _hidden(network: Network) -> Iterator[Tensor]:
    """Yield the weights of convolutions from features to features, but those that take each channel by itself.

    The first and last layers are known by their channels, the last ones by their bias too, which no layer has that is
    normalised. Where a hidden layer looks the same it is left to AdamW with them.
    """
    for module in network.modules():
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d) or module.groups > 1:
            continue
        first = module.in_channels == network.in_channels
        last = isinstance(module, nn.Conv2d) and module.bias is not None and module.out_channels == network.out_channels
        if not first and not last:
            yield module.weight


def multiply_adds(network: Network) -> int:
    """Return what the orthogonal steps of a network cost, whatever the slices are."""
    rounds = 4 * ROUNDS - 3  # products of small square matrices
    shapes = [(len(weight), weight[0].numel()) for weight in _hidden(network)]
    return sum(2 * m * n * min(m, n) + rounds * min(m, n) ** 3 for m, n in shapes)


def orthogonal(matrix: Tensor) -> Tensor:
    """Return a matrix with the singular vectors of another one, and singular values near 1.

    Args:
        matrix: `(m, n)` floating point.

    Returns:
        `(m, n)`, same dtype; the smaller, the further the norm lies below `LEAST`.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    wide = wide / wide.norm().clamp_min(LEAST)  # singular values at most 1
    square = wide @ wide.mT
    polynomial = factor = _factor(square)
    for _ in range(ROUNDS - 1):
        square = factor @ (factor @ square)  # polynomials of one matrix commute
        factor = _factor(square)
        polynomial = factor @ polynomial
    found: Tensor = polynomial @ wide
    return found if matrix.shape[0] <= matrix.shape[1] else found.mT


def _factor(square: Tensor) -> Tensor:
    """Return by what one round multiplies `x`, of `square`, which is `x x^T`."""
    a, b, c = POLYNOMIAL
    factor: Tensor = torch.addmm(square, square, square, beta=b, alpha=c)
    factor.diagonal().add_(a)
    return factor

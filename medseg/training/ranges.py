"""The numbers that each convolution of a trained network takes in: what int8 needs, and nothing of a patient's pixels.

Recorded on training slices after training, kept in model.yaml, used by `medseg.quantise` when int8 is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from medseg.models import build
from medseg.models.model_folder import ModelDescription
from medseg.preparation import Preparation
from medseg.slices import pad_to
from medseg.store import SliceStore

SLICES = 32
"""From all over the training cases; 110 gave the same masks within what rounding changes."""

SAMPLES = 16_384
"""Numbers of each input that are looked at in a slice, by chance."""

CLIPPED = 5e-5
"""Share of numbers beyond each end. The few largest are several times the next ones, and would coarsen the steps."""


@torch.inference_mode()
def input_ranges(
    description: ModelDescription, weights: Mapping[str, Tensor], store: SliceStore, device: torch.device
) -> dict[str, tuple[float, float]]:
    """Return the range of the input of each convolution, by its name, in the order in which they are computed.

    Args:
        description: of the network, its preparation and patch.
        weights: of the network.
        store: of training slices.
        device: to compute on.
    """
    network = build(description.network, description.in_channels, description.out_channels)
    network.load_state_dict(dict(weights))
    network.to(device).eval()
    found: dict[str, list[Tensor]] = {}
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.register_forward_pre_hook(partial(_note, found, name))
    context = Preparation.from_dict(description.preparation).context
    places = [(entry, index) for entry in store for index in range(entry.shape[0])]
    for place in np.linspace(0, len(places) - 1, min(len(places), SLICES)).round().astype(int).tolist():
        entry, index = places[place]
        image, _ = entry.slice(index, context)
        network(pad_to(image[None], description.patch)[0].to(device))
    return {name: _range(torch.cat(samples)) for name, samples in found.items()}


def _note(found: dict[str, list[Tensor]], name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    values = inputs[0].flatten()
    # By chance: in equal steps, some columns of the image are met again and again, and others never.
    places = torch.randint(len(values), (SAMPLES,), generator=torch.Generator().manual_seed(0))
    found.setdefault(name, []).append(values[places.to(values.device)].float().cpu())


def _range(values: Tensor) -> tuple[float, float]:
    """Return the ends of all but a few numbers, rounded to four digits; zero lies inside."""
    low, high = np.quantile(values.numpy(), (CLIPPED, 1 - CLIPPED)).tolist()
    return float(f"{min(low, 0.0):.4g}"), float(f"{max(high, 0.0):.4g}")

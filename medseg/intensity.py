"""How the values of one volume are normalised: measured once over the whole of it, in one streaming pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.errors import InputError
from medseg.preparation import Channel, Preparation
from medseg.volume import Volume

BLOCK = 32
"""Slices held as float32 at a time: 32 x 512 x 512 x 4 bytes is 34 MB."""

SAMPLE = 1 << 22
"""Voxels that statistics are computed from: all of a volume up to 256 x 256 x 64. Of a larger one, a random choice: the
0.5 percentile of 4 million values rests on 20,000 of them."""

BODY_SHARE = 0.1
"""The body is what lies above the low end of the intensity range by more than this share of it (see `_body`)."""


@dataclass(frozen=True)
class Statistics:
    """How one volume is normalised, channel by channel: clip to `low` and `high`, subtract `mean`, divide by `sd`.

    Attributes:
        low: lower clipping bounds in the scan's unit; minus infinity where nothing is clipped.
        high: upper clipping bounds; infinity where nothing is clipped.
        mean: what becomes 0.
        sd: what becomes 1; never 0.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]


def measure(volume: Volume, preparation: Preparation) -> Statistics:
    """Compute a volume's statistics in one streaming pass; the axis order a scan is stored in changes nothing.

    Raises:
        InputError: MODEL-INPUT when the volume has another number of channels than the preparation.
    """
    if len(volume.voxels) != len(preparation.channels):
        problem = f"{len(volume.voxels)} channels, wanted {[channel.name for channel in preparation.channels]}"
        raise InputError("MODEL-INPUT", "", problem, "Give one scan for each channel of the model.")
    pairs = zip(volume.voxels, preparation.channels, strict=True)
    order = volume.grid.order_to(preparation.codes)
    low, high, mean, sd = zip(*(_channel_statistics(order.apply(v), c, preparation) for v, c in pairs), strict=True)
    return Statistics(low, high, mean, sd)


def _channel_statistics(
    voxels: NDArray[np.generic], channel: Channel, preparation: Preparation
) -> tuple[float, float, float, float]:
    if channel.window is not None:
        return (*channel.window, channel.mean, channel.sd)
    body = _body(_sample(voxels))
    low, high = -np.inf, np.inf
    if channel.normalise == "percentile":
        low, high = np.percentile(body, preparation.percentiles)
        body = body.clip(low, high)
    mean, sd = float(body.mean(dtype=np.float64)), float(body.std(dtype=np.float64))
    # A spread below a millionth of the values is float32 rounding of a constant image: it must come out as 0.
    constant = sd <= 1e-6 * abs(mean)
    return float(low), float(high), mean, max(abs(mean), 1.0) if constant else sd


def _sample(voxels: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return all values of `(h, w, n)`, or `SAMPLE` of them drawn evenly from blocks of slices with a fixed seed."""
    rng = np.random.default_rng(0)
    share = min(1.0, SAMPLE / voxels.size)
    parts = []
    for start in range(0, voxels.shape[2], BLOCK):
        values = np.ascontiguousarray(voxels[..., start : start + BLOCK], dtype=np.float32).reshape(-1)
        parts.append(values if share == 1 else values[rng.integers(0, values.size, max(1, int(values.size * share)))])
    return np.concatenate(parts)


def _body(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the values of the body: those above a tenth of the range between the 0.5 and 99.5 percentile.

    Air in MR is noise around a few percent of that range, tissue well above it, and an image cropped inside the body
    keeps nearly all of its voxels, where a threshold between two assumed classes (Otsu) would cut tissue in half.
    Percentiles rather than extremes, so that single hot voxels do not set the scale. All values when none is above.
    """
    low, high = np.percentile(values, (0.5, 99.5))
    inside = values[values > low + BODY_SHARE * (high - low)]
    return inside if inside.size else values

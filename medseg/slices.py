"""The slice context: neighbouring slices as channels. Pure index arithmetic.

A stack is `(n, m, h, w)`: `n` slices in the order of the working grid's last axis, `m` modalities (sequences) each.
With a context of `r`, slice `i` becomes `m * (2 r + 1)` channels, ordered modality first, then offset `-r ... r`;
beyond the ends the edge slice is repeated. One modality with `r = 1` gives the document's three channels: previous,
this and next.
Neighbours are taken by index, not by millimetre: a model sees the same kind of step that its training scans had.
"""

from __future__ import annotations

import torch
from torch import Tensor


def context_span(start: int, stop: int, count: int, context: int) -> tuple[int, int]:
    """Return the part `[first, last)` of a stack of `count` slices that slices `start` to `stop - 1` need to see."""
    return max(0, start - context), min(count, stop + context)


def with_context(part: Tensor, first: int, start: int, stop: int, context: int) -> Tensor:
    """Cut slices with their context out of a part of a stack.

    A slice that the part lacks is replaced by the part's edge slice; over `context_span` that is exactly the
    repetition of the whole stack's edge slices.

    Args:
        part: `(p, m, h, w)`, any dtype: slices `first` to `first + p - 1` of the stack.
        first: the stack index of `part[0]`.
        start: the first slice wanted.
        stop: one after the last slice wanted.
        context: neighbours on each side.

    Returns:
        `(stop - start, m * (2 * context + 1), h, w)`, the dtype of `part`.
    """
    offsets = torch.arange(-context, context + 1)
    wanted = torch.arange(start, stop)[:, None] + offsets[None, :] - first
    slices = part[wanted.clamp(0, len(part) - 1)]  # (n, offset, m, h, w)
    return slices.transpose(1, 2).flatten(1, 2)


def centre(images: Tensor, context: int) -> Tensor:
    """Return the slices themselves without their context: the way back of `with_context`.

    Args:
        images: `(n, m * (2 * context + 1), h, w)`.
        context: neighbours on each side.

    Returns:
        `(n, m, h, w)`, a view.
    """
    return images[:, context :: 2 * context + 1]


def pad_to(images: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[slice, slice]]:
    """Pad slices to at least a size: the slice in the middle, around it each channel's own lowest value (air).

    Training pads its patches so; prediction must do the same, or a network with normalisation layers meets statistics
    that it has never seen.

    Args:
        images: `(..., c, h, w)`.
        size: rows and columns wanted at least.

    Returns:
        The padded slices, and where the original rows and columns are in them.
    """
    h, w = images.shape[-2:]
    more = [max(0, wanted - given) for wanted, given in zip(size, (h, w), strict=True)]
    top, left = more[0] // 2, more[1] // 2
    inside = (slice(top, top + h), slice(left, left + w))
    if not any(more):
        return images, inside
    lowest = images.amin((-2, -1), keepdim=True)
    padded = lowest.expand(*images.shape[:-2], h + more[0], w + more[1]).clone()
    padded[(..., *inside)] = images
    return padded, inside

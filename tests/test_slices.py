"""The slice context: modality first, then offset; the edge slice repeated."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg.slices import centre, context_span, with_context


def test_three_channels_are_previous_this_and_next_with_edges_repeated() -> None:
    stack = torch.arange(4.0).reshape(4, 1, 1, 1)
    cut = with_context(stack, 0, 0, 4, context=1)[:, :, 0, 0]
    assert cut.tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]


def test_channels_are_ordered_modality_first() -> None:
    # slice s of modality m holds 10 m + s
    stack = torch.tensor([[10.0 * m + s for m in range(2)] for s in range(3)]).reshape(3, 2, 1, 1)
    cut = with_context(stack, 0, 1, 2, context=1)
    assert cut.flatten().tolist() == [0, 1, 2, 10, 11, 12]


@given(
    count=st.integers(1, 9),
    modalities=st.integers(1, 3),
    context=st.integers(0, 4),
    block=st.integers(1, 10),
)
def test_cutting_in_blocks_equals_cutting_at_once_and_the_centre_is_the_stack(
    count: int, modalities: int, context: int, block: int
) -> None:
    stack = torch.arange(count * modalities * 6).reshape(count, modalities, 2, 3)
    whole = with_context(stack, 0, 0, count, context)
    parts = []
    for start in range(0, count, block):
        stop = min(start + block, count)
        first, last = context_span(start, stop, count, context)
        assert last - first <= stop - start + 2 * context
        parts.append(with_context(stack[first:last], first, start, stop, context))
    assert torch.equal(torch.cat(parts), whole)
    assert whole.shape == (count, modalities * (2 * context + 1), 2, 3)
    assert torch.equal(centre(whole, context), stack)


@given(count=st.integers(1, 6), context=st.integers(0, 3))
def test_each_channel_is_the_neighbour_at_its_offset(count: int, context: int) -> None:
    stack = torch.arange(count).reshape(count, 1, 1, 1)
    cut = with_context(stack, 0, 0, count, context)[:, :, 0, 0]
    for index in range(count):
        for channel, offset in enumerate(range(-context, context + 1)):
            assert cut[index, channel] == min(max(index + offset, 0), count - 1)

"""int8: an ONNX model whose convolutions compute in 8 bits, from the ranges of their inputs that training recorded.

A number x becomes the whole number round(x / scale) + zero. ONNX says where, by pairs of QuantizeLinear and
DequantizeLinear; an engine that meets a convolution between such pairs computes it in int8. Weights have a scale for
each output channel. Normalisation, activations and sums keep the engine's own numbers, and so do the convolutions that
read the image or write the logits: there rounding moved the most outlines, and there is least to win.

Source: Jacob et al., CVPR 2018 (arXiv:1712.05877).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, helper, numpy_helper

Range = tuple[float, float]
"""Lowest and highest number that stay themselves, but for rounding; beyond them, all are rounded to them."""

OUTPUT_AXIS = {"Conv": 0, "ConvTranspose": 1}
"""The convolutions of ONNX, and the axis of output channels in their weights."""

PICKING = ("MaxPool", "Concat")
"""What passes numbers on: it works on whole ones as well, a quarter of the bytes, if all that meet share one scale."""

SMALLEST = 1e-12
"""A scale, for what is always zero."""


def quantised(model: bytes, ranges: Sequence[Range]) -> bytes:
    """Return an ONNX model with its convolutions in int8.

    Args:
        model: of a network; weights as initialisers.
        ranges: of the input of each convolution, in the order in which they are computed.

    Raises:
        ValueError: the model has another number of convolutions.
    """
    loaded = onnx.load_from_string(model)
    graph = loaded.graph
    convolutions = [node for node in graph.node if node.op_type in OUTPUT_AXIS]
    by_input = list(zip(convolutions, ranges, strict=True))
    images = {each.name for each in graph.input}
    inner = [(node, span) for node, span in by_input if node.input[0] not in images and node is not convolutions[-1]]
    makers = {name: node for node in graph.node for name in node.output}
    spans = _shared([(frozenset(_picked_from(node.input[0], makers)), span) for node, span in inner])
    for node, _ in inner:
        _store_weights_in_int8(graph, node)
    _round_values(graph, spans)
    content: bytes = loaded.SerializeToString()
    return content


def _picked_from(name: str, makers: Mapping[str, NodeProto]) -> Iterator[str]:
    """Yield the names of the values whose numbers a value holds."""
    maker = makers.get(name)
    if maker is None or maker.op_type not in PICKING:
        yield name
        return
    for each in maker.input:
        yield from _picked_from(each, makers)


def _shared(wanted: Sequence[tuple[frozenset[str], Range]]) -> dict[str, Range]:
    """Return a range for each value: one for all that meet anywhere, wide enough for everyone."""
    groups: list[tuple[frozenset[str], Range]] = []
    for names, (low, high) in wanted:
        met = [group for group in groups if group[0] & names]
        groups = [group for group in groups if not group[0] & names]
        span = min(low, *(group[1][0] for group in met), 0.0), max(high, *(group[1][1] for group in met), 0.0)
        groups.append((names.union(*(group[0] for group in met)), span))
    return {name: span for names, span in groups for name in sorted(names)}


def _round_values(graph: GraphProto, spans: Mapping[str, Range]) -> None:
    """Let all read the rounded values instead of the values."""
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in spans:
                node.input[place] = f"{name}.rounded"
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        graph.node.append(node)
        for name in node.output:
            if name in spans:
                graph.node.extend(_rounding(graph, name, spans[name]))


def _rounding(graph: GraphProto, name: str, span: Range) -> list[NodeProto]:
    """Return the pair of nodes that round a value to one of 256 numbers; zero is among them: edges are padded by it."""
    scale = np.float32(max((span[1] - span[0]) / 255, SMALLEST))
    into = _constants(graph, name, np.array(scale), np.array(round(-span[0] / float(scale)), np.uint8))
    return [
        helper.make_node("QuantizeLinear", [name, *into], [f"{name}.int8"]),
        helper.make_node("DequantizeLinear", [f"{name}.int8", *into], [f"{name}.rounded"]),
    ]


def _store_weights_in_int8(graph: GraphProto, node: NodeProto) -> None:
    """Replace the weights of a convolution by whole numbers from -127 to 127."""
    name, axis = node.input[1], OUTPUT_AXIS[node.op_type]
    stored = next(tensor for tensor in graph.initializer if tensor.name == name)
    weights = np.moveaxis(numpy_helper.to_array(stored), axis, 0)
    scale = np.maximum(np.abs(weights.reshape(len(weights), -1)).max(1) / 127, SMALLEST).astype(np.float32)
    whole = np.round(weights / scale[:, None, None, None]).clip(-127, 127).astype(np.int8)
    stored.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(np.moveaxis(whole, 0, axis)), name))
    into = _constants(graph, name, scale, np.zeros(len(scale), np.int8))
    graph.node.insert(0, helper.make_node("DequantizeLinear", [name, *into], [f"{name}.rounded"], axis=axis))
    node.input[1] = f"{name}.rounded"


def _constants(graph: GraphProto, name: str, scale: NDArray[np.float32], zero: NDArray[np.integer]) -> list[str]:
    """Add the scale and the zero of a value; return their names."""
    made = {f"{name}.scale": scale, f"{name}.zero": zero}
    graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in made.items())
    return list(made)

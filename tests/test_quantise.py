"""int8 in ONNX: what is rounded, to which numbers, and what stays as it is."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from medseg.config.networks import UNetConfig
from medseg.engines import to_onnx
from medseg.models import build
from tests.test_engines import NETWORKS, network

onnx = pytest.importorskip("onnx", reason="pip install 'medseg[onnx]'")

from onnx import helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from medseg.quantise import quantised  # noqa: E402


def convolutions(*nodes: Any, weights: dict[str, np.ndarray[Any, Any]], opset: int = 21) -> bytes:
    """A model of nodes from `images` to `logits`."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, list("nchw"))],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, list("nchw"))],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    content: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]).SerializeToString()
    return content


def run(model: bytes, images: Any) -> np.ndarray[Any, Any]:
    result: np.ndarray[Any, Any] = ReferenceEvaluator(onnx.load_from_string(model)).run(None, {"images": images})[0]
    return result


def node(kind: str, inputs: list[str], output: str) -> Any:
    return helper.make_node(kind, inputs, [output])


ONE = np.ones((1, 1, 1, 1))
CHAIN = [node("Conv", ["images", "w1"], "a"), node("Conv", ["a", "w2"], "b"), node("Conv", ["b", "w3"], "logits")]


def test_numbers_are_rounded_to_256_steps_of_the_range() -> None:
    model = convolutions(*CHAIN, weights={"w1": ONE, "w2": ONE, "w3": ONE})
    # From -1 to 4 in 255 steps of 1/51; zero is the 51st. 0.02 is 1.02 steps; 9 and -7 lie outside.
    images = np.array([[[[0.02, 9.0], [-7.0, 0.0]]]], np.float32)
    found = run(quantised(model, [(-9, 9), (-1, 4), (-9, 9)]), images)
    np.testing.assert_allclose(found.ravel(), [1 / 51, 4, -1, 0], rtol=1e-6)


def test_weights_are_rounded_by_output_channel() -> None:
    w2 = np.array([1.27, 0.004, 100.0, 30.3]).reshape(2, 2, 1, 1)  # rows: steps of 0.01 and of 100 / 127
    for kind, stored in (("Conv", w2), ("ConvTranspose", w2.swapaxes(0, 1))):
        nodes = [
            node("Conv", ["images", "w1"], "a"),
            node(kind, ["a", "w2"], "b"),
            node("Conv", ["b", "w3"], "logits"),
        ]
        model = convolutions(
            *nodes, weights={"w1": np.eye(2)[:, :1, None, None], "w2": stored, "w3": np.eye(2)[..., None, None]}
        )
        found = run(quantised(model, [(0, 1)] * 3), np.ones((1, 1, 1, 1), np.float32))
        np.testing.assert_allclose(found.ravel(), [1.27, 100], rtol=1e-6)
        tensors = {each.name: each for each in onnx.load_from_string(quantised(model, [(0, 1)] * 3)).graph.initializer}
        whole = numpy_helper.to_array(tensors["w2"])
        assert whole.dtype == np.int8
        assert (whole if kind == "Conv" else whole.swapaxes(0, 1)).ravel().tolist() == [127, 0, 127, 38]  # 38.48


def test_what_meets_has_one_scale_that_is_wide_enough() -> None:
    nodes = [
        node("Conv", ["images", "w"], "a"),
        node("Relu", ["images"], "b"),
        helper.make_node("MaxPool", ["b"], ["pooled"], kernel_shape=[1, 1]),
        node("Concat", ["a", "pooled"], "c"),
        node("Conv", ["c", "w2"], "d"),
        node("Conv", ["b", "w"], "e"),
        node("Add", ["d", "e"], "f"),
        node("Conv", ["f", "w"], "logits"),
    ]
    nodes[3].attribute.append(helper.make_attribute("axis", 1))
    model = onnx.load_from_string(
        quantised(
            convolutions(*nodes, weights={"w": ONE, "w2": np.ones((1, 2, 1, 1))}), [(0, 1), (-2, 1), (0, 8), (0, 1)]
        )
    )
    scales = {each.name: float(numpy_helper.to_array(each)) for each in model.graph.initializer if not each.dims}
    assert scales["a.scale"] == scales["b.scale"] == pytest.approx(10 / 255)  # from -2 to 8
    assert scales["a.zero"] == scales["b.zero"] == 51
    readers = {output: list(each.input) for each in model.graph.node for output in each.output}
    assert readers["pooled"] == ["b.rounded"]
    assert readers["c"] == ["a.rounded", "pooled"]
    assert readers["e"][0] == "b.rounded"
    assert readers["logits"] == ["f", "w"]
    onnx.checker.check_model(model)


def test_an_input_that_is_always_zero_stays_zero() -> None:
    model = convolutions(*CHAIN, weights={"w1": 0 * ONE, "w2": 0 * ONE, "w3": ONE})
    assert run(quantised(model, [(0, 0)] * 3), np.ones((1, 1, 2, 2), np.float32)).tolist() == [[[[0, 0], [0, 0]]]]


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_inner_convolutions_of_every_network_are_rounded(kind: str) -> None:
    exported = onnx.load_from_string(to_onnx(network(NETWORKS[kind])))
    kinds = Counter(each.op_type for each in exported.graph.node)
    count = kinds["Conv"] + kinds["ConvTranspose"]
    model = onnx.load_from_string(quantised(exported.SerializeToString(), [(-1.0, 1.0)] * count))
    onnx.checker.check_model(model)
    floating = [
        each
        for each in model.graph.node
        if each.op_type in ("Conv", "ConvTranspose") and "rounded" not in each.input[1]
    ]
    assert len(floating) == {"BiSeNet": 3, "U-Net, group, residual": 3}.get(kind, 2)  # whose two read the image
    whole = [
        each for each in model.graph.initializer if each.data_type == onnx.TensorProto.INT8 and len(each.dims) == 4
    ]
    assert len(whole) == count - len(floating)


def test_another_number_of_ranges_is_refused() -> None:
    model = to_onnx(build(UNetConfig(widths=(2, 2)), 3, 2).eval())
    with pytest.raises(ValueError, match="zip"):
        quantised(model, [(0.0, 1.0)])


def test_numbers_are_torchs_own_rounding() -> None:
    rng = np.random.default_rng(0)
    model = convolutions(*CHAIN, weights={"w1": ONE, "w2": ONE, "w3": ONE})
    images = rng.normal(0, 2, (1, 1, 2, 2)).astype(np.float32)
    found = run(quantised(model, [(-9, 9), (-2, 3), (-9, 9)]), images)
    wanted = torch.fake_quantize_per_tensor_affine(torch.from_numpy(images), 5 / 255, 102, 0, 255)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5)

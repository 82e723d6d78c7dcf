"""The ranges that a training run records for int8: of which numbers, in which order, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.engines import installed, to_onnx
from medseg.models import build
from medseg.models.model_folder import ModelDescription
from medseg.store import Entry, SliceStore
from medseg.training.ranges import input_ranges
from tests.studies import preparation, threshold_model
from tests.test_engines import NETWORKS

CPU = torch.device("cpu")


def store(folder: Path, images: np.ndarray[tuple[int, ...], np.dtype[np.float16]]) -> SliceStore:
    """One case: slices `(n, 1, h, w)`."""
    np.save(folder / "images.npy", images)
    np.save(folder / "masks.npy", np.zeros((len(images), *images.shape[2:]), np.uint8))
    n, m, h, w = images.shape
    return SliceStore({"case": Entry("case", folder, (n, m, h, w), {})}, {})


def described(**changes: object) -> ModelDescription:
    return threshold_model(30).description.model_copy(update=changes)


def test_a_known_network_has_known_inputs(tmp_path: Path) -> None:
    """The first channel is the image plus 2000 all the way; all others, and what comes from below, are 0."""
    images = np.random.default_rng(0).integers(-1000, 1001, (8, 1, 32, 32)).astype(np.float16)
    model = threshold_model(30)
    found = input_ranges(model.description, model.networks[0].state_dict(), store(tmp_path, images), CPU)
    assert list(found) == [
        *("enc1.0", "enc1.2", "bottleneck.0", "bottleneck.2", "upconv1", "dec1.0", "dec1.2", "final"),
    ]
    assert found["enc1.0"] == pytest.approx((-1000, 1000), abs=1)
    assert found["enc1.2"] == found["dec1.0"] == found["final"]
    assert found["enc1.2"] == (0, pytest.approx(3000, abs=1))
    assert found["bottleneck.2"] == found["upconv1"] == (0, 0)


def test_a_few_far_numbers_do_not_count(tmp_path: Path) -> None:
    images = np.random.default_rng(0).uniform(0, 1, (4, 1, 128, 128)).astype(np.float16)
    images[0, 0, 0, 0] = 1000
    model = threshold_model(30)
    found = input_ranges(model.description, model.networks[0].state_dict(), store(tmp_path, images), CPU)
    assert found["enc1.0"] == (0, pytest.approx(1, abs=0.01))


def test_every_column_is_looked_at(tmp_path: Path) -> None:
    images = np.zeros((2, 1, 160, 160), np.float16)
    images[..., 3] = 700
    model = threshold_model(30)
    found = input_ranges(model.description, model.networks[0].state_dict(), store(tmp_path, images), CPU)
    assert found["enc1.0"] == (0, 700)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_order_is_that_of_the_exported_model(kind: str, tmp_path: Path) -> None:
    """int8 gives the ranges to the convolutions in order."""
    torch.manual_seed(0)
    network = build(NETWORKS[kind], 3, 2).eval()
    images = np.random.default_rng(0).normal(size=(2, 1, 64, 64)).astype(np.float16)
    description = described(network=NETWORKS[kind], preparation=preparation().to_dict())
    found = input_ranges(description, network.state_dict(), store(tmp_path, images), CPU)
    assert all(low <= 0 <= high for low, high in found.values())
    if not installed("onnx"):
        pytest.skip("pip install 'medseg[onnx]'")
    import onnx

    graph = onnx.load_from_string(to_onnx(network)).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    exported = [shapes[node.input[1]] for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
    recorded = [tuple(network.get_submodule(name).get_parameter("weight").shape) for name in found]
    assert exported == recorded

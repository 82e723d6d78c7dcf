"""Prediction with networks that are known functions: the mask is known to the voxel, on every grid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medseg.config import PredictConfig
from medseg.config.networks import UNetConfig
from medseg.errors import InputError, RunError
from medseg.grid import Grid
from medseg.models import Network, build
from medseg.models.model_folder import Model
from medseg.prediction import Predictor, mean_logits, predict
from medseg.preparation import PLANES, Plane
from medseg.volume import Volume
from tests.strategies import AFFINES, ORIENTATIONS, affine
from tests.studies import GRID, in_order, preparation, random_volume, threshold_model

PLANE_NAMES: list[Plane] = ["axial", "coronal", "sagittal"]


def isotropic(codes: str, shape: tuple[int, int, int], angles: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Grid:
    """A grid whose pixels need no resampling."""
    return Grid(shape, affine(codes, angles, (1.0, 1.0, 1.0), (-30.0, 12.0, 70.0)))


def config(**changes: Any) -> PredictConfig:
    return PredictConfig(**{"engine": "torch", "precision": "fp32", "device": "cpu", **changes})


@settings(max_examples=60)
@given(
    codes=st.sampled_from(ORIENTATIONS),
    shape=st.tuples(*3 * [st.integers(1, 9)]),
    plane=st.sampled_from(PLANE_NAMES),
    seed=st.integers(0, 100),
    binary=st.booleans(),
)
def test_a_threshold_on_every_orientation(
    codes: str, shape: tuple[int, int, int], plane: Plane, seed: int, binary: bool
) -> None:
    volume = random_volume(isotropic(codes, shape, (5.0, -3.0, 8.0)), seed)
    mask = predict(threshold_model(120, prepare=preparation(plane), binary=binary), volume)
    assert np.array_equal(mask.labels, volume.voxels[0] > 120)
    assert mask.labels.dtype == np.uint8
    assert mask.grid is volume.grid


def shifted(ordered: NDArray[Any], tap: tuple[int, int, int]) -> NDArray[Any]:
    """The value `tap` (slices, rows, columns) away in `(rows, columns, slices)`; edge slices repeat, 0 beyond."""
    slices, rows, columns = tap
    count = ordered.shape[2]
    moved = ordered[..., np.clip(np.arange(count) + slices, 0, count - 1)]
    padded = np.pad(moved, ((1, 1), (1, 1), (0, 0)))
    h, w = ordered.shape[:2]
    return padded[1 + rows : 1 + rows + h, 1 + columns : 1 + columns + w]


@settings(max_examples=60)
@given(
    codes=st.sampled_from(ORIENTATIONS),
    shape=st.tuples(*3 * [st.sampled_from([2, 4, 6])]),
    plane=st.sampled_from(PLANE_NAMES),
    tap=st.tuples(*3 * [st.integers(-1, 1)]),
    batch_size=st.integers(1, 4),
)
def test_neighbours_lie_where_the_plane_says(
    codes: str, shape: tuple[int, int, int], plane: Plane, tap: tuple[int, int, int], batch_size: int
) -> None:
    volume = random_volume(isotropic(codes, shape))
    model = threshold_model(50, prepare=preparation(plane), tap=tap)
    ordered, undo = in_order(volume.voxels[0], volume.grid.affine, PLANES[plane])
    wanted = undo(shifted(ordered, tap) > 50)
    found = predict(model, volume, config(batch_size=batch_size)).labels
    assert np.array_equal(found, wanted)


@settings(max_examples=40)
@given(
    affine_=AFFINES,
    shape=st.tuples(*3 * [st.integers(3, 12)]),
    spacing=st.tuples(st.floats(0.5, 3), st.floats(0.5, 3)),
    plane=st.sampled_from(PLANE_NAMES),
)
def test_other_spacings_leave_whole_slices_alone(
    affine_: NDArray[Any], shape: tuple[int, int, int], spacing: tuple[float, float], plane: Plane
) -> None:
    """A scan that is constant within each slice has nothing to resample: the mask is exact whatever the spacing."""
    grid = Grid(shape, affine_)
    ordered, undo = in_order(np.zeros(shape), affine_, PLANES[plane])
    ordered[:] = np.random.default_rng(0).integers(-500, 500, ordered.shape[2])
    volume = Volume(undo(ordered).astype(np.int16)[None], grid)
    mask = predict(threshold_model(10.5, prepare=preparation(plane, spacing)), volume)
    assert np.array_equal(mask.labels, volume.voxels[0] > 10)


@pytest.mark.parametrize("spacing", [(0.5, 0.8), (1.7, 1.2), (2.5, 0.6)])
@pytest.mark.parametrize("axis", [0, 1])
def test_outlines_keep_their_place_through_resampling(spacing: tuple[float, float], axis: int) -> None:
    """Bilinear resampling leaves a linear ramp as it is, so the threshold stays where it was, there and back."""
    shape = (40, 36, 2)
    grid = Grid(shape, np.diag([-0.9, 0.7, 3.0, 1.0]))
    place = np.indices(shape)[axis] * grid.spacing[axis]  # mm from the first voxel
    volume = Volume(np.rint(40 * place).astype(np.int16)[None], grid)
    middle = 40 * place.max() / 2
    found = predict(threshold_model(middle, prepare=preparation(spacing_mm=spacing)), volume).labels
    distance = np.abs(place - place.max() / 2)
    wanted = place > place.max() / 2
    # The bilinear way there and back moves an outline by less than a tenth of a pixel of the coarser grid.
    clear = distance > 0.1 * max(*spacing, *grid.spacing[:2])
    assert np.array_equal(found[clear], wanted[clear])


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 3), (7, 1, 3), (33, 17, 1), (5, 64, 2)])
@pytest.mark.parametrize("patch", [(2, 2), (16, 32)])
def test_odd_sizes(shape: tuple[int, int, int], patch: tuple[int, int]) -> None:
    volume = random_volume(isotropic("RAS", shape))
    found = predict(threshold_model(0, patch=patch), volume).labels
    assert np.array_equal(found, volume.voxels[0] > 0)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 100])
def test_the_batch_size_changes_nothing(batch_size: int) -> None:
    torch.manual_seed(0)
    model = threshold_model(0)
    network = build(UNetConfig(widths=(4, 8), norm="instance"), 3, 2).eval()
    model = Model((network,), model.description, model.preparation)
    volume = random_volume(isotropic("LPS", (13, 11, 7)))
    whole = predict(model, volume, config(batch_size=7)).labels
    assert np.array_equal(predict(model, volume, config(batch_size=batch_size)).labels, whole)
    assert 0 < whole.mean() < 1


def test_mirroring_changes_nothing_for_a_network_that_is_symmetric() -> None:
    volume = random_volume(GRID)
    model = threshold_model(40)
    plain, mirrored = (predict(model, volume, config(mirror=mirror)).labels for mirror in (False, True))
    assert np.array_equal(plain, mirrored)
    assert np.array_equal(plain, volume.voxels[0] > 40)


def gentle(model: Model, by: float = 0.005) -> Model:
    """The same model with smaller logits: a sigmoid of 300 is 1, whatever another view says."""
    with torch.no_grad():
        for parameter in model.networks[0].final.parameters():  # type: ignore[union-attr]
            parameter.mul_(by)
    return model


def chance(values: NDArray[Any], above: float, by: float = 0.005) -> NDArray[np.float64]:
    """What a threshold model makes of values, made gentle: the sigmoid of (0, its logit)."""
    return np.asarray(1 / (1 + np.exp(-by * (values - above))))


@pytest.mark.parametrize("binary", [False, True])
def test_mirroring_averages_with_the_left_right_mirror_image(binary: bool) -> None:
    # A network that looks at the pixel on the left: mirrored, it looks at the one on the right. The mean of the two
    # probabilities decides. In sagittal slices nothing is mirrored.
    volume = random_volume(isotropic(PLANES["axial"], (8, 6, 2)))
    values = volume.voxels[0].astype(float)
    left, right = shifted(values, (0, 0, -1)), shifted(values, (0, 0, 1))
    model = gentle(threshold_model(10.25, tap=(0, 0, -1), binary=binary))
    found = predict(model, volume, config(mirror=True)).labels
    assert np.array_equal(found, (chance(left, 10.25) + chance(right, 10.25)) / 2 > 0.5)
    volume = random_volume(isotropic(PLANES["sagittal"], (8, 6, 2)))
    model = threshold_model(10.25, prepare=preparation("sagittal"), tap=(0, 0, -1), binary=binary)
    found = predict(model, volume, config(mirror=True)).labels
    assert np.array_equal(found, shifted(volume.voxels[0].astype(float), (0, 0, -1)) > 10.25)


# ----------------------------------------------------------------------------------------------------------- ensembles


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("mirror", [False, True])
def test_an_ensemble_averages_the_probabilities_of_its_networks(binary: bool, mirror: bool) -> None:
    bounds, scales, taps = (-90.25, 10.25, 200.25), (0.002, 0.005, 0.01), (-1, 0, 1)
    models = [
        gentle(threshold_model(above, tap=(0, 0, tap), binary=binary), by)
        for above, by, tap in zip(bounds, scales, taps, strict=True)
    ]
    ensemble = Model(tuple(model.networks[0] for model in models), models[0].description, models[0].preparation)
    volume = random_volume(isotropic(PLANES["axial"], (8, 6, 2)))
    values = volume.voxels[0].astype(float)
    views = [
        chance(shifted(values, (0, 0, way * tap)), above, by)
        for above, by, tap in zip(bounds, scales, taps, strict=True)
        for way in ((1, -1) if mirror else (1,))
    ]
    found = predict(ensemble, volume, config(mirror=mirror)).labels
    assert np.array_equal(found, np.mean(views, axis=0) > 0.5)
    assert 0.2 < found.mean() < 0.8


@settings(max_examples=60)
@given(
    classes=st.integers(1, 4), count=st.integers(1, 4), scale=st.sampled_from([0.1, 3.0, 60.0]), seed=st.integers(0, 99)
)
def test_mean_logits_are_those_of_the_mean_probabilities(classes: int, count: int, scale: float, seed: int) -> None:
    outputs = list(torch.randn(count, 2, classes, 3, 5, generator=torch.Generator().manual_seed(seed)) * scale)

    def chances(logits: torch.Tensor) -> torch.Tensor:
        return logits.double().sigmoid() if classes == 1 else logits.double().softmax(1)

    found, wanted = chances(mean_logits(outputs)), torch.stack([chances(output) for output in outputs]).mean(0)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_mean_logits_of_very_sure_networks_stay_finite() -> None:
    for sure in ([[[[200.0]]]], [[[[200.0]], [[-200.0]]]]):
        found = mean_logits([torch.tensor(sure), -0.5 * torch.tensor(sure)])
        assert bool(torch.isfinite(found).all())
        doubt = found if found.shape[1] == 1 else found[:, :1] - found[:, 1:]
        assert abs(float(doubt)) < 1e-5  # one says yes, the other says no, both without doubt


def test_one_network_is_not_averaged_with_anything() -> None:
    logits = torch.randn(1, 2, 3, 3)
    assert mean_logits([logits]) is logits


def test_bf16_is_close_to_fp32() -> None:
    torch.manual_seed(0)
    model = threshold_model(0)
    network = build(UNetConfig(widths=(4, 8), norm="instance"), 3, 2).eval()
    model = Model((network,), model.description, model.preparation)
    volume = random_volume(isotropic("RAS", (32, 32, 3)))
    exact, short = (Predictor(model, config(precision=name)) for name in ("fp32", "bf16"))
    assert [p.predict(volume) and p.choice and p.choice.engine.precision for p in (exact, short)] == ["fp32", "bf16"]
    agree = (exact.predict(volume).mask.labels == short.predict(volume).mask.labels).mean()
    assert agree > 0.95  # noise around a threshold is the worst case; 8 bits of mantissa
    images = torch.randn(2, 3, 16, 16)
    assert short.outputs(images).logits.dtype == torch.float32


def test_predicting_leaves_scan_and_network_as_they_were() -> None:
    model, volume = threshold_model(0), random_volume(GRID)
    before = {name: value.clone() for name, value in model.networks[0].state_dict().items()}
    kept = volume.voxels.copy()
    predict(model, volume)
    assert all(torch.equal(before[name], value) for name, value in model.networks[0].state_dict().items())
    assert np.array_equal(volume.voxels, kept)


def test_another_number_of_channels_is_refused() -> None:
    volume = random_volume(GRID)
    two = Volume(np.concatenate([volume.voxels] * 2), GRID)
    with pytest.raises(InputError) as caught:
        predict(threshold_model(0), two)
    assert caught.value.code == "MODEL-INPUT"


# -------------------------------------------------------------------------------------------------------------- memory


def greedy(monkeypatch: pytest.MonkeyPatch, most: int, error: Exception | None = None) -> list[int]:
    """Let networks run out of memory above `most` slices; return the sizes they were asked for."""
    asked = []
    forward = Network.forward

    def limited(self: Network, x: torch.Tensor) -> torch.Tensor:
        asked.append(len(x))
        if len(x) > most:
            raise error or torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x)

    monkeypatch.setattr(Network, "forward", limited)
    return asked


def cpu_allocation_error() -> Exception:
    """What torch really raises when the system's memory is short."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**42)  # 16 TB
    return caught.value


@pytest.mark.parametrize("most", [1, 2, 3, 7])
@pytest.mark.parametrize("kind", ["gpu", "cpu", "python"])
def test_short_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch, most: int, kind: str) -> None:
    error = {"gpu": None, "cpu": cpu_allocation_error(), "python": MemoryError()}[kind]
    predictor = Predictor(threshold_model(30), config(batch_size=8))
    volume = random_volume(isotropic("RAS", (6, 5, 19)))
    asked = greedy(monkeypatch, most, error)
    assert np.array_equal(predictor.predict(volume).mask.labels, volume.voxels[0] > 30)
    assert asked[0] == 8
    assert max(size for size in asked if size <= most) > most // 2 or most == 7


def test_memory_for_not_even_one_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(threshold_model(0), config())
    greedy(monkeypatch, 0)
    with pytest.raises(RunError, match="one slice") as caught:
        predictor.predict(random_volume(GRID))
    assert caught.value.code == "RUN-MEMORY"


def test_other_faults_are_not_taken_for_short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(threshold_model(0), config())
    asked = greedy(monkeypatch, 0, RuntimeError("sizes do not match"))
    with pytest.raises(RuntimeError, match="sizes"):
        predictor.predict(random_volume(GRID))
    assert len(asked) == 1


def test_a_volume_of_another_modality_is_refused() -> None:
    plain = preparation()
    mr = replace(plain, channels=tuple(replace(channel, modality="MR") for channel in plain.channels))
    volume = Volume(np.zeros((1, 4, 4, 2), np.int16), Grid((4, 4, 2), np.eye(4)), "CT")
    with pytest.raises(InputError, match="a CT volume, the model takes MR") as caught:
        predict(threshold_model(0.5, prepare=mr), volume)
    assert caught.value.code == "MODEL-INPUT"

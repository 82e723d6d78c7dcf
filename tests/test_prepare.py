"""Preparing scans: orientation, in-plane spacing, normalisation, and the way back."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import LoadImage
from numpy.typing import NDArray

from medseg import intensity, prepare, reading
from medseg import preparation as preparation_module
from medseg.config.settings import ChannelConfig, PrepareConfig
from medseg.errors import ConfigError, InputError, MaskError, ModelError, RunError
from medseg.grid import AxisOrder, Grid
from medseg.intensity import measure
from medseg.preparation import Channel, Preparation, decide, working_grid
from medseg.prepare import ScanReader, assemble, prepare_reference, prepared_blocks, restore_block, transforms
from medseg.reading import read_case
from medseg.scan import find_scans
from medseg.volume import Mask, Volume

ORDERS = [AxisOrder(axes, flips) for axes in permutations(range(3)) for flips in product([False, True], repeat=3)]
PLANES = ["axial", "coronal", "sagittal"]
SHAPE = (5, 7, 6)

orders = st.sampled_from(ORDERS)
planes = st.sampled_from(PLANES)


def make_grid(shape: Sequence[int] = SHAPE, spacing: Sequence[float] = (1.5, 0.8, 3.0), tilt_deg: float = 8.0) -> Grid:
    """A grid near RAS, turned by `tilt_deg` about two axes: oblique, as most MR is."""
    a = np.deg2rad(tilt_deg)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag(spacing)
    affine[:3, 3] = [-30.0, 12.5, 101.0]
    return Grid(tuple(shape), affine)


def noise(shape: Sequence[int], seed: int = 0) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16)


def stored(volume: Volume, order: AxisOrder) -> Volume:
    """The same scan, stored in another axis order."""
    voxels = np.ascontiguousarray(order.apply(volume.voxels))
    return Volume(voxels, volume.grid.reordered(order), volume.modality)


def prepared(volume: Volume, preparation: Preparation, block: int = 32) -> torch.Tensor:
    return torch.cat([part.images for part in prepared_blocks(volume, preparation, block)])


def one_channel(
    plane: str = "axial", spacing_mm: tuple[float, float] = (1.0, 1.0), context: int = 0, normalise: str = "percentile"
) -> Preparation:
    return Preparation(plane, spacing_mm, (Channel("image", normalise),), context=context)  # type: ignore[arg-type]


def native(grid: Grid, plane: str) -> Preparation:
    ordered = grid.reordered(grid.order_to(preparation_module.PLANES[plane]))  # type: ignore[index]
    return one_channel(plane, ordered.spacing[:2])


# ---------------------------------------------------------------------------------------------------- orientation


@settings(max_examples=60)
@given(order=orders, plane=planes)
def test_how_a_scan_is_stored_does_not_change_its_slices(order: AxisOrder, plane: str) -> None:
    volume = Volume(noise((1, *SHAPE)), make_grid())
    preparation = one_channel(plane, spacing_mm=(1.1, 1.3), context=1)
    assert torch.equal(prepared(stored(volume, order), preparation), prepared(volume, preparation))


def test_an_axial_slice_looks_as_radiologists_see_it() -> None:
    # RAS voxels: the last index of each axis is right, front, head. Row 0 is the front, column 0 the patient's right,
    # and the last slice is the highest, so one bright voxel in that corner lands at slice -1, row 0, column 0.
    voxels = np.zeros((1, 4, 5, 6), np.int16)
    voxels[0, -1, -1, -1] = 100
    volume = Volume(voxels, Grid((4, 5, 6), np.eye(4)))
    images = prepared(volume, one_channel(normalise="zscore"))
    assert images.shape == (6, 1, 5, 4)
    assert np.unravel_index(int(images.argmax()), images.shape) == (5, 0, 0, 0)


@pytest.mark.parametrize(("plane", "shape"), [("coronal", (5, 1, 6, 4)), ("sagittal", (4, 1, 6, 5))])
def test_the_head_is_on_top_in_the_other_planes(plane: str, shape: tuple[int, ...]) -> None:
    voxels = np.zeros((1, 4, 5, 6), np.int16)
    voxels[0, :, :, -1] = 100  # the top of the head
    images = prepared(Volume(voxels, Grid((4, 5, 6), np.eye(4))), one_channel(plane, normalise="zscore"))
    assert images.shape == shape
    assert (images[:, :, 0] > images[:, :, 1:].amax()).all()


@settings(max_examples=60)
@given(order=orders, plane=planes)
def test_cut_and_restore_at_native_spacing_is_the_identity(order: AxisOrder, plane: str) -> None:
    labels = np.random.default_rng(1).integers(0, 4, SHAPE).astype(np.uint8)
    grid = make_grid().reordered(order)
    mask = Mask(np.ascontiguousarray(order.apply(labels)), grid)
    preparation = native(grid, plane)
    cut = prepare_reference(mask, preparation)
    logits = F.one_hot(torch.from_numpy(cut).long(), 4).permute(0, 3, 1, 2)
    blocks = [(i, restore_block(logits[i : i + 2], grid, preparation)) for i in range(0, len(logits), 2)]
    back = assemble(grid, preparation, reversed(blocks))
    assert back.grid is grid
    assert np.array_equal(back.labels, mask.labels)


# ---------------------------------------------------------------------------------------------------------- spacing


@settings(max_examples=60)
@given(
    order=orders,
    plane=planes,
    rows=st.floats(0.3, 4),
    columns=st.floats(0.3, 4),
    start=st.integers(0, 3),
    count=st.integers(1, 2),
)
def test_monai_and_the_grid_agree_on_where_the_slices_are(
    order: AxisOrder, plane: str, rows: float, columns: float, start: int, count: int
) -> None:
    volume = stored(Volume(noise((1, *SHAPE)), make_grid()), order)
    preparation = one_channel(plane, (rows, columns))
    target = working_grid(volume.grid, preparation)
    slab = prepare._slab(volume.cut, volume.grid, preparation, start, start + count)
    image = transforms(preparation, measure(volume, preparation), target.shape)(slab)
    assert isinstance(image, MetaTensor)
    expected = target.block(2, start, start + count)
    assert tuple(image.shape[1:]) == expected.shape
    np.testing.assert_allclose(image.affine.numpy(), expected.affine, atol=1e-6)


@pytest.mark.parametrize("spacing_mm", [(0.4, 0.5), (0.8, 1.5), (2.4, 2.9)])
def test_a_ramp_in_the_world_stays_where_it_is(spacing_mm: tuple[float, float]) -> None:
    # The value of each voxel is a linear function of its world place. Bilinear resampling keeps such a ramp away from
    # the border: each new pixel must hold the value of its own world place. Where pixels get larger the filter's few
    # taps are not quite symmetric: 2 % of a pixel (0.02 x 2.9 mm x 3 per mm = 0.17) is allowed.
    grid = make_grid(shape=(40, 60, 3))
    world = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    ramp = (world @ [2.0, -3.0, 5.0]).astype(np.float32)
    preparation = one_channel(spacing_mm=spacing_mm, normalise="zscore")
    volume = Volume(ramp[None], grid)
    stats = measure(volume, preparation)
    images = prepared(volume, preparation)[:, 0].numpy() * stats.sd[0] + stats.mean[0]
    target = working_grid(grid, preparation)
    expected = target.to_world(np.moveaxis(np.indices(target.shape), 0, -1)) @ [2.0, -3.0, 5.0]
    margin = tuple(slice(max(2, n // 5), -max(2, n // 5)) for n in target.shape[:2])
    np.testing.assert_allclose(
        images.transpose(1, 2, 0)[margin], expected[margin], atol=0.17 if spacing_mm[0] > 1 else 0.02
    )


def test_the_working_grid_by_hand() -> None:
    # 100 columns (x) of 0.7 mm at 1 mm: 70 pixels; 50 rows (y) of 0.9 mm at 2 mm: 22.5, Python rounds half to even: 22
    grid = Grid((100, 50, 7), np.diag([0.7, 0.9, 5.0, 1.0]))
    target = working_grid(grid, one_channel(spacing_mm=(2.0, 1.0)))
    assert target.shape == (22, 70, 7)
    assert target.spacing == pytest.approx((50 * 0.9 / 22, 1.0, 5.0))  # the field of view is kept exactly
    assert target.orientation == "PLS"


def test_shrinking_does_not_alias() -> None:
    # Columns alternate 0, 1000: at three times the spacing every pixel must be near the mean, whichever column it hits.
    voxels = np.zeros((1, 30, 30, 2), np.int16)
    voxels[0, ::2] = 1000
    volume = Volume(voxels, Grid((30, 30, 2), np.eye(4)))
    preparation = one_channel(spacing_mm=(3.0, 3.0), normalise="zscore")
    stats = measure(volume, preparation)
    images = prepared(volume, preparation) * stats.sd[0] + stats.mean[0]
    assert images.min() > 250  # without smoothing every pixel falls on an odd column: 0
    assert images.max() < 750


# ----------------------------------------------------------------------------------------------------------- blocks


@settings(max_examples=20)
@given(block=st.integers(1, 9), context=st.integers(0, 3), order=orders)
def test_the_size_of_the_blocks_changes_nothing(block: int, context: int, order: AxisOrder) -> None:
    volume = stored(Volume(noise((1, *SHAPE)), make_grid()), order)
    preparation = one_channel(context=context)
    assert torch.equal(prepared(volume, preparation, block), prepared(volume, preparation, 100))


def test_only_one_block_is_ever_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    cut = prepare._slab

    def spy(source: prepare.Cut, grid: Grid, preparation: Preparation, first: int, last: int) -> MetaTensor:
        seen.append(last - first)
        return cut(source, grid, preparation, first, last)

    monkeypatch.setattr(prepare, "_slab", spy)
    grid = Grid((4, 5, 50), np.eye(4))
    starts = [b.start for b in prepared_blocks(Volume(noise((1, 4, 5, 50)), grid), one_channel(context=2), block=8)]
    assert starts == list(range(0, 50, 8))
    assert max(seen) == 8 + 2 * 2  # the block and its context on both sides


def test_several_channels_are_normalised_each_by_itself() -> None:
    voxels = np.stack([noise(SHAPE, 1), noise(SHAPE, 2) * 20.0 - 7]).astype(np.float32)
    channels = (Channel("t1", "zscore"), Channel("t2", "percentile"))
    preparation = Preparation("axial", (1.0, 1.0), channels, context=1)
    images = prepared(Volume(voxels, make_grid()), preparation)
    assert images.shape[1] == preparation.in_channels == 6
    for index in (0, 1):
        alone = Preparation("axial", (1.0, 1.0), (channels[index],), context=1)
        single = prepared(Volume(voxels[index : index + 1], make_grid()), alone)
        torch.testing.assert_close(images[:, 3 * index : 3 * index + 3], single)


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(InputError) as refusal:
        prepared(Volume(noise((2, *SHAPE)), make_grid()), one_channel())
    assert refusal.value.code == "MODEL-INPUT"


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 1), (3, 1, 9), (2, 2, 1)])
@pytest.mark.parametrize("plane", PLANES)
def test_the_smallest_volumes_go_through(shape: tuple[int, int, int], plane: str) -> None:
    grid = make_grid(shape)
    images = prepared(Volume(noise((1, *shape)), grid), one_channel(plane, (2.0, 2.0), context=1))
    h, w, n = working_grid(grid, one_channel(plane, (2.0, 2.0))).shape
    assert images.shape == (n, 3, h, w)
    assert torch.isfinite(images).all()


def test_a_tilted_gantry_keeps_its_shear() -> None:
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[1, 2] = 0.8
    target = working_grid(Grid((8, 8, 8), affine), one_channel(spacing_mm=(2.0, 2.0)))
    assert target.is_sheared
    assert target.affine[1, 2] == pytest.approx(0.8)


# ---------------------------------------------------------------------------------------------------- normalisation


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64])
@pytest.mark.parametrize("normalise", ["zscore", "percentile"])
def test_a_constant_image_becomes_zeros(dtype: type, normalise: str) -> None:
    volume = Volume(np.full((1, 6, 6, 4), 117, dtype), make_grid((6, 6, 4)))
    assert prepared(volume, one_channel(normalise=normalise)).abs().max() < 1e-6


def test_rounding_noise_is_not_blown_up() -> None:
    values = (1000 + 1e-7 * noise((1, 6, 6, 4))).astype(np.float32)  # neighbours of 1000 are 6e-5 away
    images = prepared(Volume(values, make_grid((6, 6, 4))), one_channel(normalise="zscore"))
    assert images.abs().max() < 1e-4


def test_a_window_clips_and_standardises_by_the_training_foreground() -> None:
    voxels = np.array([-1000, -160, 40, 240, 3000], np.int16).reshape(1, 5, 1, 1)
    channel = Channel("ct", "window", window=(-160, 240), mean=40, sd=100)
    volume = Volume(voxels, Grid((5, 1, 1), np.diag([-1.0, 1, 1, 1])), "CT")
    images = prepared(volume, Preparation("axial", (1.0, 1.0), (channel,), context=0))
    # (-160 - 40) / 100 = -2; (40 - 40) / 100 = 0; (240 - 40) / 100 = 2; beyond the window as its ends
    assert images.flatten().tolist() == pytest.approx([-2, -2, 0, 2, 2])


def test_statistics_are_of_the_body_not_of_the_air() -> None:
    # Three quarters air: values 0 to 9, far below a tenth of the range. Body: 900 and 1100 in equal parts.
    rng = np.random.default_rng(3)
    voxels = rng.integers(0, 10, (1, 40, 40, 4)).astype(np.uint16)
    voxels[:, :10] = np.where(np.arange(40)[:, None] % 2, 900, 1100)
    stats = measure(Volume(voxels, make_grid((40, 40, 4))), one_channel(normalise="zscore"))
    assert (stats.mean[0], stats.sd[0]) == pytest.approx((1000, 100))
    assert stats.low == (-np.inf,)


def test_percentiles_clip_a_hot_spot() -> None:
    voxels = noise((1, 20, 20, 10)) + np.int16(500)
    voxels[0, 3, 3, 3] = 30000
    volume = Volume(voxels, make_grid((20, 20, 10)))
    stats = measure(volume, one_channel(spacing_mm=(1.5, 0.8)))
    assert stats.high[0] <= 1500
    images = prepared(volume, one_channel(spacing_mm=(1.5, 0.8)))
    assert images.max() <= (stats.high[0] - stats.mean[0]) / stats.sd[0] + 1e-5


@settings(max_examples=30)
@given(scale=st.floats(1e-3, 1e3), offset=st.floats(-1e4, 1e4), normalise=st.sampled_from(["zscore", "percentile"]))
def test_mr_units_do_not_matter(scale: float, offset: float, normalise: str) -> None:
    values = noise((1, *SHAPE)).astype(np.float64)
    first = prepared(Volume(values, make_grid()), one_channel(normalise=normalise))
    other = prepared(Volume(values * scale + offset * scale, make_grid()), one_channel(normalise=normalise))
    torch.testing.assert_close(first, other, atol=0.01, rtol=0.01)


def test_a_large_volume_is_measured_on_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Volume(noise((1, 60, 60, 100)), make_grid((60, 60, 100)))
    whole = measure(volume, one_channel())
    monkeypatch.setattr(intensity, "SAMPLE", 20_000)
    part = measure(volume, one_channel())
    # The mean of about 18,000 values with standard deviation 260 is known to 260 / sqrt(18000) = 2.
    assert part != whole
    assert part.mean[0] == pytest.approx(whole.mean[0], abs=8)
    assert part == measure(stored(volume, ORDERS[29]), one_channel())


# ---------------------------------------------------------------------------------------------------- references


@settings(max_examples=60)
@given(h=st.integers(1, 12), w=st.integers(1, 12))
def test_labels_are_laid_on_the_working_grid_as_torch_does(h: int, w: int) -> None:
    labels = np.random.default_rng(5).integers(0, 9, (7, 6, 2)).astype(np.uint8)
    grid = Grid((7, 6, 2), np.diag([-1.0, -1.0, 1.0, 1.0]))  # rows grow along j, columns along i
    preparation = one_channel(spacing_mm=(6 / h, 7 / w))
    ours = prepare_reference(Mask(labels, grid), preparation)
    stack = torch.from_numpy(labels).permute(2, 1, 0)[:, None].float()
    theirs = F.interpolate(stack, size=(h, w), mode="nearest-exact")[:, 0].numpy()
    assert ours.dtype == np.uint8
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.3, 1.9])
def test_a_disc_comes_back_from_another_spacing(factor: float) -> None:
    j, i = np.mgrid[:96, :96]
    disc = (np.hypot(i - 45.2, j - 50.7) < 20).astype(np.uint8)
    grid = Grid((96, 96, 1), np.diag([-1.0, -1.0, 1.0, 1.0]))
    mask = Mask(disc[..., None], grid)
    preparation = one_channel(spacing_mm=(factor, factor))
    cut = prepare_reference(mask, preparation)
    logits = torch.from_numpy(cut)[:, None].float() - 0.5  # one output channel: foreground where the logit is above 0
    back = assemble(grid, preparation, [(0, restore_block(logits, grid, preparation))])
    dice = 2 * np.count_nonzero(back.labels & mask.labels) / (back.labels.sum() + mask.labels.sum())
    assert dice > 0.97
    # nearest neighbour neither gains nor loses volume: pi 20^2 = 1257 pixels within 3 %
    assert cut.sum() * factor**2 == pytest.approx(1257, rel=0.03)


def test_labels_above_255_are_refused() -> None:
    with pytest.raises(MaskError) as refusal:
        prepare_reference(Mask(np.full((2, 2, 2), 256, np.uint16), Grid((2, 2, 2), np.eye(4))), one_channel())
    assert refusal.value.code == "MASK-VALUES"


# ---------------------------------------------------------------------------------------------------- the way back


def test_logits_are_resampled_not_labels() -> None:
    # Two working columns of 2 mm, logits -1 and 3; own columns of 1 mm sample at -0.25, 0.25, 0.75, 1.25 (clamped):
    # -1, 0, 2, 3. The foreground begins where the line crosses 0; labels enlarged alone would give 0 0 1 1 or, from
    # a threshold of equal weights, an edge in the middle.
    grid = Grid((4, 1, 1), np.diag([-1.0, -1.0, 1.0, 1.0]))
    preparation = one_channel(spacing_mm=(1.0, 2.0))
    logits = torch.tensor([-1.0, 3.1]).reshape(1, 1, 1, 2)
    # 0.75 * -1 + 0.25 * 3.1 = 0.025 is just above 0
    assert restore_block(logits, grid, preparation).flatten().tolist() == [0, 1, 1, 1]


def test_half_precision_logits_are_restored() -> None:
    grid = make_grid((6, 6, 2))
    logits = torch.randn(2, 3, 3, 3, dtype=torch.bfloat16)
    preparation = one_channel(spacing_mm=(1.6, 3.0))
    assert restore_block(logits, grid, preparation).shape == (2, 6, 6)


@pytest.mark.parametrize("starts", [[0], [0, 2, 2], [0, 1, 3]])
def test_a_missing_or_repeated_slice_is_noticed(starts: list[int]) -> None:
    grid = Grid((3, 3, 4), np.eye(4))
    blocks = [(start, np.zeros((2 if start != 3 else 1, 3, 3), np.uint8)) for start in starts]
    with pytest.raises(RunError) as refusal:
        assemble(grid, one_channel(), blocks)
    assert refusal.value.code == "RUN-CRASH"


# ---------------------------------------------------------------------------------------------------- what is kept


def test_a_preparation_survives_json() -> None:
    channels = (
        Channel("t1", "percentile", modality="MR", description="*T1*"),
        Channel("ct", "window", modality="CT", referenced=True, window=(-160, 240), mean=40.5, sd=90),
    )
    preparation = Preparation("coronal", (0.9, 1.1), channels, percentiles=(1, 99), context=2)
    text = json.dumps(preparation.to_dict())
    assert Preparation.from_dict(json.loads(text)) == preparation
    assert preparation.in_channels == 2 * 5


@pytest.mark.parametrize(
    "change",
    [
        {"plane": "oblique"},
        {"extra": 1},
        {"spacing_mm": [0, 1]},
        {"spacing_mm": [1, 1, 1]},
        {"spacing_mm": [float("nan"), 1]},
        {"context": -1},
        {"channels": []},
        {"channels": [{"name": "x", "normalise": "window"}]},
        {"channels": [{"name": "x", "normalise": "zscore", "window": [0, 1]}]},
        {"channels": [{"name": "x", "normalise": "window", "window": [1, 1]}]},
        {"channels": [{"name": "x", "normalise": "zscore", "sd": 0}]},
        {"percentiles": [99, 1]},
    ],
)
def test_a_damaged_preparation_is_refused(change: dict[str, object]) -> None:
    good = one_channel().to_dict()
    with pytest.raises(ModelError) as refusal:
        Preparation.from_dict({**good, **change})
    assert refusal.value.code == "MODEL-FORMAT"


def test_a_missing_entry_is_named() -> None:
    good = one_channel().to_dict()
    del good["plane"]
    with pytest.raises(ModelError, match="plane"):
        Preparation.from_dict(good)


# ---------------------------------------------------------------------------------------------------- decisions


@dataclass
class OneChannel:
    modality: str = "CT"

    @property
    def modalities(self) -> dict[str, int]:
        return {self.modality: 3}

    foreground_percentiles: tuple[float, float] = (-50.0, 150.0)
    foreground_mean: float = 40.0
    foreground_sd: float = 30.0


@dataclass
class Shown:
    channels: Sequence[OneChannel]
    plane: str = "coronal"

    def in_plane_spacing_mm(self, codes: str) -> tuple[float, float]:
        assert codes in preparation_module.PLANES.values()
        return (0.8, 0.9)


def test_what_is_left_open_comes_from_the_training_cases() -> None:
    decided = decide(PrepareConfig(), Shown([OneChannel()]), [ChannelConfig(name="ct", modality="CT")])  # type: ignore[arg-type]
    assert decided.plane == "coronal"
    assert decided.spacing_mm == (0.8, 0.9)
    assert decided.channels[0].normalise == "window"
    assert decided.channels[0].window == (-50, 150)
    assert (decided.channels[0].mean, decided.channels[0].sd) == (40, 30)
    assert decided.channels[0].select == ChannelConfig(name="ct", modality="CT")


def test_settings_win_over_measurements() -> None:
    config = PrepareConfig(plane="axial", spacing_mm=(2, 3), normalise="window", window_hu=(0, 80), context=0)
    decided = decide(config, Shown([OneChannel("MR", foreground_mean=500)]), [ChannelConfig()])  # type: ignore[arg-type]
    assert (decided.plane, decided.spacing_mm, decided.context) == ("axial", (2, 3), 0)
    assert decided.channels[0].window == (0, 80)
    assert decided.channels[0].mean == 80  # the foreground's 500 is outside the window


def test_each_channel_is_normalised_as_its_modality_asks() -> None:
    shown = Shown([OneChannel("CT"), OneChannel("PT"), OneChannel("")])
    channels = [ChannelConfig(name=name) for name in "abc"]
    decided = decide(PrepareConfig(), shown, channels)  # type: ignore[arg-type]
    assert [channel.normalise for channel in decided.channels] == ["window", "percentile", "percentile"]


def test_an_empty_window_is_refused() -> None:
    shown = Shown([OneChannel(foreground_percentiles=(5, 5))])
    with pytest.raises(ConfigError) as refusal:
        decide(PrepareConfig(), shown, [ChannelConfig()])  # type: ignore[arg-type]
    assert refusal.value.code == "CONFIG-VALUE"


# ---------------------------------------------------------------------------------------------------- reading


def save(path: Path, voxels: NDArray[np.generic], grid: Grid) -> Path:
    image = nib.Nifti1Image(voxels, grid.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, 1)
    image.set_qform(grid.affine, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def test_monai_loads_through_our_door(tmp_path: Path) -> None:
    voxels = noise(SHAPE)
    path = save(tmp_path / "a.nii.gz", voxels, make_grid())
    (scan,) = find_scans(path)
    for source in (scan, path, str(path)):
        image = LoadImage(expanduser=False, ensure_channel_first=True)(source, reader=ScanReader())
        assert np.array_equal(image.numpy(), voxels[None])
        np.testing.assert_allclose(image.affine.numpy(), make_grid().affine, atol=1e-4)


def test_an_unfit_scan_is_not_tried_with_another_reader(tmp_path: Path) -> None:
    values = noise(SHAPE).astype(np.float32)
    values[2, 2, 2] = np.nan  # nibabel, and MONAI's reader on it, read this without a word
    path = save(tmp_path / "nan.nii", values, make_grid())
    with pytest.raises(InputError) as refusal:
        LoadImage(expanduser=False)(path, reader=ScanReader())
    assert refusal.value.code == "NIFTI-VALUES"


def test_a_folder_of_several_scans_is_not_one_scan(tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / f"{name}.nii.gz", noise(SHAPE), make_grid())
    with pytest.raises(InputError) as refusal:
        ScanReader().read(tmp_path)
    assert refusal.value.code == "MODEL-INPUT"


@pytest.mark.parametrize("order", [ORDERS[5], ORDERS[22], ORDERS[47]])
def test_sequences_on_the_same_voxels_are_only_reordered(order: AxisOrder) -> None:
    first, second = noise(SHAPE, 1), noise(SHAPE, 2)
    grid = make_grid()
    moved = reading._on_grid(stored(Volume(second[None], grid), order), grid, "case")
    assert moved.dtype == np.int16
    assert np.array_equal(moved[0], second)
    assert not np.array_equal(moved[0], first)


def test_another_grid_is_resampled_as_simpleitk_does() -> None:
    moving = make_grid((20, 18, 9), (1.1, 1.2, 3.5), tilt_deg=-5)
    fixed = make_grid((24, 20, 8), (1.0, 1.1, 3.0), tilt_deg=9)
    voxels = noise((20, 18, 9))
    ours = reading._on_grid(Volume(voxels[None], moving), fixed, "case")[0]
    theirs = SimpleITK.GetArrayFromImage(
        SimpleITK.Resample(
            _sitk(voxels, moving), _sitk(np.zeros(fixed.shape), fixed), SimpleITK.Transform(), SimpleITK.sitkLinear, -1
        )
    ).transpose()
    inside = theirs >= 0  # SimpleITK fills what lies outside with -1
    assert inside.mean() > 0.3
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=0.05)
    assert (ours[~inside] == voxels.min()).all()


def test_resampling_holds_the_coordinates_of_a_slice_only() -> None:
    source, target = Grid((64, 64, 32), np.eye(4)), Grid((64, 64, 32), np.diag([0.9, 0.9, 0.9, 1.0]))
    voxels = np.zeros(source.shape, np.float32)
    tracemalloc.start()
    reading._resampled(voxels, source, target)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * voxels.size  # 4 bytes a voxel are the result; coordinates of all would be 24 and more


def _sitk(voxels: NDArray[np.generic], grid: Grid) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(voxels.transpose().astype(np.float32))
    lps = np.diag([-1.0, -1.0, 1.0])
    image.SetSpacing(grid.spacing)
    image.SetDirection((lps @ grid.affine[:3, :3] / grid.spacing).flatten().tolist())
    image.SetOrigin((lps @ grid.affine[:3, 3]).tolist())
    return image


def test_channels_of_one_case_come_from_several_files(tmp_path: Path) -> None:
    grid = make_grid()
    save(tmp_path / "p" / "t1.nii.gz", noise(SHAPE, 1), grid)
    save(tmp_path / "p" / "t2.nii.gz", noise(SHAPE, 2).astype(np.float32), grid)
    scans = find_scans(tmp_path / "p")
    volume = read_case(scans)
    assert volume.voxels.shape == (2, *SHAPE)
    assert np.array_equal(volume.voxels[0], noise(SHAPE, 1))
    assert np.array_equal(volume.voxels[1], noise(SHAPE, 2))


def test_scans_that_do_not_overlap_are_refused(tmp_path: Path) -> None:
    grid = make_grid()
    far = grid.affine.copy()
    far[0, 3] += 500
    save(tmp_path / "p" / "t1.nii.gz", noise(SHAPE), grid)
    save(tmp_path / "p" / "t2.nii.gz", noise(SHAPE), Grid(SHAPE, far))
    with pytest.raises(InputError) as refusal:
        read_case(find_scans(tmp_path / "p"))
    assert refusal.value.code == "DATA-OVERLAP"


# ---------------------------------------------------------------------------------------------------- real scans


@pytest.mark.realdata
def test_a_real_tumour_comes_back_from_the_working_grid(shared_data: Path) -> None:
    folder = shared_data / "sarcoma_mr_t1"
    (scan,) = [s for s in find_scans(folder / "images") if s.usable][:1]
    volume = read_case([scan])
    stored_mask = nib.load(folder / "masks" / f"{scan.case_id}.nii.gz")
    mask = Mask(np.asarray(stored_mask.dataobj).astype(np.uint8), Grid(stored_mask.shape, stored_mask.affine))
    mask = mask.placed_on(volume.grid)
    preparation = replace(one_channel(spacing_mm=(1.2, 1.2), context=1))
    images = prepared(volume, preparation)
    assert images.abs().max() < 10
    assert images.std() == pytest.approx(1, abs=0.3)
    logits = torch.from_numpy(prepare_reference(mask, preparation))[:, None].float() - 0.5
    back = assemble(mask.grid, preparation, [(0, restore_block(logits, mask.grid, preparation))])
    dice = 2 * np.count_nonzero(back.labels & mask.labels) / (back.labels.sum() + mask.labels.sum())
    assert dice > 0.97

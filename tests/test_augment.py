"""Augmentation: repeatable, labels move with the image, and every switch does what its name says."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from medseg.augment import Augment, fit_patch, random_state
from medseg.config.settings import AugmentConfig

OFF = {"mirror": 0, "mirror_rows": 0, "affine": 0, "elastic": 0, "intensity": 0, "blur": 0, "low_resolution": 0}
EVERYTHING = AugmentConfig(mirror=0.5, mirror_rows=0.5, affine=1, elastic=1, intensity=1, blur=1, low_resolution=1)


def only(**switched_on: float) -> Augment:
    return Augment(AugmentConfig(**{**OFF, **switched_on}))


def batch(size: int = 4, shape: tuple[int, int] = (40, 48)) -> tuple[Tensor, Tensor]:
    images = torch.randn(size, 3, *shape, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(size, *shape, dtype=torch.uint8)
    labels[:, 10:25, 12:30] = 1
    labels[:, 26:32, 14:20] = 2
    return images, labels


def test_equal_keys_give_equal_changes_and_others_do_not() -> None:
    images, labels = batch()
    augment = Augment(EVERYTHING)
    first, again, other = (augment(images, labels, key) for key in [(7, 1, 3), (7, 1, 3), (7, 1, 4)])
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_the_slices_of_a_batch_change_independently() -> None:
    images, labels = batch()
    images[:] = images[0].clone()
    changed, _ = Augment(EVERYTHING)(images, labels, (0,))
    assert not torch.equal(changed[0], changed[1])


def test_threads_and_copies_change_nothing() -> None:
    images, labels = batch(1)
    augment = pickle.loads(pickle.dumps(Augment(EVERYTHING)))
    wanted = [augment.slice(images[0], labels[0], (5, n)) for n in range(16)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: augment.slice(images[0], labels[0], (5, n)), range(16)))
    for (image, label), (image_of_thread, label_of_thread) in zip(wanted, found, strict=True):
        assert torch.equal(image, image_of_thread)
        assert torch.equal(label, label_of_thread)


def test_no_global_random_state_is_used_or_touched() -> None:
    images, labels = batch()
    np.random.seed(1)
    torch.manual_seed(1)
    before = np.random.get_state()[2], torch.get_rng_state()
    first = Augment(EVERYTHING)(images, labels, (3,))[0]
    assert np.random.get_state()[2] == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    np.random.seed(2)
    torch.manual_seed(2)
    assert torch.equal(Augment(EVERYTHING)(images, labels, (3,))[0], first)


@settings(max_examples=25)
@given(key=st.integers(0, 2**32 - 1), h=st.integers(2, 33), w=st.integers(1, 33), channels=st.integers(1, 4))
def test_shapes_types_and_label_numbers_are_kept(key: int, h: int, w: int, channels: int) -> None:
    images = torch.randn(2, channels, h, w)
    labels = torch.randint(0, 4, (2, h, w), dtype=torch.uint8)
    kept = images.clone(), labels.clone()
    image, label = Augment(EVERYTHING)(images, labels, (key,))
    assert (image.shape, image.dtype, label.shape, label.dtype) == (
        images.shape,
        torch.float32,
        labels.shape,
        torch.uint8,
    )
    assert type(image) is Tensor
    assert type(label) is Tensor
    assert torch.isfinite(image).all()
    assert set(label.unique().tolist()) <= set(labels.unique().tolist()) | {0}
    assert torch.equal(images, kept[0])  # the given tensors are not changed in place
    assert torch.equal(labels, kept[1])


def test_all_off_changes_nothing() -> None:
    images, labels = batch()
    image, label = only()(images, labels, (0,))
    assert torch.equal(image, images)
    assert torch.equal(label, labels)


def test_mirroring_is_exact_and_moves_the_labels_along() -> None:
    images, labels = batch(1)
    images[0, 0] = labels[0].float()
    image, label = only(mirror=1).slice(images[0], labels[0], (0,))  # left and right only
    assert torch.equal(image, images[0].flip(-1))
    assert torch.equal(label, labels[0].flip(-1))


def test_columns_are_mirrored_as_often_as_asked_and_rows_never() -> None:
    image, labels = torch.arange(6.0).reshape(1, 2, 3), torch.zeros(2, 3, dtype=torch.uint8)
    augment = only(mirror=0.25)
    counts = {"rows": 0, "columns": 0}
    for n in range(800):
        first = augment.slice(image, labels, (n,))[0][0, 0, 0].item()
        counts["rows"] += first >= 3  # 3 or 5 come first when rows are mirrored
        counts["columns"] += first in (2, 5)
    # 800 x 0.25 = 200, standard deviation sqrt(800 x 0.25 x 0.75) = 12
    assert abs(counts["columns"] - 200) < 4 * 12
    assert counts["rows"] == 0


@pytest.mark.parametrize("key", range(6))
def test_the_labels_follow_the_image(key: int) -> None:
    # The image is the label drawn as values: after any movement the two must still coincide, save for the interpolated
    # edge of a pixel.
    _, labels = batch(1, (64, 64))
    image = (labels.float() * 10).expand(3, -1, -1)
    moved, label = only(affine=1, mirror=0.5).slice(image, (labels[0] > 0).to(torch.uint8), (key,))
    inside = moved[0] > 5
    overlap = 2 * (inside & (label > 0)).sum() / (inside.sum() + (label > 0).sum())
    assert overlap > 0.93
    assert not torch.equal(label, (labels[0] > 0).to(torch.uint8))


def test_rows_are_turned_upside_down() -> None:
    images, labels = batch(1)
    image, label = only(mirror_rows=1).slice(images[0], labels[0], (0,))
    assert torch.equal(image, images[0].flip(-2))
    assert torch.equal(label, labels[0].flip(-2))


@pytest.mark.parametrize(("size", "alike"), [(20, 0.95), (96, 0.98), (240, 0.99)])  # pixels on the rim fall either way
def test_bending_is_smooth_and_of_the_slice_s_own_scale(size: int, alike: float) -> None:
    """A disc stays in one piece of about its size, its rim moves by a few hundredths of the slice, labels go along."""
    j, i = np.mgrid[:size, :size]
    disc = np.hypot(i - (size - 1) / 2, j - (size - 1) / 2) < size / 4
    image, labels = torch.from_numpy(disc.astype(np.float32))[None], torch.from_numpy(disc.astype(np.uint8))
    moved = 0.0
    for key in range(12):
        bent, label = only(elastic=1).slice(image, labels, (key,))
        found = label.numpy() > 0
        pieces = np.bincount(ndimage.label(found)[0][found])
        assert pieces.max() > 0.98 * found.sum()
        assert 0.7 < found.sum() / disc.sum() < 1.3
        assert 2 * (found & (bent[0].numpy() > 0.5)).sum() / (found.sum() + (bent[0].numpy() > 0.5).sum()) > alike
        moved = max(moved, float((found != disc).mean()))
    assert 0.005 < moved < 0.08


def test_sizes_change_within_the_range_asked_for() -> None:
    j, i = np.mgrid[:96, :96]
    disc = torch.from_numpy((np.hypot(i - 47.5, j - 47.5) < 15).astype(np.uint8))
    image = disc.float()[None]
    augment = Augment(AugmentConfig(**{**OFF, "affine": 1}, rotation_deg=0, scaling=0.3))
    diameters = []
    for key in range(60):
        _, label = augment.slice(image, disc, (key,))
        diameters += [int(label.any(axis).sum()) for axis in (0, 1)]
    # 30 pixels across, 30 % either way: 21 to 39, one pixel of rounding at each end
    assert 19 <= min(diameters) < 25
    assert 35 < max(diameters) <= 41


def test_outside_the_slice_there_is_background_and_the_edge_goes_on() -> None:
    labels = torch.ones(32, 32, dtype=torch.uint8)
    image = torch.full((1, 32, 32), 7.0)
    moved, label = only(affine=1).slice(image, labels, (1,))
    assert torch.allclose(moved, image, atol=1e-4)
    assert 0 < (label == 0).sum() < label.numel() / 2


@pytest.mark.parametrize("switch", ["intensity", "blur", "low_resolution"])
def test_intensity_changes_leave_the_labels_alone(switch: str) -> None:
    images, labels = batch()
    image, label = only(**{switch: 1})(images, labels, (2,))
    assert torch.equal(label, labels)
    assert not torch.equal(image, images)
    assert image.std() == pytest.approx(float(images.std()), rel=0.7)
    assert abs(float(image.mean())) < 0.2


def test_a_flat_slice_stays_finite() -> None:
    image, _ = Augment(EVERYTHING)(torch.zeros(3, 3, 16, 16), torch.zeros(3, 16, 16, dtype=torch.uint8), (0,))
    assert torch.isfinite(image).all()


# ---------------------------------------------------------------------------------------------------------- patches


@settings(max_examples=60)
@given(
    h=st.integers(1, 40),
    w=st.integers(1, 40),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    key=st.integers(0, 1000),
)
def test_a_patch_is_the_slice_cut_and_padded(h: int, w: int, rows: int, columns: int, key: int) -> None:
    labels = (1 + torch.arange(h * w).reshape(h, w) % 250).to(torch.uint8)
    image = torch.stack([labels.float(), labels.float() + 1000])
    patch, cut = fit_patch(image, labels, (rows, columns), random_state(key))
    assert patch.shape == (2, rows, columns)
    assert cut.shape == (rows, columns)
    assert int((cut > 0).sum()) == min(h, rows) * min(w, columns)
    inside = cut > 0
    assert torch.equal(patch[0][inside], cut[inside].float())  # image and labels are cut alike
    kept_rows = inside.any(1).nonzero().flatten()
    window = patch[0][inside].reshape(min(h, rows), min(w, columns))
    assert bool((image[0].unfold(0, min(h, rows), 1).unfold(1, min(w, columns), 1) == window).all(-1).all(-1).any())
    assert kept_rows[0] == (rows - min(h, rows)) // 2  # in the middle
    assert (patch[1][~inside] == window.min() + 1000).all()  # the channel's lowest value around it


@settings(max_examples=40)
@given(row=st.integers(0, 39), column=st.integers(0, 29), key=st.integers(0, 1000))
def test_a_patch_over_a_label_holds_some_of_it(row: int, column: int, key: int) -> None:
    labels = torch.zeros(40, 30, dtype=torch.uint8)
    labels[:20] = 1
    labels[row, column] = 3
    _, cut = fit_patch(labels.float()[None], labels, (12, 14), random_state(key), label=3)
    assert (cut == 3).sum() == 1


def test_patches_come_from_everywhere() -> None:
    labels = torch.zeros(10, 10, dtype=torch.uint8)
    image = torch.arange(100.0).reshape(1, 10, 10)
    corners = {int(fit_patch(image, labels, (8, 8), random_state(n))[0][0, 0, 0]) for n in range(200)}
    assert corners == {10 * r + c for r in range(3) for c in range(3)}
    anywhere, _ = fit_patch(image, labels, (8, 8), random_state(1), label=1)  # it does not stand there
    assert anywhere.shape == (1, 8, 8)

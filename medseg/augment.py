"""Random changes to training slices: AugmentConfig -> MONAI transforms, and cutting slices to one size.

Everything random about a slice follows from its key, such as (seed, epoch, step, place in the batch): a resumed run
goes on as an unbroken one would, and the number of worker processes changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data.meta_tensor import MetaTensor
from monai.transforms.intensity.array import (
    RandAdjustContrast,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandScaleIntensity,
)
from monai.transforms.spatial.array import Flip, Rand2DElastic, RandAffine, RandSimulateLowResolution
from torch import Tensor

from medseg.config.settings import AugmentConfig

SHIFT = 0.1
"""Largest shift that goes with rotation and scaling, as a share of the slice's size: patches are cut at random places
already."""

BRIGHTNESS = 0.25
GAMMA = (0.7, 1.5)
NOISE_SD = 0.1
BLUR_SIGMA = (0.5, 1.0)
ZOOM = (0.5, 1.0)
"""As in nnU-Net (Isensee 2021, supplementary note 4), on slices whose unit is about one standard deviation."""

LIGHT = {"mirror": 0.0, "mirror_rows": 0.0, "affine": 0.3, "rotation_deg": 20.0, "scaling": 0.2, "elastic": 0.0}
"""What the settings leave open: how askew patients lie, and some more. Learned from at once, so best for many cases."""

STRONG = {"mirror": 0.5, "mirror_rows": 0.5, "affine": 0.8, "rotation_deg": 40.0, "scaling": 0.3, "elastic": 0.3}
"""For few cases, which a network otherwise learns by heart; it takes longer to learn (docs/benchmarks.md)."""

BEND_EVERY, BEND_BY = 1 / 6, (0.013, 0.04)
"""Elastic bending: distance of the grid's points, and how far they move, as shares of the slice's longer side."""

Random = np.random.RandomState


def random_state(*key: int) -> Random:
    """Return a generator that depends on the whole key of numbers from 0; neighbouring keys give unrelated streams."""
    return Random(np.random.MT19937(np.random.SeedSequence(key)))


class Augment:
    """The random changes of one configuration, for slices of any size. Without state: threads may share one.

    Each change is gated here and drawn by MONAI: MONAI's own gate costs 0.1 ms for a change that is not made.

    Args:
        config: probabilities and ranges.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        self._open = LIGHT | {name: value for name in LIGHT if (value := getattr(config, name)) is not None}

    def __call__(self, images: Tensor, labels: Tensor, key: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Change every slice of a batch in its own way.

        Args:
            images: `(b, c, h, w)` float32; all channels of a slice are changed alike.
            labels: `(b, h, w)` uint8; moved as the image is, nearest pixel, background from outside.
            key: of the batch, such as (seed, epoch, step).

        Returns:
            New tensors of the same shapes and dtypes.
        """
        pairs = [self.slice(i, m, (*key, n)) for n, (i, m) in enumerate(zip(images, labels, strict=True))]
        return torch.stack([image for image, _ in pairs]), torch.stack([label for _, label in pairs])

    def slice(self, image: Tensor, labels: Tensor, key: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Change one slice: image `(c, h, w)` float32, labels `(h, w)` uint8; equal keys, equal changes."""
        rng = random_state(*key)
        if self._happens("mirror", rng):
            flip = Flip(1)  # columns: left and right of axial and coronal slices
            image, labels = flip(image), flip(labels[None])[0]
        if self._happens("mirror_rows", rng):
            flip = Flip(0)
            image, labels = flip(image), flip(labels[None])[0]
        if self._happens("elastic", rng):
            image, labels = self._bend(image, labels, rng)
        if self._happens("affine", rng):
            image, labels = self._move(image, labels, rng)
        for probability, make in self._intensity_changes():
            if rng.random_sample() < probability:
                image = make().set_random_state(state=rng)(image)
        return _plain(image), _plain(labels)

    def _happens(self, change: str, rng: Random) -> bool:
        return bool(rng.random_sample() < self._open[change])

    def _intensity_changes(self) -> list[tuple[float, Callable[[], Any]]]:
        """Return probability and maker of each change (MONAI's transforms hold state, so each use has its own)."""
        config = self.config
        return [
            (config.intensity, lambda: RandScaleIntensity(BRIGHTNESS, prob=1)),
            (config.intensity, lambda: RandAdjustContrast(prob=1, gamma=GAMMA, retain_stats=True)),
            (config.intensity, lambda: RandGaussianNoise(prob=1, std=NOISE_SD, sample_std=True)),
            (config.blur, lambda: RandGaussianSmooth(BLUR_SIGMA, BLUR_SIGMA, prob=1)),
            (config.low_resolution, lambda: RandSimulateLowResolution(1, "nearest", "bilinear", ZOOM)),
        ]

    def _move(self, image: Tensor, labels: Tensor, rng: Random) -> tuple[Tensor, Tensor]:
        """Rotate, scale and shift together."""
        largest = self._open["scaling"]
        # MONAI scales the sampling grid: a structure becomes 1 / scale times as large, on each axis by itself.
        scale = (1 / (1 + largest) - 1, 1 / (1 - largest) - 1)
        affine = RandAffine(
            prob=1,
            rotate_range=math.radians(self._open["rotation_deg"]),
            scale_range=(scale, scale),
            translate_range=[SHIFT * size for size in image.shape[-2:]],
        )
        return _resampled(affine, image, labels, rng)

    def _bend(self, image: Tensor, labels: Tensor, rng: Random) -> tuple[Tensor, Tensor]:
        """Move the points of a coarse grid at random and everything between them smoothly along."""
        side = max(image.shape[-2:])
        spacing = max(2.0, side * BEND_EVERY)
        bend = Rand2DElastic((spacing, spacing), (BEND_BY[0] * side, BEND_BY[1] * side), prob=1)
        return _resampled(bend, image, labels, rng)


def _resampled(
    transform: RandAffine | Rand2DElastic, image: Tensor, labels: Tensor, rng: Random
) -> tuple[Tensor, Tensor]:
    """Move image and labels alike; the edge pixels go on outside the image, background outside the labels."""
    # Seeded twice, not drawn once: MONAI's elastic transform draws its grid anew in every call.
    seed = int(rng.randint(2**31))
    transform.set_random_state(seed)
    image = transform(image, mode="bilinear", padding_mode="border")
    transform.set_random_state(seed)
    moved = transform(labels[None].float(), mode="nearest", padding_mode="zeros")
    return image, moved[0].to(labels.dtype)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_tensor().contiguous() if isinstance(tensor, MetaTensor) else tensor.contiguous()


def fit_patch(
    image: Tensor, labels: Tensor, patch: tuple[int, int], rng: Random, label: int | None = None
) -> tuple[Tensor, Tensor]:
    """Cut or pad one slice to the size of a patch.

    Args:
        image: `(c, h, w)`.
        labels: `(h, w)`.
        patch: rows and columns wanted.
        rng: chooses the place.
        label: the patch holds a pixel of it, drawn evenly among all of the slice; no matter for a slice without, or
            when None.

    Returns:
        Image `(c, *patch)` and labels `(*patch)`. Where the slice is smaller it stands in the middle; around it each
        channel's lowest value goes on (air, or the low end of the window) and background.
    """
    pixels = labels.new_empty((0, 2)) if label is None else torch.nonzero(labels == label)
    seen = [int(x) for x in pixels[rng.randint(len(pixels))]] if len(pixels) else None
    window = tuple(
        slice(start, start + size)
        for start, size in (
            _place(labels.shape[axis], patch[axis], rng, seen[axis] if seen else None) for axis in (0, 1)
        )
    )
    image, labels = image[:, window[0], window[1]], labels[window]
    if labels.shape == tuple(patch):
        return image.contiguous(), labels.contiguous()
    return _pad_lowest(image, patch), F.pad(labels, _margins(labels.shape, patch))


def _place(size: int, wanted: int, rng: Random, seen: int | None) -> tuple[int, int]:
    """Return start and length of a random window along one axis, over index `seen` when there is one."""
    if size <= wanted:
        return 0, size
    low, high = 0, size - wanted
    if seen is not None:
        low, high = max(low, seen - wanted + 1), min(high, seen)
    return int(rng.randint(low, high + 1)), wanted


def _margins(shape: Sequence[int], patch: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return torch's padding (left, right, top, bottom) that puts `(..., h, w)` in the middle of a patch."""
    rows, columns = patch[0] - shape[-2], patch[1] - shape[-1]
    return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2


def _pad_lowest(image: Tensor, patch: tuple[int, int]) -> Tensor:
    left, right, top, bottom = _margins(image.shape, patch)
    out = image.amin(dim=(1, 2), keepdim=True).expand(-1, *patch).clone()
    out[:, top : patch[0] - bottom, left : patch[1] - right] = image
    return out

"""Training batches and whole-volume validation, both from the store of prepared slices."""

from __future__ import annotations

import time
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from medseg.augment import Augment, fit_patch, random_state
from medseg.config import AugmentConfig, Config, TrainConfig
from medseg.devices import choose_layout
from medseg.errors import ConfigError
from medseg.models import Network
from medseg.slices import context_span, pad_to, with_context
from medseg.store import Entry, SliceStore, cut_slice
from medseg.training.ahead import Batch
from medseg.training.sampling import Drawn, SliceId, epoch_batches
from medseg.training.team import ALONE, Team
from medseg.volume import UNANNOTATED

OPEN = 100
"""Cases whose two files are held open: opening them takes several times as long as cutting a slice, and some systems
let a process have no more than 256 files open."""


class TrainingSlices:
    """Batches of augmented slices; batch `step` of `epoch` is the same whenever and wherever it is made.

    Args:
        store: prepared training cases.
        config: batch size, patch (must be set), share of foreground.
        augment: random changes.
        context: neighbouring slices on each side.
        seed: of the run.
        team: each of its processes makes its part of a batch.
    """

    def __init__(
        self,
        store: SliceStore,
        config: TrainConfig,
        augment: AugmentConfig,
        context: int,
        seed: int,
        team: Team = ALONE,
    ) -> None:
        if config.patch is None or config.batch_size is None:
            advice = "`medseg.training.plan` fits it."
            raise ConfigError("CONFIG-VALUE", "train.patch, train.batch_size", "are not set", advice)
        self._batch_size = config.batch_size
        self._team = team
        self._config = config
        self._context = context
        self._seed = seed
        self._augment = Augment(augment)
        self._patch = config.patch
        drawn = [(entry, i) for entry in store for i in np.setdiff1d(np.arange(entry.shape[0]), entry.blank).tolist()]
        self._slices = {SliceId(entry.case, index): entry.labels(index) for entry, index in drawn}
        self._drawn: tuple[int, list[list[Drawn]]] = (-1, [])
        self._opened = lru_cache(OPEN)(lambda case: (store[case].images(), store[case].masks()))

    def _batches(self, epoch: int) -> list[list[Drawn]]:
        drawn = self._drawn  # one look: several threads make batches
        if drawn[0] != epoch:
            config = self._config
            batches = epoch_batches(
                self._slices,
                batch_size=self._batch_size,
                share=config.foreground,
                steps=config.steps_per_epoch,
                seed=self._seed,
                epoch=epoch,
            )
            self._drawn = drawn = (epoch, batches)
        return drawn[1]

    def steps(self, epoch: int) -> int:
        """Count the batches of an epoch: the same in each."""
        if self._config.steps_per_epoch is not None:
            return self._config.steps_per_epoch
        return -(-len(self._slices) // self._batch_size)

    def batch(self, epoch: int, step: int) -> Batch:
        """Return images `(b, c, h, w)` float32 and label numbers `(b, h, w)` int64.

        A process for which a small last batch has no slice gets one in which nothing is annotated: it counts nowhere.
        """
        images, labels = [], []
        whole = self._batches(epoch)[step]
        part = self._team.part(len(whole))
        for place in part or (0,):
            chosen, label = whole[place]
            image, numbers = cut_slice(*self._opened(chosen.case), chosen.index, self._context)
            key = (self._seed, epoch, step, place)
            image, numbers = fit_patch(image, numbers, self._patch, random_state(*key, 0), label)
            image, numbers = self._augment.slice(image, numbers, (*key, 1))
            images.append(image)
            labels.append(numbers if part else torch.full_like(numbers, UNANNOTATED))
        return torch.stack(images), torch.stack(labels).long()


class VolumeDice:
    """Mean Dice of a network over whole validation volumes, on the working grid.

    The rule for empty masks is the report's: a label absent from both is not scored; absent from one, it scores 0.
    Voxels that nobody annotated count in neither.
    The final scores of a run are measured anew on each scan's own grid.

    Args:
        store: prepared validation cases.
        config: labels, and slices in a forward pass.
        context: neighbouring slices on each side.
        device: of the network.
        dtype: bfloat16 or float32 arithmetic.
        team: each of its processes takes its part of the cases.
    """

    def __init__(
        self,
        store: SliceStore,
        config: Config,
        context: int,
        device: torch.device,
        dtype: torch.dtype,
        team: Team = ALONE,
    ) -> None:
        self.store = store
        self._numbers = [number for number, _ in config.label_names]
        self.context = context
        self._batch_size = config.predict.batch_size
        self._patch = config.train.patch or (1, 1)
        self._device = device
        self._dtype = dtype
        self._team = team

    def __call__(self, network: Network) -> float:
        """Return the mean over cases and labels, 0 to 1; 0 when nothing could be scored."""
        entries = list(self.store)
        own = {place: self._case(network, entries[place]) for place in self._team.part(len(entries))}
        found = {place: scores for part in self._team.gather(own) for place, scores in part.items()}
        scores = [score for place in range(len(entries)) for score in found[place]]  # in one order for any team
        return float(np.mean(scores)) if scores else 0.0

    def seconds(self, network: Network, part_s: float) -> float:
        """Estimate how long a whole pass takes, from as many cases as go into `part_s`, at least one."""
        entries = list(self.store)
        chosen = [entries[number] for number in np.random.default_rng(0).permutation(len(entries))]
        self._case(network, chosen[0])  # the first pass allocates memory and chooses kernels
        started, passed, pixels = time.perf_counter(), 0.0, 0
        for entry in chosen:
            self._case(network, entry)
            passed, pixels = time.perf_counter() - started, pixels + _pixels(entry)
            if passed > part_s:
                break
        return passed * sum(map(_pixels, entries)) / pixels / self._team.count

    @torch.inference_mode()
    def _case(self, network: Network, entry: Entry) -> list[float]:
        both, total = np.zeros(len(self._numbers)), np.zeros(len(self._numbers))
        images, masks, count = entry.images(), entry.masks(), entry.shape[0]
        for start in range(0, count, self._batch_size):
            stop = min(start + self._batch_size, count)
            first, last = context_span(start, stop, count, self.context)
            part = torch.from_numpy(images[first:last].astype(np.float32))
            predicted = self.labels(network, with_context(part, first, start, stop, self.context))
            wanted = torch.from_numpy(np.array(masks[start:stop]))
            for place, label in enumerate(self._numbers):
                one, other = (predicted == label) & (wanted != UNANNOTATED), wanted == label
                both[place] += int((one & other).sum())
                total[place] += int(one.sum()) + int(other.sum())
        return [2 * b / t for b, t in zip(both, total, strict=True) if t > 0]

    @torch.inference_mode()
    def labels(self, network: Network, images: Tensor) -> Tensor:
        """Return the label numbers `(n, h, w)` uint8 that a network gives to slices `(n, c, h, w)`."""
        padded, (rows, columns) = pad_to(images, self._patch)
        x = padded.to(self._device, memory_format=choose_layout(network, self._device))
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            logits: Tensor = network(x)[..., rows, columns]
        chosen = logits[:, 0] > 0 if logits.shape[1] == 1 else logits.max(1).indices
        return chosen.to(torch.uint8).cpu()


def _pixels(entry: Entry) -> int:
    n, _, h, w = entry.shape
    return n * h * w

"""From a volume to a mask on the volume's own grid."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from importlib.metadata import version

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medseg.config.settings import PredictConfig
from medseg.devices import choose_device, is_out_of_memory
from medseg.engines import Choice, Compute, choose, offered, start
from medseg.errors import InputError, RunError
from medseg.grid import Grid
from medseg.intensity import Statistics, measure
from medseg.models.model_folder import Model
from medseg.postprocess import clean, rules_for
from medseg.preparation import working_grid
from medseg.prepare import Cut, assemble, cut_slices, prepared_blocks, restore_block
from medseg.slices import pad_to
from medseg.volume import Mask, Volume

log = logging.getLogger(__name__)

PROOF_SLICES = 16
"""Slices that an engine is proved on: enough to cross what a scan shows, seconds of work, and a bounded memory."""


class Predictor:
    """A model on its device, ready for many volumes.

    The engine is chosen once, on slices of the first volume unless before (`settle`, `adopt`), and stays: all masks of
    a predictor are by the same one.

    Args:
        model: as `load_model` gives it.
        config: batch size, engine, precision, device, mirroring and cleaning.

    Attributes:
        device: where torch computes.
        choice: the engine and its proofs; None until it is chosen.

    Raises:
        RunError: RUN-DEVICE or RUN-ENGINE when what is asked for is not there.
        UsageError: LABEL-UNKNOWN when a label is to be cleaned that the model does not have.
    """

    def __init__(self, model: Model, config: PredictConfig | None = None) -> None:
        self.model = model
        self.config = config or model.description.predict
        self.rules = rules_for(model.labels, self.config.clean)
        elsewhere = self.config.engine in ("openvino", "onnx") and self.config.device == "auto"
        self.device = choose_device("cpu" if elsewhere else self.config.device)
        self.choice: Choice | None = None
        self._offered = offered(self.config, self.device, model.networks[0])
        self._computes: list[Compute] = []
        if self._offered[0].exact:  # nothing to prove
            self.adopt(Choice(engine=self._offered[0], model=model.hash))

    def adopt(self, choice: Choice) -> bool:
        """Take the engine that was chosen earlier, if it was for this model and is still offered; say whether."""
        if choice.engine not in self._offered or choice.model != self.model.hash:
            return False
        self.choice, self._computes = choice, []
        log.info("predicting by %s on %s", choice.engine, self.device)
        return True

    def settle(self, cut: Cut, grid: Grid, statistics: Statistics) -> Choice:
        """Choose the engine by proofs on slices from all over a volume, unless it is chosen already.

        Args:
            cut: gives stored voxels, as for `cut_blocks`.
            grid: of the volume.
            statistics: of the volume.
        """
        if self.choice is None:
            count = working_grid(grid, self.model.preparation).shape[2]
            places = np.linspace(0, count - 1, min(count, PROOF_SLICES)).round().astype(int).tolist()
            images = cut_slices(cut, grid, statistics, self.model.preparation, places)
            padded, _ = pad_to(images, self.model.description.patch)
            found = choose(self._offered, self.model.networks, padded, self.device)
            self.adopt(found.model_copy(update={"model": self.model.hash}))
        return self.choice or Choice(engine=self._offered[-1])

    @property
    def identity(self) -> str:
        """Hash of all that decides a mask beside the scan: model, settings, engine, version; equal ones agree."""
        cleaning = {str(number): rule.model_dump() for number, rule in self.rules.items()}
        engine = str(self.choice.engine) if self.choice else "none yet"
        decided = [self.model.hash, self.config.mirror, engine, cleaning, version("medseg")]
        return hashlib.sha256(json.dumps(decided).encode()).hexdigest()

    def predict(self, volume: Volume) -> Mask:
        """Segment one volume.

        Args:
            volume: channels in the order of `model.preparation.channels`.

        Returns:
            Label numbers on the volume's own grid. Memory beyond voxels and mask is that of one block of slices.

        Raises:
            InputError: MODEL-INPUT when the volume is of another modality than the model takes.
            RunError: RUN-MEMORY when even one slice does not fit.
        """
        self.check(volume.modality)
        if self.choice is None:
            self.settle(volume.cut, volume.grid, measure(volume, self.model.preparation))
        return clean(assemble(volume.grid, self.model.preparation, self._blocks(volume)), self.rules)

    def check(self, modality: str) -> None:
        """Refuse volumes of another modality than the model takes; an empty one is unknown, and taken.

        Raises:
            InputError: MODEL-INPUT.
        """
        wanted = self.model.preparation.channels[0].modality
        if wanted and modality and modality.upper() != wanted.upper():
            problem = f"a {modality} volume, the model takes {wanted}"
            raise InputError("MODEL-INPUT", "", problem, "Give the scans that the model was trained for.")

    def _blocks(self, volume: Volume) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        for block in prepared_blocks(volume, self.model.preparation, block=self.config.batch_size):
            yield block.start, restore_block(self.logits(block.images), volume.grid, self.model.preparation)

    def logits(self, images: Tensor) -> Tensor:
        """Return float32 logits `(n, classes, h, w)` of slices `(n, c, h, w)`; smaller batches when memory is short.

        Without an engine yet, the last one offered is taken, which needs no proof.
        """
        if self.choice is None:
            self.adopt(Choice(engine=self._offered[-1], model=self.model.hash))
        if self.choice and not self._computes:
            self._computes = [start(self.choice.engine, network, self.device) for network in self.model.networks]
        size = len(images)
        while True:
            try:
                return torch.cat([self._forward(part) for part in torch.split(images, size)])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    problem = f"one slice of {tuple(images.shape[1:])} does not fit on {self.device}"
                    raise RunError("RUN-MEMORY", "predict", problem, "Use device=cpu.") from error
                size = (size + 1) // 2
                log.warning("out of memory on %s: going on with %d slices at a time", self.device, size)

    @torch.inference_mode()
    def _forward(self, images: Tensor) -> Tensor:
        """Run the networks; a slice's logits do not depend on the others, nor on how many there are.

        Measured for all networks on a CPU, to the last bit, from two slices on. A lone one takes other kernels, hence
        goes twice.
        """
        if len(images) == 1:
            try:
                return self._forward(images.expand(2, -1, -1, -1))[:1]
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                log.warning("out of memory on %s for two slices: going on with one", self.device)
        padded, (rows, columns) = pad_to(images, self.model.description.patch)
        x = padded.to(self.device)
        # Columns are left and right of axial and coronal slices; in sagittal ones training mirrors nothing.
        mirror = self.config.mirror and self.model.preparation.plane != "sagittal"
        outputs = [compute(x) for compute in self._computes]
        if mirror:
            outputs += [compute(x.flip(-1)).flip(-1) for compute in self._computes]
        return mean_logits(outputs)[..., rows, columns]


def mean_logits(outputs: Sequence[Tensor]) -> Tensor:
    """Return the logits of the mean of class probabilities, computed by their logarithms, which neither end rounds off.

    Args:
        outputs: logits `(n, classes, h, w)` float32 of several networks or views; one channel stands for a sigmoid.

    Returns:
        The same shape; of one output the output itself.
    """
    if len(outputs) == 1:
        return outputs[0]
    binary = outputs[0].shape[1] == 1
    # A sigmoid of x is the softmax of (0, x).
    logarithms = [F.log_softmax(F.pad(x, (0, 0, 0, 0, 1, 0)) if binary else x, dim=1) for x in outputs]
    mean = torch.logsumexp(torch.stack(logarithms), dim=0) - math.log(len(outputs))
    return mean[:, 1:] - mean[:, :1] if binary else mean


def predict(model: Model, volume: Volume, config: PredictConfig | None = None) -> Mask:
    """Segment one volume with a model; for many, keep a `Predictor`.

    Raises:
        InputError: MODEL-INPUT for a volume of another modality.
        RunError: RUN-DEVICE or RUN-MEMORY.
    """
    return Predictor(model, config).predict(volume)

"""From a volume to a mask on the volume's own grid."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medseg.agreement import Agreement, Tally
from medseg.config.settings import PredictConfig
from medseg.devices import choose_device, is_out_of_memory
from medseg.engines import ENOUGH, EQUAL, Choice, Compute, Ranges, choose, offered, start
from medseg.errors import InputError, RunError
from medseg.grid import Grid
from medseg.intensity import Statistics, measure
from medseg.models.model_folder import Model
from medseg.postprocess import clean, rules_for
from medseg.preparation import working_grid
from medseg.prepare import Cut, assemble, cut_slices, labels_of, prepared_blocks, restore_block
from medseg.slices import pad_to
from medseg.volume import Mask, Volume

log = logging.getLogger(__name__)

PROOF_SLICES = 16
"""Slices that an engine is proved on: enough to cross what a scan shows, seconds of work, and a bounded memory."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """What the networks say of some slices.

    Attributes:
        logits: `(n, classes, h, w)` float32, of all networks and mirrored views together.
        votes: `(n, votes, h, w)` uint8, the label numbers of each network and view alone; no votes when there is one.
    """

    logits: Tensor
    votes: Tensor

    def cropped(self, rows: slice, columns: slice) -> Outputs:
        """Return a part of every slice."""
        return Outputs(self.logits[..., rows, columns], self.votes[..., rows, columns])

    def split(self, sizes: Sequence[int]) -> list[Outputs]:
        """Return so many slices each."""
        parts = zip(self.logits.split(list(sizes)), self.votes.split(list(sizes)), strict=True)
        return [Outputs(logits, votes) for logits, votes in parts]

    @staticmethod
    def join(parts: Sequence[Outputs]) -> Outputs:
        """Return all slices together."""
        return Outputs(torch.cat([part.logits for part in parts]), torch.cat([part.votes for part in parts]))


@dataclass(frozen=True, eq=False)
class Prediction:
    """What is predicted for a volume.

    Attributes:
        mask: on the volume's own grid.
        agreement: estimates of its Dice, of before it was cleaned.
    """

    mask: Mask
    agreement: Agreement


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
        for_processors = self.config.engine in ("openvino", "onnx") or self.config.precision == "int8"
        elsewhere = for_processors and self.config.device == "auto"
        self.device = choose_device("cpu" if elsewhere else self.config.device)
        self.choice: Choice | None = None
        self._offered = offered(self.config, self.device, model.networks[0])
        self._ranges = self._known_ranges()
        self._computes: list[Compute] = []
        if self._offered[0].exact:  # nothing to prove
            self.adopt(Choice(engine=self._offered[0], model=model.hash))

    def _known_ranges(self) -> Sequence[Ranges]:
        """Return what int8 needs to know of each network."""
        known = self.model.description.ranges
        if self.config.precision == "int8" and not known:
            problem = "int8 is asked for, and the model holds no ranges for it: an earlier version trained it"
            raise RunError("RUN-ENGINE", "engine", problem, "Use precision=bf16 or auto, or train again.")
        return known or [{}] * len(self.model.networks)

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
            wanted = ENOUGH if self.config.precision in ("bf16", "int8") else EQUAL
            found = choose(self._offered, self.model.networks, padded, self.device, wanted, self._ranges)
            self.adopt(found.model_copy(update={"model": self.model.hash}))
        return self.choice or Choice(engine=self._offered[-1])

    @property
    def identity(self) -> str:
        """Hash of all that decides a mask beside the scan: model, settings, engine, version; equal ones agree."""
        cleaning = {str(number): rule.model_dump() for number, rule in self.rules.items()}
        engine = str(self.choice.engine) if self.choice else "none yet"
        decided = [self.model.hash, self.config.mirror, engine, cleaning, version("medseg")]
        return hashlib.sha256(json.dumps(decided).encode()).hexdigest()

    def predict(self, volume: Volume) -> Prediction:
        """Segment one volume.

        Args:
            volume: channels in the order of `model.preparation.channels`.

        Returns:
            The mask with estimates of its Dice. Memory beyond voxels and mask is that of one block of slices.

        Raises:
            InputError: MODEL-INPUT when the volume is of another modality than the model takes.
            RunError: RUN-MEMORY when even one slice does not fit.
        """
        self.check(volume.modality)
        if self.choice is None:
            self.settle(volume.cut, volume.grid, measure(volume, self.model.preparation))
        tally = Tally()
        mask = assemble(volume.grid, self.model.preparation, self._blocks(volume, tally))
        return Prediction(clean(mask, self.rules), tally.agreement())

    def check(self, modality: str) -> None:
        """Refuse volumes of another modality than the model takes; an empty one is unknown, and taken.

        Raises:
            InputError: MODEL-INPUT.
        """
        wanted = self.model.preparation.channels[0].modality
        if wanted and modality and modality.upper() != wanted.upper():
            problem = f"a {modality} volume, the model takes {wanted}"
            raise InputError("MODEL-INPUT", "", problem, "Give the scans that the model was trained for.")

    def _blocks(self, volume: Volume, tally: Tally) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        for block in prepared_blocks(volume, self.model.preparation, block=self.config.batch_size):
            outputs = self.outputs(block.images)
            tally.add(outputs.logits, outputs.votes)
            yield block.start, restore_block(outputs.logits, volume.grid, self.model.preparation)

    def outputs(self, images: Tensor) -> Outputs:
        """Run the networks on slices `(n, c, h, w)`; on fewer at a time when memory is short.

        Without an engine yet, the last one offered is taken, which needs no proof.
        """
        if self.choice is None:
            self.adopt(Choice(engine=self._offered[-1], model=self.model.hash))
        if self.choice and not self._computes:
            self._computes = [
                start(self.choice.engine, network, self.device, ranges)
                for network, ranges in zip(self.model.networks, self._ranges, strict=True)
            ]
        size = len(images)
        while True:
            try:
                return Outputs.join([self._forward(part) for part in torch.split(images, size)])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    problem = f"one slice of {tuple(images.shape[1:])} does not fit on {self.device}"
                    raise RunError("RUN-MEMORY", "predict", problem, "Use device=cpu.") from error
                size = (size + 1) // 2
                log.warning("out of memory on %s: going on with %d slices at a time", self.device, size)

    @torch.inference_mode()
    def _forward(self, images: Tensor) -> Outputs:
        """Run the networks; a slice's logits do not depend on the others, nor on how many there are.

        Measured for all networks on a CPU, to the last bit, from two slices on. A lone one takes other kernels, hence
        goes twice.
        """
        if len(images) == 1:
            try:
                return self._forward(images.expand(2, -1, -1, -1)).split([1, 1])[0]
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                log.warning("out of memory on %s for two slices: going on with one", self.device)
        padded, (rows, columns) = pad_to(images, self.model.description.patch)
        if self.device.type == "cuda":
            padded = padded.pin_memory()  # the copy then runs beside the processor, which prepares the next slices
        x = padded.to(self.device, non_blocking=True)
        # Columns are left and right of axial and coronal slices; in sagittal ones training mirrors nothing.
        mirror = self.config.mirror and self.model.preparation.plane != "sagittal"
        outputs = [compute(x) for compute in self._computes]
        if mirror:
            outputs += [compute(x.flip(-1)).flip(-1) for compute in self._computes]
        votes = [labels_of(each) for each in outputs] if len(outputs) > 1 else []
        logits = mean_logits(outputs)
        ballots = torch.stack(votes, 1) if votes else logits.new_empty((len(x), 0, *x.shape[2:]), dtype=torch.uint8)
        return Outputs(logits, ballots).cropped(rows, columns)


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
    return Predictor(model, config).predict(volume).mask

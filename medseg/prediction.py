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
from medseg.errors import InputError, RunError
from medseg.models import Network
from medseg.models.model_folder import Model
from medseg.postprocess import clean, rules_for
from medseg.prepare import assemble, prepared_blocks, restore_block
from medseg.slices import pad_to
from medseg.volume import Mask, Volume

log = logging.getLogger(__name__)


def choose_device(name: str) -> torch.device:
    """Return the device a setting asks for: `auto` is a GPU when there is one.

    Raises:
        RunError: RUN-DEVICE when a GPU is asked for and absent.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise RunError(
            "RUN-DEVICE", "device", "cuda is asked for, and there is no usable GPU", "Use device=auto or cpu."
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the type of the network's arithmetic: `auto` is bf16 where the device computes in it.

    A fact of the device, not a timing: the same command gives the same masks. Where a processor has the instructions, a
    step took half the time in bf16; without them it is emulated and slower.

    Args:
        name: `auto`, `fp32` or `bf16`.
        device: to compute on.
    """
    if name != "auto":
        return torch.bfloat16 if name == "bf16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    able: dict[str, object] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # an older torch does not tell: float32 then
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def is_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether memory ran out; on a CPU torch says so by a plain RuntimeError of its allocator."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


class Predictor:
    """A model on its device, ready for many volumes.

    Args:
        model: as `load_model` gives it.
        config: batch size, precision, device, mirroring and cleaning.

    Raises:
        RunError: RUN-DEVICE when a GPU is asked for and absent.
        UsageError: LABEL-UNKNOWN when a label is to be cleaned that the model does not have.
    """

    def __init__(self, model: Model, config: PredictConfig | None = None) -> None:
        self.model = model
        self.config = config or model.description.predict
        self.rules = rules_for(model.labels, self.config.clean)
        self.device = choose_device(self.config.device)
        self._networks: list[Network] = [
            network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stub
            for network in model.networks
        ]
        self.dtype = choose_precision(self.config.precision, self.device)
        log.info("predicting on %s in %s", self.device, self.dtype)

    @property
    def identity(self) -> str:
        """Hash of all that decides a mask beside the scan: model, settings, arithmetic, version; equal ones agree."""
        cleaning = {str(number): rule.model_dump() for number, rule in self.rules.items()}
        decided = [self.model.hash, self.config.mirror, str(self.dtype), cleaning, version("medseg")]
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
        """Return float32 logits `(n, classes, h, w)` of slices `(n, c, h, w)`; smaller batches when memory is short."""
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
            return self._forward(images.expand(2, -1, -1, -1))[:1]
        padded, (rows, columns) = pad_to(images, self.model.description.patch)
        x = padded.to(self.device, memory_format=torch.channels_last)
        # Columns are left and right of axial and coronal slices; in sagittal ones training mirrors nothing.
        mirror = self.config.mirror and self.model.preparation.plane != "sagittal"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            outputs = [network(x).float() for network in self._networks]
            if mirror:
                outputs += [network(x.flip(-1)).float().flip(-1) for network in self._networks]
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

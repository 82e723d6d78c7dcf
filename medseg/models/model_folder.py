"""The model folder: `weights.safetensors` and `model.yaml`, all that prediction needs.

Loading one never runs code from it: safetensors holds named arrays and nothing else; model.yaml is read by YAML's safe
loader into the strict settings below.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from medseg.config.frozen import Settings
from medseg.config.networks import ModelConfig
from medseg.config.settings import PredictConfig
from medseg.errors import ModelError, RunError, UsageError, first_line
from medseg.io.atomic import PARTIAL_PREFIX, atomic_path, write_text
from medseg.models import Network, build
from medseg.prepare import Preparation
from medseg.volume import Labels

log = logging.getLogger(__name__)

WEIGHTS = "weights.safetensors"
DESCRIPTION = "model.yaml"
LARGEST_DESCRIPTION = 4_000_000
"""Bytes; a description is a few kB."""


class ModelDescription(Settings):
    """What model.yaml holds."""

    format: Literal[1] = Field(1, description="of this file")
    network: ModelConfig = Field(description="architecture and its options")
    in_channels: int = Field(ge=1, description="image channels times slices of context")
    out_channels: int = Field(ge=1, description="labels and background, or 1 for one label behind a sigmoid")
    labels: dict[int, str] = Field(description="number -> name, background (0) not among them")
    preparation: dict[str, Any] = Field(
        description="how a scan becomes slices, channels and how they are selected included"
    )
    patch: tuple[int, int] = Field(description="rows and columns of its training slices; smaller ones are padded to it")
    predict: PredictConfig = Field(PredictConfig(), description="settings of prediction unless others are asked for")
    trained_on: dict[str, Any] = Field(
        {}, description="what the training data looked like; nothing that identifies a patient"
    )
    scores: dict[str, Any] = Field({}, description="of the validation cases")
    versions: dict[str, str] = Field({}, description="of the packages that trained it")
    weights_sha256: str = Field("", description="hash of weights.safetensors")


@dataclass(frozen=True, eq=False)
class Model:
    """A network with everything it needs to predict.

    Attributes:
        network: in evaluation mode, on the CPU, float32.
        description: what model.yaml says.
        preparation: how a scan becomes slices.
    """

    network: Network
    description: ModelDescription
    preparation: Preparation

    @property
    def labels(self) -> Labels:
        """Label numbers and names."""
        return Labels(self.description.labels)

    @property
    def hash(self) -> str:
        """Hash of weights and description: equal hashes predict equal masks."""
        text = self.description.model_dump_json()
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def save_model(folder: Path, description: ModelDescription, weights: Mapping[str, torch.Tensor]) -> None:
    """Write a model folder; a reader sees the old one or the new one, never a mixture.

    Raises:
        RunError: RUN-WRITE.
    """
    content = save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    digest = hashlib.sha256(content).hexdigest()
    described = description.model_copy(update={"weights_sha256": digest, "versions": versions()})
    with _folder_beside(folder) as partial:
        with atomic_path(partial / WEIGHTS) as path:
            path.write_bytes(content)
        write_text(
            partial / DESCRIPTION,
            yaml.safe_dump(described.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        )
        _swap(partial, folder)


@contextmanager
def _folder_beside(folder: Path) -> Iterator[Path]:
    """Give a temporary folder in the parent of `folder`; a file system that refuses is RUN-WRITE."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=PARTIAL_PREFIX, dir=folder.parent, ignore_cleanup_errors=True) as name:
            partial = Path(name)
            partial.chmod(0o755)  # it was made private to the user
            yield partial
    except OSError as error:
        problem = f"cannot be written: {error.strerror or error}"
        raise RunError("RUN-WRITE", str(folder), problem, "Free space, or choose another folder.") from error


def _swap(partial: Path, folder: Path) -> None:
    if not folder.exists():
        partial.rename(folder)
        return
    # A folder cannot be renamed over another in one step. Description and weights are checked against each other on
    # loading, so a kill between the two lines is noticed, never used.
    for name in (WEIGHTS, DESCRIPTION):
        (partial / name).replace(folder / name)


def load_model(path: Path) -> Model:
    """Read a model folder, or a run folder that holds one.

    Raises:
        ModelError: MODEL-FORMAT, MODEL-HASH, MODEL-SHAPE or MODEL-VALUES, with what was found.
        UsageError: USAGE-PATH when there is no such folder.
    """
    if not path.is_dir():
        advice = "Give a model folder (or the run folder around it) that `medseg train` wrote."
        if path.exists():
            raise ModelError("MODEL-FORMAT", str(path), "a file, wanted a model folder", advice)
        raise UsageError("USAGE-PATH", str(path), "no such folder", advice)
    folder = path / "model" if (path / "model" / DESCRIPTION).is_file() else path
    description = _read_description(folder / DESCRIPTION)
    weights = _read_weights(folder / WEIGHTS, description)
    try:
        preparation = Preparation.from_dict(description.preparation)
        with torch.device("meta"):  # no memory is taken for what a damaged description asks for
            network = build(description.network, description.in_channels, description.out_channels)
        Labels(description.labels)
    except ModelError:
        raise
    except (UsageError, TypeError, ValueError, KeyError) as error:
        raise ModelError("MODEL-FORMAT", str(folder / DESCRIPTION), f"unusable: {first_line(error)}") from error
    _check_agreement(description, preparation, folder / DESCRIPTION)
    _fill(network, weights, folder / WEIGHTS)
    network.eval()
    return Model(network, description, preparation)


def _read_description(path: Path) -> ModelDescription:
    try:
        if path.stat().st_size > LARGEST_DESCRIPTION:
            raise ModelError("MODEL-FORMAT", str(path), f"{path.stat().st_size} bytes, wanted a few kB of YAML")
        text = path.read_text(encoding="utf-8")
        if "&" in text and any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ModelError("MODEL-FORMAT", str(path), "YAML aliases are not used in a model description")
        return ModelDescription.model_validate(yaml.safe_load(text))
    except OSError as error:
        raise ModelError(
            "MODEL-FORMAT", str(path), f"cannot be read: {error.strerror}", "Is this a model folder?"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ModelError("MODEL-FORMAT", str(path), f"{place or 'the top level'}: {first['msg']}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or a number that is none
        raise ModelError("MODEL-FORMAT", str(path), f"not readable YAML: {first_line(error)}") from error


def _read_weights(path: Path, description: ModelDescription) -> dict[str, torch.Tensor]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(
            "MODEL-FORMAT", str(path), f"cannot be read: {error.strerror}", "Copy the whole folder."
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != description.weights_sha256:
        problem = (
            f"{len(content)} bytes with hash {digest[:12]}, model.yaml describes {description.weights_sha256[:12]}"
        )
        raise ModelError(
            "MODEL-HASH", str(path), problem, "The file is damaged or of another model; copy the folder again."
        )
    try:
        return load_tensors(content)
    except (SafetensorError, LookupError, TypeError, ValueError) as error:  # LookupError: a type that torch lacks
        raise ModelError("MODEL-FORMAT", str(path), f"not a safetensors file: {first_line(error)}") from error


def _check_agreement(description: ModelDescription, preparation: Preparation, path: Path) -> None:
    """Refuse a description whose parts contradict each other: channels in, and label numbers out."""
    if description.in_channels != preparation.in_channels:
        problem = f"in_channels is {description.in_channels}, the preparation makes {preparation.in_channels}"
        raise ModelError("MODEL-FORMAT", str(path), problem)
    numbers, last = sorted(description.labels), max(1, description.out_channels - 1)
    if len(numbers) != last or numbers != list(range(1, last + 1)):
        problem = f"labels {numbers}, {description.out_channels} output channels stand for 1 to {last}"
        raise ModelError("MODEL-FORMAT", str(path), problem)


def _fill(network: Network, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    wanted = network.state_dict()
    missing, unknown = sorted(set(wanted) - set(weights)), sorted(set(weights) - set(wanted))
    if missing or unknown:
        problem = f"missing {missing[:3]}, unexpected {unknown[:3]} among {len(wanted)} arrays"
        raise ModelError("MODEL-SHAPE", str(path), problem, "The weights belong to another architecture.")
    for name, tensor in weights.items():
        if tensor.shape != wanted[name].shape:
            problem = f"{name} has shape {tuple(tensor.shape)}, the architecture wants {tuple(wanted[name].shape)}"
            raise ModelError("MODEL-SHAPE", str(path), problem, "The weights belong to another architecture.")
        if tensor.dtype != wanted[name].dtype:
            problem = f"{name} holds {tensor.dtype}, wanted {wanted[name].dtype}"
            raise ModelError("MODEL-SHAPE", str(path), problem, "Take the weights as they were saved.")
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                "MODEL-VALUES", str(path), f"{name} holds NaN or infinity", "The training had diverged; train again."
            )
    network.load_state_dict(dict(weights), assign=True)


def versions() -> dict[str, str]:
    """Versions of Python and the packages that decide a result."""
    found = {"python": platform.python_version()}
    for name in ("medseg", "torch", "monai", "numpy", "nibabel", "pydicom", "SimpleITK"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found

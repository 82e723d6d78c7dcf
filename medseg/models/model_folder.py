"""The model folder: `model.yaml` and the weights that it names, all that prediction needs.

    weights.safetensors                             of a model of one network
    weights-1.safetensors, weights-2.safetensors    of an ensemble: networks of one architecture and one preparation
    README.md                                       the model card, for people

Loading one never runs code from it: safetensors holds named arrays and nothing else; model.yaml is read by YAML's safe
loader into the strict settings below.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import Field, FiniteFloat, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from medseg.config.frozen import Settings
from medseg.config.networks import ModelConfig
from medseg.config.settings import PredictConfig
from medseg.errors import ModelError, RunError, UsageError, first_line
from medseg.io.atomic import PARTIAL_PREFIX, atomic_path, write_text
from medseg.models import Network, build
from medseg.models.card import card
from medseg.preparation import Preparation
from medseg.volume import Labels

log = logging.getLogger(__name__)

WEIGHTS = "weights.safetensors"
DESCRIPTION = "model.yaml"
CARD = "README.md"
LARGEST_DESCRIPTION = 4_000_000
"""Bytes; a description is a few kB."""

WEIGHTS_NAME = r"^weights(-[1-9][0-9]?)?\.safetensors$"
"""A name, never a path: a description reads no file outside its folder."""

KIND = ("network", "in_channels", "out_channels", "labels", "preparation", "patch")
"""What networks must have in common to predict together."""


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
    recipe: dict[str, Any] = Field({}, description="how it was trained: `section.key` to value")
    scores: dict[str, Any] = Field({}, description="of the validation cases")
    dice_offsets: dict[str, Annotated[float, Field(ge=-20, le=20)]] = Field(
        {}, description="label -> what to add to the log odds of the Dice that it expects, from the validation cases"
    )
    ranges: tuple[dict[str, tuple[FiniteFloat, FiniteFloat]], ...] = Field(
        (), description="for int8: of each network, the numbers that each convolution takes in, lowest and highest"
    )
    parent: str = Field("", description="hash of the model that training started from; empty for random weights")
    versions: dict[str, str] = Field({}, description="of the packages that trained it")
    weights: dict[Annotated[str, Field(pattern=WEIGHTS_NAME)], str] = Field(
        {}, description="name -> SHA-256 of the weights of each network; several make an ensemble"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_hash_is_of_one_network(cls, data: object) -> object:
        """Accept the older form of a model of one network."""
        if isinstance(data, dict) and "weights_sha256" in data and "weights" not in data:
            rest = {key: value for key, value in data.items() if key != "weights_sha256"}
            return {**rest, "weights": {WEIGHTS: data["weights_sha256"]}}
        return data


@dataclass(frozen=True, eq=False)
class Model:
    """One network, or several that predict together, with everything they need for it.

    Attributes:
        networks: of one architecture, in evaluation mode, on the CPU, float32; at least one.
        description: what model.yaml says.
        preparation: how a scan becomes slices.
    """

    networks: tuple[Network, ...]
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


def save_model(folder: Path, description: ModelDescription, *members: Mapping[str, torch.Tensor]) -> None:
    """Write a model folder; a reader sees the old one or the new one, never a mixture.

    Args:
        folder: made, or its model replaced.
        description: of every member; hashes and versions are filled in.
        members: the weights of each network: one, or several of an ensemble.

    Raises:
        RunError: RUN-WRITE.
    """
    with _folder_beside(folder) as partial:
        hashes = {
            name: _write_weights(partial / name, weights)
            for name, weights in zip(_weights_names(len(members)), members, strict=True)
        }
        described = description.model_copy(update={"weights": hashes, "versions": versions()})
        write_text(
            partial / DESCRIPTION,
            yaml.safe_dump(described.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        )
        write_text(partial / CARD, card(described))
        _swap(partial, folder)


def _weights_names(count: int) -> list[str]:
    return [WEIGHTS] if count == 1 else [f"weights-{number}.safetensors" for number in range(1, count + 1)]


def _write_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> str:
    content = save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    with atomic_path(path) as partial:
        partial.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def join_models(models: Sequence[Model], folder: Path, **described: Any) -> None:  # noqa: ANN401  any of its fields
    """Write the networks of several models as one ensemble.

    Args:
        models: whose networks, labels, preparations and patches are equal; the first one's settings of prediction hold.
        folder: of the ensemble.
        described: fields of its description, such as `scores`. By default it has none of what was to be measured,
            `trained_on` holds what each model was trained on, and a recipe when all have the same one.

    Raises:
        ModelError: MODEL-DIFFERS, with what differs.
        RunError: RUN-WRITE.
    """
    first = models[0].description
    for number, model in enumerate(models[1:], start=2):
        if found := differences(first, model.description):
            problem = f"model {number} differs from the first: {'; '.join(found)}"
            raise ModelError("MODEL-DIFFERS", "join", problem, "Join models of one architecture and one preparation.")
    recipes = [model.description.recipe for model in models]
    recipe = recipes[0] if all(other == recipes[0] for other in recipes) else {}
    trained_on = {"members": [model.description.trained_on for model in models]}
    ranges = [model.description.ranges for model in models]
    known = tuple(each for own in ranges for each in own) if all(ranges) else ()
    told = {"recipe": recipe, "trained_on": trained_on, "scores": {}, "dice_offsets": {}, "ranges": known, **described}
    members = [network.state_dict() for model in models for network in model.networks]
    save_model(folder, first.model_copy(update=told), *members)


def differences(one: ModelDescription, other: ModelDescription, fields: Sequence[str] = KIND) -> list[str]:
    """Say in which fields two descriptions differ; nothing when their networks fit together."""
    pairs = ((name, getattr(one, name), getattr(other, name)) for name in fields)
    return [f"{name} {_short(b)}, not {_short(a)}" for name, a, b in pairs if a != b]


def _short(value: object) -> str:
    text = str(value.model_dump() if isinstance(value, Settings) else value)
    return text if len(text) <= 200 else f"{text[:200]}..."


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
    # loading, so a kill between the lines is noticed, never used.
    names = {path.name for path in partial.iterdir()}
    for name in sorted(names - {DESCRIPTION}):
        (partial / name).replace(folder / name)
    (partial / DESCRIPTION).replace(folder / DESCRIPTION)
    for path in list(folder.iterdir()):
        if path.name not in names and re.match(WEIGHTS_NAME, path.name):
            path.unlink()  # of the model that was replaced


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
    with _usable(folder / DESCRIPTION):
        preparation = Preparation.from_dict(description.preparation)
        Labels(description.labels)
    _check_agreement(description, preparation, folder / DESCRIPTION)
    networks = tuple(_load_network(folder / name, digest, description) for name, digest in description.weights.items())
    return Model(networks, description, preparation)


def _load_network(path: Path, digest: str, description: ModelDescription) -> Network:
    weights = _read_weights(path, digest)
    with _usable(path.parent / DESCRIPTION), torch.device("meta"):
        # meta: no memory is taken for what a damaged description asks for
        network = build(description.network, description.in_channels, description.out_channels)
    _fill(network, weights, path)
    return network.eval()


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    """Refuse a description that nothing can be made of."""
    try:
        yield
    except ModelError:
        raise
    except (UsageError, TypeError, ValueError, KeyError) as error:
        raise ModelError("MODEL-FORMAT", str(path), f"unusable: {first_line(error)}") from error


def _read_description(path: Path) -> ModelDescription:
    try:
        if path.stat().st_size > LARGEST_DESCRIPTION:
            raise ModelError("MODEL-FORMAT", str(path), f"{path.stat().st_size} bytes, wanted a few kB of YAML")
        text = path.read_text(encoding="utf-8")
        if "&" in text and any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ModelError("MODEL-FORMAT", str(path), "YAML aliases are not used in a model description")
        content = yaml.safe_load(text)
        return ModelDescription.model_validate(content)
    except OSError as error:
        raise ModelError(
            "MODEL-FORMAT", str(path), f"cannot be read: {error.strerror}", "Is this a model folder?"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        problem = f"{place or 'the top level'}: {first['msg']}"
        raise ModelError("MODEL-FORMAT", str(path), problem, _advice(content)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or a number that is none
        raise ModelError("MODEL-FORMAT", str(path), f"not readable YAML: {first_line(error)}") from error


def _advice(content: object) -> str:
    """Say which version wrote a description that this one does not understand."""
    told = content.get("versions") if isinstance(content, dict) else None
    if not isinstance(told, dict) or "medseg" not in told:
        return "Is this the model.yaml of a model folder that `medseg train` wrote?"
    return f"medseg {str(told['medseg'])[:20]} wrote it, this is {versions()['medseg']}: a newer one may read it."


def _read_weights(path: Path, wanted: str) -> dict[str, torch.Tensor]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(
            "MODEL-FORMAT", str(path), f"cannot be read: {error.strerror}", "Copy the whole folder."
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != wanted:
        problem = f"{len(content)} bytes with hash {digest[:12]}, model.yaml describes {wanted[:12]}"
        raise ModelError(
            "MODEL-HASH", str(path), problem, "The file is damaged or of another model; copy the folder again."
        )
    try:
        return load_tensors(content)
    except (SafetensorError, LookupError, TypeError, ValueError) as error:  # LookupError: a type that torch lacks
        raise ModelError("MODEL-FORMAT", str(path), f"not a safetensors file: {first_line(error)}") from error


def _check_agreement(description: ModelDescription, preparation: Preparation, path: Path) -> None:
    """Refuse a description whose parts contradict each other: weights, channels in, and label numbers out."""
    if not description.weights:
        raise ModelError("MODEL-FORMAT", str(path), "names no weights", "Copy the whole folder.")
    if description.ranges and len(description.ranges) != len(description.weights):
        problem = f"ranges of {len(description.ranges)} networks, weights of {len(description.weights)}"
        raise ModelError("MODEL-FORMAT", str(path), problem)
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

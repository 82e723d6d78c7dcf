"""The settings: one frozen model for each component, torch-free, every value with its meaning, unit and range.

No component sees another's settings. A file (`medseg.config.load`) holds only what differs from these defaults.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from medseg.config.duration import Duration
from medseg.config.frozen import Settings
from medseg.config.networks import ModelConfig, UNetConfig
from medseg.volume import UNANNOTATED, Labels

Plane = Literal["axial", "coronal", "sagittal"]


def _as_list(value: object) -> object:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


Paths = Annotated[tuple[Path, ...], BeforeValidator(_as_list)]
Patterns = Annotated[tuple[Annotated[int, Field(ge=0)] | str, ...], BeforeValidator(_as_list)]


class ChannelConfig(Settings):
    """One input channel of a case (one sequence of a patient), and how to know its scan among the others."""

    name: str = Field("image", description="what the channel is called in reports and in model.yaml")
    modality: str | None = Field(None, description="DICOM modality, such as CT, MR or PT; any when absent")
    description: str | None = Field(None, description="pattern (* and ?) for the series description or the file name")
    referenced: bool = Field(False, description="take the series that the RTSTRUCT or DICOM SEG refers to")


class DataConfig(Settings):
    """Where the scans and their reference masks are, and how they are divided."""

    scans: Paths = Field((), description="folders or files with scans; relative to the configuration file")
    references: Paths = Field((), description="folders or files with reference masks; `scans` when absent")
    select: tuple[ChannelConfig, ...] = Field(
        (ChannelConfig(),), min_length=1, description="the channels of a case, in order; one of any kind by default"
    )
    resample_references: bool = Field(False, description="lay a reference on another grid onto the scan")
    split: Path | None = Field(
        None, description="JSON file of case or patient ids: lists `train` and `validation`; with folds, a list `folds`"
    )
    validation: float = Field(0.2, ge=0, lt=1, description="share of the patients held out when there is no split file")

    @model_validator(mode="before")
    @classmethod
    def _one_channel_is_a_list_of_one(cls, data: object) -> object:
        if isinstance(data, dict) and isinstance(data.get("select"), dict):
            return {**data, "select": [data["select"]]}
        return data


class PrepareConfig(Settings):
    """From a volume to normalised 2-D slices. What is `auto` or absent is measured on the training cases."""

    plane: Plane | Literal["auto"] = Field(
        "auto", description="plane of the slices; auto: the one that most references were drawn in, else the native one"
    )
    spacing_mm: tuple[float, float] | None = Field(
        None,
        description="in-plane spacing (rows, columns) in mm; when absent, the training cases' median, or up to 1.5 "
        "times of it where `budget` has room for too few steps",
    )
    normalise: Literal["auto", "window", "zscore", "percentile"] = Field(
        "auto",
        description="window: clip to `window_hu`, then z-score; zscore: inside the body; "
        "percentile: clip to `percentiles` of the body, then z-score inside it; auto: window for CT, else percentile",
    )
    window_hu: tuple[float, float] | None = Field(
        None, description="CT window (low, high) in HU; 0.5 and 99.5 percentile of the training foreground when absent"
    )
    percentiles: tuple[float, float] = Field((0.5, 99.5), description="clipping percentiles of the body's voxels")
    context: int = Field(1, ge=0, le=10, description="neighbouring slices on each side that become channels")

    @model_validator(mode="after")
    def _ordered(self) -> PrepareConfig:
        for low, high in filter(None, (self.window_hu, self.percentiles)):
            if low >= high:
                raise ValueError(f"the lower bound {low} is not below the upper bound {high}")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(f"percentiles {self.percentiles}, wanted two numbers from 0 to 100")
        if self.spacing_mm and min(self.spacing_mm) <= 0:
            raise ValueError(f"spacing_mm {self.spacing_mm}, wanted two numbers above 0")
        return self


class AugmentConfig(Settings):
    """Random changes to a training slice, by MONAI transforms; probabilities are per slice, 0 switches a change off."""

    mirror: float | None = Field(
        None,
        ge=0,
        le=1,
        description="probability of a left-right mirror image; absent: 0.5 for few cases of like sides",
    )
    mirror_rows: float | None = Field(
        None, ge=0, le=1, description="probability of turning rows upside down; absent: 0.5 for one label in few cases"
    )
    affine: float | None = Field(
        None, ge=0, le=1, description="probability of rotation, scaling and shift together; absent: 0.3, few cases 0.8"
    )
    rotation_deg: float | None = Field(
        None, ge=0, le=180, description="largest rotation either way, degrees; absent: 20, few cases 40, oblong less"
    )
    scaling: float | None = Field(
        None, ge=0, lt=1, description="largest relative change of size either way; absent: 0.2, few cases 0.3"
    )
    elastic: float | None = Field(
        None, ge=0, le=1, description="probability of a smooth bending; absent: 0, few cases 0.3"
    )
    intensity: float = Field(0.3, ge=0, le=1, description="probability of each of: brightness, contrast (gamma), noise")
    blur: float = Field(0.1, ge=0, le=1, description="probability of a Gaussian blur")
    low_resolution: float = Field(0.1, ge=0, le=1, description="probability of a coarser resolution, enlarged again")


EPOCHS = 40
"""Of a run that has neither `train.epochs` nor a budget."""


class TrainConfig(Settings):
    """The training loop."""

    epochs: int | None = Field(
        None, ge=1, description="passes over the training slices; as many as fit into `budget` when absent, else 40"
    )
    steps_per_epoch: int | None = Field(
        None, ge=1, description="steps in an epoch; when absent, as `budget` wants them, else every slice once"
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        description="slices in a step; when absent 12, or as many as fit into memory",
    )
    patch: tuple[int, int] | None = Field(
        None, description="rows and columns of a training slice, cut or padded; fitted to the cases when absent"
    )
    foreground: float | None = Field(
        0.5,
        ge=0,
        le=1,
        description="share of a batch drawn for a label, each of a case as often however small it is: slices that hold "
        "it, their patch over a pixel of it; slices as they come when absent",
    )
    loss: Literal["cross_entropy", "dice_cross_entropy", "dice", "bce", "dice_bce"] = Field(
        "dice_cross_entropy", description="bce forms belong to a network with one output channel"
    )
    optimizer: Literal["muon", "adamw", "adam", "sgd"] | None = Field(
        None,
        description="muon: orthogonal steps for hidden convolutions, adamw for the rest; sgd: Nesterov momentum 0.99; "
        "when absent muon, or adamw where a step with muon would take a processor half as long again",
    )
    learning_rate: float = Field(1e-3, gt=0, le=10, description="the first, or the highest after warming up")
    weight_decay: float = Field(1e-2, ge=0, le=1, description="for all but adam, which has none")
    schedule: Literal["constant", "cosine", "polynomial"] = Field("cosine", description="of the learning rate, to zero")
    clip_gradient: float | None = Field(1.0, gt=0, description="largest gradient norm")
    average: float | None = Field(0.99, gt=0, lt=1, description="decay of the moving average of the weights")
    validate_every: int = Field(1, ge=1, description="epochs between validations by whole volume")
    patience: int | None = Field(None, ge=1, description="validations without a better Dice before the run stops early")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the device computes in it")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU when there is one")
    deterministic: bool = Field(True, description="equal seeds give equal runs, on a CPU bit for bit")
    tensorboard: bool = Field(False, description="also write TensorBoard events (extra: tensorboard)")
    overlays: int = Field(10, ge=0, description="pictures of validation slices in the course of a run; 0: none")


EVERY_LABEL = "all"
"""Stands for the labels that `predict.clean` does not name."""


class CleanConfig(Settings):
    """Cleaning one label of a predicted mask, on the scan's own grid; leaves it as it is by default."""

    largest_only: bool = Field(False, description="leave out all connected pieces but the largest")
    smallest_ml: float = Field(0, ge=0, description="leave out connected pieces below this volume, in ml")
    fill_holes: bool = Field(
        False, description="fill background that the label alone encloses on all sides, above and below included"
    )


class PredictConfig(Settings):
    """From a model and a volume to a mask."""

    batch_size: int = Field(8, ge=1, description="slices in a forward pass")
    engine: Literal["auto", "torch", "openvino", "onnx"] = Field(
        "auto", description="auto: the fastest installed whose masks equal torch's in fp32 (extras: openvino, onnx)"
    )
    precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        "auto",
        description="auto: bf16 where the device computes in it and the masks equal those of fp32 (Dice 0.999); "
        "bf16: also where they nearly do (0.99), with a warning; int8: on a CPU by OpenVINO, likewise, otherwise bf16",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU when there is one")
    mirror: bool = Field(False, description="average with the left-right mirror image: twice the work")
    clean: dict[str, CleanConfig] = Field(
        {}, description="cleaning of the mask, by label name; `all`: the labels that are not named"
    )


class BatchConfig(Settings):
    """How many scans are predicted in one go; changes no mask. Options of `medseg predict`, in no file."""

    workers: int | None = Field(
        None,
        ge=0,
        le=64,
        description="processes that read and write; when absent one for each core, four at most",
    )
    timeout_s: float = Field(3600, gt=0, le=1e6, description="longest time for a case, seconds")
    retry_failed: bool = Field(False, description="try cases again that failed in an earlier run")
    cluster: str | None = Field(None, description="address of a Dask scheduler, tcp://host:8786 (extra: dask)")
    shard: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,5}/[1-9][0-9]{0,5}$")] | None = Field(
        None, description="i/n: the i-th of n shares of the cases, others in other processes or on other machines"
    )


class StartConfig(Settings):
    """An earlier model that training starts from. Its preparation and patch are kept, since its weights fit them."""

    model: Path | None = Field(None, description="model or run folder; random weights when absent")
    hash: str | None = Field(
        None, description="of that model: no other is taken; filled in when the run first starts if absent"
    )


def _label_table(value: object) -> object:
    if isinstance(value, dict) and value.get("background") in (0, [0], (0,)):
        return {name: source for name, source in value.items() if name != "background"}
    return value


MAX_LABEL = 65535
"""Masks hold 16-bit numbers."""


class Config(Settings):
    """A whole configuration: one field for each component."""

    data: DataConfig = DataConfig()
    labels: Annotated[dict[str, Patterns], BeforeValidator(_label_table)] = Field(
        {"tumour": (1,)},
        min_length=1,
        max_length=UNANNOTATED - 1,
        description="name of each label -> its sources: numbers (NIfTI, DICOM SEG), names or patterns of structures",
    )
    ignore: Patterns = Field(
        (), description="structures and numbers that are annotated and no label: background, which the model learns"
    )
    unannotated: Patterns = Field(
        (),
        description="structures and numbers that mark what nobody annotated: in no loss, no validation Dice, no score; "
        "0 for NIfTI masks that give background a number of its own (under `ignore`)",
    )
    prepare: PrepareConfig = PrepareConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = Field(
        UNetConfig(widths=None, norm="instance", activation="leaky_relu"),
        description="the network; left out, a U-Net fitted to the slices and normalised; named, as in its paper",
    )
    start: StartConfig = StartConfig()
    train: TrainConfig = TrainConfig()
    predict: PredictConfig = PredictConfig()
    seed: int = Field(0, ge=0, lt=2**32, description="of everything random")
    budget: Duration | None = Field(
        None,
        description="time for the whole training (folds share it), such as 90s, 10m or 1h30m; when the run first "
        "starts, it is turned into `train.epochs` and `train.steps_per_epoch` by what this machine does in a second",
    )
    folds: int | None = Field(
        None,
        ge=2,
        le=20,
        description="cross-validation: so many models, each validated on its own share of the patients",
    )

    @model_validator(mode="after")
    def _label_sources(self) -> Config:
        seen: dict[int | str, str] = {}
        for name, sources in self.labels.items():
            if not name.strip() or not sources:
                raise ValueError(f"label {name!r} needs a name and at least one source")
            for source in sources:
                if source == 0:
                    raise ValueError(f"label {name!r} takes the number 0, which is background")
                if isinstance(source, int) and source > MAX_LABEL:
                    raise ValueError(f"label {name!r} takes the number {source}, wanted at most {MAX_LABEL}")
                if source in seen:
                    raise ValueError(f"labels {seen[source]!r} and {name!r} both take {source!r}")
                seen[source] = name
        for source in self.unannotated:
            if source in seen or source in self.ignore:
                name = f"label {seen[source]!r}" if source in seen else "ignore"
                raise ValueError(f"unannotated and {name} both take {source!r}")
        return self

    @model_validator(mode="after")
    def _cleans_what_is_there(self) -> Config:
        for name in self.predict.clean:
            if name not in (*self.labels, EVERY_LABEL):
                raise ValueError(f"predict.clean names {name!r}, the labels are {', '.join(self.labels)}")
        return self

    @property
    def label_names(self) -> Labels:
        """The labels, numbered 1, 2, ... in the order of the configuration."""
        return Labels(dict(enumerate(self.labels, start=1)))

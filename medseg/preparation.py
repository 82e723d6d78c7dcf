"""What a model must know to prepare a scan as its training scans were prepared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass

from medseg.config.settings import ChannelConfig, Plane, PrepareConfig
from medseg.errors import ConfigError, ModelError
from medseg.grid import Grid

Normalise = Literal["window", "zscore", "percentile"]

PLANES: dict[Plane, str] = {"axial": "PLS", "coronal": "ILA", "sagittal": "IPR"}
"""Orientation of the working grid of each plane: rows, columns, normal. A slice drawn with row 0 on top looks as
radiologists see it (axial: front on top, the patient's right on the left); the normal grows as the world's axes do."""


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Channel:
    """One input channel: how to know its scan, and how to normalise it.

    Attributes:
        name: what it is called in reports.
        modality: DICOM modality to select, any when None.
        description: pattern for the series description or file name, any when None.
        referenced: whether the series that the reference refers to was taken.
        normalise: `window` clips to `window` and applies `mean` and `sd`; `percentile` clips to the scan's own body
            percentiles and takes mean and sd inside its body; `zscore` is the same without clipping.
        window: low and high, in the scan's unit (CT: HU); for `window` only.
        mean: of the training foreground inside the window; for `window` only.
        sd: as `mean`, above 0.
    """

    name: str
    normalise: Normalise
    modality: str | None = None
    description: str | None = None
    referenced: bool = False
    window: tuple[float, float] | None = None
    mean: float = 0.0
    sd: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _window_fits(self) -> Channel:
        if (self.normalise == "window") != (self.window is not None):
            raise ValueError("a window belongs to normalise: window, and only to it")
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError(f"window {self.window} is not (low, high)")
        return self

    @property
    def select(self) -> ChannelConfig:
        """The settings that find this channel's scan."""
        return ChannelConfig(
            name=self.name, modality=self.modality, description=self.description, referenced=self.referenced
        )


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Preparation:
    """Everything a model must know to prepare a scan as its training scans were prepared. Kept in `model.yaml`.

    Attributes:
        plane: anatomical plane of the slices.
        spacing_mm: in-plane spacing of the working grid (between rows, between columns).
        channels: the input scans in order.
        percentiles: clipping percentiles of the body, for the channels that are normalised so.
        context: neighbouring slices on each side that become channels.
    """

    plane: Plane
    spacing_mm: tuple[float, float]
    channels: tuple[Channel, ...] = Field(min_length=1)
    percentiles: tuple[float, float] = (0.5, 99.5)
    context: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def _ranges(self) -> Preparation:
        if min(self.spacing_mm) <= 0:
            raise ValueError(f"spacing_mm {self.spacing_mm}, wanted two numbers above 0")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(f"percentiles {self.percentiles}, wanted 0 <= low < high <= 100")
        return self

    @property
    def in_channels(self) -> int:
        """Channels of a slice with its context: what the network takes."""
        return len(self.channels) * (2 * self.context + 1)

    @property
    def codes(self) -> str:
        """Orientation of the working grid (rows, columns, normal)."""
        return PLANES[self.plane]

    def to_dict(self) -> dict[str, Any]:
        """Plain types for YAML and JSON."""
        plain: dict[str, Any] = _PREPARATION.dump_python(self, mode="json")
        return plain

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Preparation:
        """Read what `to_dict` gave.

        Raises:
            ModelError: MODEL-FORMAT for missing, unknown or ill-typed entries, all named.
        """
        try:
            return _PREPARATION.validate_python(dict(data))
        except (ValidationError, TypeError, ValueError) as error:
            raise ModelError(
                "MODEL-FORMAT", "preparation", _complaints(error), "Take the model folder as it was saved."
            ) from error


_PREPARATION = TypeAdapter(Preparation)


def _complaints(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return "not a table of settings"
    faults = error.errors(include_url=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)


class MeasuredChannel(Protocol):
    """What the training cases show of one channel, in the scan's unit."""

    @property
    def modality(self) -> str:
        """DICOM modality of most cases, empty when unknown."""

    @property
    def modalities(self) -> Mapping[str, int]:
        """How many cases have each modality."""

    @property
    def foreground_percentiles(self) -> tuple[float, float]:
        """The 0.5 and 99.5 percentile of the voxels under any label."""

    @property
    def foreground_mean(self) -> float:
        """Mean of the voxels under any label."""

    @property
    def foreground_sd(self) -> float:
        """Standard deviation of the voxels under any label."""


class Measured(Protocol):
    """What the training cases show, as far as their preparation depends on it."""

    @property
    def plane(self) -> Plane:
        """The native plane of most cases."""

    @property
    def channels(self) -> Sequence[MeasuredChannel]:
        """The channels in order."""

    def in_plane_spacing_mm(self, codes: str) -> tuple[float, float]:
        """Median spacing along the first two axes of the cases re-ordered to orientation `codes`."""


def decide(config: PrepareConfig, measured: Measured, channels: Sequence[ChannelConfig]) -> Preparation:
    """Fill in what the settings leave to the data.

    Args:
        config: the settings.
        measured: what the training cases show.
        channels: how each channel's scan is selected, in order.

    Raises:
        ConfigError: CONFIG-VALUE when a window is wanted and cannot be had from a constant foreground.
    """
    plane = measured.plane if config.plane == "auto" else config.plane
    spacing = config.spacing_mm or measured.in_plane_spacing_mm(PLANES[plane])
    return Preparation(
        plane=plane,
        spacing_mm=(float(spacing[0]), float(spacing[1])),
        channels=tuple(_decide_channel(config, *pair) for pair in zip(channels, measured.channels, strict=True)),
        percentiles=config.percentiles,
        context=config.context,
    )


def usual_normalisation(select: ChannelConfig, measured: MeasuredChannel) -> Normalise:
    """Return how a channel is normalised unless the settings say it: CT by a window, others by their own body."""
    return "window" if "CT" in (select.modality, measured.modality) else "percentile"


def _decide_channel(config: PrepareConfig, select: ChannelConfig, measured: MeasuredChannel) -> Channel:
    normalise = usual_normalisation(select, measured) if config.normalise == "auto" else config.normalise
    # Trained on one modality, a model takes that one: it cannot judge what it was never shown.
    shown = [name for name in measured.modalities if name]
    only = shown[0] if len(measured.modalities) == len(shown) == 1 else None
    selected = select.model_dump() | {"modality": select.modality or only}
    if normalise != "window":
        return Channel(**selected, normalise=normalise)
    low, high = config.window_hu or measured.foreground_percentiles
    if not low < high:
        problem = f"the training foreground gives the window {low:g} to {high:g}, which is empty"
        raise ConfigError("CONFIG-VALUE", "prepare.window_hu", problem, "Set prepare.window_hu, such as [-160, 240].")
    mean, sd = _inside_window(low, high, measured.foreground_mean, measured.foreground_sd)
    return Channel(**selected, normalise=normalise, window=(low, high), mean=mean, sd=sd)


def _inside_window(low: float, high: float, mean: float, sd: float) -> tuple[float, float]:
    """Bound mean and sd to what values inside the window can have (sd: Popoviciu 1935, half the range at most).

    The foreground was measured before clipping; where that says nothing (sd 0) a quarter of the window serves.
    """
    half = (high - low) / 2
    return min(max(mean, low), high), min(sd, half) if sd > 0 else half / 2


def working_grid(grid: Grid, preparation: Preparation) -> Grid:
    """Return the grid `(h, w, n)` that the slices of a scan on `grid` have after preparation."""
    ordered = grid.reordered(grid.order_to(preparation.codes))
    rows, columns, count = ordered.shape
    wanted_rows, wanted_columns = preparation.spacing_mm
    height = max(1, round(rows * ordered.spacing[0] / wanted_rows))
    width = max(1, round(columns * ordered.spacing[1] / wanted_columns))
    return ordered.with_shape((height, width, count))

"""Training that starts from an earlier model: what must agree, and what is kept of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from medseg.config import Config
from medseg.config.settings import ChannelConfig, PrepareConfig
from medseg.errors import ModelError, RunError, UsageError
from medseg.models import Network
from medseg.models.model_folder import Model, load_model
from medseg.preparation import Channel, Preparation
from medseg.progress import Watch
from medseg.training.plan import count_out_channels


@dataclass(frozen=True, eq=False)
class Start:
    """Where a run starts.

    Attributes:
        config: with what the earlier model settles: network, `prepare`, patch, and the model's hash.
        preparation: the earlier model's; the scans are selected as the configuration says.
        network: holds its weights.
    """

    config: Config
    preparation: Preparation
    network: Network


def start_from(config: Config, watch: Watch) -> Start:
    """Load the model that `start` names, and make sure that its weights fit what is asked for.

    Args:
        config: with `start.model`.
        watch: is told what to bear in mind.

    Raises:
        UsageError: USAGE-PATH when there is no such folder.
        ModelError: MODEL-DIFFERS, with everything that differs; and as `load_model`.
        RunError: RUN-RESUME when it is no longer the model that the run began with.
    """
    if config.start.model is None:
        raise UsageError("USAGE-PATH", "start.model", "names no model")
    model, where = load_model(config.start.model), str(config.start.model)
    if config.start.hash not in (None, model.hash):
        problem = f"has the hash {model.hash}, start.hash is {config.start.hash}"
        raise RunError("RUN-RESUME", where, problem, "Put the earlier model back, or start another run with -o.")
    if len(model.networks) > 1:
        problem = f"an ensemble of {len(model.networks)} networks, wanted a model of one"
        raise ModelError("MODEL-DIFFERS", where, problem, "Name one of its members, such as RUN/fold-1.")
    if found := list(_differences(config, model)):
        advice = "Set these as the model has them; the config.yaml of its run does."
        raise ModelError("MODEL-DIFFERS", where, "; ".join(found), advice)
    note = f"starts from the model {model.hash}. If that was trained on cases that are held out now, "
    watch("start", 1, 1, note + "the validation Dice is too good: keep the split")
    return Start(_settled(config, model), _selecting(model.preparation, config), model.networks[0])


def _differences(config: Config, model: Model) -> Iterator[str]:
    """Say what the configuration wants otherwise than the model is; what it leaves open cannot differ."""
    wanted, own = config.model.model_dump(), model.description.network.model_dump()
    for key in wanted if wanted["name"] == own["name"] else ["name"]:
        if wanted[key] is not None:
            yield from _differs(f"model.{key}", wanted[key], own[key])
    yield from _differs("labels", list(config.labels), list(model.description.labels.values()))
    yield from _differs("train.loss: output channels", count_out_channels(config), model.description.out_channels)
    if config.train.patch is not None:
        yield from _differs("train.patch", config.train.patch, model.description.patch)
    yield from _preparation_differs(config.prepare, model.preparation)
    names = [channel.name for channel in model.preparation.channels]
    yield from _differs("data.select: channels", [channel.name for channel in config.data.select], names)
    for want, channel in zip(config.data.select, model.preparation.channels, strict=False):
        if want.modality and channel.modality:
            yield from _differs(f"modality of {want.name}", want.modality.upper(), channel.modality.upper())


def _preparation_differs(prepare: PrepareConfig, own: Preparation) -> Iterator[str]:
    if prepare.plane != "auto":
        yield from _differs("prepare.plane", prepare.plane, own.plane)
    if prepare.spacing_mm is not None:
        yield from _differs("prepare.spacing_mm", prepare.spacing_mm, own.spacing_mm)
    yield from _differs("prepare.context", prepare.context, own.context)
    for channel in own.channels:
        if prepare.normalise != "auto":
            yield from _differs("prepare.normalise", prepare.normalise, channel.normalise)
        if channel.normalise == "percentile":
            yield from _differs("prepare.percentiles", prepare.percentiles, own.percentiles)
        if prepare.window_hu is not None and channel.window is not None:
            yield from _differs("prepare.window_hu", prepare.window_hu, channel.window)


def _differs(what: str, wanted: object, own: object) -> Iterator[str]:
    if wanted != own:
        yield f"{what} is {_plain(own)} in the model, {_plain(wanted)} here"


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _settled(config: Config, model: Model) -> Config:
    """Return the configuration with everything filled in that the model settles."""
    own = model.preparation
    prepare: dict[str, Any] = {"plane": own.plane, "spacing_mm": own.spacing_mm}
    kinds, windows = ({getattr(channel, name) for channel in own.channels} for name in ("normalise", "window"))
    if len(kinds) == 1:
        prepare |= {"normalise": kinds.pop(), "window_hu": windows.pop() if len(windows) == 1 else None}
    return config.model_copy(
        update={
            "model": model.description.network,
            "prepare": config.prepare.model_copy(update=prepare),
            "train": config.train.model_copy(update={"patch": model.description.patch}),
            "start": config.start.model_copy(update={"hash": model.hash}),
        }
    )


def _selecting(preparation: Preparation, config: Config) -> Preparation:
    """Return the preparation for scans that are selected as the configuration says: new data may be named otherwise."""
    pairs = zip(preparation.channels, config.data.select, strict=True)
    return replace(preparation, channels=tuple(_selected(*pair) for pair in pairs))


def _selected(channel: Channel, want: ChannelConfig) -> Channel:
    modality = want.modality or channel.modality
    return replace(channel, modality=modality, description=want.description, referenced=want.referenced)

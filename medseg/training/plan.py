"""`make_plan`: what training would do with a data set, decided by the same functions, and nothing written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medseg.check import Examination, examine
from medseg.config import Config
from medseg.errors import ConfigError, InputError
from medseg.fingerprint import Fingerprint, LabelFingerprint, fingerprint
from medseg.models import build
from medseg.models.network import Cost, describe
from medseg.preparation import Channel, Preparation, decide, working_grid
from medseg.progress import Watch, silent
from medseg.store import Entry
from medseg.training.data import fitted_patch
from medseg.training.losses import build_loss
from medseg.training.run import count_out_channels


@dataclass(frozen=True)
class Plan:
    """What `train` would do.

    Attributes:
        config: the settings it starts from.
        found: the examined data set: cases, findings, split.
        measured: the training cases in numbers.
        preparation: plane, spacing, normalisation, context.
        patch: rows and columns of a training slice.
        out_channels: of the network.
        cost: of the network, for an image of 256 x 256.
        slices: to train on.
    """

    config: Config
    found: Examination
    measured: Fingerprint
    preparation: Preparation
    patch: tuple[int, int]
    out_channels: int
    cost: Cost
    slices: int

    def lines(self) -> list[tuple[str, str]]:
        """Return what is planned, and how, for people."""
        split, train, preparation = self.found.split, self.config.train, self.preparation
        steps = train.steps_per_epoch or -(-self.slices // train.batch_size)
        rows, columns = preparation.spacing_mm
        held_out = len(split.validation) if split else 0
        return [
            ("cases", f"{self.measured.cases} to train on, {held_out} to validate, {self._left_out()} left out"),
            *((f"label {label.name}", _label(label)) for label in self.measured.labels),
            ("plane", f"{preparation.plane} (the cases: {_votes(self.measured)})"),
            ("spacing", f"{rows:.3g} x {columns:.3g} mm in the plane; slices stay where they are"),
            *((f"channel {channel.name}", _normalisation(channel, preparation)) for channel in preparation.channels),
            ("context", f"{preparation.context} on each side of a slice: {preparation.in_channels} input channels"),
            ("patch", f"{self.patch[0]} x {self.patch[1]} pixels"),
            ("network", self._network()),
            (
                "training",
                f"{train.epochs} epochs of {steps} steps; {self.slices} slices, {train.batch_size} in a step",
            ),
            ("recipe", f"{train.loss}, {train.optimizer}, learning rate {train.learning_rate:g}, {train.schedule}"),
        ]

    def _left_out(self) -> int:
        used = {case.id for case in self.found.dataset.cases}
        return len(self.found.dataset.left_out - used)

    def _network(self) -> str:
        millions, billions = self.cost.parameters / 1e6, self.cost.multiply_adds / 1e9
        cost = f"{millions:.2f} million parameters, {billions:.1f} G multiply-adds for 256 x 256"
        return f"{self.config.model.name}, {self.out_channels} output channels, {cost}"


def make_plan(config: Config, watch: Watch = silent) -> Plan:
    """Examine the data set of a configuration and decide what `train` would; nothing is written.

    Args:
        config: as `medseg.config.load` gives it.
        watch: is told of each case.

    Raises:
        UsageError: a wrong configuration or path; MODEL-LOSS, DATA-SPLIT.
        InputError: DATA-EMPTY when no case is left to train on.
    """
    out_channels = count_out_channels(config)
    build_loss(config.train.loss, out_channels)
    found = examine(config, watch=watch)
    if found.split is None:
        reasons = [finding.message for finding in found.dataset.findings if finding.code == "DATA-SPLIT"]
        raise ConfigError("DATA-SPLIT", "data", "; ".join(reasons) or "the cases cannot be divided")
    if not found.split.train:
        problem = f"no case is left to train on; {len(found.dataset.left_out)} were left out"
        raise InputError("DATA-EMPTY", "data", problem, "Run medseg check with this configuration.")
    measured = fingerprint([found.measures[case] for case in found.split.train], config)
    preparation = decide(config.prepare, measured, config.data.select)
    entries = _entries(found, preparation)
    network = build(config.model, preparation.in_channels, out_channels)
    patch = config.train.patch or fitted_patch(entries, network.stride)
    cost = describe(network, preparation.in_channels)
    slices = sum(entry.shape[0] for entry in entries)
    return Plan(config, found, measured, preparation, patch, out_channels, cost, slices)


def _entries(found: Examination, preparation: Preparation) -> list[Entry]:
    """Return the training cases' stored slices as they would be, by their headers."""
    entries = []
    training = set(found.split.train) if found.split else set()
    for case in found.dataset.cases:
        grid = case.scans[0].grid
        if case.id in training and grid is not None:
            rows, columns, count = working_grid(grid, preparation).shape
            entries.append(Entry(case.id, Path(), (count, len(case.scans), rows, columns), {}))
    return entries


def _label(label: LabelFingerprint) -> str:
    low, middle, high = (f"{ml:.0f}" if ml >= 100 else f"{ml:.3g}" for ml in label.volume_ml)
    sizes = f"{middle} ml in the median ({low} to {high}), {label.share:.2%} of the scan"
    return f"in {label.cases} cases; {sizes}"


def _votes(measured: Fingerprint) -> str:
    return ", ".join(f"{number} {plane}" for plane, number in measured.planes.items())


def _normalisation(channel: Channel, preparation: Preparation) -> str:
    if channel.window is not None:
        low, high = channel.window
        return f"clipped to {low:.4g} to {high:.4g}, then (value - {channel.mean:.4g}) / {channel.sd:.4g}"
    clip = "clipped to the {:g} and {:g} percentile of the body, ".format(*preparation.percentiles)
    return f"{clip if channel.normalise == 'percentile' else ''}mean 0 and standard deviation 1 inside the body"

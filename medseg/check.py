"""The examination of a data set before training: every case is read once, and everything odd gets a finding.

Errors name cases that must not be trained on (`Dataset.without` leaves them out), or a leak that forbids any training.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medseg.case import Case, Dataset, Finding, Split
from medseg.case_measure import CaseMeasure, ChannelMeasure, measure_case
from medseg.config.settings import Config
from medseg.dataset import find_cases
from medseg.errors import InputError, UsageError
from medseg.io.workers import call_spread, processes_for
from medseg.matching import listed
from medseg.measured import Measured, Measures
from medseg.progress import Watch, silent
from medseg.split import fold_cases, split_cases

SPACING_FACTOR = 2.5
"""A case whose spacing differs from the median by more is enlarged or shrunk until its tissue looks different."""

ODD = 6.0
"""Robust standard deviations (1.4826 times the median absolute deviation) from the median that make an outlier: one in
500 million of normally distributed cases; clinical ones have heavier tails."""

FEW = 5
"""More outliers than this are no outliers, but a mixture: one finding says so."""

WORKER_S = 1.0
"""What a process takes to start and to import what reading a scan needs."""

VOXEL_BYTES = 16
"""That reading a case takes for each voxel, at the most: the stored ones, values, and masks."""

MIN_CASES = 5
"""Fewer cases have no usual value to differ from."""


@dataclass(frozen=True)
class Examination:
    """What examining a data set gave.

    Attributes:
        dataset: with the cases that can be used, and all findings, those of `find_cases` included.
        measures: case id to numbers, of the cases that could be read.
        split: training and validation; None when the cases cannot be divided (a DATA-SPLIT finding says why). With
            `folds`, that of the first fold.
        labels: their names, in the order of the configuration.
        folds: the split of each fold; none without `folds`.
    """

    dataset: Dataset
    measures: Mapping[str, CaseMeasure]
    split: Split | None
    labels: tuple[str, ...]
    folds: tuple[Split, ...] = ()

    def to_json(self) -> str:
        """Return findings, split and the numbers of each case as JSON; no patient, not even as a hash."""
        content = {
            "findings": [asdict(finding) for finding in self.dataset.findings],
            "cases": [self._numbers(self.measures[case.id]) for case in self.dataset.cases],
            "split": None if self.split is None else asdict(self.split),
            **({"folds": [fold.validation for fold in self.folds]} if self.folds else {}),
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    def _numbers(self, measure: CaseMeasure) -> dict[str, object]:
        counts = zip(self.labels, measure.label_voxels, strict=True)
        return {
            "id": measure.id,
            "shape": measure.shape,
            "spacing_mm": measure.spacing_mm,
            "plane": measure.plane,
            "labels": {name: {"voxels": count, "ml": count * measure.voxel_ml} for name, count in counts},
            "channels": [_channel_numbers(channel) for channel in measure.channels],
        }


def _channel_numbers(channel: ChannelMeasure) -> dict[str, object]:
    regions = {"body": channel.body, "foreground": channel.foreground}
    medians = {f"median_{name}": float(np.median(sample)) if sample.size else None for name, sample in regions.items()}
    return {"modality": channel.modality, "low": channel.low, "high": channel.high, **medians}


def examine(
    config: Config, dataset: Dataset | None = None, watch: Watch = silent, known: Measures | None = None
) -> Examination:
    """Read every case once and look at it alone, beside the others, and across the split.

    Args:
        config: the configuration.
        dataset: its cases, when they are already found.
        watch: is told of each case.
        known: measures from an earlier time; what is new is added.

    Raises:
        UsageError: as `find_cases`.
        RunError: RUN-WRITE when measures cannot be kept.
    """
    dataset = find_cases(config) if dataset is None else dataset
    measures: dict[str, CaseMeasure] = {}
    findings: list[Finding] = []
    for number, (case, measured) in enumerate(_measured(dataset.cases, config, known), start=1):
        if isinstance(measured, InputError):
            findings.append(Finding.from_error(measured, case.id))
        else:
            measures[case.id], remarks = measured
            findings.extend([*remarks, *_alone(case, measures[case.id])])
        watch("check", number, len(dataset.cases))
    dataset = dataset.without(findings)
    usable = {case.id: measures[case.id] for case in dataset.cases}
    splits, problems = _divided(dataset, usable, config)
    copies = _duplicates(usable, dataset.cases, splits)
    dataset = dataset.without([*problems, *copies, *_beside(usable, config)])
    splits = [_remaining(split, {case.id for case in dataset.cases}) for split in splits]
    return Examination(
        dataset,
        {case.id: measures[case.id] for case in dataset.cases},
        splits[0] if splits else None,
        tuple(config.labels),
        tuple(splits) if config.folds else (),
    )


def _measured(
    cases: Sequence[Case], config: Config, known: Measures | None
) -> Iterator[tuple[Case, Measured | InputError]]:
    """Yield each case with its measures, or with what is wrong with it; several are read at once when that pays."""
    found = {case.id: known.find(case, config) for case in cases} if known else {}
    new = [case for case in cases if not found.get(case.id)]
    processes = processes_for(len(new), 2, VOXEL_BYTES * max((case.voxels for case in new), default=0))
    fresh = call_spread(measure_or_reason, [(case, config) for case in new], WORKER_S, processes)
    for case in cases:
        measured = found.get(case.id) or next(fresh)
        if known and not found.get(case.id) and not isinstance(measured, InputError):
            known.keep(case, config, measured)
        yield case, measured


def measure_or_reason(case: Case, config: Config) -> Measured | InputError:
    """Read and measure one case: what a process is asked for."""
    try:
        return measure_case(case, config)
    except InputError as error:
        return error


def _remaining(split: Split, ids: set[str]) -> Split:
    return Split(tuple(i for i in split.train if i in ids), tuple(i for i in split.validation if i in ids))


# -------------------------------------------------------------------------------------------------- each case alone


def _alone(case: Case, measure: CaseMeasure) -> Iterator[Finding]:
    for scan, channel in zip(case.scans, measure.channels, strict=True):
        if channel.low == channel.high:
            text = f"every voxel is {channel.low:g}: nothing to learn from. Export the scan again, or leave it out"
            yield Finding("error", "DATA-CONSTANT", case.id, f"{scan.path.name}: {text}")
    labelled = sum(measure.label_voxels)
    if measure.unannotated == measure.voxels:
        text = "every voxel is marked as not annotated: nothing to learn from. Annotate some, or leave the case out"
        yield Finding("error", "MASK-EMPTY", case.id, text)
    elif labelled == 0:
        text = "the reference is empty. Right for a patient without the disease; else draw it, or leave the case out"
        yield Finding("warning", "MASK-EMPTY", case.id, text)
    if labelled == measure.voxels:
        text = "the reference covers the whole scan. Is it inverted? Correct it, or leave the case out"
        yield Finding("error", "MASK-FULL", case.id, text)
    first = case.scans[0].grid
    for scan in case.scans[1:]:
        if first is not None and scan.grid is not None and first.overlap(scan.grid) == 0:
            text = f"{scan.case_id} and {case.scans[0].case_id} do not overlap. Choose scans of one region by `select`"
            yield Finding("error", "DATA-OVERLAP", case.id, text)


# -------------------------------------------------------------------------------------------------- across the split


def _divided(
    dataset: Dataset, measures: Mapping[str, CaseMeasure], config: Config
) -> tuple[list[Split], list[Finding]]:
    """Return the split, or that of each fold; nothing, and a finding, when the cases cannot be divided."""
    try:
        if config.folds is None:
            return [split_cases(dataset.cases, config.data, config.seed, dataset.left_out)], []
        cases = _with_copies(dataset.cases, measures)
        volumes = {name: [n * case.voxel_ml for n in case.label_voxels] for name, case in measures.items()}
        return list(fold_cases(cases, volumes, config.folds, config.data, config.seed, dataset.left_out)), []
    except UsageError as error:
        return [], [Finding.from_error(error, error.where)]


def _with_copies(cases: Sequence[Case], measures: Mapping[str, CaseMeasure]) -> list[Case]:
    """Return the cases with those of equal images as one patient's, so that no copy comes into another fold."""
    patient = {case.group: case.group for case in cases}
    first: dict[str, str] = {}
    for case in cases:
        for channel in measures[case.id].channels:
            one, other = patient[first.setdefault(channel.digest, case.group)], patient[case.group]
            if one != other:
                patient = {name: one if known == other else known for name, known in patient.items()}
    return [replace(case, group=patient[case.group]) for case in cases]


def _duplicates(
    measures: Mapping[str, CaseMeasure], cases: Sequence[Case], splits: Sequence[Split]
) -> Iterator[Finding]:
    """Find equal images under different names: an error for training cases when a held-out one is among them.

    Of several folds, none has such a case: all copies are in one (`_with_copies`).
    """
    held_out = set(splits[0].validation) if len(splits) == 1 else set()
    holders: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        digests = [channel.digest for channel in measures[case.id].channels]
        if len(set(digests)) < len(digests):
            text = "two channels hold the same voxels. Choose another scan by `select`"
            yield Finding("warning", "DATA-DUPLICATE", case.id, text)
        for digest in set(digests):
            holders[digest].append(case.id)
    told: set[str] = set()
    for ids in sorted(holders.values()):
        for finding in _copies(ids, held_out):
            if finding.where not in told:
                yield finding
            told.add(finding.where)


def _copies(ids: Sequence[str], held_out: set[str]) -> Iterator[Finding]:
    validated = [case_id for case_id in ids if case_id in held_out]
    trained = [case_id for case_id in ids if case_id not in held_out]
    for case_id in trained if validated else ():
        text = f"the same voxels as {validated[0]}, which is held out for validation: left out of training"
        yield Finding("error", "DATA-DUPLICATE", case_id, text)
    for side in (validated,) if validated else (trained,):
        for case_id in side[1:]:
            text = f"the same voxels as {side[0]}. Keep one of the two: a copy counts twice"
            yield Finding("warning", "DATA-DUPLICATE", case_id, text)


# ------------------------------------------------------------------------------------------------- beside the others


def _beside(measures: Mapping[str, CaseMeasure], config: Config) -> Iterator[Finding]:
    """Compare the cases with each other: sizes of labels, spacing, planes, modalities, intensities."""
    cases = list(measures.values())
    if cases:
        yield from _labels(cases, config)
        yield from _planes(cases)
        yield from _spacings(cases)
        for number, channel in enumerate(config.data.select):
            yield from _modalities(cases, number, channel.name)
            yield from _intensities(cases, number, channel.name)


def _labels(cases: Sequence[CaseMeasure], config: Config) -> Iterator[Finding]:
    for number, name in enumerate(config.labels):
        volumes = [case.label_voxels[number] * case.voxel_ml for case in cases if case.label_voxels[number]]
        if not volumes:
            text = f"{name} is in no case: it cannot be learned. Correct its sources under `labels`, or remove it"
            yield Finding("error", "DATA-LABEL", f"labels.{name}", text)
            continue
        low, middle, high = min(volumes), float(np.median(volumes)), max(volumes)
        text = f"in {len(volumes)} of {len(cases)} cases; {middle:.3g} ml in the median, {low:.3g} to {high:.3g} ml"
        yield Finding("note", "DATA-FOREGROUND", f"labels.{name}", text)
    if partly := [case for case in cases if case.unannotated]:
        share = float(np.median([case.unannotated / case.voxels for case in partly]))
        text = (
            f"{len(partly)} of {len(cases)} cases are annotated in part, {1 - share:.0%} of their voxels in the median"
        )
        yield Finding("note", "DATA-UNANNOTATED", "unannotated", text)


def _planes(cases: Sequence[CaseMeasure]) -> Iterator[Finding]:
    planes = [case.plane for case in cases]
    usual = max(sorted(set(planes)), key=planes.count)
    for case in cases:
        if case.plane != usual:
            text = f"acquired {case.plane}, most others {usual}: it is sliced across its own stack"
            yield Finding("warning", "DATA-PLANE", case.id, text)


def _spacings(cases: Sequence[CaseMeasure]) -> Iterator[Finding]:
    usual = np.median([case.spacing_mm for case in cases], axis=0)
    for case in cases:
        factors = np.array(case.spacing_mm) / usual
        if len(cases) >= MIN_CASES and (factors.max() > SPACING_FACTOR or factors.min() < 1 / SPACING_FACTOR):
            own, most = (" x ".join(f"{mm:.3g}" for mm in spacing) for spacing in (case.spacing_mm, usual))
            text = f"voxels of {own} mm (x, y, z), the median is {most} mm. Is the scan of the same kind?"
            yield Finding("warning", "DATA-SPACING", case.id, text)


def _modalities(cases: Sequence[CaseMeasure], number: int, name: str) -> Iterator[Finding]:
    found = {case.channels[number].modality for case in cases} - {""}
    if len(found) > 1:
        counts = [f"{kind} ({sum(c.channels[number].modality == kind for c in cases)})" for kind in sorted(found)]
        text = f"channel {name!r} mixes {listed(counts)}. Set its `modality` in `select`"
        yield Finding("warning", "DATA-MODALITY", "select", text)


def _intensities(cases: Sequence[CaseMeasure], number: int, name: str) -> Iterator[Finding]:
    """Compare the median and the 99.5 percentile inside the body; MR by ratio, since its unit is arbitrary."""
    channels = [case.channels[number] for case in cases]
    for what, percent in (("median", 50.0), ("99.5 percentile", 99.5)):
        values = np.array([np.percentile(c.body, percent) if c.body.size else c.low for c in channels])
        odd = _outliers(values)
        usual = f"channel {name!r}: the {what} of the body is {np.median(values):.4g} in the middle case"
        if len(odd) > FEW:
            text = f"{usual} and far from it in {len(odd)} of {len(cases)}: the units or sequences are mixed. "
            yield Finding("warning", "DATA-INTENSITY", "select", text + listed([cases[index].id for index in odd]))
            continue
        for index in odd:
            text = f"{usual}, here {values[index]:.4g}. Other unit, other sequence, or not rescaled?"
            yield Finding("warning", "DATA-INTENSITY", cases[index].id, text)


def _outliers(values: NDArray[np.float64]) -> list[int]:
    """Return the indices of values far from the others; by their logarithms when all are above 0."""
    if len(values) < MIN_CASES:
        return []
    by_ratio = bool((values > 0).all())
    scaled = np.log(values) if by_ratio else values
    distance = np.abs(scaled - np.median(scaled))
    # Where cases agree nearly perfectly every difference looks huge: a factor of 1.5, or 15 percent, is never odd.
    least = np.log(1.5) if by_ratio else 0.15 * abs(float(np.median(values)))
    limit = max(ODD * 1.4826 * float(np.median(distance)), float(least))
    return [int(index) for index in np.flatnonzero(distance > limit)]

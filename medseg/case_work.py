"""One case, as far as it needs no network: read, cut into blocks, its labels gathered, its files written and verified.

A `CaseWork` may live in a process of its own (`medseg.io.workers`), which imports no torch: 90 MB, and a crash in a
codec ends that process alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medseg.case import Case
from medseg.config.settings import CleanConfig
from medseg.errors import InputError, RunError
from medseg.facts import ScanFacts, Seen, label_facts, scan_facts
from medseg.grid import Grid
from medseg.intensity import Statistics, measure
from medseg.io.dicom_seg_write import write_dicom_seg
from medseg.io.nifti import write_mask
from medseg.io.rtstruct import write_rtstruct
from medseg.postprocess import clean
from medseg.preparation import Preparation
from medseg.reading import read_case
from medseg.review import Review, judge
from medseg.scan import Scan
from medseg.volume import Labels, Mask, Volume

Format = Literal["nifti", "dicom-seg", "rtstruct"]
ENDINGS: dict[Format, str] = {"nifti": ".nii.gz", "dicom-seg": ".seg.dcm", "rtstruct": ".rtstruct.dcm"}


VOXEL_BYTES = 5
"""What a voxel takes in memory at most, but for rare types: float32, and its byte of the mask."""


@dataclass(frozen=True)
class Done:
    """What is remembered of a finished case.

    Attributes:
        key: hash of all that decided its mask.
        output_sha256: hash of its files; with the key, to know the case again.
        review: what a person should look at, in plain types (`medseg.review.Review.to_dict`).
    """

    key: str
    output_sha256: str
    review: Mapping[str, Any]


@dataclass(frozen=True)
class Failed:
    """What is remembered of a case that failed, so that it is not tried in vain in every run."""

    key: str
    code: str
    message: str


@dataclass(frozen=True)
class Job:
    """What is to be done for one case.

    Attributes:
        case: its scans.
        preparation: how the model takes them.
        labels: number and name, for DICOM outputs.
        model_hash: for DICOM outputs.
        rules: how each label is cleaned, by its number.
        seen: how far the model's training cases reach; None when it does not tell.
        dice_offsets: what calibrates the expected Dice, by the name of the label.
        names: of the files that it gets.
        output: the folder where they will be.
        staging: a folder on the same file system where they are written first.
        known: of an earlier run.
    """

    case: Case
    preparation: Preparation
    labels: Labels
    model_hash: str
    rules: Mapping[int, CleanConfig]
    seen: Seen | None
    dice_offsets: Mapping[str, float]
    names: Mapping[Format, str]
    output: Path
    staging: Path
    known: Done | Failed | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        """Of each channel; what the model takes where the scan does not say."""
        pairs = zip(self.case.scans, self.preparation.channels, strict=True)
        return tuple(scan.modality or channel.modality or "" for scan, channel in pairs)

    @property
    def voxels(self) -> int:
        """How many there are in all channels; 0 when no header tells."""
        return sum(int(np.prod(scan.grid.shape)) for scan in self.case.scans if scan.grid)


@dataclass(frozen=True)
class Opened:
    """A volume that was read, and stays where it is.

    Attributes:
        grid: of the voxels.
        modality: DICOM modality, empty when unknown.
        statistics: by which it is normalised.
    """

    grid: Grid
    modality: str
    statistics: Statistics


class CaseWork:
    """Holds voxels and labels of one case.

    Args:
        job: what is to be done.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._volume: Volume | None = None
        self._facts: ScanFacts | None = None
        self._labels: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._seen: Counter[int] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def key(self, identity: str) -> str:
        """Return the hash of all that decides the mask: the content of the scan's files, and the rest, as a hash."""
        with self._timed("hash"):
            content = hash_files([file for scan in self._job.case.scans for file in scan.files])
            return hashlib.sha256(json.dumps([content, identity]).encode()).hexdigest()

    def is_done(self, key: str) -> bool:
        """Tell whether an earlier run did all this, and its files are still the ones that it wrote."""
        known = self._job.known
        if not isinstance(known, Done) or known.key != key:
            return False
        with self._timed("hash"):
            return hash_files([self._job.output / name for name in self._job.names.values()]) == known.output_sha256

    def open(self) -> Opened:
        """Read the scans.

        Raises:
            InputError: when they are unfit, with the door's code; GRID-SHEAR before any work for a mask that no file
                could carry.
        """
        _check_shear(self._job.case.scans[0])
        with self._timed("read"):
            self._volume = read_case(self._job.case.scans)
        with self._timed("measure"):
            statistics = measure(self._volume, self._job.preparation)
            self._facts = scan_facts(self._volume, self._job.modalities, self._job.case.scans[0].body_part)
        grid = self._volume.grid
        self._labels = np.zeros(grid.shape, np.uint8, order="F")  # as voxels lie, and as NIfTI wants them
        return Opened(grid, self._volume.modality, statistics)

    def cut(self, axis: int, start: int, stop: int) -> NDArray[np.generic]:
        """Return stored voxels `(c, i, j, k)` with index `start` to `stop - 1` along `axis`, packed."""
        with self._timed("cut"):
            part = self._held.cut(axis, start, stop)
            return part if part.flags.f_contiguous else np.ascontiguousarray(part)  # NIfTI's order goes as it lies

    def put(self, start: int, labels: NDArray[np.uint8]) -> None:
        """Take the labels `(n, rows, columns)` of consecutive slices of the working order, from slice `start` on."""
        with self._timed("cut"):
            grid = self._held.grid
            ordered = grid.order_to(self._job.preparation.codes).apply(self._labels)  # a view: writing undoes the order
            ordered[..., start : start + len(labels)] = labels.transpose(1, 2, 0)
            self._seen.update(range(start, start + len(labels)))

    def finish(self, expected_dice: Mapping[str, float]) -> tuple[str, Review]:
        """Write the files into the staging folder, each opened again and compared, and judge the case.

        Args:
            expected_dice: of each label, by name, as the networks say it.

        Returns:
            The hash of the files' contents, and what a person should look at.

        Raises:
            RunError: RUN-WRITE, or RUN-CRASH unless the labels of every slice came exactly once.
            InputError: GRID-SHEAR when a format cannot carry the grid.
        """
        grid = self._held.grid
        count = grid.reordered(grid.order_to(self._job.preparation.codes)).shape[2]
        if self._seen != Counter(range(count)):
            raise RunError("RUN-CRASH", "", f"the labels of {count} slices did not come exactly once each")
        self._volume = None  # its memory is free for what writing and verifying need
        with self._timed("clean"):
            mask = clean(Mask(self._labels, grid), self._job.rules)
        with self._timed("judge"):
            review = self._judged(mask, expected_dice)
        with self._timed("write"):
            for form, name in self._job.names.items():
                self._write(form, self._job.staging / name, mask)
            return hash_files([self._job.staging / name for name in self._job.names.values()]) or "", review

    def seconds(self) -> dict[str, float]:
        """Return how long each kind of work took."""
        return dict(self._seconds)

    def _judged(self, mask: Mask, expected_dice: Mapping[str, float]) -> Review:
        job = self._job
        names = [name for _, name in job.labels]
        labels = dict(zip(names, label_facts(mask, len(names)), strict=True))
        return judge(self._facts, labels, expected_dice, job.dice_offsets, job.seen, job.preparation)

    def _write(self, form: Format, path: Path, mask: Mask) -> None:
        job = self._job
        match form:
            case "nifti":
                write_mask(path, mask)
            case "dicom-seg":
                write_dicom_seg(path, mask, job.labels, job.case.scans[0].files, model_hash=job.model_hash)
            case "rtstruct":
                write_rtstruct(path, mask, job.labels, job.case.scans[0].files, model_hash=job.model_hash)

    @property
    def _held(self) -> Volume:
        if self._volume is None:
            raise RunError("RUN-CRASH", self._job.case.id, "its volume was asked for before it was read")
        return self._volume

    @contextmanager
    def _timed(self, kind: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[kind] += time.perf_counter() - start


def _check_shear(scan: Scan) -> None:
    if scan.grid is not None and scan.grid.is_sheared:
        leaning = f"sheared by {scan.grid.shear_mm:.1f} mm at the corners (a tilted gantry)"
        problem = f"the stack of slices is {leaning}, which a NIfTI mask cannot carry"
        raise InputError("GRID-SHEAR", scan.case_id, problem, "Resample the scan to a grid with right angles first.")


def ready() -> int:
    """Return the number of this process, which by then has loaded all that a case needs."""
    return os.getpid()


def hash_files(paths: Sequence[Path]) -> str | None:
    """Hash the content of files in order, None when one cannot be read."""
    digest = hashlib.sha256()
    try:
        for path in paths:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError:
        return None
    return digest.hexdigest()

"""Prepared slices on disk, for training: every scan is decoded, resampled and normalised once, not once an epoch.

    folder/
      <key>/           one case; the key is a hash of everything the slices depend on, so a stale entry cannot be met
        images.npy     (n, m, h, w) float16: n slices of m modalities, without context (that is added when read)
        masks.npy      (n, h, w) uint8: 0 background, 1 to 254 labels, 255 not annotated
        entry.json     shapes, hashes, which slices hold which label; written last: without it there is no entry

The key covers the content of the source files, the preparation, the label settings and the versions. A second run finds
its entries, and so does another fold, or another run beside it, with the same preparation. A damaged entry (its hashes
say so) is made again. Neither names nor contents identify a patient.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.case import Case
from medseg.errors import InputError
from medseg.grid import Grid
from medseg.io.atomic import atomic_path, write_text
from medseg.io.hashes import Hashes
from medseg.io.workers import call_spread, processes_for
from medseg.preparation import Preparation, working_grid
from medseg.prepare import prepare_reference, prepared_blocks
from medseg.reading import read_case
from medseg.slices import context_span, with_context
from medseg.volume import UNANNOTATED, Mask, Volume

log = logging.getLogger(__name__)

FORMAT = 2
"""Raised whenever the same inputs would give other slices."""

ARRAYS = ("images.npy", "masks.npy")
RECORD = "entry.json"

WORKER_S = 6.0
"""What a process takes to start and to import torch and MONAI."""

VOXEL_BYTES = 16
"""That preparing a case takes for each voxel, at the most: the stored ones, values, slices and masks."""

FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Entry:
    """The stored slices of one case.

    Attributes:
        case: the case id; known to the run, not written into the store.
        folder: where the arrays are.
        shape: `(n, m, h, w)` of the images.
        slices: label number -> indices of the slices that hold it, ascending; labels that stand nowhere are absent.
        blank: indices of the slices in which nothing is annotated.
    """

    case: str
    folder: Path
    shape: tuple[int, int, int, int]
    slices: Mapping[int, tuple[int, ...]]
    blank: tuple[int, ...] = ()

    def labels(self, index: int) -> tuple[int, ...]:
        """Return the numbers of the labels that stand in a slice."""
        return tuple(number for number, indices in self.slices.items() if index in indices)

    def images(self) -> NDArray[np.float16]:
        """The prepared slices `(n, m, h, w)`, memory-mapped read-only."""
        images: NDArray[np.float16] = np.load(self.folder / "images.npy", mmap_mode="r", allow_pickle=False)
        return images

    def masks(self) -> NDArray[np.uint8]:
        """The label numbers `(n, h, w)`, memory-mapped read-only."""
        masks: NDArray[np.uint8] = np.load(self.folder / "masks.npy", mmap_mode="r", allow_pickle=False)
        return masks

    def slice(self, index: int, context: int) -> tuple[Tensor, Tensor]:
        """Return one slice with its context, as `cut_slice` does."""
        return cut_slice(self.images(), self.masks(), index, context)


def cut_slice(images: NDArray[np.float16], masks: NDArray[np.uint8], index: int, context: int) -> tuple[Tensor, Tensor]:
    """Return one slice of a case with its context.

    Args:
        images: of the case, as `Entry.images`.
        masks: as `Entry.masks`.
        index: of the slice.
        context: neighbouring slices on each side.

    Returns:
        Image `(m * (2 * context + 1), h, w)` float32 and labels `(h, w)` uint8.
    """
    first, last = context_span(index, index + 1, len(images), context)
    part = torch.from_numpy(images[first:last].astype(np.float32))
    labels = torch.from_numpy(np.array(masks[index]))
    return with_context(part, first, index, index + 1, context)[0], labels


@dataclass(frozen=True)
class SliceStore:
    """The stored slices of many cases.

    Attributes:
        entries: by case id, in the order the cases were given.
        rejected: cases whose scans or references turned out unfit, with the reason; they are not among the entries.
    """

    entries: Mapping[str, Entry]
    rejected: Mapping[str, InputError]

    def __getitem__(self, case: str) -> Entry:
        """Return the entry of a case id."""
        return self.entries[case]

    def __iter__(self) -> Iterator[Entry]:
        """Iterate over the entries."""
        return iter(self.entries.values())

    def __len__(self) -> int:
        """Count the cases."""
        return len(self.entries)


def build_store(
    cases: Sequence[Case],
    folder: Path,
    preparation: Preparation,
    read_reference: Callable[[Case, Grid], Mask],
    settings: Mapping[str, Any],
    progress: Callable[[Case], None] | None = None,
    hashes: Hashes | None = None,
) -> SliceStore:
    """Prepare the slices of all cases, or find them prepared: in this store or in one beside it.

    Several cases are prepared at once, by processes of their own, when that pays.

    Args:
        cases: with their references.
        folder: of the store; made when absent, shared by any number of runs.
        preparation: of the scans. Its context plays no part: it is added when a slice is read.
        read_reference: gives a case's mask on the grid of its first scan; a function of some module, or a partial one.
        settings: plain types: whatever else the reference depends on (the label table, whether masks are resampled).
        progress: called after each case.
        hashes: remembers those of the files.

    Raises:
        InputError: DATA-EMPTY when no case is fit.
        RunError: RUN-WRITE when the disk refuses.
    """
    hashes = hashes or Hashes()
    others = stores_beside(folder)
    found = {case.id: _found(case, folder, others, preparation, settings, hashes) for case in cases}
    new = [case for case in cases if isinstance(found[case.id], Path)]
    processes = processes_for(len(new), 2, VOXEL_BYTES * max((case.voxels for case in new), default=0))
    jobs = [(case, found[case.id], read_reference, preparation) for case in new]
    made = call_spread(prepare_or_reason, jobs, WORKER_S, processes)
    entries: dict[str, Entry] = {}
    rejected: dict[str, InputError] = {}
    for case in cases:
        entry = next(made) if isinstance(found[case.id], Path) else found[case.id]
        if isinstance(entry, Entry):
            entries[case.id] = entry
        elif isinstance(entry, InputError):
            rejected[case.id] = entry
            log.warning("%s is left out: %s", case.id, entry)
        if progress:
            progress(case)
    if not entries:
        raise InputError("DATA-EMPTY", "", f"none of {len(cases)} cases could be prepared", "Run medseg check.")
    return SliceStore(entries, rejected)


def stores_beside(folder: Path) -> list[Path]:
    """Return the stores of the runs that lie beside the run of a store: `run-2/prepared` for `run-1/prepared`."""
    return sorted(other for other in folder.parent.parent.glob(f"*/{folder.name}") if other != folder)


def _found(
    case: Case,
    folder: Path,
    others: Sequence[Path],
    preparation: Preparation,
    settings: Mapping[str, Any],
    hashes: Hashes,
) -> Entry | Path | InputError:
    """Return the entry of a case, the place where it is to be made, or why it cannot be."""
    try:
        key = _key(case, preparation, settings, hashes)
    except InputError as error:
        return error
    for place in (folder / key, *(other / key for other in others)):
        entry = _find(case.id, place, hashes)
        if entry is not None:
            return entry if place.parent == folder else _linked(entry, folder / key) or folder / key
    return folder / key


def _linked(entry: Entry, place: Path) -> Entry | None:
    """Give an entry of another store a second name in this one: it stays when the other is deleted."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name in (*ARRAYS, RECORD):
            (place / name).unlink(missing_ok=True)
            (place / name).hardlink_to(entry.folder / name)
    except OSError:  # another disk, or a file system without links
        return None
    return replace(entry, folder=place)


def prepare_or_reason(
    case: Case, place: Path, read_reference: Callable[[Case, Grid], Mask], preparation: Preparation
) -> Entry | InputError:
    """Prepare one case: what a process is asked for."""
    try:
        volume = read_case(case.scans)
        return _make(case.id, place, volume, read_reference(case, volume.grid), preparation)
    except InputError as error:
        return error


# ------------------------------------------------------------------------------------------------------------ the key


def _key(case: Case, preparation: Preparation, settings: Mapping[str, Any], hashes: Hashes) -> str:
    """Return 32 hex digits that change whenever the case's slices would."""
    references = [item if isinstance(item, Path) else item.path for item in case.references]
    inputs = {
        "format": FORMAT,
        "versions": {name: version(name) for name in ("medseg", "monai", "torch")},
        "preparation": replace(preparation, context=0).to_dict(),
        "settings": dict(settings),
        "scans": [[hashes.of(path) for path in scan.files] for scan in case.scans],
        "references": [hashes.of(path) for path in references],
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, allow_nan=False).encode()).hexdigest()[:32]


# ------------------------------------------------------------------------------------------------------------- entries


def _find(case: str, place: Path, hashes: Hashes) -> Entry | None:
    """Return a whole entry, None when there is none or it is damaged."""
    try:
        record = json.loads((place / RECORD).read_text(encoding="utf-8"))
        whole = all(hashes.of(place / name) == record["sha256"][name] for name in ARRAYS)
        n, m, h, w = (int(size) for size in record["shape"])
        slices = {int(label): tuple(map(int, indices)) for label, indices in record["slices"].items()}
        blank = tuple(map(int, record["blank"]))
    except FileNotFoundError:
        return None
    except (OSError, InputError, ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        log.warning("%s: its stored slices are damaged and made again", case)
        return None
    return Entry(case, place, (n, m, h, w), slices, blank)


def _make(case: str, place: Path, volume: Volume, reference: Mask, preparation: Preparation) -> Entry:
    masks = prepare_reference(reference, preparation)
    h, w, n = working_grid(volume.grid, preparation).shape
    shape = (n, len(volume.voxels), h, w)
    hashes = {
        "images.npy": _write_npy(place / "images.npy", shape, np.dtype("<f2"), _halves(volume, preparation)),
        "masks.npy": _write_npy(place / "masks.npy", masks.shape, np.dtype("u1"), [masks]),
    }
    slices = {int(label): _slices_with(masks, label) for label in np.unique(masks) if label not in (0, UNANNOTATED)}
    blank = tuple(int(index) for index in np.flatnonzero((masks == UNANNOTATED).all(axis=(1, 2))))
    named = {str(label): indices for label, indices in slices.items()}
    record = {"shape": shape, "slices": named, "blank": blank, "sha256": hashes}
    write_text(place / RECORD, json.dumps(record, indent=1) + "\n")
    return Entry(case, place, shape, slices, blank)


def _slices_with(masks: NDArray[np.uint8], label: np.uint8) -> tuple[int, ...]:
    return tuple(int(index) for index in np.flatnonzero((masks == label).any(axis=(1, 2))))


def _halves(volume: Volume, preparation: Preparation) -> Iterator[NDArray[np.float16]]:
    """Yield the prepared slices as float16: steps of 0.001 at 1 standard deviation, far below the noise of any scan."""
    for block in prepared_blocks(volume, replace(preparation, context=0)):
        yield block.images.clamp(-FLOAT16_MAX, FLOAT16_MAX).numpy().astype("<f2")


def _write_npy(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], blocks: Iterable[NDArray[np.generic]]) -> str:
    """Write an array in blocks of its first axis, atomically; return its hash.

    Plain writes, not a memory map: on a full disk a map ends the process (SIGBUS) where a write raises.
    """
    with atomic_path(path) as partial:
        with partial.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(file, header)
            for block in blocks:
                file.write(np.ascontiguousarray(block, dtype=dtype).data)
        return Hashes().of(partial)

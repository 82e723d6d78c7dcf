"""The door to NIfTI files: strict reading, verified writing.

Reading takes nothing on trust. The gzip checksum is checked, sizes are compared with the file before memory is taken,
an sform and a qform that contradict each other are refused, and no memory map is used (another process that rewrites
the file would change, or kill, the reader). Voxels come as they are stored, or in the smallest type that is exact.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from nibabel.nifti1 import Nifti1Header
from numpy.typing import NDArray

from medseg.errors import InputError, MaskError, NiftiError, RunError, UsageError
from medseg.grid import Grid
from medseg.io.atomic import PARTIAL_PREFIX, atomic_path
from medseg.io.free import free_memory
from medseg.io.nifti_bytes import DEFLATE_RATIO, Source, oversized, regular, truncated
from medseg.io.nifti_header import LABEL_INTENT, Header, Notes, header_for, parse
from medseg.volume import Mask, Volume

Numbers = NDArray[Any]
"""Voxels of whatever type a file stores."""

MAX_VOXELS = 1 << 31
"""2048 slices of 1024 x 1024: no clinical scan is larger, and 8 GiB as float32 is what a workstation holds."""

BOMB_VOXELS, BOMB_RATIO = 1 << 30, 200
"""A volume this large that shrinks this much holds nothing: scanner noise stays below 20:1. Smaller
ones may be blank masks."""

GZIP_LEVEL = 4
"""Between speed and size: a mask of 512 x 512 x 120 takes 42 kB (level 1: 153 kB, 6: 37 kB), a CT of that size is
written and verified in 1.1 s of CPU time (level 1: 0.9 s, 6: 2.4 s)."""

NEAR_INTEGER = 1e-3
"""Labels within this of a whole number are that number: scaled storage (254 * float32(1/127)) leaves 1e-7, some
resamplers 2e-4; interpolation between two labels leaves far more."""

KEPT_TYPES = frozenset(["u1", "i2", "u2", "i4", "f4"])
"""Types that voxels keep; all others are turned into one of these, or into float64, whichever is exact."""

_ENDINGS = re.compile(r"\.(nii|hdr)(\.gz)?\Z", re.IGNORECASE)
_VOXEL_ENDINGS = (".img", ".img.gz", ".IMG", ".IMG.GZ")


def is_nifti(path: Path) -> bool:
    """Whether a file is one to read as NIfTI, by its name alone (`.nii`, `.hdr` of a pair, and either with `.gz`).

    AppleDouble companions (`._scan.nii.gz`) and medseg's own unfinished files are not.
    """
    hidden = path.name.startswith(("._", PARTIAL_PREFIX))
    return not hidden and nifti_stem(path) not in ("", path.name)


def nifti_stem(path: Path) -> str:
    """Return the file's name without `.nii`, `.nii.gz`, `.hdr` or `.hdr.gz`, in any case."""
    return _ENDINGS.sub("", path.name)


def read_header(path: Path) -> tuple[Grid, Notes]:
    """Read the geometry of a file and judge its header; no voxel is read.

    Returns:
        The grid (RAS+, mm) and the warnings.

    Raises:
        NiftiError: NIFTI-READ, NIFTI-GEOMETRY, NIFTI-TYPE, NIFTI-DIMENSIONS, NIFTI-SIZE.
    """
    header = inspect(path)
    return header.grid, header.notes


def inspect(path: Path) -> Header:
    """Read all that a header says, judged; errors as `read_header`."""
    with _opened(path) as (header, _):
        return header


def read_volume(path: Path) -> Volume:
    """Read one scan.

    Returns:
        Voxels `(1, i, j, k)`, native byte order, scaled by scl_slope and scl_inter, in the stored type or the smallest
        that is exact (scaled fractions: float32, the precision of the slope). In memory i runs fastest, as in the file.

    Raises:
        NiftiError: as `read_header`, and NIFTI-CHECKSUM, NIFTI-VALUES for NaN or infinity.
    """
    numbers, grid = read_numbers(path)
    return Volume(numbers[np.newaxis], grid)


def read_numbers(path: Path) -> tuple[Numbers, Grid]:
    """Read the numbers `(i, j, k)` of a file, whatever they mean, and their grid; types and errors as `read_volume`."""
    with _opened(path) as (header, source):
        _check_memory(header, path)
        raw = np.empty(header.count, header.dtype)
        source.skip(header.offset)
        source.fill(raw.view(np.uint8).data)
        source.finish(header.slice_bytes)
    if not header.dtype.isnative:
        raw = raw.byteswap(inplace=True).view(header.dtype.newbyteorder("="))
    stored = raw.reshape(header.grid.shape, order="F")
    return _exact(stored, header.slope, header.inter, path), header.grid


def read_mask(path: Path) -> Mask:
    """Read label numbers; floating-point files are accepted when every value is a whole number within `NEAR_INTEGER`.

    Raises:
        NiftiError: as `read_volume`.
        MaskError: MASK-VALUES for fractions, negative numbers and numbers above 65535.
    """
    numbers, grid = read_numbers(path)
    return Mask(to_labels(numbers, str(path)), grid)


def to_labels(numbers: Numbers, where: str) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Turn numbers of any type and shape into label numbers, uint8 where they fit, else uint16.

    Raises:
        MaskError: MASK-VALUES for fractions, negative numbers and numbers above 65535.
    """
    whole = np.rint(numbers) if numbers.dtype.kind == "f" else numbers
    wrong = (whole < 0) | (whole > np.iinfo(np.uint16).max)
    if numbers.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, which compares false, and is wrong
            wrong |= ~(np.abs(numbers - whole) <= NEAR_INTEGER)
    if wrong.any():
        examples = ", ".join(f"{value:g}" for value in np.unique(numbers[wrong])[:5])
        problem = f"{np.count_nonzero(wrong)} voxels are no label number (such as {examples}); wanted 0 to 65535"
        raise MaskError("MASK-VALUES", where, problem, "Export the mask again without interpolation or scaling.")
    if whole.max(initial=0) <= np.iinfo(np.uint8).max:
        return whole.astype(np.uint8)
    return whole.astype(np.uint16)


def write_mask(path: Path, mask: Mask) -> None:
    """Write a mask as `.nii` or `.nii.gz`: one file, verified before it gets its name.

    sform and qform carry the grid with code 1, units are millimetres, the intent is "labels" (so that a mask among
    scans is known for what it is, whatever its name), and no text field is filled. Equal masks give equal bytes. A
    rotation within 0.1 degrees or so of a half turn, which float32 quaternions cannot hold (b, c, d leave the last
    component uncertain), goes into the sform alone.

    Raises:
        InputError: GRID-SHEAR when the grid is sheared, which a qform cannot carry.
        UsageError: USAGE-PATH for another ending.
        RunError: RUN-WRITE when the file cannot be written, or does not read back as written.
    """
    _write(path, mask.labels, mask.grid, LABEL_INTENT)


def write_volume(path: Path, volume: Volume) -> None:
    """Write a volume of one channel, as `write_mask` does but without an intent.

    The voxels' type is kept, or the smallest exact one taken.

    Raises:
        InputError: GRID-SHEAR for a sheared grid, GRID-SHAPE for several channels.
        UsageError: USAGE-PATH for another ending.
        RunError: RUN-WRITE.
    """
    if volume.voxels.shape[0] != 1:
        problem = f"{volume.voxels.shape[0]} channels, wanted one"
        raise InputError("GRID-SHAPE", str(path), problem, "Write each channel to its own file.")
    _write(path, volume.voxels[0], volume.grid)


# Opening ----------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Header, Source]]:
    """Give the header and the bytes that `header.offset` counts from; the operating system's refusals become ours."""
    try:
        with ExitStack() as stack:
            start = Source(stack.enter_context(regular(path)), path)
            raw = start.take(540)
            header = parse(raw, start.zipped, path)
            if header.paired:
                source = Source(stack.enter_context(regular(_voxel_file(path))), path)
            else:
                source = start
                source.give_back(raw)
            _check_size(header, source, path)
            yield header, source
    except OSError as error:
        reason = error.strerror or str(error)
        raise NiftiError(
            "NIFTI-READ", str(path), f"cannot be read: {reason}", "Check the file and its rights."
        ) from error


def _voxel_file(header: Path) -> Path:
    """The other file of a pair; its usual name where there is none."""
    found = [path for ending in _VOXEL_ENDINGS if (path := header.with_name(nifti_stem(header) + ending)).exists()]
    return found[0] if found else header.with_name(nifti_stem(header) + ".img")


def _check_size(header: Header, source: Source, path: Path) -> None:
    """Compare what the header claims with what the file can hold, before any memory is taken.

    Raises:
        NiftiError: NIFTI-SIZE, or NIFTI-READ when a plain file is truncated.
    """
    if header.count > MAX_VOXELS:
        raise oversized(path, f"{header.count:,} voxels, the limit is {MAX_VOXELS:,}")
    held = source.size * DEFLATE_RATIO if source.zipped else source.size
    if header.bytes > held:
        found = f"the header claims {header.bytes:,} bytes, the file of {source.size:,} bytes can hold {held:,} at most"
        raise truncated(path, found) if not source.zipped else oversized(path, found)
    if source.zipped and header.count > BOMB_VOXELS and header.bytes > BOMB_RATIO * source.size:
        raise oversized(path, f"{header.count:,} voxels in a file of {source.size:,} bytes: nothing was scanned there")
    if not source.zipped and source.size - header.bytes >= header.slice_bytes:
        raise oversized(path, "one slice or more follows the voxels that the header describes")


def _check_memory(header: Header, path: Path) -> None:
    """Refuse what does not fit in the memory that is free now.

    Raises:
        NiftiError: NIFTI-SIZE.
    """
    free = free_memory()
    needed = header.count * (header.dtype.itemsize + (0 if _is_kept(header.dtype, header.slope, header.inter) else 4))
    if free is not None and needed > free:
        raise oversized(path, f"the voxels need {needed:,} bytes of memory, {free:,} are free")


# Values -----------------------------------------------------------------------------------------------------------


def _is_kept(dtype: np.dtype[np.generic], slope: float, inter: float) -> bool:
    return (slope, inter) == (1.0, 0.0) and dtype.str[1:] in KEPT_TYPES


def _exact(stored: Numbers, slope: float, inter: float, path: Path) -> Numbers:
    """Return the true values `(i, j, k)` in the stored type where that is kept, else in the smallest exact one.

    Two passes over blocks of slices: the first finds range and type, the second converts, so that no full array of
    float64 is held beside the result.

    Raises:
        NiftiError: NIFTI-VALUES for NaN, infinity, or integers beyond 2^53.
    """
    kept = _is_kept(stored.dtype, slope, inter)
    if kept and stored.dtype.kind != "f":
        return stored
    facts = [_facts(block, slope, inter) for block in _blocks(stored)]
    odd = sum(fact.odd for fact in facts)
    if odd:
        problem = f"{odd:,} of {stored.size:,} voxels are NaN or infinite"
        raise NiftiError("NIFTI-VALUES", str(path), problem, "Replace them where the scan was processed.")
    if kept:
        return stored
    scaled = (slope, inter) != (1.0, 0.0)
    values = np.empty(stored.shape, _smallest(facts, scaled, path), order="F")
    for source, target in zip(_blocks(stored), _blocks(values), strict=True):
        target[...] = _true(source, slope, inter)
    return values


@dataclass(frozen=True)
class _Facts:
    """About a block of values: how many are not finite, their range, whether all are whole, and exact as float32."""

    odd: int
    low: float
    high: float
    whole: bool
    single: bool


def _facts(stored: Numbers, slope: float, inter: float) -> _Facts:
    values = _true(stored, slope, inter)
    odd = values.size - int(np.count_nonzero(np.isfinite(values)))
    if odd:
        return _Facts(odd, 0, 0, False, False)
    whole = values.dtype.kind != "f" or bool((values == np.rint(values)).all())
    with np.errstate(over="ignore"):  # beyond float32's range: infinite, hence not equal
        single = bool((values.astype(np.float32) == values).all())
    return _Facts(0, values.min().item(), values.max().item(), whole, single)


def _smallest(facts: list[_Facts], scaled: bool, path: Path) -> type[np.number]:
    """Choose the type that holds every value: integers first, then float32 (always for scaled fractions), float64."""
    low, high = min(fact.low for fact in facts), max(fact.high for fact in facts)
    if all(fact.whole for fact in facts):
        for kind in (np.uint8, np.int16, np.uint16, np.int32):
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return kind
        if max(-low, high) > 2**53:  # float64 holds every integer up to here
            raise NiftiError(
                "NIFTI-VALUES", str(path), f"values up to {high:g}, wanted less than 2^53", "Export it again."
            )
    if scaled or all(fact.single for fact in facts):
        return np.float32
    return np.float64


def _true(stored: Numbers, slope: float, inter: float) -> Numbers:
    if (slope, inter) == (1.0, 0.0):
        return stored
    return stored.astype(np.float64) * slope + inter


def _blocks(voxels: Numbers) -> Iterator[Numbers]:
    """Give views of a few slices each, about a mebi-voxel."""
    step = max(1, (1 << 20) // (voxels.shape[0] * voxels.shape[1]))
    for start in range(0, voxels.shape[2], step):
        yield voxels[:, :, start : start + step]


# Writing ----------------------------------------------------------------------------------------------------------


def _write(path: Path, values: Numbers, grid: Grid, intent: int = 0) -> None:
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise UsageError("USAGE-PATH", str(path), "wanted a name that ends in .nii or .nii.gz")
    if grid.is_sheared:
        problem = f"the grid is sheared by {grid.shear_mm:.2f} mm at the corners, which a qform cannot carry"
        raise InputError("GRID-SHEAR", str(path), problem, "Resample the scan to a grid with right angles first.")
    if max(grid.shape) > np.iinfo(np.int16).max:
        raise RunError("RUN-WRITE", str(path), f"the shape {grid.shape} does not fit the 16-bit fields of NIfTI-1")
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    try:
        values = values if _is_kept(values.dtype, 1.0, 0.0) else _exact(values, 1.0, 0.0, path)
    except NiftiError as error:
        raise RunError("RUN-WRITE", str(path), f"cannot be written as NIfTI: {error.problem}") from error
    header = header_for(grid, values.dtype)
    header["intent_code"] = intent
    with atomic_path(path, ".nii.gz" if path.name.lower().endswith(".gz") else ".nii") as partial:
        _store(partial, header, values)
        _verify(partial, values, grid, path)


def _store(path: Path, header: Nifti1Header, values: Numbers) -> None:
    """Write header and voxels, i fastest. The gzip header gets neither time nor name: equal content, equal bytes."""
    little = values.dtype.newbyteorder("<")
    with ExitStack() as stack:
        file: BinaryIO = stack.enter_context(path.open("wb"))
        if path.suffix == ".gz":
            zipped = gzip.GzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=file, mtime=0)
            file = cast(BinaryIO, stack.enter_context(zipped))
        file.write(header.binaryblock + b"\0\0\0\0")
        for block in _blocks(values):
            file.write(block.astype(little, copy=False).tobytes(order="F"))


def _verify(partial: Path, values: Numbers, grid: Grid, path: Path) -> None:
    """Open what was written and compare it with what was meant.

    Raises:
        RunError: RUN-WRITE.
    """
    try:
        read, place = read_numbers(partial)
    except NiftiError as error:
        raise RunError("RUN-WRITE", str(path), f"does not read back: {error.problem}", "Check the disk.") from error
    if not place.same_place(grid) or read.dtype != values.dtype or not np.array_equal(read, values):
        raise RunError("RUN-WRITE", str(path), "did not read back as written", "Check the disk.")

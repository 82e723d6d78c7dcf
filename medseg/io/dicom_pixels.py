"""Decoding of pixel data and the modality values (HU, ...); every frame is checked against its header.

Uncompressed pixels are read as they lie in the file; compressed ones go through pydicom's codecs, the JPEG family of
ISO 10918 through SimpleITK, in processes of their own: a damaged or hostile code stream may crash a codec written in C.
"""

from __future__ import annotations

import logging
import struct
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, SecondaryCaptureImageStorage, generate_uid

from medseg.errors import DicomError
from medseg.io.dicom_extent import JPEG, JPEG_2000, JPEG_LS, PLUGINS, PixelElement, list_fragments
from medseg.io.dicom_frames import Frame
from medseg.io.dicom_headers import Header
from medseg.io.dicom_open import PARSE_ERRORS, open_data_set, quiet
from medseg.io.workers import call_all, processes_for

logger = logging.getLogger(__name__)
Numbers = NDArray[Any]

EXACT_INTEGERS = (np.uint8, np.int16, np.uint16, np.int32)
"""Types for volumes of whole numbers, in the order of preference."""

WORKING_INTEGERS = ((np.int16, 2**15), (np.int32, 2**31), (np.int64, 2**53))
"""Types for rescaling, and what each holds exactly, floats included: the smallest moves the least memory."""

ADVICE = "Export the series again from its source."


FRAMES_TO_PAY = 40
"""Compressed frames that pay for one more process: 0.8 s of start against 20 ms for each (512 x 512, JPEG 2000)."""

BATCH_BYTES = 8 * 2**20
"""Decoded frames that one answer of a process may hold, so that its memory does not grow with a file's frames."""

Run = tuple[Header, Sequence[int]]
"""A file and the numbers of some of its frames."""


def stored_runs(runs: Sequence[Run]) -> Iterator[Numbers]:
    """Yield the stored values `(rows, columns)` of frames of several files in order, as `stored_frames` does.

    Compressed frames are decoded in other processes, several at a time.

    Raises:
        DicomError: as `stored_frames`; DICOM-PIXELS when a codec crashes.
    """
    if all(header.pixels is None or header.pixels.is_native for header, _ in runs):
        for header, numbers in runs:
            yield from stored_frames(header, numbers)
        return
    batches = [batch for run in runs for batch in _batches(*run)]
    processes = processes_for(sum(len(numbers) for _, numbers in batches), FRAMES_TO_PAY)
    answers = call_all(decode_batch, batches, processes)
    for (header, _), frames in zip(batches, answers, strict=True):
        if frames is None:
            problem = "the codec crashed on the pixels, or did not come to an end"
            raise DicomError("DICOM-PIXELS", header.path.name, problem, ADVICE)
        yield from frames


def _batches(header: Header, numbers: Sequence[int]) -> Iterator[tuple[Header, tuple[int, ...]]]:
    size = max(1, BATCH_BYTES // max(1, header.pixels.frame_bytes if header.pixels else 1))
    size *= header.pixels.tiles**2 if header.pixels else 1  # the slices of a mosaic come together
    bare = header.with_frames(())  # the frames' descriptions are not needed to decode
    for start in range(0, len(numbers), size):
        yield bare, tuple(numbers[start : start + size])


def decode_batch(header: Header, numbers: Sequence[int]) -> list[Numbers]:
    """`stored_frames` as a list: what a process is asked for."""
    return list(stored_frames(header, numbers))


def stored_frames(header: Header, numbers: Sequence[int]) -> Iterator[Numbers]:
    """Yield the stored values `(rows, columns)` of some frames of one file.

    Overlay bits above the stored ones are cleared, and signed values extended from their own sign bit (PS3.5 8.1.1).

    Raises:
        DicomError: DICOM-READ or DICOM-PIXELS when the file does not hold what its header says.
    """
    pixels = header.pixels
    if pixels is None:
        raise DicomError("DICOM-PIXELS", header.path.name, "the file holds no pixel data", ADVICE)
    try:
        with open_data_set(header.path) as data:
            for raw in _raw_frames(pixels, data, [0] if pixels.tiles > 1 else numbers):
                values = _significant_bits(_checked(raw, pixels), pixels)
                yield from _tiles(values, pixels, numbers) if pixels.tiles > 1 else [values]
    except DicomError as error:
        raise DicomError(error.code, header.path.name, error.problem, ADVICE) from error
    except PARSE_ERRORS as error:
        logger.debug("decoding failed", exc_info=True)
        problem = f"the pixels cannot be decoded ({type(error).__name__})"
        raise DicomError("DICOM-PIXELS", header.path.name, problem, ADVICE) from error


def _tiles(mosaic: Numbers, pixels: PixelElement, numbers: Sequence[int]) -> Iterator[Numbers]:
    """Some slices of a mosaic, counted row by row."""
    high, wide = pixels.slice_shape
    for number in numbers:
        down, right = divmod(number, pixels.tiles)
        yield mosaic[down * high : (down + 1) * high, right * wide : (right + 1) * wide]


def _raw_frames(pixels: PixelElement, data: BinaryIO, numbers: Sequence[int]) -> Iterator[Numbers]:
    if pixels.is_native:
        for number in numbers:
            yield _native_frame(pixels, data, number)
        return
    streams = _code_streams(pixels, data)
    if len(streams) != pixels.frames:
        raise DicomError("DICOM-PIXELS", "", f"{len(streams)} compressed images for {pixels.frames} frames")
    for number in numbers:
        yield _decode(pixels, streams[number](data))


def _native_frame(pixels: PixelElement, data: BinaryIO, number: int) -> Numbers:
    raw = _swapped_bytes(pixels, data, number) if pixels.swapped else _plain_bytes(pixels, data, number)
    if len(raw) != pixels.frame_bytes:
        raise DicomError("DICOM-READ", "", "the file ends inside its pixel data")
    order = "<" if pixels.little_endian else ">"
    stored = np.frombuffer(raw, dtype=f"{order}u{pixels.allocated // 8}")
    return stored.astype(stored.dtype.newbyteorder("="), copy=False).reshape(pixels.rows, pixels.columns)


def _plain_bytes(pixels: PixelElement, data: BinaryIO, number: int) -> bytes:
    data.seek(pixels.offset + number * pixels.frame_bytes)
    return data.read(pixels.frame_bytes)


def _swapped_bytes(pixels: PixelElement, data: BinaryIO, number: int) -> bytes:
    """A frame of bytes out of big-endian words; a word may hold the end of one frame and the start of the next."""
    start = number * pixels.frame_bytes
    data.seek(pixels.offset + start - start % 2)
    words = data.read((start % 2 + pixels.frame_bytes + 1) // 2 * 2)
    return np.frombuffer(words, ">u2").astype("<u2").tobytes()[start % 2 :][: pixels.frame_bytes]


class _Stream:
    """One frame's code stream, in one or more fragments; called, it reads the bytes."""

    def __init__(self, fragments: Sequence[tuple[int, int]]) -> None:
        self.fragments = fragments

    def __call__(self, data: BinaryIO) -> bytes:
        parts = []
        for offset, length in self.fragments:
            data.seek(offset)
            parts.append(data.read(length))
        return b"".join(parts)


def _code_streams(pixels: PixelElement, data: BinaryIO) -> list[_Stream]:
    """Share the fragments out among the frames: all to one, one to each, or by their end markers."""
    size = data.seek(0, 2)
    fragments = list_fragments(pixels, data, size)
    if pixels.frames == 1:
        return [_Stream(fragments)]
    if len(fragments) == pixels.frames:
        return [_Stream([fragment]) for fragment in fragments]
    frames: list[list[tuple[int, int]]] = [[]]
    for offset, length in fragments:
        frames[-1].append((offset, length))
        data.seek(offset + max(0, length - 16))
        if data.read(min(length, 16)).rstrip(b"\0").endswith(b"\xff\xd9"):
            frames.append([])
    return [_Stream(parts) for parts in frames if parts]


def _decode(pixels: PixelElement, stream: bytes) -> Numbers:
    if pixels.syntax in JPEG:
        return _decode_jpeg(pixels, stream)
    if pixels.syntax in JPEG_2000:
        _check_jpeg2000(stream)
        _check_size(pixels, _jpeg2000_size(stream))
    if pixels.syntax in JPEG_LS:
        _check_size(pixels, _jpeg_size(stream))
    options: dict[str, Any] = {
        "rows": pixels.rows,
        "columns": pixels.columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "photometric_interpretation": pixels.photometric or "MONOCHROME2",
        "bits_allocated": pixels.allocated,
        "bits_stored": pixels.stored,
        "pixel_representation": int(pixels.signed),
        "pixel_keyword": "PixelData",
    }
    decoder = get_decoder(UID(pixels.syntax))
    plugin = PLUGINS.get(pixels.syntax, "")
    with quiet():
        array, _ = decoder.as_array(
            encapsulate([stream], has_bot=False), index=0, raw=True, decoding_plugin=plugin, **options
        )
    return np.asarray(array)


def _check_jpeg2000(stream: bytes) -> None:
    """Refuse a code stream whose tile-parts reach beyond its end: a tolerant decoder fills the rest with nothing.

    Source: ISO/IEC 15444-1 A.4.2: marker SOT (FF 90), Lsot 2, Isot 2, Psot 4 bytes: length of the tile-part from the
        marker's first byte; 0 for "up to the end".
    """
    end = len(stream.rstrip(b"\0"))
    at = stream.find(b"\xff\x90\x00\x0a")
    if at < 0 or not stream[:end].endswith(b"\xff\xd9"):
        raise DicomError("DICOM-PIXELS", "", "the JPEG 2000 image is cut short")
    while stream[at : at + 2] == b"\xff\x90":
        length = int.from_bytes(stream[at + 6 : at + 10], "big")
        if length == 0:
            return
        at += length
    if stream[at : at + 2] != b"\xff\xd9":
        raise DicomError("DICOM-PIXELS", "", "the JPEG 2000 image is cut short")


def _decode_jpeg(pixels: PixelElement, stream: bytes) -> Numbers:
    """Decode ISO 10918 JPEG through SimpleITK, in a file that holds the image and nothing else of the header.

    SimpleITK applies rescale and inverts MONOCHROME1; without those elements it returns what is stored.
    """
    import SimpleITK as sitk  # noqa: N813  0.3 s, which few scans need

    _check_jpeg(pixels, stream)
    with tempfile.TemporaryDirectory(prefix="medseg-") as folder:
        path = Path(folder) / "frame.dcm"
        _bare_file(pixels, stream).save_as(path, enforce_file_format=True)
        image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
        array: Numbers = sitk.GetArrayFromImage(image)
    return array.reshape(array.shape[-2:]) if array.ndim == 3 and array.shape[0] == 1 else array


def _check_jpeg(pixels: PixelElement, stream: bytes) -> None:
    """Refuse a stream without its end marker, or of another size than the header's."""
    if not stream.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise DicomError("DICOM-PIXELS", "", "the JPEG image is cut short")
    _check_size(pixels, _jpeg_size(stream))


def _check_size(pixels: PixelElement, size: tuple[int, int, int] | None) -> None:
    """Refuse a code stream of another size than the header's, which a codec would take memory for."""
    if size is None:
        raise DicomError("DICOM-PIXELS", "", "the compressed image has no frame header")
    wanted = (pixels.rows, pixels.columns, 1)
    if size != wanted:
        found, hoped = (f"{rows} x {columns} x {samples}" for rows, columns, samples in (size, wanted))
        raise DicomError("DICOM-PIXELS", "", f"the compressed image has {found} values, wanted {hoped}")


def _jpeg_size(stream: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and components by the frame header of a JPEG (SOF0 to SOF3) or JPEG-LS (SOF55) stream.

    Source: ISO/IEC 10918-1 B.2.2: marker, length 2, precision 1, lines 2, samples per line 2, components 1 byte.
    """
    at = 2
    while at + 10 <= len(stream) and stream[at] == 0xFF:
        if stream[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        if stream[at + 1] in (0xC0, 0xC1, 0xC2, 0xC3, 0xF7):
            rows, columns, components = struct.unpack(">HHB", stream[at + 5 : at + 10])
            return rows, columns, components
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return None


def _jpeg2000_size(stream: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and components by the marker SIZ, the first after SOC (ISO/IEC 15444-1 A.5.1)."""
    at = stream.find(b"\xff\x4f\xff\x51", 0, 512)  # some writers leave the boxes of a JP2 file before it
    if at < 0 or len(stream) < at + 42:
        return None
    right, bottom, left, top = struct.unpack(">4L", stream[at + 8 : at + 24])
    return bottom - top, right - left, int.from_bytes(stream[at + 40 : at + 42], "big")


def _bare_file(pixels: PixelElement, stream: bytes) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(pixels.syntax)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Rows, dataset.Columns = pixels.rows, pixels.columns
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored = pixels.allocated, pixels.stored
    dataset.HighBit, dataset.PixelRepresentation = pixels.high_bit, int(pixels.signed)
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    return dataset


def _checked(raw: Numbers, pixels: PixelElement) -> Numbers:
    """The decoded frame as unsigned words of the allocated size, once its shape is right."""
    if raw.shape != (pixels.rows, pixels.columns):
        problem = f"a decoded image has the shape {raw.shape}, wanted {(pixels.rows, pixels.columns)}"
        raise DicomError("DICOM-PIXELS", "", problem)
    if raw.dtype.kind not in "iu" or raw.dtype.itemsize * 8 > max(pixels.allocated, 16):
        raise DicomError("DICOM-PIXELS", "", f"a decoded image holds {raw.dtype} numbers, wanted integers")
    return raw.astype(f"u{pixels.allocated // 8}", copy=False)


def _significant_bits(words: Numbers, pixels: PixelElement) -> Numbers:
    """Values from words: bits above the high bit are overlays or padding, the high bit is the sign (PS3.5 8.1.1)."""
    shift = pixels.high_bit + 1 - pixels.stored
    if shift or pixels.stored < pixels.allocated:
        words = (words >> words.dtype.type(shift)) & words.dtype.type((1 << pixels.stored) - 1)
    if not pixels.signed:
        return words
    signed = words.view(f"i{words.dtype.itemsize}")
    spare = signed.dtype.type(pixels.allocated - pixels.stored)  # of the same type, or numpy would widen the result
    return (signed << spare) >> spare if spare else signed


def modality_values(stored: Numbers, frame: Frame) -> Numbers:
    """Apply one frame's rescale: stored value times slope plus intercept, as whole numbers when they are whole.

    Returns:
        An integer type when slope and intercept are integers, or when every value is; float64 otherwise.

    Source: PS3.3 C.11.1.1.2.
    """
    slope, intercept = frame.slope, frame.intercept
    if slope == 1 and intercept == 0:
        return stored
    if slope.is_integer() and intercept.is_integer():
        times, plus = int(slope), int(intercept)
        least, most = int(stored.min()), int(stored.max())
        steps = (least, most, times, plus, times * least, times * most, times * least + plus, times * most + plus)
        for holder, limit in WORKING_INTEGERS:
            if -limit <= min(steps) and max(steps) < limit:
                values = stored.astype(holder)
                np.multiply(values, holder(times), out=values)
                np.add(values, holder(plus), out=values)
                return values
    return stored.astype(np.float64) * slope + intercept


def stack_values(slices: Iterable[Numbers], count: int, rows: int, columns: int) -> Numbers:
    """Gather slices into `(k, rows, columns)` of the smallest type that holds all of them exactly.

    Whole numbers become uint8, int16, uint16 or int32, beyond that float64; any fraction makes the volume float32.
    """
    stack: Numbers = np.empty((count, rows, columns), dtype=np.int16)
    low, high, whole = 0, 0, True
    filled = 0
    for number, values in enumerate(slices):
        if values.dtype.kind == "f" and np.array_equal(values, np.rint(values)):
            values = values.astype(np.int64) if np.abs(values).max(initial=0) < 2**53 else values
        whole = whole and values.dtype.kind in "iu"
        least, most = values.min(), values.max()
        low, high = (least, most) if number == 0 else (min(low, least), max(high, most))
        wanted = _holder(int(low), int(high), stack.dtype) if whole else np.dtype(np.float32)
        if stack.dtype != wanted:
            stack = stack.astype(wanted)
        stack[number] = values
        filled += 1
    if filled != count:
        raise DicomError("DICOM-CHANGED", "", f"{filled} slices were read, wanted {count}")
    return stack.astype(_final(whole, int(low) if whole else 0, int(high) if whole else 0), copy=False)


def _holder(low: int, high: int, current: np.dtype[Any]) -> np.dtype[Any]:
    """The type to go on with: the current one when it holds the range, else a wider one."""
    for candidate in (current, *map(np.dtype, EXACT_INTEGERS[1:])):
        if candidate.kind in "iu" and np.iinfo(candidate).min <= low and high <= np.iinfo(candidate).max:
            return candidate
    return np.dtype(np.float64)


def _final(whole: bool, low: int, high: int) -> np.dtype[Any]:
    if not whole:
        return np.dtype(np.float32)
    for candidate in EXACT_INTEGERS:
        if np.iinfo(candidate).min <= low and high <= np.iinfo(candidate).max:
            return np.dtype(candidate)
    return np.dtype(np.float64)

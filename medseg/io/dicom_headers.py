"""One DICOM file's header: what it is, where its frames lie, where its pixels are. No pixel is decoded here.

The header is parsed by pydicom up to the pixel data; values are taken as stored bytes and read here, because a header
in the wild holds decimal commas, `nan`, numbers under VR UN and undecodable names, and none of them may raise or be
guessed. Everything in this module is LPS and (row, column), as stored.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Literal

from pydicom.dataset import Dataset
from pydicom.filereader import read_partial

from medseg.errors import DicomError
from medseg.io.dicom_body_parts import body_part
from medseg.io.dicom_elements import IMPLICIT, Parsed, read_plain
from medseg.io.dicom_end import UNDEFINED, HeaderEnd, breaks_off
from medseg.io.dicom_extent import LOSSY, PixelElement, check_extent
from medseg.io.dicom_frames import CREATOR_TAGS, MARK_TAGS, Frame, frame_of, macros_of
from medseg.io.dicom_mosaic import (
    IMAGE_HEADER,
    IMAGES,
    SERIES_HEADER,
    counted_slices,
    is_mosaic,
    place_tiles,
    tiles_across,
)
from medseg.io.dicom_open import (
    BUFFER_BYTES,
    PARSE_ERRORS,
    hidden_dicom,
    inflated,
    looks_like_dicom,
    open_regular,
    quiet,
    size_of,
)
from medseg.io.dicom_values import Source, bytes_of, decoded, integer, items, stand_in, text

RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
SLICE_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "enhanced CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "legacy converted CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "enhanced MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "legacy converted MR",
    "1.2.840.10008.5.1.4.1.1.128": "PET",
    "1.2.840.10008.5.1.4.1.1.130": "enhanced PET",
    "1.2.840.10008.5.1.4.1.1.128.1": "legacy converted PET",
}
"""Storage classes whose instances are slices even when a damaged header no longer shows it (PS3.4 B.5)."""

NOT_SCANS = {
    "1.2.840.10008.1.3.10": "a directory of media (DICOMDIR)",
    "1.2.840.10008.5.1.4.1.1.481.1": "a radiotherapy portal image",
    "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose grid",
    "1.2.840.10008.5.1.4.1.1.66": "raw data",
}
"""Objects with or without pixels that are never scans; objects without rows and columns need no entry."""

_WANTED = frozenset(
    [
        *(0x00080005, 0x00080008, 0x00080016, 0x00080018, 0x00080060, 0x0008103E, 0x00100010, 0x00100020, 0x00100030),
        *(0x0020000D, 0x0020000E, 0x00200011, 0x00200013, 0x00200032, 0x00200037, 0x00200052, 0x00201002, 0x00540081),
        *(0x00180015, 0x00209162, 0x00209163, 0x00201209),
        *(0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011, 0x00280030, 0x00280100, 0x00280101, 0x00280102),
        *(0x00280103, 0x00280301, 0x00281052, 0x00281053, 0x00283000, 0x00282110, IMAGES, IMAGE_HEADER, 0x52009229),
        0x52009230,
        *(0x30060010, 0x30060020, 0x00620002, 0x00081115),
        *(tag for tags in MARK_TAGS.values() for tag in tags),
        *CREATOR_TAGS,
    ]
)


@dataclass(frozen=True)
class Header:
    """What one file says, without its pixels.

    Attributes:
        path: the file.
        kind: `image`, a reference object, another `object`, or `damaged` (no series can be read from it).
        image: stands for SOPInstanceUID among the files of its series, "" when absent.
        patient: stands for patient id and name among the files of its series, to tell patients apart.
        group: hash of the patient id alone, "" when absent.
        born: stands for the birth date among the files of its series, "" when absent.
        body_part: a term of the standard, "" when absent or none.
        pixels: where and how the pixels are stored; None when there are none.
        frames: the images in it, in stored order.
        count: how many images the acquisition is said to have, 0 when unsaid.
        slices: how many slices each volume of a PET series is said to have, 0 when unsaid.
        total: how many images the whole series is said to have, 0 when unsaid.
        parts: into how many files a multi-frame object was divided (PS3.3 C.7.6.16.2.2.4), 0 when it was not.
        code: why the file is unfit, "" when it is fit.
        reason: the same in words.
        notes: (code, message) of what is odd but harmless.
    """

    path: Path
    kind: Literal["image", "rtstruct", "dicom-seg", "object", "damaged"] = "damaged"
    sop_class: str = ""
    image: str = field(default="", repr=False)
    modality: str = ""
    series_uid: str = field(default="", repr=False)
    study_uid: str = field(default="", repr=False)
    frame_uid: str = field(default="", repr=False)
    patient: str = field(default="", repr=False)
    group: str = field(default="", repr=False)
    born: str = field(default="", repr=False)
    description: str = field(default="", repr=False)
    body_part: str = ""
    series_number: int | None = None
    instance: int | None = None
    count: int = 0
    slices: int = 0
    total: int = 0
    parts: int = 0
    pixels: PixelElement | None = None
    frames: tuple[Frame, ...] = ()
    names: tuple[str, ...] = field(default=(), repr=False)
    series_uids: frozenset[str] = field(default=frozenset(), repr=False)
    code: str = ""
    reason: str = ""
    notes: tuple[tuple[str, str], ...] = ()

    def with_frames(self, frames: tuple[Frame, ...]) -> Header:
        """The same file with only some of its frames."""
        return replace(self, frames=frames)


def read_header(path: Path) -> Header | None:
    """Read one file's header; None when it is not DICOM.

    A file that is DICOM, or may have been, but cannot be used comes back with `code` and `reason`.
    """
    try:
        with open_regular(path) as handle:
            head = handle.peek(BUFFER_BYTES)
            if not head:
                return _damaged(path, "the file is empty")
            if not looks_like_dicom(head):
                obstacle = hidden_dicom(head)
                return _damaged(path, obstacle) if obstacle else None
            if breaks_off(handle, head):
                return _damaged(path, "the header breaks off in zeros")
            with inflated(handle, path.name) as data:
                return _parse(path, head, data)
    except DicomError as error:
        return Header(path, code=error.code, reason=error.problem)
    except OSError as error:
        return _damaged(path, f"the file cannot be read ({error.strerror or error})")
    except PARSE_ERRORS as error:
        return _damaged(path, f"the header cannot be parsed ({type(error).__name__})")


def _damaged(path: Path, reason: str) -> Header:
    return Header(path, code="DICOM-READ", reason=reason)


def _parse(path: Path, head: bytes, data: BinaryIO) -> Header | None:
    """Parse up to the pixel data, then say what the file is."""
    size, bare = size_of(data), head[128:132] != b"DICM"
    plain = read_plain(head, data, size, _WANTED)
    if plain is not None:
        return _judge(path, data, size, plain, bare)
    with quiet():
        return _judge(path, data, size, _parse_any(data, size), bare)


def _judge(path: Path, data: BinaryIO, size: int, parsed: Parsed, bare: bool) -> Header | None:
    """Say what the file is, and whether it can be read. A bare data set that names no object is not DICOM."""
    if bare and not text(parsed.elements, 0x00080016) and not text(parsed.elements, 0x0020000E):
        return None
    header = _describe(path, parsed, data)
    if header.kind == "image" and header.pixels is None and not header.series_uid:
        return replace(header, kind="damaged")  # cut before it names its series
    if header.kind != "image" or header.code or header.pixels is None:
        return header
    code, reason, note = check_extent(header.pixels, data, size)
    if not code and not note:
        return header
    notes = (*header.notes, ("DICOM-PADDING", note)) if note else header.notes
    return replace(header, code=code, reason=reason, notes=notes)


def _parse_any(data: BinaryIO, size: int, wanted: Iterable[int] = _WANTED) -> Parsed:
    """Parse by pydicom, up to the pixel data or to what cannot be read on."""
    end = HeaderEnd(data, size, wanted)
    data.seek(0)
    dataset = read_partial(data, stop_when=end, force=True, specific_tags=list(wanted))
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", "")).strip(" \0")
    implicit, little = dataset.original_encoding
    return Parsed(dataset, syntax, bool(implicit), bool(little), end.tag, end.vr, end.offset, end.length, end.fault)


def _describe(path: Path, parsed: Parsed, data: BinaryIO) -> Header:
    """Make the header of any object; images get their frames."""
    source = parsed.elements
    sop_class, series_uid = text(source, 0x00080016), text(source, 0x0020000E)
    header = Header(
        path,
        kind=_kind(sop_class, source),
        sop_class=sop_class,
        image=stand_in(bytes_of(source, 0x00080018), series_uid),
        modality=text(source, 0x00080060)[:16],
        series_uid=series_uid,
        study_uid=text(source, 0x0020000D),
        frame_uid=text(source, 0x00200052),
        patient=stand_in(_normal_name(source), series_uid),
        group=_hash(bytes_of(source, 0x00100020).strip(b" \0")),
        born=stand_in(bytes_of(source, 0x00100030).strip(b" \0"), series_uid),
        description=decoded(source, 0x0008103E),
        body_part=body_part(text(source, 0x00180015)),
        series_number=integer(source, 0x00200011),
        instance=integer(source, 0x00200013),
        count=integer(source, 0x00201002) or 0,
        slices=integer(source, 0x00540081) or 0,
        total=integer(source, 0x00201209) or 0,
        parts=integer(source, 0x00209163) or integer(source, 0x00209162) or 0,
    )
    if header.kind == "image":
        return _describe_image(header, parsed, data)
    if header.kind in ("rtstruct", "dicom-seg"):
        return _describe_reference(header, source)
    if header.kind == "object" and not sop_class and not header.series_uid:
        return replace(header, kind="damaged", code="DICOM-READ", reason="the header is cut short")
    return replace(header, reason=NOT_SCANS.get(sop_class, "an object without slices"))


def _kind(sop_class: str, source: Source) -> Literal["image", "rtstruct", "dicom-seg", "object"]:
    if sop_class == RTSTRUCT_CLASS:
        return "rtstruct"
    if sop_class in SEG_CLASSES:
        return "dicom-seg"
    if sop_class in NOT_SCANS:
        return "object"
    has_size = bool(integer(source, 0x00280010) and integer(source, 0x00280011))
    return "image" if sop_class in SLICE_CLASSES or has_size else "object"


def _describe_image(header: Header, parsed: Parsed, data: BinaryIO) -> Header:
    source = parsed.elements
    notes = _oddities(parsed)
    if parsed.fault:
        return replace(header, notes=notes, code="DICOM-READ", reason=parsed.fault)
    if parsed.offset < 0 or parsed.tag != 0x7FE00010:
        found = "no pixel data" if parsed.offset < 0 else "pixel data of floating-point numbers, wanted integers"
        return replace(header, notes=notes, code="DICOM-PIXELS", reason=f"the file holds {found}")
    pixels = _pixel_element(parsed)
    if integer(source, 0x00280103) not in (0, 1):
        reason = "the header does not say whether pixels are signed"
        return replace(header, notes=notes, pixels=pixels, code="DICOM-PIXELS", reason=reason)
    if pixels.frames > 1 or 0x52009230 in source:
        return _with_functional_frames(replace(header, notes=notes, pixels=pixels), source)
    header = replace(header, notes=notes, pixels=pixels, frames=(frame_of(header.path, 0, [source]),))
    return _with_tiles(header, source, pixels, data) if is_mosaic(source) else header


def _with_tiles(header: Header, source: Source, pixels: PixelElement, data: BinaryIO) -> Header:
    """Take the slices of a mosaic apart."""
    slices = counted_slices(source)
    with quiet():
        protocol = bytes_of(_parse_any(data, size_of(data), (SERIES_HEADER,)).elements, SERIES_HEADER)
    frames = place_tiles(header.frames[0], pixels.rows, pixels.columns, slices, protocol)
    if not frames:
        reason = "a mosaic: many slices tiled into one image, and its header does not prove where they lie"
        return replace(header, code="DICOM-MOSAIC", reason=reason)
    return replace(header, frames=frames, pixels=replace(pixels, tiles=tiles_across(slices)))


def _with_functional_frames(header: Header, source: Source) -> Header:
    """Take the frames of a multi-frame file from its functional groups (PS3.3 C.7.6.16)."""
    claimed = header.pixels.frames if header.pixels else 0
    shared = next(iter(items(source, 0x52009229)), Dataset())
    groups = items(source, 0x52009230)
    if not groups:
        reason = f"{claimed} frames without a place in the patient"
        return replace(header, code="DICOM-MULTIFRAME", reason=reason, frames=(frame_of(header.path, 0, [source]),))
    if len(groups) != claimed:
        reason = f"{claimed} frames, but {len(groups)} descriptions of frames"
        return replace(header, code="DICOM-MULTIFRAME", reason=reason)
    common = [*macros_of(shared), source]
    frames = (frame_of(header.path, n, [*macros_of(group), *common]) for n, group in enumerate(groups))
    return replace(header, frames=tuple(frames))


def _pixel_element(parsed: Parsed) -> PixelElement:
    source = parsed.elements
    allocated = integer(source, 0x00280100) or 0
    stored = integer(source, 0x00280101) or allocated
    high = integer(source, 0x00280102)
    return PixelElement(
        offset=parsed.offset,
        length=None if parsed.length == UNDEFINED else parsed.length,
        syntax=parsed.syntax or (IMPLICIT if parsed.implicit else "1.2.840.10008.1.2.1"),
        little_endian=parsed.little,
        rows=integer(source, 0x00280010) or 0,
        columns=integer(source, 0x00280011) or 0,
        frames=integer(source, 0x00280008) or 1,
        samples=integer(source, 0x00280002) or 1,
        photometric=text(source, 0x00280004).upper(),
        allocated=allocated,
        stored=stored,
        high_bit=stored - 1 if high is None else high,
        signed=integer(source, 0x00280103) == 1,
        swapped=allocated == 8 and not parsed.little and parsed.vr == "OW",
    )


def _oddities(parsed: Parsed) -> tuple[tuple[str, str], ...]:
    source, notes = parsed.elements, []
    if text(source, 0x00280301).upper() == "YES":
        notes.append(("DICOM-BURNED", "text is burned into the pixels, maybe a name: look before sharing pictures"))
    if text(source, 0x00280004).upper() == "MONOCHROME1":
        notes.append(("DICOM-INVERTED", "stored for inverted display (MONOCHROME1); the values are kept as they are"))
    if text(source, 0x00282110) == "01" or parsed.syntax in LOSSY:
        notes.append(("DICOM-LOSSY", "the pixels were once compressed with loss"))
    if 0x00283000 in source:
        notes.append(("DICOM-RESCALE", "a modality lookup table instead of slope and intercept"))
    return tuple(notes)


def _describe_reference(header: Header, source: Source) -> Header:
    """Names of structures or segments, and the series and frame of reference that they refer to."""
    if header.kind == "dicom-seg":
        names = [decoded(item, 0x00620005) for item in items(source, 0x00620002)]
        uids = {text(item, 0x0020000E) for item in items(source, 0x00081115)}
        return replace(header, names=tuple(names), series_uids=frozenset(uids - {""}))
    names = [decoded(item, 0x30060026) for item in items(source, 0x30060020)]
    frames = items(source, 0x30060010)
    studies = [study for item in frames for study in items(item, 0x30060012)]
    uids = {text(series, 0x0020000E) for study in studies for series in items(study, 0x30060014)}
    frame_uid = header.frame_uid or next((uid for item in frames if (uid := text(item, 0x00200052))), "")
    return replace(header, names=tuple(names), series_uids=frozenset(uids - {""}), frame_uid=frame_uid)


def _hash(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()[:12] if value else ""


def _normal_name(source: Source) -> bytes:
    """Patient id and name without the differences of spelling that one patient's slices may show."""
    name = unicodedata.normalize("NFC", decoded(source, 0x00100010).partition("=")[0]).casefold()
    words = " ".join(name.replace("^", " ").split())
    return (bytes_of(source, 0x00100020).strip(b" \0") + b"\0" + words.encode("utf-8", "replace")).strip(b"\0")

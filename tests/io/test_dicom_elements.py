"""Plain headers are read as pydicom reads them, damaged ones too; what is not plain is left to pydicom."""

from __future__ import annotations

import functools
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from medseg.io import dicom_headers
from medseg.io.dicom_elements import DEEPEST, Parsed, read_plain
from medseg.io.dicom_headers import Header
from medseg.io.dicom_open import BUFFER_BYTES, PARSE_ERRORS
from tests.phantoms import compress, enhanced, save, series


def one(depth: int = 0, undefined: bool = True, private: int = 0) -> Dataset:
    """A slice; with sequences in sequences, and with private data of some size before its geometry."""
    dataset = series(slices=1, size=(4, 5))[0]
    dataset.SeriesDescription = "T1 axial "
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.AcquisitionDate, dataset.AcquisitionTime, dataset.EchoTime = "20240229", "101500.5", "12.5"
    inner = dataset
    for _ in range(depth):
        item = Dataset()
        item.ReferencedSOPInstanceUID, item.PixelData = "1.2.3", b"12"  # an icon has pixel data of its own
        item["PixelData"].VR = "OB"
        item.is_undefined_length_sequence_item = undefined
        inner.ReferencedImageSequence = Sequence([item])
        inner["ReferencedImageSequence"].is_undefined_length = undefined
        inner = item
    if private:
        dataset.private_block(0x0009, "MAKER", create=True).add_new(0x10, "OB", b"p" * private)
    return dataset


FILES: dict[str, tuple[Callable[[], Dataset], str, bool]] = {
    "explicit": (one, ExplicitVRLittleEndian, True),
    "implicit": (one, ImplicitVRLittleEndian, True),
    "compressed": (lambda: compress([one()], RLELossless)[0], RLELossless, True),
    "items with delimiters": (lambda: one(depth=3), ExplicitVRLittleEndian, True),
    "implicit items with delimiters": (lambda: one(depth=3), ImplicitVRLittleEndian, True),
    "items with lengths": (lambda: one(depth=3, undefined=False), ExplicitVRLittleEndian, True),
    "much private data": (lambda: one(private=2 * BUFFER_BYTES), ExplicitVRLittleEndian, True),
    "too much of it": (lambda: one(private=2**21), ExplicitVRLittleEndian, False),
    "deep": (lambda: one(depth=DEEPEST + 1), ExplicitVRLittleEndian, False),
    "big-endian": (one, ExplicitVRBigEndian, False),
    "deflated": (one, DeflatedExplicitVRLittleEndian, False),
    "frames": (lambda: enhanced(series(slices=3, size=(4, 5))), ExplicitVRLittleEndian, True),
}


def header_by(reader: Callable[..., Parsed | None], content: bytes) -> Header | str | None:
    """What `read_header` makes of a file's bytes with one of the two parsers; the kind of its error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dicom_headers, "read_plain", reader)
        try:
            return dicom_headers._parse(Path("a.dcm"), content[:BUFFER_BYTES], io.BytesIO(content))
        except PARSE_ERRORS:
            return "unreadable"


def plain(content: bytes) -> Parsed | None:
    return read_plain(content[:BUFFER_BYTES], io.BytesIO(content), len(content), {0x00080005})


def pydicom_only(*_: object) -> None:
    """Find nothing plain."""


@functools.cache
def stored(name: str) -> bytes:
    make, syntax, _ = FILES[name]
    with tempfile.TemporaryDirectory() as folder:
        return save([make()], Path(folder), syntax)[0].read_bytes()


@pytest.mark.parametrize("name", FILES)
def test_plain_headers_are_as_pydicom_reads_them(name: str) -> None:
    content = stored(name)
    if name != "deflated":  # which is inflated before it is parsed
        ours = header_by(read_plain, content)
        assert isinstance(ours, Header)
        assert ours.pixels is not None
        assert ours == header_by(pydicom_only, content)
    assert (plain(content) is not None) == FILES[name][2]


@pytest.mark.parametrize("name", ["explicit", "implicit", "items with delimiters", "implicit items with delimiters"])
@settings(max_examples=150)
@given(data=st.data())
def test_damaged_headers_are_as_pydicom_reads_them(name: str, data: st.DataObject) -> None:
    content = bytearray(stored(name))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(128, len(content) - 1))
        content[at] = data.draw(st.sampled_from([0, 1, 0x20, 0x41, 0x7F, 0xFF, content[at] ^ 1]))
    cut = data.draw(st.one_of(st.just(len(content)), st.integers(132, len(content))))
    damaged = bytes(content[:cut])
    assert header_by(read_plain, damaged) == header_by(pydicom_only, damaged)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("implicit items with delimiters", b"\x08\0\x40\x11\xff", b"\x08\0\x40\x10\xff"),  # a text without a length
        ("implicit", b"\x08\0\x05\0\x0a\0\0\0ISO", b"\x08\0\x05\0\x0a\0\0\0\0SO"),
        ("explicit", b"\x02\0\x10\0UI", b"\x02\0\x11\0UI"),  # no transfer syntax
        ("explicit", b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2\0\0"),  # a wrong one
        ("implicit", b"1.2.840.10008.1.2\0", b"1.2.840.10008.1.9\0"),
        ("explicit", b"\x28\0\x10\0US\x02\0", b"\x28\0\x10\0US\xff\xff"),  # beyond the end
        ("explicit", b"\x28\0\x10\0US", b"\x28\0\x10\0XX"),
    ],
)
def test_odd_headers_are_left_to_pydicom(name: str, old: bytes, new: bytes) -> None:
    content = stored(name)
    assert old in content
    odd = content.replace(old, new, 1)
    assert plain(odd) is None
    assert header_by(read_plain, odd) == header_by(pydicom_only, odd)


@pytest.mark.realdata
def test_real_headers_are_as_pydicom_reads_them(shared_data: Path) -> None:
    count = 0
    for path in sorted(shared_data.glob("zoo/**/*")) + sorted(shared_data.glob("sarcoma_mr_t1/dicom/*/*/*"))[::20]:
        if path.is_file() and path.suffix not in (".gz", ".nii", ".json", ".md", ".txt"):
            content = path.read_bytes()
            assert header_by(read_plain, content) == header_by(pydicom_only, content), path
            count += plain(content) is not None
    assert count > 100

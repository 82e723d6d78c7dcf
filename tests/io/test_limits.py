"""Hostile and broken input in a process of its own: refused in seconds, with memory bounded, the rest read."""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from medseg.grid import Grid
from medseg.io.nifti_header import header_for
from tests.phantoms import compress, save, series

LIMIT_BYTES = 2_500_000_000
SECONDS = 120  # a few on an idle machine

PROGRAM = """
import json, resource, sys
from pathlib import Path
from medseg.errors import InputError
from medseg.scan import find_scans, read
told = {}
for scan in find_scans(Path(sys.argv[1])):
    try:
        read(scan)
        told[scan.case_id] = "ok"
    except InputError as error:
        told[scan.case_id] = error.code
most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(json.dumps([told, most * 1024]))
"""


def outcome(folder: Path) -> tuple[dict[str, str], int]:
    """Codes by case id, and the most memory that the process or one that it started took, in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2 * LIMIT_BYTES, 2 * LIMIT_BYTES)),
    )
    told, most = json.loads(done.stdout.splitlines()[-1])
    return told, most


def nifti_header(shape: tuple[int, int, int]) -> bytes:
    return bytes(header_for(Grid(shape, np.diag([1.0, 1, 1, 1])), np.dtype("u1")).binaryblock) + bytes(4)


def zeros(squeeze: zlib._Compress, count: int) -> bytes:
    """So many mebibytes of zeros as the stream goes on; after a full flush, equal blocks have equal bytes."""
    start = squeeze.flush(zlib.Z_FULL_FLUSH)
    return start + count * (squeeze.compress(bytes(2**20)) + squeeze.flush(zlib.Z_FULL_FLUSH))


def gzip_bomb(folder: Path) -> None:
    """2.2 GB of zeros in 2 MB, as the header says."""
    folder.mkdir(parents=True)
    squeeze = zlib.compressobj(9, wbits=31)
    data = squeeze.compress(nifti_header((1200, 1200, 1504))) + zeros(squeeze, 1200 * 1200 * 1504 // 2**20 + 1)
    (folder / "bomb.nii.gz").write_bytes(data)


def gzip_surplus(folder: Path) -> None:
    """A small scan, and 1 GiB that no header mentions."""
    folder.mkdir(parents=True)
    squeeze = zlib.compressobj(9, wbits=31)
    data = squeeze.compress(nifti_header((8, 7, 6)) + bytes(8 * 7 * 6)) + zeros(squeeze, 1024)
    (folder / "surplus.nii.gz").write_bytes(data)


def deflate_bomb(folder: Path) -> None:
    """1 GiB in a private element of a deflated slice."""
    path = save(series(slices=4, size=(8, 8)), folder, DeflatedExplicitVRLittleEndian)[2]
    data = path.read_bytes()
    start = 144 + struct.unpack("<L", data[140:144])[0]
    inner = zlib.decompress(data[start:], -15)
    at = inner.index(b"\x28\x00\x02\x00US")
    squeeze = zlib.compressobj(9, wbits=-15)
    private = struct.pack("<HH2sHL", 0x0027, 0x1001, b"OB", 0, 2**30)
    bomb = squeeze.compress(inner[:at] + private) + zeros(squeeze, 1024)
    path.write_bytes(data[:start] + bomb + squeeze.compress(inner[at:]) + squeeze.flush())


def claim(**values: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        datasets = series(slices=4, size=(8, 8))
        for keyword, value in values.items():
            setattr(datasets[2], keyword, value)
        save(datasets, folder)

    return make


def compressed_claim(syntax: str) -> Callable[[Path], None]:
    """A compressed slice whose header, and code stream, say 30000 x 30000."""

    def make(folder: Path) -> None:
        datasets = compress(series(slices=4), syntax)
        datasets[2].Rows = datasets[2].Columns = 30000
        if syntax == JPEG2000Lossless:
            stream = bytearray(datasets[2].PixelData[16:])
            stream[8:16] = struct.pack(">LL", 30000, 30000)
            datasets[2].PixelData = encapsulate([bytes(stream)])
        save(datasets, folder)

    return make


def nested(folder: Path) -> None:
    path = save(series(slices=4, size=(8, 8)), folder)[2]
    data = path.read_bytes()
    at = data.index(b"\x28\x00\x02\x00US")
    opening = struct.pack("<HH2sHLHHL", 0x0027, 0x1010, b"SQ", 0, 2**32 - 1, 0xFFFE, 0xE000, 2**32 - 1)
    closing = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    path.write_bytes(data[:at] + opening * 20000 + closing * 20000 + data[at:])


def pipe(folder: Path) -> None:
    save(series(slices=4, size=(8, 8)), folder)
    os.mkfifo(folder / "IM0009.dcm")
    os.mkfifo(folder / "x.nii.gz")


def many_fragments(folder: Path) -> None:
    """Many empty fragments behind the compressed pixels of one slice: slow to walk, and right."""
    datasets = compress(series(slices=4, size=(8, 8)), RLELossless)
    path = save(datasets, folder)[2]
    data = path.read_bytes()
    at = data.rindex(b"\xfe\xff\xdd\xe0")
    path.write_bytes(data[:at] + struct.pack("<HHL", 0xFFFE, 0xE000, 0) * 300_000 + data[at:])


def long_element(tag: tuple[int, int], vr: bytes) -> Callable[[Path], None]:
    """2 GiB in one element that is read, in a sparse file."""

    def make(folder: Path) -> None:
        path = save(series(slices=4, size=(8, 8)), folder)[2]
        data = path.read_bytes()
        head = data[: data.index(b"\x28\x00\x02\x00US")] + struct.pack("<HH2sHL", *tag, vr, 0, 2**31)
        path.write_bytes(head)
        os.truncate(path, len(head) + 2**31)

    return make


def turned_to_zeros(folder: Path) -> None:
    """3 GiB of zeros, sparse: behind the mark, and behind the file meta group."""
    paths = save(series(slices=4, size=(8, 8)), folder)
    for path, kept in ((paths[2], 132), (paths[3], 0)):
        data = path.read_bytes()
        path.write_bytes(data[: kept or 144 + struct.unpack("<L", data[140:144])[0]])
        os.truncate(path, 3 * 2**30)


def many_items(folder: Path) -> None:
    """Three million empty items in 24 MB."""
    path = save(series(slices=4, size=(8, 8)), folder)[2]
    data = path.read_bytes()
    at = data.index(b"\xe0\x7f\x10\x00")
    opening, closing = (
        struct.pack("<HH2sHL", 0x5200, 0x9230, b"SQ", 0, 2**32 - 1),
        struct.pack("<HHL", 0xFFFE, 0xE0DD, 0),
    )
    path.write_bytes(data[:at] + opening + struct.pack("<HHL", 0xFFFE, 0xE000, 0) * 3_000_000 + closing + data[at:])


def many_elements(folder: Path) -> None:
    path = save(series(slices=4, size=(8, 8)), folder)[2]
    data = path.read_bytes()
    at = data.index(b"\x28\x00\x02\x00US")
    path.write_bytes(data[:at] + struct.pack("<HH2sH", 0x0027, 0x1001, b"LO", 0) * 3_000_000 + data[at:])


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "gz_bomb": (gzip_bomb, "NIFTI-SIZE"),
    "gz_surplus": (gzip_surplus, "NIFTI-SIZE"),
    "deflate_bomb": (deflate_bomb, "DICOM-SIZE"),
    "rows_and_columns": (claim(Rows=65535, Columns=65535), "DICOM-SIZE"),
    "frames": (claim(NumberOfFrames=2_000_000_000), "DICOM-MULTIFRAME"),
    "nested": (nested, "DICOM-READ"),
    "jpeg2000_claim": (compressed_claim(JPEG2000Lossless), "DICOM-SIZE"),
    "rle_claim": (compressed_claim(RLELossless), "DICOM-SIZE"),
    "fragments": (many_fragments, "ok"),
    "long_text": (long_element((0x0020, 0x0010), b"UN"), "DICOM-PIXELS"),
    "long_header": (long_element((0x0029, 0x1010), b"OB"), "DICOM-READ"),
    "long_sequence": (long_element((0x5200, 0x9230), b"SQ"), "DICOM-READ"),
    "zeros": (turned_to_zeros, "DICOM-READ"),
    "items": (many_items, "DICOM-READ"),
    "elements": (many_elements, "DICOM-READ"),
    "pipe": (pipe, "ok"),
}


def test_hostile_input_is_refused_with_little_memory_and_the_rest_is_read(tmp_path: Path) -> None:
    """All at once, beside a sound series: one process, the batch goes on."""
    for name, (make, _) in HOSTILE.items():
        make(tmp_path / "in" / name)
    save(series(slices=4, size=(8, 8)), tmp_path / "in" / "sound")
    told, most = outcome(tmp_path / "in")
    assert told.pop("sound") == "ok"
    assert most < LIMIT_BYTES
    wanted = {name: code for name, (_, code) in HOSTILE.items()}
    assert {next(key for key in wanted if name.startswith(key)): code for name, code in told.items()} == wanted

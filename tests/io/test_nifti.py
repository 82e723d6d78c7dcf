from __future__ import annotations

import contextlib
import gzip
import math
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from medseg.codes import CODES
from medseg.errors import InputError, MaskError, NiftiError, RunError, UsageError
from medseg.grid import Grid
from medseg.io import nifti
from medseg.io.atomic import PARTIAL_PREFIX
from medseg.io.nifti import (
    inspect,
    is_nifti,
    nifti_stem,
    read_header,
    read_mask,
    read_numbers,
    read_volume,
    to_labels,
    write_mask,
    write_volume,
)
from medseg.io.nifti_bytes import holds_nifti
from medseg.io.nifti_header import header_for
from medseg.scan import find_scans, read
from medseg.volume import Mask, Volume
from tests.strategies import AFFINES, GRIDS, affine

SHAPE = (6, 5, 4)
OBLIQUE = affine("LPS", (12, -17, 23), (0.7, 0.9, 2.5), (30, -40, 100))
# byte offsets in nifti1.h
DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE, INTER, UNITS = 40, 70, 76, 108, 112, 116, 123
QFORM_CODE, SFORM_CODE, QUATERN_B, SROW_X, MAGIC = 252, 254, 256, 280, 344

Patch = tuple[int, str, object]


def phantom(shape: tuple[int, ...] = SHAPE, dtype: str = "i2") -> np.ndarray:
    """Every voxel another value: no flip or transpose goes unseen."""
    return np.arange(math.prod(shape)).reshape(shape, order="F").astype(dtype)


def image(voxels: np.ndarray, matrix: np.ndarray = OBLIQUE, order: str = "<", version: int = 1) -> bytes:
    """A single-file NIfTI made by nibabel: sform and qform with code 1."""
    kind = nib.Nifti1Header if version == 1 else nib.Nifti2Header
    header = kind(endianness=order)
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header.set_sform(matrix, 1)
    header.set_qform(matrix, 1)
    header.set_xyzt_units("mm")
    header["vox_offset"] = 352 if version == 1 else 544
    header["scl_slope"], header["scl_inter"] = math.nan, math.nan
    return header.binaryblock + bytes(4) + voxels.astype(voxels.dtype.newbyteorder(order)).tobytes(order="F")


def patched(data: bytes, *patches: Patch) -> bytes:
    content = bytearray(data)
    for offset, form, value in patches:
        values = value if isinstance(value, (tuple, list)) else (value,)
        struct.pack_into("<" + form, content, offset, *values)
    return bytes(content)


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """Write bytes to a file, compressed when the name ends in .gz."""

    def write(data: bytes, name: str = "case.nii") -> Path:
        path = tmp_path / name
        path.write_bytes(gzip.compress(data, 1) if name.endswith(".gz") else data)
        return path

    return write


def fails(path: Path, code: str, words: str = ".") -> None:
    with pytest.raises(NiftiError, match=words) as error:
        read_volume(path)
    assert error.value.code == code
    assert error.value.where == str(path)


# --- read right -------------------------------------------------------------------------------------------------------


@given(GRIDS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_agrees_with_nibabel_over_orientations(tmp_path, grid):
    path = tmp_path / "any.nii"
    voxels = phantom(grid.shape)
    nib.save(nib.Nifti1Image(voxels, grid.affine), path)
    volume = read_volume(path)
    assert np.array_equal(volume.voxels[0], voxels)
    assert np.allclose(volume.grid.affine, nib.load(path).affine, atol=1e-6)
    assert volume.grid.same_place(grid)


@given(AFFINES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_qform_alone_agrees_with_nibabel(tmp_path, matrix):
    path = tmp_path / "any.nii"
    path.write_bytes(patched(image(phantom(), matrix), (SFORM_CODE, "h", 0), (SROW_X, "12f", [0.0] * 12)))
    # Where the fourth component of the quaternion is nearly 0, libraries round it to 0 at different points.
    assert np.allclose(read_header(path)[0].affine, nib.load(path).affine, atol=0.02)


@pytest.mark.parametrize("name", ["case.nii", "case.nii.gz"])
def test_baseline(put, name):
    path = put(image(phantom()), name)
    grid, notes = read_header(path)
    volume = read_volume(path)
    assert notes == ()
    assert volume.voxels.shape == (1, *SHAPE)
    assert volume.voxels.dtype == np.int16
    assert np.array_equal(volume.voxels[0], phantom())
    assert np.allclose(grid.affine, OBLIQUE, atol=1e-5)
    assert volume.grid.same_place(grid, 0)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
def test_byte_orders_and_versions(put, order, version):
    volume = read_volume(put(image(phantom(), order=order, version=version)))
    assert volume.voxels.dtype.isnative
    assert np.array_equal(volume.voxels[0], phantom())
    assert np.allclose(volume.grid.affine, OBLIQUE, atol=1e-5)


@pytest.mark.parametrize("keep", ["sform", "qform"])
def test_one_form_is_enough(put, keep):
    other = QFORM_CODE if keep == "sform" else SFORM_CODE
    grid, notes = read_header(put(patched(image(phantom()), (other, "h", 0))))
    assert np.allclose(grid.affine, OBLIQUE, atol=1e-4)
    assert notes == ()


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        *[("u1", "u1"), ("i1", "u1"), ("i2", "i2"), ("u2", "u2"), ("i4", "i4"), ("u4", "u1")],
        *[("i8", "u1"), ("u8", "u1"), ("f4", "f4"), ("f8", "u1")],
    ],
)
def test_types(put, stored, kept):
    voxels = read_volume(put(image(phantom(dtype=stored)))).voxels
    assert voxels.dtype == np.dtype(kept)
    assert np.array_equal(voxels[0], phantom(dtype=stored))


@pytest.mark.parametrize(
    ("stored", "low", "high", "kept"),
    [
        ("i8", -1, 255, "i2"),
        ("i8", 0, 65535, "u2"),
        ("i8", -1, 65535, "i4"),
        ("u4", 0, 2**32 - 1, "f8"),  # too large for int32, and float32 has 24 bits
        ("i8", 0, 2**31, "f4"),  # a power of two is exact in float32
        ("f8", -1024, 3071, "i2"),
        ("f8", 0, 0.5, "f4"),
        ("f8", 0, 0.1, "f8"),
        ("f8", 0.1, 1e300, "f8"),  # beyond the range of float32
    ],
)
def test_smallest_exact_type(put, stored, low, high, kept):
    stored_voxels = np.full(SHAPE, low, stored)
    stored_voxels[0, 0, 0] = high
    voxels = read_volume(put(image(stored_voxels))).voxels
    assert voxels.dtype == np.dtype(kept)
    assert np.array_equal(voxels[0], stored_voxels)


def test_refuses_integers_that_no_type_holds(put):
    voxels = np.zeros(SHAPE, "i8")
    voxels[0, 0, 0] = 2**53 + 1
    fails(put(image(voxels)), "NIFTI-VALUES", "2\\^53")


@pytest.mark.parametrize(
    ("slope", "inter", "expected", "dtype"),
    [
        (0.0, 7.0, lambda v: v, "i2"),
        (math.nan, math.nan, lambda v: v, "i2"),
        (math.nan, 5.0, lambda v: v, "i2"),
        (1.0, 0.0, lambda v: v, "i2"),
        (1.0, -1024.0, lambda v: v - 1024.0, "i2"),
        (2.5, -1024.0, lambda v: v * 2.5 - 1024, "f4"),
        (2.0, 0.0, lambda v: v * 2, "u1"),  # 0 to 2 * 119 = 238
    ],
)
def test_scaling(put, slope, inter, expected, dtype):
    voxels = read_volume(put(patched(image(phantom()), (SLOPE, "f", slope), (INTER, "f", inter)))).voxels
    assert np.array_equal(voxels[0], expected(phantom().astype(np.float64)))
    assert voxels.dtype == np.dtype(dtype)


def test_blocks_do_not_show(put, monkeypatch):
    monkeypatch.setattr(nifti, "_blocks", lambda v: (v[:, :, k : k + 1] for k in range(v.shape[2])))
    voxels = read_volume(put(patched(image(phantom()), (SLOPE, "f", 2.5), (INTER, "f", -10)))).voxels
    assert np.array_equal(voxels[0], phantom() * 2.5 - 10)


# --- read right, with a note ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "read"), [((6, 5, 4, 1), (6, 5, 4)), ((6, 5, 4, 1, 1), (6, 5, 4)), ((6, 5), (6, 5, 1))]
)
def test_axes_of_length_one(put, shape, read):
    path = put(image(phantom(shape)))
    grid, notes = read_header(path)
    assert grid.shape == read
    assert [code for code, _ in notes] == ["NIFTI-DIMENSIONS"]
    assert np.array_equal(read_volume(path).voxels[0], phantom(shape).reshape(read, order="F"))


@pytest.mark.parametrize(("code", "factor"), [(1, 1000.0), (3, 0.001)])
def test_units(put, code, factor):
    scale = np.diag([1 / factor, 1 / factor, 1 / factor, 1])
    grid, notes = read_header(put(patched(image(phantom(), scale @ OBLIQUE), (UNITS, "b", code))))
    assert np.allclose(grid.affine, OBLIQUE, rtol=1e-4, atol=1e-3)
    assert [code for code, _ in notes] == ["NIFTI-UNITS"]


@pytest.mark.parametrize("code", [0, 2])
def test_a_spacing_that_no_scanner_has_is_noted(put, code):
    """0.0007 mm, or metres that the header does not name."""
    grid, notes = read_header(
        put(patched(image(phantom(), np.diag([1e-3, 1e-3, 1e-3, 1]) @ OBLIQUE), (UNITS, "b", code)))
    )
    assert np.allclose(grid.affine[:3], OBLIQUE[:3] / 1000, atol=1e-7)
    assert [code for code, _ in notes] == ["NIFTI-UNITS"]


def test_unknown_unit_is_millimetres(put):
    grid, notes = read_header(put(patched(image(phantom()), (UNITS, "b", 0))))
    assert np.allclose(grid.affine, OBLIQUE, atol=1e-5)
    assert notes == ()


def test_shear_is_kept_and_noted(put):
    sheared = OBLIQUE @ np.array([[1, 0, 0.4, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    rows = [float(v) for v in sheared[:3].ravel()]
    grid, notes = read_header(put(patched(image(phantom()), (QFORM_CODE, "h", 0), (SROW_X, "12f", rows))))
    assert np.allclose(grid.affine, sheared, atol=1e-5)
    assert [code for code, _ in notes] == ["NIFTI-SHEAR"]


def test_shear_with_the_qform_that_fits_best(put):
    sheared = OBLIQUE @ np.array([[1, 0, 0.4, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    fitted = nib.Nifti1Header()
    fitted.set_qform(sheared, 1, strip_shears=True)
    data = image(phantom(), fitted.get_qform())
    grid, notes = read_header(put(patched(data, (SROW_X, "12f", [float(v) for v in sheared[:3].ravel()]))))
    assert np.allclose(grid.affine, sheared, atol=1e-5)
    assert [code for code, _ in notes] == ["NIFTI-SHEAR"]


def test_small_differences_of_the_forms_are_noted(put):
    moved = OBLIQUE.copy()
    moved[0, 3] += 0.2  # more than 0.05 mm, less than half of the smallest spacing, 0.35 mm
    grid, notes = read_header(put(patched(image(phantom()), (SROW_X, "12f", [float(v) for v in moved[:3].ravel()]))))
    assert np.allclose(grid.affine, moved, atol=1e-5)
    assert [code for code, _ in notes] == ["NIFTI-GEOMETRY"]


@pytest.mark.parametrize(("name", "zipped"), [("case.nii", True), ("case.nii.gz", False)])
def test_wrong_ending(tmp_path, name, zipped):
    path = tmp_path / name
    path.write_bytes(gzip.compress(image(phantom())) if zipped else image(phantom()))
    assert [code for code, _ in read_header(path)[1]] == ["NIFTI-NAME"]
    assert np.array_equal(read_volume(path).voxels[0], phantom())


@pytest.mark.parametrize("name", ["case", "case.dcm", "case.img", "case.gz"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("version", [1, 2])
def test_content_under_another_name(tmp_path, name, zipped, version):
    content = image(phantom(), version=version)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if zipped else content)
    assert holds_nifti(path)
    (scan,) = find_scans(tmp_path)
    assert [note.code for note in scan.warnings] == ["NIFTI-NAME"]
    assert np.array_equal(read(scan).voxels[0], phantom())


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"\x1f\x8b" + b"?" * 600, b"n+1\0" * 100, bytes(344) + b"ni1\0"])
def test_other_content_is_no_nifti(tmp_path, content):
    path = tmp_path / "case"
    path.write_bytes(content)
    assert not holds_nifti(path)
    assert not holds_nifti(tmp_path)
    assert not holds_nifti(tmp_path / "nothing")


def test_notes_have_known_codes():
    assert {"NIFTI-DIMENSIONS", "NIFTI-UNITS", "NIFTI-SHEAR", "NIFTI-GEOMETRY", "NIFTI-NAME"} <= CODES.keys()


@pytest.mark.parametrize(
    ("tail", "warned"),
    [(b"\0" * 600, False), (b"garbage" * 20, True), (gzip.compress(b"", mtime=0), False), (b"\x1f", True)],
)
def test_after_the_gzip_stream(tmp_path, tail, warned, caplog):
    path = tmp_path / "case.nii.gz"
    path.write_bytes(gzip.compress(image(phantom())) + tail)
    assert np.array_equal(read_volume(path).voxels[0], phantom())
    assert bool(caplog.records) is warned


def test_many_gzip_members(tmp_path):
    data = image(phantom())
    path = tmp_path / "case.nii.gz"
    path.write_bytes(b"".join(gzip.compress(data[start : start + 50]) for start in range(0, len(data), 50)))
    assert np.array_equal(read_volume(path).voxels[0], phantom())


def pair(folder: Path, *, voxels: bool = True) -> Path:
    data = patched(image(phantom()), (MAGIC, "4s", b"ni1\0"), (VOX_OFFSET, "f", 0))
    (folder / "case.hdr").write_bytes(data[:352])
    if voxels:
        (folder / "case.img").write_bytes(data[352:])
    return folder / "case.hdr"


def test_pair(tmp_path):
    volume = read_volume(pair(tmp_path))
    assert np.array_equal(volume.voxels[0], phantom())
    assert np.allclose(volume.grid.affine, OBLIQUE, atol=1e-5)


@pytest.mark.parametrize(("header", "voxels"), [("x.hdr", "x.img.gz"), ("x.hdr.gz", "x.img.gz"), ("X.HDR", "X.IMG")])
def test_names_of_pairs(tmp_path, header, voxels):
    whole = pair(tmp_path)
    for name, source in ((header, whole), (voxels, whole.with_suffix(".img"))):
        data = source.read_bytes()
        source.unlink()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert is_nifti(tmp_path / header)
    assert not is_nifti(tmp_path / voxels)
    assert np.array_equal(read_volume(tmp_path / header).voxels[0], phantom())


def test_pair_without_voxels(tmp_path):
    fails(pair(tmp_path, voxels=False), "NIFTI-READ", "No such file")


# --- refused ----------------------------------------------------------------------------------------------------------

LAS = np.diag([-1.0, 1, 1, 1]) @ np.diag([0.7, 0.9, 2.5, 1])
SHIFTED = OBLIQUE + 5 * np.eye(4, k=3)
ROTATED = affine("LPS", (12, -17, 33), (0.7, 0.9, 2.5), (30, -40, 100))


@pytest.mark.parametrize(
    ("patches", "code", "words"),
    [
        ([(SROW_X, "12f", SHIFTED[:3].ravel().tolist())], "NIFTI-GEOMETRY", "5.00 mm apart"),
        ([(SROW_X, "12f", ROTATED[:3].ravel().tolist())], "NIFTI-GEOMETRY", "mm apart"),
        ([(SROW_X, "12f", LAS[:3].ravel().tolist())], "NIFTI-GEOMETRY", r"\(LAS against LPS\)"),
        ([(QFORM_CODE, "h", 0), (SFORM_CODE, "h", 0)], "NIFTI-GEOMETRY", "orientation is unknown"),
        ([(SROW_X + 16, "4f", [0.0] * 4)], "NIFTI-GEOMETRY", "singular"),
        ([(SROW_X, "f", math.nan)], "NIFTI-GEOMETRY", "not a finite"),
        ([(QFORM_CODE, "h", 0), (SROW_X, "f", math.nan)], "NIFTI-GEOMETRY", "not a finite"),
        ([(PIXDIM + 4, "f", 0)], "NIFTI-GEOMETRY", "pixdim"),
        ([(PIXDIM + 8, "f", -0.9)], "NIFTI-GEOMETRY", "pixdim"),
        ([(QUATERN_B, "f", 3.0)], "NIFTI-GEOMETRY", "no rotation"),
        ([(QUATERN_B, "f", math.nan)], "NIFTI-GEOMETRY", "no rotation"),
        ([(UNITS, "b", 1)], "NIFTI-GEOMETRY", "700 x 900 x 2500 mm"),
        ([(UNITS, "b", 5)], "NIFTI-GEOMETRY", "no unit"),
        ([(DIM + 2, "h", -64)], "NIFTI-DIMENSIONS", "-64"),
        ([(DIM, "h", 9)], "NIFTI-DIMENSIONS", r"dim\[0\] is 9"),
        ([(DIM, "h", 0)], "NIFTI-DIMENSIONS", r"dim\[0\] is 0"),
        ([(DIM + 6, "h", 0)], "NIFTI-DIMENSIONS", "at least one voxel"),
        ([(DATATYPE, "h", 128)], "NIFTI-TYPE", "RGB24"),
        ([(DATATYPE, "h", 32)], "NIFTI-TYPE", "complex64"),
        ([(DATATYPE, "h", 77)], "NIFTI-TYPE", "not in the standard"),
        ([(SLOPE, "f", 1), (INTER, "f", math.inf)], "NIFTI-VALUES", "scl_inter inf"),
        ([(SLOPE, "f", math.inf), (INTER, "f", 0)], "NIFTI-VALUES", "scl_slope inf"),
        ([(VOX_OFFSET, "f", 1e9)], "NIFTI-READ", "truncated"),
        ([(VOX_OFFSET, "f", 100)], "NIFTI-READ", "vox_offset"),
        ([(VOX_OFFSET, "f", 352.5)], "NIFTI-READ", "vox_offset"),
        ([(MAGIC, "4s", b"\0\0\0\0")], "NIFTI-READ", "ANALYZE"),
        ([(0, "i", 1234)], "NIFTI-READ", "not NIfTI"),
        ([(DATATYPE, "h", 2)], "NIFTI-SIZE", "slice or more follows"),  # uint8 said, int16 stored
        ([(DIM + 2, "3h", [10000] * 3), (DATATYPE, "h", 64)], "NIFTI-SIZE", "limit"),
        ([(DIM + 2, "3h", [1000] * 3), (DATATYPE, "h", 64)], "NIFTI-(READ|SIZE)", "8,000,000,352"),
    ],
)
@pytest.mark.parametrize("name", ["case.nii", "case.nii.gz"])
def test_refuses_a_header(put, name, patches, code, words):
    path = put(patched(image(phantom()), *patches), name)
    zipped = name.endswith(".gz")
    if patches == [(VOX_OFFSET, "f", 1e9)] and zipped:
        code, words = "NIFTI-SIZE", "can hold"
    with pytest.raises(NiftiError, match=words) as error:
        read_volume(path)
    assert error.value.code in (code, *([f"NIFTI-{'SIZE' if zipped else 'READ'}"] if "(" in code else []))
    if not (zipped and code == "NIFTI-SIZE" and "slice" in words):  # only the end of a stream shows what follows
        with pytest.raises(NiftiError):
            read_header(path)


def test_left_and_right_contradict(put):
    ras = np.diag([0.7, 0.9, 2.5, 1.0])
    flipped = np.diag([-0.7, 0.9, 2.5, 1.0])
    path = put(patched(image(phantom(), flipped), (SROW_X, "12f", ras[:3].ravel().tolist())))
    fails(path, "NIFTI-GEOMETRY", r"\(RAS against LAS\)")


@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (6, 5, 4, 1, 3), (7,)])
def test_refuses_other_dimensions(put, shape):
    fails(put(image(phantom(shape))), "NIFTI-DIMENSIONS")


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_refuses_what_is_no_number(put, odd, dtype):
    voxels = phantom(dtype=dtype)
    voxels[1:3, 2, 1] = odd
    fails(put(image(voxels)), "NIFTI-VALUES", r"2 of 120 voxels")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><title>403 Forbidden</title>" + b" " * 500, "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git-lfs"),
        (b"/annex/objects/SHA256E-s1--00.nii.gz\n", "git-annex"),
        (b"not an image", "not NIfTI"),
        (b"PK\x03\x04" + bytes(600), "not NIfTI"),
        (gzip.compress(b"not an image", mtime=0), "not NIfTI"),
        (b"\x1f\x8b", "truncated"),
        (b"\x1f\x8bxxxxxxxxxxxxxxxxxxx", "damaged"),
    ],
)
def test_refuses_what_is_no_image(tmp_path, content, words):
    path = tmp_path / "case.nii.gz"
    path.write_bytes(content)
    fails(path, "NIFTI-READ", words)


@pytest.mark.parametrize("name", ["case.nii", "case.nii.gz"])
@pytest.mark.parametrize("share", [0.05, 0.6, 0.7, 0.99])
def test_refuses_a_truncated_file(put, name, share):
    noise = np.random.default_rng(0).integers(0, 4000, (20, 20, 20)).astype("i2")
    path = put(image(noise), name)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    fails(path, "NIFTI-READ")


@given(st.integers(0, 10**6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_every_cut_is_seen(tmp_path, cut):
    content = gzip.compress(image(phantom()))
    path = tmp_path / "case.nii.gz"
    path.write_bytes(content[: cut % len(content)])
    with pytest.raises(NiftiError):
        read_volume(path)


def test_refuses_a_wrong_checksum(tmp_path):
    stored = bytearray(gzip.compress(image(phantom()), 0))  # level 0: stored blocks, which inflate whatever they hold
    stored[-100:-60] = bytes(40)
    path = tmp_path / "case.nii.gz"
    path.write_bytes(stored)
    fails(path, "NIFTI-CHECKSUM", "data check")


def test_refuses_a_wrong_length(tmp_path):
    content = bytearray(gzip.compress(image(phantom())))
    content[-4] ^= 1
    path = tmp_path / "case.nii.gz"
    path.write_bytes(content)
    fails(path, "NIFTI-CHECKSUM", "length check")


def test_refuses_a_bomb_before_it_grows(tmp_path):
    # The header is consistent with 1200 x 1200 x 1504 bytes of zeros; the first two of 2,166 mebibytes are enough here,
    # padded to the size that all of them would have.
    data = patched(image(phantom(dtype="u1")), (DIM + 2, "3h", [1200, 1200, 1504]))
    deflate = zlib.compressobj(9, wbits=31)
    content = deflate.compress(data + bytes(1 << 21)) + deflate.flush(zlib.Z_FULL_FLUSH)
    path = tmp_path / "case.nii.gz"
    path.write_bytes(content + bytes(2_150_000 - len(content)))
    fails(path, "NIFTI-SIZE", "2,165,760,000 voxels, the limit")
    smaller = patched(data, (DIM + 2, "3h", [1100, 1000, 1000]))
    path.write_bytes(gzip.compress(smaller) + bytes(2_150_000))
    fails(path, "NIFTI-SIZE", "nothing was scanned")


def test_refuses_a_stream_longer_than_its_header_says(tmp_path):
    path = tmp_path / "case.nii.gz"
    path.write_bytes(gzip.compress(image(phantom()) + bytes(50_000_000)))
    fails(path, "NIFTI-SIZE", "follows")


def test_refuses_what_the_memory_cannot_hold(put, monkeypatch):
    monkeypatch.setattr(nifti, "free_memory", lambda: 239)
    fails(put(image(phantom())), "NIFTI-SIZE", "240 bytes of memory, 239 are free")  # 6 * 5 * 4 int16
    monkeypatch.setattr(nifti, "free_memory", lambda: 240)
    read_volume(put(image(phantom())))


def test_refuses_a_pipe_a_folder_and_nothing(tmp_path):
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "folder.nii").mkdir()
    fails(tmp_path / "pipe.nii", "NIFTI-READ", "no regular file")
    fails(tmp_path / "folder.nii", "NIFTI-READ", "no regular file")
    fails(tmp_path / "absent.nii", "NIFTI-READ", "No such file")


def test_a_later_rewrite_does_not_change_what_was_read(put):
    path = put(image(phantom()))
    volume = read_volume(path)
    path.write_bytes(b"")  # a memory map would kill the process at the next access
    assert np.array_equal(volume.voxels[0], phantom())


@given(st.binary(max_size=700), st.integers(0, 348))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(b"", 0)
@example(b"\x81\x7f", 278)  # signalling NaN in an offset of the qform
@example(b"\x80\x7f", 278)  # infinity
def test_no_header_ends_in_a_traceback(tmp_path, noise, start):
    data = bytearray(image(phantom()))
    data[start : start + len(noise)] = noise[: 352 - start]
    path = tmp_path / "case.nii"
    path.write_bytes(data)
    with contextlib.suppress(NiftiError):
        read_volume(path)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "yes", "stem"),
    [
        ("case_01.nii.gz", True, "case_01"),
        ("case.1.NII", True, "case.1"),
        ("spm.hdr", True, "spm"),
        ("fsl.hdr.gz", True, "fsl"),
        ("spm.img", False, "spm.img"),
        ("._case.nii.gz", False, "._case"),
        (f"{PARTIAL_PREFIX}abc.nii.gz", False, f"{PARTIAL_PREFIX}abc"),
        ("case.nii.gz.part", False, "case.nii.gz.part"),
        ("nii.gz", False, "nii.gz"),
        (".nii.gz", False, ""),
        ("-a\n'$(b)'.nii", True, "-a\n'$(b)'"),
    ],
)
def test_names(name, yes, stem):
    assert is_nifti(Path(name)) is yes
    assert nifti_stem(Path(name)) == stem


@pytest.mark.parametrize("name", ["a\nb.nii.gz", "-rf.nii", "$(x) 'q' \".nii.gz", "日本 ü.nii", "..x.nii.gz"])
def test_odd_names_are_read_and_written(tmp_path, name):
    grid = Grid(SHAPE, OBLIQUE)
    write_mask(tmp_path / name, Mask(phantom(dtype="u1"), grid))
    assert np.array_equal(read_mask(tmp_path / name).labels, phantom())


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected", "dtype"),
    [
        (np.array([0, 1, 2], "u1"), [0, 1, 2], "u1"),
        (np.array([0, 1, 2], "f8"), [0, 1, 2], "u1"),
        (np.array([0, 0.9999, 1.9998], "f4"), [0, 1, 2], "u1"),
        (np.array([-1e-7, 1, 2], "f4"), [0, 1, 2], "u1"),
        (np.array([0, 255, 256], "i8"), [0, 255, 256], "u2"),
        (np.array([0, 0, 65535], "u4"), [0, 0, 65535], "u2"),
    ],
)
def test_to_labels(values, expected, dtype):
    labels = to_labels(values, "case")
    assert labels.tolist() == expected
    assert labels.dtype == np.dtype(dtype)


@pytest.mark.parametrize(
    "values", [[0, 0.25, 1.37], [0, -1], [0, 65536], [0, math.nan], [0, math.inf], [0, 1.01], np.array([0, -1], "i2")]
)
def test_to_labels_refuses(values):
    with pytest.raises(MaskError) as error:
        to_labels(np.asarray(values), "case")
    assert error.value.code == "MASK-VALUES"


def test_scaled_labels_are_whole(put):
    # 127 and 254 times float32(1 / 127) are 1 and 2 but for the last bit
    voxels = np.resize(np.array([0, 127, 254], "u1"), SHAPE)
    path = put(patched(image(voxels), (SLOPE, "f", 1 / 127), (INTER, "f", 0)))
    assert np.array_equal(read_mask(path).labels, voxels // 127)
    numbers, grid = read_numbers(path)
    assert np.allclose(numbers, voxels / 127)
    assert grid.shape == SHAPE


# --- writing ----------------------------------------------------------------------------------------------------------


@given(GRIDS, st.sampled_from(["u1", "u2"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@example(Grid(SHAPE, affine("LPS", (0.03, 0.02, 0.05), (0.7, 0.7, 2.5), (180, 170, -900))), "u1")
def test_mask_comes_back(tmp_path, grid, dtype):
    path = tmp_path / "mask.nii.gz"
    mask = Mask(phantom(grid.shape, dtype), grid)
    write_mask(path, mask)
    back = read_mask(path)
    assert np.array_equal(back.labels, mask.labels)
    assert back.grid.same_place(grid, 0.01)
    assert read_header(path)[1] == ()
    other = nib.load(path)
    assert np.array_equal(np.asarray(other.dataobj), mask.labels)
    assert other.get_data_dtype() == np.dtype(dtype)
    assert grid.same_place(Grid(grid.shape, other.get_sform()), 0.01)
    if other.header["qform_code"]:
        assert grid.same_place(Grid(grid.shape, other.get_qform()), 0.05)


def test_what_a_written_file_says(tmp_path):
    path = tmp_path / "sub" / "mask.nii.gz"
    write_mask(path, Mask(phantom(dtype="u1"), Grid(SHAPE, OBLIQUE)))
    header = nib.Nifti1Header(gzip.decompress(path.read_bytes())[:348])
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    assert header.get_xyzt_units()[0] == "mm"
    assert int(header["intent_code"]) == 1002  # NIFTI_INTENT_LABEL of nifti1.h
    assert np.allclose(header.get_sform(), header.get_qform(), atol=1e-4)
    assert (float(header["scl_slope"]), float(header["scl_inter"])) == (1, 0)
    for text in ("descrip", "aux_file", "db_name", "intent_name"):
        assert bytes(header[text]).strip(b"\0") == b""
    assert [entry.name for entry in path.parent.iterdir()] == ["mask.nii.gz"]


@pytest.mark.parametrize(("degrees", "both"), [(0.0, True), (0.02, False), (0.05, False), (0.5, True), (5.0, True)])
def test_the_forms_of_a_written_file_agree_near_a_half_turn(degrees, both):
    # LPS is a half turn about z, so a = sin(degrees / 2), 4e-4 at 0.05 degrees; its square, 2e-7, is lost in the
    # rounding of b^2 + c^2 + d^2 in float32, and nibabel takes a for 0: wrong by 2 * 4e-4 * |(358, 358)| mm = 0.4 mm.
    # No such qform may be written; at 0.5 degrees a^2 = 2e-5 is safe.
    grid = Grid((512, 512, 300), affine("LPS", (0, 0, degrees), (0.7, 0.7, 2.0), (180, 170, -900)))
    header = header_for(grid)
    assert grid.same_place(Grid(grid.shape, header.get_sform()), 0.01)
    assert bool(header["qform_code"]) is both
    if both:
        assert grid.same_place(Grid(grid.shape, header.get_qform()), 0.025)


@pytest.mark.parametrize("degrees", [0.0, 0.01, 0.03, 0.06, 0.08, 0.2])
def test_rounding_near_a_half_turn_is_no_contradiction(put, degrees):
    matrix = affine("LPS", (0, 0, degrees), (0.7, 0.7, 2.0), (180, 170, -900))
    grid, notes = read_header(put(image(np.zeros((512, 512, 2), "u1"), matrix)))
    assert np.allclose(grid.affine, matrix, atol=1e-4)
    assert notes == ()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            ("LPS", (0, 0, 0), (0.7, 0.7, 2.0), (180, 170, -900)),
            ("LPS", (0, 0, 0.3), (0.7, 0.7, 2.0), (180, 170, -900)),
        ),
        (("LPS", (0, 0, 0), (0.7, 0.7, 2.0), (180, 170, -900)), ("LPS", (0, 0, 0), (0.7, 0.7, 2.0), (185, 170, -900))),
        (("LPS", (0, 0, 0), (0.7, 0.7, 2.0), (180, 170, -900)), ("LPI", (0, 0, 0), (0.7, 0.7, 2.0), (180, 170, -900))),
        (("LPS", (0, 0, 0), (0.7, 0.7, 2.0), (180, 170, -900)), ("LPS", (0, 0, 0), (0.7, 0.8, 2.0), (180, 170, -900))),
        (("RAS", (0, 0, 5), (0.7, 0.7, 2.0), (180, 170, -900)), ("RAS", (0, 0, -5), (0.7, 0.7, 2.0), (180, 170, -900))),
    ],
)
def test_a_true_contradiction_near_a_half_turn_is_seen(put, one, other):
    data = image(np.zeros((512, 512, 2), "u1"), affine(*one))
    fails(put(patched(data, (SROW_X, "12f", affine(*other)[:3].ravel().tolist()))), "NIFTI-GEOMETRY", "apart")


def test_masks_are_known_by_their_header(tmp_path):
    """Whatever the name: a mask says so in its header, a scan of the same numbers does not."""
    grid = Grid(SHAPE, OBLIQUE)
    write_mask(tmp_path / "scan.nii.gz", Mask(phantom(dtype="u1"), grid))
    write_volume(tmp_path / "labels.nii.gz", Volume(phantom(dtype="u1")[None], grid))
    assert inspect(tmp_path / "scan.nii.gz").holds_labels
    assert not inspect(tmp_path / "labels.nii.gz").holds_labels


def test_equal_masks_give_equal_bytes(tmp_path):
    mask = Mask(phantom(dtype="u1"), Grid(SHAPE, OBLIQUE))
    write_mask(tmp_path / "a.nii.gz", mask)
    write_mask(tmp_path / "b.nii.gz", mask)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert (tmp_path / "a.nii.gz").read_bytes()[4:8] == bytes(4)  # MTIME of RFC 1952: no time
    assert b"nii" not in (tmp_path / "a.nii.gz").read_bytes()[:40]  # no file name in the gzip header


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8", "i8", ">i2"])
def test_volume_comes_back(tmp_path, name, dtype):
    voxels = phantom(dtype=dtype)
    if voxels.dtype == np.float64:
        voxels += 0.1
    write_volume(tmp_path / name, Volume(voxels[np.newaxis], Grid(SHAPE, OBLIQUE), "CT"))
    back = read_volume(tmp_path / name)
    assert np.array_equal(back.voxels[0], voxels)
    assert np.array_equal(np.asarray(nib.load(tmp_path / name).dataobj), voxels)


def test_refuses_to_write_shear(tmp_path):
    sheared = np.eye(4)
    sheared[0, 2] = 0.3
    with pytest.raises(InputError) as error:
        write_mask(tmp_path / "m.nii.gz", Mask(phantom(dtype="u1"), Grid(SHAPE, sheared)))
    assert error.value.code == "GRID-SHEAR"
    assert list(tmp_path.iterdir()) == []


def test_refuses_to_write_channels_and_endings(tmp_path):
    with pytest.raises(InputError) as error:
        write_volume(tmp_path / "v.nii.gz", Volume(np.zeros((2, *SHAPE)), Grid(SHAPE, OBLIQUE)))
    assert error.value.code == "GRID-SHAPE"
    with pytest.raises(UsageError) as usage:
        write_mask(tmp_path / "m.png", Mask(phantom(dtype="u1"), Grid(SHAPE, OBLIQUE)))
    assert usage.value.code == "USAGE-PATH"


@pytest.mark.parametrize("odd", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_refuses_to_write_what_it_would_not_read(tmp_path, odd, dtype):
    voxels = phantom(dtype=dtype)
    voxels[0, 0, 0] = odd
    with pytest.raises(RunError) as error:
        write_volume(tmp_path / "v.nii", Volume(voxels[np.newaxis], Grid(SHAPE, OBLIQUE)))
    assert error.value.code == "RUN-WRITE"
    assert list(tmp_path.iterdir()) == []


def test_refuses_an_axis_that_the_header_cannot_say(tmp_path):
    grid = Grid((40000, 1, 1), np.eye(4))
    with pytest.raises(RunError) as error:
        write_mask(tmp_path / "m.nii", Mask(np.zeros(grid.shape, np.uint8), grid))
    assert error.value.code == "RUN-WRITE"


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:400], lambda b: b[:-3] + b"\xff" + b[-2:]])
def test_a_file_that_does_not_read_back_is_not_kept(tmp_path, monkeypatch, damage):
    store = nifti._store

    def faulty(path, header, values):
        store(path, header, values)
        path.write_bytes(damage(path.read_bytes()))

    monkeypatch.setattr(nifti, "_store", faulty)
    path = tmp_path / "m.nii"
    path.write_bytes(b"the mask of yesterday")
    with pytest.raises(RunError) as error:
        write_mask(path, Mask(phantom(dtype="u1"), Grid(SHAPE, OBLIQUE)))
    assert error.value.code == "RUN-WRITE"
    assert path.read_bytes() == b"the mask of yesterday"
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.nii"]


# --- real scans -------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_real_files_agree_with_nibabel(shared_data):
    paths = sorted(shared_data.glob("sarcoma_mr_t1/masks/*.nii.gz"))[:10]
    paths += sorted(shared_data.glob("hippocampus/*/*.nii.gz"))[::20]
    paths += sorted(shared_data.glob("zoo/transfer_syntaxes/Ref/*.nii*"))[:3]
    assert paths
    for path in paths:
        other = nib.load(path)
        if len(other.shape) == 4 and other.shape[3] > 1:
            fails(path, "NIFTI-DIMENSIONS")
            continue
        grid, notes = read_header(path)
        volume = read_volume(path)
        assert notes == ()
        assert np.array_equal(volume.voxels[0], np.asarray(other.dataobj))
        assert np.allclose(grid.affine, other.affine, atol=1e-5)


@pytest.mark.realdata
def test_real_masks_lie_on_their_scans(shared_data, tmp_path):
    for image_path in sorted(shared_data.glob("sarcoma_mr_t1/images/*.nii.gz"))[:3]:
        mask = read_mask(shared_data / "sarcoma_mr_t1" / "masks" / image_path.name)
        grid, _ = read_header(image_path)
        assert set(np.unique(mask.labels)) == {0, 1}
        write_mask(tmp_path / image_path.name, mask.placed_on(grid))
        assert read_mask(tmp_path / image_path.name).grid.same_place(grid)

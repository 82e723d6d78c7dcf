"""DICOM reading by property, and against independent readers."""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.data import get_testdata_files
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from medseg.errors import DicomError, InputError
from medseg.io.dicom_frames import Frame
from medseg.io.dicom_geometry import lay_out
from medseg.io.dicom_headers import Header, read_header
from medseg.io.dicom_pixels import _check_jpeg2000, modality_values, stack_values, stored_frames
from medseg.io.dicom_series import plan_volumes
from medseg.io.nifti import read_volume as read_nifti
from medseg.io.nifti import write_volume
from medseg.scan import find_scans, read
from medseg.volume import Volume
from tests.phantoms import ORIGIN, compress, enhanced, misfit, oblique, save, series

SIGNED_AXES = [
    tuple(sign * np.eye(3)[axis] for sign, axis in zip(signs, axes, strict=True))
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
"""All 48 ways to lay columns, rows and slices along the patient's axes."""


def volume_of(paths: list[Path]) -> Volume:
    (scan,) = find_scans(*paths)
    return read(scan)


turns = st.tuples(*[st.floats(-40, 40, allow_nan=False).map(lambda v: round(v, 3)) for _ in range(3)])


@pytest.mark.parametrize("axes", SIGNED_AXES)
@given(degrees=turns, random=st.randoms(use_true_random=False))
@settings(max_examples=3)
def test_every_orientation_is_placed_right(axes, degrees, random) -> None:
    """Whatever the orientation, the order of the files or the direction of the stack: each voxel is where it was."""
    turn = np.reshape(oblique(degrees), (2, 3))
    turn = np.stack([*turn, np.cross(*turn)])
    row, column, step = (axis @ turn for axis in axes)
    datasets = series(orientation=(*row, *column), step=tuple(2.5 * step), slices=5, size=(6, 7))
    random.shuffle(datasets)
    with tempfile.TemporaryDirectory() as folder:
        volume = volume_of(save(datasets, Path(folder)))
    assert volume.voxels.shape == (1, 7, 6, 5)
    assert misfit(volume.voxels[0], volume.grid.affine) < 0.51
    assert not volume.grid.is_sheared
    assert volume.grid.spacing == pytest.approx((0.7, 0.9, 2.5), abs=1e-6)


@given(st.tuples(*[st.floats(-3, 3).map(lambda v: round(v, 2)) for _ in range(2)]), turns)
@settings(max_examples=30)
def test_shear_is_kept(sideways, degrees) -> None:
    """A stack that leans: no voxel moves, and the lean is reported exactly when it is more than rounding."""
    turn = np.reshape(oblique(degrees), (2, 3))
    step = 2.5 * np.cross(*turn) + np.array(sideways) @ turn
    datasets = series(orientation=turn.ravel(), step=tuple(step), slices=5, size=(6, 7))
    with tempfile.TemporaryDirectory() as folder:
        save(datasets, Path(folder) / "case")
        (scan,) = find_scans(Path(folder))
        volume = read(scan)
    # rounding to whole numbers, and up to 0.025 mm of drift that is taken for rounding, at 16 for each mm
    assert misfit(volume.voxels[0], volume.grid.affine) < 0.5 + 0.4
    assert bool(scan.warnings) == volume.grid.is_sheared == (4 * np.hypot(*sideways) > 0.05)


@given(st.integers(1, 10), st.integers(1, 9))
@settings(max_examples=40)
def test_any_missing_inner_slice_is_found(first: int, missing: int) -> None:
    """Wherever the hole and however long, as long as slices lie on both sides and three or more are left."""
    datasets = series(slices=12, size=(4, 4))
    kept = datasets[:first] + datasets[min(first + missing, 11) :]
    if len(kept) < 3:
        return
    with pytest.raises(DicomError) as caught:
        lay_out([header.frames[0] for header in headers_of(kept)], 4, 4)
    assert caught.value.code in ("DICOM-GAP", "DICOM-SPACING")


def headers_of(datasets) -> list[Header]:
    with tempfile.TemporaryDirectory() as folder:
        headers = [read_header(path) for path in save(datasets, Path(folder))]
    return [header for header in headers if header is not None]


def test_slices_go_along_the_normal() -> None:
    """Columns to the left, rows to the back, slices up: row x column. Stored head first, k still grows to the head."""
    headers = headers_of(series(origin=(*ORIGIN[:2], 30.0), step=(0, 0, -2.5), slices=4, size=(3, 3)))
    layout = lay_out([header.frames[0] for header in headers], 3, 3)
    assert layout.order == (3, 2, 1, 0)
    assert layout.grid.orientation == "LPS"
    # first voxel: x -11, y -14.5 LPS = 11, 14.5 RAS; lowest slice 30 - 3 * 2.5 = 22.5
    assert layout.grid.affine[:3, 3] == pytest.approx((11, 14.5, 22.5))
    # columns 0.7 mm to the left: -0.7 in RAS; rows 0.9 mm to the back: -0.9
    assert np.diag(layout.grid.affine) == pytest.approx((-0.7, -0.9, 2.5, 1))


@pytest.mark.parametrize(
    ("names", "said"), [("same", "(b/IM0000.dcm, b/IM0001.dcm, b/IM0002.dcm ...)"), ("other", "(copyIM0000.dcm, ")]
)
def test_copies_in_another_folder_are_named_with_it(tmp_path: Path, names: str, said: str) -> None:
    for path in save(series(slices=5, size=(6, 7)), tmp_path / "a"):
        copy = tmp_path / "b" / (path.name if names == "same" else f"copy{path.name}")
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (found,) = find_scans(tmp_path)
    (note,) = [note for note in found.warnings if note.code == "DICOM-DUPLICATE"]
    assert said in note.message, note.message


def test_one_position_twice_is_refused() -> None:
    headers = headers_of(series(slices=4, size=(3, 3)))
    frames = [header.frames[0] for header in headers]
    with pytest.raises(DicomError) as caught:
        lay_out([*frames, frames[2]], 3, 3)
    assert caught.value.code == "DICOM-DUPLICATE"


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_agrees_with_simpleitk(modality: str, tmp_path: Path) -> None:
    """An independent reader; its frame is LPS, its arrays are k, j, i."""
    paths = save(series(modality, orientation=oblique((12, -17, 23)), slope=2.0, intercept=-2000.0), tmp_path)
    image = sitk.ReadImage([str(path) for path in paths])
    volume = volume_of(paths)
    assert np.array_equal(volume.voxels[0], np.transpose(sitk.GetArrayFromImage(image)))
    for index in ((0, 0, 0), (5, 0, 0), (0, 5, 0), (0, 0, 5), (7, 9, 11)):
        lps = np.array(image.TransformIndexToPhysicalPoint(index))
        assert volume.grid.to_world(index) == pytest.approx(lps * (-1, -1, 1), abs=1e-4)


@pytest.mark.parametrize("axes", SIGNED_AXES)
@given(degrees=turns)
@settings(max_examples=1)
def test_doors_agree(axes, degrees) -> None:
    """DICOM to NIfTI and back is the identity on voxels and places, and SimpleITK sees the same in both."""
    turn = np.reshape(oblique(degrees), (2, 3))
    row, column, step = (axis @ np.stack([*turn, np.cross(*turn)]) for axis in axes)
    datasets = series("MR", orientation=(*row, *column), step=tuple(2.5 * step), slices=4, size=(6, 7))
    with tempfile.TemporaryDirectory() as folder:
        paths = save(datasets, Path(folder))
        volume = volume_of(paths)
        write_volume(Path(folder) / "x.nii", volume)
        again = read_nifti(Path(folder) / "x.nii")
        stored = sitk.ReadImage(f"{folder}/x.nii")
        scanned = sitk.ReadImage([str(path) for path in paths])
    assert np.array_equal(again.voxels, volume.voxels)
    assert again.grid.distance_mm(volume.grid) < 1e-4  # the header's 32 bits
    seen = np.transpose(sitk.GetArrayFromImage(stored))
    assert np.array_equal(seen, volume.voxels[0])
    for index in itertools.product((0, 6), (0, 5), (0, 3)):
        lps = np.array(stored.TransformIndexToPhysicalPoint(index))
        assert volume.grid.to_world(index) == pytest.approx(lps * (-1, -1, 1), abs=1e-3)
        place = scanned.TransformPhysicalPointToIndex(lps)
        assert scanned[place] == seen[index]


# ---- pydicom's own test files, decoded by pydicom as the oracle -----------------------------------------------------


def sample_files() -> Iterator[Path]:
    """The files that ship inside pydicom; some need a download and are not there."""
    folder = Path(get_testdata_files("CT_small.dcm")[0]).parent
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("path", list(sample_files()), ids=lambda path: path.name)
def test_no_sample_file_breaks_the_reader(path: Path) -> None:
    """Whatever a file is, its header is read or refused without an exception; grey images decode as by pydicom."""
    header = read_header(path)
    if header is None or header.kind != "image" or header.code or header.pixels is None:
        return
    assert header.pixels.samples == 1
    try:
        oracle = dcmread(path, force=True).pixel_array
    except (NotImplementedError, RuntimeError, AttributeError):
        decode_or_refuse(header)
        return
    frames = np.stack(list(stored_frames(header, range(header.pixels.frames))))
    assert np.array_equal(frames.reshape(oracle.shape), oracle)


def test_cut_and_corrupted_files_are_refused_or_read(tmp_path: Path) -> None:
    """Cut anywhere, or with bytes changed anywhere, a file gives a header or a refusal, never another exception."""
    rng = np.random.default_rng(7)
    (path,) = save(series(slices=1, size=(5, 6)), tmp_path)
    whole = path.read_bytes()
    for _ in range(400):
        data = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for _ in range(rng.integers(0, 6)):
            data[rng.integers(0, len(data))] = rng.integers(0, 256)
        path.write_bytes(bytes(data))
        header = read_header(path)
        if header is not None and header.kind == "image":
            assert all(plan.code for plan in plan_volumes([header]))  # a single slice at best
            decode_or_refuse(header)


def test_tile_parts_must_fit_their_stream() -> None:
    """SOT: Psot 20 bytes from its marker; then EOC. One byte less, and the tile-part reaches beyond the end."""
    part = b"\xff\x90\x00\x0a\x00\x00" + (20).to_bytes(4, "big") + bytes(10)
    _check_jpeg2000(b"\xff\x4f" + part + b"\xff\xd9")
    for cut in (part[:-1], part[:12]):
        with pytest.raises(DicomError):
            _check_jpeg2000(b"\xff\x4f" + cut + b"\xff\xd9")


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_corrupted_code_streams_are_refused_or_decoded(syntax: str, tmp_path: Path) -> None:
    """Bytes changed inside compressed pixels: a value or a refusal, never another exception."""
    rng = np.random.default_rng(8)
    (path,) = save(compress(series(slices=1), syntax), tmp_path)
    whole = path.read_bytes()
    start = whole.rindex(b"\xe0\x7f\x10\x00OB")
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(start, len(data))] = rng.integers(0, 256)
        path.write_bytes(bytes(data))
        header = read_header(path)
        assert header is not None
        decode_or_refuse(header)


def test_enhanced_headers_survive_corruption(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    (path,) = save([enhanced(series(slices=6, size=(4, 5)))], tmp_path)
    whole = path.read_bytes()
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 6)):
            data[rng.integers(0, len(data))] = rng.integers(0, 256)
        path.write_bytes(bytes(data))
        header = read_header(path)
        if header is not None and header.kind == "image":
            plan_volumes([header])
            decode_or_refuse(header)


def test_headers_are_read_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """pydicom's warnings quote values; a name must not reach a log that way."""
    datasets = series(slices=2)
    save(datasets, tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes().replace(datasets[0].SeriesInstanceUID.encode()[:6], b"Doe^J."))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_scans(tmp_path)
    assert "Doe" not in caplog.text


def decode_or_refuse(header: Header) -> None:
    if header.code:
        return
    with suppress(InputError):
        list(stored_frames(header, [0]))


# ---- numbers --------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(-(2**31), 2**32 - 1), min_size=4, max_size=4), min_size=1, max_size=5))
def test_stacks_hold_every_value_exactly(slices: list[list[int]]) -> None:
    stack = stack_values((np.array(s, np.int64).reshape(2, 2) for s in slices), len(slices), 2, 2)
    assert [[int(v) for v in plane.ravel()] for plane in stack] == slices


@given(st.permutations([[0, 1], [-5, 7], [40000, 3], [0, 0]]))
def test_type_of_a_stack_does_not_depend_on_the_order(slices: list[list[int]]) -> None:
    stack = stack_values((np.array(s).reshape(1, 2) for s in slices), 4, 1, 2)
    assert stack.dtype == np.int32  # -5 and 40000 fit no 16-bit type


def test_small_whole_numbers_need_one_byte() -> None:
    stack = stack_values(iter([np.array([[0, 255]], np.uint16)]), 1, 1, 2)
    assert stack.dtype == np.uint8


def test_fractions_make_the_whole_volume_float() -> None:
    stack = stack_values(iter([np.array([[0, 255]], np.uint16), np.array([[0.5, 2]])]), 2, 1, 2)
    assert stack.dtype == np.float32
    assert stack.tolist() == [[[0, 255]], [[0.5, 2]]]


def test_rescale_is_exact_at_the_edges() -> None:
    """Slope and intercept in integers: 65535 * 3 - 70000 = 126605 exactly, where 16 bits would wrap."""
    (header,) = headers_of(series(slices=1, size=(4, 4), slope=3, intercept=-70000))
    values = modality_values(np.array([[0, 65535]], np.uint16), header.frames[0])
    assert values.tolist() == [[-70000, 126605]]


@given(st.data())
def test_rescale_is_what_integers_give(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.uint32]))
    limits = np.iinfo(kind)
    stored = data.draw(st.lists(st.integers(limits.min, limits.max), min_size=1, max_size=4))
    near = st.one_of(st.integers(-3, 3), st.integers(-40000, 40000), st.sampled_from([2**15, -(2**15), 2**20]))
    slope, intercept = data.draw(near), data.draw(near)
    frame = Frame(Path("a"), 0, None, None, None, float(slope), float(intercept), 2, (0, 0), (), ())
    values = modality_values(np.array([stored], kind), frame)
    assert [int(value) for value in values[0]] == [slope * value + intercept for value in stored]

from __future__ import annotations

import logging

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medseg.errors import MaskError
from medseg.grid import AxisOrder, Grid
from medseg.io import dicom_objects
from medseg.io.rtstruct import rasterise, read_rtstruct, read_structures, write_rtstruct
from medseg.volume import Labels, Mask
from tests.io import objects

LABELS = Labels({2: "GTV_Mass", 5: "Tumör Ödem"})


@pytest.fixture
def written(tmp_path):
    files, grid = objects.series(tmp_path / "s", objects.grid_of())
    mask = objects.ring_mask(grid)
    path = tmp_path / "rt.dcm"
    write_rtstruct(path, mask, LABELS, files, model_hash="abc")
    return path, mask, files


def edit(path, change):
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


def contours(dataset, roi=0):
    return dataset.ROIContourSequence[roi].ContourSequence


CASES = {
    "axial": ({}, (0, 0, 0)),
    "oblique": ({"angles": (13, -21, 34)}, (0, 0, 0)),
    "sagittal, left-handed": ({"angles": (90, 0, 90), "signs": (1, 1, -1)}, (0, 0, 0)),
    "gantry tilt": ({}, (0.0, 0.8, 0.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_round_trip_is_bit_exact(tmp_path, name):
    arguments, shear = CASES[name]
    files, grid = objects.series(tmp_path / "s", objects.grid_of(**arguments), shear=shear)
    mask = objects.ring_mask(grid)
    write_rtstruct(tmp_path / "rt.dcm", mask, LABELS, files)
    back = read_rtstruct(tmp_path / "rt.dcm", grid)
    assert list(back) == ["GTV_Mass", "Tumör Ödem"]
    assert (back["GTV_Mass"] == (mask.labels == 2)).all()
    assert (back["Tumör Ödem"] == (mask.labels == 5)).all()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.floats(-40, 40)] * 3), st.floats(0.05, 0.95))
def test_any_mask_comes_back_on_any_angle(tmp_path, seed, angles, density):
    files, grid = objects.series(tmp_path / "s", objects.grid_of(angles))
    labels = (np.random.default_rng(seed).random(grid.shape) < density).astype(np.uint8)
    write_rtstruct(tmp_path / "rt.dcm", Mask(labels, grid), Labels({1: "a"}), files)
    assert (read_rtstruct(tmp_path / "rt.dcm", grid)["a"] == labels).all()


@given(st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
@settings(max_examples=48, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_of_the_grid_axes_does_not_matter(written, axes, flips):
    path, mask, _ = written
    order = AxisOrder(tuple(axes), flips)
    back = read_rtstruct(path, mask.grid.reordered(order))["GTV_Mass"]
    assert (back == order.apply(mask.labels == 2)).all()


def test_a_mask_with_its_axes_in_another_order_is_written_the_same(written, tmp_path):
    path, mask, files = written
    order = AxisOrder((2, 0, 1), (True, False, True))
    moved = Mask(np.ascontiguousarray(order.apply(mask.labels)), mask.grid.reordered(order))
    write_rtstruct(tmp_path / "moved.dcm", moved, LABELS, files, model_hash="abc")
    one, other = pydicom.dcmread(path), pydicom.dcmread(tmp_path / "moved.dcm")
    assert one.SOPInstanceUID == other.SOPInstanceUID
    assert one.ROIContourSequence == other.ROIContourSequence


def test_one_voxel_golden(tmp_path):
    # Voxel (3, 2, 1) of spacing 2, 4, 5 at origin (10, 20, 30) RAS, axes to the left, back, head: centre
    # (10 - 6, 20 - 8, 30 + 5) = (4, 12, 35) RAS = (-4, -12, 35) LPS; the outline is half a voxel away: x +- 1, y +- 2.
    grid = Grid((5, 5, 3), np.array([[-2, 0, 0, 10], [0, -4, 0, 20], [0, 0, 5, 30], [0, 0, 0, 1]], float))
    files, _ = objects.series(tmp_path / "s", grid)
    labels = np.zeros(grid.shape, np.uint8)
    labels[3, 2, 1] = 1
    write_rtstruct(tmp_path / "rt.dcm", Mask(labels, grid), Labels({1: "a"}), files)
    contour = contours(pydicom.dcmread(tmp_path / "rt.dcm"))[0]
    points = {tuple(float(v) for v in point) for point in np.reshape(contour.ContourData, (-1, 3))}
    assert points == {(-5, -12, 35), (-3, -12, 35), (-4, -14, 35), (-4, -10, 35)}
    wanted = pydicom.dcmread(files[1]).SOPInstanceUID
    assert contour.ContourImageSequence[0].ReferencedSOPInstanceUID == wanted


def test_what_is_copied_and_what_is_said(written):
    path, _, files = written
    dataset, source = pydicom.dcmread(path), pydicom.dcmread(files[0])
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert dataset[keyword].value == source[keyword].value
    assert dataset.SeriesInstanceUID != source.SeriesInstanceUID
    study = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    assert study.RTReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    assert len(study.RTReferencedSeriesSequence[0].ContourImageSequence) == len(files)
    assert [item.ROINumber for item in dataset.StructureSetROISequence] == [2, 5]
    assert dataset.StructureSetROISequence[0].ROIGenerationAlgorithm == "AUTOMATIC"


def test_a_latin1_source_with_an_unusual_name(tmp_path):
    files, grid = objects.series(tmp_path / "s", objects.grid_of())
    for path in files:
        edit(path, lambda d: (setattr(d, "SpecificCharacterSet", "ISO_IR 100"), setattr(d, "PatientName", "Öström^Å")))
    write_rtstruct(tmp_path / "rt.dcm", objects.ring_mask(grid), Labels({2: "肿瘤", 5: "b"}), files)
    dataset = pydicom.dcmread(tmp_path / "rt.dcm")
    assert str(dataset.PatientName) == "Öström^Å"
    assert dataset.StructureSetROISequence[0].ROIName == "肿瘤"


def test_uids_follow_from_the_work(written, tmp_path):
    path, mask, files = written
    write_rtstruct(tmp_path / "b.dcm", mask, LABELS, files, model_hash="abc")
    write_rtstruct(tmp_path / "c.dcm", mask, LABELS, files, model_hash="other")
    a, b, c = (pydicom.dcmread(p).SOPInstanceUID for p in (path, tmp_path / "b.dcm", tmp_path / "c.dcm"))
    assert a == b != c


def test_an_empty_mask_is_valid_and_reads_as_empty(tmp_path, caplog):
    files, grid = objects.series(tmp_path / "s", objects.grid_of())
    write_rtstruct(tmp_path / "rt.dcm", Mask(np.zeros(grid.shape, np.uint8), grid), LABELS, files)
    back = read_rtstruct(tmp_path / "rt.dcm", grid)
    assert not any(voxels.any() for voxels in back.values())
    assert "empty" in caplog.text


def test_a_mask_on_another_grid_or_with_nameless_labels_is_not_written(written, tmp_path):
    _, mask, files = written
    moved = Mask(mask.labels, objects.grid_of((0, 0, 2)))
    for bad, labels, code in ((moved, LABELS, "MASK-GRID"), (mask, Labels({2: "a"}), "MASK-VALUES")):
        with pytest.raises(MaskError) as caught:
            write_rtstruct(tmp_path / "bad.dcm", bad, labels, files)
        assert caught.value.code == code
    assert not (tmp_path / "bad.dcm").exists()


def test_a_source_without_one_of_its_slices_is_refused(written, tmp_path):
    _, mask, files = written
    with pytest.raises(MaskError) as caught:
        write_rtstruct(tmp_path / "bad.dcm", mask, LABELS, files[:2] + files[3:])
    assert caught.value.code == "MASK-GRID"
    assert "not evenly spaced" in str(caught.value)


def test_large_contours_survive(tmp_path):
    # A comb of 128 x 256 has more than 2,000 corners: over 64 KiB of text, the most that an explicit-VR DS can hold.
    grid = objects.grid_of(shape=(256, 256, 1), angles=(3, 5, 7))
    files, _ = objects.series(tmp_path / "s", grid)
    labels = np.zeros(grid.shape, np.uint8)
    labels[::2, 1:] = 1
    labels[:, 0] = 1
    write_rtstruct(tmp_path / "rt.dcm", Mask(labels, grid), Labels({1: "comb"}), files)
    assert (read_rtstruct(tmp_path / "rt.dcm", grid)["comb"] == labels).all()


def test_a_multi_frame_source_with_shuffled_frames(tmp_path):
    files, grid = objects.series(tmp_path / "s", objects.grid_of())
    source = objects.multi_frame(files, tmp_path / "multi.dcm")
    mask = objects.ring_mask(grid)
    write_rtstruct(tmp_path / "o.dcm", mask, LABELS, [source])
    assert (read_rtstruct(tmp_path / "o.dcm", grid)["GTV_Mass"] == (mask.labels == 2)).all()


# What others write -------------------------------------------------------------------------------------------------


def box(grid, k, low=1.5, high=6.5):
    """LPS points of a square on slice k, in index coordinates along i and j."""
    corners = [(low, low, k), (low, high, k), (high, high, k), (high, low, k)]
    return [float(v) for v in (grid.to_world(corners) * (-1, -1, 1)).ravel()]


def with_contours(path, grid, planes, kind="CLOSED_PLANAR", **ranges):
    def change(dataset):
        template = contours(dataset)[0]
        items = []
        for k in planes:
            item = pydicom.Dataset()
            item.ContourGeometricType = kind
            item.ContourData = box(grid, k, **ranges)
            item.NumberOfContourPoints = 4
            item.ContourImageSequence = template.ContourImageSequence
            items.append(item)
        dataset.ROIContourSequence[0].ContourSequence = items

    edit(path, change)


def test_image_uids_do_not_matter(written):
    path, mask, _ = written

    def forget(dataset):
        for roi in dataset.ROIContourSequence:
            for contour in roi.ContourSequence:
                del contour.ContourImageSequence

    edit(path, forget)
    assert (read_rtstruct(path, mask.grid)["GTV_Mass"] == (mask.labels == 2)).all()


def test_contours_off_the_slices_go_to_the_nearest_and_are_noted(written, caplog):
    path, mask, _ = written
    with_contours(path, mask.grid, [1.3, 2.3, 3.3])
    voxels = read_rtstruct(path, mask.grid, ["GTV_Mass"])["GTV_Mass"]
    assert voxels[2:7, 2:7, 1:4].all()
    assert voxels.sum() == 5 * 5 * 3
    assert "0.90 mm off" in caplog.text  # 0.3 slices of 3 mm


def test_two_planes_near_one_slice_do_not_cancel(written, caplog):
    path, mask, _ = written
    with_contours(path, mask.grid, [1, 1.4, 2, 2.4, 3])
    voxels = read_rtstruct(path, mask.grid, ["GTV_Mass"])["GTV_Mass"]
    assert voxels.sum() == 5 * 5 * 3
    assert "2 contours lie between slices" in caplog.text


def test_sparse_contours_are_not_interpolated_but_noted(written, caplog):
    path, mask, _ = written
    with_contours(path, mask.grid, [1, 3])
    voxels = read_rtstruct(path, mask.grid, ["GTV_Mass"])["GTV_Mass"]
    assert voxels.sum() == 5 * 5 * 2
    assert "no contour on 1 slices between others (index 2)" in caplog.text


REFUSED = {
    "beyond the stack": (lambda p, g: with_contours(p, g, [5, 6]), "MASK-GRID", "contour 2 of 2 lie outside"),
    "beyond the edge": (lambda p, g: with_contours(p, g, [1], high=14.0), "MASK-GRID", "outside the scan"),
    "points only": (lambda p, g: with_contours(p, g, [1], kind="POINT"), "MASK-READ", "encloses no area"),
    "open line only": (lambda p, g: with_contours(p, g, [1], kind="OPEN_PLANAR"), "MASK-READ", "OPEN_PLANAR"),
    "wrong count": (
        lambda p, g: edit(p, lambda d: setattr(contours(d)[0], "NumberOfContourPoints", 77)),
        "MASK-READ",
        "says 77",
    ),
    "not triples": (
        lambda p, g: edit(p, lambda d: setattr(contours(d)[0], "ContourData", [1.0, 2.0, 3.0, 4.0])),
        "MASK-READ",
        "cannot be read",
    ),
    "another class": (
        lambda p, g: edit(p, lambda d: setattr(d, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.2")),
        "MASK-READ",
        "CT Image Storage",
    ),
    "offset vector": (
        lambda p, g: edit(p, lambda d: setattr(contours(d)[0], "ContourOffsetVector", [0, 0, 5])),
        "MASK-READ",
        "offset",
    ),
    "cut off": (lambda p, g: p.write_bytes(p.read_bytes()[:700]), "MASK-READ", ""),
    "not DICOM": (lambda p, g: p.write_text("hello"), "MASK-READ", "InvalidDicomError"),
    "gone": (lambda p, g: p.unlink(), "MASK-READ", "is not a file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(written, name):
    path, mask, _ = written
    spoil, code, text = REFUSED[name]
    spoil(path, mask.grid)
    with pytest.raises(MaskError) as caught:
        read_rtstruct(path, mask.grid, ["GTV_Mass"])
    assert caught.value.code == code
    assert text in str(caught.value)
    assert "p1" not in str(caught.value)


def test_contours_across_the_slices_are_refused(written):
    path, mask, _ = written
    turned = Grid(mask.grid.shape, objects.grid_of((0, 30, 0)).affine)
    with pytest.raises(MaskError) as caught:
        read_rtstruct(path, turned, ["GTV_Mass"])
    assert caught.value.code == "MASK-READ"
    assert "across the slices" in str(caught.value)


def test_points_beside_an_area_are_left_out_with_a_note(written):
    path, mask, _ = written

    def add_point(dataset):
        point = pydicom.Dataset()
        point.ContourGeometricType, point.NumberOfContourPoints, point.ContourData = "POINT", 1, [0.0, 0.0, 0.0]
        contours(dataset).append(point)

    edit(path, add_point)
    structure = read_structures(path)[0]
    voxels, notes = rasterise(structure, mask.grid)
    assert (voxels == (mask.labels == 2)).all()
    assert notes[0] == "1 contours left out (POINT)"


def test_names_are_exact_and_unknown_ones_refused(written):
    path, mask, _ = written
    assert [s.name for s in read_structures(path)] == ["GTV_Mass", "Tumör Ödem"]
    with pytest.raises(MaskError) as caught:
        read_rtstruct(path, mask.grid, ["gtv_mass"])
    assert caught.value.code == "LABEL-UNKNOWN"


def test_warnings_of_the_library_do_not_leave_the_door(written, recwarn, caplog):
    path, mask, _ = written
    caplog.set_level(logging.WARNING)
    edit(path, lambda d: d.add_new("AccessionNumber", "SH", "much longer than sixteen characters"))
    recwarn.clear()
    read_rtstruct(path, mask.grid)
    assert not recwarn.list


@pytest.mark.parametrize("undefined_length", [False, True])
def test_a_file_cut_anywhere_is_noticed(written, undefined_length):
    path, mask, _ = written
    if undefined_length:
        edit(path, lambda d: [setattr(e, "is_undefined_length", True) for e in d.iterall() if e.VR == "SQ"])
    raw = path.read_bytes()
    for size in range(11, len(raw), 37):
        path.write_bytes(raw[:size])
        with pytest.raises(MaskError) as caught:
            read_rtstruct(path, mask.grid, ["GTV_Mass"])
        assert caught.value.code == "MASK-READ"


def test_a_deflated_file_is_read_and_a_deflated_bomb_refused(written, monkeypatch):
    path, mask, _ = written
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=True, enforce_file_format=True)
    assert (read_rtstruct(path, mask.grid)["GTV_Mass"] == (mask.labels == 2)).all()
    monkeypatch.setattr(dicom_objects, "MAX_INFLATED_BYTES", 4000)
    with pytest.raises(MaskError) as caught:
        read_rtstruct(path, mask.grid)
    assert "unpacks to more than" in str(caught.value)


def test_sequences_nested_a_thousand_deep_are_refused(written):
    path, mask, _ = written
    # (3006,0010) of undefined length, an item of undefined length, and so on; then their delimiters.
    head = b"\x06\x30\x10\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    tail = b"\xfe\xff\x0d\xe0\x00\x00\x00\x00\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    path.write_bytes(path.read_bytes() + head * 5000 + tail * 5000)
    with pytest.raises(MaskError) as caught:
        read_rtstruct(path, mask.grid)
    assert caught.value.code == "MASK-READ"


@pytest.mark.realdata
def test_sarcoma_structures_equal_the_nifti_masks(shared_data):
    folder = shared_data / "sarcoma_mr_t1"
    masks = sorted((folder / "masks").glob("*.nii.gz"))
    assert len(masks) == 41
    different = {}
    for path in masks:
        image = nib.load(path)
        want = np.asarray(image.dataobj) > 0
        file = next((folder / "dicom" / path.name.removesuffix(".nii.gz") / "RTSTRUCT").iterdir())
        voxels = read_rtstruct(file, Grid(want.shape, image.affine))
        found = np.logical_or.reduce(list(voxels.values()))
        different[path.name] = int((found != want).sum())
    assert set(different.values()) == {0}, different

from __future__ import annotations

import warnings

import highdicom
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.sr.codedict import codes
from pydicom.uid import RLELossless

from medseg.errors import MaskError
from medseg.grid import AxisOrder, Grid
from medseg.io.dicom_objects import read_source
from medseg.io.dicom_seg import read_dicom_seg, read_segments, segment_numbers
from medseg.io.dicom_seg_write import write_dicom_seg
from medseg.scan import find_scans
from medseg.volume import Labels, Mask
from tests import phantoms
from tests.io import objects

LABELS = Labels({2: "tumour", 5: "Ödem"})


@pytest.fixture
def written(tmp_path):
    files, grid = objects.series(tmp_path / "s", objects.grid_of())
    mask = objects.ring_mask(grid)
    path = tmp_path / "seg.dcm"
    write_dicom_seg(path, mask, LABELS, files, model_hash="abc")
    return path, mask, files


def edit(path, change):
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


def by_highdicom(path, files, pixels, kind, **more):
    """Write frames `(k, rows, columns[, segments])` with highdicom, as other programs would."""
    count = pixels.shape[3] if pixels.ndim == 4 else max(1, int(pixels.max()))
    descriptions = [
        highdicom.seg.SegmentDescription(number, f"part {number}", codes.SCT.Tissue, codes.SCT.Tissue, "MANUAL")
        for number in range(1, count + 1)
    ]
    images = [pydicom.dcmread(file) for file in files]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the phantom's name has one part
        object_ = highdicom.seg.Segmentation(
            images, pixels, kind, descriptions, highdicom.UID(), 7, highdicom.UID(), 1, "m", "m", "1", "1", **more
        )
    object_.save_as(path)


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
    mask = objects.ring_mask(grid, np.uint16)
    write_dicom_seg(tmp_path / "seg.dcm", mask, LABELS, files)
    back = read_dicom_seg(tmp_path / "seg.dcm", grid)
    assert list(back) == ["tumour", "Ödem"]
    assert (back["tumour"] == (mask.labels == 2)).all()
    assert (back["Ödem"] == (mask.labels == 5)).all()


@pytest.mark.parametrize("orientation", [phantoms.AXIAL, phantoms.SAGITTAL, phantoms.oblique((12, -17, 23))])
def test_segments_lie_where_the_object_is(tmp_path, orientation):
    """Slices by the tests' own writer, segments by highdicom, the truth a formula in RAS+: no sign of ours."""
    files = phantoms.save(phantoms.series("MR", orientation=orientation), tmp_path / "s")
    (scan,) = find_scans(tmp_path / "s")
    images = [pydicom.dcmread(file) for file in scan.files]
    for image in images:
        image.update({"PatientBirthDate": "", "PatientSex": "", "StudyDate": "", "StudyTime": "", "StudyID": ""})
        image.update({"AccessionNumber": "", "ReferringPhysicianName": "", "SliceThickness": "2.5"})
        image.save_as(image.filename)
    stored = np.stack([image.pixel_array for image in images])
    limit = np.floor(np.median(stored)) + 0.5
    bright = stored > limit
    by_highdicom(tmp_path / "seg.dcm", scan.files, bright.astype(np.uint8), "BINARY")
    (found,) = read_dicom_seg(tmp_path / "seg.dcm", scan.grid).values()
    truth = phantoms.value_at(scan.grid.to_world(np.argwhere(np.ones(scan.grid.shape)))).reshape(scan.grid.shape)
    clear = np.abs(truth - limit) > 0.6  # the stored numbers are rounded
    assert len(files) == scan.grid.shape[2]
    assert (found == (truth > limit))[clear].all()


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.floats(-180, 180)] * 3), st.floats(0.05, 0.95))
def test_any_mask_comes_back_on_any_angle(tmp_path, seed, angles, density):
    files, grid = objects.series(tmp_path / "s", objects.grid_of(angles))
    labels = (np.random.default_rng(seed).random(grid.shape) < density).astype(np.uint8)
    write_dicom_seg(tmp_path / "seg.dcm", Mask(labels, grid), Labels({1: "a"}), files)
    assert (read_dicom_seg(tmp_path / "seg.dcm", grid)["a"] == labels).all()


@given(st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
@settings(max_examples=48, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_of_the_grid_axes_does_not_matter(written, axes, flips):
    path, mask, _ = written
    order = AxisOrder(tuple(axes), flips)
    back = read_dicom_seg(path, mask.grid.reordered(order))["tumour"]
    assert (back == order.apply(mask.labels == 2)).all()


def test_highdicom_reads_what_we_write(written):
    path, mask, files = written
    object_ = highdicom.seg.segread(path)
    volume = object_.get_volume(combine_segments=True, skip_overlap_checks=True)
    source = highdicom.image.get_volume_from_series([pydicom.dcmread(file) for file in files])
    placed = volume.match_geometry(source).array  # (slices, rows, columns), slices in highdicom's order
    found = {tuple(index) for index in np.argwhere(placed == 2)}
    flipped = source.affine[:3, 0] @ mask.grid.affine[:3, 2] < 0
    frames = (mask.labels == 5).transpose(2, 1, 0)
    assert found == {tuple(index) for index in np.argwhere(frames[::-1] if flipped else frames)}


def test_what_is_said(written):
    path, _, files = written
    dataset, source = pydicom.dcmread(path), pydicom.dcmread(files[0])
    assert dataset.PatientID == source.PatientID
    assert dataset.StudyInstanceUID == source.StudyInstanceUID
    assert dataset.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert dataset.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    assert segment_numbers(path) == {1: "tumour", 2: "Ödem"}
    assert [segment.kind for segment in read_segments(path)] == ["Neoplasm", "Tissue"]
    algorithm = dataset.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("medseg", "abc")
    # Label 2 is on slices 0 to 3, label 5 on 2 and 5: absent frames are background.
    assert dataset.NumberOfFrames == 4 + 2


def test_an_empty_mask_is_valid(tmp_path):
    files, grid = objects.series(tmp_path / "s", objects.grid_of())
    write_dicom_seg(tmp_path / "seg.dcm", Mask(np.zeros(grid.shape, np.uint8), grid), LABELS, files)
    back = read_dicom_seg(tmp_path / "seg.dcm", grid)
    assert list(back) == ["tumour", "Ödem"]
    assert not any(voxels.any() for voxels in back.values())


def test_a_patient_name_is_not_quoted(tmp_path, recwarn, caplog):
    files, grid = objects.series(tmp_path / "s", objects.grid_of())
    for file in files:
        edit(file, lambda d: setattr(d, "PatientName", "SECRETNAME"))
    recwarn.clear()
    write_dicom_seg(tmp_path / "seg.dcm", objects.ring_mask(grid), LABELS, files)
    assert not recwarn.list
    assert "SECRET" not in caplog.text


def test_a_bare_source_gets_what_the_standard_wants(tmp_path):
    files, grid = objects.series(tmp_path / "s", objects.grid_of())
    for file in files:

        def strip(dataset):
            for keyword in ("PatientName", "PatientBirthDate", "AccessionNumber", "StudyID", "FrameOfReferenceUID"):
                del dataset[keyword]

        edit(file, strip)
    mask = objects.ring_mask(grid)
    write_dicom_seg(tmp_path / "seg.dcm", mask, LABELS, files)
    assert (read_dicom_seg(tmp_path / "seg.dcm", grid)["tumour"] == (mask.labels == 2)).all()


def test_a_multi_frame_source_with_shuffled_frames(tmp_path):
    files, grid = objects.series(tmp_path / "s", objects.grid_of())
    source = objects.multi_frame(files, tmp_path / "multi.dcm")
    mask = objects.ring_mask(grid)
    write_dicom_seg(tmp_path / "o.dcm", mask, LABELS, [source])
    assert (read_dicom_seg(tmp_path / "o.dcm", grid)["tumour"] == (mask.labels == 2)).all()
    # The source's frames 1 to 6 hold slices 1, 3, 5, 4, 2, 0. Every frame of the SEG names the one it lies on.
    slices = [1, 3, 5, 4, 2, 0]
    for group in pydicom.dcmread(tmp_path / "o.dcm").PerFrameFunctionalGroupsSequence:
        named = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float) * (-1, -1, 1)
        assert slices[named - 1] == round(float(grid.to_index(place)[2]))


# What others write -------------------------------------------------------------------------------------------------


def frames_of(mask):
    return np.ascontiguousarray(mask.labels.transpose(2, 1, 0))


@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_label_maps(written, tmp_path, syntax):
    _, mask, files = written
    values = frames_of(mask)
    more = {"transfer_syntax_uid": syntax} if syntax else {}
    by_highdicom(tmp_path / "lm.dcm", files, values, "LABELMAP", **more)
    back = read_dicom_seg(tmp_path / "lm.dcm", mask.grid)
    assert list(back) == [f"part {n}" for n in range(1, 6)]
    assert (back["part 2"] == (mask.labels == 2)).all()
    assert (back["part 5"] == (mask.labels == 5)).all()
    assert not back["part 3"].any()


def test_fractional_counts_from_one_half(written, tmp_path):
    _, mask, files = written
    # 255 steps: 0.51 is stored as 130, 0.49 as 125; half of 255 is 127.5
    values = np.where(frames_of(mask) == 2, 0.51, np.where(frames_of(mask) == 5, 0.49, 0.0))
    by_highdicom(tmp_path / "fr.dcm", files, values[..., None].astype(np.float32), "FRACTIONAL")
    assert (read_dicom_seg(tmp_path / "fr.dcm", mask.grid)["part 1"] == (mask.labels == 2)).all()


def test_overlapping_segments_both_come_back(written, tmp_path):
    _, mask, files = written
    pixels = np.stack([frames_of(mask) > 0, frames_of(mask) == 2], axis=-1).astype(np.uint8)
    by_highdicom(tmp_path / "two.dcm", files, pixels, "BINARY")
    back = read_dicom_seg(tmp_path / "two.dcm", mask.grid)
    assert (back["part 1"] == (mask.labels > 0)).all()
    assert (back["part 2"] == (mask.labels == 2)).all()


def test_frames_in_any_order_and_a_subset_of_labels(written):
    path, mask, _ = written

    def shuffle(dataset):
        bits = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")
        size = dataset.Rows * dataset.Columns
        order = [3, 0, 5, 1, 4, 2]
        frames = [bits[n * size : (n + 1) * size] for n in order]
        packed = np.packbits(np.concatenate(frames), bitorder="little").tobytes()
        dataset.PixelData = packed + b"\0" * (len(packed) % 2)
        groups = dataset.PerFrameFunctionalGroupsSequence
        dataset.PerFrameFunctionalGroupsSequence = [groups[n] for n in order]

    edit(path, shuffle)
    back = read_dicom_seg(path, mask.grid, ["Ödem"])
    assert list(back) == ["Ödem"]
    assert (back["Ödem"] == (mask.labels == 5)).all()


def test_a_scan_cropped_around_the_segment_and_a_larger_one(written):
    path, mask, _ = written
    voxels = mask.labels == 2
    cropped = mask.grid.block(1, 0, 8)
    assert (read_dicom_seg(path, cropped, ["tumour"])["tumour"] == voxels[:, :8]).all()
    larger = Grid((14, 9, 6), mask.grid.affine @ np.array([[1, 0, 0, -2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    assert (read_dicom_seg(path, larger)["tumour"][2:13] == voxels).all()


def shifted(grid, **changes):
    affine = grid.affine.copy()
    affine[:3, 3] += changes.get("shift", (0, 0, 0))
    affine[:3, :3] *= changes.get("scale", 1.0)
    return Grid(grid.shape, affine)


REFUSED = {
    "beside": (lambda g: shifted(g, shift=(0.3, 0, 0)), lambda p: None, "MASK-GRID", "0.30 mm beside"),
    "between slices": (lambda g: shifted(g, shift=(0, 0, 1.5)), lambda p: None, "MASK-GRID", "1.50 mm beside"),
    "other spacing": (lambda g: shifted(g, scale=2.0), lambda p: None, "MASK-GRID", "do not fall on"),
    "slightly other spacing": (lambda g: shifted(g, scale=1.02), lambda p: None, "MASK-GRID", "beside"),
    "cut segment": (lambda g: g.block(2, 2, 6), lambda p: None, "MASK-GRID", "lie outside the scan"),
    "not described": (
        lambda g: g,
        lambda p: edit(p, lambda d: setattr(d, "SegmentSequence", d.SegmentSequence[:1])),
        "MASK-VALUES",
        "not described",
    ),
    "two time points": (
        lambda g: g,
        lambda p: edit(
            p,
            lambda d: setattr(
                d.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0],
                "ImagePositionPatient",
                d.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0].ImagePositionPatient,
            ),
        ),
        "MASK-READ",
        "several frames on one slice",
    ),
    "short pixels": (
        lambda g: g,
        lambda p: edit(p, lambda d: setattr(d, "PixelData", d.PixelData[:20])),
        "MASK-READ",
        "bytes of pixels",
    ),
    "huge claim": (
        lambda g: g,
        lambda p: edit(p, lambda d: (setattr(d, "Rows", 60000), setattr(d, "Columns", 60000))),
        "MASK-READ",
        "claims",
    ),
    "no position": (
        lambda g: g,
        lambda p: edit(p, lambda d: d.PerFrameFunctionalGroupsSequence[0].pop("PlanePositionSequence")),
        "MASK-READ",
        "",
    ),
    "not SEG": (lambda g: g, lambda p: edit(p, lambda d: setattr(d, "SOPClassUID", "1.2.3")), "MASK-READ", "wanted"),
    "not DICOM": (lambda g: g, lambda p: p.write_bytes(b"\0" * 3000), "MASK-READ", ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(written, name):
    path, mask, _ = written
    regrid, spoil, code, text = REFUSED[name]
    spoil(path)
    with pytest.raises(MaskError) as caught:
        read_dicom_seg(path, regrid(mask.grid))
    assert caught.value.code == code
    assert text in str(caught.value)


def test_unknown_label(written):
    path, mask, _ = written
    with pytest.raises(MaskError) as caught:
        read_dicom_seg(path, mask.grid, ["liver"])
    assert caught.value.code == "LABEL-UNKNOWN"


def test_frames_on_every_second_slice_are_noted(written, tmp_path, caplog):
    _, mask, files = written
    pixels = np.zeros(mask.labels.shape[::-1], np.uint8)
    pixels[::2, 2:5, 2:5] = 1
    by_highdicom(tmp_path / "sparse.dcm", files, pixels, "BINARY")
    read_dicom_seg(tmp_path / "sparse.dcm", mask.grid)
    assert "its slices lie 2 apart" in caplog.text


@pytest.mark.realdata
def test_liver_of_the_zoo_on_its_ct(shared_data, tmp_path):
    folder = shared_data / "zoo" / "ct_with_dicom_seg"
    files = [folder / f"0{n}.dcm" for n in (1, 2, 3)]
    grid = read_source(files).grid
    liver = read_dicom_seg(folder / "liver_seg.dcm", grid)["Liver"]
    frames = highdicom.seg.segread(folder / "liver_seg.dcm").pixel_array
    assert liver.sum() == frames.sum() > 0
    # The highest slice is the last one here, and the frames' own positions say which frame it is.
    groups = pydicom.dcmread(folder / "liver_seg.dcm").PerFrameFunctionalGroupsSequence
    for frame, group in zip(frames, groups, strict=True):
        z = float(group.PlanePositionSequence[0].ImagePositionPatient[2])
        k = round(float(grid.to_index([0, 0, z])[2]))
        assert (liver[:, :, k] == frame.T.astype(bool)).all()
    write_dicom_seg(tmp_path / "seg.dcm", Mask(liver.astype(np.uint8), grid), Labels({1: "liver"}), files)
    assert (read_dicom_seg(tmp_path / "seg.dcm", grid)["liver"] == liver).all()

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from medseg.case import Case
from medseg.config import Config, DataConfig, parse
from medseg.dataset import describe_labels, find_cases, read_reference
from medseg.errors import InputError
from medseg.grid import Grid
from medseg.io.dicom_seg_write import write_dicom_seg
from medseg.io.dicom_write import SeriesIdentity, write_series
from medseg.io.rtstruct import write_rtstruct
from medseg.phantom import make_study
from medseg.reference import describe_all, open_reference, resampled
from medseg.scan import read
from medseg.volume import UNANNOTATED, Labels, Mask, Volume
from tests.cases import AFFINE, SHAPE, blob, config, image, nifti, scan

GRID = Grid(SHAPE, AFFINE)


def case(path: Path) -> Case:
    return Case("case_01", "p", (scan("case_01.nii.gz"),), (path,))


def settings(labels: object = None, *, resample: bool = False, ignore: object = (), unannotated: object = ()) -> Config:
    others = {"ignore": ignore, "unannotated": unannotated}
    return Config(labels=labels or {"tumour": 1}, data=DataConfig(resample_references=resample), **others)  # type: ignore[arg-type]


def two_labels() -> np.ndarray:
    labels = blob()
    labels[5, 1, 1] = 2
    return labels


def code_of(path: Path, config: Config | None = None) -> str:
    with pytest.raises(InputError) as raised:
        read_reference(case(path), GRID, config or settings({"a": 1, "b": 2}))
    assert raised.value.where == "case_01"
    assert path.name in raised.value.problem
    return raised.value.code


# values


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.float32, np.float64])
def test_whole_numbers_of_any_type(tmp_path: Path, dtype: type) -> None:
    path = nifti(tmp_path / "m.nii.gz", two_labels().astype(dtype))
    mask = read_reference(case(path), GRID, settings({"a": 1, "b": 2}))
    assert mask.labels.dtype == np.uint8
    np.testing.assert_array_equal(mask.labels, two_labels())


def test_numbers_are_merged_renamed_and_ignored(tmp_path: Path) -> None:
    stored = np.zeros(SHAPE, np.int16)
    stored[0, 0, :5] = [1, 4, 300, 7, 0]
    path = nifti(tmp_path / "m.nii.gz", stored)
    mask = read_reference(case(path), GRID, settings({"b": [300], "a": [1, 4]}, ignore=[7]))
    assert mask.labels[0, 0, :5].tolist() == [2, 2, 1, 0, 0]


def test_numbers_of_what_nobody_annotated_become_255(tmp_path: Path) -> None:
    stored = two_labels()
    stored[0], stored[7, 6, 5] = 9, 77
    path = nifti(tmp_path / "m.nii.gz", stored)
    mask = read_reference(case(path), GRID, settings({"a": 2, "b": 1}, unannotated=(9, 77, 1000)))
    wanted = np.select([stored == 1, stored == 2, stored > 2], [2, 1, UNANNOTATED], 0)
    np.testing.assert_array_equal(mask.labels, wanted)
    assert mask.labels.dtype == np.uint8
    assert code_of(path, settings({"a": 2, "b": 1}, unannotated=9)) == "MASK-VALUES"


def test_zero_may_stand_for_what_nobody_annotated(tmp_path: Path) -> None:
    stored = np.zeros(SHAPE, np.uint8)
    stored[2:4], stored[3, 1] = 1, 2  # strokes: 1 background, 2 tumour, 0 where nobody drew
    given = settings({"tumour": 2}, ignore=1, unannotated=0, resample=True)
    mask = read_reference(case(nifti(tmp_path / "m.nii.gz", stored)), GRID, given)
    np.testing.assert_array_equal(mask.labels, np.array([UNANNOTATED, 0, 1])[stored])
    beyond = Grid((8, 7, 9), AFFINE)  # three slices more than the mask: nobody drew there either
    mask = read_reference(case(tmp_path / "m.nii.gz"), beyond, given)
    assert (mask.labels[..., 6:] == UNANNOTATED).all()


@pytest.mark.parametrize(("off", "severity"), [(0.0, "note"), (1e-7, "note"), (2e-4, "warning")])
def test_floats_near_whole_numbers_are_rounded_and_said_so(tmp_path: Path, off: float, severity: str) -> None:
    path = nifti(tmp_path / "m.nii.gz", (two_labels() - off * (two_labels() > 0)).astype(np.float32))
    reading = open_reference(case(path), GRID, settings({"a": 1, "b": 2}))
    np.testing.assert_array_equal(reading.mask.labels, two_labels())
    assert [(f.severity, f.code) for f in reading.findings] == [(severity, "MASK-ROUNDED")]


@pytest.mark.parametrize("value", [0.25, 1.37, -1.0])
def test_what_is_no_label_number_is_refused(tmp_path: Path, value: float) -> None:
    stored = two_labels().astype(np.float32)
    stored[4, 4, 4] = value
    assert code_of(nifti(tmp_path / "m.nii.gz", stored)) == "MASK-VALUES"


def test_nan_extra_values_255_and_a_copy_of_the_scan_are_refused(tmp_path: Path) -> None:
    stored = two_labels().astype(np.float32)
    stored[4, 4, 4] = np.nan
    assert code_of(nifti(tmp_path / "nan.nii.gz", stored)) == "NIFTI-VALUES"
    assert code_of(nifti(tmp_path / "seven.nii.gz", blob(value=7))) == "MASK-VALUES"
    assert code_of(nifti(tmp_path / "png.nii.gz", blob(value=255))) == "MASK-VALUES"
    assert code_of(nifti(tmp_path / "copy.nii.gz", image())) == "MASK-VALUES"
    one_hot = np.stack([two_labels() == n for n in range(3)], axis=-1).astype(np.uint8)
    assert code_of(nifti(tmp_path / "hot.nii.gz", one_hot)) == "NIFTI-DIMENSIONS"


def test_the_strange_values_are_named_but_not_by_the_hundred(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        read_reference(case(nifti(tmp_path / "copy.nii.gz", image())), GRID, settings())
    assert "more that no label takes (tumour: [1])" in raised.value.problem
    assert len(str(raised.value)) < 300


def test_labels_with_names_only_say_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"that no label takes \(all: no numbers\)"):
        read_reference(case(nifti(tmp_path / "m.nii.gz", blob())), GRID, settings({"all": ["GTV*"]}))


def test_what_was_noticed_is_logged_once_and_only_for_debugging(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = nifti(tmp_path / "m.nii.gz", two_labels().astype(np.float32) + np.float32(1e-4))
    with caplog.at_level("DEBUG", "medseg.reference"):
        read_reference(case(path), GRID, settings({"a": 1, "b": 2}, ignore=[0]))
    (record,) = caplog.records
    assert record.levelname == "DEBUG"
    assert record.getMessage().startswith("case_01: label numbers are floats up to")
    assert record.getMessage().endswith("(MASK-ROUNDED)")


# geometry


def test_another_axis_order_is_the_same_mask(tmp_path: Path) -> None:
    turned = GRID.order_to("SPL")
    path = nifti(tmp_path / "m.nii.gz", np.ascontiguousarray(turned.apply(two_labels())), GRID.reordered(turned).affine)
    np.testing.assert_array_equal(read_reference(case(path), GRID, settings({"a": 1, "b": 2})).labels, two_labels())


def moved(by_mm: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += by_mm
    return affine


@pytest.mark.parametrize("affine", [moved(30), moved(0.45), np.eye(4)], ids=["30 mm", "half a voxel", "identity"])
def test_beside_its_scan_is_refused_in_mm(tmp_path: Path, affine: np.ndarray) -> None:
    path = nifti(tmp_path / "m.nii.gz", two_labels(), affine)
    assert code_of(path) == "MASK-GRID"
    with pytest.raises(InputError, match=r"\d mm beside"):
        read_reference(case(path), GRID, settings({"a": 1, "b": 2}))


def test_rounding_noise_passes_and_a_missing_slice_does_not(tmp_path: Path) -> None:
    read_reference(case(nifti(tmp_path / "m.nii.gz", two_labels(), moved(1e-4))), GRID, settings({"a": 1, "b": 2}))
    assert code_of(nifti(tmp_path / "short.nii.gz", two_labels()[..., :-1])) == "MASK-GRID"


def test_resampling_happens_only_when_asked_and_says_so(tmp_path: Path) -> None:
    half = Grid((4, 4, 6), GRID.block(1, 0, 7).with_shape((4, 7, 6)).affine)
    coarse = np.zeros(half.shape, np.uint8)
    coarse[1, 3, 2] = 1
    path = nifti(tmp_path / "m.nii.gz", coarse, half.affine)
    assert code_of(path, settings()) == "MASK-GRID"
    reading = open_reference(case(path), GRID, settings(resample=True))
    assert [f.code for f in reading.findings] == ["MASK-RESAMPLED"]
    expected = np.zeros(SHAPE, np.uint8)
    expected[2:4, 3, 2] = 1  # one coarse voxel is two fine ones along i
    np.testing.assert_array_equal(reading.mask.labels, expected)
    for by_mm in (20, -20):
        far = nifti(tmp_path / "far.nii.gz", two_labels(), moved(by_mm))
        assert code_of(far, settings({"a": 1, "b": 2}, resample=True)) == "MASK-GRID"


@pytest.mark.parametrize(("outside", "refused"), [(1, False), (2, True)])
def test_a_hundredth_of_the_labelled_voxels_may_lie_outside(outside: int, refused: bool) -> None:
    """Of 100 labelled voxels in 3 slices, 1 or 2 lie in the slice above the scan."""
    labels = np.zeros((10, 10, 3), np.uint8)
    labels[..., 0] = 1
    labels[0, :outside, 0] = 0
    labels[5, :outside, 2] = 1
    below = Grid((10, 10, 2), np.eye(4))
    mask = Mask(labels, Grid((10, 10, 3), np.eye(4)))
    if refused:
        with pytest.raises(InputError, match="2% of its labelled voxels"):
            resampled(mask, below)
    else:
        np.testing.assert_array_equal(resampled(mask, below).labels, labels[..., :2])


def test_resampling_needs_no_memory_for_the_coordinates_of_the_whole_mask() -> None:
    grid = Grid((64, 64, 64), np.eye(4))
    mask = Mask(np.ones(grid.shape, np.uint8), grid)
    tracemalloc.start()
    resampled(mask, grid)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * mask.labels.size  # the coordinates of all labelled voxels would be 72 bytes each


@hypothesis(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.integers(2, 7), min_size=3, max_size=3),
    st.lists(st.floats(-1.5, 1.5), min_size=3, max_size=3),
    st.lists(st.floats(-2, 2), min_size=3, max_size=3),
)
def test_resampling_takes_the_nearest_voxel_in_the_world(
    shape: list[int], angles: list[float], shift: list[float]
) -> None:
    """Against a brute search over all voxel centres."""
    source = Grid((6, 5, 4), np.diag([1.0, 1.3, 2.0, 1.0]))
    labels = np.arange(1, 121, dtype=np.uint8).reshape(source.shape)
    a, b, c = angles
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]) * (1 + abs(c))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn, shift
    grid = Grid((shape[0], shape[1], shape[2]), affine)
    try:
        found = resampled(Mask(labels, source), grid).labels
    except InputError as error:
        if error.code != "MASK-GRID":
            raise
        return
    index = source.to_index(grid.to_world(np.argwhere(np.ones(grid.shape))))
    steps = np.stack(np.meshgrid(*(np.arange(n) for n in source.shape), indexing="ij"), -1).reshape(-1, 3)
    nearest = np.abs(index[:, None] - steps).max(axis=-1)
    for value, distances in zip(found.reshape(-1), nearest, strict=True):
        closest = distances.min()
        assert (value == 0) == (closest > 0.5) or abs(closest - 0.5) < 1e-9
        if value and abs(closest - 0.5) > 1e-9:
            assert distances[int(value) - 1] == pytest.approx(closest)


# RTSTRUCT and SEG, on series written for the purpose


@pytest.fixture
def study(tmp_path: Path) -> tuple[Path, Mask]:
    """An MR series with an organ (2) around a tumour (1), not yet with a reference."""
    shape = (24, 20, 6)
    labels = np.zeros(shape, np.uint8)
    labels[4:14, 5:15, 1:5] = 2
    labels[6:10, 7:12, 2:4] = 1
    affine = np.diag([-1.0, -1.2, 3.0, 1.0])
    affine[:3, 3] = [30, 20, -7]
    grid = Grid(shape, affine)
    write_series(Volume(image(1, shape)[None], grid, "MR"), tmp_path / "scans/P1/MR", SeriesIdentity("p", "1.2.3"))
    return tmp_path / "scans", Mask(labels, grid)


def found_case(scans: Path, labels: object) -> tuple[Case, Config, Grid]:
    settings = config(scans, labels, scans=scans, references=())
    (case,) = find_cases(settings).cases
    return case, settings, read(case.scans[0]).grid


@pytest.mark.parametrize("kind", ["rtstruct", "dicom-seg"])
def test_dicom_references_by_name_and_pattern(study: tuple[Path, Mask], kind: str) -> None:
    scans, mask = study
    write = write_rtstruct if kind == "rtstruct" else write_dicom_seg
    files = sorted((scans / "P1/MR").iterdir())
    write(scans / "P1/reference.dcm", mask, Labels({1: "GTV_Mass", 2: "Organ"}), files)
    case, settings, grid = found_case(scans, {"tumour": ["GTV*"], "organ": ["organ"]})
    placed = read_reference(case, grid, settings)
    expected = mask.placed_on(grid).labels
    np.testing.assert_array_equal(placed.labels, expected)
    assert describe_labels(case, settings) == [
        f"{case.id}: reference.dcm",
        "  tumour (1) takes GTV_Mass",
        "  organ (2) takes Organ",
    ]
    only, settings, grid = found_case(scans, {"tumour": ["GTV*"]})
    np.testing.assert_array_equal(read_reference(only, grid, settings).labels, expected == 1)
    assert describe_labels(only, settings)[-1] == "  taken by no label: Organ"


def test_segments_by_number(study: tuple[Path, Mask]) -> None:
    scans, mask = study
    files = sorted((scans / "P1/MR").iterdir())
    write_dicom_seg(scans / "P1/seg.dcm", mask, Labels({1: "Neoplasm", 2: "Organ"}), files)
    case, settings, grid = found_case(scans, {"organ": 2, "tumour": 1})
    expected = np.array([0, 2, 1])[mask.placed_on(grid).labels]
    np.testing.assert_array_equal(read_reference(case, grid, settings).labels, expected)


def test_objects_complete_each_other_and_the_later_label_covers(study: tuple[Path, Mask]) -> None:
    scans, mask = study
    files = sorted((scans / "P1/MR").iterdir())
    whole = Mask((mask.labels > 0).astype(np.uint8), mask.grid)
    inner = Mask((mask.labels == 1).astype(np.uint8), mask.grid)
    write_rtstruct(scans / "P1/organ.dcm", whole, Labels({1: "Organ"}), files)
    write_dicom_seg(scans / "P1/tumour.dcm", inner, Labels({1: "GTV"}), files)
    case, settings, grid = found_case(scans, {"organ": ["Organ"], "tumour": ["GTV"]})
    reading = open_reference(case, grid, settings)
    np.testing.assert_array_equal(reading.mask.labels, np.array([0, 2, 1])[mask.placed_on(grid).labels])
    assert "MASK-OVERLAP" in {f.code for f in reading.findings}
    turned, settings, grid = found_case(scans, {"tumour": ["GTV"], "organ": ["Organ"]})
    assert set(np.unique(read_reference(turned, grid, settings).labels)) == {
        0,
        2,
    }  # the organ came later and covers all


@pytest.mark.parametrize("kind", ["rtstruct", "dicom-seg"])
@pytest.mark.parametrize("apart", [False, True])
def test_a_structure_of_what_nobody_annotated_covers_all_labels(
    study: tuple[Path, Mask], kind: str, apart: bool
) -> None:
    scans, mask = study
    write = write_rtstruct if kind == "rtstruct" else write_dicom_seg
    files = sorted((scans / "P1/MR").iterdir())
    tumour, unsure = (Mask(np.zeros_like(mask.labels), mask.grid) for _ in range(2))
    tumour.labels[6:10, 7:12, 2:4] = 1
    unsure.labels[8:20, 7:15, 1:4] = 2
    if apart:
        write(scans / "P1/tumour.dcm", tumour, Labels({1: "GTV"}), files)
        write(scans / "P1/unsure.dcm", Mask(unsure.labels // 2, mask.grid), Labels({1: "unsure_1"}), files)
    else:
        unsure.labels[(unsure.labels == 0) & (tumour.labels == 1)] = 1
        write(scans / "P1/both.dcm", unsure, Labels({1: "GTV", 2: "unsure_1"}), files)
    found = config(scans, {"tumour": "GTV"}, scans=scans, references=()).model_copy(
        update={"unannotated": ("unsure*",)}
    )
    (case,) = find_cases(found).cases
    reading = open_reference(case, read(case.scans[0]).grid, found)
    wanted = np.where(unsure.labels == 2, UNANNOTATED, tumour.labels)
    np.testing.assert_array_equal(reading.mask.placed_on(mask.grid).labels, wanted)
    assert ("MASK-OVERLAP" in {f.code for f in reading.findings}) == apart
    assert "  not annotated: unsure_1" in describe_labels(case, found)


@pytest.mark.parametrize("ignore", [(), ("tumour",)])
def test_a_label_without_source_beside_a_structure_without_label_is_a_warning(
    study: tuple[Path, Mask], ignore: tuple[str, ...]
) -> None:
    scans, mask = study
    names = Labels({1: "tumour", 2: "Femur"})
    write_dicom_seg(scans / "P1/seg.dcm", mask, names, sorted((scans / "P1/MR").iterdir()))
    found, settings, grid = found_case(scans, {"tumour": ["GTV*"], "bone": ["Femur"]})
    settings = settings.model_copy(update={"ignore": ignore})
    (finding,) = [f for f in open_reference(found, grid, settings).findings if f.code == "MASK-STRUCTURES"]
    if ignore:
        assert (finding.severity, finding.message) == ("note", "no structure here for tumour")
    else:
        assert finding.severity == "warning"
        assert "seg.dcm: nothing for tumour, and no label takes tumour" in finding.message


def test_a_structure_without_label_is_a_note_where_every_label_has_one(study: tuple[Path, Mask]) -> None:
    scans, mask = study
    names = Labels({1: "GTV", 2: "Femur"})
    write_dicom_seg(scans / "P1/seg.dcm", mask, names, sorted((scans / "P1/MR").iterdir()))
    found, settings, grid = found_case(scans, {"tumour": ["GTV*"]})
    (finding,) = open_reference(found, grid, settings).findings
    assert (finding.severity, "no label takes Femur" in finding.message) == ("note", True)


def test_a_case_without_reference() -> None:
    with pytest.raises(InputError) as raised:
        read_reference(Case("c", "p", (scan("c.nii"),)), GRID, settings())
    assert raised.value.code == "MASK-MISSING"


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["STS_001", "STS_024", "STS_048"])
def test_structure_sets_equal_the_nifti_masks(shared_data: Path, name: str) -> None:
    folder = shared_data / "sarcoma_mr_t1"
    case, settings, grid = found_case(folder / "dicom" / name, {"tumour": ["GTV_Mass*"]})
    drawn = read_reference(case, grid, settings)
    stored = read_reference(Case(name, "", case.scans, (folder / f"masks/{name}.nii.gz",)), grid, Config())
    np.testing.assert_array_equal(drawn.labels, stored.labels)
    assert drawn.labels.any()


def test_what_labels_take_is_told_once_for_all_cases(tmp_path: Path) -> None:

    study = make_study(tmp_path / "study", patients=3, held_out=1)  # RTSTRUCT, DICOM SEG, NIfTI mask
    settings = parse(
        "labels:\n  tumour: [1, 'GTV*', tumour]\n",
        "test",
        [f"data.scans={study.training}", f"data.references={study.training_references}"],
    )
    lines = describe_all(find_cases(settings).cases, settings)
    assert "tumour (1) takes GTV_Mass (in 1 of 2 cases)" in lines
    assert "taken by no label: Femur (in 1 of 2 cases)" in lines
    assert "  tumour (1) takes 1" in lines

"""The fingerprint's numbers, each derived by arithmetic; blind to order; one case in memory at a time."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from medseg.case import Case
from medseg.case_measure import SAMPLE, CaseMeasure, ChannelMeasure, _flicker, drawn_plane, measure_case, native_plane
from medseg.check import examine
from medseg.config import ChannelConfig, Config
from medseg.config.settings import Plane
from medseg.errors import InputError, UsageError
from medseg.facts import LabelFacts, seen_by
from medseg.fingerprint import fingerprint
from medseg.grid import Grid
from medseg.scan import find_scans
from medseg.volume import Volume
from tests.cases import AFFINE, SHAPE, blob, config, data_set, image, nifti, scan
from tests.phantoms import AXIAL, CORONAL, SAGITTAL, save, series

ORIENTATIONS = [
    "".join(letters) for axes in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*axes)
]
"""All 48 ways in which three array axes can lie along the body's."""


def one(
    folder: Path, voxels: np.ndarray, labels: np.ndarray, affine: np.ndarray = AFFINE, **select: str
) -> CaseMeasure:
    nifti(folder / "images/a.nii.gz", voxels, affine)
    nifti(folder / "labels/a.nii.gz", labels, affine)
    settings = config(folder, select=(ChannelConfig(**select),))
    (found,) = find_scans(folder / "images")
    return measure_case(Case("a", "a", (found,), (folder / "labels/a.nii.gz",)), settings)[0]


# one case


def test_shape_spacing_and_volumes_along_the_body(tmp_path: Path) -> None:
    """A grid whose axes i, j, k run along z, x, y: sizes and spacings are told along x, y, z."""
    affine = np.array([[0, 0.7, 0, 0], [0, 0, -1.1, 3], [2.5, 0, 0, 9], [0, 0, 0, 1.0]])
    found = one(tmp_path, image(1, (5, 6, 7)), blob((5, 6, 7)), affine)
    assert found.shape == (6, 7, 5)
    assert found.spacing_mm == pytest.approx((0.7, 1.1, 2.5))
    assert found.voxels == 210
    assert found.voxel_ml == pytest.approx(0.7 * 1.1 * 2.5 / 1000)
    assert found.label_voxels == (12,)  # 2 x 3 x 2
    assert found.plane == "axial"  # the largest spacing is along z
    # Voxels 1, 2 along z, 2 to 4 along x, 3 and 4 of 7 along y, which runs backwards: 2 and 3 from the other end.
    assert found.label_slices == (3, 2, 2)
    (box,) = found.label_boxes_mm
    assert box == (pytest.approx((2 * 0.7, 5 * 0.7)), pytest.approx((2.2, 4.4)), pytest.approx((2.5, 7.5)))


def test_chords_are_voxels_by_runs(tmp_path: Path) -> None:
    """An L of 2 x 2 columns less one, three voxels high, and one voxel apart from it; an absent label has none."""
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[1:3, 1:3, 2:5] = 1
    labels[2, 2] = 0
    labels[5, 6, 7] = 1
    found = one(tmp_path, image(1, labels.shape), labels, np.diag([2.0, 3.0, 5.0, 1.0]))
    # 3 columns of 3 voxels and one: 10. Runs along x: 2 in each of 3 layers and 1; along y the same; along z 3 and 1.
    assert found.label_chords_mm == (pytest.approx((2 * 10 / 7, 3 * 10 / 7, 5 * 10 / 4)),)
    labels[:] = 0
    assert one(tmp_path / "none", image(1, labels.shape), labels, np.eye(4)).label_chords_mm == ((0.0, 0.0, 0.0),)


def test_foreground_are_the_voxels_under_labels_and_no_others(tmp_path: Path) -> None:
    voxels = np.full(SHAPE, 7, np.int16)
    voxels[blob() > 0] = np.arange(100, 112)
    found = one(tmp_path, voxels, blob()).channels[0]
    assert sorted(found.foreground.tolist()) == list(range(100, 112))
    assert (found.low, found.high) == (7, 111)


def test_body_of_a_ct_lies_above_minus_500(tmp_path: Path) -> None:
    voxels = np.full(SHAPE, -1000, np.int16)
    voxels[2:5] = 40
    voxels[0, 0, 0] = -500
    found = one(tmp_path, voxels, blob(), modality="CT").channels[0]
    assert found.modality == "CT"
    assert set(found.body.tolist()) == {40.0}
    assert len(found.body) == 3 * 7 * 6  # rows 2, 3 and 4


def test_body_of_an_mr_lies_above_a_tenth_of_the_range(tmp_path: Path) -> None:
    voxels = np.zeros(SHAPE, np.int16)
    voxels[2:5] = 1000
    voxels[5] = 90  # 9 percent of the range from 0 to 1000: air
    voxels[6] = 110
    assert set(one(tmp_path, voxels, blob()).channels[0].body.tolist()) == {110.0, 1000.0}


def test_every_case_weighs_at_most_a_sample(tmp_path: Path) -> None:
    shape = (60, 50, 40)
    found = one(tmp_path, image(0, shape), np.ones(shape, np.uint8)).channels[0]
    for sample in (found.body, found.foreground):
        assert SAMPLE / 2 < len(sample) <= SAMPLE
        assert sample.base is None  # a view would keep what it was taken from in memory
    # 120,000 uniform numbers from 100 to 999: the median of 20,000 of them is within 3 x 260 / sqrt(20000) = 6 of 549.5
    assert np.median(found.foreground) == pytest.approx(549.5, abs=10)


def test_the_foreground_is_sampled_at_one_stride_across_slices(tmp_path: Path) -> None:
    shape = (61, 51, 40)
    found = one(tmp_path, image(0, shape), np.ones(shape, np.uint8)).channels[0]
    # 61 x 51 x 40 = 124,440 voxels; every 7th keeps them below 20,000: 17,777.1, and the first. A stride that began
    # anew in each slice of 3,111 would keep 40 x 445 = 17,800.
    assert len(found.foreground) == 17_778


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused(tmp_path: Path, bad: float) -> None:
    voxels = image().astype(np.float32)
    voxels[3, 3, 3] = bad
    with pytest.raises(InputError) as raised:
        one(tmp_path, voxels, blob())
    assert raised.value.code in ("DATA-VALUES", "NIFTI-VALUES")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_of_a_scan_that_is_no_nifti_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float) -> None:
    voxels = image().astype(np.float32)[None]
    voxels[0, 3, 3, 3] = bad
    monkeypatch.setattr("medseg.case_measure.read", lambda scan: Volume(voxels, Grid(SHAPE, AFFINE)))
    path = nifti(tmp_path / "m.nii.gz", blob())
    with pytest.raises(InputError) as raised:
        measure_case(Case("a", "a", (scan("a.nii"),), (path,)), config(tmp_path))
    assert (raised.value.code, raised.value.where) == ("DATA-VALUES", "a")


@hypothesis(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(codes=st.sampled_from(ORIENTATIONS))
def test_a_reordered_scan_is_the_same_case(tmp_path: Path, codes: str) -> None:
    """Axis order and direction of the file change neither digest nor numbers, over all 48 orientations."""
    plain = one(tmp_path / "plain", image(), blob())
    order = Grid(SHAPE, AFFINE).order_to(codes)
    turned = [np.ascontiguousarray(order.apply(array)) for array in (image(), blob())]
    other = one(tmp_path / "turned", *turned, Grid(SHAPE, AFFINE).reordered(order).affine)
    assert other.channels[0].digest == plain.channels[0].digest
    assert (other.shape, other.label_voxels, other.plane) == (plain.shape, plain.label_voxels, plain.plane)
    assert other.spacing_mm == pytest.approx(plain.spacing_mm)
    assert sorted(other.channels[0].foreground) == sorted(plain.channels[0].foreground)


def test_the_digest_tells_images_and_mirror_images_apart_but_not_types(tmp_path: Path) -> None:
    digests = [
        one(tmp_path / str(n), voxels, blob()).channels[0].digest
        for n, voxels in enumerate([image(), image().astype(np.float32), image()[::-1].copy(), image(1)])
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


# the native plane


@pytest.mark.parametrize(("orientation", "plane"), [(AXIAL, "axial"), (CORONAL, "coronal"), (SAGITTAL, "sagittal")])
def test_dicom_knows_its_stack_even_when_thin(tmp_path: Path, orientation: tuple[float, ...], plane: str) -> None:
    save(series("MR", orientation, step=0.5, slices=5), tmp_path)
    (found,) = find_scans(tmp_path)
    assert found.grid is not None
    assert native_plane(found, found.grid) == plane


@pytest.mark.parametrize(
    ("spacing", "plane"),
    [
        ((1, 1, 3), "axial"),
        ((3, 1, 1), "sagittal"),
        ((1, 3, 1), "coronal"),
        ((1, 1, 1), "axial"),
        ((1.2, 1, 1), "axial"),
    ],
)
def test_nifti_is_judged_by_its_thickest_axis(spacing: tuple[float, float, float], plane: str) -> None:
    grid = Grid(SHAPE, np.diag([*spacing, 1.0]))
    assert native_plane(scan("a.nii"), grid) == plane


# the plane that the reference was drawn in


def drawn(across: int, seed: int = 0, sway: int = 2) -> np.ndarray:
    """A ball, each slice across an axis moved by itself, as hands do that draw slice after slice."""
    rng = np.random.default_rng(seed)
    x, y = np.mgrid[:40, :40] - 19.5
    slices = [
        (x - rng.integers(-sway, sway + 1)) ** 2 + (y - rng.integers(-sway, sway + 1)) ** 2 + z**2 < 12**2
        for z in np.arange(40) - 19.5
    ]
    return np.moveaxis(np.array(slices, np.uint8), 0, across)


PLANE_OF = ("sagittal", "coronal", "axial")


@pytest.mark.parametrize("across", [0, 1, 2])
@pytest.mark.parametrize("native", PLANE_OF)
@pytest.mark.parametrize("seed", range(3))
def test_the_plane_of_drawing_shows_by_flicker_across_it(across: int, native: Plane, seed: int) -> None:
    assert drawn_plane(drawn(across, seed), (1.0, 1.0, 1.0), native) == PLANE_OF[across]
    assert drawn_plane(drawn(across, seed), (0.9, 1.1, 1.0), native) == PLANE_OF[across]


def test_where_no_plane_shows_the_native_one_stays() -> None:
    smooth, empty = drawn(0, sway=0), np.zeros((40, 40, 40), np.uint8)
    noise = np.random.default_rng(0).integers(0, 2, (40, 40, 40)).astype(np.uint8)  # flickers alike in all directions
    unknown = np.where(drawn(0) > 0, np.uint8(255), np.uint8(0))  # nobody drew it
    for labels in (smooth, empty, noise, unknown):
        assert drawn_plane(labels, (1.0, 1.0, 1.0), "coronal") == "coronal"


def plates(along_x: int, along_y: int = 0, rows: int = 3) -> np.ndarray:
    """So many plates of `rows` x 3 voxels, one voxel thick across x, and of 3 x 3 across y; none touches another."""
    labels = np.zeros((40, 40, 8), np.uint8)
    for n in range(along_x):
        labels[2 + 3 * n, 2 : 2 + rows, 2:5] = 1
    for n in range(along_y):
        labels[2:5, 12 + 3 * n, 2:5] = 1
    return labels


def test_few_flickering_voxels_tell_nothing() -> None:
    assert drawn_plane(plates(1, rows=3), (1.0, 1.0, 1.0), "axial") == "axial"  # 9 of them
    assert drawn_plane(plates(1, rows=4), (1.0, 1.0, 1.0), "axial") == "sagittal"  # 12


def test_another_plane_must_flicker_clearly_more_than_the_native_one() -> None:
    # A plate across x has 9 flickers in 18 changes along x, and 6 changes along y; one across y the other way round.
    # Ten and five: 90 of 210 against 45 of 150, 1.43 times. Ten and four: 90 of 204 against 36 of 132, 1.62 times.
    assert drawn_plane(plates(10, 5), (1.0, 1.0, 1.0), "coronal") == "coronal"
    assert drawn_plane(plates(10, 4), (1.0, 1.0, 1.0), "coronal") == "sagittal"


def test_thick_slices_stay_whole() -> None:
    assert drawn_plane(drawn(0), (1.0, 1.0, 1.25), "axial") == "axial"
    assert drawn_plane(drawn(0), (1.0, 1.0, 1.24), "axial") == "sagittal"


def test_the_flicker_is_counted_by_hand() -> None:
    column = np.array([0, 1, 0, 0, 2, 2, 0, 255, 0, 3, 1, 3], np.uint8)
    # Changes: 0-1, 1-0, 0-2, 2-0, 0-3, 3-1, 1-3 (7); next to 255 nothing is known. Flickers: the 1 between zeros, and
    # the 1 between threes; the 2s are two slices thick.
    assert _flicker(column[:, None, None]) == (2, 7)
    assert _flicker(np.repeat(column[:, None, None], 5, axis=1)) == (10, 35)


def test_most_references_choose_the_plane() -> None:
    found = fingerprint(
        [measured(str(n), drawn=plane) for n, plane in enumerate(["coronal"] * 2 + ["axial"])], Config()
    )
    assert (found.plane, found.native) == ("coronal", "axial")
    assert (found.drawn, found.planes) == ({"axial": 1, "coronal": 2}, {"axial": 3})


# many cases


def measured(name: str, value: float = 0, **more: object) -> CaseMeasure:
    body = np.full(10, value, np.float32)
    channel = ChannelMeasure("MR", value, value + 1, body, body[: int(more.pop("foreground", 10))], name)  # type: ignore[call-overload]
    facts = {
        "shape": (10, 20, 30),
        "spacing_mm": (1.0, 1.0, 3.0),
        "plane": "axial",
        "voxel_ml": 0.003,
        "label_voxels": (600,),
        "label_boxes_mm": (((2.0, 5.0), (2.0, 6.0), (0.0, 30.0)),),
        "label_chords_mm": ((3.0, 4.0, 30.0),),
        "label_slices": (3, 4, 15),
        "label_facts": (LabelFacts(1.8, 1),),
        **more,
    }
    facts.setdefault("drawn", facts["plane"])
    return CaseMeasure(id=name, channels=(channel,), **facts)  # type: ignore[arg-type]


def test_sums_over_cases() -> None:
    found = fingerprint(
        [
            measured("a", 10, spacing_mm=(1.0, 1.0, 2.0), shape=(10, 20, 30)),
            measured("b", 20, spacing_mm=(0.5, 1.5, 3.0), shape=(12, 20, 34), label_voxels=(0,), foreground=0),
            measured(
                "c",
                60,
                spacing_mm=(0.7, 1.1, 9.0),
                shape=(40, 20, 31),
                label_voxels=(1200,),
                label_chords_mm=((13.0, 4.0, 20.0),),
            ),
        ],
        Config(),
    )
    assert found.cases == 3
    assert found.spacing_mm == (0.7, 1.1, 3.0)  # medians, each axis for itself
    assert found.spacing_range_mm == ((0.5, 1.0), (1.0, 1.5), (2.0, 9.0))
    assert found.shape == (12, 20, 31)
    (label,) = found.labels
    assert (label.name, label.cases) == ("tumour", 2)
    assert label.volume_ml == pytest.approx((1.8, 2.7, 3.6))  # 600 and 1200 voxels of 0.003 ml
    # 600 / (10 x 20 x 30) = 0.1 and 1200 / (40 x 20 x 31) = 0.0483871; the median of two is their mean
    assert label.share == pytest.approx((0.1 + 1200 / 24800) / 2)
    assert label.chord_mm == pytest.approx((4, 4, 21))  # a tenth of the way from the smaller to the larger of two
    (channel,) = found.channels
    assert channel.modality == "MR"
    assert channel.foreground_mean == pytest.approx(35)  # 10 and 60 weigh the same
    assert channel.foreground_sd == pytest.approx(25)
    assert channel.foreground_percentiles == (10, 60)
    assert channel.body["50"] == 20
    assert channel.foreground["50"] == pytest.approx(35)


def test_a_large_tumour_weighs_no_more_than_a_small_one() -> None:
    small, large = measured("a", 0, foreground=1), measured("b", 100)
    assert fingerprint([small, large], Config()).channels[0].foreground_mean == pytest.approx(50)


def test_percentiles_of_one_ramp() -> None:
    ramp = np.linspace(0, 1000, 2001, dtype=np.float32)
    case = measured("a")
    channel = ChannelMeasure("CT", 0, 1000, ramp, ramp, "d")
    found = fingerprint([CaseMeasure(**{**vars(case), "channels": (channel,)})], Config()).channels[0]
    # the p-th percentile of the numbers 0 to 1000 is 10 p
    assert found.body == pytest.approx(
        {"0.5": 5, "5": 50, "25": 250, "50": 500, "75": 750, "95": 950, "99.5": 995}, abs=1
    )
    assert found.foreground_sd == pytest.approx(1000 / np.sqrt(12), rel=0.01)  # of a uniform distribution


@pytest.mark.parametrize(
    ("planes", "winner"),
    [("aac", "axial"), ("ccs", "coronal"), ("ac", "axial"), ("sa", "axial"), ("sca", "axial"), ("ssa", "sagittal")],
)
def test_most_cases_choose_the_plane_and_ties_are_axial(planes: str, winner: str) -> None:
    names = {"a": "axial", "c": "coronal", "s": "sagittal"}
    found = fingerprint([measured(str(n), plane=names[p]) for n, p in enumerate(planes)], Config())
    assert found.plane == winner
    assert sum(found.planes.values()) == len(planes)


def test_without_any_foreground_the_body_speaks() -> None:
    found = fingerprint([measured("a", 5, foreground=0, label_voxels=(0,))], Config())
    assert found.channels[0].foreground_percentiles == (5, 5)
    assert found.labels[0].volume_ml == (0, 0, 0)
    json.dumps(found.to_dict(), allow_nan=False)


def test_no_case_is_an_error() -> None:
    with pytest.raises(UsageError) as raised:
        fingerprint([], Config())
    assert raised.value.code == "DATA-EMPTY"


def test_in_plane_spacing_follows_the_letters() -> None:
    found = fingerprint([measured("a", spacing_mm=(1.0, 2.0, 3.0))], Config())
    assert found.in_plane_spacing_mm("RAS") == (1.0, 2.0)
    assert found.in_plane_spacing_mm("PIL") == (2.0, 3.0)
    assert found.in_plane_spacing_mm("SLA") == (3.0, 1.0)


@hypothesis(max_examples=30)
@given(st.integers(0, 1000), st.randoms(use_true_random=False))
def test_the_order_of_cases_does_not_matter_to_the_last_bit(seed: int, random) -> None:  # type: ignore[no-untyped-def]
    generator = np.random.default_rng(seed)
    cases = []
    for number in range(6):
        values = generator.normal(100, 60, 50).astype(np.float32)
        channel = ChannelMeasure("MR", 0, 1, values, values[:20], str(number))
        spacing = tuple(generator.uniform(0.3, 5, 3).tolist())
        cases.append(CaseMeasure(**{**vars(measured(str(number), spacing_mm=spacing)), "channels": (channel,)}))
    shuffled = random.sample(cases, len(cases))
    assert fingerprint(shuffled, Config()).to_dict() == fingerprint(cases, Config()).to_dict()


def test_how_far_the_cases_reach_is_read_again_from_the_plain_form() -> None:
    cases = [measured("a", 3), measured("b", 9, shape=(10, 20, 60), label_facts=(LabelFacts(0.9, 4),))]
    found = fingerprint(cases, Config())
    assert found.seen.extent_mm[:2] == ((10, 10), (20, 20))
    assert found.seen.extent_mm[2] == (90, 180)  # 30 and 60 slices of 3 mm
    assert found.seen.labels["tumour"].volume_ml == (0.9, 1.8)
    assert found.seen.channels[0].profile == ((3, 9),) * 5
    assert seen_by(json.loads(json.dumps(found.to_dict()))) == found.seen


def test_the_plain_form_is_json_and_nothing_is_lost() -> None:
    found = fingerprint([measured("a", 3)], Config())
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["spacing_mm"] == [1.0, 1.0, 3.0]
    assert plain["channels"][0]["body"]["50"] == 3
    assert plain == found.to_dict()


# memory


def peak_of(folder: Path, count: int) -> int:
    shape = (64, 64, 48)
    for number in range(count):
        nifti(folder / f"images/c{number}.nii", image(number, shape))
        nifti(folder / f"labels/c{number}.nii", blob(shape))
    settings = config(folder)
    tracemalloc.start()
    try:
        assert len(examine(settings).dataset.cases) == count
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_one_case_is_in_memory_at_a_time(tmp_path: Path) -> None:
    """A case is 0.6 MB (2 + 1 bytes a voxel), what stays of it 80 kB: 10 cases must not need 7 more volumes than 3."""
    few, many = peak_of(tmp_path / "few", 3), peak_of(tmp_path / "many", 10)
    assert many - few < 7 * 64 * 64 * 48 * 2 / 2


# several channels


def test_channels_on_different_grids_are_sampled_at_the_same_places(tmp_path: Path) -> None:
    """The second channel has another resolution; under the mask it is 5 everywhere, elsewhere 9."""
    settings = data_set(tmp_path, 1)
    fine = Grid(SHAPE, AFFINE)
    coarse_affine = AFFINE.copy()
    coarse_affine[:3, :3] *= 2
    coarse = np.full((4, 4, 3), 9, np.int16)
    places = fine.to_world(np.argwhere(blob()))
    index = np.rint(Grid(coarse.shape, coarse_affine).to_index(places)).astype(int)
    inside = index[(index < coarse.shape).all(axis=1)]
    coarse[tuple(inside.T)] = 5
    nifti(tmp_path / "other/second.nii.gz", coarse, coarse_affine)
    (first,), (second,) = find_scans(tmp_path / "images"), find_scans(tmp_path / "other")
    both = Case("a", "a", (first, second), (tmp_path / "labels/case_00.nii.gz",))
    select = (ChannelConfig(name="one"), ChannelConfig(name="two", modality="PT"))
    found, _ = measure_case(
        both, settings.model_copy(update={"data": settings.data.model_copy(update={"select": select})})
    )
    assert set(found.channels[1].foreground.tolist()) == {5.0}
    assert found.channels[1].modality == "PT"


# real data


@pytest.mark.realdata
def test_hippocampus_in_numbers(shared_data: Path) -> None:
    """Against numpy and nibabel on the same files, for a few cases."""
    import nibabel as nib

    settings = config(shared_data / "hippocampus", {"anterior": 1, "posterior": 2})
    scans = {found.case_id: found for found in find_scans(shared_data / "hippocampus/images")}
    for name in ("hippocampus_001", "hippocampus_003", "hippocampus_367"):
        path = shared_data / f"hippocampus/labels/{name}.nii.gz"
        found, _ = measure_case(Case(name, name, (scans[name],), (path,)), settings)
        labels, voxels = (np.asarray(nib.load(p).dataobj) for p in (path, scans[name].path))
        assert found.label_voxels == ((labels == 1).sum(), (labels == 2).sum())
        assert (found.channels[0].low, found.channels[0].high) == (voxels.min(), voxels.max())
        assert sorted(found.channels[0].foreground) == pytest.approx(sorted(voxels[labels > 0].astype(np.float32)))

"""Metrics against arithmetic, MONAI, SimpleITK and a brute-force search in world space."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

from medseg.errors import MaskError
from medseg.grid import AxisOrder, Grid
from medseg.metrics import METRICS, LabelScores, score_case, score_missing, stack_axis
from medseg.surfaces import surface_distances
from medseg.volume import Labels, Mask

TUMOUR = Labels({1: "tumour"})


def grid(shape, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), matrix=None):
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if matrix is None else matrix) @ np.diag(spacing)
    affine[:3, 3] = origin
    return Grid(shape, affine)


def mask(array, where):
    return Mask(np.asarray(array).astype(np.uint8), where)


def score(prediction, reference, where, **more) -> LabelScores:
    return score_case(mask(prediction, where), mask(reference, where), TUMOUR, "case-1", **more).labels[0]


def box(shape, *ranges):
    array = np.zeros(shape, bool)
    array[tuple(slice(a, b) for a, b in ranges)] = True
    return array


def blobs(generator, shape, share):
    field = ndimage.gaussian_filter(generator.normal(size=shape), generator.uniform(0.3, 1.6))
    return field > np.quantile(field, 1 - share)


def test_golden_values_of_two_boxes():
    where = grid((20, 20, 20), (1.0, 2.0, 3.0))
    reference = box((20, 20, 20), (2, 6), (2, 6), (2, 6))  # 4 x 4 x 4 = 64 voxels
    prediction = box((20, 20, 20), (3, 7), (2, 6), (2, 6))  # the same, one voxel (1 mm) further along i: 48 shared
    s = score(prediction, reference, where, tolerance_mm=0.5)
    assert s.outcome == "hit"
    assert s.dice == pytest.approx(2 * 48 / 128)
    assert s.iou == pytest.approx(48 / 80)
    assert s.sensitivity == pytest.approx(0.75)
    assert s.precision == pytest.approx(0.75)
    assert s.reference_ml == pytest.approx(64 * 6 / 1000)  # 1 x 2 x 3 mm = 6 mm3 a voxel
    assert s.difference_ml == pytest.approx(0)
    # A 4-cube has 64 - 8 = 56 surface voxels. Shifted by one, the far face (16) is 1 mm away; the layer i=3 of the
    # prediction is a full face, its inner 4 voxels lie 1 mm from the reference's surface (i=2); likewise i=5. So
    # 16 + 4 voxels at 1 mm in each direction, 36 of 56 at 0, and 95 % of 56 lies among the ones.
    assert s.hd95_mm == pytest.approx(1.0)
    assert s.assd_mm == pytest.approx(20 / 56)
    assert s.surface_dice == pytest.approx(36 / 56)
    assert score(prediction, reference, where, tolerance_mm=1.0).surface_dice == 1.0
    # Slices go along k (3 mm): each has 12 shared of 16 + 16.
    assert s.slice_dice == pytest.approx(0.75)


def test_single_voxels_three_apart():
    where = grid((9, 9, 9), (0.5, 0.7, 2.0))
    s = score(box((9, 9, 9), (4, 5), (4, 5), (7, 8)), box((9, 9, 9), (4, 5), (4, 5), (4, 5)), where)
    assert (s.dice, s.outcome) == (0.0, "missed")  # both are there, but they do not touch
    assert s.hd95_mm == pytest.approx(6.0)  # 3 x 2.0 mm
    assert s.assd_mm == pytest.approx(6.0)
    assert (s.lesions_found, s.lesions_missed, s.lesions_false) == (0, 1, 1)


@pytest.mark.parametrize(
    ("prediction", "reference", "outcome", "dice", "surface", "sensitivity", "precision"),
    [
        (False, False, "truly empty", None, None, None, None),
        (False, True, "missed", 0.0, 0.0, 0.0, None),
        (True, False, "false alarm", 0.0, 0.0, None, 0.0),
    ],
)
def test_empty_rule(prediction, reference, outcome, dice, surface, sensitivity, precision):
    shape = (6, 6, 6)
    full = box(shape, (1, 3), (1, 3), (1, 3))
    s = score(full & prediction, full & reference, grid(shape))
    assert (s.outcome, s.dice, s.surface_dice) == (outcome, dice, surface)
    assert (s.sensitivity, s.precision, s.hd95_mm, s.assd_mm) == (sensitivity, precision, None, None)
    assert s.prediction_ml == pytest.approx(0.008 * prediction)
    assert s.reference_ml == pytest.approx(0.008 * reference)


def test_missing_prediction_counts_as_zero():
    shape = (6, 6, 6)
    case = score_missing(
        mask(box(shape, (1, 3), (1, 3), (1, 3)), grid(shape)), Labels({1: "a", 2: "b"}), "c", "no mask"
    )
    assert [s.outcome for s in case.labels] == ["missed", "missed"]
    assert [s.dice for s in case.labels] == [0.0, 0.0]
    assert case.labels[0].prediction_ml is None
    assert case.missing == "no mask"
    assert case.label("a").lesions_missed == 1


def test_lesions_are_26_connected_and_listed_by_size():
    shape = (12, 12, 12)
    reference = box(shape, (0, 2), (0, 2), (0, 2)) | box(
        shape, (2, 3), (2, 3), (2, 3)
    )  # touch at a corner: one piece of 9
    reference |= box(shape, (8, 9), (8, 9), (8, 9))  # a piece of 1
    prediction = box(shape, (2, 3), (2, 3), (2, 3)) | box(shape, (5, 6), (10, 11), (0, 1))
    s = score(prediction, reference, grid(shape))
    assert (s.lesions_found, s.lesions_missed, s.lesions_false) == (1, 1, 1)
    assert [(round(x.volume_ml * 1000), x.found) for x in s.lesions] == [(9, True), (1, False)]


def test_masks_elsewhere_are_refused_not_scored():
    shape = (12, 10, 8)
    reference = mask(box(shape, (1, 4), (2, 5), (2, 6)), grid(shape, (1, 1, 2), (-3, 5, 7)))
    one_voxel = mask(reference.labels, grid(shape, (1, 1, 2), (-2, 5, 7)))
    mirrored = mask(reference.labels, grid(shape, (-1, 1, 2), (-3, 5, 7)))
    cropped = mask(reference.labels[:-1], grid((11, 10, 8), (1, 1, 2), (-3, 5, 7)))
    for wrong in (one_voxel, mirrored, cropped):
        with pytest.raises(MaskError) as caught:
            score_case(wrong, reference, TUMOUR, "case-1")
        assert caught.value.code == "MASK-GRID"
        assert caught.value.where == "case-1"


@pytest.mark.parametrize("side", ["mask", "reference"])
def test_unknown_numbers_are_refused(side):
    known = mask(np.ones((3, 3, 3)), grid((3, 3, 3)))
    other = mask(np.full((3, 3, 3), 7), grid((3, 3, 3)))
    with pytest.raises(MaskError, match=r"case-1 \(" + side) as caught:
        score_case(*((other, known) if side == "mask" else (known, other)), TUMOUR, "case-1")
    assert caught.value.code == "MASK-VALUES"


def test_labels_are_scored_apart():
    shape = (8, 8, 8)
    first, second = box(shape, (0, 4), (0, 8), (0, 8)), box(shape, (4, 8), (0, 8), (0, 8))
    reference = Mask((first + 300 * second.astype(np.uint16)).astype(np.uint16), grid(shape))
    prediction = Mask((second + 300 * first.astype(np.uint16)).astype(np.uint16), grid(shape))
    scores = score_case(prediction, reference, Labels({1: "a", 300: "b"}), "c").labels
    assert [(s.label, s.dice, s.outcome) for s in scores] == [("a", 0.0, "missed"), ("b", 0.0, "missed")]


orders = st.builds(
    AxisOrder,
    st.permutations([0, 1, 2]).map(tuple),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)


@settings(max_examples=30)
@given(orders, orders, st.integers(0, 10_000))
def test_scores_do_not_depend_on_how_voxels_are_stored(order, other, seed):
    generator = np.random.default_rng(seed)
    where = grid((9, 7, 6), (0.8, 1.1, 2.5), (3, -4, 5))
    a, b = blobs(generator, where.shape, 0.2), blobs(generator, where.shape, 0.1)
    plain = score(a, b, where)
    turned = score_case(
        mask(order.apply(a), where.reordered(order)), mask(other.apply(b), where.reordered(other)), TUMOUR, "case-1"
    ).labels[0]
    for metric in METRICS:
        assert turned.value(metric.name) == pytest.approx(plain.value(metric.name)), metric.name


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_symmetry_and_range(seed):
    generator = np.random.default_rng(seed)
    where = grid((8, 9, 7), tuple(generator.uniform(0.4, 4, 3)))
    a, b = (blobs(generator, where.shape, generator.uniform(0.01, 0.5)) for _ in range(2))
    forth, back = score(a, b, where), score(b, a, where)
    for name in ("dice", "iou", "hd95_mm", "assd_mm", "surface_dice"):
        assert forth.value(name) == pytest.approx(back.value(name))
    assert forth.sensitivity == back.precision
    assert forth.iou == pytest.approx(forth.dice / (2 - forth.dice))
    same = score(a, a, where)
    assert (same.dice, same.hd95_mm, same.assd_mm, same.surface_dice) == (1, 0, 0, 1)


def kinds(generator, n, shape):
    """Anisotropic, touching borders, one voxel, many pieces, far apart, full."""
    a = blobs(generator, shape, generator.uniform(0.005, 0.4))
    b = [ndimage.shift(a, generator.integers(-2, 3, 3), order=0), blobs(generator, shape, 0.1), ~a][n % 3]
    if n % 5 == 0:
        a = np.zeros(shape, bool)
        a[tuple(generator.integers(0, shape))] = True
    if n % 7 == 0:
        b = generator.random(shape) < 0.05
    if n % 11 == 0:
        b = np.ones(shape, bool)
    return a, b


def test_agrees_with_monai_on_random_masks():
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    generator = np.random.default_rng(7)
    largest = dict.fromkeys(("dice", "iou", "hd95_mm", "assd_mm", "surface_dice"), 0.0)
    for n in range(60):
        shape, spacing = tuple(generator.integers(3, 18, 3)), tuple(float(v) for v in generator.uniform(0.3, 5, 3))
        a, b = kinds(generator, n, shape)
        if not (a.any() and b.any()):
            continue
        s = score(a, b, grid(shape, spacing), tolerance_mm=1.7)
        one, two = (torch.as_tensor(x[None, None].astype(np.float32)) for x in (a, b))
        options = {"include_background": True, "spacing": spacing}
        theirs = {
            "dice": metrics.compute_dice(one, two),
            "iou": metrics.compute_iou(one, two),
            "hd95_mm": metrics.compute_hausdorff_distance(one, two, percentile=95, **options),
            "assd_mm": metrics.compute_average_surface_distance(one, two, symmetric=True, **options),
            "surface_dice": metrics.compute_surface_dice(one, two, [1.7], **options),
        }
        for name, value in theirs.items():
            largest[name] = max(largest[name], abs(s.value(name) - float(value)))
    assert all(difference < 1e-5 for difference in largest.values()), largest  # MONAI counts in float32


def test_agrees_with_simpleitk_on_overlap_and_distance():
    sitk = pytest.importorskip("SimpleITK")
    generator = np.random.default_rng(3)
    for n in range(20):
        shape, spacing = tuple(generator.integers(4, 14, 3)), tuple(float(v) for v in generator.uniform(0.3, 5, 3))
        a, b = kinds(generator, n, shape)
        if not (a.any() and b.any()):
            continue
        images = []
        for array in (a, b):
            image = sitk.GetImageFromArray(array.astype(np.uint8).transpose(2, 1, 0))
            image.SetSpacing(spacing)
            images.append(image)
        overlap = sitk.LabelOverlapMeasuresImageFilter()
        overlap.Execute(images[1], images[0])
        s = score(a, b, grid(shape, spacing))
        assert s.dice == pytest.approx(overlap.GetDiceCoefficient(1))
        assert s.iou == pytest.approx(overlap.GetJaccardCoefficient(1))
        # Distances to the other mask itself equal those to its surface for voxels outside of it.
        forth, _ = surface_distances(a, b, grid(shape, spacing))
        away = sitk.GetArrayFromImage(
            sitk.SignedMaurerDistanceMap(images[1], insideIsPositive=False, squaredDistance=False, useImageSpacing=True)
        ).transpose(2, 1, 0)
        outside = away[a & ~b]
        if outside.size:
            assert forth.max() >= outside.max() - 1e-4


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_distances_on_oblique_and_sheared_grids_match_brute_force(seed):
    generator = np.random.default_rng(seed)
    matrix = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    matrix[:, 2] += 0.4 * matrix[:, 1]  # a gantry tilt of about 22 degrees
    where = grid((7, 8, 6), (0.9, 0.7, 2.5), (10, 20, -30), matrix)
    assert where.is_sheared
    a, b = (blobs(generator, where.shape, 0.15) for _ in range(2))
    edges = [x & ~ndimage.binary_erosion(x) for x in (a, b)]  # 6-neighbourhood, the border counts as outside
    one, two = (where.to_world(np.argwhere(e)) for e in edges)
    table = cdist(one, two)
    forth, back = table.min(axis=1), table.min(axis=0)
    s = score(a, b, where, tolerance_mm=2.0)
    assert s.hd95_mm == pytest.approx(max(np.percentile(forth, 95), np.percentile(back, 95)))
    assert s.assd_mm == pytest.approx(np.concatenate([forth, back]).mean())
    assert s.reference_ml == pytest.approx(b.sum() * where.voxel_ml)


def test_a_tolerance_equal_to_the_distance_counts():
    where = grid((9, 3, 3), (0.1, 1, 1))
    s = score(box((9, 3, 3), (5, 6), (1, 2), (1, 2)), box((9, 3, 3), (2, 3), (1, 2), (1, 2)), where, tolerance_mm=0.3)
    assert s.surface_dice == 1.0  # 3 x 0.1 is 0.30000000000000004 in floating point


@pytest.mark.parametrize(
    ("spacing", "axis"), [((1, 1, 3), 2), ((3, 1, 1), 0), ((1, 3, 1), 1), ((1, 1, 1), 2), ((1.0000001, 1, 1), 2)]
)
def test_stack_axis(spacing, axis):
    assert stack_axis(grid((4, 4, 4), spacing)) == axis


@pytest.mark.realdata
def test_real_masks_eroded_and_shifted(shared_data):
    from medseg.io.nifti import read_mask

    reference = read_mask(shared_data / "sarcoma_mr_t1" / "masks" / "STS_002.nii.gz")
    tumour = reference.labels > 0
    same = score(tumour, tumour, reference.grid)
    assert (same.dice, same.hd95_mm, same.surface_dice, same.outcome) == (1, 0, 1, "hit")
    smaller = score(ndimage.binary_erosion(tumour), tumour, reference.grid)
    assert smaller.precision == 1
    assert smaller.dice < 1
    assert smaller.difference_ml < 0
    moved = score(np.roll(tumour, 2, axis=0), tumour, reference.grid)
    assert moved.hd95_mm <= 2 * reference.grid.spacing[0] + 1e-9
    affine = reference.grid.affine.copy()
    affine[0, 3] += reference.grid.spacing[0]
    with pytest.raises(MaskError):
        score_case(Mask(reference.labels, Grid(reference.grid.shape, affine)), reference, TUMOUR, "STS_002")


# ------------------------------------------------------------------------------------------------- partly annotated


@settings(max_examples=25)
@given(orders, st.integers(0, 10_000))
def test_what_nobody_annotated_is_scored_neither_way(order, seed):
    generator = np.random.default_rng(seed)
    where = grid((9, 7, 6), (0.8, 1.1, 2.5), (3, -4, 5))
    predicted, wanted = blobs(generator, where.shape, 0.2), blobs(generator, where.shape, 0.1)
    unknown = blobs(generator, where.shape, generator.uniform(0.05, 0.9))
    reference = mask(np.where(unknown, 255, wanted), where)
    stored = mask(order.apply(predicted), where.reordered(order))
    found = score_case(stored, reference, TUMOUR, "case-1", unannotated=(255, 7))
    plain = score(predicted & ~unknown, wanted & ~unknown, where)
    assert found.labels[0] == plain
    assert found.unannotated_ml == pytest.approx(unknown.sum() * where.voxel_ml)
    missing = score_missing(reference, TUMOUR, "case-1", "none", (255,))
    assert missing.labels[0].reference_ml == pytest.approx((wanted & ~unknown).sum() * where.voxel_ml)
    assert np.array_equal(np.unique(reference.labels), np.unique(np.where(unknown, 255, wanted)))  # left as it was


def test_a_number_that_is_not_declared_unannotated_is_still_refused():
    where = grid((3, 3, 3))
    with pytest.raises(MaskError, match="255"):
        score_case(mask(np.zeros((3, 3, 3)), where), mask(np.full((3, 3, 3), 255), where), TUMOUR, "case-1")

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from scipy.stats import rankdata

from medseg.errors import UsageError
from medseg.grid import Grid
from medseg.io import nifti
from medseg.io.dicom_objects import read_source
from medseg.io.dicom_seg import read_dicom_seg
from medseg.io.rtstruct import read_rtstruct
from medseg.phantom import draw_patient, location_baseline, make_study, tumour_of
from medseg.volume import Mask


def dice(one, other):
    return 2 * np.count_nonzero(one & other) / max(1, np.count_nonzero(one) + np.count_nonzero(other))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study") / "s", patients=6, held_out=2, seed=5)


def test_the_layout_is_mixed(study):
    kinds = [
        sorted(p.relative_to(study.training / name).parts[0] for p in (study.training / name).glob("*/*"))
        for name in study.training_ids
        if (study.training / name).is_dir()
    ]
    assert [set(kind) for kind in kinds] == [
        {"MR", "RTSTRUCT"},
        {"MR", "SEG"},
        {"MR"},
        {"MR", "RTSTRUCT"},
        {"MR", "SEG"},
    ]
    assert (study.training / "patient-05.nii.gz").is_file()
    assert sorted(p.name for p in study.training_references.iterdir()) == ["patient-03.nii.gz", "patient-05.nii.gz"]
    assert sorted(p.name for p in study.new.iterdir()) == ["patient-07", "patient-08", "patient-09"]
    assert study.broken_id == "patient-09"
    assert sorted(p.name for p in study.new_references.iterdir()) == ["patient-07.nii.gz", "patient-08.nii.gz"]


def test_references_hold_the_tumour_that_was_drawn(study):
    for number, name in enumerate(study.training_ids):
        volume, mask = draw_patient(number, 5, oblique=number == 3)
        folder = study.training / name
        want = mask.labels == 1
        if (folder / "RTSTRUCT").is_dir():
            found = read_rtstruct(folder / "RTSTRUCT" / "structures.dcm", volume.grid)["GTV_Mass"]
        elif (folder / "SEG").is_dir():
            found = read_dicom_seg(folder / "SEG" / "segments.dcm", volume.grid)["tumour"]
        else:
            reference = nifti.read_mask(study.training_references / f"{name}.nii.gz")
            found = reference.placed_on(volume.grid).labels == 1
        assert (found == want).all(), name
        if folder.is_dir():
            assert read_source(sorted((folder / "MR").iterdir())).grid.same_place(volume.grid)


def test_the_nifti_patient_lies_in_another_order_at_the_same_place(study):
    volume, mask = draw_patient(4, 5, oblique=False)
    stored = nifti.read_volume(study.training / "patient-05.nii.gz")
    assert stored.grid.orientation == "RIA"
    order = stored.grid.order_onto(volume.grid)
    assert (order.apply(stored.voxels) == volume.voxels).all()
    reference = nifti.read_mask(study.training_references / "patient-05.nii.gz")
    assert reference.grid.same_place(stored.grid)
    assert (reference.placed_on(volume.grid).labels == tumour_of(mask).labels).all()


def test_the_broken_scan_lacks_an_inner_slice(study):
    files = sorted((study.new / study.broken_id / "MR").iterdir())
    places = [float(pydicom.dcmread(path).ImagePositionPatient[2]) for path in files]
    steps = np.round(np.diff(sorted(places)), 6)
    assert sorted(set(steps)) == [4.0, 8.0]
    assert (steps == 8).sum() == 1


def test_the_same_seed_gives_the_same_patient_and_another_another():
    one, again, other = draw_patient(2, 0, False), draw_patient(2, 0, False), draw_patient(2, 1, False)
    assert (one[0].voxels == again[0].voxels).all()
    assert (one[1].labels == again[1].labels).all()
    assert one[0].voxels.shape != other[0].voxels.shape or (one[0].voxels != other[0].voxels).any()


@pytest.fixture(scope="module")
def patients():
    return [draw_patient(number, 0, oblique=number % 6 == 3) for number in range(12)]


def test_tumours_vary_and_lie_inside_the_scan(patients):
    volumes = [mask.volume_ml(1) for _, mask in patients]
    assert min(volumes) > 2
    assert max(volumes) > 2 * min(volumes)
    for _, mask in patients:
        place = np.argwhere(mask.labels == 1)
        assert (place.min(0) > 0).all()
        assert (place.max(0) < np.array(mask.grid.shape) - 1).all()


def test_neither_a_threshold_nor_the_place_finds_the_tumour(patients):
    best = []
    for volume, mask in patients:
        order = rankdata(volume.voxels[0], method="dense").reshape(mask.grid.shape)
        cuts = np.quantile(order, np.linspace(0.3, 1, 20))
        bands = [(order >= low) & (order <= high) for n, low in enumerate(cuts) for high in cuts[n + 1 :]]
        best.append(max(dice(band, mask.labels == 1) for band in bands))  # even with the best band for each patient
    assert np.mean(best) < 0.5
    references = [tumour_of(mask) for _, mask in patients]
    blind = [dice(location_baseline(references, m.grid).labels > 0, m.labels > 0) for m in references]
    assert np.mean(blind) < 0.25


def test_the_baseline_of_one_ellipsoid_is_that_ellipsoid():
    # Semi-axes 20, 14, 24 mm around a point (6, -3, 5) mm from the grid's centre, on 1 mm voxels.
    grid = Grid((81, 71, 91), np.diag([1.0, 1, 1, 1]))
    points = grid.to_world(np.stack(np.indices(grid.shape), -1)) - (40, 35, 45) - (6, -3, 5)
    ellipsoid = ((points / (20, 14, 24)) ** 2).sum(-1) <= 1
    reference = Mask(ellipsoid.astype(np.uint8), grid)
    empty = Mask(np.zeros(grid.shape, np.uint8), grid)
    assert dice(location_baseline([reference, empty], grid).labels > 0, ellipsoid) > 0.99
    # The guess follows the patient's axes, not the array's.
    order = grid.order_to("PIL")
    moved = location_baseline([reference], grid.reordered(order))
    assert dice(moved.labels > 0, order.apply(ellipsoid)) > 0.99


def test_the_baseline_needs_a_reference():
    grid = Grid((2, 2, 2), np.eye(4))
    with pytest.raises(UsageError) as caught:
        location_baseline([Mask(np.zeros((2, 2, 2), np.uint8), grid)], grid)
    assert caught.value.code == "USAGE-OPTION"


def test_wrong_calls_write_nothing(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    for folder, patients, code in ((tmp_path, 2, "USAGE-PATH"), (tmp_path / "new", 0, "USAGE-OPTION")):
        with pytest.raises(UsageError) as caught:
            make_study(folder, patients=patients, held_out=1)
        assert caught.value.code == code
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

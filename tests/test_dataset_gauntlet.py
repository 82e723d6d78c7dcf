"""Data sets as they go wrong: each row writes one, and says which cases may be used and what is said of the others.

Of every case that is used, scan and reference are compared voxel by voxel with what the row wrote.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.uid import generate_uid

from medseg.check import Examination, examine
from medseg.config import ChannelConfig, Config
from medseg.dataset import read_reference
from medseg.errors import CODES
from medseg.grid import Grid
from medseg.io.dicom_seg_write import write_dicom_seg
from medseg.io.rtstruct import write_rtstruct
from medseg.scan import find_scans, read
from medseg.volume import Labels, Mask
from tests.cases import AFFINE, SHAPE, blob, config, image, nifti
from tests.phantoms import misfit, save, series, value_at

TWO = {"tumour": 1, "organ": 2}


def labels() -> np.ndarray:
    """Labels 1 and 2, asymmetric in every direction."""
    found = blob()
    found[4:7, 0:2, 1] = 2
    found[5, 5, 0] = 1
    return found


@dataclass(frozen=True)
class Row:
    """One input and what must come of it.

    Attributes:
        name: what it is.
        write: writes it below a folder that holds nothing, or for masks the good case `good` and the scan of `case`.
        used: ids of the cases that may be used.
        said: code of the finding about what is not, or only with a warning; "" when nothing need be said.
        where: what that finding is about.
        severity: of that finding.
        settings: of the configuration.
    """

    name: str
    write: Callable[[Path], object]
    used: tuple[str, ...] = ("case", "good")
    said: str = ""
    where: str = "case"
    severity: str = "error"
    settings: dict[str, object] = field(default_factory=dict)


def find(found: Examination, row: Row) -> list[str]:
    return [
        f.message
        for f in found.dataset.findings
        if (f.code, f.severity) == (row.said, row.severity) and f.where.endswith(row.where)
    ]


def judge(row: Row, settings: Config) -> Examination:
    """Check what the rows promise; nothing may be wrong that a row does not say."""
    found = examine(settings)
    assert tuple(case.id for case in found.dataset.cases) == row.used
    if row.said:
        assert find(found, row), [str(f) for f in found.dataset.findings]
    errors = {f.code for f in found.dataset.findings if f.severity == "error"}
    assert errors <= {row.said, "DATA-EMPTY"}, [str(f) for f in found.dataset.findings]
    assert all(f.code in CODES for f in found.dataset.findings)
    json.loads(found.to_json())
    return found


# masks beside their scan


def mask(voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Callable[[Path], object]:
    return lambda folder: nifti(folder / "labels/case.nii.gz", voxels, affine)


def stored_with_slope(stored: np.ndarray, slope: float) -> Callable[[Path], object]:
    """Write header and voxels as they are: nibabel's images choose a slope of their own."""

    def write(folder: Path) -> None:
        header = nib.Nifti1Header()
        header.set_data_dtype(stored.dtype)
        header.set_data_shape(stored.shape)
        header.set_sform(AFFINE, 1)
        header.set_qform(AFFINE, 1)
        header.set_xyzt_units("mm")
        header["scl_slope"], header["scl_inter"], header["vox_offset"], header["magic"] = slope, 0, 352, b"n+1"
        (folder / "labels/case.nii").write_bytes(header.binaryblock + bytes(4) + stored.tobytes(order="F"))

    return write


def scaled(values: np.ndarray, **special: float) -> np.ndarray:
    found = values.astype(np.float64)
    found[7, 6, 5] = special.get("corner", found[7, 6, 5])
    return found


def shifted(**mm: float) -> np.ndarray:
    affine = AFFINE.copy()
    for axis, by in mm.items():
        affine["xyz".index(axis), 3] += by
    return affine


def turned(codes: str) -> Callable[[Path], object]:
    grid = Grid(SHAPE, AFFINE)
    order = grid.order_to(codes)
    return mask(np.ascontiguousarray(order.apply(labels())), grid.reordered(order).affine)


def cut_off(folder: Path) -> None:
    path = nifti(folder / "labels/case.nii.gz", labels())
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])


def half_resolution(folder: Path) -> None:
    coarse = AFFINE @ np.diag([2, 2, 1, 1])
    coarse[:3, 3] = AFFINE[:3, :3] @ (0.5, 0.5, 0) + AFFINE[:3, 3]
    nifti(folder / "labels/case.nii.gz", labels()[::2, ::2], coarse)


ONE_HOT = np.stack([labels() == n for n in range(3)], axis=-1).astype(np.uint8)
WRONG = ("good",)

MASKS = [
    Row("uint8", mask(labels())),
    Row("float64 of whole numbers", mask(labels().astype(np.float64))),
    Row("float32 of whole numbers", mask(labels().astype(np.float32)), said="MASK-ROUNDED", severity="note"),
    Row("int64", mask(labels().astype(np.int64))),
    Row("0.9999 and 1.9998", mask(labels() * 0.9999), said="MASK-ROUNDED", severity="warning"),
    Row(
        "0, 127, 254 scaled by 1/127",
        stored_with_slope(labels() * np.uint8(127), 1 / 127),
        said="MASK-ROUNDED",
        severity="note",
    ),
    Row("interpolated", mask(scaled(labels(), corner=0.25)), WRONG, "MASK-VALUES"),
    Row("interpolated, 1.37", mask(scaled(labels(), corner=1.37)), WRONG, "MASK-VALUES"),
    Row("an extra label 7", mask(scaled(labels(), corner=7).astype(np.uint8)), WRONG, "MASK-VALUES"),
    Row("foreground 255", mask(blob(value=255)), WRONG, "MASK-VALUES"),
    Row("-1 as int16", mask(scaled(labels(), corner=-1).astype(np.int16)), WRONG, "MASK-VALUES"),
    Row("-1 as float", mask(scaled(labels(), corner=-1)), WRONG, "MASK-VALUES"),
    Row("NaN", mask(scaled(labels(), corner=np.nan)), WRONG, "NIFTI-VALUES"),
    Row("one slice too few", mask(labels()[..., :-1]), WRONG, "MASK-GRID"),
    Row("one row too many", mask(np.pad(labels(), ((0, 1), (0, 0), (0, 0)))), WRONG, "MASK-GRID"),
    Row("half the resolution", half_resolution, WRONG, "MASK-GRID"),
    Row("30 mm beside", mask(labels(), shifted(x=30)), WRONG, "MASK-GRID"),
    Row("half a voxel beside", mask(labels(), shifted(y=0.35)), WRONG, "MASK-GRID"),
    Row("one slice beside", mask(labels(), shifted(z=2.5)), WRONG, "MASK-GRID"),
    Row("identity affine", mask(labels(), np.eye(4)), WRONG, "MASK-GRID"),
    Row("mirrored affine", mask(labels(), np.diag([-1, 1, 1, 1]) @ AFFINE), WRONG, "MASK-GRID"),
    Row("another spacing", mask(labels(), AFFINE @ np.diag([1, 1, 1.2, 1])), WRONG, "MASK-GRID"),
    Row("1e-5 beside", mask(labels(), shifted(x=1e-5, y=1e-5, z=1e-5))),
    Row("stored LPS", turned("LPS")),
    Row("stored RAS", turned("RAS")),
    Row("axes permuted to k, j, i", turned("SAL")),
    Row("all background", mask(0 * labels()), said="MASK-EMPTY", severity="warning"),
    Row("1 everywhere", mask(0 * labels() + 1), WRONG, "MASK-FULL"),
    Row("a copy of the scan", mask(image(1)), WRONG, "MASK-VALUES"),
    Row("one-hot", mask(ONE_HOT), WRONG, "NIFTI-DIMENSIONS"),
    Row("missing", lambda folder: None, WRONG, "MASK-MISSING"),
    Row("cut off", cut_off, WRONG, "NIFTI-READ"),
    Row("empty file", lambda folder: (folder / "labels/case.nii.gz").write_bytes(b""), WRONG, "NIFTI-READ"),
]


@pytest.mark.parametrize("row", MASKS, ids=lambda row: row.name)
def test_masks_beside_their_scan(tmp_path: Path, row: Row) -> None:
    for name, seed in (("case", 1), ("good", 2)):
        nifti(tmp_path / f"images/{name}.nii.gz", image(seed))
    nifti(tmp_path / "labels/good.nii.gz", labels())
    row.write(tmp_path)
    settings = config(tmp_path, TWO, validation=0)
    found = judge(row, settings)
    for case in found.dataset.cases:
        grid = read(case.scans[0]).grid
        expected = 0 * labels() if (case.id, row.name) == ("case", "all background") else labels()
        np.testing.assert_array_equal(read_reference(case, grid, settings).labels, expected)


def test_half_the_resolution_is_laid_on_the_scan_when_asked(tmp_path: Path) -> None:
    nifti(tmp_path / "images/case.nii.gz", image(1, (8, 6, 6)))
    coarse = AFFINE @ np.diag([2, 2, 1, 1])
    coarse[:3, 3] = AFFINE[:3, :3] @ (0.5, 0.5, 0) + AFFINE[:3, 3]  # centre of the first 2 x 2 voxels
    drawn = labels()[:8:2, :6:2]
    nifti(tmp_path / "labels/case.nii.gz", drawn, coarse)
    refused = examine(config(tmp_path, TWO, validation=0))
    assert "MASK-GRID" in {f.code for f in refused.dataset.findings}
    assert any("data.resample_references" in f.message for f in refused.dataset.findings)
    settings = config(tmp_path, TWO, validation=0, resample_references=True)
    (case,) = examine(settings).dataset.cases
    placed = read_reference(case, read(case.scans[0]).grid, settings).labels
    np.testing.assert_array_equal(placed, drawn.repeat(2, axis=0).repeat(2, axis=1))


# data sets and folders: DICOM series of an analytic object, and masks of where it is bright


def truth(grid: Grid) -> np.ndarray:
    return (value_at(grid.to_world(np.argwhere(np.ones(grid.shape)))) > 100).reshape(grid.shape).astype(np.uint8)


def study(folder: Path, seed: int = 0, parts: int = 1, **header: object) -> list[Path]:
    """Write a series of 20 slices into as many folders as asked; `seed` moves it, so that no two are equal."""
    datasets = series(origin=(-11.0 + seed, -14.5, -22.0), size=(18, 20))
    for dataset in datasets:
        dataset.SpecificCharacterSet = "ISO_IR 192"
        for keyword, value in {"PatientID": ascii(folder.name), "SliceThickness": "2.5", **header}.items():
            setattr(dataset, keyword, value)
    size = 20 // parts
    places = [folder / f"DIR{part:03}" for part in range(parts)] if parts > 1 else [folder]
    return [path for n, place in enumerate(places) for path in save(datasets[n * size : (n + 1) * size], place)]


def masked(root: Path) -> None:
    """A NIfTI mask, true by the analytic object, for every usable scan."""
    for found in find_scans(root / "scans"):
        if found.grid is not None and found.usable:
            nifti(root / f"labels/{found.case_id}.nii.gz", truth(found.grid), found.grid.affine)


def write_studies(*names: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        for seed, name in enumerate(names):
            study(root / "scans" / name, seed)

    return write


def over_two_folders(root: Path) -> None:
    study(root / "scans/P1", parts=2)
    study(root / "scans/P2", 1)


def one_study_two_folders(root: Path) -> None:
    uid = generate_uid()
    for seed, name in enumerate("ab"):
        study(root / f"scans/{name}", seed, PatientID="same", StudyInstanceUID=uid)
    study(root / "scans/c", 2)


def links(root: Path) -> None:
    write_studies("P1", "P2")(root)
    (root / "scans/P1/up").symlink_to(root / "scans", target_is_directory=True)
    (root / "scans/P1/gone").symlink_to(root / "nowhere")


def pipe(root: Path) -> None:
    write_studies("P1", "P2")(root)
    os.mkfifo(root / "scans/P1/IM0099.dcm")


def references_beside(root: Path) -> None:
    for seed, name in enumerate(("P1", "P2")):
        files = study(root / f"scans/{name}/CT", seed)
        (found,) = find_scans(root / f"scans/{name}/CT")
        assert found.grid is not None
        drawn = Mask(truth(found.grid), found.grid)
        write = write_dicom_seg if seed else write_rtstruct
        write(root / f"scans/{name}/CT/reference.dcm", drawn, Labels({1: "tumour"}), files)


def screenshot(root: Path) -> None:
    write_studies("P1", "P2")(root)
    (shot,) = series(slices=1, size=(18, 20))
    shot.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    shot.Modality, shot.PatientID, shot.SamplesPerPixel, shot.PhotometricInterpretation = "OT", "P1", 3, "RGB"
    shot.PlanarConfiguration, shot.BitsAllocated, shot.BitsStored, shot.HighBit = 0, 8, 8, 7
    shot.PixelData = bytes(18 * 20 * 3)
    del shot.ImagePositionPatient, shot.ImageOrientationPatient
    save([shot], root / "scans/P1", name=lambda n: "report.dcm")


def two_patients_one_folder(root: Path) -> None:
    for seed, patient in enumerate(("A", "B")):
        datasets = series(origin=(-11.0 + seed, -14.5, -22.0), size=(18, 20))
        for dataset in datasets:
            dataset.PatientID, dataset.SeriesNumber = patient, 3
        save(datasets, root / "scans/export", name=f"{patient}{{:04d}}.dcm".format)


def nearly_equal_descriptions(root: Path) -> None:
    for seed, text in enumerate(("T1 a/b", "T1 a_b")):
        study(root / f"scans/P{seed}", seed, SeriesDescription=text)


def images(root: Path, names: list[str], where: str = "scans") -> None:
    for seed, name in enumerate(names):
        nifti(root / where / f"{name}.nii.gz", image(seed + 50))


def pairs(*names: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        images(root, list(names))
        for name in names:
            nifti(root / f"labels/{name}.nii.gz", blob())

    return write


def truncated(root: Path) -> None:
    pairs(*(f"case_{n:02}" for n in range(1, 6)))(root)
    path = root / "scans/case_03.nii.gz"
    path.write_bytes(path.read_bytes()[:300])


def unreadable(root: Path) -> None:
    write_studies("P1", "P2")(root)
    (root / "scans/P1/IM0007.dcm").write_bytes(b"")


def forbidden(root: Path) -> None:
    write_studies("P1", "P2")(root)
    slice_path = root / "scans/P1/IM0007.dcm"
    slice_path.chmod(0)
    if os.access(slice_path, os.R_OK):
        pytest.skip("this user may read everything")


def one_is_four_dimensional(root: Path) -> None:
    pairs("case_01", "case_02")(root)
    nifti(root / "scans/case_02.nii.gz", np.stack([image(1), image(2)], axis=-1))


def leak(root: Path) -> None:
    pairs("train/a", "train/b", "val/c")(root)
    nifti(root / "scans/val/c.nii.gz", image(51))  # as train/b
    (root / "split.json").write_text(json.dumps({"train": ["train_a", "train_b"], "validation": ["val_c"]}))


def forgotten(root: Path) -> None:
    images(root, ["case_01", "case_03"])
    for name in ("case_02_seg", "case_03_seg"):
        nifti(root / f"labels/{name}.nii.gz", blob())


def predicted_before(root: Path) -> None:
    for name in ("case_01", "case_02"):
        nifti(root / f"scans/{name}.nii.gz", image(len(name) + ord(name[-1])))
        nifti(root / f"scans/{name}_seg.nii.gz", blob())
        nifti(root / f"scans/pred/{name}_pred.nii.gz", blob())
    (root / "scans/case_02.nii.gz.tmp").write_bytes(b"half")
    (root / "scans/case_02.nii.gz.part").write_bytes(b"half")


def apple_double(root: Path) -> None:
    pairs("case_01", "case_02")(root)
    for folder in ("scans", "labels"):
        (root / folder / "._case_01.nii.gz").write_bytes(b"\0\5\x16\7")


def junk_only(root: Path) -> None:
    (root / "scans").mkdir(parents=True)
    for name in ("README", ".DS_Store", "report.pdf"):
        (root / "scans" / name).write_bytes(b"%PDF-1.4 nothing")


def everybody_is_anonymous(root: Path) -> None:
    for seed, name in enumerate(("P1", "P2", "P3")):
        study(root / f"scans/{name}", seed, PatientID="ANONYMOUS")


ODD = ["a b", "Größe", "病人", "😀", "-x", "it's", "$(id)", "a;b"]
BESIDE: dict[str, object] = {"references": ()}

FOLDERS = [
    Row("a series over two folders", over_two_folders, ("P1", "P2")),
    Row("one study in two folders", one_study_two_folders, ("a", "b", "c")),
    Row("odd names of folders", write_studies(*ODD), ("*",)),
    Row("folders that are no UTF-8", write_studies(os.fsdecode(b"f\xe4ll"), "P2"), ("*",)),
    Row("nested deep", write_studies("x" * 200 + "/" + "y" * 200 + "/P1", "P2"), ("*",)),
    Row("links up and to nowhere", links, ("P1", "P2")),
    Row("a named pipe", pipe, ("P1", "P2")),
    Row("an empty slice", unreadable, ("P2",), "DICOM-READ", "P1"),
    Row("a slice that may not be read", forbidden, ("P2",), "DICOM-READ", "P1"),
    Row("an empty folder", lambda root: (root / "scans").mkdir(parents=True), (), "DATA-EMPTY", "data"),
    Row("junk only", junk_only, (), "DATA-EMPTY", "data"),
    Row("RTSTRUCT and SEG beside", references_beside, ("P1", "P2"), settings=BESIDE),
    Row("a screenshot beside", screenshot, ("P1-s3",), "DICOM-COLOUR", "P1-s3-2"),
    Row("two patients in one folder", two_patients_one_folder, ("*",)),
    Row("descriptions alike", nearly_equal_descriptions, ("P0", "P1")),
    Row("one of five cut off", truncated, ("case_01", "case_02", "case_04", "case_05"), "NIFTI-READ", "case_03"),
    Row("two sites, equal names", pairs("siteA/case_01", "siteB/case_01"), ("siteA_case_01", "siteB_case_01")),
    Row("names alike", pairs("a b", "a_b", "Case1", "case1", "x."), ("*",)),
    Row("the same scan in train and val", leak, ("train_a", "val_c"), "DATA-DUPLICATE", "train_b"),
    Row("forgotten files", forgotten, ("case_03",), "MASK-MISSING", "case_01"),
    Row("own predictions inside", predicted_before, ("case_01", "case_02"), settings=BESIDE),
    Row("AppleDouble", apple_double, ("case_01", "case_02")),
    Row("one is 4-D", one_is_four_dimensional, ("case_01",), "NIFTI-DIMENSIONS", "case_02"),
    Row("one id for everybody", everybody_is_anonymous, ("P1", "P2", "P3"), "DICOM-IDENTITY", "patients", "warning"),
]


@pytest.mark.parametrize("row", FOLDERS, ids=lambda row: row.name)
def test_data_sets_and_folders(tmp_path: Path, row: Row) -> None:
    row.write(tmp_path)
    scans = find_scans(tmp_path / "scans")
    dicom = [found for found in scans if found.kind == "dicom"]
    if dicom and not row.settings:
        masked(tmp_path)
    (tmp_path / "labels").mkdir(exist_ok=True)
    if row.used == ("*",):
        row = Row(**{**vars(row), "used": tuple(found.case_id for found in scans)})
        assert len(row.used) >= 2
    elif row.name == "a screenshot beside":
        usable = tuple(found.case_id for found in scans if found.usable)
        refused = next(found.case_id for found in scans if not found.usable)
        assert len(usable) == 2
        row = Row(**{**vars(row), "used": usable, "where": refused})
    label = "tumour" if row.settings and dicom else 1
    split = tmp_path / "split.json" if (tmp_path / "split.json").exists() else None
    settings = config(
        tmp_path, {"tumour": [label]}, **{"scans": tmp_path / "scans", "validation": 0, "split": split, **row.settings}
    )
    found = judge(row, settings)
    for case in found.dataset.cases:
        volume = read(case.scans[0])
        placed = read_reference(case, volume.grid, settings).labels
        if case.scans[0].kind == "dicom":
            assert misfit(volume.voxels[0], volume.grid.affine) <= 0.5 + 1e-9  # rounded to whole HU
            np.testing.assert_array_equal(placed, truth(volume.grid))
        else:
            np.testing.assert_array_equal(placed, blob())
            assert any(np.array_equal(volume.voxels[0], image(seed)) for seed in range(130))


def test_patients_of_those_folders(tmp_path: Path) -> None:
    """Two series of one study are one patient, equal names at two sites are two; ANONYMOUS is nobody."""
    for name, write, patients in (
        ("one", one_study_two_folders, 2),
        ("two", pairs("siteA/case_01", "siteB/case_01"), 2),
        ("three", everybody_is_anonymous, 3),
        ("four", two_patients_one_folder, 2),
    ):
        root = tmp_path / name
        write(root)
        if name != "two":
            masked(root)
        found = examine(config(root, scans=root / "scans", validation=0))
        assert len({case.group for case in found.dataset.cases}) == patients, name


def test_nothing_that_names_a_patient_is_told(tmp_path: Path) -> None:
    secrets = {"PatientID": "MRN-775533", "PatientName": "Roe^Richard", "SeriesDescription": "secret words"}
    for seed, name in enumerate(("P1", "P2")):
        study(tmp_path / f"scans/{name}", seed, AccessionNumber="ACC-1234", PatientBirthDate="19550101", **secrets)
    masked(tmp_path)
    (tmp_path / "scans/P1/IM0003.dcm").unlink()
    select = (ChannelConfig(modality="CT"),)
    found = examine(config(tmp_path, scans=tmp_path / "scans", select=select))
    text = found.to_json() + "".join(map(str, found.dataset.findings))
    group = find_scans(tmp_path / "scans")[0].group
    for secret in (*secrets.values(), "Roe", "ACC-1234", "19550101", group):
        assert secret not in text


# a SEG on another grid


def test_a_seg_on_another_grid_says_that_it_is_not_resampled(tmp_path: Path) -> None:
    study(tmp_path / "scans/P1/CT")
    (found,) = find_scans(tmp_path / "scans")
    assert found.grid is not None
    other = series(origin=(-10.6, -14.5, -22.0), size=(18, 20))
    for dataset in other:
        dataset.SeriesInstanceUID, dataset.PatientID, dataset.SliceThickness = found.series_uid, "P1", "2.5"
    files = save(other, tmp_path / "elsewhere")
    (moved,) = find_scans(tmp_path / "elsewhere")
    assert moved.grid is not None
    write_dicom_seg(tmp_path / "scans/P1/seg.dcm", Mask(truth(moved.grid), moved.grid), Labels({1: "tumour"}), files)
    settings = config(
        tmp_path, {"tumour": ["tumour"]}, scans=tmp_path / "scans", references=(), resample_references=True
    )
    (error,) = [f for f in examine(settings).dataset.findings if f.code == "MASK-GRID"]
    assert "data.resample_references is for NIfTI masks" in error.message

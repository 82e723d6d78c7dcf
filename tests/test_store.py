"""The store of prepared slices: made once, found again, never trusted when damaged."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medseg import store as store_module
from medseg.case import Case
from medseg.errors import InputError, RunError
from medseg.grid import Grid
from medseg.preparation import Channel, Preparation
from medseg.prepare import prepare_reference, prepared_blocks
from medseg.reading import read_case
from medseg.scan import find_scans
from medseg.store import SliceStore, build_store
from medseg.volume import UNANNOTATED, Mask

SHAPE = (9, 8, 5)
AFFINE = np.diag([1.2, 0.9, 3.0, 1.0])
PREPARATION = Preparation("axial", (1.0, 1.0), (Channel("image", "percentile"),), context=1)
SETTINGS = {"labels": {"tumour": [1]}}


def make_case(folder: Path, name: str, seed: int = 0, group: str = "") -> Case:
    folder.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(0, 500, SHAPE).astype(np.int16)
    image = nib.Nifti1Image(voxels, AFFINE)
    image.header.set_xyzt_units("mm")
    image.set_sform(AFFINE, 1)
    nib.save(image, folder / f"{name}.nii.gz")
    (scan,) = find_scans(folder / f"{name}.nii.gz")
    return Case(name, group or name, (scan,))


class Reader:
    """Gives each case a mask that its name decides, and counts the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, case: Case, grid: Grid) -> Mask:
        self.calls.append(case.id)
        labels = np.zeros(grid.shape, np.uint8)
        labels[2:5, 3:6, 1:3] = 1
        labels[6, 6, 2] = 2
        return Mask(labels, grid)


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    return [make_case(tmp_path / "scans", name, seed) for seed, name in enumerate(["a", "b", "c"])]


def build(cases: list[Case], folder: Path, reader: Reader | None = None, **changes: object) -> SliceStore:
    given = {"preparation": PREPARATION, "settings": SETTINGS, **changes}
    return build_store(cases, folder / "prepared", read_reference=reader or Reader(), **given)  # type: ignore[arg-type]


def test_a_slice_is_what_prediction_would_see(cases: list[Case], tmp_path: Path) -> None:
    store = build(cases, tmp_path / "store")
    assert [entry.case for entry in store] == ["a", "b", "c"]
    assert len(store) == 3
    volume = read_case(cases[1].scans)
    (block,) = prepared_blocks(volume, PREPARATION)
    masks = prepare_reference(Reader()(cases[1], volume.grid), PREPARATION)
    for index in range(SHAPE[2]):
        image, labels = store["b"].slice(index, context=1)
        assert (image.dtype, labels.dtype) == (torch.float32, torch.uint8)
        # float16 keeps 11 bits: a value up to 4 is off by at most 2^-10
        torch.testing.assert_close(image, block.images[index], atol=2**-10, rtol=0)
        assert np.array_equal(labels.numpy(), masks[index])


def test_it_knows_which_slices_hold_what(cases: list[Case], tmp_path: Path) -> None:
    entry = build(cases, tmp_path / "store")["a"]
    assert entry.slices == {1: (1, 2), 2: (2,)}
    assert [entry.labels(n) for n in range(5)] == [(), (1,), (1, 2), (), ()]
    assert entry.images().shape == entry.shape
    assert entry.images().dtype == np.float16
    assert not entry.images().flags.writeable


def test_a_second_run_finds_everything(cases: list[Case], tmp_path: Path) -> None:
    first = build(cases, tmp_path / "store")
    reader = Reader()
    again = build(cases, tmp_path / "store", reader)
    assert reader.calls == []
    assert again.entries == first.entries


def test_another_context_needs_no_other_slices(cases: list[Case], tmp_path: Path) -> None:
    build(cases, tmp_path / "store")
    reader = Reader()
    store = build(cases, tmp_path / "store", reader, preparation=replace(PREPARATION, context=3))
    assert reader.calls == []
    assert store["a"].slice(0, context=3)[0].shape[0] == 7


@pytest.mark.parametrize(
    "changes",
    [
        {"preparation": replace(PREPARATION, spacing_mm=(1.0, 1.1))},
        {"preparation": replace(PREPARATION, channels=(Channel("image", "zscore"),))},
        {"settings": {"labels": {"tumour": [2]}}},
    ],
)
def test_other_settings_are_other_slices(cases: list[Case], tmp_path: Path, changes: dict[str, object]) -> None:
    build(cases, tmp_path / "store")
    reader = Reader()
    build(cases, tmp_path / "store", reader, **changes)
    assert reader.calls == ["a", "b", "c"]


def test_a_file_with_other_content_is_prepared_anew(cases: list[Case], tmp_path: Path) -> None:
    path = cases[0].scans[0].files[0]
    build(cases, tmp_path / "store")
    times = path.stat()
    changed = make_case(tmp_path / "scans", "a", seed=99)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # same name and time: only the content tells
    reader = Reader()
    build([changed, *cases[1:]], tmp_path / "store", reader)
    assert reader.calls == ["a"]


def test_another_reference_is_prepared_anew(cases: list[Case], tmp_path: Path) -> None:
    reference = tmp_path / "mask.nii.gz"
    reference.write_bytes(b"one")
    with_reference = [replace(cases[0], references=(reference,))]
    build(with_reference, tmp_path / "store")
    reference.write_bytes(b"two")
    reader = Reader()
    build(with_reference, tmp_path / "store", reader)
    assert reader.calls == ["a"]


def _flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["images.npy", "masks.npy", "entry.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "empty"])
def test_a_damaged_entry_is_made_again(cases: list[Case], tmp_path: Path, name: str, damage: str) -> None:
    first = build(cases, tmp_path / "store")
    path = first["b"].folder / name
    whole = path.read_bytes()
    match damage:
        case "truncate":
            path.write_bytes(whole[: len(whole) // 2])
        case "flip":
            _flip_last_byte(path)
        case "remove":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
    reader = Reader()
    again = build(cases, tmp_path / "store", reader)
    if (name, damage) != ("entry.json", "flip"):  # the last byte of the JSON is its line end
        assert reader.calls == ["b"]
        assert path.read_bytes() == whole
    assert again.entries == first.entries


@pytest.mark.parametrize("record", ["[]", "{}", '{"shape": [1], "slices": {}, "sha256": {}}', "null", "1e999"])
def test_a_record_of_another_kind_is_made_again(cases: list[Case], tmp_path: Path, record: str) -> None:
    first = build(cases, tmp_path / "store")
    (first["a"].folder / "entry.json").write_text(record)
    assert build(cases, tmp_path / "store").entries == first.entries


def test_a_killed_run_leaves_nothing_that_looks_whole(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store_module, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        build(cases, tmp_path / "store")
    monkeypatch.undo()
    assert not list((tmp_path / "store").rglob("entry.json"))
    reader = Reader()
    build(cases, tmp_path / "store", reader)
    assert reader.calls == ["a", "b", "c"]


def test_an_unfit_case_is_left_out_with_its_reason(cases: list[Case], tmp_path: Path) -> None:
    path = cases[1].scans[0].files[0]
    path.write_bytes(path.read_bytes()[:40])
    seen: list[str] = []
    store = build(cases, tmp_path / "store", progress=lambda case: seen.append(case.id))
    assert list(store.entries) == ["a", "c"]
    assert isinstance(store.rejected["b"], InputError)
    assert seen == ["a", "b", "c"]
    with pytest.raises(InputError) as refusal:
        build([cases[1]], tmp_path / "store")
    assert refusal.value.code == "DATA-EMPTY"


def test_a_vanished_file_is_a_rejected_case(cases: list[Case], tmp_path: Path) -> None:
    cases[0].scans[0].files[0].unlink()
    assert list(build(cases, tmp_path / "store").rejected) == ["a"]


def test_a_store_that_cannot_be_written_says_so(cases: list[Case], tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")
    with pytest.raises(RunError) as refusal:
        build(cases, tmp_path / "store")
    assert refusal.value.code == "RUN-WRITE"


def test_nothing_in_the_store_names_a_case(tmp_path: Path) -> None:
    case = make_case(tmp_path / "scans", "Smith_John", group="Smith^John")
    build([case], tmp_path / "store")
    for path in (tmp_path / "store").rglob("*"):
        assert "smith" not in str(path.relative_to(tmp_path)).lower()
        assert not path.is_file() or b"mith" not in path.read_bytes()


def test_the_arrays_are_plain_npy_and_the_record_plain_json(cases: list[Case], tmp_path: Path) -> None:
    entry = build(cases, tmp_path / "store")["c"]
    record = json.loads((entry.folder / "entry.json").read_text())
    assert tuple(record["shape"]) == entry.shape == np.load(entry.folder / "images.npy", allow_pickle=False).shape
    images: NDArray[np.float16] = np.load(entry.folder / "images.npy")
    assert np.isfinite(images).all()
    assert not [path.name for path in entry.folder.iterdir() if path.name.startswith(".medseg-part-")]


@pytest.mark.realdata
def test_a_real_series_is_stored(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "sarcoma_mr_t1" / "dicom"
    (scan,) = find_scans(sorted(folder.iterdir())[0])
    case = Case(scan.case_id, scan.group, (scan,))
    preparation = replace(PREPARATION, spacing_mm=(0.9, 0.9))
    entry = build_store([case], tmp_path / "store", preparation, Reader(), SETTINGS)[case.id]
    assert entry.shape[0] == len(scan.files)
    assert abs(float(entry.images().astype(np.float32).mean())) < 1


def test_slices_without_annotation_are_known_and_are_no_foreground(tmp_path: Path) -> None:
    case = make_case(tmp_path / "scans", "a")

    def reader(case: Case, grid: Grid) -> Mask:
        labels = np.zeros(grid.shape, np.uint8)
        labels[..., 0], labels[..., 3] = UNANNOTATED, UNANNOTATED
        labels[2:5, 3:6, 1:3] = 1
        labels[:2, :, 2] = UNANNOTATED
        return Mask(labels, grid)

    for _ in range(2):  # made, then found
        store = build_store([case], tmp_path / "store", PREPARATION, reader, SETTINGS)
        assert store["a"].blank == (0, 3)
        assert store["a"].slices == {1: (1, 2)}
        assert [store["a"].labels(n) for n in range(5)] == [(), (1,), (1,), (), ()]
        assert UNANNOTATED in store["a"].slice(2, 1)[1]


def test_an_entry_of_a_run_beside_it_is_taken_over_and_outlives_it(cases: list[Case], tmp_path: Path) -> None:
    first = build(cases, tmp_path / "run-1")
    reader = Reader()
    second = build(cases, tmp_path / "run-2", reader)
    assert reader.calls == []
    shutil.rmtree(tmp_path / "run-1")
    for name in "abc":
        assert second[name].folder == tmp_path / "run-2" / "prepared" / first[name].folder.name
        assert second[name].images().shape == first[name].shape
    assert build(cases, tmp_path / "run-2", reader).entries == second.entries
    assert reader.calls == []


def test_a_damaged_entry_of_a_run_beside_it_is_not(cases: list[Case], tmp_path: Path) -> None:
    first = build(cases, tmp_path / "run-1")
    _flip_last_byte(first["b"].folder / "images.npy")
    reader = Reader()
    second = build(cases, tmp_path / "run-2", reader)
    assert reader.calls == ["b"]
    assert np.array_equal(second["b"].images(), build(cases, tmp_path / "run-3" / "alone")["b"].images())


def test_where_files_cannot_be_linked_they_are_prepared_anew(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "another disk")

    build(cases, tmp_path / "run-1")
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    reader = Reader()
    build(cases, tmp_path / "run-2", reader)
    assert reader.calls == ["a", "b", "c"]


def test_several_processes_prepare_the_same(cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vanished = make_case(tmp_path / "scans", "gone", 7)
    alone = build(cases, tmp_path / "one" / "run")
    monkeypatch.setattr(store_module, "WORKER_S", 0.0)
    monkeypatch.setattr(store_module, "processes_for", lambda *_: 2)
    path = vanished.scans[0].files[0]
    path.write_bytes(path.read_bytes()[:40])
    seen: list[str] = []
    given = [cases[0], vanished, *cases[1:]]
    store = build(given, tmp_path / "two" / "run", progress=lambda case: seen.append(case.id))
    assert seen == ["a", "gone", "b", "c"]
    assert list(store.entries) == ["a", "b", "c"]
    assert list(store.rejected) == ["gone"]
    for name in "abc":
        assert np.array_equal(store[name].images(), alone[name].images())
        assert np.array_equal(store[name].masks(), alone[name].masks())

"""Reading many headers: by several processes, and from the index, with the same result as one by one."""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from medseg.io import dicom_many, header_index
from medseg.io.dicom_headers import Header, read_header
from medseg.io.files import walk
from medseg.io.header_index import HeaderIndex
from medseg.io.header_rows import WHO, Numbers, as_tuples, from_row, has_row, to_row
from medseg.scan import take_inventory
from tests.phantoms import enhanced, save, series

SERIES = 3
"""In the study; one file of each is read again, to learn who it is."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of its own for the test; ten files are many, and files just written are settled."""
    folder = tmp_path / "cache" / "medseg"
    monkeypatch.setattr(header_index, "cache_folder", lambda: folder)
    monkeypatch.setattr(header_index, "SETTLED_NS", -(10**12))
    monkeypatch.setattr(dicom_many, "MANY", 10)
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    save(small("GTV protocol"), tmp_path / "study" / "a")
    save(small(), tmp_path / "study" / "b")
    save([enhanced(small())], tmp_path / "study" / "c")
    (tmp_path / "study" / "junk.txt").write_text("x")
    return tmp_path / "study"


def small(description: str = "") -> list[Dataset]:
    datasets = series(slices=8, size=(5, 6))
    for dataset in datasets:
        dataset.SeriesDescription = description
        dataset.AcquisitionDate, dataset.AcquisitionTime = "20240229", "101500"
    return datasets


def reads(study: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many files an inventory opens."""
    count = 0

    def counting(path: Path) -> Header | None:
        nonlocal count
        count += 1
        return read_header(path)

    with monkeypatch.context() as patch:
        patch.setattr(dicom_many, "read_header", counting)
        patch.setattr(dicom_many, "processes_for", lambda *_: 1)
        take_inventory([study])
    return count


def test_unchanged_files_are_read_once(study: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = take_inventory([study])
    assert reads(study, monkeypatch) == SERIES
    after = take_inventory([study])
    assert [repr(scan) for scan in after.scans] == [repr(scan) for scan in before.scans]
    for one, other in zip(before.scans, after.scans, strict=True):
        assert (one.frames, one.series_uid, one.description, one.group) == (
            (other.frames, other.series_uid, other.description, other.group)
        )
    assert after.skipped == before.skipped


def test_changed_new_and_vanished_files_are_seen(study: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_inventory([study])
    changed = study / "a" / "IM0003.dcm"
    content = changed.read_bytes().replace(b"0.9\\0.7", b"0.8\\0.7")
    times = changed.stat()
    changed.write_bytes(content)
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))  # the same size and time: the status change tells
    (study / "b" / "IM0007.dcm").unlink()
    save(small(), study / "d")
    assert reads(study, monkeypatch) == 1 + 8 + SERIES
    scans = {scan.case_id: scan for scan in take_inventory([study]).scans}
    assert scans["a"].code == "DICOM-MIXED"
    assert len(scans["b"].files) == 7
    assert scans["d"].usable


def test_faults_are_looked_at_anew(study: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (study / "a" / "IM0002.dcm").write_bytes(b"")
    take_inventory([study])
    assert reads(study, monkeypatch) == 1 + SERIES


@pytest.mark.parametrize("spoil", [lambda b: b[:-1], lambda b: b"", lambda b: b[:60] + b"x" + b[61:], lambda _b: b"{}"])
def test_a_damaged_index_is_ignored(study: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, spoil) -> None:  # type: ignore[no-untyped-def]
    take_inventory([study])
    (index,) = cache.glob("*.headers")
    index.write_bytes(spoil(index.read_bytes()))
    assert reads(study, monkeypatch) == 18
    assert reads(study, monkeypatch) == SERIES


def test_files_that_may_still_change_are_not_kept(study: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_index, "SETTLED_NS", 10**12)
    take_inventory([study])
    assert reads(study, monkeypatch) == 18


def test_the_index_names_nobody(study: Path, cache: Path) -> None:
    scans = take_inventory([study]).scans
    (path,) = cache.iterdir()
    assert path.stat().st_mode & 0o077 == 0
    assert cache.stat().st_mode & 0o077 == 0
    stored = path.read_bytes()
    content = zlib.decompress(stored[header_index.HASH_BYTES :])
    secrets = {"4711", "Doe", "GTV", "IM0001", str(study), "20240229", "101500"}
    for scan in scans:
        one = dcmread(scan.files[0], stop_before_pixels=True)
        secrets |= {scan.group, scan.series_uid, scan.study_uid, scan.frame_uid, one.SOPInstanceUID}
    assert not any(secret.encode() in content + path.name.encode() for secret in secrets if secret)
    assert b"0.9" in content  # it does hold geometry


def test_who_it_is_comes_from_one_file_of_each_series(
    study: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_inventory([study])
    changed = study / "a" / "IM0000.dcm"  # the file that told who the series is
    changed.write_bytes(changed.read_bytes().replace(b"GTV protocol", b"new protocol"))
    assert reads(study, monkeypatch) == 1 + SERIES  # the changed file, and another one for the old name
    scans = {scan.case_id: scan for scan in take_inventory([study]).scans}
    assert (scans["a"].description, scans["a"].usable, len(scans["a"].files)) == ("new protocol", True, 8)


def test_a_file_that_changes_meanwhile_names_nobody(study: Path, cache: Path) -> None:
    """Between the look at its stamp and the reading of its header: its series is read anew."""
    take_inventory([study])
    files = [found for found in walk([study])[0] if found.parts in (("a",), ("b",))]
    index = HeaderIndex(study, files)
    first, second = index.to_read()
    fresh = {first: replace(read_header(first), instance=99, series_uid="1.2.3"), second: read_header(second)}
    assert {path.parent.name for path in index.headers(fresh)} == {"b"}


def test_no_cache_folder_no_harm(study: Path, cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    assert len(take_inventory([study]).scans) == 3


def test_few_files_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_index, "cache_folder", lambda: tmp_path / "cache")
    save(small(), tmp_path / "study")
    take_inventory([tmp_path / "study"])
    assert not (tmp_path / "cache").exists()


def test_several_processes_give_what_one_gives(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_many, "CHUNK", 3)
    monkeypatch.setattr(dicom_many, "processes_for", lambda *_: 2)
    paths = [found.path for found in walk([study])[0]]
    assert list(dicom_many._read(paths)) == [read_header(path) for path in paths]


def test_a_file_that_kills_its_reader_costs_itself(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_many, "CHUNK", 3)
    monkeypatch.setattr(dicom_many, "processes_for", lambda *_: 2)
    monkeypatch.setattr(dicom_many, "read_chunk", deadly_chunk)
    monkeypatch.setattr(dicom_many, "read_header", deadly)
    paths = [found.path for found in walk([study / "a"])[0]]
    codes = {path.name: header.code for path, header in zip(paths, dicom_many._read(paths), strict=True) if header}
    assert {name for name, code in codes.items() if code} == {"IM0005.dcm"}


def deadly(path: Path) -> Header | None:
    if path.name == "IM0005.dcm":
        os._exit(1)
    return read_header(path)


def deadly_chunk(paths: list[Path]) -> dicom_many.Chunk:
    return [deadly(path) for path in paths], [], []


def test_headers_survive_plain_types(study: Path) -> None:
    headers = [header for found in walk([study])[0] if (header := read_header(found.path))]
    assert len(headers) == 17
    who, alike = Numbers(), Numbers()
    assert all(map(has_row, headers))
    rows, shared = json.loads(json.dumps([[to_row(header, who, alike) for header in headers], list(alike)]))
    shared = [as_tuples(values) for values in shared]
    for header, row in zip(headers, rows, strict=True):
        names = {name: getattr(header, name) for name in WHO}
        assert from_row(header.path, row, names, shared) == header
    assert len(who) == SERIES

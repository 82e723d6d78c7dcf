"""Reading many headers: by several processes, and from the index, with the same result as one by one."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from medseg.io import dicom_many, header_index
from medseg.io.dicom_headers import Header, read_header
from medseg.io.files import walk
from medseg.io.header_index import from_plain, seal, to_plain, unseal
from medseg.scan import take_inventory
from tests.phantoms import enhanced, save, series


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
    assert reads(study, monkeypatch) == 0
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
    assert reads(study, monkeypatch) == 1 + 8
    scans = {scan.case_id: scan for scan in take_inventory([study]).scans}
    assert scans["a"].code == "DICOM-MIXED"
    assert len(scans["b"].files) == 7
    assert scans["d"].usable


def test_faults_are_looked_at_anew(study: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (study / "a" / "IM0002.dcm").write_bytes(b"")
    take_inventory([study])
    assert reads(study, monkeypatch) == 1


@pytest.mark.parametrize("spoil", [lambda b: b[:-1], lambda b: b"", lambda b: b[:60] + b"x" + b[61:], lambda _b: b"{}"])
def test_a_damaged_index_is_ignored(study: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, spoil) -> None:  # type: ignore[no-untyped-def]
    take_inventory([study])
    (index,) = cache.glob("*.headers")
    index.write_bytes(spoil(index.read_bytes()))
    assert reads(study, monkeypatch) == 18
    assert reads(study, monkeypatch) == 0


def test_files_that_may_still_change_are_not_kept(study: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_index, "SETTLED_NS", 10**12)
    take_inventory([study])
    assert reads(study, monkeypatch) == 18


def test_nothing_legible_is_stored(study: Path, cache: Path) -> None:
    scans = take_inventory([study]).scans
    secrets = {b"4711", b"Doe", b"GTV", b"IM0001", os.fsencode(study)}
    secrets |= {text.encode() for scan in scans for text in (scan.group, scan.series_uid, scan.study_uid)}
    for path in cache.iterdir():
        content = path.read_bytes() + path.name.encode()
        assert not any(secret in content for secret in secrets)
        assert path.stat().st_mode & 0o077 == 0


def test_no_cache_folder_no_harm(study: Path, cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    assert len(take_inventory([study]).scans) == 3


def test_few_files_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_index, "cache_folder", lambda: tmp_path / "cache")
    save(small(), tmp_path / "study")
    take_inventory([tmp_path / "study"])
    assert not (tmp_path / "cache").exists()


def test_seals() -> None:
    content = random.Random(1).randbytes(1000)
    sealed = seal(content, b"k" * 32)
    assert unseal(sealed, b"k" * 32) == content
    assert sealed != seal(content, b"k" * 32)  # another nonce
    with pytest.raises(ValueError, match="seal"):
        unseal(sealed, b"l" * 32)
    with pytest.raises(ValueError, match="seal"):
        unseal(sealed[:100] + bytes([sealed[100] ^ 1]) + sealed[101:], b"k" * 32)


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


def deadly_chunk(paths: list[Path]) -> list[Header | None]:
    return [deadly(path) for path in paths]


def test_headers_survive_plain_types(study: Path) -> None:
    for found in walk([study])[0]:
        header = read_header(found.path)
        if header is not None:
            plain = header_index.json.loads(header_index.json.dumps(to_plain(header)))
            assert from_plain(found.path, plain) == header

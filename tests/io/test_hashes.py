"""Hashes of files: right whatever happens to the file, and cheap when nothing did."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from medseg.errors import InputError
from medseg.io import hashes
from medseg.io.hashes import Hashes


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of these tests are younger than two seconds: as if they were older."""
    monkeypatch.setattr(hashes, "SETTLED_NS", -(10**12))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose content was read."""
    names: list[str] = []
    digest = hashlib.file_digest

    def watched(file: Any, algorithm: str) -> Any:
        names.append(Path(file.name).name)
        return digest(file, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", watched)
    return names


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def remembered(folder: Path, *files: Path) -> Hashes:
    """A second process that begins with what a first one remembered."""
    first = Hashes(folder / "hashes.json")
    for file in files:
        first.of(file)
    first.save()
    return Hashes(folder / "hashes.json")


def test_an_unchanged_file_is_read_once(tmp_path: Path, read: list[str]) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"one")
    again = remembered(tmp_path, tmp_path / "a", tmp_path / "b", tmp_path / "a")
    assert read == ["a", "b"]
    assert again.of(tmp_path / "a") == again.of(tmp_path / "b") == sha(b"one")
    assert read == ["a", "b"]


def _overwrite(path: Path) -> None:
    path.write_bytes(b"two")


def _overwrite_and_turn_the_clock_back(path: Path) -> None:
    times = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _rename_another_over_it(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"two")
    times = path.stat()
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize(
    "change", [_overwrite, _overwrite_and_turn_the_clock_back, _rename_another_over_it, _grow], ids=lambda f: f.__name__
)
def test_a_changed_file_is_read_again(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "scan"
    path.write_bytes(b"one")
    again = remembered(tmp_path, path)
    change(path)
    assert again.of(path) == sha(path.read_bytes()) != sha(b"one")


def test_a_file_changed_a_moment_ago_is_not_trusted(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "SETTLED_NS", 10**12)
    (tmp_path / "a").write_bytes(b"one")
    remembered(tmp_path, tmp_path / "a").of(tmp_path / "a")
    assert read == ["a", "a"]


def test_a_file_that_changes_while_it_is_read_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    digest = hashlib.file_digest

    def slow(file: Any, algorithm: str) -> Any:
        found = digest(file, algorithm)
        path.write_bytes(b"and more")
        return found

    monkeypatch.setattr(hashlib, "file_digest", slow)
    again = remembered(tmp_path, path)
    monkeypatch.undo()
    assert again.of(path) == sha(b"and more")


def test_another_memory_helps_too(tmp_path: Path, read: list[str]) -> None:
    (tmp_path / "a").write_bytes(b"one")
    remembered(tmp_path / "run-1", tmp_path / "a")
    second = Hashes(tmp_path / "run-2" / "hashes.json", [tmp_path / "run-1" / "hashes.json", tmp_path / "none.json"])
    assert second.of(tmp_path / "a") == sha(b"one")
    second.save()
    assert read == ["a"]
    assert (tmp_path / "run-2" / "hashes.json").read_text() == (tmp_path / "run-1" / "hashes.json").read_text()


def test_what_is_no_longer_asked_for_is_forgotten(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(b"one")
    second = remembered(tmp_path, tmp_path / "a", tmp_path / "b")
    second.of(tmp_path / "a")
    second.save()
    assert (tmp_path / "hashes.json").read_text().count(sha(b"one")) == 1


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format": 1, "sha256": 3}', b'{"format": 9}', b"\xff"])
def test_a_damaged_memory_is_ignored(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "hashes.json").write_bytes(content)
    (tmp_path / "a").write_bytes(b"one")
    assert Hashes(tmp_path / "hashes.json").of(tmp_path / "a") == sha(b"one")


def test_no_name_is_written(tmp_path: Path) -> None:
    path = tmp_path / "Quixote^Dulcinea.dcm"
    path.write_bytes(b"one")
    remembered(tmp_path, path)
    assert "Quixote" not in (tmp_path / "hashes.json").read_text()


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Hashes().of(tmp_path / "gone")
    assert caught.value.code == "USAGE-PATH"

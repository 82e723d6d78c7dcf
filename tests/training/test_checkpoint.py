"""Checkpoints: whole or refused, and never run."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.errors import RunError
from medseg.training.checkpoint import FORMAT, load_checkpoint, load_last, save_checkpoint

STATE: dict[str, Any] = {"format": FORMAT, "network": {"a.weight": torch.arange(4000.0)}, "epoch": 3, "best_dice": 0.5}


class Payload:
    """A pickle that leaves a file behind when it is run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def seal(path: Path) -> None:
    """Put the right hash behind an archive, as one who means harm would."""
    path.write_bytes(path.read_bytes() + hashlib.sha256(path.read_bytes()).digest())


def refused(path: Path) -> str:
    with pytest.raises(RunError) as caught:
        load_checkpoint(path)
    assert caught.value.code == "RUN-RESUME"
    return str(caught.value)


def test_there_and_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "deep" / "last.pt", STATE)
    state = load_checkpoint(tmp_path / "deep" / "last.pt")
    assert torch.equal(state["network"]["a.weight"], STATE["network"]["a.weight"])
    assert (state["epoch"], state["best_dice"]) == (3, 0.5)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["last.pt"]


def test_the_old_one_stays_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    kept = path.read_bytes()
    with pytest.raises(AttributeError):
        save_checkpoint(path, {"format": FORMAT, "large": torch.zeros(100_000), "fault": lambda: None})
    assert path.read_bytes() == kept
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_full_disk_is_told_and_the_old_one_stays(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="the system has no limits")
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    kept = path.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # larger files are refused by the system itself
    try:
        with pytest.raises(RunError) as caught:
            save_checkpoint(path, STATE | {"large": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.code == "RUN-WRITE"
    assert path.read_bytes() == kept
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_a_damaged_one_gives_way_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "last.pt"
    for epoch in (3, 4, 5):
        save_checkpoint(path, STATE | {"epoch": epoch})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["before.pt", "last.pt"]
    assert load_last(path)["epoch"] == 5
    assert not caplog.text
    path.write_bytes(path.read_bytes()[:-100])
    assert load_last(path)["epoch"] == 4
    assert "going on from the one before" in caplog.text
    (tmp_path / "before.pt").write_bytes(b"")
    with pytest.raises(RunError, match="damaged"):
        load_last(path)


def test_without_links_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    for epoch in (3, 4):
        save_checkpoint(tmp_path / "last.pt", STATE | {"epoch": epoch})
    assert load_last(tmp_path / "last.pt")["epoch"] == 4


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.99])
def test_cut_short(tmp_path: Path, share: float) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path)


def test_any_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    content = path.read_bytes()
    chance = random.Random(0)
    for place in [chance.randrange(len(content)) for _ in range(100)]:
        damaged = bytearray(content)
        damaged[place] ^= chance.randrange(1, 256)
        path.write_bytes(damaged)
        refused(path)


def test_archives_flipped_and_sealed_are_refused_or_read(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save(STATE, path)
    content = path.read_bytes()
    chance = random.Random(0)
    for place in [chance.randrange(len(content)) for _ in range(200)] + list(range(0, 300, 3)):
        damaged = bytearray(content)
        damaged[place] ^= chance.randrange(1, 256)
        path.write_bytes(damaged)
        seal(path)
        with suppress(RunError):  # anything else would be a traceback for the user
            load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"# README\n", bytes(2000), b"PK\x03\x04" + bytes(300)])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    refused(path)


def test_a_folder_and_nothing(tmp_path: Path) -> None:
    refused(tmp_path)
    refused(tmp_path / "absent.pt")


@pytest.mark.parametrize("other", [{"format": FORMAT - 1}, {"format": FORMAT + 1}, {}, [1, 2], torch.zeros(3), 5, None])
def test_archives_of_something_else(tmp_path: Path, other: object) -> None:
    torch.save(other, tmp_path / "last.pt")
    seal(tmp_path / "last.pt")
    assert "not a checkpoint" in refused(tmp_path / "last.pt")


def test_a_plain_pickle_is_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "last.pt", tmp_path / "mark"
    path.write_bytes(pickle.dumps({"format": FORMAT, "network": Payload(mark)}))
    seal(path)
    refused(path)
    torch.save({"format": FORMAT, "network": Payload(mark)}, path, _use_new_zipfile_serialization=False)
    seal(path)
    refused(path)
    assert not mark.exists()


def test_an_archive_with_a_payload_is_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "last.pt", tmp_path / "mark"
    torch.save({"format": FORMAT, "network": Payload(mark)}, path)
    with zipfile.ZipFile(path) as archive:
        assert any(b"touch" in archive.read(name) for name in archive.namelist())  # the payload is there
    seal(path)
    refused(path)
    assert not mark.exists()


def test_storage_smaller_than_the_tensor_claims(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content[:16] if "/data/" in name else content)
    seal(path)
    refused(path)

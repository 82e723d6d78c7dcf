"""Free memory: of the machine, or of the job's narrowest limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.io import free
from medseg.io.free import free_memory
from medseg.io.workers import processes_for

GB = 10**9


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system with 8 GB to be had."""
    monkeypatch.setattr(free, "SYSTEM", tmp_path)
    write(tmp_path / "proc/meminfo", f"MemTotal: 16000000 kB\nMemFree: 1 kB\nMemAvailable:  {8 * GB // 1024} kB\n")
    return tmp_path


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def test_without_a_job(system: Path) -> None:
    assert free_memory() == 8 * GB // 1024 * 1024
    (system / "proc/meminfo").unlink()
    assert free_memory() is None


def test_the_second_version_of_control_groups(system: Path) -> None:
    write(system / "proc/self/cgroup", "0::/slurm/job_7/step_0")
    job = system / "sys/fs/cgroup/slurm/job_7"
    write(job / "step_0/memory.max", "max")
    write(job / "step_0/memory.current", GB)
    assert free_memory() == 8 * GB // 1024 * 1024
    write(job / "memory.max", 4 * GB)
    write(job / "memory.current", 3 * GB)
    write(job / "memory.stat", f"anon {GB}\ninactive_file {GB // 2}")
    assert free_memory() == 4 * GB - 3 * GB + GB // 2
    write(job.parent / "memory.max", GB)
    write(job.parent / "memory.current", 2 * GB)
    assert free_memory() == 0


def test_the_first_version_of_control_groups(system: Path) -> None:
    write(system / "proc/self/cgroup", "9:cpu:/\n4:memory:/box\n0::/")
    box = system / "sys/fs/cgroup/memory/box"
    write(box / "memory.limit_in_bytes", 2**63 - 4096)
    write(box / "memory.usage_in_bytes", GB)
    assert free_memory() == 8 * GB // 1024 * 1024
    write(box / "memory.limit_in_bytes", 2 * GB)
    write(box / "memory.stat", f"inactive_file 1\ntotal_inactive_file {GB // 4}")
    assert free_memory() == GB + GB // 4


def test_no_more_processes_than_fit(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert processes_for(100, 1) == 4
    assert processes_for(100, 1, 3 * GB) == 2
    assert processes_for(100, 1, 30 * GB) == 1
    assert processes_for(3, 2, GB) == 1

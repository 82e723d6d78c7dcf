"""A batch in shards: each process takes its share of the cases, all write into one folder, the last joins the records.

A case belongs to a shard by the hash of its id, whatever other cases there are. While it runs, a shard keeps records of
its own (`cases-2-of-8.csv`, `review-2-of-8.csv`, `run-2-of-8.json`); `join` lays them over the folder's.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.errors import RunError, UsageError
from medseg.io.atomic import remove_partials
from medseg.io.lock import exclusive, shared
from medseg.ledger import CASES, Ledger, Row, read_rows
from medseg.outputs import CLAIMS, claim
from medseg.review import REVIEW, Reviews
from medseg.run_file import RUN, RunFile, read_facts

log = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class Shard:
    """The `number`-th of `count` shares of the cases, counted from 1; 1 of 1 is all of them.

    Raises:
        UsageError: USAGE-OPTION for a number out of range.
    """

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        """Check the range."""
        if not 1 <= self.number <= self.count:
            problem = f"shard {self.number} of {self.count}, wanted 1 to {self.count}"
            raise UsageError("USAGE-OPTION", "--shard", problem, "Give i/n, such as 1/8.")

    @staticmethod
    def parse(text: str | None) -> Shard:
        """Read `i/n`; None is all."""
        number, _, count = (text or "1/1").partition("/")
        return Shard(int(number), int(count))

    def has(self, case: str) -> bool:
        """Tell whether a case belongs to it, by the first eight bytes of the SHA-256 of its id."""
        digest = hashlib.sha256(case.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1

    @property
    def name(self) -> str:
        """For names of files: `2-of-8`; empty when it is all."""
        return f"{self.number}-of-{self.count}" if self.count > 1 else ""

    def named(self, file: str) -> str:
        """Return the shard's own form of a file's name: `cases-2-of-8.csv`."""
        stem, _, ending = file.rpartition(".")
        return f"{stem}-{self.name}.{ending}" if self.name else file


@contextmanager
def held(output: Path, shard: Shard) -> Iterator[None]:
    """Hold the output folder, or this shard's part of it.

    Raises:
        RunError: RUN-BUSY when another process holds it, RUN-WRITE.
    """
    with ExitStack() as stack:
        if shard.name:
            stack.enter_context(shared(output))
        stack.enter_context(exclusive(output, shard.name))
        yield


def join_when_last(output: Path) -> None:
    """Join the records, unless shards are still at work: the last of them does."""
    try:
        with exclusive(output) as certain:
            if certain:
                join_parts(output)
    except RunError as error:
        if error.code != "RUN-BUSY":
            raise


def join(output: Path) -> tuple[Ledger, tuple[Shard, ...]]:
    """Join the records of shards into those of the folder, those of killed ones as far as they came.

    Returns:
        The ledger, and the shards that have not come to their end.

    Raises:
        UsageError: USAGE-PATH when no shard worked there.
        RunError: RUN-BUSY while one does, RUN-WRITE.
    """
    if not output.is_dir() or not (parts_of(output) or read_facts(output / RUN).get("shards")):
        raise UsageError("USAGE-PATH", str(output), "no shard worked on this folder", "Name the output folder.")
    with exclusive(output):
        remove_partials(output)
        return join_parts(output)


def check_company(output: Path, model_hash: str) -> None:
    """Refuse to share a folder with shards of another model.

    Raises:
        UsageError: USAGE-PATH.
    """
    for shard, path in parts_of(output).items():
        if read_facts(path).get("model", model_hash) != model_hash:
            problem = f"shard {shard.number}/{shard.count} worked there with another model"
            raise UsageError("USAGE-PATH", str(output), problem, "Choose another folder, or run medseg merge first.")


def parts_of(output: Path) -> dict[Shard, Path]:
    """Return the run files of shards that were not joined yet, the older first."""
    pattern = re.compile(r"run-([1-9][0-9]*)-of-([1-9][0-9]*)\.json")
    found = [(match, path) for path in output.glob("run-*-of-*.json") if (match := pattern.fullmatch(path.name))]
    found.sort(key=lambda item: item[1].stat().st_mtime_ns)
    return {Shard(int(match[1]), int(match[2])): path for match, path in found}


def join_parts(output: Path) -> tuple[Ledger, tuple[Shard, ...]]:
    """Lay each part's rows, and what it remembers, over those of the cases that belong to it; otherwise as `join`.

    The caller holds the folder.
    """
    parts = parts_of(output)
    file, ledger = RunFile(output / RUN), Ledger(output)
    facts: dict[str, Any] = read_facts(output / RUN)
    shards: dict[str, Any] = dict(facts.get("shards", {}))
    rows = _rows(output / CASES)
    for shard, path in parts.items():
        part = RunFile(path)
        rows = [row for row in rows if not shard.has(row.case)] + _rows(output / shard.named(CASES))
        file.take(part, shard.has)
        own = read_facts(path)
        shards = {name: told for name, told in shards.items() if Shard.parse(name).count == shard.count}
        shards[f"{shard.number}/{shard.count}"] = {key: own.get(key) for key in ("complete", "seconds", "totals")}
        facts = own
    ledger.record(*rows)
    if parts:
        done = [row.case for row in rows if row.status in ("done", "reused")]
        reviews = {case: review for case in done if (review := file.review(case))}
        Reviews(output / REVIEW, list(facts.get("labels", {}).values())).record(reviews)
        file.save(facts | {"shards": shards, "totals": ledger.counts(), "complete": not _open(shards)})
        _forget(output, list(parts))
    return ledger, _open(shards)


def _rows(path: Path) -> list[Row]:
    try:
        return read_rows(path)
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        log.warning("%s cannot be read: its rows are lost, its cases are known from the masks", path)
        return []


def _open(shards: dict[str, Any]) -> tuple[Shard, ...]:
    """Return the shards that are missing, or did not come to their end."""
    if not shards:
        return ()
    count = Shard.parse(next(iter(shards))).count
    every = (Shard(number, count) for number in range(1, count + 1))
    return tuple(s for s in every if not (shards.get(f"{s.number}/{s.count}") or {}).get("complete"))


def _forget(output: Path, parts: list[Shard]) -> None:
    """Remove the records that were joined; the names that they claimed stay claimed."""
    claim(output, "predict", [])
    for shard in parts:
        for name in (shard.named(CASES), shard.named(REVIEW), shard.named(RUN), f"{CLAIMS}-{shard.name}"):
            (output / name).unlink(missing_ok=True)

"""What in an output folder is medseg's own: the rest is never overwritten, and results are never taken for scans."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medseg.errors import UsageError
from medseg.io.atomic import write_text
from medseg.scan import Inventory

CLAIMS = ".medseg-outputs"
"""Lists the names that a command writes into a folder; written before the first of them. A part of a batch has one of
its own, with the part's name at the end."""

ADVICE = "Choose another output folder, such as a new one."


def outside(inventory: Inventory, paths: Sequence[Path], output: Path) -> Inventory:
    """Leave out the results of an earlier run, which may well lie among the scans.

    Args:
        inventory: what was found below `paths`.
        paths: what was given.
        output: the output folder; only what lies right in it can be a result.

    Raises:
        UsageError: USAGE-PATH when scans lie right in the output folder: results are named like them.
    """
    folder = _real(output)
    _, ours = _claims(folder)
    there = [scan for scan in inventory.scans if scan.kind == "nifti" and _real(scan.path).parent == folder]
    scans = [scan for scan in there if scan.path.name not in ours]
    if scans or any(folder == _real(path.parent if path.is_file() else path) for path in paths):
        problem = "the output folder holds the scans, and results are named like them"
        raise UsageError("USAGE-PATH", str(output), problem, "Choose another folder, such as one below it.")
    skipped = tuple(item for item in inventory.skipped if _real(item.path).parent != folder)
    return replace(inventory, scans=tuple(scan for scan in inventory.scans if scan not in there), skipped=skipped)


def _real(path: Path) -> Path:
    """The path without links; `Path.resolve` raises for a link to itself."""
    return Path(os.path.realpath(path))


def claim(output: Path, command: str, names: Sequence[str], part: str = "") -> frozenset[str]:
    """Write down which files a command is going to write, after making sure that none of them is somebody else's.

    Args:
        output: the output folder, held by this process.
        command: its name; two commands do not share a folder.
        names: of the files.
        part: name of the part of a batch that shares the folder with others.

    Returns:
        These names and those claimed earlier.

    Raises:
        UsageError: USAGE-PATH when one of them is there already and was not written by this command.
        RunError: RUN-WRITE.
    """
    before, ours = _claims(output)
    if before not in ("", command):
        problem = f"holds the results of medseg {before}, which are named like those of medseg {command}"
        raise UsageError("USAGE-PATH", str(output), problem, ADVICE)
    foreign = [name for name in names if name not in ours and (output / name).exists()]
    if foreign:
        problem = f"holds {foreign[0]} already, which medseg did not write; it would be overwritten"
        raise UsageError("USAGE-PATH", str(output), problem, ADVICE)
    content = {"command": command, "files": sorted(ours | set(names))}
    write_text(output / (CLAIMS + (f"-{part}" if part else "")), json.dumps(content, indent=1))
    return frozenset(ours | set(names))


def _claims(folder: Path) -> tuple[str, set[str]]:
    """Return the command and the names that a folder was claimed for; nothing when it was not."""
    command, names = "", set[str]()
    for path in folder.glob(f"{CLAIMS}*"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            command, names = str(content["command"]), names | {str(name) for name in content["files"]}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return command, names

"""The door to configuration files: YAML in, a validated and frozen `Config` out, or every fault at once.

    train:
      epochs: 60
    labels:
      tumour: GTV*

Only what differs from the defaults (`medseg.config.settings`) needs to stand there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medseg.config.faults import Fault, describe, faults_of
from medseg.config.settings import Config
from medseg.config.yaml_text import Document, Place, Plain, read_yaml, write_yaml
from medseg.errors import ConfigError, UsageError

COMMAND_LINE = "command line"

PATHS = (("data", "scans"), ("data", "references"), ("data", "split"), ("start", "model"))
"""Settings that name files; a relative one counts from the folder of the file that it stands in."""


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file.

    Args:
        path: the file, YAML in UTF-8 (a byte order mark and CR LF are fine).
        overrides: `section.key=value`, the value in YAML; they win over the file.

    Raises:
        UsageError: USAGE-PATH when there is no such file.
        ConfigError: CONFIG-SYNTAX, CONFIG-UNSAFE, CONFIG-KEY, CONFIG-VALUE; all faults in one message,
            each with its line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError("USAGE-PATH", str(path), f"cannot be read: {error.strerror or error}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problem = f"the byte 0x{content[error.start]:02X} is not UTF-8"
        raise ConfigError("CONFIG-SYNTAX", f"{path}:{line}", problem, "Save the file as UTF-8.") from error
    return parse(text, str(path), overrides)


def parse(text: str, origin: str, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration from text.

    Args:
        text: YAML.
        origin: the file's path, for messages and as the start of relative paths.
        overrides: as in `load`.

    Raises:
        ConfigError: as `load`.
    """
    document = read_yaml(text, origin)
    if not isinstance(document.data, dict):
        if document.data is None:
            raise ConfigError("CONFIG-SYNTAX", origin, "the file is empty, wanted settings", "Start with `data:`.")
        problem = f"holds {describe(document.data)}, wanted sections such as `data:` at the top level"
        raise ConfigError("CONFIG-SYNTAX", origin, problem, "Start with `data:`.")
    overridden = [_override(document.data, override) for override in overrides]
    _complete(document.data)
    faults = [Fault(place, "CONFIG-KEY", f"stands twice, again in line {n}") for place, n in document.repeated.items()]
    _resolve_paths(document.data, Path(origin).parent, overridden)
    try:
        config = Config.model_validate(document.data)
    except ValidationError as error:
        faults += faults_of(error, document.data)
    if faults:
        raise _error(faults, document, origin, overridden)
    return config


def dump(config: Config, reasons: Mapping[str, str] | None = None) -> str:
    """Return the whole configuration as YAML that `parse` turns into an equal one; its paths are absolute.

    Args:
        config: the settings.
        reasons: `section.key`, or `section`, to a comment that stands on its line.
    """
    data = _plain(config.model_dump())
    _resolve_paths(data, Path.cwd(), ())
    return write_yaml(data, {tuple(name.split(".")): reason for name, reason in (reasons or {}).items()})


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Return settings as what YAML knows: paths as text, tuples as lists."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _override(data: dict[str, Plain], override: str) -> Place:
    """Apply one `a.b=value` to `data`; return the place of what it made: the value, or the section it had to begin.

    Raises:
        ConfigError: CONFIG-SYNTAX without a key or `=`, CONFIG-KEY for a wrong list position, and as `read_yaml`
            for the value.
    """
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        problem = f"{override!r}, wanted `section.key=value`"
        raise ConfigError("CONFIG-SYNTAX", COMMAND_LINE, problem, "For example train.epochs=60.")
    holder: Any = data
    place: Place = ()
    made: Place = ()
    for key in keys[:-1]:
        step = _step(holder, key, name)
        place = (*place, step)
        if isinstance(holder, dict) and not isinstance(holder.get(key), (dict, list)):
            holder[key] = {}
            made = made or place
        holder = holder[step]
    step = _step(holder, keys[-1], name)
    holder[step] = read_yaml(text, f"{COMMAND_LINE}: {name.strip()}").data
    return made or (*place, step)


def _step(holder: Plain, key: str, name: str) -> str | int:
    """Return the key, or the list position, that `key` means in `holder`."""
    if isinstance(holder, dict):
        return key
    if isinstance(holder, list) and key.isdecimal() and int(key) < len(holder):
        return int(key)
    count = len(holder) if isinstance(holder, list) else 0
    problem = f"{name.strip()}: {key!r} is no position in a list of {count}"
    raise ConfigError("CONFIG-KEY", COMMAND_LINE, problem, "Positions count from 0.")


def _complete(data: dict[str, Plain]) -> None:
    """Leave out empty sections, and name the default network where a file changes its settings without naming one."""
    for key in [key for key, value in data.items() if value is None]:
        del data[key]
    if isinstance(model := data.get("model"), dict):
        model.setdefault("name", Config.model_fields["model"].default.name)


def _resolve_paths(data: dict[str, Plain], folder: Path, overridden: Collection[Place]) -> None:
    """Make the paths in `data` absolute: from `folder`, or from the current folder where the command line gave them."""

    def absolute(value: Plain, place: Place) -> Plain:
        if isinstance(value, list):
            return [absolute(inner, (*place, n)) for n, inner in enumerate(value)]
        if not isinstance(value, str):
            return value
        start = Path.cwd() if _within(place, overridden) else folder
        # Not Path.resolve: a link keeps its own name, which case ids come from.
        return os.path.abspath(start / os.path.expanduser(value))  # noqa: PTH100, PTH111

    for section, key in PATHS:
        holder = data.get(section)
        if isinstance(holder, dict) and key in holder:
            holder[key] = absolute(holder[key], (section, key))


def _within(place: Place, outer: Collection[Place]) -> bool:
    return any(place[: len(start)] == start for start in outer)


def _error(faults: list[Fault], document: Document, origin: str, overridden: Collection[Place]) -> ConfigError:
    """Put all faults into one error: those of the file in the order of its lines, then those of the command line."""
    code = "CONFIG-KEY" if any(fault.code == "CONFIG-KEY" for fault in faults) else "CONFIG-VALUE"
    found: list[tuple[float, str, str]] = []
    for fault in faults:
        text = ".".join(map(str, fault.place)) + ": " * bool(fault.place) + fault.problem
        if _within(fault.place, overridden):
            found.append((math.inf, COMMAND_LINE, text))
        else:
            line = _line(fault.place, document)
            found.append((line, f"{origin}:{line}" if line else origin, text))
    found.sort(key=lambda entry: entry[0])
    if len(found) == 1:
        return ConfigError(code, found[0][1], found[0][2])
    listed = "".join(f"\n  {where}: {text}" for _, where, text in found)
    return ConfigError(code, origin, f"{len(found)} faults{listed}\n ")


def _line(place: Place, document: Document) -> int:
    """Return the line of a place, or of what it stands in; 0 for the file as a whole."""
    while place and place not in document.lines:
        place = place[:-1]
    return document.lines.get(place, 0)

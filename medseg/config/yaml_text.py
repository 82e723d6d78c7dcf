"""YAML, the part of it that settings need: mappings, lists and plain values, each with its line.

What can run code or grow without bound (tags, anchors, aliases, deep nesting, huge files) is refused, a repeated key is
a fault instead of a silent choice, and plain values follow the YAML 1.2 core schema: `1e-3` is a number; `no`, `off`
and `on` are words. `true` and `false` too are handed on as words: whether one is meant is for the setting's type
to say.

Source: YAML 1.2.2, section 10.3 (core schema).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from medseg.errors import ConfigError

Plain = None | int | float | str | list["Plain"] | dict[str, "Plain"]
"""A value out of a file: no booleans (see above)."""

Place = tuple[str | int, ...]
"""Keys and list positions from the top down to one value."""

MAX_TEXT = 1 << 20
"""Characters. The longest configuration people write has some hundred lines; a mebibyte is a wrong file."""

MAX_DEPTH = 20
"""Levels of nesting; the settings have four."""

_NULL = re.compile(r"(~|null|Null|NULL|)\Z")
_INT = re.compile(r"[-+]?[0-9]{1,400}\Z")  # far beyond any setting, below Python's limit for turning digits into an int
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_ODD_FLOAT = re.compile(r"([-+]?)\.(inf|Inf|INF|nan|NaN|NAN)\Z")


@dataclass
class Document:
    """What a file says.

    Attributes:
        data: the values.
        lines: line number (from 1) of each key and list entry.
        repeated: place of each key that stands twice in one mapping -> the line of the second.
    """

    data: Plain = None
    lines: dict[Place, int] = field(default_factory=dict)
    repeated: dict[Place, int] = field(default_factory=dict)


def read_yaml(text: str, origin: str) -> Document:
    """Read one YAML document.

    Args:
        text: the document; may begin with a byte order mark, lines may end in CR LF.
        origin: its name in messages.

    Raises:
        ConfigError: CONFIG-SYNTAX with line and column, CONFIG-UNSAFE.
    """
    if len(text) > MAX_TEXT:
        problem = f"holds {len(text):,} characters, wanted at most {MAX_TEXT:,}"
        raise ConfigError("CONFIG-UNSAFE", origin, problem, "This is not a configuration.")
    try:
        return _Builder(yaml.parse(text.removeprefix("\ufeff"), Loader=yaml.SafeLoader), origin).document
    except yaml.MarkedYAMLError as error:
        where = _where(origin, error.problem_mark or error.context_mark)
        advice = "Indent with spaces, not with tabs." if "\\t" in str(error.problem) else "Correct the YAML there."
        raise ConfigError("CONFIG-SYNTAX", where, error.problem or "not YAML", advice) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        number = (
            error.character if isinstance(error.character, int) else ord(error.character)
        )  # the parser gives either
        problem = f"the character U+{number:04X} is not allowed in YAML"
        raise ConfigError("CONFIG-SYNTAX", f"{origin}:{line}", problem, "Save the file as plain UTF-8 text.") from error


def plain_value(text: str) -> Plain:
    """Return the value of an unquoted YAML scalar: None, int, float, or the text itself."""
    if _NULL.match(text):
        return None
    if _INT.match(text):
        return int(text)
    if _FLOAT.match(text):
        return float(text)
    if odd := _ODD_FLOAT.match(text):
        return float(odd[1] + odd[2])
    return text


def write_yaml(data: Plain, comments: Mapping[Place, str] | None = None) -> str:
    """Return YAML that `read_yaml`, and readers of YAML 1.1, turn back into `data` (which may hold booleans).

    Args:
        data: the values.
        comments: place of a section, or of a number, word or short list -> what stands behind it on its line.
    """
    text: str = yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=120
    )
    if not comments:
        return text
    lines, numbers = text.split("\n"), read_yaml(text, "").lines
    for place, comment in comments.items():
        printable = "".join(letter if letter.isprintable() else " " for letter in comment)  # of one line, whatever
        lines[numbers[place] - 1] += f"  # {printable}"
    return "\n".join(lines)


class _Dumper(yaml.SafeDumper):
    """Also quotes the words that only YAML 1.2 takes for numbers, such as `1e-3`; short lists take one line."""


def _list(dumper: yaml.SafeDumper, values: list[Plain]) -> yaml.Node:
    short = not any(isinstance(value, (dict, list)) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=short)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    # Unquoted, the emitter would write U+0085 and its like as they are, and the reader take them for line ends.
    style = None if value.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(list, _list)
_Dumper.add_representer(str, _text)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


class _Builder:
    """Builds a `Document` from the parser's events; `yaml`'s composer would expand aliases and recurse without end."""

    def __init__(self, events: Iterator[yaml.Event], origin: str) -> None:
        self._events = events
        self._origin = origin
        self.document = Document()
        next(events)  # the stream's start
        if isinstance(next(events), yaml.StreamEndEvent):
            return
        self.document.data = self._node(next(events), ())
        next(events)  # the document's end
        following = next(events)
        if not isinstance(following, yaml.StreamEndEvent):
            raise self._fault(
                "CONFIG-SYNTAX", following, "a second document begins", "Keep one, without `---` after it."
            )

    def _node(self, event: yaml.Event, place: Place) -> Plain:
        """Return the value that `event` begins, with all that is inside."""
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            problem, advice = (
                "anchors (&) and aliases (*) are not taken",
                "Write the value out; quote a text with * or &.",
            )
            raise self._fault("CONFIG-UNSAFE", event, problem, advice)
        if tag := getattr(event, "tag", None):
            raise self._fault(
                "CONFIG-UNSAFE", event, f"the tag {tag[:60]!r} is not taken", "Settings are plain values."
            )
        if len(place) > MAX_DEPTH:
            raise self._fault("CONFIG-UNSAFE", event, f"nested more than {MAX_DEPTH} levels deep", "Settings are flat.")
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(place)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(place)
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        raise self._fault("CONFIG-SYNTAX", event, "not a value", "Correct the YAML there.")

    def _mapping(self, place: Place) -> dict[str, Plain]:
        found: dict[str, Plain] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._fault(
                    "CONFIG-SYNTAX", event, "a list, a section or an alias stands as a key", "Name the key."
                )
            key = event.value
            line = _line(event)
            self._node(event, place)  # refuses anchors and tags
            if key == "_target_":
                problem = "`_target_` asks for code to be run"
                raise self._fault("CONFIG-UNSAFE", event, problem, "Choose by name; see the settings.")
            inner = (*place, key)
            value = self._node(next(self._events), inner)
            if key in found:
                self.document.repeated[inner] = line
            else:
                found[key] = value
                self.document.lines[inner] = line
        return found

    def _sequence(self, place: Place) -> list[Plain]:
        found: list[Plain] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            inner = (*place, len(found))
            self.document.lines[inner] = _line(event)
            found.append(self._node(event, inner))
        return found

    def _scalar(self, event: yaml.ScalarEvent) -> Plain:
        if event.value.startswith("$"):
            problem = f"{event.value[:60]!r} is an expression or a variable of the shell"
            raise self._fault("CONFIG-UNSAFE", event, problem, "Write the value itself; nothing is evaluated here.")
        return event.value if event.style else plain_value(event.value)

    def _fault(self, code: str, event: yaml.Event, problem: str, advice: str) -> ConfigError:
        return ConfigError(code, _where(self._origin, event.start_mark), problem, advice)


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0


def _where(origin: str, mark: Any) -> str:  # noqa: ANN401 (the parser has two classes of marks)
    return f"{origin}:{mark.line + 1}:{mark.column + 1}" if mark else origin

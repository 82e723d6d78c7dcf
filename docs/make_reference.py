"""Write errors.md, configuration.md and modules.md from the code: `python docs/make_reference.py`.

The files are committed, so that they can be read without running anything; a test proves that they are current.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from medseg.codes import CODES
from medseg.config import AugmentConfig, ChannelConfig, Config, DataConfig, PredictConfig, PrepareConfig, TrainConfig
from medseg.config.networks import BiSeNetConfig, DeepLabConfig, SegNetConfig, UNetConfig
from medseg.config.settings import CleanConfig
from medseg.io.atomic import write_text

HERE = Path(__file__).parent
ROOT = HERE.parent

REGENERATE = "Made from the code by `python docs/make_reference.py`; a test proves that it is current. Do not edit."

FAMILIES: dict[str, str] = {
    "USAGE": "The command line (exit code 2)",
    "CONFIG": "The configuration (exit code 2)",
    "MODEL": "Models (exit code 2; MODEL-INPUT rejects the case)",
    "GRID": "Geometry",
    "LABEL": "Labels",
    "DATA": "Data sets",
    "NOT": "Selection",
    "MASK": "Reference masks",
    "NIFTI": "NIfTI files",
    "DICOM": "DICOM objects and series",
    "SKIP": "Files that are no scans",
    "REVIEW": "Flags of predicted cases: what to look at (review.csv)",
    "RUN": "A run",
}
"""First word of a code -> title of its table, in the order of the page."""

SECTIONS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("data", "data.", DataConfig),
    ("data.select, for each channel", "", ChannelConfig),
    ("prepare", "prepare.", PrepareConfig),
    ("augment", "augment.", AugmentConfig),
    ("model, when `name: unet`", "model.", UNetConfig),
    ("model, when `name: segnet`", "model.", SegNetConfig),
    ("model, when `name: deeplab`", "model.", DeepLabConfig),
    ("model, when `name: bisenet`", "model.", BiSeNetConfig),
    ("train", "train.", TrainConfig),
    ("predict", "predict.", PredictConfig),
    ("predict.clean, for each label", "", CleanConfig),
)

COMPONENTS = ("data", "prepare", "augment", "model", "train", "predict")
"""Fields of `Config` that have tables of their own."""


def errors_page() -> str:
    """Return errors.md: every code with its meaning, by family."""
    unknown = sorted({code.partition("-")[0] for code in CODES} - set(FAMILIES))
    if unknown:
        raise ValueError(f"families of codes without a title: {unknown}; add them to FAMILIES")
    lines = ["# Codes", "", f"<!-- {REGENERATE} -->", "", *ERRORS_INTRODUCTION.strip().splitlines(), ""]
    for family, title in FAMILIES.items():
        members = {code: meaning for code, meaning in CODES.items() if code.partition("-")[0] == family}
        if members:
            lines += [f"## {title}", "", "| code | meaning |", "|---|---|"]
            lines += [f"| `{code}` | {_cell(meaning)} |" for code, meaning in members.items()] + [""]
    return "\n".join(lines).rstrip() + "\n"


def configuration_page() -> str:
    """Return configuration.md: every setting with its default, range and meaning."""
    lines = ["# Configuration", "", f"<!-- {REGENERATE} -->", "", *SETTINGS_INTRODUCTION.strip().splitlines(), ""]
    lines += ["## At the top level", "", *_table("", Config, leave_out=COMPONENTS), ""]
    for title, prefix, settings in SECTIONS:
        lines += [f"## {title}", "", " ".join((settings.__doc__ or "").split()), "", *_table(prefix, settings), ""]
    lines += [DEFAULT_MODEL.strip(), ""]
    return "\n".join(lines).rstrip() + "\n"


def modules_page() -> str:
    """Return modules.md: every module in reading order, with the first sentence of its docstring."""
    lines = ["# Modules", "", f"<!-- {REGENERATE} -->", "", *MODULES_INTRODUCTION.strip().splitlines(), ""]
    lines += ["| room | module | what it is |", "|---|---|---|"]
    rooms = _rooms()
    paths = (path.relative_to(ROOT / "medseg").with_suffix("") for path in sorted((ROOT / "medseg").rglob("*.py")))
    named = [(_room_of(_dotted(path), rooms), path) for path in paths]
    for place, path in sorted(named, key=lambda entry: (entry[0], entry[1].parts)):
        file = f"medseg/{path.as_posix()}.py"
        sentence = " ".join(
            (ast.get_docstring(ast.parse((ROOT / file).read_text("utf-8"))) or "").split("\n\n")[0].split()
        )
        lines.append(f"| {place + 1} | `{file}` | {_cell(sentence)} |")
    return "\n".join(lines) + "\n"


def _dotted(path: Path) -> str:
    parts = path.parts[:-1] if path.name == "__init__" else path.parts
    return ".".join(parts)


def _rooms() -> list[list[str]]:
    """Read the reading order from the test that proves it."""
    tree = ast.parse((ROOT / "tests" / "test_architecture.py").read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ROOMS":
            rooms: list[list[str]] = ast.literal_eval(node.value)
            return rooms
    raise ValueError("tests/test_architecture.py has no ROOMS")


def _room_of(name: str, rooms: list[list[str]]) -> int:
    """Return the place of the most precise entry that covers a module; the package itself comes last."""
    fits = [(len(e), n) for n, room in enumerate(rooms) for e in room if e and (name == e or name.startswith(f"{e}."))]
    return max(fits)[1] if fits else len(rooms) - 1


def _table(prefix: str, settings: type[BaseModel], leave_out: tuple[str, ...] = ()) -> Iterator[str]:
    schema = settings.model_json_schema(mode="validation")
    known = schema.get("$defs", {})
    yield "| setting | default | range | meaning |"
    yield "|---|---|---|---|"
    for name, field in settings.model_fields.items():
        if name in leave_out:
            continue
        default = _plain(field.get_default(call_default_factory=True))
        shown = "" if default is None else f"`{_cell(json.dumps(default, ensure_ascii=False))}`"
        values = _range(schema["properties"][name], known)
        meaning = field.description or "which network"  # the one setting that stands in its section's title
        yield f"| `{prefix}{name}` | {shown or 'absent'} | {_cell(values)} | {_cell(meaning)} |"


def _range(schema: dict[str, Any], known: dict[str, Any]) -> str:
    """Say in words what values a JSON schema allows."""
    if "$ref" in schema:
        return _range(known[schema["$ref"].rpartition("/")[2]], known)
    if "anyOf" in schema:
        parts = [_range(option, known) for option in schema["anyOf"] if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(parts)) + (", or absent" if len(parts) < len(schema["anyOf"]) else "")
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    match schema.get("type"):
        case "integer" | "number":
            kind = "whole number" if schema["type"] == "integer" else "number"
            return " ".join(filter(None, (kind, _bounds(schema))))
        case "boolean":
            return "`true`, `false`"
        case "array":
            return _list(schema, known)
        case "object":
            inner = schema.get("additionalProperties")
            return f"name: {_range(inner, known)}" if isinstance(inner, dict) else "a table of its own"
        case _:
            return "path" if schema.get("format") == "path" else "text"


def _list(schema: dict[str, Any], known: dict[str, Any]) -> str:
    if "prefixItems" in schema:
        parts = [_range(item, known) for item in schema["prefixItems"]]
        return f"{len(parts)} of: {parts[0]}" if len(set(parts)) == 1 else f"list of {', '.join(parts)}"
    count = _count(schema.get("minItems"), schema.get("maxItems"))
    return f"list{count} of: {_range(schema.get('items', {}), known)}"


def _count(least: int | None, most: int | None) -> str:
    if most is not None:
        return f" ({least or 0} to {most})"
    return f" (at least {least})" if least else ""


def _bounds(schema: dict[str, Any]) -> str:
    words = (("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"), ("exclusiveMaximum", "below"))
    return " ".join(f"{word} {schema[key]:.10g}" for key, word in words if key in schema)


def _plain(value: object) -> Any:  # noqa: ANN401  whatever JSON can hold
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_defaults=True) or {}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


ERRORS_INTRODUCTION = """
Every error, every finding of `medseg check` and every row of `cases.csv` carries one of these codes. The codes are
stable: scripts test the code, people read the sentence. The sentence says where, what was found, what was wanted, and
what to do; nothing in it identifies a patient.

A meaning that begins with "warning:" or "note:" never stops a case. In Python the code is `MedsegError.code`; the
classes are drawn in `medseg/errors.py`. `rejected` means that the input is unfit, `failed` that medseg or the machine
is at fault. One rejected or failed case never stops the others.
"""

MODULES_INTRODUCTION = """
Read from top to bottom: a module imports only from rooms above its own, or from its own. `tests/test_architecture.py`
holds the order and proves it from the imports. The reasons are in [architecture.md](architecture.md).
"""

SETTINGS_INTRODUCTION = """
A configuration is a YAML file in UTF-8 that holds only what differs from these defaults. Any setting can also be given
on the command line, and wins there: `medseg train study.yaml train.epochs=20 model.name=deeplab`.

- Unknown keys, wrong types and values out of range are refused, all in one message, each with its line.
- Relative paths count from the folder of the file. On the command line they count from the current folder.
- A single entry of `data.scans`, `data.references`, `data.select`, `ignore` or a label needs no brackets:
  `scans: export/`, `tumour: GTV*`.
- "absent" means that the setting may be left out or `null`. What it then means stands in the last column.
- YAML tags, anchors, aliases and `$` references are refused: a configuration runs no code and cannot expand.
- A run folder's `config.yaml` is such a file with every setting written out, the measured ones too.
"""

DEFAULT_MODEL = """
## The default model

Without a `model` section the network is a U-Net with `widths: [16, 32, 64, 128, 256]`, `norm: instance` and
`activation: leaky_relu`. With a `model` section the network is as its paper says, at the defaults above, and what the
section changes. A section that names no network means `unet`.
"""


if __name__ == "__main__":
    write_text(HERE / "errors.md", errors_page())
    write_text(HERE / "configuration.md", configuration_page())
    write_text(HERE / "modules.md", modules_page())

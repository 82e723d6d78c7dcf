"""Sentences about faulty settings: where each stands, what was found, what was wanted, and which key was meant."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from medseg.config.settings import Config
from medseg.config.yaml_text import Place, Plain

WANTED: dict[str, str] = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text (in quotes when it looks like a number)",
    "path_type": "a path",
    "tuple_type": "a list",
    "dict_type": "a section of `name: value`",
    "model_type": "a section of `name: value`",
    "model_attributes_type": "a section of `name: value`",
    "literal_error": "{expected}",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "missing": "one value more",
    "union_tag_invalid": "one of {expected_tags}",
}
"""pydantic's error type -> what was wanted, filled with pydantic's own numbers."""


@dataclass(frozen=True)
class Fault:
    """One thing wrong.

    Attributes:
        place: where in the settings.
        code: CONFIG-KEY or CONFIG-VALUE.
        problem: what was found, what was wanted.
    """

    place: Place
    code: str
    problem: str


def faults_of(error: ValidationError, data: Plain) -> list[Fault]:
    """Turn pydantic's findings about `data` into faults, one for each place in the order found."""
    found: dict[Place, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        found.setdefault(_place(detail, data), []).append(detail)
    return [_fault(place, details) for place, details in found.items() if not _follows(place, details, found)]


def _follows(place: Place, details: list[ErrorDetails], found: Collection[Place]) -> bool:
    """Whether a list is too short only because pydantic left out its faulty entries, which are reported themselves."""
    inner = any(len(other) > len(place) and other[: len(place)] == place for other in found)
    return details[0]["type"] == "too_short" and inner


def describe(value: Plain, longest: int = 60) -> str:
    """Return how a value is shown in a message."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a section"
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}..."


def _place(detail: ErrorDetails, data: Plain) -> Place:
    """Return pydantic's location without what is no key of the file: the branches of its unions."""
    place: list[str | int] = []
    current: Any = data
    for part in detail["loc"]:
        if isinstance(current, dict) and part in current:
            current = current[str(part)]
        elif isinstance(current, list) and isinstance(part, int) and part < len(current):
            current = current[part]
        else:
            continue
        place.append(part)
    return (*place, "name") if detail["type"] == "union_tag_invalid" else tuple(place)


def _fault(place: Place, details: list[ErrorDetails]) -> Fault:
    first = details[0]
    if first["type"] == "extra_forbidden":
        return Fault(place, "CONFIG-KEY", _unknown(first["loc"]))
    if first["type"] == "value_error":
        return Fault(place, "CONFIG-VALUE", first["msg"].removeprefix("Value error, "))
    wanted = " or ".join(dict.fromkeys(_wanted(detail) for detail in details))
    return Fault(place, "CONFIG-VALUE", f"{describe(_found(first))}, wanted {wanted}")


def _found(detail: ErrorDetails) -> Plain:
    value: Any = detail["input"]
    if detail["type"] == "union_tag_invalid":
        return str(detail["ctx"]["tag"])
    return list(value) if isinstance(value, tuple) else value


def _wanted(detail: ErrorDetails) -> str:
    template = WANTED.get(detail["type"])
    return template.format(**detail.get("ctx", {})) if template else detail["msg"]


def _unknown(loc: tuple[int | str, ...]) -> str:
    """Say that a key is not known, and which one may have been meant."""
    key = str(loc[-1])
    known = list(_model_at(loc[:-1]).model_fields)
    if close := get_close_matches(key, known, 1):
        return f"unknown key, did you mean {close[0]!r}?"
    elsewhere = _all_keys()
    if key in elsewhere:
        return f"unknown key here; it belongs {elsewhere[key]}"
    if close := get_close_matches(key, list(elsewhere), 1, 0.75):
        return f"unknown key; did you mean {close[0]!r}, which belongs {elsewhere[close[0]]}?"
    return f"unknown key, known here: {', '.join(known)}"


def _all_keys() -> dict[str, str]:
    """Return where every key of the settings belongs, in words; a key of the top level is only that."""
    found: dict[str, str] = {}
    for section, info in Config.model_fields.items():
        variants = _variants(info)
        for name, model in variants.items():
            for key in model.model_fields:
                several = sum(key in other.model_fields for other in variants.values()) > 1
                part = "" if len(variants) == 1 or several else f" (name: {name})"
                found.setdefault(key, f"under `{section}:`{part}")
    return found | dict.fromkeys(Config.model_fields, "at the top level")


def _model_at(loc: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the settings' class at pydantic's location (which names the branch of a union)."""
    model: type[BaseModel] = Config
    variants: dict[str, type[BaseModel]] = {}
    for part in loc:
        if part in variants:
            model = variants[str(part)]
        elif isinstance(part, str) and part in model.model_fields:
            variants = _variants(model.model_fields[part])
            model = next(iter(variants.values()), model)
    return model


def _variants(info: Any) -> dict[str, type[BaseModel]]:  # noqa: ANN401
    """Return the settings' classes inside a field or annotation, by the `name` that selects each."""
    annotation = getattr(info, "annotation", info)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        name = annotation.model_fields["name"].default if "name" in annotation.model_fields else annotation.__name__
        return {str(name): annotation}
    inner = (_variants(argument) for argument in get_args(annotation))
    return {name: model for found in inner for name, model in found.items()}

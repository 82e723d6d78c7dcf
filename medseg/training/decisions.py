"""`Decisions`: a configuration that is filled in setting by setting, each with the reason for its value."""

from __future__ import annotations

from typing import Any

from medseg.config import Config


class Decisions:
    """Settings as they are decided. A given value always stays; its reason then says what the data would have given.

    The reason depends on the value and on the data alone, unless a budget had a say: a configuration that was filled in
    once gets the same reasons again.

    Attributes:
        config: as far as it is filled in.
        reasons: setting (`section.key`), or section, to a line for people.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.reasons: dict[str, str] = {}

    def settle(self, key: str, choice: object, why: str) -> None:
        """Fill in a setting by what was measured, and say why."""
        given = value_of(self.config, key)
        self.fill(key, choice)
        self.reasons[key] = why if given in (None, "auto", choice) else f"as set; measured: {shown(choice)}, {why}"

    def fill(self, key: str, choice: object) -> None:
        """Fill in a setting that was left open: absent or `auto`."""
        if value_of(self.config, key) in (None, "auto"):
            section, name = key.split(".")
            filled = getattr(self.config, section).model_copy(update={name: choice})
            self.config = self.config.model_copy(update={section: filled})

    def keep(self, key: str, why: str) -> None:
        """Leave a setting as it is and say why its default is what it is."""
        section, name = key.split(".")
        default = type(getattr(self.config, section)).model_fields[name].default
        given = value_of(self.config, key)
        self.reasons[key] = why if given == default else f"as set; the default is {shown(default)}"

    def note(self, key: str, text: str) -> None:
        """Say something about a setting or a section."""
        self.reasons[key] = text


def value_of(config: Config, key: str) -> Any:  # noqa: ANN401  of whatever type the setting has
    """Return the value of a setting (`section.key`), or of a section."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def shown(value: object) -> str:
    """Return a value as people write it."""
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, bool) or value is None:
        return {None: "absent", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)

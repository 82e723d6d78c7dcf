"""The pages are true: what is made from the code is current, and what they show exists and loads."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
REGENERATE = "not current; run: python docs/make_reference.py"

NOT_A_CONFIGURATION = "<!-- not a configuration -->"
"""Stands on the line before a YAML block that is something else."""

FENCE = re.compile(r"^(?P<before>[^\n]*)\n+```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> list[object]:
    """Every fenced block of a kind, as a parameter that says where it stands."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer("\n" + text):
            if match["kind"] == kind and match["before"].strip() != NOT_A_CONFIGURATION:
                line = text.count("\n", 0, match.start("text") - 1)
                found.append(pytest.param(match["text"], id=f"{page.name}:{line}"))
    return found


def commands() -> list[object]:
    found = []
    for block in blocks("bash"):
        text = block.values[0].replace("\\\n", " ")  # type: ignore[attr-defined]
        for words in (shlex.split(line, comments=True) for line in text.splitlines()):
            starts = [place for place, word in enumerate(words) if word.rpartition("/")[2] == "medseg"]
            found += [pytest.param(words[place + 1 :], id=" ".join(words[place:])) for place in starts]
    return found


@cache
def reference_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["errors", "configuration", "modules"])
def test_page_made_from_the_code_is_current(name: str) -> None:
    page = getattr(reference_script(), f"{name}_page")()
    assert (DOCS / f"{name}.md").read_text(encoding="utf-8") == page, REGENERATE


def test_every_setting_and_code_has_its_row() -> None:
    """The script walks the schema; this walks a configuration that was made, which has all names too."""
    from medseg.codes import CODES
    from medseg.config import Config

    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    for section, settings in Config().model_dump().items():
        names = [f"{section}.{key}" for key in settings] if section in ("data", "prepare", "train") else [section]
        for name in names:
            assert f"`{name}`" in page or f"## {name}" in page, name
    errors = (DOCS / "errors.md").read_text(encoding="utf-8")
    assert [code for code in CODES if f"| `{code}` |" not in errors] == []


@pytest.mark.parametrize("text", blocks("yaml"))
def test_configuration_loads(text: str) -> None:
    from medseg.config import parse

    parse(text, str(ROOT / "study.yaml"))


@pytest.mark.parametrize("words", commands())
def test_command_exists(words: list[str]) -> None:
    """The parser knows the command and its options, and settings on the line have names and ranges that exist."""
    from medseg.cli import app
    from medseg.config import parse

    command, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert command.__module__.startswith("medseg.cli.")
    overrides = bound.arguments.get("overrides", ())
    parse("seed: 0", "study.yaml", overrides)


def test_commands_are_found() -> None:
    """A broken search would let every command pass."""
    assert len(commands()) > 20


@pytest.mark.parametrize("text", blocks("python"))
def test_python_compiles_and_imports_what_exists(text: str) -> None:
    if text.lstrip().startswith(">>>"):
        pytest.skip("runs as a doctest")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert [a.name for a in node.names if not hasattr(module, a.name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:medseg|docs|tests|pipelines|configs)/[\w/.-]*)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_codes_that_are_named_exist(page: Path) -> None:
    from medseg.codes import CODES

    families = "|".join(sorted({code.partition("-")[0] for code in CODES}))
    named = re.findall(rf"`((?:{families})-[A-Z-]+)`", page.read_text(encoding="utf-8"))
    assert [code for code in named if code not in CODES] == []


def test_pictures_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in (DOCS / "pictures").glob("*.png")}
    assert sizes
    assert all(size <= 60_000 for size in sizes.values()), sizes


def test_every_dependency_is_explained() -> None:
    """The table in architecture.md names every package that the project asks for."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    rows = re.findall(r"^\| ([^|]+) \|", (DOCS / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE)
    explained = {name for row in rows for name in re.split(r"[ ,()`]+", row.strip())}
    asked = {re.split(r"[>=<\[ ]", package)[0] for package in project["dependencies"]}
    assert asked <= explained, sorted(asked - explained)

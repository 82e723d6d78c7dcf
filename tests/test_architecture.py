"""The rules of the house, proved from the code's own imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "medseg"
FILES = sorted(PACKAGE.rglob("*.py"))

ROOMS = [
    ["codes"],
    ["errors"],
    ["progress"],
    ["grid"],
    ["volume", "pieces"],
    ["io.atomic", "io.lock"],
    ["io"],
    ["scan", "scan_ids"],
    ["ledger", "outputs"],
    ["listing", "convert"],
    ["config.frozen", "config.duration", "config.networks"],
    ["config"],
    ["case", "naming", "matching", "patients"],
    ["pairing", "reference"],
    ["dataset", "split"],
    ["facts"],
    ["case_measure"],
    ["fingerprint"],
    ["measured"],
    ["check"],
    ["surfaces"],
    ["metrics"],
    ["statistics"],
    ["report"],
    ["phantom"],
    ["preparation"],
    ["reading", "intensity", "postprocess"],
    ["quality", "review"],
    ["case_work"],
    ["run_file", "stopping", "preflight"],
    ["shards"],
    # torch begins here
    ["devices"],
    ["slices"],
    # MONAI begins here
    ["prepare"],
    ["store"],
    ["augment"],
    ["models.network", "models.blocks"],
    ["models.unet", "models.segnet", "models.deeplab", "models.bisenet"],
    ["models"],
    ["models.model_folder", "models.card"],
    ["quantise"],
    ["engines", "agreement"],
    ["prediction"],
    ["one_case"],
    ["lanes"],
    ["cluster_worker"],
    ["cluster"],
    ["batch"],
    ["arrivals"],
    ["training"],
    ["demo", "doctor"],
    ["cli"],
    ["__main__"],
    [""],
]
"""Reading order: a module imports from rooms above its own, or from its own."""

FIRST_WITH_TORCH = next(place for place, rooms in enumerate(ROOMS) if "devices" in rooms)

HOMES = {
    "pydicom": {"io", "scan"},
    "highdicom": {"io"},
    "nibabel": {"io", "grid"},
    "SimpleITK": {"io"},
    "cyclopts": {"cli"},
    "monai": {"augment", "prepare"},
    "onnx": {"quantise"},
    "onnxruntime": {"engines"},
    "openvino": {"engines"},
}
"""Library -> the only rooms that import it."""


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every module a file imports, at its top or inside functions; the lazy names for type checkers left out."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(name: str) -> int:
    """The most precise entry of ROOMS that covers a module."""
    best, place = -1, -1
    for number, entries in enumerate(ROOMS):
        for entry in entries:
            if (name == entry or (entry and name.startswith(f"{entry}."))) and len(entry) > best:
                best, place = len(entry), number
    if name == "":
        return len(ROOMS) - 1
    assert place >= 0, f"medseg.{name} has no room: add it to ROOMS where a newcomer would read it"
    return place


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_reading_order_is_import_order(path: Path) -> None:
    own = room(module_name(path))
    modules = {module_name(file) for file in FILES}
    for name in imports(path):
        target = name.removeprefix("medseg.") if name.startswith("medseg.") else None
        if target is not None and target in modules:
            assert room(target) <= own, f"medseg.{module_name(path)} imports medseg.{target}, which comes after it"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_libraries_stay_at_home(path: Path) -> None:
    name = module_name(path)
    tops = {imported.partition(".")[0] for imported in imports(path)}
    for library, homes in HOMES.items():
        if library in tops:
            assert name.partition(".")[0] in homes, f"medseg.{name} imports {library}; only {sorted(homes)} may"
    if "torch" in tops:
        assert room(name) >= FIRST_WITH_TORCH, f"medseg.{name} imports torch above the line"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_names_and_sizes(path: Path) -> None:
    forbidden = {"utils", "helpers", "common", "base", "manager"}
    assert not forbidden & set(path.relative_to(PACKAGE).with_suffix("").parts)


LIGHT = "medseg medseg.cli medseg.scan medseg.convert medseg.check medseg.report medseg.config medseg.case_work"
PREDICT = "medseg.cli medseg.batch medseg.arrivals medseg.models.model_folder"
SLOW = {"matplotlib", "highdicom", "SimpleITK", "pydicom.sr.codedict", "pandas", "torch._dynamo", "torch.onnx"}
"""Each takes some tenths of a second to import, and only some commands, or some scans, need it."""


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [(LIGHT, SLOW | {"torch", "monai"}), (PREDICT, SLOW - {"matplotlib"})],  # which MONAI imports
    ids=["light", "predict"],
)
def test_commands_start_without_what_they_may_not_need(modules: str, unwanted: set[str]) -> None:
    code = f"import sys, {modules.replace(' ', ', ')}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not unwanted & set(result.stdout.split())


def test_public_names_exist() -> None:
    import medseg

    for name in medseg.__all__:
        assert getattr(medseg, name) is not None
    assert set(medseg._PLACES) == set(medseg.__all__)


def test_every_code_that_is_raised_is_in_the_catalogue() -> None:
    import re

    from medseg.codes import CODES

    code = re.compile(r'"((?:USAGE|CONFIG|MODEL|GRID|LABEL|DATA|RUN|NIFTI|MASK|DICOM|REVIEW)-[A-Z]+(?:-[A-Z]+)*)"')
    used = {
        found for path in FILES if path.name != "codes.py" for found in code.findall(path.read_text(encoding="utf-8"))
    }
    assert used <= set(CODES), sorted(used - set(CODES))


def test_every_code_in_the_catalogue_is_used() -> None:
    from medseg.codes import CODES

    text = "".join(path.read_text(encoding="utf-8") for path in FILES if path.name != "codes.py")
    assert not [code for code in CODES if f'"{code}"' not in text]

"""What this machine can do, and what is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

CODECS = {
    "openjpeg": "JPEG 2000 and HTJ2K: pip install pylibjpeg pylibjpeg-openjpeg",
    "jpeg_ls": "JPEG-LS: pip install pyjpegls",
    "SimpleITK": "JPEG baseline and lossless: pip install SimpleITK",
}
"""Module -> what it decodes and how to get it."""

ENGINES = ("openvino", "onnxruntime")
"""Modules that compute networks; optional."""

NEEDED_GB = 5
"""Free disk for a small study with its prepared slices."""

WANTED_MEMORY_GB = 2
"""Free memory for a small study: the demo's peak is 0.8 GiB."""


@dataclass(frozen=True)
class Checkup:
    """One thing that was looked at."""

    what: str
    found: str
    good: bool = True
    advice: str = ""

    def __str__(self) -> str:
        """Return one line."""
        return (
            f"{'ok' if self.good else 'MISS':<4}  {self.what}: {self.found}{'. ' + self.advice if self.advice else ''}"
        )


def examine() -> list[Checkup]:
    """Look at Python, packages, codecs, processor, GPU, memory and disk; nothing that is missing stops it."""
    return [
        Checkup("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *_packages(requires("medseg") or []),
        *(_codec(module, advice) for module, advice in CODECS.items()),
        *_torch(),
        _engines(),
        _memory(),
        _disk(),
    ]


def _packages(requirements: list[str]) -> list[Checkup]:
    """Compare what medseg asks for with what is installed: one line for all that is well, one for each that is not."""
    well, rest = [], []
    for requirement in requirements:
        name, least = re.match(r"([\w.-]+)[^>]*(?:>=([\d.]+))?", requirement).groups()  # type: ignore[union-attr]
        if "extra ==" in requirement:
            continue  # optional
        try:
            found = version(name)
        except PackageNotFoundError:
            rest.append(Checkup(name, "not installed", False, f"pip install '{requirement}'"))
            continue
        if least and _numbers(found) < _numbers(least):
            rest.append(Checkup(name, f"{found}, wanted {least}", False, f"pip install --upgrade '{requirement}'"))
        else:
            well.append(f"{name} {found}")
    return [*([Checkup("packages", ", ".join(well))] if well else []), *rest]


def _numbers(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, such as (2, 13, 0) for 2.13.0+cpu; zeros at the end do not count."""
    numbers = [int(part) for part in re.match(r"\d+(\.\d+)*", text + ".0").group().split(".")]  # type: ignore[union-attr]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _codec(module: str, advice: str) -> Checkup:
    kind, _, command = advice.partition(": ")
    if importlib.util.find_spec(module) is None:
        return Checkup(f"codec {module}", f"not installed, {kind} cannot be read", False, command)
    return Checkup(f"codec {module}", kind)


def _torch() -> list[Checkup]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library that torch loads is missing
        return [Checkup("torch", f"does not start ({type(error).__name__})", False, "Install it again: pytorch.org.")]
    fast = torch.backends.cpu.get_cpu_capability()
    processor = Checkup("processor", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads for torch, {fast}")
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        bf16 = "with" if torch.cuda.is_bf16_supported() else "without"
        return [processor, Checkup("gpu", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16} bf16")]
    if shutil.which("nvidia-smi"):
        found = f"an NVIDIA driver is here, but torch {torch.__version__} cannot use it"
        return [processor, Checkup("gpu", found, False, "Install the torch build for its CUDA version: pytorch.org.")]
    return [processor, Checkup("gpu", "none: training and prediction use the processor")]


def _engines() -> Checkup:
    there = [f"{package} {version(package)}" for package in ENGINES if importlib.util.find_spec(package)]
    advice = "" if there else "pip install 'medseg[openvino]' for faster prediction on a processor"
    return Checkup("engines beside torch", ", ".join(there) or "none", advice=advice)


def _memory() -> Checkup:
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (AttributeError, ValueError, OSError):
        return Checkup("memory", "unknown on this system")
    good = free > WANTED_MEMORY_GB
    advice = "" if good else f"Close other programs; {WANTED_MEMORY_GB} GiB are wanted."
    return Checkup("memory", f"{free:.1f} GiB free", good, advice)


def _disk() -> Checkup:
    try:
        free = shutil.disk_usage(Path.cwd()).free / 2**30
        with tempfile.TemporaryDirectory(dir=Path.cwd()):
            pass
    except OSError as error:
        return Checkup(
            "disk", f"the current folder cannot be written ({error.strerror})", False, "Work in another one."
        )
    good = free > NEEDED_GB
    advice = "" if good else f"Work in a folder with {NEEDED_GB} GiB or more."
    return Checkup("disk", f"{free:.0f} GiB free in the current folder", good, advice)

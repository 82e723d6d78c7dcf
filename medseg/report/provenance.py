"""Provenance: what a report was made of and with, in hashes and versions; nothing in it names a person."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from medseg.volume import Mask

RUN_FILE = "run.json"
"""In a folder of masks that `medseg predict` wrote: the model's hash, its versions and settings."""

DIGITS = 16
"""Hexadecimal digits of each hash: 64 bits, far from any chance of two alike among the masks of the world."""

PACKAGES = ("medseg", "numpy", "scipy", "nibabel")


def content_hash(mask: Mask) -> str:
    """Return a hash of the label numbers, however the file packs them or orders its axes; the place is not in it."""
    order = mask.grid.order_to("RAS")
    labels = np.ascontiguousarray(order.apply(mask.labels))
    kept = labels.astype(np.uint8 if labels.max(initial=0) < 256 else "<u2", copy=False)
    return hashlib.sha256(f"{labels.shape} ".encode() + kept.tobytes()).hexdigest()[:DIGITS]


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Return a hash of settings that JSON can write."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:DIGITS]


def provenance(
    references: Iterable[str], masks: Iterable[str], settings: Mapping[str, Any], predicted: Mapping[str, str]
) -> dict[str, str]:
    """Return the lines of the report's last section.

    Args:
        references: the hash of each reference that was read; empty texts are passed over.
        masks: likewise of each mask.
        settings: of this evaluation.
        predicted: what is known of the masks' origin (`predicted_by`).
    """
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "references": _together(references),
        "masks": _together(masks),
        **predicted,
        "evaluation settings": settings_hash(settings),
        **{name: _version(name) for name in PACKAGES},
        "Python": platform.python_version(),
    }


def predicted_by(masks: Path) -> dict[str, str]:
    """Return model, settings and versions behind a folder of masks; nothing where its `run.json` is not medseg's."""
    try:
        run = json.loads((masks / RUN_FILE).read_text(encoding="utf-8"))
        found = {
            "model": str(run["model"]),
            "prediction settings": settings_hash(run["settings"]),
            "predicted with": ", ".join(f"{name} {number}" for name, number in sorted(run["versions"].items())),
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    return found


def _together(hashes: Iterable[str]) -> str:
    # Sorted and without names: the same masks give the same hash, whatever the cases are called.
    found = sorted(filter(None, hashes))
    if not found:
        return "none could be read"
    return f"{hashlib.sha256(' '.join(found).encode()).hexdigest()[:DIGITS]} ({len(found)})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"

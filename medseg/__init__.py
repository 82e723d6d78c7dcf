"""medseg: from a folder of scans to tumour masks that sit exactly on the scan, with Dice reports.

The public names, loaded when first used, so that `import medseg` starts neither torch nor MONAI.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medseg.batch import predict_folder
    from medseg.config import BatchConfig, Config, load
    from medseg.errors import MedsegError
    from medseg.grid import Grid
    from medseg.io.nifti import write_mask as write
    from medseg.models.model_folder import load_model
    from medseg.prediction import predict
    from medseg.report import evaluate
    from medseg.scan import find_scans, read
    from medseg.training import train
    from medseg.volume import Labels, Mask, Volume

_PLACES = {
    "BatchConfig": ("medseg.config", "BatchConfig"),
    "Config": ("medseg.config", "Config"),
    "Grid": ("medseg.grid", "Grid"),
    "Labels": ("medseg.volume", "Labels"),
    "Mask": ("medseg.volume", "Mask"),
    "MedsegError": ("medseg.errors", "MedsegError"),
    "Volume": ("medseg.volume", "Volume"),
    "evaluate": ("medseg.report", "evaluate"),
    "find_scans": ("medseg.scan", "find_scans"),
    "load": ("medseg.config", "load"),
    "load_model": ("medseg.models.model_folder", "load_model"),
    "predict": ("medseg.prediction", "predict"),
    "predict_folder": ("medseg.batch", "predict_folder"),
    "read": ("medseg.scan", "read"),
    "train": ("medseg.training", "train"),
    "write": ("medseg.io.nifti", "write_mask"),
}

__version__ = "0.1.0"
__all__ = [
    "BatchConfig",
    "Config",
    "Grid",
    "Labels",
    "Mask",
    "MedsegError",
    "Volume",
    "evaluate",
    "find_scans",
    "load",
    "load_model",
    "predict",
    "predict_folder",
    "read",
    "train",
    "write",
]


def __getattr__(name: str) -> object:
    """Load a public name (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module 'medseg' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted({*globals(), *__all__})

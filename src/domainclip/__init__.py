"""domainclip: fine-tune CLIP for a specialised domain, on the machine you have.

Names are loaded when they are first used, so that ``import domainclip`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "CLIPFinetuningConfig": "config",
    "CLIPFinetuningController": "pipelines",
    "DomainConfig": "domains",
    "CLIPFinetuningError": "errors",
    "MPSCompatibilityError": "errors",
    "MemoryConstraintError": "errors",
    "DeviceManager": "devices",
    "MemoryManager": "devices",
    "DualEncoder": "models",
    "load_encoder": "models",
    "DatasetLoader": "data",
    "CLIPDataset": "data",
    "EmbeddingEngine": "inference",
    "AlignmentMetrics": "alignment",
    "AlignmentVisualizer": "alignment",
    "ImageTextRetrieval": "alignment",
    "SimilarityComputer": "alignment",
    "run_training": "pipelines",
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("domainclip")
    if name in _HOME:
        return getattr(import_module(f"domainclip.{_HOME[name]}"), name)
    raise AttributeError(f"module 'domainclip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

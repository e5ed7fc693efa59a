"""domainclip: fine-tune CLIP for a specialised domain, on the machine you have.

Names are loaded when they are first used, so that ``import domainclip`` costs nothing. Type checkers and editors read
the imports below instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from domainclip.alignment import AlignmentMetrics, AlignmentVisualizer, ImageTextRetrieval, SimilarityComputer
    from domainclip.config import CLIPFinetuningConfig
    from domainclip.data import CLIPDataset, DatasetLoader
    from domainclip.devices import DeviceManager, MemoryManager
    from domainclip.domains import DomainConfig
    from domainclip.errors import CLIPFinetuningError, MemoryConstraintError, MPSCompatibilityError
    from domainclip.inference import EmbeddingEngine, ModelSession
    from domainclip.models import DualEncoder, load_encoder
    from domainclip.pipelines import CLIPFinetuningController, run_training

    __version__: str

_HOME = {
    "AlignmentMetrics": "alignment",
    "AlignmentVisualizer": "alignment",
    "ImageTextRetrieval": "alignment",
    "SimilarityComputer": "alignment",
    "CLIPFinetuningConfig": "config",
    "CLIPDataset": "data",
    "DatasetLoader": "data",
    "DeviceManager": "devices",
    "MemoryManager": "devices",
    "DomainConfig": "domains",
    "CLIPFinetuningError": "errors",
    "MemoryConstraintError": "errors",
    "MPSCompatibilityError": "errors",
    "EmbeddingEngine": "inference",
    "ModelSession": "inference",
    "DualEncoder": "models",
    "load_encoder": "models",
    "CLIPFinetuningController": "pipelines",
    "run_training": "pipelines",
}

__all__ = [
    "AlignmentMetrics",
    "AlignmentVisualizer",
    "CLIPDataset",
    "CLIPFinetuningConfig",
    "CLIPFinetuningController",
    "CLIPFinetuningError",
    "DatasetLoader",
    "DeviceManager",
    "DomainConfig",
    "DualEncoder",
    "EmbeddingEngine",
    "ImageTextRetrieval",
    "MPSCompatibilityError",
    "MemoryConstraintError",
    "MemoryManager",
    "ModelSession",
    "SimilarityComputer",
    "__version__",
    "load_encoder",
    "run_training",
]

if not TYPE_CHECKING:  # to a checker, a module with a __getattr__ has every name there is

    def __getattr__(name: str) -> object:
        from importlib import import_module, metadata

        if name == "__version__":
            return metadata.version("domainclip")
        if name in _HOME:
            return getattr(import_module(f"domainclip.{_HOME[name]}"), name)
        raise AttributeError(f"module 'domainclip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

"""Using a model: embeddings of images and texts, similarities, classes.

Names are loaded when they are first used, so that a text is embedded by a graph without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from domainclip.inference.engine import EmbeddingEngine
    from domainclip.inference.session import ModelSession
    from domainclip.inference.text_encoder import TextEncoder

__all__ = ["EmbeddingEngine", "ModelSession", "TextEncoder"]

_HOME = {"EmbeddingEngine": "engine", "ModelSession": "session", "TextEncoder": "text_encoder"}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"domainclip.inference.{_HOME[name]}"), name)
    raise AttributeError(f"module 'domainclip.inference' has no attribute {name!r}")

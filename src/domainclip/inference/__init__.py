"""Using a model: embeddings of images and texts, similarities, classes.

Names are loaded when they are first used, so that a text is embedded by a graph without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from domainclip.lazy import lazy_names

if TYPE_CHECKING:
    from domainclip.inference.engine import EmbeddingEngine
    from domainclip.inference.session import ModelSession
    from domainclip.inference.text_encoder import TextEncoder

__all__ = ["EmbeddingEngine", "ModelSession", "TextEncoder"]

_HOME = {"EmbeddingEngine": "engine", "ModelSession": "session", "TextEncoder": "text_encoder"}

__getattr__ = lazy_names(__name__, _HOME)

"""Dual encoders: loading, assembling and what they declare about themselves.

Names are loaded when they are first used, so that ``models.source`` answers without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from domainclip.models.dual_encoder import DualEncoder
    from domainclip.models.loading import load_encoder
    from domainclip.models.processor import EncoderProcessor
    from domainclip.models.tiny import make_tiny_clip

__all__ = ["DualEncoder", "EncoderProcessor", "load_encoder", "make_tiny_clip"]

_HOME = {
    "DualEncoder": "dual_encoder",
    "EncoderProcessor": "processor",
    "load_encoder": "loading",
    "make_tiny_clip": "tiny",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"domainclip.models.{_HOME[name]}"), name)
    raise AttributeError(f"module 'domainclip.models' has no attribute {name!r}")

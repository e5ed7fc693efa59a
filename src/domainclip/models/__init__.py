"""Dual encoders: loading, assembling and what they declare about themselves.

Names are loaded when they are first used, so that ``models.source`` answers without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from domainclip.lazy import lazy_names

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

__getattr__ = lazy_names(__name__, _HOME)

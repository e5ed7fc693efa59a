"""Dual encoders: loading, assembling and what they declare about themselves."""

from domainclip.models.dual_encoder import DualEncoder
from domainclip.models.loading import load_encoder
from domainclip.models.processor import EncoderProcessor
from domainclip.models.tiny import make_tiny_clip

__all__ = ["DualEncoder", "EncoderProcessor", "load_encoder", "make_tiny_clip"]

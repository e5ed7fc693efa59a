"""A domain's captions: spelling, abbreviations, length, and other ways of saying them."""

from domainclip.data.domain_text.chain import CaptionChain, CutCaptions

__all__ = ["CaptionChain", "CutCaptions"]

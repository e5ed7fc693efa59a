"""Recipes that tests of several files share."""

from __future__ import annotations

from typing import Any

from domainclip.config import CLIPFinetuningConfig


def config(**values: Any) -> CLIPFinetuningConfig:
    still = {"color_jitter": 0.0, "crop_scale": 1.0, "image_resolution": 32}
    return CLIPFinetuningConfig(**{**still, **values})

"""Towers that tests of several files share."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from domainclip.models.position_embeddings import (
    position_embeddings,
)

SIZES = [(16, 16), (48, 48), (64, 64), (32, 64), (64, 16), (24, 40)]
_TOWER: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def tower(name: str, image_size: int = 32, patch_size: int = 8) -> Any:
    """A random image tower whose position embeddings are as large as its other numbers."""
    kinds: dict[str, tuple[Any, Any]] = {
        "clip": (CLIPVisionConfig, CLIPVisionModel),
        "siglip": (SiglipVisionConfig, SiglipVisionModel),
        "vit": (ViTConfig, ViTModel),
        "deit": (DeiTConfig, DeiTModel),
        "dinov2": (Dinov2Config, Dinov2Model),
        "dinov2_with_registers": (Dinov2WithRegistersConfig, Dinov2WithRegistersModel),
    }
    config_class, model_class = kinds[name]
    values = dict(_TOWER)
    if name.startswith("dinov2"):
        values.pop("intermediate_size")
    torch.manual_seed(0)
    model = model_class(config_class(**values, image_size=image_size, patch_size=patch_size)).eval()
    with torch.no_grad():
        made = position_embeddings(copy.deepcopy(model))  # only to find the parameter's name
        assert made is not None
        wanted = next(name for name, value in made.module.named_parameters() if value is made.parameter)
        embeddings = next(m for m in model.modules() if hasattr(m, "interpolate_pos_encoding"))
        embeddings.get_parameter(wanted).normal_()
    return model

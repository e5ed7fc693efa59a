"""OpenCLIP checkpoints that tests of several files read and train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from domainclip.config import ModelSettings
from domainclip.models import DualEncoder, load_encoder
from open_clip_zoo import reference_image, reference_text

TEXTS = ["a photo of the red brick", "moon", "large grass texture seen from far above, sample 7", "sky"]
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


def load(folder: Path | str, **settings: Any) -> DualEncoder:
    return load_encoder(ModelSettings(model_name=str(folder), **settings))


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CONFIG).read_text())


def pixels(encoder: DualEncoder, seed: int = 3) -> Tensor:
    resolution = encoder.native_resolution
    return torch.randn(3, 3, resolution, resolution, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def embeddings(encoder: DualEncoder) -> tuple[Tensor, Tensor]:
    encoder.eval()
    return encoder.encode_image(pixels(encoder)), encoder.encode_text(**encoder.processor.tokenize(TEXTS))


def reference(folder: Path, encoder: DualEncoder) -> tuple[Tensor, Tensor]:
    state, config = load_file(folder / WEIGHTS), config_of(folder)
    ids = encoder.processor.tokenize(TEXTS)["input_ids"]
    padding = encoder.processor.pad_token_id
    return reference_image(state, config, pixels(encoder)), reference_text(state, config, ids, padding)

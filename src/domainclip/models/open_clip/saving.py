"""A dual encoder as an OpenCLIP checkpoint, beside the files that ``transformers`` reads."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import BaseImageProcessor, PretrainedConfig

from domainclip.errors import ConfigurationError
from domainclip.files import write_json
from domainclip.models.dual_encoder import DualEncoder
from domainclip.models.open_clip.weights import CONFIG, SAFE_WEIGHTS, to_open_clip, weight_names

log = logging.getLogger(__name__)

_INTERPOLATION = {int(Image.Resampling.BICUBIC): "bicubic", int(Image.Resampling.BILINEAR): "bilinear"}
_ACTIVATIONS: dict[str, dict[str, Any]] = {
    "quick_gelu": {},
    "gelu": {},
    "gelu_pytorch_tanh": {"act_kwargs": {"approximate": "tanh"}},
}


def describe_as_open_clip(encoder: DualEncoder) -> dict[str, Any]:
    """The ``open_clip_config.json`` of a CLIP that never was one of OpenCLIP's.

    Args:
        encoder: The dual encoder.

    Returns:
        What the file holds.

    Raises:
        ConfigurationError: For a model or preprocessing that OpenCLIP has no words for.
    """
    config = encoder.model.config
    if encoder.model_type != "clip":
        raise ConfigurationError(
            f"save_open_clip: {encoder.name or 'this model'} is a {encoder.model_type} model, which cannot be written "
            "as an OpenCLIP checkpoint. A CLIP can, and a model that was loaded from such a checkpoint"
        )
    vision, text = config.vision_config, config.text_config
    if vision.hidden_act != text.hidden_act or vision.hidden_act not in _ACTIVATIONS:
        raise ConfigurationError(
            f"save_open_clip: OpenCLIP has no word for the activations {vision.hidden_act} and {text.hidden_act}"
        )
    pooling: dict[str, Any] = {}
    words = encoder.processor.tokenizer
    if words.eos_token_id != max(words.get_vocab().values()):  # else OpenCLIP's default, the highest, finds it
        pooling = {"pool_type": "eos", "eos_id": int(words.eos_token_id)}

    def tower(cfg: PretrainedConfig) -> dict[str, Any]:
        return {
            "layers": cfg.num_hidden_layers,
            "width": cfg.hidden_size,
            "mlp_ratio": cfg.intermediate_size / cfg.hidden_size,
            "norm_kwargs": {"eps": cfg.layer_norm_eps},
            **_ACTIVATIONS[cfg.hidden_act],
        }

    return {
        "model_cfg": {
            "embed_dim": config.projection_dim,
            "quick_gelu": vision.hidden_act == "quick_gelu",
            "vision_cfg": {
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "head_width": vision.hidden_size // vision.num_attention_heads,
                **tower(vision),
            },
            "text_cfg": {
                "context_length": text.max_position_embeddings,
                "vocab_size": text.vocab_size,
                "heads": text.num_attention_heads,
                "hf_tokenizer_name": "tokenizer",  # any name: from a folder OpenCLIP takes the folder's own
                **tower(text),
                **pooling,
            },
        },
        "preprocess_cfg": _preprocess_cfg(encoder.processor.image_processor),
    }


def _preprocess_cfg(processor: BaseImageProcessor) -> dict[str, Any]:
    size = {key: value for key, value in dict(processor.size).items() if value is not None}
    crop = dict(processor.crop_size) if getattr(processor, "do_center_crop", False) else None
    if "shortest_edge" in size and crop is not None and size["shortest_edge"] != crop.get("height"):
        raise ConfigurationError(
            f"save_open_clip: the image processor resizes to {size['shortest_edge']} pixels and cuts out "
            f"{crop.get('height')}; OpenCLIP can only resize to the resolution it cuts out"
        )
    resample = int(getattr(processor, "resample", Image.Resampling.BICUBIC))
    if resample not in _INTERPOLATION:
        name = Image.Resampling(resample).name.lower()
        raise ConfigurationError(f"save_open_clip: OpenCLIP has no word for the resize {name} of the image processor")
    return {
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
        "interpolation": _INTERPOLATION[resample],
        "resize_mode": "shortest" if "shortest_edge" in size else "squash",
    }


def save_open_clip(encoder: DualEncoder, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write ``open_clip_config.json`` and ``open_clip_model.safetensors``.

    Args:
        encoder: Its ``open_clip_config`` is set.
        weights: The model's, for the resolution its image processor hands out.
        folder: Made where it is not there.
    """
    assert encoder.open_clip_config is not None
    config = copy.deepcopy(encoder.open_clip_config)
    model_cfg, resolution = config["model_cfg"], encoder.native_resolution
    vision_cfg = model_cfg["vision_cfg"]
    names = weight_names(encoder.model.config, weights, bool(model_cfg.get("custom_text")))
    tensors = to_open_clip(names, weights)
    if model_cfg.get("nonscalar_logit_scale"):
        tensors["logit_scale"] = tensors["logit_scale"].reshape(1)
    positions = encoder.positions
    if "timm_model_name" not in vision_cfg:
        if vision_cfg.get("image_size", 224) not in (resolution, [resolution, resolution]):
            vision_cfg["image_size"] = resolution
    elif positions is not None and (originals := positions.originals_of(folder)) is not None:
        tensors["visual.trunk.pos_embed"] = originals.cpu()
        log.warning(
            "OpenCLIP makes %s for %d pixels alone: the OpenCLIP checkpoint of this model, trained at %d, is for that "
            "resolution",
            vision_cfg["timm_model_name"],
            positions.size[0],
            resolution,
        )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / SAFE_WEIGHTS, {"format": "pt"})
    write_json(folder / CONFIG, config)

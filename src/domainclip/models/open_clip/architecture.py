"""What OpenCLIP's ``model_cfg`` says of a model, as a ``transformers`` config."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig, BertConfig, CLIPConfig, CLIPVisionConfig, PretrainedConfig, ViTConfig

from domainclip.errors import ModelLoadError
from domainclip.models.library import first_line
from domainclip.models.open_clip.processing import special_tokens
from domainclip.models.open_clip.projected_dual_encoder import ProjectedDualEncoderConfig
from domainclip.models.source.files import read_json_object
from domainclip.models.source.name import on_hub
from domainclip.models.source.values import check_config_values

SUPPORTED = (
    "Supported: OpenCLIP's own ViT with its own text transformer or a text tower from Hugging Face (BERT, RoBERTa, "
    "XLM-RoBERTa), and timm's plain ViT with a text tower from Hugging Face (BiomedCLIP). A SigLIP or CLIPA is better "
    "loaded from its repository in the layout of transformers"
)

_MODEL_KEYS: dict[str, Any] = {"init_logit_bias": None}
_TOWER_KEYS: dict[str, Any] = {
    "ls_init_value": None,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}
_VISION_KEYS = _TOWER_KEYS | {
    "attentional_pool": False,
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "pool_type": "tok",
}
_TEXT_KEYS = _TOWER_KEYS | {
    "embed_cls": False,
    "no_causal_mask": False,
    "proj_bias": False,
    "proj_type": "linear",
    "tokenizer_mode": None,
}
"""Keys that change the architecture, with the one value that is understood here (OpenCLIP's default)."""


def _keys(words: str) -> frozenset[str]:
    return frozenset(words.split())


_READ = {
    "model_cfg": _keys(
        "embed_dim vision_cfg text_cfg quick_gelu custom_text init_logit_scale nonscalar_logit_scale output_dict"
    ),
    "vision_cfg": _keys("layers width head_width mlp_ratio patch_size image_size norm_kwargs act_kwargs")
    # Nothing to the embedding of an image:
    | _keys("patch_dropout final_ln_after_pool output_tokens attn_pooler_queries attn_pooler_heads"),
    "text_cfg": _keys(
        "context_length vocab_size hf_tokenizer_name tokenizer_kwargs width heads layers mlp_ratio pool_type eos_id "
        "norm_kwargs act_kwargs pad_id output_tokens final_ln_after_pool"
    ),
}
_TIMM_KEYS = _keys(
    "timm_model_name timm_model_pretrained timm_pool timm_proj timm_proj_bias timm_drop timm_drop_path image_size "
    "patch_dropout"
)
_FOREIGN_KEYS = _keys(
    "hf_model_name hf_tokenizer_name hf_model_pretrained hf_proj_type hf_pooler_type context_length tokenizer_kwargs "
    "tokenizer_mode output_tokens vocab_size width heads layers"
)

_TIMM_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}
_TIMM_NAME = re.compile(rf"vit_({'|'.join(_TIMM_HEADS)})_patch\d+_\d+(\..*)?")
_TIMM_EPS = 1e-6  # of timm's ViT; PyTorch's own default is 1e-5

_POOLERS = {"mean_pooler": "mean", "max_pooler": "max", "cls_pooler": "pooler", "cls_last_hidden_state_pooler": "cls"}
_OWN_POOLER = {"bert": "cls_pooler", "roberta": "mean_pooler", "xlm-roberta": "mean_pooler"}
_BERT_HEADS = {768: 12, 1024: 16}
"""By width: BERT base and large. Smaller ones differ (MiniLM has 12 heads at 384), and weights do not tell."""


def transformers_config(
    model_cfg: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path
) -> CLIPConfig | ProjectedDualEncoderConfig:
    """The config of the ``CLIPModel`` or ``ProjectedDualEncoderModel`` that a checkpoint in ``folder`` is.

    Args:
        model_cfg: Of ``open_clip_config.json``.
        weights: State dict, on any device.
        folder: Where the checkpoint lies.

    Returns:
        Of the one or the other.

    Raises:
        ModelLoadError: For what neither can be.
    """
    if "multimodal_cfg" in model_cfg:
        raise _unsupported(folder, "it is a CoCa (multimodal_cfg)")
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in model_cfg]
    if missing:
        raise ModelLoadError(f"open_clip_config.json in {folder}: model_cfg lacks {', '.join(missing)}")
    vision_cfg, text_cfg = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    if not isinstance(vision_cfg, Mapping) or not isinstance(text_cfg, Mapping):
        raise _unsupported(folder, "vision_cfg and text_cfg are not both written out")
    _check(model_cfg, "model_cfg", _READ["model_cfg"], _MODEL_KEYS, folder)
    timm, foreign = vision_cfg.get("timm_model_name"), text_cfg.get("hf_model_name")
    _check(vision_cfg, "vision_cfg", _TIMM_KEYS if timm else _READ["vision_cfg"], _VISION_KEYS, folder)
    _check(text_cfg, "text_cfg", _FOREIGN_KEYS if foreign else _READ["text_cfg"], _TEXT_KEYS, folder)
    dim, quick = int(model_cfg["embed_dim"]), bool(model_cfg.get("quick_gelu", False))
    if not foreign:
        if timm:
            raise _unsupported(folder, f"the image tower {timm} beside OpenCLIP's own text transformer")
        vision, text = _clip_vision(vision_cfg, dim, quick, folder), _clip_text(text_cfg, dim, quick, folder)
        return CLIPConfig(vision_config=vision, text_config=text, projection_dim=dim)
    text_config = _foreign_text_config(text_cfg, weights, folder)
    text_pooling, text_projection = _foreign_text_head(text_cfg, text_config.model_type, folder)
    options: dict[str, Any] = {
        "text_config": text_config,
        "projection_dim": dim,
        "text_pooling": text_pooling,
        "text_projection": text_projection,
        "text_projection_hidden": (text_config.hidden_size + dim) // 2 if text_projection == "mlp" else None,
        "text_projection_biases": [False] * (2 if text_projection == "mlp" else 1),
    }
    if not timm:
        clip = CLIPVisionConfig(**_clip_vision(vision_cfg, dim, quick, folder))
        return ProjectedDualEncoderConfig(vision_config=clip, vision_pooling="pooler", **options)
    return ProjectedDualEncoderConfig(
        vision_config=_timm_vision(timm, weights, folder), **_timm_head(vision_cfg, dim, folder), **options
    )


def _check(
    given: Mapping[str, Any], where: str, read: frozenset[str], neutral: Mapping[str, Any], folder: Path
) -> None:
    for key, value in given.items():
        if key in read or (key in neutral and value == neutral[key]):
            continue
        if key == "block_type" and value == "default":
            continue
        raise _unsupported(folder, f"{where} has {key}: {value!r}")


def _unsupported(folder: Path, what: str) -> ModelLoadError:
    return ModelLoadError(f"The OpenCLIP model in {folder} is not supported: {what}. {SUPPORTED}")


def _activation(cfg: Mapping[str, Any], quick: bool, folder: Path) -> str:
    options = cfg.get("act_kwargs") or {}
    if options == {"approximate": "tanh"} and not quick:
        return "gelu_pytorch_tanh"
    if options:
        raise _unsupported(folder, f"act_kwargs {options!r}")
    return "quick_gelu" if quick else "gelu"


def _eps(cfg: Mapping[str, Any], folder: Path) -> float:
    options = dict(cfg.get("norm_kwargs") or {})
    eps = float(options.pop("eps", 1e-5))
    if options:
        raise _unsupported(folder, f"norm_kwargs {options!r}")
    return eps


def _square(value: Any, what: str, folder: Path) -> int:
    resolutions = list(value) if isinstance(value, (list, tuple)) else [value, value]
    if len(set(resolutions)) != 1:
        raise _unsupported(folder, f"{what} {value!r} is not a square")
    return int(resolutions[0])


def _clip_vision(cfg: Mapping[str, Any], dim: int, quick: bool, folder: Path) -> dict[str, Any]:
    layers, width = cfg.get("layers", 12), int(cfg.get("width", 768))
    if not isinstance(layers, int):
        raise _unsupported(folder, f"the image tower is a ResNet (layers {layers!r})")
    return {
        "hidden_size": width,
        "intermediate_size": int(width * cfg.get("mlp_ratio", 4.0)),
        "num_hidden_layers": layers,
        "num_attention_heads": width // int(cfg.get("head_width", 64)),
        "image_size": _square(cfg.get("image_size", 224), "image_size", folder),
        "patch_size": _square(cfg.get("patch_size", 16), "patch_size", folder),
        "hidden_act": _activation(cfg, quick, folder),
        "layer_norm_eps": _eps(cfg, folder),
        "projection_dim": dim,
    }


def _clip_text(cfg: Mapping[str, Any], dim: int, quick: bool, folder: Path) -> dict[str, Any]:
    if cfg.get("pool_type", "argmax") not in {"argmax", "eos"}:
        raise _unsupported(folder, f"text_cfg has pool_type: {cfg['pool_type']!r}")
    width = int(cfg.get("width", 512))
    return {
        "vocab_size": int(cfg.get("vocab_size", 49408)),
        "hidden_size": width,
        "intermediate_size": int(width * cfg.get("mlp_ratio", 4.0)),
        "num_hidden_layers": int(cfg.get("layers", 12)),
        "num_attention_heads": int(cfg.get("heads", 8)),
        "max_position_embeddings": int(cfg.get("context_length", 77)),
        "hidden_act": _activation(cfg, quick, folder),
        "layer_norm_eps": _eps(cfg, folder),
        "projection_dim": dim,
        **special_tokens(cfg, folder),
    }


# --- towers from elsewhere ---


def _shape(weights: Mapping[str, Tensor], name: str, folder: Path) -> tuple[int, ...]:
    if name not in weights:
        raise _unsupported(folder, f"its weights have no {name}")
    return tuple(weights[name].shape)


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in weights if name.startswith(prefix)})


def _timm_vision(name: str, weights: Mapping[str, Tensor], folder: Path) -> ViTConfig:
    found = _TIMM_NAME.fullmatch(name)
    if not found:
        raise _unsupported(folder, f"the image tower {name} of timm")
    trunk = "visual.trunk."
    width, _, patch, _ = _shape(weights, f"{trunk}patch_embed.proj.weight", folder)
    patches = _shape(weights, f"{trunk}pos_embed", folder)[1] - 1
    grid = math.isqrt(patches)
    if grid**2 != patches:
        raise _unsupported(folder, f"{patches} patches of {name} are no square")
    return ViTConfig(
        hidden_size=width,
        intermediate_size=_shape(weights, f"{trunk}blocks.0.mlp.fc1.weight", folder)[0],
        num_hidden_layers=_count(weights, f"{trunk}blocks."),
        num_attention_heads=_TIMM_HEADS[found.group(1)],
        image_size=grid * patch,
        patch_size=patch,
        hidden_act="gelu",  # whatever quick_gelu says: OpenCLIP does not hand it on to timm
        layer_norm_eps=_TIMM_EPS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def _timm_head(cfg: Mapping[str, Any], dim: int, folder: Path) -> dict[str, Any]:
    pool, projection = cfg.get("timm_pool", "avg"), cfg.get("timm_proj", "linear")
    poolings = {"": "cls", "token": "cls", "avg": "mean"}
    if pool not in poolings or projection not in {"linear", "mlp"}:
        raise _unsupported(folder, f"timm_pool {pool!r} with timm_proj {projection!r}")
    bias = bool(cfg.get("timm_proj_bias", False))
    return {
        "vision_pooling": poolings[pool],
        "vision_projection": projection,
        "vision_projection_hidden": 2 * dim if projection == "mlp" else None,
        "vision_projection_biases": [True, bias] if projection == "mlp" else [bias],
    }


def _foreign_text_head(cfg: Mapping[str, Any], model_type: str, folder: Path) -> tuple[str, str]:
    pooler = cfg.get("hf_pooler_type", "mean_pooler") or _OWN_POOLER.get(model_type)
    projection = cfg.get("hf_proj_type", "mlp")
    if pooler not in _POOLERS or projection not in {"linear", "mlp"}:
        raise _unsupported(folder, f"hf_pooler_type {pooler!r} with hf_proj_type {projection!r}")
    return _POOLERS[pooler], projection


def _foreign_text_config(cfg: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path) -> PretrainedConfig:
    """From a folder of that name (or one inside this one), from what this package saved beside it, from the cache of
    the hub, from the weights where these tell all, and from the hub."""
    name = cfg["hf_model_name"]
    for place in (folder / name, Path(name).expanduser()):
        if (place / "config.json").is_file():
            return _encoder_config(_config_in(place), folder)
    if (folder / "config.json").is_file():
        beside = _config_in(folder)
        if isinstance(beside, ProjectedDualEncoderConfig):
            return _encoder_config(beside.text_config, folder)
    try:
        return _encoder_config(AutoConfig.from_pretrained(name, local_files_only=True), folder)
    except (OSError, ValueError):  # not in the cache
        if (config := _bert_config(weights)) is not None:
            return config
    try:
        return _encoder_config(AutoConfig.from_pretrained(on_hub(name)), folder)
    except (OSError, ValueError, ModelLoadError) as error:
        raise ModelLoadError(
            f"The text tower of the OpenCLIP model in {folder} is {name!r}, whose config is needed and cannot be had "
            f"from the hub ({str(error).splitlines()[0][:200]}). Download its config.json into a folder and name that "
            f"in open_clip_config.json: model_cfg.text_cfg.hf_model_name"
        ) from error


def _config_in(place: Path) -> PretrainedConfig:
    path = place / "config.json"
    check_config_values(read_json_object(path), path)
    try:
        return AutoConfig.from_pretrained(str(place), trust_remote_code=False)
    except Exception as error:  # of transformers, for a file that somebody else has made
        raise ModelLoadError(f"{path} cannot be read as a config: {first_line(error)}") from error


def _encoder_config(config: PretrainedConfig, folder: Path) -> PretrainedConfig:
    if config.model_type not in _OWN_POOLER:
        raise _unsupported(folder, f"the text tower is a {config.model_type}")
    return config


def _bert_config(weights: Mapping[str, Tensor]) -> BertConfig | None:
    """The BERT of base or large width that the weights are. RoBERTa, of the same names, has one type of token."""
    tower = "text.transformer."
    needed = [f"{tower}embeddings.{part}_embeddings.weight" for part in ("word", "position", "token_type")]
    inner = f"{tower}encoder.layer.0.intermediate.dense.weight"
    if not all(name in weights for name in (*needed, inner)):
        return None
    (words, width), (positions, _), (types, _) = (tuple(weights[name].shape) for name in needed)
    if types != 2 or width not in _BERT_HEADS:
        return None
    return BertConfig(
        vocab_size=words,
        hidden_size=width,
        num_hidden_layers=_count(weights, f"{tower}encoder.layer."),
        num_attention_heads=_BERT_HEADS[width],
        intermediate_size=weights[inner].shape[0],
        max_position_embeddings=positions,
        type_vocab_size=types,
    )

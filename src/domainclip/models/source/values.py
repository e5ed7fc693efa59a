"""The values in a model's JSON files, checked before anything is built from them: a size of a billion would otherwise
be allocated, and a null would end somewhere in a library."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from domainclip.errors import ModelLoadError

LARGEST_IMAGE = 4096
"""Pixels along an edge. The largest published dual encoders take 1,024."""

_SIZES = {
    "hidden_size": 65_536,
    "intermediate_size": 1_048_576,
    "num_hidden_layers": 1_000,
    "num_attention_heads": 4_096,
    "projection_dim": 65_536,
    "projection_size": 65_536,
    "vocab_size": 16_777_216,
    "max_position_embeddings": 1_048_576,
    "num_channels": 4_096,
    "embed_dim": 65_536,
    "layers": 1_000,
    "width": 65_536,
    "heads": 4_096,
    "head_width": 65_536,
    "context_length": 1_048_576,
}
"""Whole numbers from 1 on, with the largest that any model comes near. The last six are OpenCLIP's words."""

_SQUARES = ("image_size", "patch_size")
_NUMBERS: dict[str, tuple[float, float]] = {
    "layer_norm_eps": (0.0, 0.01),
    "logit_scale_init_value": (-20.0, 20.0),
    "init_logit_scale": (-20.0, 20.0),
    "attention_dropout": (0.0, 1.0),
    "hidden_dropout_prob": (0.0, 1.0),
    "attention_probs_dropout_prob": (0.0, 1.0),
    "mlp_ratio": (1e-3, 1e3),
}
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_NEVER = ("is_decoder", "add_cross_attention")
_OTHER_VALUES: tuple[tuple[str, type, str], ...] = (
    ("transformers_version", str, "a version, written as text"),
    ("quantization_config", dict, "an object in braces"),
    ("auto_map", dict, "an object in braces"),
)
_DTYPES = ("float32", "float16", "bfloat16", "float64", "auto")
_TEXTS = ("model_type", "hidden_act")
_LARGEST_NUMBER = 2**63 - 1


def _problem(path: Path, key: str, value: object, wanted: str) -> ModelLoadError:
    shown = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a number of many digits"
    shown = "null" if value is None else shown if len(shown) <= 60 else f"{shown[:57]}…"
    return ModelLoadError(
        f"{path}: {key} is {shown}, but must be {wanted}. Copy the file again from where the model came from"
    )


def _is_whole(value: object, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= largest


def _is_number(value: object, smallest: float, largest: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and smallest <= value <= largest


def _check_kind(
    values: Mapping[str, Any], key: str, kinds: type | tuple[type, ...], path: Path, wanted: str, prefix: str = ""
) -> None:
    """A value that may be left out or null, but is else of a kind."""
    value = values.get(key)
    if value is not None and not isinstance(value, kinds):
        raise _problem(path, f"{prefix}{key}", value, wanted)


def check_tower_values(values: Mapping[str, Any], path: Path, prefix: str = "") -> None:
    """Check the keys of a config, or of a part of one, that sizes and numbers are built from.

    Args:
        values: By key; keys that are not known here are left to whoever reads them.
        path: Of the file, for messages.
        prefix: Of the keys, for messages.

    Raises:
        ModelLoadError: A value cannot be right; the message names file and key.
    """
    for key, value in values.items():
        name = f"{prefix}{key}"
        if (largest := _SIZES.get(key)) is not None and not (key == "layers" and isinstance(value, list)):
            if not _is_whole(value, largest):
                raise _problem(path, name, value, f"a whole number from 1 to {largest:,}")
        elif key in _SQUARES:
            edges = value if isinstance(value, list) and len(value) == 2 else [value]
            if not all(_is_whole(edge, LARGEST_IMAGE) for edge in edges):
                raise _problem(path, name, value, f"a whole number of pixels from 1 to {LARGEST_IMAGE:,}")
        elif key in _NUMBERS:
            smallest, largest_number = _NUMBERS[key]
            if not _is_number(value, smallest, largest_number):
                raise _problem(path, name, value, f"a number from {smallest:g} to {largest_number:g}")
        elif key in _TOKENS:
            if value is not None and not _is_whole(value, _LARGEST_NUMBER) and value != 0:
                raise _problem(path, name, value, "the number of a token, from 0 on")
        elif key in _NEVER and value not in (False, None):
            raise _problem(path, name, value, "false: a text tower that reads towards the left alone is another model")
        elif key in _TEXTS and not isinstance(value, str):
            raise _problem(path, name, value, "a text")
    hidden, heads = values.get("hidden_size"), values.get("num_attention_heads")
    if isinstance(hidden, int) and isinstance(heads, int) and hidden % heads:
        raise ModelLoadError(
            f"{path}: {prefix}hidden_size {hidden} is no multiple of {prefix}num_attention_heads {heads}. Copy the "
            "file again from where the model came from"
        )
    image, patch = values.get("image_size"), values.get("patch_size")
    if isinstance(image, int) and isinstance(patch, int) and patch > image:
        raise ModelLoadError(f"{path}: {prefix}patch_size {patch} is larger than {prefix}image_size {image}")


def check_config_values(config: Mapping[str, Any], path: Path) -> None:
    """Check a config.json, with the parts for its two towers.

    Args:
        config: Its content.
        path: Of the file, for messages.

    Raises:
        ModelLoadError: A value cannot be right.
    """
    if not isinstance(config.get("model_type"), str) or not config["model_type"]:
        raise _problem(path, "model_type", config.get("model_type"), 'the name of an architecture, such as "clip"')
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise _problem(path, "architectures", names, "a list of names of classes")
    for key, kind, wanted in _OTHER_VALUES:
        _check_kind(config, key, kind, path, wanted)
    for key in ("dtype", "torch_dtype"):
        if config.get(key) is not None and config[key] not in _DTYPES:
            raise _problem(path, key, config[key], f"one of {', '.join(_DTYPES)}")
    check_tower_values(config, path)
    for part in ("text_config", "vision_config", "text_config_dict", "vision_config_dict"):
        if part not in config or (config[part] is None and part.endswith("_dict")):
            continue
        if not isinstance(config[part], dict):
            raise _problem(path, part, config[part], "an object in braces")
        check_tower_values(config[part], path, f"{part}.")


def check_open_clip_values(config: Mapping[str, Any], path: Path) -> None:
    """Check an open_clip_config.json.

    Args:
        config: Its content.
        path: Of the file, for messages.

    Raises:
        ModelLoadError: A value cannot be right.
    """
    model = config.get("model_cfg")
    if not isinstance(model, dict):
        raise ModelLoadError(f"{path} has no model_cfg: it is not the config of an OpenCLIP checkpoint")
    check_tower_values(model, path, "model_cfg.")
    for part in ("vision_cfg", "text_cfg"):
        if isinstance(model.get(part), dict):
            check_tower_values(model[part], path, f"model_cfg.{part}.")
            _check_open_clip_tower(model[part], path, f"model_cfg.{part}.")
    _check_kind(config, "preprocess_cfg", dict, path, "an object in braces")
    images = config.get("preprocess_cfg") or {}
    for key, check in (("mean", _is_mean), ("std", _is_std)):
        value = images.get(key)
        if value is not None and not check(value):
            raise _problem(path, f"preprocess_cfg.{key}", value, _CHANNELS[f"image_{key}"])
    for key in ("interpolation", "resize_mode"):
        _check_kind(images, key, str, path, "a text", "preprocess_cfg.")


def _check_open_clip_tower(values: Mapping[str, Any], path: Path, prefix: str) -> None:
    for key in values:
        if key.endswith("_kwargs"):
            _check_kind(values, key, dict, path, "an object in braces", prefix)
        elif key in _OPEN_CLIP_TEXTS:
            _check_kind(values, key, str, path, "a text", prefix)
    layers = values.get("layers")
    if isinstance(layers, list) and prefix.endswith("text_cfg."):
        raise _problem(path, f"{prefix}layers", layers, "a whole number")


_OPEN_CLIP_TEXTS = (
    *("hf_model_name", "hf_tokenizer_name", "hf_proj_type", "hf_pooler_type"),
    *("timm_model_name", "timm_pool", "timm_proj", "pool_type"),
)


def _is_mean(value: object) -> bool:
    if isinstance(value, list):
        return len(value) == 3 and all(_is_number(each, -1e3, 1e3) for each in value)
    return _is_number(value, -1e3, 1e3)


def _is_std(value: object) -> bool:
    return _is_mean(value) and all(each > 0 for each in (value if isinstance(value, list) else [value]))  # type: ignore[operator]


_CHANNELS = {
    "image_mean": "three numbers, one for each of red, green and blue",
    "image_std": "three numbers above 0, one for each of red, green and blue",
}
_SIDES = {"height", "width", "shortest_edge", "longest_edge", "max_height", "max_width"}


def _is_size(value: object) -> bool:
    if isinstance(value, dict):
        return bool(value) and value.keys() <= _SIDES and all(_is_whole(each, LARGEST_IMAGE) for each in value.values())
    return _is_whole(value, LARGEST_IMAGE)


_IMAGE_KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "image_mean": (_is_mean, _CHANNELS["image_mean"]),
    "image_std": (_is_std, _CHANNELS["image_std"]),
    "size": (_is_size, f"pixels from 1 to {LARGEST_IMAGE:,}, as a number or as height and width"),
    "crop_size": (_is_size, f"pixels from 1 to {LARGEST_IMAGE:,}, as a number or as height and width"),
    "resample": (lambda value: isinstance(value, int) and 0 <= value <= 5, "the number of a filter, from 0 to 5"),
    "rescale_factor": (lambda value: _is_number(value, 1e-12, 1e6), "a number above 0, usually 1 / 255"),
    **{
        f"do_{step}": (lambda value: isinstance(value, bool), "true or false")
        for step in ("resize", "center_crop", "rescale", "normalize", "convert_rgb")
    },
}


def check_image_values(values: Mapping[str, Any], path: Path) -> None:
    """Check what an image processor's file says.

    Args:
        values: Its content.
        path: Of the file, for messages.

    Raises:
        ModelLoadError: A value cannot be right.
    """
    inner = values.get("image_processor")
    if isinstance(inner, dict):
        check_image_values(inner, path)
    for key, (is_right, wanted) in _IMAGE_KEYS.items():
        if key not in values or is_right(values[key]):
            continue
        if values[key] is None and key in ("crop_size", "do_convert_rgb", "do_center_crop"):  # others write these so
            continue
        raise _problem(path, key, values[key], wanted)


def check_tokenizer_values(values: Mapping[str, Any], path: Path) -> None:
    """Check what a tokenizer_config.json says of lengths and sides.

    Args:
        values: Its content.
        path: Of the file, for messages.

    Raises:
        ModelLoadError: A value cannot be right.
    """
    length = values.get("model_max_length")
    if length is not None and not (_is_number(length, 4, math.inf) and not math.isnan(length)):
        raise _problem(path, "model_max_length", length, "a number of tokens from 4 on")
    for key in ("padding_side", "truncation_side"):
        if values.get(key, "right") not in ("left", "right"):
            raise _problem(path, key, values[key], '"left" or "right"')
    for key in ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token"):
        token = values.get(key)
        if token is None or (isinstance(token, str) and token):
            continue
        if not (isinstance(token, dict) and isinstance(token.get("content"), str) and token["content"]):
            raise _problem(path, key, token, "a token, written as text")
    for key, kinds, wanted in (
        ("added_tokens_decoder", (dict,), "an object of tokens by their numbers"),
        ("extra_special_tokens", (dict, list), "a list of tokens"),
    ):
        _check_kind(values, key, kinds, path, wanted)
    _check_kind(values, "tokenizer_class", str, path, "the name of a class")

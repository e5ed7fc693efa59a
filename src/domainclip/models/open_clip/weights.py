"""Names of weights: those of OpenCLIP's checkpoints beside those of ``transformers``, read in either direction.

OpenCLIP keeps query, key and value of a layer in one matrix and its projections as ``inputs × outputs``; everything
else differs in name alone, so that a checkpoint comes back bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from domainclip.errors import ModelLoadError

CONFIG = "open_clip_config.json"
SAFE_WEIGHTS = "open_clip_model.safetensors"
PICKLED_WEIGHTS = "open_clip_pytorch_model.bin"
"""The files of a checkpoint; the weights are one or the other."""

TEXT_PREFIX = "text."
"""Before the names of a text tower that is a module of its own (``custom_text``, and every one from elsewhere)."""

_IGNORED = (
    "attn_mask",
    "text.attn_mask",
    "input_resolution",
    "context_length",
    "vocab_size",
    "text.transformer.embeddings.position_ids",
    "text.transformer.embeddings.token_type_ids",
)
"""Constants that older versions wrote beside the weights."""


@dataclass(frozen=True)
class Renamed:
    """A tensor of an OpenCLIP checkpoint and what it is called here; three names for a joint matrix, in that order."""

    open_clip: str
    here: tuple[str, ...]
    transposed: bool = False


def _same(open_clip: str, here: str, endings: Iterable[str] = ("",)) -> list[Renamed]:
    return [Renamed(f"{open_clip}{ending}", (f"{here}{ending}",)) for ending in endings]


_BOTH = (".weight", ".bias")


def _clip_layers(open_clip: str, here: str, layers: int) -> list[Renamed]:
    names: list[Renamed] = []
    for index in range(layers):
        theirs, ours = f"{open_clip}transformer.resblocks.{index}.", f"{here}encoder.layers.{index}."
        for end in ("weight", "bias"):
            parts = tuple(f"{ours}self_attn.{part}_proj.{end}" for part in "qkv")
            names.append(Renamed(f"{theirs}attn.in_proj_{end}", parts))
        names += _same(f"{theirs}attn.out_proj", f"{ours}self_attn.out_proj", _BOTH)
        names += _same(f"{theirs}ln_1", f"{ours}layer_norm1", _BOTH)
        names += _same(f"{theirs}ln_2", f"{ours}layer_norm2", _BOTH)
        names += _same(f"{theirs}mlp.c_fc", f"{ours}mlp.fc1", _BOTH)
        names += _same(f"{theirs}mlp.c_proj", f"{ours}mlp.fc2", _BOTH)
    return names


def clip_image_tower(layers: int) -> list[Renamed]:
    """OpenCLIP's own vision transformer ↔ CLIP's.

    Args:
        layers: Number of transformer layers.

    Returns:
        A line for each tensor.
    """
    theirs, ours = "visual.", "vision_model."
    return [
        *_same(f"{theirs}class_embedding", f"{ours}embeddings.class_embedding"),
        *_same(f"{theirs}positional_embedding", f"{ours}embeddings.position_embedding.weight"),
        *_same(f"{theirs}conv1.weight", f"{ours}embeddings.patch_embedding.weight"),
        *_same(f"{theirs}ln_pre", f"{ours}pre_layrnorm", _BOTH),  # so spelt in transformers
        *_clip_layers(theirs, ours, layers),
        *_same(f"{theirs}ln_post", f"{ours}post_layernorm", _BOTH),
        Renamed(f"{theirs}proj", ("visual_projection.weight",), transposed=True),
    ]


def clip_text_tower(layers: int, custom_text: bool) -> list[Renamed]:
    """OpenCLIP's own text transformer ↔ CLIP's.

    Args:
        layers: Number of transformer layers.
        custom_text: Whether the text tower is a module of its own in the checkpoint.

    Returns:
        A line for each tensor.
    """
    theirs, ours = TEXT_PREFIX if custom_text else "", "text_model."
    return [
        *_same(f"{theirs}token_embedding.weight", f"{ours}embeddings.token_embedding.weight"),
        *_same(f"{theirs}positional_embedding", f"{ours}embeddings.position_embedding.weight"),
        *_clip_layers(theirs, ours, layers),
        *_same(f"{theirs}ln_final", f"{ours}final_layer_norm", _BOTH),
        Renamed(f"{theirs}text_projection", ("text_projection.weight",), transposed=True),
    ]


def timm_image_tower(layers: int, projection: str, biases: list[bool]) -> list[Renamed]:
    """A vision transformer of timm with OpenCLIP's projection ↔ ``ViTModel``.

    Args:
        layers: Number of transformer layers.
        projection: ``linear`` or ``mlp``.
        biases: Which of the projection's layers have one, in order.

    Returns:
        A line for each tensor.
    """
    theirs, ours = "visual.trunk.", "vision_model."
    names = [
        *_same(f"{theirs}cls_token", f"{ours}embeddings.cls_token"),
        *_same(f"{theirs}pos_embed", f"{ours}embeddings.position_embeddings"),
        *_same(f"{theirs}patch_embed.proj", f"{ours}embeddings.patch_embeddings.projection", _BOTH),
        *_same(f"{theirs}norm", f"{ours}layernorm", _BOTH),
    ]
    for index in range(layers):
        block, layer = f"{theirs}blocks.{index}.", f"{ours}layers.{index}."
        for end in _BOTH:
            parts = tuple(f"{layer}attention.{part}_proj{end}" for part in "qkv")
            names.append(Renamed(f"{block}attn.qkv{end}", parts))
        names += _same(f"{block}attn.proj", f"{layer}attention.o_proj", _BOTH)
        names += _same(f"{block}norm1", f"{layer}layernorm_before", _BOTH)
        names += _same(f"{block}norm2", f"{layer}layernorm_after", _BOTH)
        names += _same(f"{block}mlp.fc1", f"{layer}mlp.fc1", _BOTH)
        names += _same(f"{block}mlp.fc2", f"{layer}mlp.fc2", _BOTH)
    if projection == "linear":
        return [*names, *_projection(["visual.head.proj"], ["visual_projection"], biases)]
    heads = ["visual.head.mlp.fc1", "visual.head.mlp.fc2"]
    return [*names, *_projection(heads, ["visual_projection.0", "visual_projection.2"], biases)]


def foreign_text_tower(names: Iterable[str], projection: str, biases: list[bool]) -> list[Renamed]:
    """A text tower of Hugging Face, whose own names OpenCLIP keeps.

    Args:
        names: All of the model's.
        projection: ``linear`` or ``mlp``.
        biases: Which of the projection's layers have one, in order.

    Returns:
        A line for each tensor.
    """
    ours = "text_model."
    towers = [Renamed(f"text.transformer.{n.removeprefix(ours)}", (n,)) for n in names if n.startswith(ours)]
    if projection == "linear":
        return [*towers, *_projection(["text.proj"], ["text_projection"], biases)]
    return [*towers, *_projection(["text.proj.0", "text.proj.2"], ["text_projection.0", "text_projection.2"], biases)]


def _projection(theirs: list[str], ours: list[str], biases: list[bool]) -> list[Renamed]:
    return [
        name
        for there, here, bias in zip(theirs, ours, biases, strict=True)
        for name in _same(there, here, _BOTH if bias else _BOTH[:1])
    ]


def weight_names(config: PretrainedConfig, own_names: Iterable[str], custom_text: bool) -> list[Renamed]:
    """Every weight of a ``CLIPModel`` or a ``ProjectedDualEncoderModel`` of that config, whose state dict has
    ``own_names``, beside OpenCLIP's name for it.

    Args:
        config: Of the model.
        own_names: Of its state dict.
        custom_text: Whether the text tower is a module of its own in the checkpoint.

    Returns:
        A line for each tensor.
    """
    vision, text = config.vision_config, config.text_config
    if vision.model_type == "vit":
        biases = config.vision_projection_biases
        image = timm_image_tower(vision.num_hidden_layers, config.vision_projection, biases)
    else:
        image = clip_image_tower(vision.num_hidden_layers)
    if text.model_type == "clip_text_model":
        words = clip_text_tower(text.num_hidden_layers, custom_text)
    else:
        words = foreign_text_tower(own_names, config.text_projection, config.text_projection_biases)
    return [*image, *words, Renamed("logit_scale", ("logit_scale",))]


def to_here(names: Iterable[Renamed], weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """An OpenCLIP state dict under the names of ``transformers``, in float32.

    Args:
        names: What each tensor is called on either side.
        weights: By OpenCLIP's names.
        source: Where the weights come from, for messages.

    Returns:
        By the names of ``transformers``.

    Raises:
        ModelLoadError: For a tensor that is missing, and for one that has no place: a part that is left out would
            change the embeddings.
    """
    renamed = list(names)
    known = {name.open_clip for name in renamed}
    missing = sorted(known - weights.keys())
    unknown = sorted(weights.keys() - known - set(_IGNORED))
    if missing or unknown:
        problems = [f"it lacks {_some(missing)}"] * bool(missing) + [f"{_some(unknown)} has no place"] * bool(unknown)
        raise ModelLoadError(
            f"The weights in {source} do not fit their open_clip_config.json: {' and '.join(problems)}. The config "
            "belongs to another model, or the architecture is not supported"
        )
    found: dict[str, Tensor] = {}
    for name in renamed:
        value = weights[name.open_clip].detach().to("cpu", torch.float32)
        if name.open_clip == "logit_scale":  # one number, in some checkpoints in a list
            value = value.reshape(())
        if name.transposed:
            value = value.T
        found |= zip(name.here, value.chunk(len(name.here)) if len(name.here) > 1 else [value], strict=True)
    return found


def to_open_clip(names: Iterable[Renamed], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of ``to_here``, on the CPU.

    Args:
        names: What each tensor is called on either side.
        weights: By the names of ``transformers``.

    Returns:
        By OpenCLIP's names.
    """
    found: dict[str, Tensor] = {}
    for name in names:
        parts = [weights[here].detach().cpu() for here in name.here]
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        found[name.open_clip] = (value.T if name.transposed else value).contiguous()
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

"""Small OpenCLIP checkpoints of random weights under OpenCLIP's own names, and what such a model computes, in plain
torch straight from those names (Radford et al. 2021, §2.4; Dosovitskiy et al. 2021, eq. 1–4; Devlin et al. 2019)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import BertConfig, PreTrainedTokenizerFast

from model_zoo import WORDS, word_tokenizer

State = dict[str, Tensor]

VISION = {"layers": 2, "width": 24, "head_width": 8, "patch_size": 8, "image_size": 32, "mlp_ratio": 2.0}
TEXT = {"layers": 2, "width": 20, "heads": 2, "context_length": 16, "mlp_ratio": 2.0}
DIM = 12
PREPROCESS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "interpolation": "bilinear", "resize_mode": "squash"}


def clip_word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word between a start and an end token, which has the highest number, as CLIP's."""
    vocabulary = {word: index for index, word in enumerate(["<unk>", *WORDS, "<start>", "<end>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    framing = [(token, vocabulary[token]) for token in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=framing)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<start>", eos_token="<end>", pad_token="<end>", unk_token="<unk>"
    )


class Draw:
    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.state: State = {}

    def tensor(self, name: str, *shape: int, around: float = 0.0, scale: float = 0.3) -> None:
        self.state[name] = around + scale * torch.randn(shape, generator=self.generator)

    def linear(self, name: str, inputs: int, outputs: int, bias: bool = True) -> None:
        # Of unit gain: with more, twelve layers at full width would make 5e-5 of the last digit's rounding.
        self.tensor(f"{name}.weight", outputs, inputs, scale=inputs**-0.5)
        if bias:
            self.tensor(f"{name}.bias", outputs)

    def norm(self, name: str, width: int) -> None:
        self.tensor(f"{name}.weight", width, around=1.0)
        self.tensor(f"{name}.bias", width)

    def resblocks(self, prefix: str, cfg: dict[str, Any]) -> None:
        width, inner = cfg["width"], int(cfg["width"] * cfg["mlp_ratio"])
        for index in range(cfg["layers"]):
            block = f"{prefix}transformer.resblocks.{index}."
            self.norm(f"{block}ln_1", width)
            self.tensor(f"{block}attn.in_proj_weight", 3 * width, width)
            self.tensor(f"{block}attn.in_proj_bias", 3 * width)
            self.linear(f"{block}attn.out_proj", width, width)
            self.norm(f"{block}ln_2", width)
            self.linear(f"{block}mlp.c_fc", width, inner)
            self.linear(f"{block}mlp.c_proj", inner, width)

    def clip_vision(self) -> None:
        width, patch = VISION["width"], VISION["patch_size"]
        self.tensor("visual.class_embedding", width)
        self.tensor("visual.positional_embedding", (VISION["image_size"] // patch) ** 2 + 1, width)
        self.tensor("visual.conv1.weight", width, 3, patch, patch)
        self.norm("visual.ln_pre", width)
        self.resblocks("visual.", VISION)
        self.norm("visual.ln_post", width)
        self.tensor("visual.proj", width, DIM)

    def clip_text(self, prefix: str, vocabulary: int) -> None:
        width = TEXT["width"]
        self.tensor(f"{prefix}token_embedding.weight", vocabulary, width)
        self.tensor(f"{prefix}positional_embedding", TEXT["context_length"], width)
        self.resblocks(prefix, TEXT)
        self.norm(f"{prefix}ln_final", width)
        self.tensor(f"{prefix}text_projection", width, DIM)

    def timm_vision(self, width: int, layers: int, patch: int, resolution: int, head: str) -> None:
        trunk = "visual.trunk."
        self.tensor(f"{trunk}cls_token", 1, 1, width)
        self.tensor(f"{trunk}pos_embed", 1, (resolution // patch) ** 2 + 1, width)
        self.tensor(f"{trunk}patch_embed.proj.weight", width, 3, patch, patch)
        self.tensor(f"{trunk}patch_embed.proj.bias", width)
        for index in range(layers):
            block = f"{trunk}blocks.{index}."
            self.norm(f"{block}norm1", width)
            self.linear(f"{block}attn.qkv", width, 3 * width)
            self.linear(f"{block}attn.proj", width, width)
            self.norm(f"{block}norm2", width)
            self.linear(f"{block}mlp.fc1", width, 4 * width)
            self.linear(f"{block}mlp.fc2", 4 * width, width)
        self.norm(f"{trunk}norm", width)
        if head == "linear":
            self.linear("visual.head.proj", width, DIM, bias=False)
        else:
            self.linear("visual.head.mlp.fc1", width, 2 * DIM)
            self.linear("visual.head.mlp.fc2", 2 * DIM, DIM, bias=False)

    def bert(self, config: BertConfig, pooler: bool, mlp: bool) -> None:
        tower, width = "text.transformer.", config.hidden_size
        self.tensor(f"{tower}embeddings.word_embeddings.weight", config.vocab_size, width)
        self.tensor(f"{tower}embeddings.position_embeddings.weight", config.max_position_embeddings, width)
        self.tensor(f"{tower}embeddings.token_type_embeddings.weight", 2, width)
        self.norm(f"{tower}embeddings.LayerNorm", width)
        for index in range(config.num_hidden_layers):
            layer = f"{tower}encoder.layer.{index}."
            for part in ("query", "key", "value"):
                self.linear(f"{layer}attention.self.{part}", width, width)
            self.linear(f"{layer}attention.output.dense", width, width)
            self.norm(f"{layer}attention.output.LayerNorm", width)
            self.linear(f"{layer}intermediate.dense", width, config.intermediate_size)
            self.linear(f"{layer}output.dense", config.intermediate_size, width)
            self.norm(f"{layer}output.LayerNorm", width)
        if pooler:
            self.linear(f"{tower}pooler.dense", width, width)
        if mlp:
            hidden = (width + DIM) // 2
            self.linear("text.proj.0", width, hidden, bias=False)
            self.linear("text.proj.2", hidden, DIM, bias=False)
        else:
            self.linear("text.proj", width, DIM, bias=False)


def _write(folder: Path, model_cfg: dict[str, Any], state: State, tokenizer: Any, pickled: bool = False) -> Path:
    folder.mkdir(parents=True)
    config = {"model_cfg": model_cfg, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if pickled:
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, folder / "open_clip_pytorch_model.bin")
    else:
        save_file(state, folder / "open_clip_model.safetensors")
    tokenizer.save_pretrained(folder)
    return folder


def write_clip(
    folder: Path, *, quick_gelu: bool = False, custom_text: bool = False, pickled: bool = False, seed: int = 0
) -> Path:
    """OpenCLIP's own two towers, the layout of BioCLIP."""
    tokenizer, draw = clip_word_tokenizer(), Draw(seed)
    draw.clip_vision()
    draw.clip_text("text." if custom_text else "", len(tokenizer))
    draw.state["logit_scale"] = torch.tensor(3.1)
    model_cfg: dict[str, Any] = {
        "embed_dim": DIM,
        "vision_cfg": dict(VISION),
        "text_cfg": {**TEXT, "vocab_size": len(tokenizer), "hf_tokenizer_name": "words"},
    }
    if quick_gelu:
        model_cfg["quick_gelu"] = True
    if custom_text:
        model_cfg["custom_text"] = True
    return _write(folder, model_cfg, draw.state, tokenizer, pickled)


def write_foreign(
    folder: Path,
    *,
    timm: bool = True,
    full_size: bool = False,
    pool: str = "",
    head: str = "linear",
    pooler: str = "cls_last_hidden_state_pooler",
    mlp: bool = True,
    seed: int = 0,
) -> Path:
    """A BERT beside timm's ViT, the layout of BiomedCLIP, or beside OpenCLIP's own. ``full_size``: timm's ViT-Ti/16 as
    it is, which timm itself can make."""
    tokenizer, draw = word_tokenizer("bert", 24), Draw(seed)
    text = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=20,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        pad_token_id=0,
    )
    vision_cfg: dict[str, Any] = dict(VISION)
    if timm:
        width, layers, patch, resolution = (192, 12, 16, 224) if full_size else (24, 2, 8, 32)
        draw.timm_vision(width, layers, patch, resolution, head)
        vision_cfg = {
            "timm_model_name": f"vit_tiny_patch{patch}_{resolution}",
            "timm_model_pretrained": False,
            "timm_pool": pool,
            "timm_proj": head,
            "image_size": resolution,
        }
    else:
        draw.clip_vision()
    draw.bert(text, pooler == "cls_pooler", mlp)
    draw.state["logit_scale"] = torch.tensor(2.9)
    text_cfg = {
        "hf_model_name": "text_tower",
        "hf_tokenizer_name": "words",
        "hf_pooler_type": pooler,
        "hf_proj_type": "mlp" if mlp else "linear",
        "context_length": 18,
    }
    model_cfg = {"embed_dim": DIM, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
    _write(folder, model_cfg, draw.state, tokenizer)
    text.save_pretrained(folder / "text_tower")
    return folder


# --- what they compute ---


def _norm(x: Tensor, state: State, name: str, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def _linear(x: Tensor, state: State, name: str) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def _attention(x: Tensor, joint: Tensor, bias: Tensor, heads: int, hidden: Tensor | None) -> Tensor:
    """``hidden``: True where a query (row) may not look at a key."""
    batch, length, width = x.shape
    parts = F.linear(x, joint, bias).reshape(batch, length, 3, heads, width // heads)
    query, key, value = parts.permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-1, -2) * (width // heads) ** -0.5
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, width)


def _resblocks(x: Tensor, state: State, prefix: str, layers: int, heads: int, quick: bool, causal: bool) -> Tensor:
    hidden = torch.ones(x.shape[1], x.shape[1]).triu(1).bool() if causal else None
    for index in range(layers):
        block = f"{prefix}transformer.resblocks.{index}."
        normed = _norm(x, state, f"{block}ln_1", 1e-5)
        weight, bias = state[f"{block}attn.in_proj_weight"], state[f"{block}attn.in_proj_bias"]
        x = x + _linear(_attention(normed, weight, bias, heads, hidden), state, f"{block}attn.out_proj")
        inner = _linear(_norm(x, state, f"{block}ln_2", 1e-5), state, f"{block}mlp.c_fc")
        inner = inner * torch.sigmoid(1.702 * inner) if quick else F.gelu(inner)
        x = x + _linear(inner, state, f"{block}mlp.c_proj")
    return x


def reference_image(state: State, config: dict[str, Any], pixels: Tensor) -> Tensor:
    cfg = config["model_cfg"]["vision_cfg"]
    if "timm_model_name" in cfg:
        return _reference_timm(state, cfg, pixels)
    x = F.conv2d(pixels, state["visual.conv1.weight"], stride=cfg["patch_size"]).flatten(2).transpose(1, 2)
    x = torch.cat([state["visual.class_embedding"].expand(len(x), 1, -1), x], dim=1)
    x = _norm(x + state["visual.positional_embedding"], state, "visual.ln_pre", 1e-5)
    quick = config["model_cfg"].get("quick_gelu", False)
    x = _resblocks(x, state, "visual.", cfg["layers"], cfg["width"] // cfg["head_width"], quick, causal=False)
    return _norm(x[:, 0], state, "visual.ln_post", 1e-5) @ state["visual.proj"]


def _reference_timm(state: State, cfg: dict[str, Any], pixels: Tensor) -> Tensor:
    trunk, patch = "visual.trunk.", state["visual.trunk.patch_embed.proj.weight"].shape[-1]
    weight, bias = state[f"{trunk}patch_embed.proj.weight"], state[f"{trunk}patch_embed.proj.bias"]
    x = F.conv2d(pixels, weight, bias, stride=patch).flatten(2).transpose(1, 2)
    x = torch.cat([state[f"{trunk}cls_token"].expand(len(x), -1, -1), x], dim=1) + state[f"{trunk}pos_embed"]
    layers = len({name.split(".")[3] for name in state if name.startswith(f"{trunk}blocks.")})
    for index in range(layers):
        block = f"{trunk}blocks.{index}."
        normed = _norm(x, state, f"{block}norm1", 1e-6)
        mixed = _attention(normed, state[f"{block}attn.qkv.weight"], state[f"{block}attn.qkv.bias"], 3, None)
        x = x + _linear(mixed, state, f"{block}attn.proj")
        inner = F.gelu(_linear(_norm(x, state, f"{block}norm2", 1e-6), state, f"{block}mlp.fc1"))
        x = x + _linear(inner, state, f"{block}mlp.fc2")
    x = _norm(x, state, f"{trunk}norm", 1e-6)
    pooled = x[:, 1:].mean(1) if cfg["timm_pool"] == "avg" else x[:, 0]
    if cfg["timm_proj"] == "linear":
        return _linear(pooled, state, "visual.head.proj")
    return _linear(F.gelu(_linear(pooled, state, "visual.head.mlp.fc1")), state, "visual.head.mlp.fc2")


def reference_text(state: State, config: dict[str, Any], ids: Tensor, padding: int) -> Tensor:
    """``ids`` are padded with ``padding``."""
    cfg = config["model_cfg"]["text_cfg"]
    if "hf_model_name" in cfg:
        return _reference_bert(state, cfg, ids, padding)
    prefix = "text." if config["model_cfg"].get("custom_text") else ""
    x = state[f"{prefix}token_embedding.weight"][ids] + state[f"{prefix}positional_embedding"][: ids.shape[1]]
    quick = config["model_cfg"].get("quick_gelu", False)
    x = _resblocks(x, state, prefix, cfg["layers"], cfg["heads"], quick, causal=True)
    x = _norm(x, state, f"{prefix}ln_final", 1e-5)
    return x[torch.arange(len(ids)), ids.argmax(1)] @ state[f"{prefix}text_projection"]


def _reference_bert(state: State, cfg: dict[str, Any], ids: Tensor, padding: int) -> Tensor:
    tower, seen = "text.transformer.", ids != padding
    embeddings = f"{tower}embeddings."
    x = state[f"{embeddings}word_embeddings.weight"][ids] + state[f"{embeddings}token_type_embeddings.weight"][0]
    x = x + state[f"{embeddings}position_embeddings.weight"][: ids.shape[1]]
    x = _norm(x, state, f"{embeddings}LayerNorm", 1e-12)
    for index in range(2):
        layer = f"{tower}encoder.layer.{index}."
        parts = [f"{layer}attention.self.{part}" for part in ("query", "key", "value")]
        joint, bias = (torch.cat([state[f"{part}.{end}"] for part in parts]) for end in ("weight", "bias"))
        mixed = _linear(_attention(x, joint, bias, 2, ~seen[:, None, None]), state, f"{layer}attention.output.dense")
        x = _norm(x + mixed, state, f"{layer}attention.output.LayerNorm", 1e-12)
        inner = F.gelu(_linear(x, state, f"{layer}intermediate.dense"))
        x = _norm(x + _linear(inner, state, f"{layer}output.dense"), state, f"{layer}output.LayerNorm", 1e-12)
    kind = cfg["hf_pooler_type"]
    if kind == "mean_pooler":
        pooled = torch.stack([row[mask].mean(0) for row, mask in zip(x, seen, strict=True)])
    elif kind == "max_pooler":
        pooled = torch.stack([row[mask].max(0).values for row, mask in zip(x, seen, strict=True)])
    else:
        pooled = x[:, 0]
        if kind == "cls_pooler":
            pooled = torch.tanh(_linear(pooled, state, f"{tower}pooler.dense"))
    if cfg["hf_proj_type"] == "linear":
        return _linear(pooled, state, "text.proj")
    return _linear(F.gelu(_linear(pooled, state, "text.proj.0")), state, "text.proj.2")


KINDS: dict[str, Callable[[Path], Path]] = {
    "clip": write_clip,
    "clip_quick": lambda folder: write_clip(folder, quick_gelu=True),
    "clip_custom": lambda folder: write_clip(folder, custom_text=True),
    "biomed": write_foreign,
    "timm_mlp_mean": lambda folder: write_foreign(folder, pool="avg", head="mlp", pooler="mean_pooler"),
    "timm_max": lambda folder: write_foreign(folder, pooler="max_pooler", mlp=False),
    "clip_vision_bert": lambda folder: write_foreign(folder, timm=False, pooler="cls_pooler", mlp=False),
}

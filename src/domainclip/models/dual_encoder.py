"""The one interface the rest of the package sees: an image tower, a text tower, and the scale of their dot product."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from domainclip.config.settings import AdapterSettings
from domainclip.errors import ConfigurationError
from domainclip.models.attention import AttentionDecision, has_attention
from domainclip.models.image_resolutions import CONVOLUTIONAL_STEP, resolution_rule
from domainclip.models.lora import LoraAdapters, attach_lora
from domainclip.models.open_clip.saving import save_open_clip
from domainclip.models.position_embeddings import position_embeddings
from domainclip.models.processor import EncoderProcessor
from domainclip.models.quiet import quiet_transformers
from domainclip.resolve.resolution import ResolutionRule

MAX_LOGIT_SCALE = math.log(100.0)
"""CLIP clips its learned scale so that logits are never multiplied by more than 100 (Radford et al. 2021, §2.5)."""

TowerKind = Literal["transformer", "convolutional"]
Tower = Literal["image", "text", "scale"]

_LAYER = re.compile(r"\.(?:layers?|blocks|stages)\.(\d+)\.")


class DualEncoder(nn.Module):
    """A Hugging Face dual encoder with what training and serving must know about it.

    ``model`` is any ``transformers`` model with ``get_image_features``, ``get_text_features`` and a
    ``logit_scale`` (natural logarithm of the inverse temperature; the one owner of the temperature in training).

    ``frozen_batch_norm``: in ``train()`` mode batch-norm layers still use their stored statistics. Batch
    statistics would make the embedding of an image depend on which others share its micro-batch, so that micro-batches
    and full batch disagree, and would drift on a few hundred images.
    """

    def __init__(
        self,
        model: Any,
        processor: EncoderProcessor,
        *,
        name: str = "",
        fresh_projections: bool = False,
        frozen_batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.name = name
        self.fresh_projections = fresh_projections
        self.frozen_batch_norm = frozen_batch_norm
        self.positions = position_embeddings(model.vision_model)
        self._side_rule: ResolutionRule | None = None
        self._locked: set[str] = set()
        self.adapters: LoraAdapters | None = None
        self.open_clip_config: dict[str, Any] | None = None
        """What an OpenCLIP checkpoint says of itself; where there is one, ``save`` writes that layout too."""

    # --- what it is ---

    @property
    def model_type(self) -> str:
        return str(self.model.config.model_type)

    @property
    def has_own_code(self) -> bool:
        """Whether ``transformers`` lacks the model's class, which then is written beside the weights and needs
        ``trust_remote_code=True``."""
        return type(self.model).__module__.split(".")[0] != "transformers"

    @property
    def is_siglip(self) -> bool:
        return self.model_type.startswith("siglip")

    @property
    def logit_scale(self) -> nn.Parameter:
        return self.model.logit_scale

    @property
    def logit_bias(self) -> nn.Parameter | None:
        return getattr(self.model, "logit_bias", None)

    @property
    def dtype(self) -> torch.dtype:
        return self.logit_scale.dtype

    @property
    def embedding_dim(self) -> int:
        config = self.model.config
        if self.is_siglip:  # SigLIP has no projection of the image tower: its hidden size is the shared one.
            return int(config.vision_config.hidden_size)
        return int(config.projection_dim)

    @property
    def native_resolution(self) -> int:
        """Resolution in pixels of what the model's own image processor hands to the tower."""
        processor = self.processor.image_processor
        size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
        return int(size.get("height") or size.get("shortest_edge"))

    @property
    def text_length(self) -> int:
        """Longest caption in tokens that the text tower takes, special tokens included."""
        return self.processor.max_length

    @property
    def image_tower_kind(self) -> TowerKind:
        """``convolutional`` for batch-normalised ImageNet towers, which want about ten times a transformer's rate."""
        batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.model.vision_model.modules())
        return "convolutional" if batch_norm else "transformer"

    @property
    def resolution_rule(self) -> ResolutionRule:
        """Which resolutions the tower takes."""
        if self._side_rule is None:
            self._side_rule = resolution_rule(self)
        return self._side_rule

    @property
    def resolution_step(self) -> int:
        """Resolutions in pixels that the image tower is best given are multiples of this.

        Raises ``ConfigurationError`` for a tower that takes its native size only.
        """
        rule = self.resolution_rule
        if rule.multiple is None:
            raise ConfigurationError(
                f"The image tower of {self.name or self.model_type} takes {rule.native} pixels only: other sizes "
                "need a CLIP, SigLIP, ViT, DINOv2 or convolutional tower"
            )
        return rule.multiple if rule.multiple > 1 else CONVOLUTIONAL_STEP

    # --- embeddings ---

    def encode_image(self, pixel_values: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """Image embeddings, not normalised.

        Images of another size than the tower's own, square or not, are read with its position embeddings resized.
        Raises ``ConfigurationError`` for a resolution whose edge the patches would leave out.
        """
        options = {}
        size = tuple(pixel_values.shape[-2:])
        own = self.positions.size if self.positions is not None else (self.native_resolution, self.native_resolution)
        if size != own and (problem := self.resolution_rule.problem(*size)):
            raise ConfigurationError(f"Images of {size[0]} × {size[1]} pixels do not fit: {problem}")
        if self.positions is not None and self.positions.asks and (size != own or self.positions.restored):
            options["interpolate_pos_encoding"] = True
        output = self.model.get_image_features(pixel_values=pixel_values, **options)
        return output.pooler_output

    def encode_text(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Text embeddings, not normalised."""
        if self.is_siglip:
            attention_mask = None  # SigLIP was trained without one: its tower attends to the padding.
        output = self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        return output.pooler_output

    # --- what is trained ---

    def named_tower_parameters(self) -> Iterator[tuple[Tower, str, nn.Parameter]]:
        """Every parameter once, with the tower it belongs to."""
        for name, parameter in self.model.named_parameters():
            if name.startswith(("vision_model.", "visual_projection.")):
                yield "image", name, parameter
            elif name.startswith(("text_model.", "text_projection.")):
                yield "text", name, parameter
            else:
                yield "scale", name, parameter

    def tower_modules(self, tower: Literal["image", "text"]) -> nn.ModuleList:
        """The modules that make the embeddings of images or of texts."""
        names = ("vision_model", "visual_projection") if tower == "image" else ("text_model", "text_projection")
        return nn.ModuleList([part for name in names if (part := getattr(self.model, name, None)) is not None])

    def layer_index(self, name: str) -> int | None:
        """Depth of the block a parameter belongs to, counted from the input; None outside the blocks."""
        found = _LAYER.search(name)
        return int(found.group(1)) if found else None

    def lock(self, tower: Literal["image", "text"]) -> None:
        """Freeze a tower and its projection, except a projection that was just created and knows nothing yet."""
        self._locked.add(tower)
        for owner, name, parameter in self.named_tower_parameters():
            fresh = self.fresh_projections and name.startswith(("visual_projection.", "text_projection."))
            if owner == tower and not fresh:
                parameter.requires_grad_(False)
        self.train(self.training)

    @property
    def locked(self) -> frozenset[str]:
        return frozenset(self._locked)

    def attach_adapters(self, settings: AdapterSettings, seed: int) -> LoraAdapters:
        """Train LoRA adapters instead of the towers' weights from here on; lock towers first (``lora.attach_lora``)."""
        self.adapters = attach_lora(self, settings, seed)
        self.train(self.training)
        return self.adapters

    def merge_adapters(self) -> None:
        """Add what adapters have learned to the weights and take them out. Nothing happens where there are none."""
        if self.adapters is not None:
            self.adapters.merge()
            self.adapters = None

    def remove_adapters(self) -> None:
        """Take adapters out, and what they have learned with them."""
        if self.adapters is not None:
            self.adapters.remove()
            self.adapters = None

    def learns_by_adapters(self, tower: Tower) -> bool:
        return self.adapters is not None and tower in self.adapters.towers

    def train(self, mode: bool = True) -> DualEncoder:
        super().train(mode)
        if mode:
            if self.frozen_batch_norm:
                for module in self.model.modules():
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):
                        module.eval()
            if "image" in self._locked:
                self.model.vision_model.eval()
            if "text" in self._locked:
                self.model.text_model.eval()  # no dropout in a tower that does not learn
        return self

    def optimize_layout(self, device: torch.device) -> bool:
        """Keep a convolutional image tower's tensors in channels-last order where kernels prefer it (CPU, CUDA).

        The numbers are the same up to rounding; on MPS the order brings nothing. True when it was done.
        """
        if self.image_tower_kind != "convolutional" or device.type not in {"cpu", "cuda"}:
            return False
        self.model.vision_model.to(memory_format=torch.channels_last)
        return True

    def avoid_fused_text_attention(self) -> None:
        """Compute the text tower's attention plainly, with an explicit causal mask.

        Apple's fused kernel lets tokens see later ones in half precision when it is told "causal" instead of being
        given the mask (pytorch issue 195910).
        """
        self.model.text_model.set_attn_implementation("eager")

    def set_attention(self, image: AttentionDecision | None = None, text: AttentionDecision | None = None) -> None:
        """Let the towers compute attention as decided; None leaves a tower as it is, and so does having none.

        ``attention.decide_attention`` gives the decisions. A saved model does not carry them.
        """
        for tower, decision in ((self.model.vision_model, image), (self.model.text_model, text)):
            if decision is not None and has_attention(tower):
                tower.set_attn_implementation(decision.implementation)

    @torch.no_grad()
    def set_temperature(self, temperature: float, *, trainable: bool) -> None:
        """Overwrite the model's scale by 1 / temperature."""
        self.logit_scale.fill_(math.log(1.0 / temperature))
        self.logit_scale.requires_grad_(trainable)

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep CLIP's scale at or below 100. SigLIP's is free: its bias balances it (Zhai et al. 2023).

        A scale that is not trained stays what it was set to.
        """
        if not self.is_siglip and self.logit_scale.requires_grad:
            self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)

    @torch.no_grad()
    def absorb_text_map(self, weight: Float[Tensor, "dim dim"]) -> None:
        """Multiply a learned map of the text embeddings into the text tower's last layer."""
        layer: Any = getattr(self.model, "text_projection", None)
        if layer is None:
            layer = self.model.text_model.head  # SigLIP
        if isinstance(layer, nn.Sequential):
            layer = list(layer)[-1]
        weight = weight.to(layer.weight)
        layer.weight.copy_(weight @ layer.weight)
        if layer.bias is not None:
            layer.bias.copy_(weight @ layer.bias)

    def save(self, folder: Path, *, open_clip: bool = True) -> None:
        """Write what plain ``transformers`` loads: weights (safetensors), config, tokenizer, image processor.

        Adapters are merged into what is written, and go on as they are. Where the image processor asks for another
        resolution than the position embeddings are for, these are written resized, so that nobody has to ask for
        interpolation, and the original ones beside them.

        Where ``open_clip_config`` is set, and unless ``open_clip`` forbids it, the same model is written as an OpenCLIP
        checkpoint as well; the two layouts share the tokenizer.
        """
        positions, resolution = self.positions, self.native_resolution
        config = self.model.config.vision_config
        with quiet_transformers(), positions.saved_for(resolution, config, folder) if positions else nullcontext():
            weights = self.adapters.merged_state_dict() if self.adapters is not None else None
            if open_clip and self.open_clip_config is not None:  # first: save_pretrained empties what it is given
                save_open_clip(self, self.model.state_dict() if weights is None else weights, folder)
            self.model.save_pretrained(folder, state_dict=weights)
            self.processor.save(folder)
        for path in folder.iterdir():  # safetensors writes files that only their owner can read
            path.chmod(0o644)

    def load_weights(self, folder: Path) -> None:
        """Take over the weights of a folder that ``save`` wrote for a model of the same shape.

        Adapters are taken out first: they are merged into such weights already.
        """
        self.remove_adapters()
        with quiet_transformers():
            saved = type(self.model).from_pretrained(folder, dtype=self.dtype)
        weights = saved.state_dict()
        if self.positions is not None and (originals := self.positions.originals_of(folder)) is not None:
            name = next(name for name, value in self.model.named_parameters() if value is self.positions.parameter)
            weights[name] = originals
        self.model.load_state_dict(weights)

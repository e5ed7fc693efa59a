"""The one interface the rest of the package sees: an image tower, a text tower, and the scale of their dot product."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from domainclip.errors import ConfigurationError
from domainclip.models.adapters import LoraAdapters
from domainclip.models.attention import AttentionDecision, has_attention
from domainclip.models.position_embeddings import position_embeddings
from domainclip.models.processor import EncoderProcessor
from domainclip.models.towers import (
    CONVOLUTIONAL_STEP,
    BatchNorm,
    Tower,
    TowerKind,
    TowerName,
    resolution_rule,
    tower_kind,
    tower_of,
)
from domainclip.resolve.resolution import ResolutionRule

MAX_LOGIT_SCALE = math.log(100.0)
"""CLIP clips its learned scale so that logits are never multiplied by more than 100 (Radford et al. 2021, §2.5)."""


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
        model: PreTrainedModel,
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
        self._locked: set[str] = set()
        self.adapters: LoraAdapters | None = None
        self.open_clip_config: dict[str, Any] | None = None
        """What an OpenCLIP checkpoint says of itself; with it ``io.save_encoder`` writes that layout too."""

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
        return self.processor.resolution

    @property
    def text_length(self) -> int:
        """Longest caption in tokens that the text tower takes, special tokens included."""
        return self.processor.max_length

    @property
    def image_tower_kind(self) -> TowerKind:
        """``convolutional`` for batch-normalised ImageNet towers, which want about ten times a transformer's rate."""
        return tower_kind(self.model.vision_model)

    @cached_property
    def resolution_rule(self) -> ResolutionRule:
        """Which resolutions the tower takes."""
        return resolution_rule(self.model, self.positions, self.native_resolution)

    @property
    def resolution_step(self) -> int:
        """Resolutions in pixels that the image tower is best given are multiples of this.

        Raises:
            ConfigurationError: The tower takes its native size only.
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

        Args:
            pixel_values: Normalised as the image processor does.

        Returns:
            One row an image.

        Raises:
            ConfigurationError: For a resolution whose edge the patches would leave out.
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
        self, input_ids: Int[Tensor, "batch length"], attention_mask: Int[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch dim"]:
        """Text embeddings, not normalised.

        Args:
            input_ids: Padded as the processor pads them.
            attention_mask: 1 for tokens, 0 for padding.

        Returns:
            One row a text.
        """
        if self.is_siglip:
            attention_mask = None  # SigLIP was trained without one: its tower attends to the padding.
        output = self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        return output.pooler_output

    # --- what is trained ---

    def named_tower_parameters(self) -> Iterator[tuple[Tower, str, nn.Parameter]]:
        """Every parameter once, with the tower it belongs to.

        Returns:
            Tower, name and parameter of each.
        """
        for name, parameter in self.model.named_parameters():
            yield tower_of(name), name, parameter

    def tower_modules(self, tower: TowerName) -> nn.ModuleList:
        """The modules that make the embeddings of images or of texts.

        Args:
            tower: ``image`` or ``text``.

        Returns:
            They, in a list that torch knows.
        """
        names = ("vision_model", "visual_projection") if tower == "image" else ("text_model", "text_projection")
        return nn.ModuleList([part for name in names if (part := getattr(self.model, name, None)) is not None])

    def lock(self, tower: TowerName) -> None:
        """Freeze a tower and its projection, except a projection that was just created and knows nothing yet.

        Args:
            tower: ``image`` or ``text``.
        """
        self._locked.add(tower)
        for owner, name, parameter in self.named_tower_parameters():
            fresh = self.fresh_projections and name.startswith(("visual_projection.", "text_projection."))
            if owner == tower and not fresh:
                parameter.requires_grad_(False)
        self.train(self.training)

    @property
    def locked(self) -> frozenset[str]:
        return frozenset(self._locked)

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
        """Whether adapters are trained in place of a tower's own weights.

        Args:
            tower: ``image``, ``text`` or ``scale``.

        Returns:
            False for every tower where there are no adapters.
        """
        return self.adapters is not None and tower in self.adapters.towers

    def train(self, mode: bool = True) -> DualEncoder:
        """Set the training mode; locked towers and frozen batch norm stay in evaluation mode.

        Args:
            mode: False for evaluation.

        Returns:
            The encoder itself.
        """
        super().train(mode)
        if mode:
            if self.frozen_batch_norm:
                for module in self.model.modules():
                    if isinstance(module, BatchNorm):
                        module.eval()
            if "image" in self._locked:
                self.model.vision_model.eval()
            if "text" in self._locked:
                self.model.text_model.eval()  # no dropout in a tower that does not learn
        return self

    def optimize_layout(self, device: torch.device) -> bool:
        """Keep a convolutional image tower's tensors in channels-last order where kernels prefer it (CPU, CUDA).

        The numbers are the same up to rounding; on MPS the order brings nothing.

        Args:
            device: Where the work runs.

        Returns:
            True when it was done.
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

        Args:
            image: Of the image tower.
            text: Of the text tower.
        """
        for tower, decision in ((self.model.vision_model, image), (self.model.text_model, text)):
            if decision is not None and has_attention(tower):
                tower.set_attn_implementation(decision.implementation)

    @torch.no_grad()
    def set_temperature(self, temperature: float, *, trainable: bool) -> None:
        """Overwrite the model's scale by 1 / temperature.

        Args:
            temperature: Positive; similarities are divided by it.
            trainable: Whether training changes it from here on.
        """
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
        """Multiply a learned map of the text embeddings into the text tower's last layer.

        Args:
            weight: The map; new embeddings are ``weight @ embedding``.
        """
        layer: Any = getattr(self.model, "text_projection", None)
        if layer is None:
            layer = self.model.text_model.head  # SigLIP
        if isinstance(layer, nn.Sequential):
            layer = list(layer)[-1]
        weight = weight.to(layer.weight)
        layer.weight.copy_(weight @ layer.weight)
        if layer.bias is not None:
            layer.bias.copy_(weight @ layer.bias)

"""Two towers of ``transformers`` with the pooling and the projections that OpenCLIP puts on backbones from elsewhere.

``VisionTextDualEncoderModel`` knows one pooling (the backbone's own) and one projection (a bias-free linear layer).
BiomedCLIP, and OpenCLIP's other models with a text tower from Hugging Face, read BERT's class token without its pooler
and map it by two layers.

This file imports nothing of the package: it is written beside the weights, so that plain ``transformers`` loads them
with ``AutoModel.from_pretrained(folder, trust_remote_code=True)``.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput

POOLINGS = ("pooler", "cls", "mean", "max")
PROJECTIONS = ("linear", "mlp")


class ProjectedDualEncoderConfig(PretrainedConfig):
    """What each tower is, how its last states become one vector, and what maps that to the shared space.

    ``vision_pooling``, ``text_pooling``: ``pooler`` (the tower's own pooled vector), ``cls`` (the first token),
    ``mean`` (images: of the patches; texts: of the tokens that are no padding) or ``max`` (texts alone).
    ``vision_projection``, ``text_projection``: ``linear`` or ``mlp``, two layers with a GELU between them, of
    ``…_hidden`` numbers; ``…_biases`` tells which of their layers have one, in order.
    """

    model_type = "projected-dual-encoder"
    has_no_defaults_at_init = True

    def __init__(
        self,
        vision_config: Any = None,
        text_config: Any = None,
        projection_dim: int = 512,
        vision_pooling: str = "cls",
        vision_projection: str = "linear",
        vision_projection_hidden: int | None = None,
        vision_projection_biases: Any = (False,),
        text_pooling: str = "cls",
        text_projection: str = "linear",
        text_projection_hidden: int | None = None,
        text_projection_biases: Any = (False,),
        logit_scale_init_value: float = 2.6592,
        **kwargs: Any,
    ) -> None:
        if vision_config is None or text_config is None:
            raise ValueError("ProjectedDualEncoderConfig needs vision_config and text_config")
        self.vision_config = _tower_config(vision_config)
        self.text_config = _tower_config(text_config)
        self.projection_dim = projection_dim
        self.vision_pooling = vision_pooling
        self.vision_projection = vision_projection
        self.vision_projection_hidden = vision_projection_hidden
        self.vision_projection_biases = list(vision_projection_biases)
        self.text_pooling = text_pooling
        self.text_projection = text_projection
        self.text_projection_hidden = text_projection_hidden
        self.text_projection_biases = list(text_projection_biases)
        self.logit_scale_init_value = logit_scale_init_value
        for key, pooling, known in (
            ("vision_pooling", vision_pooling, POOLINGS[:-1]),  # no backbone of OpenCLIP's pools images by max
            ("text_pooling", text_pooling, POOLINGS),
        ):
            if pooling not in known:
                raise ValueError(f"{key} {pooling!r} is none of {', '.join(known)}")
        for projection in (vision_projection, text_projection):
            if projection not in PROJECTIONS:
                raise ValueError(f"Projection {projection!r} is none of {', '.join(PROJECTIONS)}")
        super().__init__(**kwargs)


def _tower_config(value: Any) -> Any:
    if isinstance(value, PretrainedConfig):
        return value
    value = copy.deepcopy(value)
    return AutoConfig.for_model(value.pop("model_type"), **value)


def _projection(kind: str, width: int, hidden: Any, dim: int, biases: list[bool]) -> nn.Module:
    if kind == "linear":
        return nn.Linear(width, dim, bias=biases[0])
    return nn.Sequential(nn.Linear(width, hidden, bias=biases[0]), nn.GELU(), nn.Linear(hidden, dim, bias=biases[1]))


class ProjectedDualEncoderModel(PreTrainedModel):
    """``get_image_features`` and ``get_text_features`` give an output whose ``pooler_output`` is the embedding,
    ``[batch, projection_dim]``, not normalised, as those of ``CLIPModel`` do."""

    config_class = ProjectedDualEncoderConfig
    base_model_prefix = "projected_dual_encoder"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: ProjectedDualEncoderConfig) -> None:
        super().__init__(config)
        self.vision_model = _tower(config.vision_config, config.vision_pooling)
        self.text_model = _tower(config.text_config, config.text_pooling)
        self.visual_projection = _projection(
            config.vision_projection,
            config.vision_config.hidden_size,
            config.vision_projection_hidden,
            config.projection_dim,
            config.vision_projection_biases,
        )
        self.text_projection = _projection(
            config.text_projection,
            config.text_config.hidden_size,
            config.text_projection_hidden,
            config.projection_dim,
            config.text_projection_biases,
        )
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.post_init()

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Embed images.

        Args:
            pixel_values: Float ``[batch, 3, height, width]``, normalised.
            **kwargs: Passed to the image tower.

        Returns:
            ``pooler_output``: embeddings ``[batch, projection_dim]``, not normalised.
        """
        output = self.vision_model(pixel_values=pixel_values, return_dict=True, **kwargs)
        states, pooling = output.last_hidden_state, self.config.vision_pooling
        if pooling == "pooler":
            pooled = output.pooler_output
        else:
            pooled = states[:, 0] if pooling == "cls" else states[:, 1:].mean(dim=1)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=self.visual_projection(pooled))

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Embed texts.

        Args:
            input_ids: Int ``[batch, length]``.
            attention_mask: ``[batch, length]``, 1 where a token is seen; without it, what is not padding is seen.
            **kwargs: Passed to the text tower.

        Returns:
            ``pooler_output``: embeddings ``[batch, projection_dim]``, not normalised.
        """
        pooling = self.config.text_pooling
        if attention_mask is None:
            attention_mask = (input_ids != self.config.text_config.pad_token_id).long()
        output = self.text_model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        states = output.last_hidden_state
        if pooling == "pooler":
            pooled = output.pooler_output
        elif pooling == "cls":
            pooled = states[:, 0]
        elif pooling == "mean":
            seen = attention_mask.unsqueeze(-1)
            pooled = (states * seen).sum(dim=1) / seen.sum(dim=1)
        else:
            pooled = states.masked_fill(attention_mask.unsqueeze(-1) == 0, -torch.inf).max(dim=1).values
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=self.text_projection(pooled))

    def forward(
        self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> CLIPOutput:
        """Compare each image with each text.

        Args:
            input_ids: Int ``[texts, length]``.
            pixel_values: Float ``[images, 3, height, width]``, normalised.
            attention_mask: As for ``get_text_features``.
            **kwargs: Anything more that a tokenizer makes; it goes to the text tower.

        Returns:
            Scaled cosines ``[images, texts]`` as ``logits_per_image``, their transpose, and unit-length embeddings.
        """
        text = self.get_text_features(input_ids, attention_mask, **kwargs).pooler_output
        text = nn.functional.normalize(text, dim=-1)
        image = nn.functional.normalize(self.get_image_features(pixel_values).pooler_output, dim=-1)
        logits = self.logit_scale.exp() * image @ text.T
        return CLIPOutput(logits_per_image=logits, logits_per_text=logits.T, image_embeds=image, text_embeds=text)


def _tower(config: Any, pooling: str) -> Any:
    if config.model_type.startswith("clip_"):  # their pooled vector has no weights of its own
        return AutoModel.from_config(config)
    return AutoModel.from_config(config, add_pooling_layer=pooling == "pooler")


AutoConfig.register(ProjectedDualEncoderConfig.model_type, ProjectedDualEncoderConfig, exist_ok=True)
AutoModel.register(ProjectedDualEncoderConfig, ProjectedDualEncoderModel, exist_ok=True)
ProjectedDualEncoderConfig.register_for_auto_class()
ProjectedDualEncoderModel.register_for_auto_class("AutoModel")

"""What a model says of itself to whoever resolves a recipe for it."""

from __future__ import annotations

from domainclip.models.dual_encoder import DualEncoder
from domainclip.resolve.facts import ModelFacts


def model_facts(encoder: DualEncoder) -> ModelFacts:
    """The facts about a loaded model.

    Args:
        encoder: the model.

    Returns:
        Sizes, kinds of towers and temperature as plain values.
    """
    return ModelFacts(
        native_resolution=encoder.native_resolution,
        text_length=encoder.text_length,
        fixed_text_length=encoder.processor.text_padding == "fixed",
        image_tower_kind=encoder.image_tower_kind,
        text_tower_kind="transformer",
        temperature=float((-encoder.logit_scale.detach()).exp()),
        sigmoid=encoder.logit_bias is not None,
        resolutions=encoder.resolution_rule,
        fresh_projections=encoder.fresh_projections,
    )

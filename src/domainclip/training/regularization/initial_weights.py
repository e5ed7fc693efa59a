"""The weights a training starts from: what is not to be forgotten is measured against them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from domainclip.config.reference_settings import ReferenceSettings
from domainclip.errors import ConfigurationError
from domainclip.models.dual_encoder import DualEncoder
from domainclip.models.io import weights_digest


@dataclass(frozen=True)
class InitialWeights:
    """``digest``: SHA-256 of the weights, by which a resumed run finds out that it starts from the same ones; no
    checkpoint holds them, since the recipe's model does. ``encoder``: a frozen copy, where something asks it for
    embeddings. ``weights``: a copy on the CPU, where the recipe's model would not give them again."""

    digest: str
    encoder: DualEncoder | None = None
    weights: Mapping[str, Tensor] | None = None

    @property
    def copy_bytes(self) -> int:
        """Bytes of the frozen copy; 0 without one."""
        return sum(p.nbytes for p in self.encoder.parameters()) if self.encoder is not None else 0


def initial_weights(
    encoder: DualEncoder, settings: ReferenceSettings, as_loaded: bool = True, compared: bool = False
) -> InitialWeights | None:
    """Remember of the model what the recipe needs.

    Args:
        encoder: As it begins, without adapters.
        settings: What holds the training near its start.
        as_loaded: Whether its weights are those that the recipe's model names, and can be loaded again.
        compared: Whether the run ends by comparing what it has trained with them.

    Returns:
        None where the recipe needs nothing.

    Raises:
        ConfigurationError: There are no embeddings yet that could be kept.
    """
    if not (compared or settings.wise_ft or settings.l2sp_strength > 0 or settings.distillation_strength > 0):
        return None
    frozen = None
    if settings.distillation_strength > 0:
        if encoder.fresh_projections:
            raise ConfigurationError(
                "distillation_strength keeps the initial model's embeddings, and two backbones that have just been "
                "joined have none worth keeping: leave it out, or start from a dual encoder (model_name)"
            )
        # The tokenizer and the image processor are not weights, and nobody asks the copy for them.
        frozen = copy.deepcopy(encoder, {id(encoder.processor): encoder.processor}).requires_grad_(False).eval()
    weights = None if as_loaded or not settings.wise_ft else weights_of(encoder)
    return InitialWeights(weights_digest(encoder), frozen, weights)


def weights_of(encoder: DualEncoder) -> dict[str, Tensor]:
    """Copy all weights and buffers.

    Args:
        encoder: Whose.

    Returns:
        Tensors on the CPU by name.
    """
    return {name: value.detach().to("cpu", copy=True) for name, value in encoder.model.state_dict().items()}

"""The last layer of each tower, taken apart from the rest: what it reads, and what it makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from domainclip.models.dual_encoder import DualEncoder
from domainclip.models.towers import TowerName


@dataclass(frozen=True)
class TowerProjection:
    """``layer`` maps what the tower has pooled to the embedding; with ``adds_residual`` something else is added to what
    it gives, which is no function of it (SigLIP's image tower: the attention pooling goes round its MLP)."""

    tower: TowerName
    layer: nn.Module
    adds_residual: bool = False

    @property
    def trained(self) -> list[nn.Parameter]:
        """Those of its parameters that training may change: none in a locked tower, an adapter's alone under LoRA."""
        return [parameter for parameter in self.layer.parameters() if parameter.requires_grad]


@dataclass(frozen=True)
class ProjectionInputs:
    """What a projection read for some images or texts; ``embed`` makes their embeddings of it."""

    projection: TowerProjection
    features: Float[Tensor, "n width"]
    residual: Float[Tensor, "n dim"] | None

    def __len__(self) -> int:
        return len(self.features)

    def embed(self, rows: Tensor | slice = slice(None)) -> Float[Tensor, "rows dim"]:
        """The embeddings, not normalised, that the encoder gives with its projection as it is now.

        Args:
            rows: Which of them; all without.

        Returns:
            They.
        """
        embeds = self.projection.layer(self.features[rows])
        return embeds if self.residual is None else embeds + self.residual[rows]


def tower_projection(encoder: DualEncoder, tower: TowerName) -> TowerProjection:
    """The projection of a tower. SigLIP has none: there the text tower's linear layer, which is a projection by another
    name, and the second layer of the image tower's last MLP.

    Args:
        encoder: The dual encoder.
        tower: ``image`` or ``text``.

    Returns:
        The layer, and what goes round it.
    """
    model: Any = encoder.model
    layer = getattr(model, "visual_projection" if tower == "image" else "text_projection", None)
    if layer is not None:
        return TowerProjection(tower, layer)
    if tower == "text":
        return TowerProjection(tower, model.text_model.head)
    return TowerProjection(tower, model.vision_model.head.mlp.fc2, adds_residual=True)


@torch.no_grad()
def projection_inputs(projection: TowerProjection, encode: Callable[..., Tensor], *inputs: Tensor) -> ProjectionInputs:
    """What ``projection`` reads while ``encode(*inputs)`` embeds, in float32. The encoder stays in the mode it is
    in.

    Args:
        projection: Whose inputs are wanted.
        encode: Embeds ``inputs`` through the tower.

    Returns:
        One row each.
    """
    seen: dict[str, Tensor] = {}

    def watch(layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        seen["read"], seen["made"] = given[0], made

    handle = projection.layer.register_forward_hook(watch)
    try:
        embeds = encode(*inputs).float()
    finally:
        handle.remove()
    # SigLIP's pooling keeps a place for one query: [batch, 1, width].
    features = seen["read"].float().reshape(len(embeds), -1)
    residual = embeds - seen["made"].float().reshape(len(embeds), -1) if projection.adds_residual else None
    return ProjectionInputs(projection, features, residual)


def join_inputs(parts: list[ProjectionInputs]) -> ProjectionInputs:
    """Several batches of one projection's inputs as one.

    Args:
        parts: At least one.

    Returns:
        In their order.
    """
    residuals = [part.residual for part in parts if part.residual is not None]
    return ProjectionInputs(
        parts[0].projection, torch.cat([part.features for part in parts]), torch.cat(residuals) if residuals else None
    )

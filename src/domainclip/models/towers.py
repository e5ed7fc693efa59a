"""What a tower of a dual encoder is: its kind, what its parameters are called, and the resolutions it takes."""

from __future__ import annotations

import math
import re
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from domainclip.models.position_embeddings import PositionEmbeddings
from domainclip.resolve.resolution import ResolutionRule

TowerName = Literal["image", "text"]
Tower = Literal["image", "text", "scale"]
"""Whose a parameter is; ``scale`` stands for what belongs to neither tower: SigLIP's bias and the logit scale."""
TowerKind = Literal["transformer", "convolutional"]

BatchNorm = nn.modules.batchnorm._BatchNorm

CONVOLUTIONAL_STEP = 32
"""The strides of every common convolutional backbone multiply to it: of a smaller image no cell is left."""

PREFIXES: dict[TowerName, str] = {"image": "vision_model.", "text": "text_model."}
_PROJECTIONS = ("visual_projection.", "text_projection.", "vision_model.pooler.", "text_model.pooler.")
_LAYER = re.compile(r"\.(?:layers?|blocks|stages)\.(\d+)\.")


def tower_of(name: str) -> Tower:
    """The tower that a parameter or module of that name belongs to, its projection included.

    Args:
        name: Of the parameter or module, as in the ``transformers`` model.

    Returns:
        Whose it is.
    """
    if name.startswith(("vision_model.", "visual_projection")):
        return "image"
    return "text" if name.startswith(("text_model.", "text_projection")) else "scale"


def is_projection(name: str, is_siglip: bool) -> bool:
    """Whether a parameter or layer maps a tower's output to the shared space: projections, the dense layer of a
    pooler (which comes untrained with many backbones), and SigLIP's text head, its projection by another name.

    Args:
        name: Of the parameter or module, as in the ``transformers`` model.
        is_siglip: Whether the model is of SigLIP's family.

    Returns:
        Whether it does.
    """
    return name.startswith(_PROJECTIONS) or (is_siglip and name.startswith("text_model.head."))


def layer_index(name: str) -> int | None:
    """Depth of the block a parameter belongs to, counted from the input; None outside the blocks.

    Args:
        name: Of the parameter or module, as in the ``transformers`` model.

    Returns:
        The first block is 0.
    """
    found = _LAYER.search(name)
    return int(found.group(1)) if found else None


def tower_kind(vision_model: nn.Module) -> TowerKind:
    """``convolutional`` for a batch-normalised image tower, else ``transformer``.

    Args:
        vision_model: The image tower.

    Returns:
        Its kind.
    """
    return "convolutional" if any(isinstance(m, BatchNorm) for m in vision_model.modules()) else "transformer"


def resolution_rule(model: PreTrainedModel, positions: PositionEmbeddings | None, native: int) -> ResolutionRule:
    """Which resolutions the image tower of a ``transformers`` dual encoder takes.

    Multiples of the patch where its position embeddings can be resized. Another tower is tried at a larger size: one
    that takes it takes any (multiples of its patch, where it has patches) from ``CONVOLUTIONAL_STEP`` on, one that does
    not takes its native resolution only.

    Args:
        model: With ``get_image_features``, as ``DualEncoder.model``; left as it was.
        positions: The tower's position embeddings, where they are known.
        native: Resolution in pixels that the model's image processor hands out.

    Returns:
        For recipes to be checked against.
    """
    if positions is not None:
        multiple = math.lcm(*positions.patch)
        return ResolutionRule(positions.size[0], multiple, smallest=multiple)
    patch = getattr(model.vision_model.config, "patch_size", None)
    multiple = patch if isinstance(patch, int) else 1
    takes_others = _takes(model, native + math.lcm(multiple, CONVOLUTIONAL_STEP))
    return ResolutionRule(native, multiple if takes_others else None, CONVOLUTIONAL_STEP)


@torch.no_grad()
def _takes(model: PreTrainedModel, resolution: int) -> bool:
    """Try one black image."""
    modes = {module: module.training for module in model.modules()}
    model.eval()  # batch statistics stay as they are
    scale = model.logit_scale
    try:
        image = torch.zeros(1, 3, resolution, resolution, dtype=scale.dtype, device=scale.device)
        model.get_image_features(pixel_values=image)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    finally:
        for module, training in modes.items():
            module.training = training
    return True

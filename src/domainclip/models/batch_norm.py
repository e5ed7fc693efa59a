"""Batch norm in the image tower: whether it depends on the batch, and statistics of weights no step has seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from domainclip.models.dual_encoder import DualEncoder
from domainclip.models.towers import BatchNorm


def has_live_batch_norm(encoder: nn.Module) -> bool:
    """Whether an image's embedding depends on the others of its batch, as the encoder's modules are set now.

    Args:
        encoder: The dual encoder.

    Returns:
        True where a layer takes its batch's statistics.
    """
    return any(isinstance(m, BatchNorm) and (m.training or m.running_mean is None) for m in encoder.modules())


def statistics_differ(model: nn.Module, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two sets of ``model``'s weights hold other running means or variances for its batch-norm layers.

    Args:
        model: Whose modules tell the layers.
        a: A state dict of it.
        b: Another one.

    Returns:
        True where any mean or variance differs.
    """
    names = [
        f"{name}.{buffer}"
        for name, module in model.named_modules()
        if isinstance(module, BatchNorm) and module.running_mean is not None
        for buffer in ("running_mean", "running_var")
    ]
    return any(not torch.equal(a[name].cpu(), b[name].cpu()) for name in names)


@torch.no_grad()
def recompute_statistics(encoder: DualEncoder, batches: Iterable[Float[Tensor, "batch 3 height width"]]) -> int:
    """Replace the running statistics of the image tower by the mean over ``batches`` of each batch's own.

    Averaged weights have other activations than either end, for which neither end's statistics hold, nor their mean
    (Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima", §3.2). All layers take their batch's statistics
    while the images go through, as in training; everything else is in evaluation mode (no dropout).

    Returns:
        The number of images that the statistics were taken of.

    Args:
        encoder: The dual encoder.
        batches: Images as the tower takes them.
    """
    layers = [m for m in encoder.model.vision_model.modules() if isinstance(m, BatchNorm) and m.track_running_stats]
    was_training, momenta, images = encoder.training, [layer.momentum for layer in layers], 0
    encoder.eval()
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean over all batches
            layer.train()
        for pixel_values in batches:
            encoder.encode_image(pixel_values)
            images += len(pixel_values)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        encoder.train(was_training)
    return images

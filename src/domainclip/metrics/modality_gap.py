"""How far apart the images' and the texts' regions of the embedding space lie."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float

from domainclip.errors import ShapeError
from domainclip.similarity import Embeddings, as_embeddings, check_embeddings


def modality_gap(
    image_embeds: Float[Embeddings, "n_images dim"], text_embeds: Float[Embeddings, "n_texts dim"]
) -> float:
    """Distance between the mean image and the mean text, each embedding at unit length; in 0…2.

        gap = ‖ mean(x / ‖x‖) − mean(y / ‖y‖) ‖          Liang et al. 2022, "Mind the Gap"

    0 where the two means coincide. Two towers start with a gap and contrastive training keeps one. It is a
    description, not a score: a shift that all images share leaves every image's order of texts as it is.

    Args:
        image_embeds: ``[n_images, dim]``, of any length.
        text_embeds: ``[n_texts, dim]``, of any length.

    Returns:
        The distance, in 0…2.

    Raises:
        ShapeError: Embeddings are not 2D, empty, of different width, or not finite.
    """
    images, texts = as_embeddings(image_embeds).cpu().double(), as_embeddings(text_embeds).cpu().double()
    check_embeddings(images, texts)
    for name, side in (("image_embeds", images), ("text_embeds", texts)):
        if not len(side):
            raise ShapeError(f"{name} has no rows: there is no mean to measure from")
        if not side.isfinite().all():
            raise ShapeError(f"{name} contains NaN or infinity: the model has diverged")
    return (F.normalize(images, dim=-1).mean(dim=0) - F.normalize(texts, dim=-1).mean(dim=0)).norm().item()

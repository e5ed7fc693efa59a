"""Which rows of a data set the present model finds hardest to tell apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from domainclip.errors import ShapeError
from domainclip.metrics.distinct import distinct_rows, spread
from domainclip.retrieval.similarity_computer import stable_top_k
from domainclip.similarity import check_embeddings

_ROUNDING = 1e-6  # equal rows come out at a cosine of 1 − 1e-7 as often as at 1


@torch.no_grad()
def hard_negatives(
    image_embeds: Float[Tensor, "n dim"],
    text_embeds: Float[Tensor, "n dim"],
    group_ids: Int[Tensor, " n"],
    k: int = 8,
    *,
    duplicate_similarity: float = 0.98,
    false_negative_margin: float | None = None,
    pool: int = 20_000,
    seed: int = 0,
    chunk: int = 512,
) -> Int[Tensor, "n k"]:
    """For every pair (image x_i, caption y_i) the ``k`` other rows that are hardest to tell from it.

        h_ij = max( cos(x_i, y_j), cos(x_j, y_i) )

    that is, the caption that is nearly as good for its image, or the image that is nearly as good for its
    caption: the negatives with the largest part in the contrastive loss of row i in either direction. Taken from the
    whole data set with the model as it is now (Xiong et al. 2021, "ANCE", who mine the negatives of one direction).

    The hardest rows of a data set are also where its unmarked positives lie, so row j is rejected for row i if

    - it is of the same group (its positive);
    - cos(x_i, x_j) ≥ ``duplicate_similarity``: the same image again, under another caption;
    - cos(y_i, y_j) ≥ ``duplicate_similarity``: the same statement in other words;
    - h_ij > cos(x_i, y_i) + ``false_negative_margin``, where that is given: it fits better than the pair's own
      other half. This is TopK-MarginPos of Moreira et al. 2024, "NV-Retriever" (arXiv 2407.15831), whose threshold
      lies *below* the positive: a margin of −0.05 is their 0.05.

    A row whose image or caption is all zeros (an image that could not be read) gets no negatives and is nobody's.
    Memory: a few matrices of ``chunk`` × candidates, in float32, on the device of the embeddings.

    Args:
        image_embeds: One row a pair; they need not be normalised.
        text_embeds: One row a pair; they need not be normalised.
        group_ids: Rows of one group are positives of each other.
        k: Negatives for each row, at least 1.
        duplicate_similarity: A cosine; above 1 it rejects no duplicates.
        false_negative_margin: Added to the pair's own cosine; None rejects nothing by it.
        pool: Most candidates. Of more other rows ``pool`` are drawn, the same ones for every row; the answer is then
            the hardest of these.
        seed: Of that draw.
        chunk: Rows compared at once.

    Returns:
        Row numbers, int64 on the CPU, hardest first, equal ones by row number; −1 where there are fewer than ``k``.

    Raises:
        ShapeError: Shapes do not fit, embeddings are NaN or infinite, or ``k``, ``pool`` or ``chunk`` is below 1.
    """
    images, texts, groups = _checked(image_embeds, text_embeds, group_ids, k=k, pool=pool, chunk=chunk)
    negatives = torch.full((len(images), k), -1, dtype=torch.long)
    usable = (images.any(dim=1) & texts.any(dim=1)).cpu().nonzero().flatten()
    candidates = _draw(usable, pool, seed)
    if not len(candidates):
        return negatives

    here = images.device
    images, texts = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    candidate_groups = groups[candidates].to(here)
    # Domain data repeats captions; only scored as one do equal ones tie to the last bit, and so keep their order.
    candidate_images, image_indices = distinct_rows(images[candidates.to(here)])
    candidate_texts, text_indices = distinct_rows(texts[candidates.to(here)])
    kept = min(k, len(candidates))

    for rows in usable.split(chunk):
        x, y = images[rows.to(here)], texts[rows.to(here)]
        hardness = torch.maximum(
            spread(x @ candidate_texts.T, text_indices), spread(y @ candidate_images.T, image_indices)
        )
        rejected = groups[rows].to(here)[:, None] == candidate_groups
        rejected |= spread(x @ candidate_images.T >= duplicate_similarity - _ROUNDING, image_indices)
        rejected |= spread(y @ candidate_texts.T >= duplicate_similarity - _ROUNDING, text_indices)
        if false_negative_margin is not None:
            own = (x * y).sum(dim=1, keepdim=True)
            rejected |= hardness > own + false_negative_margin + _ROUNDING
        scores, places = stable_top_k(hardness.masked_fill_(rejected, -torch.inf), kept)
        found = candidates[places.cpu()]
        negatives[rows, :kept] = found.masked_fill((scores == -torch.inf).cpu(), -1)
    return negatives


def _draw(usable: Int[Tensor, " m"], pool: int, seed: int) -> Int[Tensor, " candidates"]:
    """At most ``pool`` of the rows, in ascending order, which is what breaks ties."""
    if len(usable) <= pool:
        return usable
    drawn = torch.randperm(len(usable), generator=torch.Generator().manual_seed(seed))[:pool]
    return usable[drawn.sort().values]


def _checked(
    image_embeds: Tensor, text_embeds: Tensor, group_ids: Tensor, **counts: int
) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n dim"], Int[Tensor, " n"]]:
    for name, value in counts.items():
        if value < 1:
            raise ShapeError(f"{name} must be at least 1, got {value}")
    check_embeddings(image_embeds, text_embeds)
    if len(image_embeds) != len(text_embeds) or group_ids.shape != (len(image_embeds),):
        raise ShapeError(
            f"Batch size mismatch: {len(image_embeds)} images, {len(text_embeds)} captions and group ids of shape "
            f"{tuple(group_ids.shape)}: give one of each per row"
        )
    for name, embeds in (("image_embeds", image_embeds), ("text_embeds", text_embeds)):
        broken = ~embeds.isfinite().all(dim=1)
        if broken.any():
            raise ShapeError(
                f"{name} contains NaN or infinity in {int(broken.sum())} of {len(embeds)} rows (first: row "
                f"{int(broken.nonzero()[0])}), so nothing can be mined: the model has diverged"
            )
    # A device of its own for the texts would fail in the first product.
    return image_embeds.detach().float(), text_embeds.detach().to(image_embeds.device).float(), group_ids.cpu()

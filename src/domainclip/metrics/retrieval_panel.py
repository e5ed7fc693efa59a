"""Retrieval figures of resampled images: the candidates stay, the queries are drawn anew."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from domainclip.errors import ShapeError
from domainclip.metrics.panels import Draws, Values

MOST = 10


class RetrievalPanel:
    """``i2t_R@10`` and ``t2i_R@10`` (queries whose best hit is among the first ten),
    ``i2t_MRR``, ``t2i_MRR``, and ``i2t_R@1``, ``t2i_R@1``.

    ``i2t_ranks`` and ``t2i_ranks``: each query's rank of its best hit, from 1. ``hits`` ``[n, 2]``: image and caption
    that belong together. Images are what is resampled; a caption counts as often as the images it was written for
    do on average, since captions without their patient or specimen are not drawn by themselves. ``values`` leave out
    an R@10 that ten candidates or fewer make 1 whatever the model does.
    """

    cost = 1

    def __init__(
        self,
        i2t_ranks: Sequence[int] | Int[np.ndarray, " images"],
        t2i_ranks: Sequence[int] | Int[np.ndarray, " captions"],
        hits: Int[np.ndarray, "hits 2"],
        names: Sequence[str],
    ) -> None:
        self._ranks = {"i2t": np.asarray(i2t_ranks), "t2i": np.asarray(t2i_ranks)}
        n_images, n_captions = len(self._ranks["i2t"]), len(self._ranks["t2i"])
        hits = np.asarray(hits)[np.argsort(np.asarray(hits)[:, 1], kind="stable")]
        per_caption = np.bincount(hits[:, 1], minlength=n_captions)
        if (per_caption == 0).any() or len(per_caption) != n_captions or hits[:, 0].max() >= n_images:
            raise ShapeError(
                f"Batch size mismatch: the hits do not give each of {n_captions} captions one of {n_images} images"
            )
        self._images = hits[:, 0]
        self._starts = np.concatenate([[0], np.cumsum(per_caption)[:-1]])
        self._per_caption = per_caption
        candidates = {"i2t": n_captions, "t2i": n_images}
        self.names = [name for name in names if not (name.endswith(f"R@{MOST}") and candidates[name[:3]] <= MOST)]
        self.values: Values = {(name, None): float(self._fractions(name).mean()) for name in self.names}

    def _fractions(self, name: str) -> Float[np.ndarray, " queries"]:
        """What each query adds to the mean."""
        ranks = self._ranks[name[:3]]
        if name.endswith("MRR"):
            return 1 / ranks
        return (ranks <= int(name.rpartition("@")[2])).astype(np.float64)

    def resampled(self, counts: Float[np.ndarray, "resamples images"]) -> Draws:
        of_captions = np.add.reduceat(counts[:, self._images], self._starts, axis=1) / self._per_caption
        weights = {"i2t": counts, "t2i": of_captions}
        return {
            (name, None): weights[name[:3]] @ self._fractions(name) / weights[name[:3]].sum(axis=1)
            for name in self.names
        }

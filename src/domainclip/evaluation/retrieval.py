"""Retrieval: captions for images, and images for captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from domainclip.errors import DataError
from domainclip.evaluation.protocols import CallableEvaluator, Embedder, EvaluationResult, LabelledPair
from domainclip.evaluation.shared import encode_images, rows_for
from domainclip.evaluation.zero_shot import of_images
from domainclip.metrics.metric import Metric
from domainclip.metrics.retrieval import chunked_ranks, summarise_ranks


class RetrievalEvaluator(CallableEvaluator):
    """Finds captions for images (i2t) and images for captions (t2i) among all those of the set.

    Candidates are the *distinct* images and the *distinct* captions: an equal caption is the same caption (letter case
    and spacing aside, which CLIP's tokenizers drop too), so finding it is a hit whichever row it was written for. So is
    one that is equal after ``text_transform``, which is what the model is shown.

    Raises:
        DataError: There are fewer than two images or two captions.
    """

    name = "retrieval"
    primary_metric = "mean_R@1"
    greater_is_better = True

    def __init__(
        self,
        pairs: Sequence[LabelledPair],
        chunk: int = 1024,
        text_transform: Callable[[str], str] | None = None,
    ) -> None:
        self.chunk = chunk
        captions: dict[str, str] = {}
        keys = [caption_key(pair.caption, text_transform) for pair in pairs]
        for key, pair in zip(keys, pairs, strict=True):
            captions.setdefault(key, pair.caption)
        self.paths = list(dict.fromkeys(pair.image_path for pair in pairs))
        self.captions = list(captions.values())
        if len(self.paths) < 2 or len(self.captions) < 2:
            raise DataError(
                f"Retrieval needs at least two images and two different captions, found {len(self.paths)} "
                f"and {len(self.captions)}: with one candidate every answer is right"
            )
        image = {path: row for row, path in enumerate(self.paths)}
        text = {key: row for row, key in enumerate(captions)}
        hits = {(image[pair.image_path], text[key]) for key, pair in zip(keys, pairs, strict=True)}
        # [hits, 2] (image, caption): an image may have several captions and a caption several images.
        self.hits = torch.tensor(sorted(hits))
        self.groups = of_images(pairs, self.paths, "group")

    def evaluate(self, embed: Embedder) -> EvaluationResult:
        """The figures of this embedder.

        Args:
            embed: The model.

        Returns:
            Its figures and their details.
        """
        image_embeds = encode_images(embed, self.paths)
        text_embeds = rows_for(embed.encode_texts(self.captions), len(self.captions), "captions")
        i2t = chunked_ranks(image_embeds, text_embeds, self.relevance(0), self.chunk)
        t2i = chunked_ranks(text_embeds, image_embeds, self.relevance(1), self.chunk)
        metrics = summarise_ranks(i2t, t2i)
        counts = {"i2t": len(self.paths), "t2i": len(self.captions)}
        records = {name: Metric(name, value, n_units=counts[name[:3]]) for name, value in metrics.items()}
        mean = (metrics["i2t_R@1"] + metrics["t2i_R@1"]) / 2
        records["mean_R@1"] = Metric("mean_R@1", mean, n_units=min(counts.values()))
        records |= EvaluationResult.of({"n_images": counts["i2t"], "n_texts": counts["t2i"]}).records
        details = {
            "n_images": len(self.paths),
            "n_texts": len(self.captions),
            "image_paths": [str(path) for path in self.paths],
            "captions": self.captions,
            "i2t_ranks": i2t.tolist(),
            "t2i_ranks": t2i.tolist(),
            "groups": self.groups,
            "hits": self.hits.tolist(),
        }
        return EvaluationResult(records, {"retrieval": details})

    def relevance(self, side: int) -> Callable[[int, int], Tensor]:
        """Boolean hits of queries start:stop; ``side`` is 0 when images ask, 1 when captions do.

        Args:
            side: 0 or 1.

        Returns:
            A function of two query numbers.
        """
        hits = self.hits[self.hits[:, side].argsort(stable=True)]
        queries, candidates = hits[:, side].contiguous(), hits[:, 1 - side]
        n_candidates = (len(self.paths), len(self.captions))[1 - side]

        def rows(start: int, stop: int) -> Tensor:
            first, last = torch.searchsorted(queries, torch.tensor([start, stop])).tolist()
            mask = torch.zeros(stop - start, n_candidates, dtype=torch.bool)
            mask[queries[first:last] - start, candidates[first:last]] = True
            return mask

        return rows


def caption_key(caption: str, text_transform: Callable[[str], str] | None = None) -> str:
    """What equal captions have in common: letter case and spacing are left aside.

    Args:
        caption: As the data have it.
        text_transform: What is done to captions before the tokenizer; None for nothing.

    Returns:
        The key.
    """
    shown = caption if text_transform is None else text_transform(caption)
    return " ".join(shown.split()).casefold()

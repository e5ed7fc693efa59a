"""The training's own loss on the validation rows, so that its curve can stand beside that of the training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import nn

from domainclip.data.captions.statements import positive_groups
from domainclip.data.records import ImageTextPair
from domainclip.evaluation.protocols import Embedder
from domainclip.losses import call_objective
from domainclip.models import DualEncoder
from domainclip.resolve import ResolvedRun, contrastive_batch

LOSS = "loss"


class ValidationLoss:
    """Measures the objective over batches as large as those of the training.

    The rows are shuffled once, by the recipe's seed: tables that are sorted by class would otherwise give batches
    that no training sees. A copy of the objective is asked, so that one which learns or keeps count stays as it is.

    Args:
        loss: The objective.
        encoder: Whose temperature and bias it is asked with.
        run: The resolved recipe.
        pairs: The validation rows, at least two.
        text_transform: What is done to captions before the tokenizer.
    """

    def __init__(
        self,
        loss: nn.Module,
        encoder: DualEncoder,
        run: ResolvedRun,
        pairs: Sequence[ImageTextPair],
        text_transform: Callable[[str], str],
    ) -> None:
        self.loss, self.encoder = loss, encoder
        batch = contrastive_batch(run.memory)
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(run.data.seed))
        self.paths = [pair.image_path for pair in pairs]
        rows = {caption: row for row, caption in enumerate(dict.fromkeys(pair.caption for pair in pairs))}
        self.captions = list(rows)
        self.texts = torch.tensor([rows[pair.caption] for pair in pairs])
        texts = [[text_transform(pair.caption)] for pair in pairs]
        groups = positive_groups([pair.label for pair in pairs], texts, run.recipe.positives)
        self.groups = torch.tensor(groups)
        # The last rows join the batch before them: a batch of one has nothing to be told from.
        self.batches = order.split(batch) if len(order) <= batch else order.tensor_split(len(order) // batch)

    @classmethod
    def of(
        cls,
        loss: nn.Module,
        encoder: DualEncoder,
        run: ResolvedRun,
        pairs: Sequence[ImageTextPair],
        text_transform: Callable[[str], str],
    ) -> ValidationLoss | None:
        """The loss of these rows, None where embeddings of unit length do not tell it: the objective compares others,
        or learns how to compare them.

        Args:
            loss: The objective.
            encoder: Whose temperature and bias it is asked with.
            run: The resolved recipe.
            pairs: The validation rows.
            text_transform: What is done to captions before the tokenizer.

        Returns:
            What measures it.
        """
        told = run.recipe.normalize_embeddings and run.recipe.similarity_metric == "cosine"
        return cls(loss, encoder, run, pairs, text_transform) if told and len(pairs) > 1 else None

    @torch.no_grad()
    def __call__(self, embed: Embedder) -> float:
        """Measure the present weights.

        Args:
            embed: The model; where it is shared, nothing is embedded twice.

        Returns:
            The mean over the rows, in nats.
        """
        objective = deepcopy(self.loss).cpu().eval()
        images, texts = embed.encode_images(self.paths), embed.encode_texts(self.captions)[self.texts]
        bias = self.encoder.logit_bias
        total = 0.0
        for rows in self.batches:
            output = call_objective(
                objective,
                images[rows],
                texts[rows],
                group_ids=self.groups[rows],
                logit_scale=self.encoder.logit_scale.detach().float().cpu(),
                logit_bias=None if bias is None else bias.detach().float().cpu(),
            )
            total += float(output["loss"]) * len(rows)
        return total / sum(map(len, self.batches))

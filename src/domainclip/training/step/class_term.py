"""Classification by class descriptions as a training objective, beside the contrastive one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from domainclip.data.dataset import CLIPDataset
from domainclip.models.dual_encoder import DualEncoder

LARGEST = 256
"""Classes a step tells apart at most: each of them is a sentence through the text tower."""


class ClassificationTerm:
    """Cross-entropy, in nats, of telling a batch's classes apart by their prompts.

    The contrastive loss with several positives spreads a row's target over all texts of its class, so that a class
    weighs as much as it has rows: what it learns of a class leaves out how frequent it is, and among unequal classes it
    ends far below a linear probe. One sentence for each class puts that right, and is what classification
    asks the model afterwards. Yang et al. 2022, "Unified Contrastive Learning in Image-Text-Label Space", §3, treat
    both kinds of data by one loss; here each keeps its own.

    Args:
        encoder: In training.
        prompts: Label to sentences, of which each step shows one, drawn anew by ``seed`` and step, the same in every
            process. With more than ``LARGEST`` classes those of the batch are shown, and others drawn at random up to
            that many.
        data: The training rows.
        weight: Times the cross-entropy.
        seed: Of the draws.
        device: Where the encoder is.
        autocast: Makes the context in which the text tower runs.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        prompts: Mapping[str, Sequence[str]],
        data: CLIPDataset,
        weight: float,
        seed: int,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.encoder, self.weight, self.seed = encoder, weight, seed
        self.device, self.autocast = device, autocast
        index_of = {label: index for index, label in enumerate(prompts)}
        self.of_rows = torch.tensor([index_of.get(pair.label or "", -1) for pair in data.pairs])
        tokens = encoder.processor.token_ids([text for texts in prompts.values() for text in texts], data.text_length)
        each = iter(tokens)
        self.tokens = [[list(next(each)) for _ in texts] for texts in prompts.values()]
        self.fixed_length = data.text_length if encoder.processor.text_padding == "fixed" else None
        if self.fixed_length is None and device.type == "mps":  # which keeps memory for each shape: one for all steps
            self.fixed_length = min(data.text_length, -(-max(len(ids) for ids in tokens) // 16) * 16)
        self.step = 0

    @property
    def sentences(self) -> int:
        """Sentences that go through the text tower in each step."""
        return min(len(self.tokens), LARGEST)

    def begin(self, step: int, rows: Tensor) -> Int[Tensor, " rows"]:
        """Make ready for a step.

        Args:
            step: From 0.
            rows: Its training rows ``[rows]``.

        Returns:
            Their classes ``[rows]``.
        """
        self.step = step
        return self.classes(rows)

    def classes(self, rows: Tensor) -> Int[Tensor, " rows"]:
        """Look up classes.

        Args:
            rows: Training rows ``[rows]``.

        Returns:
            The number of each row's class; −1 for one without.
        """
        return self.of_rows[rows.cpu()].to(self.device)

    def __call__(self, images: Float[Tensor, "n dim"], classes: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """The term of a batch.

        Args:
            images: Embeddings ``[n, dim]``, not normalised; of several views ``[n, views, dim]`` the first counts.
            classes: Of the rows ``[n]``.

        Returns:
            The mean over the rows that have a class, times the weight; 0 where none has.
        """
        shown, targets = self._shown(classes)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        draws = torch.rand(len(shown), generator=generator).tolist()
        ids = [
            self.tokens[number][int(draw * len(self.tokens[number]))] for number, draw in zip(shown, draws, strict=True)
        ]
        length = self.fixed_length or max(len(row) for row in ids)
        input_ids, mask = self.encoder.processor.pad(ids, length)
        with self.autocast():
            texts = self.encoder.encode_text(input_ids.to(self.device), mask.to(self.device))
        if images.ndim == 3:
            images = images[:, 0]
        unit = F.normalize(texts if texts.dtype == torch.float64 else texts.float(), dim=-1)
        logits = F.normalize(images, dim=-1) @ unit.T * self.encoder.logit_scale.exp().reshape(())
        total = F.cross_entropy(logits, targets, reduction="sum", ignore_index=-1)
        return self.weight * total / (targets >= 0).sum().clamp(min=1)

    def _shown(self, classes: Int[Tensor, " n"]) -> tuple[list[int], Int[Tensor, " n"]]:
        """The classes of this step, and the rows' classes as indices among them."""
        total = len(self.tokens)
        if total <= LARGEST:
            return list(range(total)), classes
        present = sorted(set(classes.tolist()) - {-1})[:LARGEST]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        others = [n for n in torch.randperm(total, generator=generator).tolist() if n not in set(present)]
        shown = present + others[: LARGEST - len(present)]
        index = torch.full((total + 1,), -1, device=self.device)  # the last entry is that of −1
        index[torch.tensor(shown, device=self.device)] = torch.arange(len(shown), device=self.device)
        return shown, index[classes]

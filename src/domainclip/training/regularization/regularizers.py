"""Terms that hold a training near the model it started from, so that less of what that one knew is lost."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from domainclip.data.batches import Batch
from domainclip.models.dual_encoder import DualEncoder


class L2SP:
    """½ λ ‖θ − θ₀‖² over the towers' trained weights (Xuhong et al. 2018, "Explicit Inductive Bias for Transfer
    Learning with Convolutional Networks", eq. 2).

    Unlike weight decay it pulls towards the weights the towers started with (those at the time it is made), not towards
    zero, and it is part of the gradient: the optimizer scales it as it does the loss's. The logit scale is no tower's
    weight, and a projection that was just created has no initial weights worth holding to: both are left free. A copy
    of the weights is held.

    Args:
        encoder: Whose weights are held.
        strength: λ, at least 0.
    """

    def __init__(self, encoder: DualEncoder, strength: float) -> None:
        self.strength = strength
        self.held: list[tuple[nn.Parameter, Tensor]] = [
            (parameter, parameter.detach().clone())
            for tower, name, parameter in encoder.named_tower_parameters()
            if tower != "scale" and parameter.requires_grad and not _is_new(encoder, name)
        ]

    @torch.no_grad()
    def add_gradient(self) -> Float[Tensor, ""]:
        """Add λ (θ − θ₀) to the gradients.

        Once a step, after all micro-batches (and all processes' shards, and a GradScaler's unscaling) and before the
        gradient is clipped: it depends on no row of the batch.

        Returns:
            The penalty itself, a single number in the loss's units.
        """
        total = torch.zeros((), device=self.held[0][0].device if self.held else None)
        for parameter, start in self.held:
            difference = parameter - start
            total = total + difference.square().sum()
            if parameter.grad is None:
                parameter.grad = difference.mul_(self.strength)
            else:
                parameter.grad.add_(difference, alpha=self.strength)
        return 0.5 * self.strength * total


def distillation_penalty(strength: float, *pairs: tuple[Tensor | None, Tensor | None]) -> Float[Tensor, ""]:
    """λ / 2 times the mean of 1 − cos, added up over the towers.

    All rows of a contrastive batch go in together: the mean is over them, so micro-batches and processes do not show.

    Args:
        strength: λ.
        pairs: Present and starting embeddings ``[rows, …, dim]`` of each tower. A pair without the latter counts as
            kept.

    Returns:
        A single number in [0, 2 λ].
    """
    terms = [
        1 - F.cosine_similarity(now, start, dim=-1).mean()
        for now, start in pairs
        if now is not None and start is not None
    ]
    return 0.5 * strength * torch.stack(terms).sum()


class FeatureDistillation:
    """λ / 2 times the mean over the batch's pairs of (1 − cos(f(x), f₀(x))) + (1 − cos(g(t), g₀(t))).

    f and g are the towers in training, f₀ and g₀ those of the initial model, which see the very same pixels and tokens.
    Keeping the old model's answers to the new data is Li & Hoiem's "Learning without Forgetting" (2017); here the
    answers are embeddings.

    Args:
        encode_image: The frozen image tower.
        encode_text: The frozen text tower.
        strength: λ.
        autocast: The training's: an embedding must not seem to have moved because it was rounded otherwise.
        learning: The towers that are trained. One that is not cannot leave its place, and is not asked.
    """

    def __init__(
        self,
        encode_image: Callable[..., Tensor],
        encode_text: Callable[..., Tensor],
        strength: float,
        autocast: Callable[[], AbstractContextManager[object]],
        learning: Collection[str] = ("image", "text"),
    ) -> None:
        self.encode_image, self.encode_text = encode_image, encode_text
        self.strength, self.autocast, self.learning = strength, autocast, frozenset(learning)

    @torch.no_grad()
    def initial_embeddings(self, batch: Batch, micro_batch: int) -> list[Tensor | None]:
        """The initial model's embeddings of the batch's images and of each row's caption, without a graph.

        Args:
            batch: As the training loader gives it.
            micro_batch: Rows at a time.

        Returns:
            ``[rows, …, dim]`` of images and of captions; None for a tower that does not learn, and where the batch has
            no image.
        """
        images = texts = None
        if batch["pixels"] is not None:
            if "image" in self.learning:
                images = self._run(self.encode_image, micro_batch, batch["pixels"])
            if "text" in self.learning:
                distinct = self._run(self.encode_text, micro_batch, batch["input_ids"], batch["attention_mask"])
                texts = distinct[batch["caption_index"]]
        return [images, texts]

    def penalty(self, *pairs: tuple[Tensor | None, Tensor | None]) -> Float[Tensor, ""]:
        """The term of a batch.

        Args:
            pairs: See ``distillation_penalty``.

        Returns:
            A single number in [0, 2 λ].
        """
        return distillation_penalty(self.strength, *pairs)

    def _run(self, encode: Callable[..., Tensor], micro_batch: int, *inputs: Tensor) -> Tensor:
        found: Tensor | None = None
        start = 0
        for part in zip(*(whole.split(micro_batch) for whole in inputs), strict=True):
            with self.autocast():
                embeds = encode(*part)
            embeds = embeds if embeds.dtype == torch.float64 else embeds.float()
            if found is None:  # in one piece beforehand, as the step itself does it, and for the same reason
                found = embeds.new_empty((len(inputs[0]), *embeds.shape[1:]))
            found[start : start + len(embeds)] = embeds
            start += len(embeds)
        assert found is not None
        return found


def _is_new(encoder: DualEncoder, name: str) -> bool:
    return encoder.fresh_projections and name.startswith(("visual_projection.", "text_projection."))

"""Rows from outside the domain, shown in every step so that their embeddings stay what they were."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from domainclip.models.dual_encoder import DualEncoder
from domainclip.models.projections import join_inputs, projection_inputs, tower_projection

BATCH_FRACTION = 0.25
"""Rehearsed rows of a step, as a fraction of its contrastive batch."""
_AT_ONCE = 64


class Rehearsal:
    """λ / 2 times the mean over rehearsed rows of (1 − cos(f(x), f₀(x))) + (1 − cos(g(t), g₀(t))).

    f and g are the towers, f₀ and g₀ the same towers when this is made. Showing rows of another task again while a new
    one is learned is rehearsal (Robins 1995, "Catastrophic forgetting, rehearsal and pseudorehearsal"); asking for the
    old model's answers, not for labels, makes it a distillation (Li & Hoiem 2017). Unlike keeping the *domain's*
    embeddings it does not hold back what is to be learned.

    Dropout is off and batch norm keeps its statistics while rows are rehearsed, so that every process finds the same
    gradient.

    Args:
        encoder: In training.
        pixels: uint8 ``[rows, 3, height, width]`` as the image processor leaves them, before ``normalise``.
        token_ids: Of each row's caption.
        normalise: Bytes to what the image tower reads.
        strength: λ.
        seed: Of the draws.
        device: Where the encoder is.
        autocast: Makes the context in which the towers run.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        pixels: UInt8[Tensor, "rows 3 height width"],
        token_ids: Sequence[Sequence[int]],
        normalise: Callable[[Tensor], Tensor],
        strength: float,
        seed: int,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.encoder, self.normalise, self.strength, self.seed = encoder, normalise, strength, seed
        self.device, self.autocast, self.pixels = device, autocast, pixels
        longest = max(len(ids) for ids in token_ids)
        length = (
            encoder.text_length
            if encoder.processor.text_padding == "fixed"
            else min(encoder.text_length, -(-longest // 16) * 16)
        )
        self.input_ids, self.mask = encoder.processor.pad([list(ids) for ids in token_ids], length)
        digest = hashlib.sha256(self.pixels.numpy().tobytes())
        digest.update(self.input_ids.numpy().tobytes())
        self.digest = digest.hexdigest()
        """By which a resumed run finds out that it rehearses the same rows."""
        with self._evaluating(), torch.no_grad():
            found = [self._embed(part) for part in torch.arange(len(pixels)).split(_AT_ONCE)]
        self.start = tuple(torch.cat(side).cpu() for side in zip(*found, strict=True))

    def __len__(self) -> int:
        return len(self.pixels)

    def rows_of(self, batch: int) -> int:
        """How many rows are rehearsed beside a contrastive batch.

        Args:
            batch: Its pairs.

        Returns:
            At least one.
        """
        return min(len(self), max(1, round(BATCH_FRACTION * batch)))

    def add_gradient(
        self, step: int, batch: int, micro_batch: int, scale: Callable[[Tensor], Tensor] = lambda loss: loss
    ) -> Float[Tensor, ""]:
        """Add the gradient of a draw that depends on seed and step alone.

        Args:
            step: From 0.
            batch: Pairs of the contrastive batch.
            micro_batch: Rows in a tower at once. Their mean does not depend on it.
            scale: Of a ``GradScaler``.

        Returns:
            The penalty, a single number in the loss's units.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        rows = torch.randperm(len(self), generator=generator)[: self.rows_of(batch)]
        total = torch.zeros((), device=self.device)
        with self._evaluating():
            for part in rows.split(max(1, micro_batch)):
                penalty = self._penalty(self._embed(part), part) * (len(part) / len(rows))
                if penalty.requires_grad:
                    scale(penalty).backward()
                total += penalty.detach()
        return total

    def of_projections(self) -> Callable[[], Float[Tensor, ""]]:
        """Read the towers once, now.

        Returns:
            The penalty over all rows as a function of the projections alone.
        """
        image, text = tower_projection(self.encoder, "image"), tower_projection(self.encoder, "text")
        images, texts = [], []
        with self._evaluating(), torch.no_grad(), self.autocast():
            for part in torch.arange(len(self)).split(_AT_ONCE):
                images.append(projection_inputs(image, self.encoder.encode_image, self._pixel_values(part)))
                texts.append(projection_inputs(text, self.encoder.encode_text, *self._tokens(part)))
        sides, rows = (join_inputs(images), join_inputs(texts)), torch.arange(len(self))
        return lambda: self._penalty((sides[0].embed(), sides[1].embed()), rows)

    def _pixel_values(self, rows: Tensor) -> Tensor:
        return self.normalise(self.pixels[rows].to(self.device)).to(self.encoder.dtype)

    def _tokens(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.input_ids[rows].to(self.device), self.mask[rows].to(self.device)

    def _embed(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        with self.autocast():
            return self.encoder.encode_image(self._pixel_values(rows)), self.encoder.encode_text(*self._tokens(rows))

    def _penalty(self, embeds: tuple[Tensor, Tensor], rows: Tensor) -> Float[Tensor, ""]:
        terms = [
            1 - F.cosine_similarity(now.float(), start[rows].to(now.device).float(), dim=-1).mean()
            for now, start in zip(embeds, self.start, strict=True)
        ]
        return 0.5 * self.strength * torch.stack(terms).sum()

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = self.encoder.training
        self.encoder.eval()
        try:
            yield
        finally:
            self.encoder.train(training)

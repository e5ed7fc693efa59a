"""What every contrastive objective shares: checks, temperature, float32, both directions, chunks for large batches.

An objective itself is a function of *rows*: the similarities of some queries to every candidate. An image's row ranks
all texts, a text's row ranks all images, and the loss is the mean of both directions. Since no row needs another
one, any number of them can be computed at a time, and a batch whose B × B matrix does not fit is computed in chunks of
rows, each forgotten after its forward pass and computed again in the backward pass (Chen et al. 2016, "Training Deep
Nets with Sublinear Memory Cost"): the same numbers, for about twice the arithmetic.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, ClassVar, Literal, Self, TypedDict

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from domainclip.config import LossSettings
from domainclip.errors import ConfigurationError, ShapeError
from domainclip.similarity import (
    BilinearSimilarity,
    Similarity,
    UnitSimilarity,
    check_embeddings,
    cosine,
    dot,
    make_similarity,
)

WHOLE_MATRIX = 4096
"""Up to this many pairs the matrix is held at once (64 MiB in float32)."""
CHUNK_ENTRIES = 2**23
"""Entries of the matrix held at once above it (32 MiB in float32, several times over within an objective)."""


@dataclass(frozen=True)
class Rows:
    """What an objective sees of ``c`` queries: images asking for texts, or texts asking for images."""

    direction: Literal["image_to_text", "text_to_image"]
    scores: Float[Tensor, "c B"]
    """Similarity of each query to each candidate."""
    logits: Float[Tensor, "c B"]
    """``scores`` divided by the temperature."""
    scale: Float[Tensor, ""]
    """One over the temperature."""
    positive: Bool[Tensor, "c B"]
    """Which candidates describe the query; its own pair always does."""
    index: Int[Tensor, " c"]
    """The queries' own numbers in the batch: ``scores[i, index[i]]`` is the similarity to its own pair."""
    images: Float[Tensor, "B D"]
    texts: Float[Tensor, "B D"]
    """All embeddings of the batch, at unit length and without gradient, for objectives that compare like with like."""
    progress: float
    """Fraction of the training done, in [0, 1]."""

    @property
    def candidates(self) -> Float[Tensor, "B D"]:
        return self.texts if self.direction == "image_to_text" else self.images

    def targets(self) -> Float[Tensor, "c B"]:
        """Each query's positives with equal probability: t_ij = [j positive of i] / #positives of i.

        Returns:
            ``[c, B]``; each row sums to 1.
        """
        same = self.positive.to(self.scores.dtype)
        return same / same.sum(dim=1, keepdim=True)

    def own_scores(self) -> Float[Tensor, "c 1"]:
        """Each query's similarity to its own pair.

        Returns:
            ``[c, 1]``, not divided by the temperature.
        """
        return self.scores.gather(1, self.index[:, None])


class SharedKeywords(TypedDict, total=False):
    """What every objective takes besides its own numbers and the temperature; see ``ContrastiveObjective``."""

    learnable_temp: bool
    similarity_metric: str | Similarity
    label_smoothing: float
    chunk_size: int | None


RowLoss = tuple[Tensor, dict[str, Tensor]]
"""The loss of each row ``[c]`` in nats, and sums over the rows of whatever else is worth telling."""


class ContrastiveObjective(nn.Module):
    """Base of the objectives; a subclass writes ``row_loss``.

    ``temperature``: fixed (default), learnable (``learnable_temp``: its logarithm is a parameter of the objective), or
    the model's: then the caller passes ``logit_scale`` = log(1/τ), and the objective's own is not used.
    ``similarity_metric``: a name of ``SIMILARITIES`` or a callable. ``label_smoothing``: fraction of the target
    spread over all candidates, where the objective is a cross-entropy. ``chunk_size``: rows of the matrix held at once;
    None holds all up to ``WHOLE_MATRIX`` pairs, and above that as many as keep it near 32 MiB.

    Computed in float32 (float64 stays): bf16 logits at scale 64 would step by 0.25.

    NaN comes out as NaN. A zero vector has a cosine of 0 to everything.

    Raises:
        ShapeError: In a call, for anything but two ``[B, D]`` tensors.
        ConfigurationError: The temperature is ≤ 0.
    """

    uses_groups = True
    """False: only a row's own pair is its positive, whatever ``group_ids`` say."""
    symmetric = False
    """True where both directions sum to the same, so that one of them is enough."""
    recipe_keys: ClassVar[dict[str, str]] = {}
    """Keywords of the constructor that the recipe knows by another name."""

    @classmethod
    def from_settings(cls, settings: LossSettings) -> Self:
        """The objective that a recipe asks for.

        Args:
            settings: The group of the recipe that is read.

        Returns:
            With the recipe's values for all keywords of the constructor that are keys of the recipe.
        """
        return cls(**cls.keywords_from(settings))

    @classmethod
    def keywords_from(cls, settings: LossSettings) -> dict[str, Any]:
        """The constructor's keywords as a recipe has them.

        Args:
            settings: The group of the recipe that is read.

        Returns:
            Values of all keywords that are keys of the recipe, by keyword.
        """
        parameters = inspect.signature(cls.__init__).parameters
        names = {*parameters, *(SharedKeywords.__annotations__ if "shared" in parameters else ())}
        keys = {name: cls.recipe_keys.get(name, name) for name in names}
        own = {name: getattr(settings, key) for name, key in keys.items() if hasattr(settings, key)}
        return own | shared_keywords(settings)

    def __init__(
        self,
        temperature: float = 0.07,
        learnable_temp: bool = False,
        similarity_metric: str | Similarity = "cosine",
        label_smoothing: float = 0.0,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        _check_temperature(temperature)
        if chunk_size is not None and chunk_size < 1:
            raise ConfigurationError(f"chunk_size must be at least 1 (chunk_size={chunk_size!r})")
        self.learnable_temp = learnable_temp
        self.similarity_metric = similarity_metric
        self.similarity = make_similarity(similarity_metric)
        self.label_smoothing = label_smoothing
        self.chunk_size = chunk_size
        log_scale = torch.tensor(math.log(1 / temperature))
        if learnable_temp:
            self.log_scale: Tensor = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    @property
    def temperature(self) -> Tensor:
        return (-self.log_scale).exp()

    @temperature.setter
    def temperature(self, value: float | Tensor) -> None:
        _check_temperature(value)
        value = float(value)
        with torch.no_grad():
            self.log_scale.fill_(math.log(1 / value))

    def extra_repr(self) -> str:
        """The settings, for ``repr``.

        Returns:
            Keyword and value of each argument of the constructor that differs from "left out".
        """
        own = inspect.signature(type(self).__init__).parameters
        names = [*own, *(name for name in inspect.signature(ContrastiveObjective.__init__).parameters)]
        shown = dict.fromkeys(name for name in names if name not in ("self", "shared"))
        return ", ".join(f"{name}={_plain(getattr(self, name))}" for name in shown if hasattr(self, name))

    def row_loss(self, rows: Rows) -> RowLoss:
        """The loss of some rows: what a subclass says.

        Args:
            rows: Similarities of some rows with all candidates, and which of these are positives.

        Returns:
            A loss for each row, and extras by name.

        Raises:
            NotImplementedError: In the base class.
        """
        raise NotImplementedError

    def own_scale(self) -> Tensor:
        """One over the temperature, where the caller does not own it.

        Returns:
            The inverse of the temperature.
        """
        return self.log_scale.exp()

    def forward(
        self,
        image_embeds: Float[Tensor, "batch dim"],
        text_embeds: Float[Tensor, "batch dim"],
        group_ids: Int[Tensor, " batch"] | None = None,
        logit_scale: Float[Tensor, ""] | None = None,
        progress: float = 1.0,
    ) -> dict[str, Tensor]:
        """``loss``, ``image_to_text_loss``, ``text_to_image_loss`` (scalars, in nats), ``temperature`` (scalar), the
        objective's own extras, and, where the matrix was held whole, ``logits_per_image`` ``[B, B]`` and its transpose
        ``logits_per_text``. Rows of equal ``group_ids`` describe the same thing.

        Args:
            image_embeds: ``[batch, dim]``, as the image tower gives them.
            text_embeds: ``[batch, dim]``, as the text tower gives them; row i belongs to image i.
            group_ids: ``[batch]``; rows of one group are positives of each other. None: each row is a group of its own.
            logit_scale: The model's logarithm of the inverse temperature, which takes the place of the objective's own.
            progress: How much of the training is done, from 0 to 1.

        Returns:
            ``loss``, ``image_to_text_loss``, ``text_to_image_loss``, ``temperature``, and what ``finish`` adds.
        """
        return self.contrast(image_embeds, text_embeds, group_ids, logit_scale, progress)

    def contrast(
        self,
        image_embeds: Tensor,
        text_embeds: Tensor,
        group_ids: Tensor | None,
        logit_scale: Tensor | None,
        progress: float,
        row_loss: Callable[[Rows], RowLoss] | None = None,
    ) -> dict[str, Tensor]:
        """Both directions of the objective over a batch, in float32 (float64 stays), a chunk of rows at a time.

        Args:
            image_embeds: ``[batch, dim]``, as the image tower gives them.
            text_embeds: ``[batch, dim]``; row i belongs to image i.
            group_ids: ``[batch]``; rows of one group are positives of each other. None: each row is a group of its own.
            logit_scale: The model's log(1/τ), which takes the place of the objective's own; None for that one.
            progress: How much of the training is done, from 0 to 1.
            row_loss: In place of the objective's own.

        Returns:
            ``loss``, ``image_to_text_loss``, ``text_to_image_loss``, ``temperature``, the objective's extras, and where
            the matrix is held at once ``logits_per_image`` and ``logits_per_text``.

        Raises:
            ShapeError: The embeddings are not ``[B, D]`` alike, or the ids not ``[B]``.
        """
        row_loss = row_loss or self.row_loss
        size = check_batch(image_embeds, text_embeds, group_ids)
        device = image_embeds.device
        wide = torch.float64 if image_embeds.dtype == torch.float64 else torch.float32
        # Widened before exp, and brought to a scalar: a model in bf16 holds it coarsely, SigLIP's has shape [1].
        scale = (self.own_scale().to(wide) if logit_scale is None else logit_scale.to(wide).exp()).reshape(())
        with torch.autocast(device.type, enabled=False):
            images, texts = image_embeds.to(wide), text_embeds.to(wide)
            similarity = self.similarity
            if isinstance(similarity, BilinearSimilarity):
                texts, similarity = similarity.map_texts(texts), cosine
            if similarity is cosine:  # normalised once, not once a chunk
                images, texts, similarity = F.normalize(images, dim=-1), F.normalize(texts, dim=-1), dot
            unit_images, unit_texts = (F.normalize(side.detach(), dim=-1) for side in (images, texts))
            groups = group_ids if group_ids is not None and self.uses_groups else torch.arange(size, device=device)

            def rows_of(direction: Literal["image_to_text", "text_to_image"], index: Tensor, scores: Tensor) -> Rows:
                positive = groups[index][:, None] == groups[None, :]
                return Rows(
                    direction, scores, scores * scale, scale, positive, index, unit_images, unit_texts, progress
                )

            def image_rows(part: Tensor, index: Tensor) -> RowLoss:
                return row_loss(rows_of("image_to_text", index, similarity(part, texts)))

            def text_rows(part: Tensor, index: Tensor) -> RowLoss:
                return row_loss(rows_of("text_to_image", index, similarity(images, part).T))

            everyone = torch.arange(size, device=device)
            chunk = self._chunk(size)
            logits: dict[str, Tensor] = {}
            if chunk >= size:
                whole = rows_of("image_to_text", everyone, similarity(images, texts))
                logits = {"logits_per_image": whole.logits, "logits_per_text": whole.logits.T}
                parts = [[row_loss(whole)]]
                if not self.symmetric:
                    sides = {name: getattr(whole, name).T for name in ("scores", "logits", "positive")}
                    parts.append([row_loss(replace(whole, direction="text_to_image", **sides))])
            else:
                directions = [(image_rows, images), (text_rows, texts)][: 1 if self.symmetric else 2]
                parts = [
                    [
                        checkpoint(rows, part, index, use_reentrant=False, preserve_rng_state=False)
                        for part, index in zip(side.split(chunk), everyone.split(chunk), strict=True)
                    ]
                    for rows, side in directions
                ]
        means = [torch.cat([loss for loss, _ in direction]).mean() for direction in parts]
        image_to_text, text_to_image = means[0], means[-1]
        extras = {
            name: torch.stack([part[1][name] for direction in parts for part in direction]).sum(0) / (size * len(parts))
            for name in parts[0][0][1]
        }
        return {
            "loss": (image_to_text + text_to_image) / 2,
            "image_to_text_loss": image_to_text,
            "text_to_image_loss": text_to_image,
            "temperature": 1 / scale,
            **logits,
            **self.finish(extras, size * len(parts)),
        }

    def finish(self, extras: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
        """The extras as they are handed out, from their means over all ``rows`` of both directions.

        Args:
            extras: Means over all rows of what ``row_loss`` gave besides the loss.
            rows: Their number, in both directions together.

        Returns:
            What the objective gives beside the loss.
        """
        return extras

    def _chunk(self, size: int) -> int:
        if self.chunk_size is not None:
            return self.chunk_size
        return size if size <= WHOLE_MATRIX else max(1, CHUNK_ENTRIES // size)


def _check_temperature(value: object) -> None:
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, bool) or not isinstance(number, Real) or not 0 < float(number) < math.inf:
        raise ConfigurationError(f"Temperature must be positive, and a number (temperature={value!r})")


def _plain(value: object) -> str:
    if isinstance(value, Tensor):
        numbers = [f"{number:.4f}" for number in value.detach().flatten().tolist()]
        return numbers[0] if value.ndim == 0 else f"[{', '.join(numbers)}]"
    return repr(value)


def shared_keywords(settings: LossSettings) -> dict:
    """What every objective takes from a recipe.

    Args:
        settings: The recipe's loss settings.

    Returns:
        For the constructor of an objective.
    """
    metric: str | Similarity = settings.similarity_metric
    if metric in ("cosine", "dot"):
        metric = "cosine" if settings.normalize_embeddings else "dot"
    elif settings.normalize_embeddings and metric != "bilinear":  # which normalises by itself
        metric = UnitSimilarity(make_similarity(metric))
    return {
        "temperature": settings.temperature,
        "learnable_temp": settings.learnable_temp,
        "similarity_metric": metric,
        "chunk_size": settings.loss_chunk_size,
    }


def check_batch(image_embeds: Tensor, text_embeds: Tensor, group_ids: Tensor | None, name: str = "group_ids") -> int:
    """The number of pairs.

    Args:
        image_embeds: ``[batch, dim]``, as the image tower gives them.
        text_embeds: ``[batch, dim]``, as the text tower gives them; row i belongs to image i.
        group_ids: ``[batch]``; rows of one group are positives of each other. None: each row is a group of its own.
        name: What the ids are called in a message.

    Returns:
        The number of pairs.

    Raises:
        ShapeError: Unless the embeddings are ``[B, D]`` and the ids ``[B]``.
    """
    check_embeddings(image_embeds, text_embeds)
    size = image_embeds.shape[0]
    if size != text_embeds.shape[0]:
        raise ShapeError(f"Batch size mismatch: {size} image and {text_embeds.shape[0]} text embeddings")
    if image_embeds.device != text_embeds.device:
        raise ShapeError(
            f"The image embeddings are on {image_embeds.device} and the text embeddings on {text_embeds.device}: bring "
            "both to one device"
        )
    if size == 0:
        raise ShapeError("Expected 2D embeddings [n, dim] with n >= 1, got none")
    if group_ids is not None and group_ids.shape != (size,):
        raise ShapeError(f"Batch size mismatch: {name} has shape {tuple(group_ids.shape)}, expected ({size},)")
    return size

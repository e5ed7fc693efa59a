"""How much memory a training step will need, from what its passes of a few pairs hold, and how much there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from domainclip.devices.memory import GB, read_memory
from domainclip.errors import MemoryConstraintError
from domainclip.losses.objective import CHUNK_ENTRIES, WHOLE_MATRIX
from domainclip.models.dual_encoder import DualEncoder
from domainclip.training.distributed import local_world_size
from domainclip.training.memory.monitor import held_bytes
from domainclip.training.memory.trace import Autocast, TowerMemory, trace_tower
from domainclip.training.optim.choice import optimizer_state_bytes

MEMORY_FRACTION = 0.8
"""Of what is available when the run starts, where the recipe does not say: other programs need some as well."""

MARGIN = 1.15
"""A step is counted tensor by tensor; kernels' own buffers and gaps between tensors come on top. A step fits where it
does with this margin."""

GAPS = 1.35
"""The same where the C allocator keeps freed memory (``devices.optimization``), which is faster and leaves gaps: a run
that does not fit with this on top has the allocator give memory back."""

EFFICIENT_MICRO_BATCH = {"cpu": 16, "mps": 32, "cuda": 64}
"""Rows that keep a device busy. Where not all rows fit at once, small micro-batches that keep their graph are worth
more than large ones that are all replayed."""

SMALLEST_EFFICIENT = 8
"""Below, a micro-batch no longer fills a device, and tricks that allow larger ones pay for themselves."""

LOSS_MATRICES = 10
"""Matrices of similarities (float32) that the objectives hold at their peak, in the backward pass."""


def loss_bytes(batch: int, chunk_size: int | None = None) -> int:
    """Bytes that the objective holds at most for ``batch`` pairs.

    Args:
        batch: Pairs of the contrastive batch.
        chunk_size: The recipe's ``loss_chunk_size``: rows of the similarity matrix held at once; None: chosen.

    Returns:
        Bytes.
    """
    rows = chunk_size or (batch if batch <= WHOLE_MATRIX else max(1, CHUNK_ENTRIES // batch))
    return LOSS_MATRICES * min(rows, batch) * batch * 4


def largest_micro_batch(peak: Callable[[int], float], budget_bytes: float, batch: int) -> int:
    """The whole ``batch`` if its ``peak`` is within the budget, else the largest power of two below it that is.

    Args:
        peak: Bytes that a micro-batch of that size needs.
        budget_bytes: Bytes that may be held.
        batch: Pairs of the contrastive batch.

    Returns:
        Pairs.

    Raises:
        MemoryConstraintError: Where not even one pair is.
    """
    sizes = [batch, *(1 << bits for bits in reversed(range((batch - 1).bit_length())))]
    for size in sizes:
        if peak(size) <= budget_bytes:
            return size
    raise MemoryConstraintError(
        f"A single pair needs {peak(1) / 2**30:.2f} GB of memory beside a batch of {batch}, {budget_bytes / 2**30:.2f} "
        "GB are allowed: set lora_r=8 or optimizer=adafactor, lower image_resolution, or choose a smaller model"
    )


@dataclass(frozen=True)
class MemoryBudget:
    """What a run may hold, in bytes, as read at one moment.

    Args:
        held: By this process.
        available: Beside it, to this process.
        fraction: Of what is available, that the run may take.
    """

    held: int
    available: int
    fraction: float

    @property
    def allowed(self) -> int:
        """What the process holds now, and its fraction of what is available."""
        return self.held + int(self.fraction * self.available)

    @property
    def ceiling(self) -> int:
        """All there is."""
        return self.held + self.available

    def overhead(self, encoder: nn.Module) -> int:
        """What the process holds beside the encoder's weights.

        Args:
            encoder: Whose weights are in the process.

        Returns:
            Bytes.
        """
        return max(0, self.held - sum(tensor.nbytes for tensor in [*encoder.parameters(), *encoder.buffers()]))

    @classmethod
    def now(cls, device: torch.device, fraction: float | None) -> MemoryBudget:
        """Read it.

        Args:
            device: Where the run trains.
            fraction: The recipe's ``memory_fraction``; None: ``MEMORY_FRACTION``.

        Returns:
            The readings.
        """
        available = int(float(read_memory(device)["available_gb"] or 0) * GB)
        if device.type != "cuda":  # where each process has a GPU of its own
            available //= local_world_size()
        return cls(held_bytes(device), available, fraction or MEMORY_FRACTION)


class CountedSettings(Protocol):
    """The keys that the memory beside the towers depends on."""

    @property
    def optimizer(self) -> str: ...

    @property
    def ema_fraction(self) -> float: ...


@dataclass(frozen=True)
class StepMemory:
    """Peak memory of a training step from sizes and operations alone, in bytes.

    ``weights``: parameters and buffers. ``optimizer_state``: as ``optimizer_state_bytes``. ``image``, ``text``: what
    the towers hold. ``scalar_gradients``: of parameters outside the towers. ``input_per_pair``: image and tokens as
    the batch brings them. ``embedding_dim`` of the shared space. ``overhead``: what the process holds anyway (Python,
    libraries; none on CUDA, where the program is not in the card's memory). ``averages``: the mean of the weights.
    ``sentences``: class prompts that go through the text tower with the loss.
    """

    weights: int
    optimizer_state: int
    image: TowerMemory
    text: TowerMemory
    scalar_gradients: int
    input_per_pair: int
    embedding_dim: int
    overhead: int = 0
    averages: int = 0
    sentences: int = 0

    @classmethod
    def of(
        cls,
        encoder: DualEncoder,
        settings: CountedSettings,
        image: TowerMemory,
        text: TowerMemory,
        *,
        input_per_pair: int,
        overhead: int,
        loss: nn.Module | None = None,
        sentences: int = 0,
    ) -> StepMemory:
        """Of an encoder whose towers were traced.

        Args:
            encoder: As it is trained: locked, with its adapters.
            settings: ``optimizer`` and ``ema_fraction`` are read.
            image: What its image tower holds.
            text: What its text tower holds.
            input_per_pair: As the attribute.
            overhead: As the attribute.
            loss: The objective, where it has parameters that are trained.
            sentences: As the attribute.

        Returns:
            In bytes.
        """
        parameters, buffers = list(encoder.parameters()), list(encoder.buffers())
        trained = [p for p in parameters if p.requires_grad]
        averages = [*trained, *(buffer for buffer in buffers if buffer.is_floating_point())]
        learned = trained if loss is None else [*trained, *(p for p in loss.parameters() if p.requires_grad)]
        outside = (p for tower, _, p in encoder.named_tower_parameters() if tower == "scale" and p.requires_grad)
        return cls(
            weights=sum(tensor.nbytes for tensor in [*parameters, *buffers]),
            optimizer_state=optimizer_state_bytes(settings.optimizer, learned),
            image=image,
            text=text,
            scalar_gradients=sum(p.nbytes for p in outside),
            input_per_pair=input_per_pair,
            embedding_dim=encoder.embedding_dim,
            overhead=overhead,
            averages=sum(tensor.nbytes for tensor in averages) if settings.ema_fraction > 0 else 0,
            sentences=sentences,
        )

    @property
    def gradients(self) -> int:
        return self.image.gradients + self.text.gradients + self.scalar_gradients

    @property
    def state(self) -> int:
        """Weights, gradients and optimizer state together: what is held whatever the batch."""
        return self.weights + self.gradients + self.optimizer_state + self.averages

    def peak(self, micro_batch: int, batch: int) -> int:
        """Bytes that a step over ``batch`` pairs holds at most, ``micro_batch`` of them in a tower at once.

        One pass (``micro_batch`` ≥ ``batch``) keeps both towers' activations until the backward pass, in which the text
        tower, run last, comes first. GradCache holds one tower's micro-batch at a time, beside complete gradients.

        Args:
            micro_batch: Pairs that go through a tower at once.
            batch: Pairs of the contrastive batch.

        Returns:
            Bytes, without a margin.
        """
        inputs, loss = batch * self.input_per_pair, loss_bytes(batch)
        prompts = self.text.first.at(self.sentences) if self.sentences else 0
        embeddings = 2 * batch * self.embedding_dim * 4
        always = self.overhead + self.weights + self.optimizer_state + self.averages + inputs + embeddings
        if micro_batch >= batch:
            image_saved = self.image.saved.at(batch)
            return always + max(
                image_saved + self.text.first.at(batch),
                image_saved + self.text.saved.at(batch) + max(loss, prompts),
                self.text.gradients + self.image.first.at(batch),
                self.gradients,
            )
        # Embeddings of the first pass, the leaves put together for the loss, and their gradients.
        replay = self.gradients + max(self.image.again.at(micro_batch), self.text.again.at(micro_batch))
        return always + 2 * embeddings + max(replay, loss, prompts)

    def needed(self, micro_batch: int, batch: int) -> int:
        """``peak`` with ``MARGIN`` on top: what must be there.

        Args:
            micro_batch: Pairs that go through a tower at once.
            batch: Pairs of the contrastive batch.

        Returns:
            Bytes.
        """
        return int(self.peak(micro_batch, batch) * MARGIN)

    def largest_micro_batch(self, budget_bytes: float, batch: int) -> int:
        """As the function of that name, of what is ``needed``; 0 where not even one pair fits.

        Args:
            budget_bytes: Bytes that may be held.
            batch: Pairs of the contrastive batch.

        Returns:
            Pairs.
        """
        try:
            return largest_micro_batch(lambda micro_batch: self.needed(micro_batch, batch), budget_bytes, batch)
        except MemoryConstraintError:
            return 0


def trace_towers(
    encoder: DualEncoder,
    images: Callable[[int], Tensor],
    texts: Callable[[int], Tensor],
    autocast: Autocast,
    known_text: TowerMemory | None = None,
) -> tuple[TowerMemory, TowerMemory]:
    """What both towers hold, as ``trace_tower`` counts it.

    Args:
        encoder: As it is trained.
        images: Embeds so many images.
        texts: Embeds so many texts.
        autocast: Makes the context that both run in.
        known_text: The text tower, where it has been traced already.

    Returns:
        Of the image tower and of the text tower.

    Raises:
        MemoryConstraintError: For a model whose memory cannot be predicted.
    """
    outside = [p for tower, _, p in encoder.named_tower_parameters() if tower == "scale"]
    image = trace_tower(encoder.tower_modules("image"), images, autocast, outside)
    return image, known_text or trace_tower(encoder.tower_modules("text"), texts, autocast, outside)

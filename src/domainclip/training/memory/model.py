"""How much memory a training step will need, from what its passes of a few pairs hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from domainclip.errors import MemoryConstraintError
from domainclip.losses.objective import CHUNK_ENTRIES, WHOLE_MATRIX
from domainclip.training.memory.trace import TowerMemory

LOSS_MATRICES = 10
"""Matrices of similarities (float32) that the objectives hold at their peak, in the backward pass."""


def loss_bytes(batch: int, chunk_size: int | None = None) -> int:
    """Bytes that the objective holds at most for ``batch`` pairs; ``chunk_size``: the recipe's ``loss_chunk_size``."""
    rows = chunk_size or (batch if batch <= WHOLE_MATRIX else max(1, CHUNK_ENTRIES // batch))
    return LOSS_MATRICES * min(rows, batch) * batch * 4


def largest_micro_batch(peak: Callable[[int], float], budget_bytes: float, batch: int) -> int:
    """The whole ``batch`` if its ``peak`` is within the budget, else the largest power of two below it that is.

    Raises ``MemoryConstraintError`` where not even one pair is.
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

    def largest_micro_batch(self, budget_bytes: float, batch: int) -> int:
        """See ``largest_micro_batch``; the peak of one pass over all may be below that of a micro-batch, and is tried
        first."""
        return largest_micro_batch(lambda micro_batch: self.peak(micro_batch, batch), budget_bytes, batch)

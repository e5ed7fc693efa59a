"""How much memory a training step will need: counted beforehand, or fitted to a few steps that ran."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from domainclip.errors import ConfigurationError, MemoryConstraintError
from domainclip.losses.objective import CHUNK_ENTRIES, WHOLE_MATRIX
from domainclip.training.memory_trace import TowerMemory

LOSS_MATRICES = 10
"""Matrices of similarities (float32) that the objectives hold at their peak, in the backward pass."""


def loss_bytes(batch: int, chunk_size: int | None = None) -> int:
    """Bytes that the objective holds at most for ``batch`` pairs; ``chunk_size``: the recipe's ``loss_chunk_size``."""
    rows = chunk_size or (batch if batch <= WHOLE_MATRIX else max(1, CHUNK_ENTRIES // batch))
    return LOSS_MATRICES * min(rows, batch) * batch * 4


def largest_chunk(peak: Callable[[int], float], budget_bytes: float, batch: int) -> int:
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
    the towers hold. ``scalar_gradients``: of parameters outside the towers. ``input_per_pair``: picture and tokens as
    the batch brings them. ``embedding_dim`` of the shared space. ``overhead``: what the process holds anyway (Python,
    libraries; none on CUDA, where the program is not in the card's memory).
    """

    weights: int
    optimizer_state: int
    image: TowerMemory
    text: TowerMemory
    scalar_gradients: int
    input_per_pair: int
    embedding_dim: int
    overhead: int = 0

    @property
    def gradients(self) -> int:
        return self.image.gradients + self.text.gradients + self.scalar_gradients

    @property
    def state(self) -> int:
        """Weights, gradients and optimizer state together: what is held whatever the batch."""
        return self.weights + self.gradients + self.optimizer_state

    def peak(self, chunk: int, batch: int) -> int:
        """Bytes that a step over ``batch`` pairs holds at most, ``chunk`` of them in a tower at once.

        One pass (``chunk`` ≥ ``batch``) keeps both towers' activations until the backward pass, in which the text
        tower, run last, comes first. GradCache holds one tower's chunk at a time, beside complete gradients.
        """
        inputs, loss = batch * self.input_per_pair, loss_bytes(batch)
        embeddings = 2 * batch * self.embedding_dim * 4
        always = self.overhead + self.weights + self.optimizer_state + inputs + embeddings
        if chunk >= batch:
            image_saved = self.image.saved.at(batch)
            return always + max(
                image_saved + self.text.first.at(batch),
                image_saved + self.text.saved.at(batch) + loss,
                self.text.gradients + self.image.first.at(batch),
                self.gradients,
            )
        # Embeddings of the first pass, the leaves put together for the loss, and their gradients.
        replay = self.gradients + max(self.image.again.at(chunk), self.text.again.at(chunk))
        return always + 2 * embeddings + max(replay, loss)

    def largest_chunk(self, budget_bytes: float, batch: int) -> int:
        """See ``largest_chunk``; the peak of one pass over all may be below that of a chunk, and is tried first."""
        return largest_chunk(lambda chunk: self.peak(chunk, batch), budget_bytes, batch)


@dataclass(frozen=True)
class Probe:
    """A step that ran: ``peak_bytes`` held with ``chunk`` of ``batch`` pairs in a tower at once."""

    chunk: int
    batch: int
    peak_bytes: int


@dataclass(frozen=True)
class PeakModel:
    """Peak memory as a straight line: ``fixed + per_chunk · chunk + per_pair · batch + loss_bytes(batch)``.

    ``uncertainty``: the root of the mean squared residual of the probes, in bytes, with the fitted numbers taken off
    the count; None where there were no more probes than numbers to fit, so that nothing is left to judge it by.
    """

    fixed: float
    per_chunk: float
    per_pair: float
    uncertainty: float | None
    probes: tuple[Probe, ...]

    @classmethod
    def fit(cls, probes: Sequence[Probe], per_pair: float = 0.0) -> PeakModel:
        """Least squares over probes with ``chunk`` < ``batch`` (GradCache), each after a first step: before that there
        are no gradients and no optimizer state, and without chunks both towers are held at once.

        ``per_pair`` (bytes of inputs and embeddings) is taken as given where all probes have one batch size or there
        are only two of them; otherwise it is fitted too.

        Raises ``ConfigurationError`` for probes that cannot tell: fewer than two chunks, one not below its batch, or
        peaks that do not grow with the chunk.
        """
        if len({probe.chunk for probe in probes}) < 2:
            raise ConfigurationError(
                f"Memory cannot be fitted to {len(probes)} probe(s) with one chunk size: run steps with two or more"
            )
        for probe in probes:
            if not 0 < probe.chunk < probe.batch:
                raise ConfigurationError(
                    f"A memory probe needs 0 < chunk < batch (chunk={probe.chunk}, batch={probe.batch})"
                )
        peaks = np.array([probe.peak_bytes - loss_bytes(probe.batch) for probe in probes], dtype=np.float64)
        chunks = np.array([probe.chunk for probe in probes], dtype=np.float64)
        batches = np.array([probe.batch for probe in probes], dtype=np.float64)
        columns = [np.ones(len(probes)), chunks]
        with_batch = np.stack([*columns, batches], axis=1)
        if len(probes) >= 3 and np.linalg.matrix_rank(with_batch) == 3:
            matrix, target = with_batch, peaks
        else:
            matrix, target = np.stack(columns, axis=1), peaks - per_pair * batches
        found = np.linalg.lstsq(matrix, target, rcond=None)[0]
        if not found[1] > 0:
            raise ConfigurationError(
                f"The probes' peaks do not grow with the chunk ({found[1] / 2**20:.2f} MiB a pair): take larger chunks"
            )
        spare = len(probes) - matrix.shape[1]
        residual = target - matrix @ found
        uncertainty = float(np.sqrt(residual @ residual / spare)) if spare else None
        slope = float(found[2]) if matrix.shape[1] == 3 else float(per_pair)
        return cls(float(found[0]), float(found[1]), slope, uncertainty, tuple(probes))

    def peak(self, chunk: int, batch: int) -> int:
        """Bytes that a step with ``chunk`` < ``batch`` holds at most."""
        return int(self.fixed + self.per_chunk * chunk + self.per_pair * batch + loss_bytes(batch))

    def largest_chunk(self, budget_bytes: float, batch: int) -> int:
        """The largest power of two below ``batch`` (or one pair) whose peak, with twice the uncertainty, is within the
        budget. Raises ``MemoryConstraintError`` where none is. One pass over the whole batch is not foretold."""
        margin = 2 * (self.uncertainty or 0.0)
        most = max(1, 1 << ((batch - 1).bit_length() - 1) if batch > 1 else 1)
        return largest_chunk(lambda chunk: self.peak(chunk, batch) + margin, budget_bytes, most)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

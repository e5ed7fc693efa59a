"""A run's memory: what a step is going to hold, the micro-batch that fits, and what was held in the end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from domainclip.config import MemorySettings, OptimizerSettings
from domainclip.devices.memory import GB
from domainclip.devices.optimization import spare_memory
from domainclip.devices.out_of_memory import release_memory
from domainclip.errors import MemoryConstraintError
from domainclip.files import write_json
from domainclip.models.batch_norm import has_live_batch_norm
from domainclip.models.checkpoint_blocks import checkpoint_blocks
from domainclip.models.dual_encoder import DualEncoder
from domainclip.training.memory.model import EFFICIENT_MICRO_BATCH, GAPS, MARGIN, MemoryBudget, StepMemory, trace_towers
from domainclip.training.memory.monitor import MemoryMonitor
from domainclip.training.memory.trace import SIZES
from domainclip.training.step.adaptive_step import BeforeStep
from domainclip.training.step.gradcache import ContrastiveStep

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryForecast:
    """``micro_batch`` None: the batch goes through whole. Bytes are of the whole process on CPU and MPS, of torch's
    allocator on CUDA; ``predicted_bytes`` with ``MARGIN`` on top are within the budget, where anything is.
    ``frozen_batch_norm`` and ``checkpointed``: what had to be changed so that a micro-batch fits.
    """

    batch: int
    micro_batch: int | None
    kept_micro_batches: int
    budget_bytes: int
    predicted_bytes: int
    reason: str
    frozen_batch_norm: bool = False
    checkpointed: bool = False
    spared: bool = False  # the C allocator gives memory back, at the price of some time


class RunMemory:
    """Fits ``step``'s micro-batch to the memory before the first step, watches what is held, writes ``memory.json``.

    ``largest_resolution``: the largest image that the run will show, in pixels; the step is counted at it.
    ``may_freeze``: batch norm may be frozen where the batch has to go in micro-batches. ``cache_bytes``: what the cache
    of decoded images will still take.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        loss: nn.Module,
        step: ContrastiveStep,
        settings: MemorySettings,
        optim: OptimizerSettings,
        folder: Path,
        largest_resolution: int,
        may_freeze: bool = False,
        cache_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        self.encoder, self.loss, self.step, self.settings, self.optim = encoder, loss, step, settings, optim
        self.path = folder / "memory.json"
        self.largest_resolution, self.may_freeze, self.cache_bytes = largest_resolution, may_freeze, cache_bytes
        self.monitor = MemoryMonitor(step.device)
        self.forecast: MemoryForecast | None = None
        self.changes: list[dict[str, Any]] = []

    # --- before the first step ---

    def fit(self, batch: dict[str, Any], size: int | None = None) -> MemoryForecast | None:
        """Count a step of ``size`` pairs (the run's largest; default: those of ``batch``) on a few pairs of ``batch``
        and set the micro-batch. Everything is left as it was but for the micro-batch and what the forecast names. None
        where the batch is too small for it, or its memory cannot be predicted.

        Args:
            batch: As the step takes it.
            size: Pairs of the run's largest batch.

        Returns:
            What was decided.

        Raises:
            MemoryConstraintError: Where the step needs more than there is.
        """
        size = size or len(batch["pixels"])
        if len(batch["pixels"]) < SIZES[-1] or len(batch["input_ids"]) < 1:
            return None
        there = MemoryBudget.now(self.step.device, self.settings.memory_fraction)
        try:
            memory = self._count(batch)
        except MemoryConstraintError as error:
            log.warning("%s", error)
            return None
        forecast = self._choose(memory, size, there.allowed, there.ceiling, batch)
        if forecast.predicted_bytes * GAPS > there.allowed:
            forecast = replace(forecast, spared=spare_memory(self.step.device))
        self.forecast = forecast
        self.step.micro_batch, self.step.kept_micro_batches = forecast.micro_batch, forecast.kept_micro_batches
        return forecast

    def load_state_dict(self, forecast: dict[str, Any]) -> None:
        """The forecast of the run that is resumed, and what it had changed.

        Args:
            forecast: What ``state_dict`` gave.
        """
        self.forecast = MemoryForecast(**forecast)
        if self.forecast.frozen_batch_norm:
            self._freeze_batch_norm()
        if self.forecast.checkpointed:
            checkpoint_blocks(self.encoder.model, True)
        if self.forecast.spared:
            spare_memory(self.step.device)

    def _choose(
        self, memory: StepMemory, size: int, budget: int, ceiling: int, batch: dict[str, Any]
    ) -> MemoryForecast:
        asked = self.step.micro_batch_of(size)
        peak = memory.peak(size, size)
        whole = memory.needed(size, size)
        if asked == size and whole <= budget:
            return MemoryForecast(size, None, 0, budget, peak, f"all {size} pairs at once: {_of(whole, budget)}")
        frozen = checkpointed = False
        if has_live_batch_norm(self.encoder):
            # Frozen, it learns another thing: only where there is no other way.
            if whole <= ceiling:
                reason = f"batch norm takes its statistics from the batch, so no micro-batches: {_of(whole, ceiling)}"
                return MemoryForecast(size, None, 0, budget, peak, reason)
            if not self.may_freeze:
                raise MemoryConstraintError(
                    f"A batch of {size} pairs needs {_of(whole, ceiling)}, and cannot go in micro-batches while "
                    f"batch norm "
                    "takes its statistics from the batch: set freeze_batch_norm=true, which allows micro-batches, or a "
                    "smaller batch_size"
                )
            self._freeze_batch_norm()
            frozen, memory = True, self._count(batch)
        fits = memory.largest_micro_batch(budget, size)
        if not fits and self.settings.gradient_checkpointing is None:
            checkpointed = len(checkpoint_blocks(self.encoder.model, True)) < 2
            memory = self._count(batch)
            fits = memory.largest_micro_batch(budget, size)
        if not fits:
            least = memory.needed(1, size)
            if least > ceiling:
                raise MemoryConstraintError(
                    f"Even one pair at a time, of a batch of {size}, needs {_of(least, ceiling)}: set lora_r=8, "
                    "optimizer=adafactor, gradient_checkpointing=true, a smaller image_resolution or a smaller model; "
                    "or close other programs"
                )
        micro_batch = min(asked, fits or 1)
        if asked == size and self.step.device.type in EFFICIENT_MICRO_BATCH:
            micro_batch = min(micro_batch, EFFICIENT_MICRO_BATCH[self.step.device.type])
        kept = 0
        if self._may_keep and micro_batch < size:
            room = budget / MARGIN - memory.peak(micro_batch, size)
            kept = max(0, int(room // max(1, memory.image.saved.at(micro_batch), memory.text.saved.at(micro_batch))))
            kept = min(kept, 2 * -(-size // micro_batch))
        peak = memory.peak(micro_batch, size) + kept * memory.image.saved.at(micro_batch)
        parts = [
            f"{size} pairs in micro-batches of {micro_batch}: {_of(int(peak * MARGIN), budget)}, "
            f"all at once {whole / GB:.1f} GB"
        ]
        parts += [f"{kept} passes keep their graph and are not repeated"] if kept else []
        parts += ["batch norm is frozen, since a micro-batch's statistics are not the batch's"] if frozen else []
        parts += ["blocks are recomputed backward"] if checkpointed else []
        return MemoryForecast(
            size,
            micro_batch if micro_batch < size else None,
            kept,
            budget,
            peak,
            "; ".join(parts),
            frozen,
            checkpointed,
        )

    @property
    def _may_keep(self) -> bool:
        """A micro-batch that the user has set is there to save memory: only a fraction of memory set as well says
        more."""
        explicit = self.settings.mini_batch_size is not None or self.settings.gradient_accumulation_steps > 1
        return not explicit or self.settings.memory_fraction is not None

    def _freeze_batch_norm(self) -> None:
        self.encoder.frozen_batch_norm = True
        self.encoder.train(self.encoder.training)

    def _count(self, batch: dict[str, Any]) -> StepMemory:
        """What a step holds, counted on passes of ``SIZES`` pairs of real rows at the largest resolution."""
        encoder, step = self.encoder, self.step
        before = BeforeStep(encoder, self.loss, step.device)
        pixels = batch["pixels"][: SIZES[-1]]
        if pixels.shape[-1] != self.largest_resolution:  # what they show does not matter
            resolutions = (self.largest_resolution, self.largest_resolution)
            pixels = F.interpolate(pixels.float(), size=resolutions, mode="nearest").to(pixels.dtype)
        # Few distinct captions: a row may come twice, which costs the same.
        rows = torch.arange(SIZES[-1]) % len(batch["input_ids"])
        ids, mask = batch["input_ids"][rows], batch["attention_mask"][rows]
        images, texts = (lambda n: step.encode_image(pixels[:n])), (lambda n: step.encode_text(ids[:n], mask[:n]))
        try:
            towers = trace_towers(encoder, images, texts, step.autocast)
        finally:
            before.restore()
            release_memory(step.device)
        there = MemoryBudget.now(step.device, self.settings.memory_fraction)
        return StepMemory.of(
            encoder,
            self.optim,
            *towers,
            input_per_pair=3 * self.largest_resolution**2 + ids[0].nbytes + mask[0].nbytes,
            overhead=there.overhead(encoder) + (self.cache_bytes() if step.device.type != "cuda" else 0),
            loss=self.loss,
            sentences=step.classification.sentences if step.classification is not None else 0,
        )

    # --- while it runs, and after ---

    def note_change(self, step: int, old: int, new: int, reason: str) -> None:
        """Remember that the micro-batch was changed.

        Args:
            step: Counted from 1.
            old: Pairs at once before.
            new: Pairs at once from here on.
            reason: In words.
        """
        self.changes.append({"step": step, "micro_batch_before": old, "micro_batch": new, "reason": reason})

    def record(self) -> dict[str, Any]:
        """What was predicted and what happened, for the report; written to ``memory.json``.

        Returns:
            What the file holds.
        """
        content: dict[str, Any] = {"measured_peak_mb": round(self.monitor.peak_bytes / 2**20, 1)}
        if self.forecast is not None:
            logged = asdict(self.forecast)
            for name in ("budget", "predicted"):
                logged[f"{name}_mb"] = round(logged.pop(f"{name}_bytes") / 2**20, 1)
            logged["measured_over_predicted"] = round(self.monitor.peak_bytes / self.forecast.predicted_bytes, 3)
            content |= logged
        content |= {"micro_batch_at_the_end": self.step.micro_batch, "changes": self.changes}
        try:
            write_json(self.path, content)
        except OSError as error:
            log.warning("%s cannot be written: %s", self.path, error)
        return content

    def state_dict(self) -> dict[str, Any] | None:
        """The forecast, for a checkpoint.

        Returns:
            None where none was made.
        """
        return None if self.forecast is None else asdict(self.forecast)


def _of(need: int, there: int) -> str:
    return f"{need / GB:.1f} GB of {there / GB:.1f} GB"

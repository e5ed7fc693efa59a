"""The memory that training a loaded model would take, at any resolution and batch, before anything is trained."""

from __future__ import annotations

import logging
from typing import Any

import torch

from domainclip.config import CLIPFinetuningConfig
from domainclip.devices.memory import GB, MemoryManager, read_memory
from domainclip.devices.precision import PrecisionDecision
from domainclip.errors import MemoryConstraintError
from domainclip.models import DualEncoder
from domainclip.pipelines.planned_model import ModelShape, plan_step
from domainclip.training.distributed import local_world_size
from domainclip.training.memory.model import StepMemory, largest_micro_batch
from domainclip.training.memory.monitor import held_bytes
from domainclip.training.memory.run import MARGIN, MEMORY_FRACTION
from domainclip.training.memory.trace import TowerMemory

log = logging.getLogger(__name__)

LARGEST_BATCH = 256
"""More pairs at once bring a device nothing, and the contrastive batch does not depend on how many there are."""


class StepCounter:
    """Counts steps of ``recipe`` on ``encoder`` (which only lends its shape), as ``training.run_memory`` will.

    ``budget``: bytes that the run may hold, what the process holds now included, as read when this was made.
    """

    def __init__(
        self, encoder: DualEncoder, recipe: CLIPFinetuningConfig, device: torch.device, precision: PrecisionDecision
    ) -> None:
        self.shape = ModelShape(encoder.name or encoder.model_type, encoder.model.config, encoder.processor)
        self.device = device
        settings: dict[str, Any] = {"precision": precision.name, "auto_resolution": False, "wanted_throughput": None}
        if not recipe.is_set("max_sequence_length"):
            settings["max_sequence_length"] = min(77, encoder.text_length)
        if encoder.processor.text_padding == "fixed":
            settings["max_sequence_length"] = encoder.text_length
        self.recipe = recipe.updated(**settings)
        held = held_bytes(device)
        available = int(float(read_memory(device)["available_gb"] or 0) * GB)
        if device.type != "cuda":  # where each process has a GPU of its own
            available //= local_world_size()
        self.budget = held + int((recipe.memory_fraction or MEMORY_FRACTION) * available)
        weights = sum(tensor.nbytes for tensor in [*encoder.parameters(), *encoder.buffers()])
        self._overhead = max(0, held - weights)
        self._text: TowerMemory | None = None

    def at(self, resolution: int) -> StepMemory:
        """What a step with images of ``resolution`` pixels holds.

        Raises ``MemoryConstraintError`` for a model whose memory cannot be predicted.
        """
        recipe = self.recipe.updated(image_resolution=resolution)
        memory = plan_step(
            self.shape, recipe, self.device.type, self._overhead, memory_bytes=self.budget, known_text=self._text
        )
        self._text = memory.text
        return memory


def batch_that_fits(
    encoder: DualEncoder, recipe: CLIPFinetuningConfig, device: torch.device, precision: PrecisionDecision
) -> int:
    """The largest power of two, 1 to ``LARGEST_BATCH``, of pairs that go through both towers at once within the budget;
    1, with a warning in the log, where even one pair does not fit.

    For a model whose memory cannot be predicted, the estimate for CLIP ViT-B/32 instead, with a warning.
    """
    resolution = recipe.image_resolution if recipe.is_set("image_resolution") else encoder.native_resolution
    counter = StepCounter(encoder, recipe, device, precision)
    try:
        memory = counter.at(recipe.largest_resolution(resolution))
    except MemoryConstraintError as error:
        log.warning("The batch is that of CLIP ViT-B/32: %s", error)
        return MemoryManager(device).optimal_batch_size
    try:
        return largest_micro_batch(lambda pairs: memory.peak(pairs, pairs) * MARGIN, counter.budget, LARGEST_BATCH)
    except MemoryConstraintError as error:
        log.warning("%s", error)
        return 1

"""Which ways of training a model fit into a memory budget, and the recipe to take."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from domainclip.config import DataSettings, MemorySettings, OptimizerSettings
from domainclip.devices.memory import GB
from domainclip.errors import ConfigurationError, MissingExtraError
from domainclip.models.lora import require_peft
from domainclip.training.memory.model import MARGIN, SMALLEST_EFFICIENT, StepMemory
from domainclip.training.memory.plan import ModelShape, plan_step
from domainclip.waiting import Progress

LORA_R = 8
"""The rank that is planned: memory hardly depends on it."""

_UNITS = {"B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([kmgt]?)(i?)b\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of ``16GB``, ``12GiB``, ``500MB``, ``1.5 TB``: powers of 1024, as memory is sold and as this package shows
    it, whether an i is written or not.

    Args:
        text: A number and a unit.

    Returns:
        Bytes.

    Raises:
        ConfigurationError: For anything else, and for nothing at all.
    """
    match = _SIZE.fullmatch(text)
    if match is None or (match[3] and not match[2]):
        raise ConfigurationError(f"Invalid size {text!r}: give a number and a unit, such as 16GB, 12GiB or 500MB")
    size = int(float(match[1]) * _UNITS[match[2].upper() + "B"])
    if size < 1:
        raise ConfigurationError(f"Invalid size {text!r}: it must be positive")
    return size


@dataclass(frozen=True)
class PlanRow:
    """One way of training: ``micro_batch`` pairs in a tower at once, of a contrastive batch that stays the same."""

    resolution: int
    precision: str
    gradient_checkpointing: bool
    lora: bool
    micro_batch: int
    predicted_bytes: int
    fits: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it.

        Returns:
            Sizes in GB.
        """
        row = asdict(self)
        row["predicted_gb"] = round(row.pop("predicted_bytes") / GB, 3)
        return row


@dataclass(frozen=True)
class MemoryPlan:
    """``recommended``: keys and values for a recipe, None where nothing fits; ``reason`` says why in either case."""

    model: str
    device_type: str
    budget_bytes: int
    batch: int
    optimizer: str
    rows: list[PlanRow]
    recommended: dict[str, Any] | None
    recommended_row: PlanRow | None
    reason: str
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it.

        Returns:
            Sizes in GB.
        """
        own = ("model", "batch", "optimizer", "recommended", "reason", "notes")
        return {name: getattr(self, name) for name in own} | {
            "device": self.device_type,
            "budget_gb": round(self.budget_bytes / GB, 3),
            "rows": [row.to_dict() for row in self.rows],
            "predicted_gb": round(self.recommended_row.predicted_bytes / GB, 3) if self.recommended_row else None,
        }


@dataclass(frozen=True)
class _Way:
    resolution: int
    lora: bool
    precision: str
    checkpointing: bool
    memory: StepMemory


def make_plan(
    model_name: str,
    budget_bytes: int,
    *,
    batch: int = 256,
    resolutions: Sequence[int] | None = None,
    precisions: Sequence[str] = ("fp32", "bf16"),
    optimizer: str = "adamw",
    device_type: str = "cpu",
    text_length: int | None = None,
    lora: bool | None = None,
    overhead: int | None = None,
) -> MemoryPlan:
    """Predict every combination and choose one.

    Args:
        model_name: As ``ModelShape.named`` takes it.
        budget_bytes: What the run may hold.
        batch: Pairs of the contrastive batch.
        resolutions: In pixels; None: the model's own.
        precisions: The one to prefer first.
        optimizer: The recipe's.
        device_type: ``cpu``, ``cuda`` or ``mps``.
        text_length: Tokens of the longest captions; None: min(77, the tower's limit).
        lora: Only with it, or only without; None: both.
        overhead: Bytes that the process holds besides; None: what this one holds now, and nothing on CUDA.

    Returns:
        All ways, and the recommended one.

    Raises:
        ModelLoadError: For a name that is no dual encoder's.
        ConfigurationError: For sizes or keys that make no sense.
    """
    if batch < 2:
        raise ConfigurationError(f"batch={batch} has nothing to contrast a pair with: 2 or more")
    if overhead is None:
        overhead = 0 if device_type == "cuda" else psutil.Process(os.getpid()).memory_info().rss
    shape = ModelShape.named(model_name)
    encoder_resolution = shape.processor.resolution
    tried = list(dict.fromkeys(resolutions or [encoder_resolution]))
    length = text_length or min(77, shape.processor.max_length)
    notes: list[str] = []
    ways: list[_Way] = []
    adapters = _lora_choices(lora, notes)
    with Progress(2 * len(adapters) * len(precisions) * len(tried), "Counting what steps hold in memory") as progress:
        for with_lora in adapters:
            for precision in precisions:
                for checkpointing in (False, True):
                    text = None
                    for resolution in tried:
                        try:
                            memory = plan_step(
                                shape,
                                DataSettings(image_resolution=resolution, max_sequence_length=length),
                                OptimizerSettings(optimizer=optimizer, lora_r=LORA_R if with_lora else None),
                                MemorySettings(precision=precision, gradient_checkpointing=checkpointing),
                                device_type,
                                overhead,
                                memory_bytes=budget_bytes,
                                known_text=text,
                            )
                        except ConfigurationError as error:
                            if not checkpointing and (lora or not with_lora):  # nothing can be planned
                                raise
                            if str(error) not in notes:
                                notes.append(str(error))
                            break
                        text = memory.text
                        ways.append(_Way(resolution, with_lora, precision, checkpointing, memory))
                        progress.at(len(ways))
    rows = [
        _row(way, micro_batch, batch, budget_bytes)
        for resolution in tried
        for way in ways
        if way.resolution == resolution
        for micro_batch in _micro_batches(batch)
    ]
    order = sorted(tried, key=lambda each: (each > encoder_resolution, -each))  # the model's own before larger ones
    chosen = _choose(ways, order, batch, budget_bytes)
    if device_type != "cuda":
        notes.append("Beside it: image_cache_mb for decoded images, and num_workers processes that read them")
    return MemoryPlan(
        model_name,
        device_type,
        budget_bytes,
        batch,
        optimizer,
        rows,
        _keys(chosen, batch, optimizer, encoder_resolution) if chosen else None,
        chosen,
        _reason(chosen, rows, ways, batch, budget_bytes, precisions[0], optimizer),
        notes,
    )


def _lora_choices(lora: bool | None, notes: list[str]) -> list[bool]:
    if lora is not None:
        return [lora]
    try:
        require_peft()
    except MissingExtraError as error:
        notes.append(f"Without LoRA: {error}")
        return [False]
    return [False, True]


def _micro_batches(batch: int) -> list[int]:
    """1, then each fourth power of two, then the whole batch."""
    return [size for size in (1, 4, 16, 64, 256, 1024, 4096) if size < batch] + [batch]


def _row(way: _Way, micro_batch: int, batch: int, budget: int) -> PlanRow:
    predicted, fits = way.memory.peak(micro_batch, batch), way.memory.needed(micro_batch, batch) <= budget
    return PlanRow(way.resolution, way.precision, way.checkpointing, way.lora, micro_batch, predicted, fits)


def _choose(ways: list[_Way], resolutions: list[int], batch: int, budget: int) -> PlanRow | None:
    """The first way, tricks last, whose micro-batch is of an efficient size, or else of any size.

    ``ways`` come in the order of what they cost: checkpointing costs time, another precision than the device's may
    too, LoRA changes what is learned.
    """
    for least in (min(SMALLEST_EFFICIENT, batch), 1):
        for resolution in resolutions:
            for way in ways:
                if way.resolution != resolution:
                    continue
                micro_batch = way.memory.largest_micro_batch(budget, batch)
                if micro_batch >= least:
                    return _row(way, micro_batch, batch, budget)
    return None


def _keys(row: PlanRow, batch: int, optimizer: str, native: int) -> dict[str, Any]:
    """Only what differs from what would be taken anyhow, besides the batch and the precision that was planned."""
    keys: dict[str, Any] = {"batch_size": batch}
    if row.micro_batch < batch:
        keys["mini_batch_size"] = row.micro_batch
    keys["precision"] = row.precision
    if row.gradient_checkpointing:
        keys["gradient_checkpointing"] = True
    if row.lora:
        keys["lora_r"] = LORA_R
    if row.resolution != native:
        keys["image_resolution"] = row.resolution
    if optimizer != "adamw":
        keys["optimizer"] = optimizer
    return keys


def _reason(
    chosen: PlanRow | None,
    rows: list[PlanRow],
    ways: list[_Way],
    batch: int,
    budget: int,
    preferred: str,
    optimizer: str,
) -> str:
    if chosen is None:
        least = min(ways, key=lambda way: way.memory.peak(1, batch))
        what = ", ".join(
            [f"{least.resolution} pixels", least.precision]
            + ["gradient checkpointing"] * least.checkpointing
            + ["LoRA"] * least.lora
        )
        other = "" if optimizer == "adafactor" else "optimizer=adafactor, "
        return (
            f"Nothing fits into {budget / GB:.2f} GB: the smallest way ({what}, one pair at a time of {batch}) needs "
            f"{least.memory.needed(1, batch) / GB:.2f} GB with its margin, of which the program itself, weights, "
            f"gradients and optimizer state are {(least.memory.state + least.memory.overhead) / GB:.2f}. Try {other}a "
            "lower resolution, a smaller batch, or a smaller model"
        )
    room = f"{chosen.predicted_bytes / GB:.2f} GB predicted of {budget / GB:.2f} ({MARGIN - 1:.0%} margin kept)"
    if chosen.micro_batch == batch:
        parts = [f"all {batch} pairs go through at once"]
    else:
        parts = [
            f"the contrastive batch stays {batch}, in micro-batches of {chosen.micro_batch} (GradCache: the same "
            f"gradient)"
        ]
    if chosen.gradient_checkpointing:
        parts.append(
            "checkpointing, since without it the micro-batches would be smaller than is efficient or none would fit"
        )
    if chosen.precision != preferred:
        parts.append(f"{chosen.precision}, since {preferred} does not fit as well")
    if chosen.lora:
        parts.append("LoRA, since training all weights leaves no room for activations")
    if not (chosen.gradient_checkpointing or chosen.lora or chosen.micro_batch < batch):
        parts.append("no tricks are needed")
    return f"{room}: {'; '.join(parts)}"

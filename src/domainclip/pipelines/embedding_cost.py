"""What it costs to embed images of a resolution: time and memory, measured on this machine."""

from __future__ import annotations

import platform as stdlib_platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from domainclip.devices import platform
from domainclip.reports.schema.resolutions import Measurement
from domainclip.training.memory.monitor import MemoryMonitor

TIMED_SECONDS, TIMED_ROUNDS = 5.0, 7
"""A resolution is timed until either is reached, at least once after a warm-up."""

_SAMPLE_SECONDS = 0.002  # between looks at the memory: a forward of a small model is over in tens of milliseconds

_MEMORY_OF = {
    "cuda": "allocated by torch on the GPU",
    "mps": "held by Metal's driver for this process",
    "cpu": "resident memory of the whole process, sampled every 2 ms",
}


@dataclass(frozen=True)
class Cost:
    """Of embedding one batch of images that are resized already, from bytes to unit vectors on the CPU.

    ``peak_memory_mb`` is in MiB; of what, ``measurement`` says.
    """

    images_per_second: float
    seconds_per_batch: list[float]
    peak_memory_mb: float


def embedding_costs(
    embed_pixels: Callable[[Tensor], Tensor], resolutions: Sequence[int], batch_size: int, device: torch.device
) -> dict[int, Cost]:
    """Measured on random bytes: what images show takes a model no time.

    Args:
        embed_pixels: Takes uint8 ``[batch_size, 3, size, size]`` and returns when nothing is pending any more.
        resolutions: In pixels.
        batch_size: Images at once.
        device: Where the work runs.

    Returns:
        The cost of each resolution.
    """
    draw = torch.Generator().manual_seed(0)
    batches: dict[int, Tensor] = {}
    peaks: dict[int, float] = {}
    for resolution in sorted(resolutions):  # ascending, since allocators keep what a larger resolution needed
        shape = (batch_size, 3, resolution, resolution)
        batches[resolution] = torch.randint(256, shape, dtype=torch.uint8, generator=draw)
        peaks[resolution] = _peak_bytes(partial(embed_pixels, batches[resolution]), device) / 2**20  # the warm-up too
    seconds: dict[int, list[float]] = {resolution: [] for resolution in batches}
    for _ in range(TIMED_ROUNDS):  # in turns, so that a machine that slows down slows all of them
        for resolution, batch in batches.items():
            if sum(seconds[resolution]) < TIMED_SECONDS:
                start = time.perf_counter()
                embed_pixels(batch)
                seconds[resolution].append(time.perf_counter() - start)
    return {
        resolution: Cost(batch_size / median(found), found, peaks[resolution]) for resolution, found in seconds.items()
    }


def _peak_bytes(work: Callable[[], Any], device: torch.device) -> int:
    if device.type == "cuda":  # torch's allocator keeps the exact peak by itself
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        torch.mps.empty_cache()  # the driver's fraction only grows until then
    with MemoryMonitor(device, _SAMPLE_SECONDS) as monitor:
        work()
    return monitor.peak_bytes


def measurement(device: torch.device, batch_size: int) -> Measurement:
    """How the costs were measured.

    Args:
        device: Where the work runs.
        batch_size: Images at once.

    Returns:
        For the record of an evaluation.
    """
    if device.type == "cuda":
        name = platform.cuda_name(device)
    elif device.type == "mps":
        name = platform.chip_name() or "Apple GPU"
    else:
        cpu = platform.chip_name() or stdlib_platform.processor() or stdlib_platform.machine()
        threads = torch.get_num_threads()
        name = f"CPU ({cpu}), {threads} thread{'s' * (threads > 1)}"
    memory = _MEMORY_OF.get(device.type, _MEMORY_OF["cpu"])
    note = (
        f"Speed and memory were measured on this machine ({name}) in float32, in batches of {batch_size}, after a "
        "warm-up: median of the timed batches, from resized bytes to embeddings; decoding and resizing are not "
        f"counted. They depend on the machine and on what else it does. Memory: {memory}."
    )
    return Measurement(
        device=device.type,
        device_name=name,
        batch_size=batch_size,
        precision="fp32",
        threads=torch.get_num_threads(),
        memory=memory,
        note=note,
    )

"""How much memory there is, read the way each device reports it, and a first guess at the batch it holds."""

from __future__ import annotations

import logging
import os
import sys

import psutil
import torch

from domainclip.devices import cgroup
from domainclip.errors import DeviceError

logger = logging.getLogger(__name__)

GB = 2**30
"""Bytes in what this package calls a GB, as memory sizes are usually meant (2**30, not 10**9)."""

MemoryInfo = dict[str, float | bool | None]


def address_space_limit() -> int | None:
    """The address space that this process may take (``RLIMIT_AS``, ``ulimit -v``).

    Beyond it an allocation fails, however much memory is free. Read on Linux alone: macOS does not keep to the limit,
    and Windows has none.

    Returns:
        Bytes; None where nothing limits it.
    """
    if sys.platform != "linux":
        return None
    import resource  # there is none on Windows

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def read_memory(device: torch.device) -> MemoryInfo:
    """Readings in GB (2**30 bytes) for ``device``, taken now.

    Always there: ``total_gb``, ``available_gb``, ``used_gb`` (total less available, by whomever), ``rss_gb``
    (resident memory of this process). ``available_gb`` counts what this process can still get without
    swapping, the caches of torch's own allocators included.

    * CPU: ``cgroup_limit_gb`` and ``address_space_limit_gb`` (None when nothing limits it), ``host_total_gb``,
      ``host_available_gb``. Against a limit on address space all counts that the process has mapped, touched or not.
    * CUDA: ``allocated_gb``, ``reserved_gb``, ``peak_allocated_gb`` of torch's allocator, ``free_gb`` on
      the card.
    * MPS: ``unified`` (True: the GPU works in main memory), ``mps_current_gb``, ``mps_driver_gb``,
      ``mps_recommended_gb`` (Metal's recommendedMaxWorkingSetSize, beyond which it swaps).

    Args:
        device: Where the work runs.

    Returns:
        Gigabytes by name; None for what nothing limits.
    """
    host = psutil.virtual_memory()
    process = psutil.Process(os.getpid()).memory_info()
    info: dict[str, float | bool | None] = {"rss_gb": process.rss / GB}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        available = min(total, free + reserved - allocated)
        info |= {
            "allocated_gb": allocated / GB,
            "reserved_gb": reserved / GB,
            "peak_allocated_gb": torch.cuda.max_memory_allocated(device) / GB,
            "free_gb": free / GB,
        }
    elif device.type == "mps":
        current, driver = torch.mps.current_allocated_memory(), torch.mps.driver_allocated_memory()
        recommended = torch.mps.recommended_max_memory()
        total = host.total
        # Two ceilings at once: what all of macOS has left, and Metal's part of it.
        available = max(0, min(host.available + max(0, driver - current), recommended - current))
        info |= {
            "unified": True,
            "mps_current_gb": current / GB,
            "mps_driver_gb": driver / GB,
            "mps_recommended_gb": recommended / GB,
        }
    else:
        limit = cgroup.memory_limit()
        total, available = host.total, host.available
        if limit is not None and limit.limit < host.total:
            total = limit.limit
            available = max(0, min(host.available, limit.limit - limit.used))
        addresses = address_space_limit()
        if addresses is not None:
            total, available = min(total, addresses), max(0, min(available, addresses - process.vms))
        info |= {
            "cgroup_limit_gb": None if limit is None else limit.limit / GB,
            "address_space_limit_gb": None if addresses is None else addresses / GB,
            "host_total_gb": host.total / GB,
            "host_available_gb": host.available / GB,
        }
    info |= {"total_gb": total / GB, "available_gb": available / GB, "used_gb": (total - available) / GB}
    return info


def peak_memory_mb(device: torch.device) -> float:
    """Ask for the most memory this process has held so far.

    Args:
        device: On CUDA its GPU's memory is meant, elsewhere that of the whole process.

    Returns:
        MiB.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**20
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class MemoryManager:
    """Memory of one device, and the largest contrastive micro-batch it should be asked to hold.

    Args:
        device: where the model will be trained.
        parameters: number of trained weights; the default is CLIP ViT-B/32's.
        activation_bytes_per_pair: what one image-caption pair keeps for the backward pass. The default is
            the sum of the tensors autograd saved for CLIP ViT-B/32 at 224 pixels and 77 tokens in float32
            (72 MiB a pair; 44 MiB under bfloat16 autocast), counted by
            ``torch.autograd.graph.saved_tensors_hooks``.

    This is an estimate from sizes alone. It knows neither the run's model nor its precision unless told.
    """

    CLIP_VIT_B32_PARAMETERS = 151_277_313
    CLIP_VIT_B32_BYTES_PER_PAIR = 72 * 2**20
    # float32 weight, gradient, and AdamW's two moments.
    BYTES_PER_PARAMETER = 16
    # The rest is for the allocator's fragments, the input pipeline and the gradients in flight.
    SAFE_FRACTION = 0.8
    LARGEST = 256

    def __init__(
        self,
        device: torch.device | str,
        *,
        parameters: int = CLIP_VIT_B32_PARAMETERS,
        activation_bytes_per_pair: int = CLIP_VIT_B32_BYTES_PER_PAIR,
    ) -> None:
        try:
            self.device = torch.device(device)
        except (RuntimeError, TypeError):
            raise DeviceError(f"Invalid device {device!r}: give cpu, cuda, cuda:1 or mps") from None
        self.parameters = parameters
        self.activation_bytes_per_pair = activation_bytes_per_pair

    @property
    def memory_info(self) -> MemoryInfo:
        """``read_memory`` of this device, afresh at each access."""
        return read_memory(self.device)

    @property
    def optimal_batch_size(self) -> int:
        """The largest power of two, 1 to 256, whose activations fit beside the model's training state.

        1, with a warning in the log, where even the training state does not fit.
        """
        available = float(self.memory_info["available_gb"] or 0.0) * GB
        room = available * self.SAFE_FRACTION - self.parameters * self.BYTES_PER_PARAMETER
        pairs = int(room // self.activation_bytes_per_pair)
        if pairs < 1:
            logger.warning(
                "%.1f GB available on %s do not hold the training state of %d parameters and one pair: "
                "batch size 1 may run out of memory. Close other programs or choose a smaller model.",
                available / GB,
                self.device,
                self.parameters,
            )
            return 1
        return min(self.LARGEST, 1 << (pairs.bit_length() - 1))

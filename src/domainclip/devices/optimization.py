"""Global settings of torch worth changing for a device: changed only where they have an effect, and
undone."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import NamedTuple

import torch

from domainclip.devices import cgroup, platform

Undo = Callable[[], object]


class Optimization(NamedTuple):
    """``what`` was decided and the ``reason``; a setting looked at and left alone is reported too."""

    what: str
    reason: str


# A float32 product may lose this much (relative Frobenius norm) before it stops being called float32. The
# unit roundoff is 6e-8; bfloat16 products err by about 3e-3, so anything between tells the two apart.
FLOAT32_ERROR_LIMIT = 1e-5

# Square, and a transformer's short-and-wide product: libraries pick kernels by shape.
_PROBE_SHAPES = ((256, 256, 256), (77, 512, 1024))

# What torch.mps uses when PYTORCH_MPS_HIGH_WATERMARK_RATIO is unset; there is no call that reads it back.
_MPS_DEFAULT_WATERMARK = 1.7


def optimize(device: torch.device) -> tuple[list[Optimization], list[Undo]]:
    """Apply what helps on ``device``.

    Args:
        device: Where the work runs.

    Returns:
        What was done, each with its reason, and what undoes it, to be called in reverse order.
    """
    if device.type == "cuda":
        return _optimize_cuda(device)
    if device.type == "mps":
        return _optimize_mps()
    threads, undo_threads = _cpu_threads()
    matmul, undo_matmul = _cpu_matmul()
    allocator, undo_allocator = _cpu_allocator()
    return threads + matmul + allocator, undo_threads + undo_matmul + undo_allocator


def matmul_error() -> float:
    """Measure float32 matmuls on the CPU against float64, under the present settings.

    Returns:
        The largest relative error (Frobenius norm) over a few shapes.
    """
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for rows, inner, columns in _PROBE_SHAPES:
        left = torch.randn(rows, inner, generator=generator)
        right = torch.randn(inner, columns, generator=generator)
        exact = left.double() @ right.double()
        worst = max(worst, float(((left @ right).double() - exact).norm() / exact.norm()))
    return worst


def _cpu_matmul() -> tuple[list[Optimization], list[Undo]]:
    """``medium`` lets torch hand float32 products to oneDNN instead of the default BLAS.

    Without AMX oneDNN still computes in float32, about twice as fast on AMD's processors; with AMX it rounds
    the inputs to bfloat16. Which of the two happens is measured, not guessed from the processor's name.
    """
    before = torch.get_float32_matmul_precision()
    if before == "medium":
        return [Optimization("left float32 matmul precision at 'medium'", "it was set before")], []
    baseline = matmul_error()
    torch.set_float32_matmul_precision("medium")
    error = matmul_error()
    if error <= max(FLOAT32_ERROR_LIMIT, 2 * baseline):
        reason = f"measured relative error {error:.1e} (was {baseline:.1e}): still float32, by a faster library"
        return (
            [Optimization("set float32 matmul precision to 'medium'", reason)],
            [lambda: torch.set_float32_matmul_precision(before)],
        )
    torch.set_float32_matmul_precision(before)
    reason = f"'medium' raised the measured relative error from {baseline:.1e} to {error:.1e}: no longer float32"
    return [Optimization(f"left float32 matmul precision at {before!r}", reason)], []


def _cpu_threads() -> tuple[list[Optimization], list[Undo]]:
    """torch starts a thread for each core it sees; in a container with a quota the surplus only waits."""
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ:
        return [Optimization(f"left {before} compute threads", "OMP_NUM_THREADS is set")], []
    quota = cgroup.cpu_quota()
    cores = platform.cpu_affinity()
    usable = cores if quota is None else max(1, min(cores, int(quota)))
    if before <= usable:
        return [], []
    torch.set_num_threads(usable)
    limit = f"the container grants {quota:g} cores" if quota is not None else f"the process may use {cores} cores"
    return (
        [Optimization(f"set compute threads from {before} to {usable}", f"{limit}; more threads would wait")],
        [lambda: torch.set_num_threads(before)],
    )


# glibc's malloc.h, and its own defaults to go back to.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4
_MALLOC_KEEP = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 64 * 2**20}
_MALLOC_SPARE = {_M_MMAP_MAX: 65536, _M_MMAP_THRESHOLD: 2**20, _M_TRIM_THRESHOLD: 64 * 2**20, _M_TOP_PAD: 2**20}
_MALLOC_DEFAULT = {_M_MMAP_MAX: 65536, _M_TRIM_THRESHOLD: 128 * 2**10, _M_TOP_PAD: 128 * 2**10}


def _cpu_allocator() -> tuple[list[Optimization], list[Undo]]:
    """Let the allocator keep large blocks instead of giving each back to the kernel.

    A training step allocates the same activations again and again. glibc maps every block above 32 MiB anew and
    unmaps it after use, and the kernel zeroes its pages each time: on a convolutional tower that took longer than
    the arithmetic. The price is that freed memory stays with the process until it ends.
    """
    if not _set_malloc(_MALLOC_KEEP):
        return [], []
    reason = "each step's activations reuse pages the process already has; without it the kernel zeroes them anew"
    return ([Optimization("told the C allocator to keep large blocks", reason)], [lambda: _set_malloc(_MALLOC_DEFAULT)])


def spare_memory(device: torch.device) -> bool:
    """Undo ``_cpu_allocator`` where a step nearly fills the memory: every block above 1 MiB is given back when it is
    freed. In a heap that keeps them, gradients come to lie between activations and leave gaps that no other block fits
    into (a fifth of the peak for ViT-B/32 in micro-batches of 64).

    Args:
        device: Where the work runs.

    Returns:
        True where there was something to set: on a CPU with glibc, unless the user has set its allocator.
    """
    return device.type == "cpu" and _set_malloc(_MALLOC_SPARE)


def _set_malloc(settings: dict[int, int]) -> bool:
    """False where the C library has no such settings (musl, macOS), or the user has made them."""
    if platform.system() != "Linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(name, value) for name, value in settings.items())


def _optimize_cuda(device: torch.device) -> tuple[list[Optimization], list[Undo]]:
    done: list[Optimization] = []
    undo: list[Undo] = []
    capability = platform.cuda_capability(device)
    before = torch.get_float32_matmul_precision()
    if capability >= (8, 0) and before == "highest":
        torch.set_float32_matmul_precision("high")
        undo.append(lambda: torch.set_float32_matmul_precision(before))
        done.append(
            Optimization(
                "set float32 matmul precision to 'high' (TF32)",
                "tensor cores take float32 products with 10-bit mantissas from capability 8.0 on; autocast "
                "rounds further than that, and weights and sums stay float32",
            )
        )
    benchmark = torch.backends.cudnn.benchmark
    if torch.are_deterministic_algorithms_enabled():
        done.append(Optimization("left cudnn.benchmark alone", "deterministic algorithms are asked for"))
    elif not benchmark:
        torch.backends.cudnn.benchmark = True
        undo.append(lambda: setattr(torch.backends.cudnn, "benchmark", benchmark))
        done.append(
            Optimization("switched on cudnn.benchmark", "image sizes are fixed, so one trial per shape pays off")
        )
    return done, undo


def _optimize_mps() -> tuple[list[Optimization], list[Undo]]:
    done: list[Optimization] = []
    undo: list[Undo] = []
    # The variable is read when the Metal allocator starts: what the user chose there stands.
    chosen = os.environ.get("PYTORCH_MPS_HIGH_WATERMARK_RATIO")
    if chosen is None:
        torch.mps.set_per_process_memory_fraction(1.0)
        undo.append(lambda: torch.mps.set_per_process_memory_fraction(_MPS_DEFAULT_WATERMARK))
        done.append(
            Optimization(
                "limited Metal's memory to its recommended working set",
                "torch's default of 1.7 times that exceeds the machine's memory: a batch too large would "
                "swap for hours instead of failing with an error that can be acted on",
            )
        )
    else:
        done.append(Optimization("left Metal's memory limit", f"PYTORCH_MPS_HIGH_WATERMARK_RATIO={chosen} is set"))
    if os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") == "1":
        reason = "PYTORCH_ENABLE_MPS_FALLBACK=1: operations without a Metal kernel run on the CPU, slowly"
        done.append(Optimization("left the CPU fallback on", reason))
    return done, undo

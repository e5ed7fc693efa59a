"""Memory that has run out: how it is recognised, what is given back, and work that goes on in smaller batches."""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from domainclip.errors import CLIPFinetuningError, MemoryConstraintError

log = logging.getLogger(__name__)
T = TypeVar("T")

_OUT_OF_MEMORY_WORDS = (
    "out of memory",  # CUDA's and MPS' allocators, CUDA's own error, Metal's command buffers ("… OutOfMemory")
    "outofmemory",
    "can't allocate memory",  # DefaultCPUAllocator
    "not enough memory",  # DefaultCPUAllocator on Windows
    "cannot allocate memory",  # the operating system's ENOMEM
    "_status_alloc_failed",  # cuBLAS, cuDNN, cuSPARSE
    "std::bad_alloc",
    "insufficient memory",  # Metal
    "invalid buffer size",  # MPS: a single tensor beyond what Metal gives in one piece
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out. Torch has a class for it on CUDA; elsewhere only the text tells.

    Args:
        error: Any. This package's own errors are never meant: whoever raised them has said what to do already.

    Returns:
        True where memory ran out.
    """
    if isinstance(error, CLIPFinetuningError):
        return False
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY_WORDS)


def release_memory(device: torch.device) -> None:
    """Give back what nobody holds: reference cycles, then what the allocators have kept for later.

    Args:
        device: Whose allocator is asked besides the C library's.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
        if trim is not None:
            trim(0)


def attempt(work: Callable[[], T]) -> tuple[T | None, str]:
    """Do work that may run out of memory.

    Args:
        work: Gives no None.

    Returns:
        What it gives and an empty text; or None and the first line of what was said when memory ran out. The error is
        gone then, and with it every tensor that its traceback held.

    Raises:
        Exception: Any other error of the work, as it is.
    """
    try:
        return work(), ""
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None, (str(error) or type(error).__name__).strip().split("\n")[0][:200]


class ShrinkingBatches:
    """Rows that go through a model without gradients, so many at once; half as many from the moment memory runs out.

    What comes out of a row does not depend on the rows beside it, but for the rounding of its last bits.

    Args:
        what: The rows in messages, such as "images".
        device: Whose memory is given back before a repeat.
    """

    def __init__(self, what: str, device: torch.device) -> None:
        self.what, self.device = what, device
        self.largest: int | None = None
        """Rows at once, since memory has run out."""

    def __call__(self, count: int, at_once: int, work: Callable[[slice], T]) -> list[T]:
        """Do some work on all rows.

        Args:
            count: How many rows there are.
            at_once: How many are wanted at once.
            work: Does it for some of them; it may be asked again for the same ones.

        Returns:
            What it gives, in the order of the rows.

        Raises:
            MemoryConstraintError: Not even one row fits.
        """
        results: list[T] = []
        done = 0
        while done < count:
            rows = slice(done, min(count, done + min(at_once, self.largest or at_once)))
            result, reason = attempt(lambda rows=rows: work(rows))  # type: ignore[misc]
            if result is not None:
                results.append(result)
                done = rows.stop
                continue
            size = rows.stop - rows.start
            if size == 1:
                raise MemoryConstraintError(
                    f"Not even one of the {self.what} fits into memory ({reason}). Give a smaller image_resolution or "
                    "a smaller model, or close other programs"
                )
            release_memory(self.device)
            self.largest = (size + 1) // 2
            log.warning("Out of memory with %d %s at once (%s): %d from here on", size, self.what, reason, self.largest)
        return results

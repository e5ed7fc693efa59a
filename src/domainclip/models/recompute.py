"""Random numbers that come out the same when a checkpointed part is computed a second time on Apple's GPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

import torch
from torch import Tensor


class MPSRandomState(AbstractContextManager):
    """Inside, the GPU draws from where it stood when this was made; afterwards it goes on as if nothing had been.

    It may be entered again: a second backward pass over one graph computes the part once more.
    """

    def __init__(self) -> None:
        self.at_first = torch.mps.get_rng_state()
        self._present: list[Tensor] = []

    def __enter__(self) -> None:
        self._present.append(torch.mps.get_rng_state())
        torch.mps.set_rng_state(self.at_first)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        torch.mps.set_rng_state(self._present.pop())


def same_random_numbers(device_type: str) -> tuple[AbstractContextManager, AbstractContextManager]:
    """A ``context_fn`` for ``torch.utils.checkpoint``, with ``functools.partial(same_random_numbers, device.type)``.

    Its ``preserve_rng_state`` covers the CPU and CUDA alone: on MPS, without a word, dropout takes other numbers when
    it is computed again, and the gradient is that of another network (pytorch issue 127676; so in torch 2.13).
    """
    return nullcontext(), MPSRandomState() if device_type == "mps" else nullcontext()

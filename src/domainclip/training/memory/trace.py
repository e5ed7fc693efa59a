"""What a tower holds in a forward and backward pass, counted tensor by tensor without running it.

Under ``FakeTensorMode`` torch goes through every operation with shapes and types alone: the kernels it would choose,
autocast's copies, what autograd saves, what checkpointing computes again and what is freed when, in a second or two and
without the memory. Each allocation grows linearly with the pairs, and the order of allocations does not depend on them;
so two traces give the peak for any number of pairs (the maximum of many straight lines, which is not itself a straight
line: few pairs peak where gradients are complete, many where activations are).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from domainclip.errors import MemoryConstraintError

SIZES = (2, 3)
"""Pairs of the two traces: not 1, for which some operations take another way."""

Autocast = Callable[[], AbstractContextManager[object]]


class LiveBytes(TorchDispatchMode):
    """Within it, ``timeline`` gets for each new storage the bytes of all that are alive, and those of complete
    gradients among them (told by ``accumulated``); ``excluded`` do not count."""

    def __init__(self, excluded: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.gradients = 0
        self.timeline: list[tuple[int, int]] = [(0, 0)]
        self._sizes: dict[int, int] = {}
        self._excluded = {tensor.untyped_storage()._cdata for tensor in excluded}

    @property
    def peak(self) -> int:
        return max(value for value, _ in self.timeline)

    def accumulated(self, parameter: Tensor) -> None:
        """A hook for after a parameter's gradient was accumulated: a next pass adds to it and frees its own.

        Args:
            parameter: Whose gradient it was.
        """
        assert parameter.grad is not None
        self.gradients += parameter.grad.untyped_storage().nbytes()

    def _freed(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # two of three calls: the autograd engine asks after each operation
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._sizes or key in self._excluded:
                continue
            self._sizes[key] = storage.nbytes()
            self.live += self._sizes[key]
            self.timeline.append((self.live, self.gradients))
            weakref.finalize(storage, self._freed, key)
        return result


@dataclass(frozen=True)
class Lines:
    """The maximum of straight lines in the number of pairs: ``(bytes, bytes per pair)`` each."""

    lines: tuple[tuple[float, float], ...]

    def at(self, pairs: int) -> int:
        """Bytes for that many pairs.

        Args:
            pairs: Images or texts that go through at once.

        Returns:
            Bytes.
        """
        return int(max(constant + slope * pairs for constant, slope in self.lines))

    @classmethod
    def through(cls, first: list[int], second: list[int]) -> Lines:
        """From the same moments of two traces with ``SIZES`` pairs.

        Args:
            first: Bytes at each moment with the fewer pairs.
            second: Bytes at each moment with the more.

        Returns:
            Their maximum.

        Raises:
            MemoryConstraintError: Where the moments do not correspond.
        """
        if len(first) != len(second):
            raise MemoryConstraintError(
                f"This model's steps with {SIZES[0]} and {SIZES[1]} pairs differ in their operations ({len(first)} and "
                f"{len(second)} allocations), so that its memory cannot be predicted. Try a run with a small "
                "mini_batch_size instead"
            )
        step = SIZES[1] - SIZES[0]
        pairs = {(a - (b - a) / step * SIZES[0], (b - a) / step) for a, b in zip(first, second, strict=True)}
        # What another line exceeds at 0 and in slope is never the maximum.
        best: list[tuple[float, float]] = []
        for constant, slope in sorted(pairs, reverse=True):
            if not best or slope > best[-1][1]:
                best.append((constant, slope))
        return cls(tuple(best))


@dataclass(frozen=True)
class TowerMemory:
    """Bytes beside weights and optimizer state, by the number of pairs that go through the tower at once.

    ``saved``: kept after the forward pass. ``first``: the most held in a first forward and backward pass, which
    makes the gradients. ``again``: the most held by a further pass beside gradients that are there, without counting
    them. ``gradients``: bytes of these.
    """

    saved: Lines
    first: Lines
    again: Lines
    gradients: int


def trace_tower(
    tower: nn.Module, encode: Callable[[int], Tensor], autocast: Autocast, excluded: Iterable[Tensor] = ()
) -> TowerMemory:
    """Count what a forward and backward pass through a tower hold.

    Args:
        tower: All modules that ``encode`` uses; their gradients are left as None. Where their tensors were made in a
            ``FakeTensorMode``, call this within it.
        encode: Embeds so many images or texts.
        autocast: Makes the context that ``encode`` runs in.
        excluded: Tensors that do not count, beside the tower's own.

    Returns:
        Bytes by number of pairs.

    Raises:
        MemoryConstraintError: Where what is kept after the forward pass is not linear in the number of pairs.
    """
    weights = [*tower.parameters(), *tower.buffers(), *excluded]
    traces = [_trace(tower, partial(encode, pairs), autocast, weights) for pairs in SIZES]
    if any(len(getattr(traces[0], name)) != len(getattr(traces[1], name)) for name in ("first", "again")):
        return _by_peaks(traces)
    saved, first, again = (
        Lines.through(getattr(traces[0], name), getattr(traces[1], name)) for name in _Trace._fields[:3]
    )
    return TowerMemory(saved, first, again, traces[0].gradients)


def _by_peaks(traces: list[_Trace]) -> TowerMemory:
    """Where real kernels took other ways for other numbers of pairs (convolutions do), moments cannot be compared: the
    lines go through the peaks beside the gradients, and the first pass is taken to hold these from its start, which is
    never too little."""
    saved = Lines.through(traces[0].saved, traces[1].saved)
    again = Lines.through([max(traces[0].again)], [max(traces[1].again)])
    gradients = traces[0].gradients
    first = Lines(tuple((constant + gradients, slope) for constant, slope in again.lines))
    return TowerMemory(saved, first, again, gradients)


class _Trace(NamedTuple):
    """Bytes at each allocation, as ``TowerMemory`` has them, for one number of pairs."""

    saved: list[int]
    first: list[int]
    again: list[int]
    gradients: int


def _trace(tower: nn.Module, encode: Callable[[], Tensor], autocast: Autocast, weights: list[Tensor]) -> _Trace:
    live = LiveBytes(weights)
    hooks = [p.register_post_accumulate_grad_hook(live.accumulated) for p in tower.parameters() if p.requires_grad]
    try:
        for parameter in tower.parameters():
            parameter.grad = None
        with live:
            with autocast():
                embeds = encode()
            embeds = embeds.float()
            saved = live.live
            if embeds.requires_grad:
                embeds.backward(torch.ones_like(embeds))
            del embeds
            gradients = live.live
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in tower.parameters():
            parameter.grad = None
    first = [held for held, _ in live.timeline]
    return _Trace([saved], first, [held - complete for held, complete in live.timeline], gradients)

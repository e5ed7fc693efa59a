"""What a tower holds in a forward and backward pass, counted tensor by tensor without running it.

Under ``FakeTensorMode`` torch goes through every operation with shapes and types alone: the kernels it would choose,
autocast's copies, what autograd saves, what checkpointing computes again and what is freed when, in less than a
second and without the memory. Each allocation grows linearly with the pairs, and the order of allocations does not
depend on them; so two traces give the peak for any number of pairs (the maximum of many straight lines, which is not
itself a straight line: few pairs peak where gradients are complete, many where activations are).

Of equal layers one after another only three are traced (``Repeated``): what the middle one leaves behind is counted as
often as there are layers like it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from domainclip.errors import MemoryConstraintError

SIZES = (2, 3)
"""Pairs of the two traces: not 1, for which some operations take another way."""


# Phases of a pass through equal layers: before the middle one, in it, after it, then backward the same way round.
BEFORE, FORWARD, AFTER, BACK_AFTER, BACKWARD, BACK_BEFORE = range(6)
MIDDLE = (FORWARD, BACKWARD)


@dataclass(frozen=True)
class Repeated:
    """Three ``layers`` of a tower: the first, one that stands for all between, and the last; ``extra``: how many more
    of the middle one the tower has in truth."""

    layers: nn.ModuleList
    extra: int


class LiveBytes(TorchDispatchMode):
    """Within it, ``timeline`` gets for each new storage the bytes of all that are alive, those of complete gradients
    among them (told by ``accumulated``), and the ``phase``; ``excluded`` do not count.

    ``middle``: bytes alive that were made while ``phase`` was one of ``MIDDLE``.
    """

    def __init__(self, excluded: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.middle = 0
        self.gradients = self.middle_gradients = 0
        self.phase = BEFORE
        self.timeline: list[tuple[int, int, int]] = [(0, 0, BEFORE)]
        self._sizes: dict[int, tuple[int, bool]] = {}
        self._excluded = {tensor.untyped_storage()._cdata for tensor in excluded}

    @property
    def peak(self) -> int:
        return max(value for value, _, _ in self.timeline)

    def accumulated(self, parameter: Tensor) -> None:
        """A hook for after a parameter's gradient was accumulated: a next pass adds to it and frees its own."""
        assert parameter.grad is not None
        size = parameter.grad.untyped_storage().nbytes()
        self.gradients += size
        if self.phase in MIDDLE:
            self.middle_gradients += size

    def _freed(self, key: int) -> None:
        size, middle = self._sizes.pop(key)
        self.live -= size
        self.middle -= size * middle

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
            size, middle = storage.nbytes(), self.phase in MIDDLE
            self._sizes[key] = (size, middle)
            self.live += size
            self.middle += size * middle
            self.timeline.append((self.live, self.gradients, self.phase))
            weakref.finalize(storage, self._freed, key)
        return result


@dataclass(frozen=True)
class Lines:
    """The maximum of straight lines in the number of pairs: ``(bytes, bytes per pair)`` each."""

    lines: tuple[tuple[float, float], ...]

    def at(self, pairs: int) -> int:
        """Bytes for that many pairs."""
        return int(max(constant + slope * pairs for constant, slope in self.lines))

    @classmethod
    def through(cls, first: list[int], second: list[int]) -> Lines:
        """From the same moments of two traces with ``SIZES`` pairs."""
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
    tower: nn.Module,
    encode: Callable[[int], Tensor],
    autocast: Callable[[], Any],
    excluded: Iterable[Tensor] = (),
    repeated: Repeated | None = None,
) -> TowerMemory:
    """Count what ``encode(pairs)`` and its backward pass hold. Call it under the ``FakeTensorMode`` that the tensors
    of ``tower`` (all modules that ``encode`` uses) were made in; gradients are left as None.

    ``repeated``: where the tower was shortened; the count is that of the whole one.

    Raises ``MemoryConstraintError`` where the order of operations depends on the number of pairs.
    """
    weights = [*tower.parameters(), *tower.buffers(), *excluded]
    traces = [_trace(tower, partial(encode, pairs), autocast, weights, repeated) for pairs in SIZES]
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


def _trace(
    tower: nn.Module,
    encode: Callable[[], Tensor],
    autocast: Callable[[], Any],
    weights: list[Tensor],
    repeated: Repeated | None,
) -> _Trace:
    extra = repeated.extra if repeated else 0
    live = LiveBytes(weights)
    hooks = [p.register_post_accumulate_grad_hook(live.accumulated) for p in tower.parameters() if p.requires_grad]
    layer_hooks = _watch(live, repeated) if repeated else []
    try:
        for parameter in tower.parameters():
            parameter.grad = None
        with live:
            with autocast():
                embeds = encode()
                within = live.middle  # autocast's copies of the weights live as long as it
            for hook in layer_hooks:  # checkpointing comes by again
                hook.remove()
            if repeated and live.phase != AFTER:
                raise MemoryConstraintError(
                    "The layers of this model do not run one after another, so that its memory cannot be predicted. "
                    "Try "
                    "a run with a small mini_batch_size instead"
                )
            live.phase = BACK_AFTER
            embeds = embeds.float()
            between = live.middle
            saved = live.live + extra * between
            if embeds.requires_grad:
                embeds.backward(torch.ones_like(embeds))
            del embeds
            gradients = live.live + extra * live.middle
    finally:
        for hook in [*hooks, *layer_hooks]:
            hook.remove()
        for parameter in tower.parameters():
            parameter.grad = None
    # What each left-out layer holds in each phase, with its gradients and without those that are complete. The middle
    # layer stands for the first and for the last of its like.
    in_full = live.middle_gradients
    held = {
        BEFORE: ((0, 0),),
        FORWARD: ((0, 0), (within, within)),
        AFTER: ((within, within),),
        BACK_AFTER: ((between, between),),
        BACKWARD: ((between, between), (in_full, 0)),
        BACK_BEFORE: ((in_full, 0),),
    }
    first, again = [], []
    for bytes_now, complete, phase in live.timeline:
        for with_gradients, without in held[phase]:
            first.append(bytes_now + extra * with_gradients)
            again.append(bytes_now - complete + extra * without)
    return _Trace([saved], first, again, gradients)


def _watch(live: LiveBytes, repeated: Repeated) -> list[Any]:
    """Hooks that set the phase where the middle layer begins and ends."""

    def begin(forward: int, backward: int) -> Callable[..., None]:
        def enter(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            live.phase = forward
            hidden = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
            if hidden.requires_grad:  # runs when the gradient of the layer's input is complete

                def leave(gradient: Tensor) -> None:
                    live.phase = backward

                hidden.register_hook(leave)

        return enter

    _, middle, last = repeated.layers
    return [
        middle.register_forward_pre_hook(begin(FORWARD, BACK_BEFORE), with_kwargs=True),
        last.register_forward_pre_hook(begin(AFTER, BACKWARD), with_kwargs=True),
    ]

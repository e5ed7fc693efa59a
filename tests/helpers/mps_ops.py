"""Which ATen operations have a kernel for Apple's GPU, from the operator table that the torch wheel carries.

A Mac is not needed: what a training step calls is recorded on the CPU and looked up in ``native_functions.yaml``. An
operation runs on MPS in eager mode if

- its entry lists MPS, or the out variant that a structured entry delegates to does; or
- it is CompositeImplicit: it is written in terms of others, which are recorded in its stead; or
- it is CompositeExplicit: it has one kernel for all devices, and *what that calls* has to run on MPS too. A dispatch
  mode does not see into such kernels; the profiler does.

A registered decomposition (``torch._decomp``) does not count: only the compiler uses those.

What this cannot show: that an MPS kernel takes these types and shapes, or computes the right numbers; what an
operation with an MPS kernel does inside it; and calls that only happen where ``device.type`` is "mps".
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import torchgen
from torch._C._profiler import _ExperimentalConfig
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torchgen.gen import get_grouped_native_functions, parse_native_yaml
from torchgen.model import DispatchKey, NativeFunction, NativeFunctionsGroup

Kernel = Literal["mps", "implicit", "explicit"]

STAND_INS = {
    # Where the shared kernel asks for the device's own convolution, the CPU's are called …
    "mkldnn_convolution": "_mps_convolution",
    "_slow_conv2d_forward": "_mps_convolution",
    "thnn_conv2d": "_mps_convolution",
    "_conv_depthwise2d": "_mps_convolution",
    "_slow_conv2d_backward": "mps_convolution_backward",
    "mkldnn_convolution_backward": "mps_convolution_backward",
}
"""CPU-only operations, and what stands in their place on MPS."""

COMPANIONS = {
    # MPS takes these besides or instead of what is recorded on the CPU.
    "linear": "linear_backward",
    "convolution": "_mps_convolution",
    "convolution_backward": "mps_convolution_backward",
    "_scaled_dot_product_attention_math": "_scaled_dot_product_attention_math_for_mps",
}

_WITH_OVERLOADS = _ExperimentalConfig(capture_overload_names=True)
_SHOWN = ("/domainclip/", "/transformers/", "/tests/")


@cache
def kernels() -> dict[str, Kernel | None]:
    """For each operation with its overload ("add.Tensor", "mm"): how it runs on MPS, None where it does not."""
    folder = Path(torchgen.__file__).parent / "packaged/ATen/native"
    parsed = parse_native_yaml(str(folder / "native_functions.yaml"), str(folder / "tags.yaml"))
    mps = parsed.backend_indices[DispatchKey.MPS]
    out_of: dict[str, NativeFunction] = {}
    for group in get_grouped_native_functions(parsed.native_functions):
        if isinstance(group, NativeFunctionsGroup) and group.structured:
            out_of |= {str(function.func.name): group.out for function in group.functions()}

    def kernel(function: NativeFunction) -> Kernel | None:
        out = out_of.get(str(function.func.name))
        if mps.has_kernel(function) or (out is not None and mps.has_kernel(out)):
            return "mps"
        if function.has_composite_implicit_autograd_kernel:
            return "implicit"
        shared = (
            function.has_composite_explicit_autograd_kernel
            or function.has_composite_explicit_autograd_non_functional_kernel
            or "generated" in function.tags  # a wrapper around the variant it was generated from
        )
        return "explicit" if shared else None

    return {str(function.func.name): kernel(function) for function in parsed.native_functions}


@dataclass(frozen=True)
class Missing:
    """An operation that MPS lacks."""

    op: str
    inside: str | None
    """The operation whose shared kernel calls it, None where the step calls it directly."""
    node: str | None
    """The autograd node, where it is part of a backward pass."""
    stack: tuple[str, ...]
    """Innermost last: the call, or the forward call whose backward it is."""

    def __str__(self) -> str:
        where = f" (inside {self.inside})" if self.inside else ""
        back = f" in the backward pass, {self.node}, of" if self.node else ""
        return f"aten::{self.op}{where} has no MPS kernel; called{back} from\n    " + "\n    ".join(self.stack)


@dataclass
class Trace:
    """The operations called, by name with overload: ``calls`` by the step, with the autograd node and the place of the
    first call, ``nested`` by kernels that all devices share, with the operation whose kernel it is."""

    calls: dict[str, tuple[str | None, tuple[str, ...]]] = field(default_factory=dict)
    nested: dict[str, str] = field(default_factory=dict)

    def missing(self) -> list[Missing]:
        # What is not in the table is a custom operator: nothing is known of its kernels.
        found = [Missing(op, None, *place) for op, place in self.calls.items() if kernels().get(op) is None]
        inside = {
            **self.nested,
            **{COMPANIONS[op]: op for op in {*self.calls, *self.nested} & COMPANIONS.keys()},
        }
        for op, outer in inside.items():
            if op not in self.calls and kernels().get(op) is None:
                found.append(Missing(op, outer, *self.calls.get(outer, (None, ()))))
        return found


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[str | None, tuple[str, ...]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = op_name(func)
        if name not in self.calls and func.namespace != "profiler":  # the optimizer's labels for the profiler
            self.calls[name] = origin()
        return func(*args, **(kwargs or {}))


def op_name(func: Any) -> str:
    """``add.Tensor`` or ``mm`` for an ATen operation, with its namespace for any other."""
    base = func._schema.name if func.namespace != "aten" else func._schema.name.split("::")[1]
    return base if func._overloadname == "default" else f"{base}.{func._overloadname}"


def origin(depth: int = 4, skip: int = 0) -> tuple[str | None, tuple[str, ...]]:
    """The autograd node that runs, if one does, and the last lines of this project's or ``transformers``' code,
    without the ``skip`` innermost callers."""
    node = torch._C._current_autograd_node()
    if node is not None:
        # Only anomaly detection keeps it; without, the stack is that of the call of backward().
        kept = [entry.splitlines()[0].strip() for entry in node.metadata.get("traceback_", [])]
        lines = [line for line in kept if _is_shown(line)]
        if lines:
            return node.name(), tuple(lines[-depth:])
    frames = [
        f'File "{frame.f_code.co_filename}", line {line}, in {frame.f_code.co_name}'
        for frame, line in traceback.walk_stack(sys._getframe(1 + skip))
        if _is_shown(frame.f_code.co_filename)
    ]
    return (node.name() if node is not None else None), tuple(reversed(frames[:depth]))


def _is_shown(line: str) -> bool:
    own = any(part in line for part in _SHOWN) and Path(__file__).name not in line
    return own and "site-packages/torch/" not in line


def trace(run: Callable[[], object], forward_stacks: bool = False) -> Trace:
    """Everything ``run`` calls, attention by its plain formula (that of MPS). ``forward_stacks``: for what a backward
    pass calls, tell the forward call that it belongs to (slower)."""
    recorder = _Recorder()
    with (
        sdpa_kernel(SDPBackend.MATH),
        torch.autograd.set_detect_anomaly(forward_stacks, check_nan=False),
        profile(activities=[ProfilerActivity.CPU], experimental_config=_WITH_OVERLOADS) as profiler,
        recorder,
    ):
        run()
    nested: dict[str, str] = {}
    for name, outer in _inside_shared(profiler.profiler.kineto_results.experimental_event_tree(), None):
        nested.setdefault(name, outer)
    return Trace(recorder.calls, nested)


def _inside_shared(events: Any, outer: str | None) -> Iterator[tuple[str, str]]:
    """What shared kernels call, each with the operation whose kernel calls it. What an operation with an MPS kernel of
    its own calls on the CPU is of no interest."""
    for event in events:
        within = outer
        if event.name.startswith("aten::"):
            base = event.name.removeprefix("aten::")
            name = STAND_INS.get(base) or (f"{base}.{event.overload_name}" if event.overload_name else base)
            if outer is not None:
                yield name, outer
            kernel = kernels().get(name)
            if kernel in (None, "mps"):
                continue
            within = name if kernel == "explicit" else outer
        yield from _inside_shared(event.children, within)


def missing_on_mps(run: Callable[[], object]) -> list[Missing]:
    """The operations of ``run`` that MPS lacks. ``run`` is called again, for the places, if there are any."""
    return trace(run).missing() and trace(run, forward_stacks=True).missing()


def assert_runs_on_mps(run: Callable[[], object]) -> Trace:
    """What ``run`` calls. Fails with each operation that MPS lacks and the place it is called from."""
    traced = trace(run)
    missing = traced.missing() and trace(run, forward_stacks=True).missing()
    assert not missing, "\n".join(str(entry) for entry in missing)
    return traced

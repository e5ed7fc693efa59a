"""A step that runs out of memory where a test says so, and runs of it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from domainclip.errors import MemoryConstraintError
from domainclip.losses import MultiPositiveContrastiveLoss
from domainclip.training.step.adaptive_step import AdaptiveStep
from domainclip.training.step.gradcache import ContrastiveStep

ROWS, STEPS = 16, 10
CPU = torch.device("cpu")

CUDA_ALLOCATOR = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.65 GiB of which 1.12 GiB is free."
)
MPS_ALLOCATOR = (
    "MPS backend out of memory (MPS allocated: 17.11 GB, other allocations: 384.00 KB, max allowed: 18.13 GB). Tried "
    "to allocate 1.02 GB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit for memory "
    "allocations (may cause system failure)."
)
CPU_ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "67108864 bytes. Error code 12 (Cannot allocate memory)"
)
OUT_OF_MEMORY: list[Exception] = [
    torch.OutOfMemoryError(CUDA_ALLOCATOR),
    RuntimeError(MPS_ALLOCATOR),
    RuntimeError(CPU_ALLOCATOR),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other call"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("Invalid buffer size: 24.00 GiB"),
    RuntimeError("Error: command buffer exited with error status. Insufficient Memory (00000008:kIOGPUCommandBuffer…)"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:75] data. DefaultCPUAllocator: not enough memory: you tried to "
        "allocate 8589934592 bytes."
    ),
    RuntimeError("std::bad_alloc"),
    MemoryError(),
]
OTHERS: list[Exception] = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"),
    ValueError("out of memory"),
    MemoryConstraintError("A batch of 16 pairs does not fit (CUDA out of memory)"),
]


class Towers(nn.Module):
    """Images through two layers, tokens through a mean of vectors."""

    def __init__(self, dropout: float = 0.0, batch_norm: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            norm = nn.BatchNorm1d(24) if batch_norm else nn.Identity()
            self.image = nn.Sequential(nn.Linear(12, 24), norm, nn.GELU(), nn.Dropout(dropout), nn.Linear(24, 8))
            self.text = nn.Sequential(nn.EmbeddingBag(30, 24), nn.Tanh(), nn.Dropout(dropout), nn.Linear(24, 8))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_image(self, pixels: Tensor) -> Tensor:
        embeds: Tensor = self.image(pixels)
        return embeds

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        embeds: Tensor = self.text(input_ids)
        return embeds


def batch_of(seed: int, rows: int = ROWS, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Images of which the last ones share the first ones' captions."""
    generator = torch.Generator().manual_seed(seed)
    texts = rows - rows // 4
    ids = torch.randint(0, 30, (texts, 5), generator=generator)
    index = torch.arange(rows) % texts
    return {
        "pixels": torch.randn(rows, 12, generator=generator, dtype=dtype),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "caption_index": index,
        "group_ids": index.clone(),
    }


class _FailingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, fail: Callable[[], None]) -> Tensor:
        ctx.fail = fail
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.fail()
        return gradients[0], None


class FaultyStep(ContrastiveStep):
    """Runs out of memory where ``plan`` says so: step → places, one for each attempt; and above ``limit`` rows.

    Places: ``image`` and ``text`` (the first pass, its second call where there are several), ``loss``, ``replay`` (the
    second micro-batch's), ``image_backward`` and ``text_backward`` (the last call where there are several, so that
    other gradients are there already).
    """

    def __init__(self, towers: Towers, loss: nn.Module, **options: Any) -> None:
        self.plan: dict[int, list[tuple[str, Exception]]] = {}
        self.limit: int | None = None
        self.number = 0
        self.attempts = 0
        self.now: tuple[str, Exception] | None = None
        self.begin(0, 0)

        def watched(tower: str, encode: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def last_backward() -> None:
                self.backwards[tower] += 1
                if self.backwards[tower] == self.micro_batches[tower]:
                    self.fail(f"{tower}_backward")

            def run(*inputs: Tensor) -> Tensor:
                if self.limit is not None and len(inputs[0]) > self.limit:
                    raise RuntimeError(CPU_ALLOCATOR)
                random.random(), np.random.rand()  # a run's other generators, used by augmentations of one's own
                embeds = encode(*inputs)
                self.passes[tower] += 1
                micro_batches = (
                    -(-self.counts[tower] // len(inputs[0])) if self.passes[tower] == 1 else self.micro_batches[tower]
                )
                self.micro_batches[tower] = micro_batches
                if not self.loss_done and self.passes[tower] == min(2, micro_batches):
                    self.fail(tower)
                if self.loss_done and tower == "image" and self.passes[tower] == micro_batches + 2:
                    self.fail("replay")
                return _FailingBackward.apply(embeds, last_backward) if embeds.requires_grad else embeds

            return run

        def contrast(x: Tensor, y: Tensor, groups: Tensor) -> dict[str, Any]:
            output = loss(x, y, group_ids=groups, logit_scale=towers.logit_scale)
            self.fail("loss")
            self.loss_done = True
            return output

        super().__init__(
            watched("image", towers.encode_image),
            watched("text", towers.encode_text),
            contrast,
            contextlib.nullcontext,
            CPU,
            **options,
        )

    def begin(self, images: int, texts: int) -> None:
        self.counts = {"image": images, "text": texts}
        self.passes, self.backwards = {"image": 0, "text": 0}, {"image": 0, "text": 0}
        self.micro_batches: dict[str, int] = {}
        self.loss_done = False

    def fail(self, place: str) -> None:
        if self.now is not None and self.now[0] == place:
            error = self.now[1]
            self.now = None
            raise error

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.attempts += 1
        self.begin(len(batch["pixels"]), len(batch["input_ids"]))
        planned = self.plan.get(self.number)
        self.now = planned.pop(0) if planned else None
        output = super().__call__(batch)
        assert self.now is None, f"{self.now} was planned for step {self.number} and did not come"
        return output


class Run:
    """A training loop as the trainer's, of few lines."""

    def __init__(
        self,
        micro_batch: int | None = None,
        kept_micro_batches: int = 0,
        loss: nn.Module | None = None,
        dtype: torch.dtype = torch.float64,
        patience: int = 2,
        **towers: Any,
    ) -> None:
        self.towers = Towers(**towers).to(dtype).train()
        self.loss = (loss or MultiPositiveContrastiveLoss()).to(dtype).train()
        self.dtype = dtype
        self.parameters = [*self.towers.parameters(), *self.loss.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-2)
        self.plain = FaultyStep(self.towers, self.loss, micro_batch=micro_batch, kept_micro_batches=kept_micro_batches)
        self.changes: list[tuple[int, int, int, str]] = []
        self.step = AdaptiveStep(
            self.plain, self.towers, self.loss, lambda *change: self.changes.append(change), patience
        )
        self.updates = 0
        self.losses: list[float] = []
        self.gradients: list[list[Tensor]] = []
        self.micro_batches: list[int] = []

    def train(self, steps: int = STEPS, rows: int = ROWS) -> Run:
        for _ in range(steps):
            self.optimizer.zero_grad(set_to_none=True)
            self.plain.number = self.updates + 1
            output = self.step(batch_of(self.updates, rows, self.dtype))
            self.losses.append(float(output["loss"]))
            self.gradients.append([p.grad.clone() for p in self.parameters if p.grad is not None])
            self.micro_batches.append(self.plain.micro_batch_of(rows))
            self.optimizer.step()
            self.updates += 1
        return self

    def state(self) -> dict[str, Any]:
        return {**self.towers.state_dict(), **{f"loss.{k}": v for k, v in self.loss.state_dict().items()}}

    @property
    def moves(self) -> list[tuple[int, int, int]]:
        return [change[:3] for change in self.changes]


def assert_same_run(one: Run, other: Run, tolerance: float = 1e-9) -> None:
    assert one.updates == other.updates == len(one.losses)
    assert one.losses == pytest.approx(other.losses, rel=tolerance)
    for mine, theirs in zip(one.gradients, other.gradients, strict=True):
        for value, reference in zip(mine, theirs, strict=True):
            torch.testing.assert_close(value, reference, rtol=tolerance, atol=tolerance)
    for name, value in one.state().items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(value, other.state()[name], rtol=tolerance, atol=tolerance, msg=name)
        else:
            assert value == other.state()[name], name

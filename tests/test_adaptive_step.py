"""A step that runs out of memory is repeated in smaller chunks, and nothing of the failed attempt is left."""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import out_of_memory_child
from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import CLIPFinetuningError, MemoryConstraintError
from domainclip.losses import CLIPContrastiveLoss, MultiPositiveContrastiveLoss, build_loss
from domainclip.training.adaptive_step import AdaptiveStep, is_out_of_memory
from domainclip.training.gradcache import ContrastiveStep

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
    RuntimeError("[enforce fail at alloc_cpu.cpp:75] data. DefaultCPUAllocator: not enough memory: you tried to "
                 "allocate 8589934592 bytes."),
    RuntimeError("std::bad_alloc"),
    MemoryError(),
]  # fmt: skip
OTHERS: list[Exception] = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"),
    ValueError("out of memory"),
    MemoryConstraintError("A batch of 16 pairs does not fit (CUDA out of memory)"),
]


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """Every repeat looks for garbage: not among the hundred thousands of objects that the imports have made."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:40])
def test_out_of_memory_is_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: str(error)[:40])
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_what_torch_really_raises_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)  # more than any address space
    assert is_out_of_memory(caught.value)


class Towers(nn.Module):
    """Pictures through two layers, tokens through a mean of vectors."""

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
    """Pictures of which the last ones share the first ones' captions."""
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
    second chunk's), ``image_backward`` and ``text_backward`` (the last call where there are several, so that other
    gradients are there already).
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
                if self.backwards[tower] == self.chunks[tower]:
                    self.fail(f"{tower}_backward")

            def run(*inputs: Tensor) -> Tensor:
                if self.limit is not None and len(inputs[0]) > self.limit:
                    raise RuntimeError(CPU_ALLOCATOR)
                random.random(), np.random.rand()  # a run's other generators, used by augmentations of one's own
                embeds = encode(*inputs)
                self.passes[tower] += 1
                chunks = -(-self.counts[tower] // len(inputs[0])) if self.passes[tower] == 1 else self.chunks[tower]
                self.chunks[tower] = chunks
                if not self.loss_done and self.passes[tower] == min(2, chunks):
                    self.fail(tower)
                if self.loss_done and tower == "image" and self.passes[tower] == chunks + 2:
                    self.fail("replay")
                return _FailingBackward.apply(embeds, last_backward) if embeds.requires_grad else embeds

            return run

        def contrast(x: Tensor, y: Tensor, groups: Tensor) -> dict[str, Any]:
            output = loss(x, y, group_ids=groups, logit_scale=towers.logit_scale)
            self.fail("loss")
            self.loss_done = True
            return output

        super().__init__(
            watched("image", towers.encode_image), watched("text", towers.encode_text), contrast,
            contextlib.nullcontext, CPU, **options,
        )  # fmt: skip

    def begin(self, images: int, texts: int) -> None:
        self.counts = {"image": images, "text": texts}
        self.passes, self.backwards = {"image": 0, "text": 0}, {"image": 0, "text": 0}
        self.chunks: dict[str, int] = {}
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
        chunk: int | None = None,
        kept_chunks: int = 0,
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
        self.plain = FaultyStep(self.towers, self.loss, chunk=chunk, kept_chunks=kept_chunks)
        self.changes: list[tuple[int, int, int, str]] = []
        self.step = AdaptiveStep(
            self.plain, self.towers, self.loss, lambda *change: self.changes.append(change), patience
        )
        self.updates = 0
        self.losses: list[float] = []
        self.gradients: list[list[Tensor]] = []
        self.chunks: list[int] = []

    def train(self, steps: int = STEPS, rows: int = ROWS) -> Run:
        for _ in range(steps):
            self.optimizer.zero_grad(set_to_none=True)
            self.plain.number = self.updates + 1
            output = self.step(batch_of(self.updates, rows, self.dtype))
            self.losses.append(float(output["loss"]))
            self.gradients.append([p.grad.clone() for p in self.parameters if p.grad is not None])
            self.chunks.append(self.plain.chunk_of(rows))
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


WHOLE = ("image", "text", "loss", "image_backward", "text_backward")


@pytest.mark.parametrize("place", WHOLE)
def test_a_whole_batch_that_failed_anywhere_is_repeated_in_chunks(place: str) -> None:
    undisturbed = Run().train()
    disturbed = Run(patience=100)
    disturbed.plain.plan = {4: [(place, OUT_OF_MEMORY[0])]}
    disturbed.train()
    assert disturbed.plain.attempts == STEPS + 1
    assert disturbed.moves == [(4, 16, 8)]
    assert disturbed.chunks == [16] * 3 + [8] * 7
    assert undisturbed.changes == []
    assert_same_run(disturbed, undisturbed)


@pytest.mark.parametrize("kept", [0, 3])
@pytest.mark.parametrize("seed", range(4))
def test_a_run_that_runs_out_at_random_is_the_run_that_never_did(seed: int, kept: int) -> None:
    draw = random.Random(seed)
    undisturbed = Run().train()
    disturbed = Run(chunk=8, kept_chunks=kept)
    steps = draw.sample(range(1, STEPS + 1), 3)
    # Pictures' chunks that have kept their graph are not replayed, so nothing can happen there.
    disturbed.plain.plan = {
        step: [(draw.choice(WHOLE if kept else (*WHOLE, "replay")), draw.choice(OUT_OF_MEMORY))] for step in steps
    }
    disturbed.plain.plan[steps[0]].append(("loss", draw.choice(OUT_OF_MEMORY)))  # and the repeat fails as well
    disturbed.train()
    assert disturbed.plain.attempts == STEPS + 4
    assert len([change for change in disturbed.changes if "out of memory (" in change[3]]) == 4
    assert_same_run(disturbed, undisturbed)
    # logit_scale's gradient is there once, however often it was begun.
    scales = [[g for g in step if g.ndim == 0] for step in disturbed.gradients]
    assert all(len(found) == 1 and abs(float(found[0])) > 1e-6 for found in scales)


def test_in_float32_the_repeated_steps_gradient_is_that_of_the_whole_batch() -> None:
    for place in ("loss", "text_backward"):
        whole, repeated = Run(dtype=torch.float32), Run(dtype=torch.float32)
        repeated.plain.plan = {1: [(place, OUT_OF_MEMORY[2]), ("replay", OUT_OF_MEMORY[2])]}
        whole.train(1)
        repeated.train(1)
        assert repeated.chunks == [4]
        for value, reference in zip(repeated.gradients[0], whole.gradients[0], strict=True):
            assert float((value - reference).norm()) <= 1e-5 * float(reference.norm())
            assert float(reference.norm()) > 1e-6


def test_dropout_and_every_generator_are_those_of_a_run_with_the_same_chunks() -> None:
    disturbed = Run(dropout=0.4, patience=100)
    disturbed.plain.plan = {3: [("loss", OUT_OF_MEMORY[0])], 6: [("replay", OUT_OF_MEMORY[1])]}
    planned = Run(dropout=0.4)
    states = []
    for run in (disturbed, planned):
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)
        for step, chunk in enumerate([16, 16, 8, 8, 8, 4, 4, 4], start=1):
            if run is planned:
                run.plain.chunk = chunk
            run.train(1)
            assert run.chunks[-1] == chunk, step
        states.append((torch.get_rng_state(), np.random.get_state()[1:3], random.getstate()))
    assert_same_run(disturbed, planned)
    assert torch.equal(states[0][0], states[1][0])
    assert np.array_equal(states[0][1][0], states[1][1][0]) and states[0][1][1] == states[1][1][1]
    assert states[0][2] == states[1][2]


class RememberingLoss(nn.Module):
    """An objective with every kind of memory, all of which its next value depends on."""

    kept: Tensor
    replaced: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.contrastive = CLIPContrastiveLoss()
        self.register_buffer("kept", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))
        self.start = nn.Parameter(torch.zeros(()))
        self.calls: dict[str, list[int]] = {"sizes": []}

    def get_extra_state(self) -> dict[str, list[int]]:
        return self.calls

    def set_extra_state(self, state: dict[str, list[int]]) -> None:
        self.calls = state

    def forward(self, x: Tensor, y: Tensor, group_ids: Tensor, logit_scale: Tensor) -> dict[str, Any]:
        output = self.contrastive(x, y, logit_scale=logit_scale)
        if not self.calls["sizes"]:
            with torch.no_grad():
                self.start.add_(output["loss"].detach())
        self.calls["sizes"].append(len(x))
        self.kept.mul_(0.9).add_(output["loss"].detach())
        self.replaced = self.replaced + 1
        factor = 1 + 0.1 * self.kept + 0.05 * self.replaced + 0.01 * len(self.calls["sizes"])
        return {**output, "loss": output["loss"] * factor + self.start.square()}


@pytest.mark.parametrize("place", ["loss", "text_backward"])
def test_an_objectives_memory_forgets_the_failed_attempt(place: str) -> None:
    undisturbed = Run(loss=RememberingLoss()).train(4)
    disturbed = Run(loss=RememberingLoss())
    disturbed.plain.plan = {1: [(place, OUT_OF_MEMORY[0])], 3: [(place, OUT_OF_MEMORY[0])]}
    disturbed.train(4)
    assert disturbed.loss.get_extra_state() == {"sizes": [ROWS] * 4}
    assert len(disturbed.changes) >= 2
    assert_same_run(disturbed, undisturbed)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "sigmoid"},
        {"loss_type": "combined", "objectives": {"multi_positive": 1, "sigmoid": 0.1},
         "loss_balancing": "gradient_norm"},
    ],
    ids=["sigmoid", "gradient_norm"],
)  # fmt: skip
def test_the_packages_own_objectives_with_a_memory(settings: dict[str, Any]) -> None:
    config = CLIPFinetuningConfig(**settings)
    undisturbed = Run(loss=build_loss(config)).train(4)
    disturbed = Run(loss=build_loss(config))
    disturbed.plain.plan = {1: [("text_backward", OUT_OF_MEMORY[0])], 2: [("loss", OUT_OF_MEMORY[0])]}
    disturbed.train(4)
    assert_same_run(disturbed, undisturbed)


def test_frozen_batch_norm_goes_in_chunks_and_live_batch_norm_is_told() -> None:
    undisturbed, disturbed = Run(batch_norm=True), Run(batch_norm=True)
    for run in (undisturbed, disturbed):
        run.towers.image[1].eval()
    disturbed.plain.plan = {2: [("image", OUT_OF_MEMORY[0])]}
    assert_same_run(disturbed.train(4), undisturbed.train(4))

    live = Run(batch_norm=True).train(1)
    live.plain.plan = {2: [("text_backward", OUT_OF_MEMORY[0])]}
    before = {name: value.clone() for name, value in live.towers.state_dict().items()}
    assert int(before["image.1.num_batches_tracked"]) == 1
    with pytest.raises(MemoryConstraintError, match="Set freeze_batch_norm=true"):
        live.train(1)
    after = live.towers.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert live.changes == []


def test_the_chunk_grows_back_and_a_failed_try_is_made_less_often() -> None:
    run = Run(patience=3)
    run.plain.limit = 4
    run.train(9)
    run.plain.limit = None
    run.train(10)
    run.plain.limit = 8
    run.train(2)
    assert run.moves == [
        (1, 16, 8), (1, 8, 4),
        (4, 4, 8), (4, 8, 4),  # tried after three steps, in vain: the patience is six
        (10, 4, 8), (16, 8, 16),
        (20, 16, 8),  # and failed later on: twelve
    ]  # fmt: skip
    assert run.step.patience == 12
    assert run.plain.attempts == 21 + 2 + 1 + 1
    assert "3 steps in a row went well" in run.changes[2][3]
    assert "DefaultCPUAllocator" in run.changes[3][3]
    assert_same_run(run, Run().train(21))


def test_graphs_that_are_kept_go_first_and_come_back() -> None:
    run = Run(chunk=1, kept_chunks=5, patience=2)
    run.plain.plan = {1: [("image", OUT_OF_MEMORY[0])]}
    run.train(2)
    assert (run.plain.chunk, run.plain.kept_chunks) == (1, 0)
    assert run.moves == [(1, 1, 1)] and "no chunk keeps its graph" in run.changes[0][3]
    run.train(1)
    assert (run.plain.chunk, run.plain.kept_chunks) == (1, 5)
    assert_same_run(run, Run().train(3))


def test_small_pictures_go_in_larger_chunks_until_that_is_too_much() -> None:
    run = Run(chunk=2)
    run.step.enlarge(4)
    assert run.plain.chunk_of(16) == 8 and run.plain.chunk_of(6) == 6
    run.plain.limit = 4
    run.train(1)
    assert run.moves == [(1, 8, 2)] and "no larger chunks for small pictures" in run.changes[0][3]
    run.step.enlarge(4)
    assert run.plain.chunk_of(16) == 2
    again = Run(chunk=2)
    again.step.load_state(run.step.get_state())
    again.step.enlarge(4)
    assert again.plain.chunk_of(16) == 2
    whole = Run()  # that goes through whole has nothing to enlarge
    whole.step.enlarge(4)
    whole.plain.limit = 8
    whole.train(1)
    assert whole.moves == [(1, 16, 8)]
    assert_same_run(run, Run().train(1))


def test_a_batch_that_fits_anyway_is_no_try() -> None:
    run = Run(patience=2)
    run.plain.limit = 8
    run.train(1)
    run.train(5, rows=8)
    assert run.moves == [(1, 16, 8)]
    run.train(1)
    assert run.moves[1:] == [(7, 8, 16), (7, 16, 8)]


def test_an_odd_chunk_is_halved_upwards_until_one_row_does_not_fit() -> None:
    run = Run(chunk=5)
    run.plain.limit = 0
    with pytest.raises(MemoryConstraintError, match=r"even one pair at a time .*gradient_checkpointing=true") as caught:
        run.train(1)
    assert [old for _, old, _ in run.moves] == [5, 3, 2]
    assert "DefaultCPUAllocator" in str(caught.value)
    assert run.updates == 0
    assert all(p.grad is None for p in run.parameters)


def test_other_errors_pass_through() -> None:
    run = Run()
    run.plain.plan = {1: [("loss", OTHERS[0])]}
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run.train(1)
    assert (run.plain.attempts, run.changes) == (1, [])


def test_gradients_from_before_are_refused() -> None:
    run = Run().train(1)
    with pytest.raises(CLIPFinetuningError, match="zero_grad"):
        run.step(batch_of(0))


def test_a_resumed_run_makes_the_same_choices() -> None:
    def limited(steps: int) -> Run:
        run = Run(kept_chunks=2, dropout=0.2, patience=2)
        torch.manual_seed(9)
        run.plain.limit = 4
        return run.train(steps)

    whole = limited(12)
    first = limited(6)
    state = json.loads(json.dumps(first.step.get_state()))  # plain enough for any file
    again = Run(dropout=0.2)
    again.plain.limit = 4
    again.towers.load_state_dict(copy.deepcopy(first.towers.state_dict()))
    again.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    again.updates = first.updates
    again.step.load_state(state)
    assert again.step.get_state() == first.step.get_state()
    again.train(6)
    assert again.moves == whole.moves[len(first.moves) :]
    assert again.moves  # something was decided after the resumption
    assert again.step.get_state() == whole.step.get_state()
    assert all(torch.equal(value, whole.towers.state_dict()[name]) for name, value in again.towers.state_dict().items())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to a limit on address space")
def test_a_real_limit_on_memory(tmp_path: Path) -> None:
    file = tmp_path / "run.pt"
    child = [sys.executable, out_of_memory_child.__file__, str(file), "70"]
    done = subprocess.run(child, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    limited = torch.load(file)
    rows = out_of_memory_child.ROWS
    assert limited["changes"][0][:3] == [2, rows, rows // 2]
    assert all("allocate memory" in reason for *_, reason in limited["changes"])  # the allocator's own words
    weights, changes = out_of_memory_child.train()
    assert changes == []
    for name, value in weights.items():
        torch.testing.assert_close(limited["weights"][name], value, rtol=1e-9, atol=1e-9)

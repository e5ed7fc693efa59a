"""Sliced attention equals plain attention in every direction, keeps no matrix, and is chosen for stated reasons."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from attention_cases import GIB, relative_difference
from domainclip.errors import ConfigurationError
from domainclip.models.attention import (
    BLOCK_FRACTION,
    choose_attention,
    choose_slice_size,
)
from domainclip.models.checkpoint_blocks import checkpoint_options
from domainclip.models.sliced_attention import sliced_attention

BATCH, HEADS, TOKENS, DIM = 2, 3, 37, 8


def inputs(dtype: torch.dtype, tokens: int = TOKENS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, HEADS, tokens, DIM)
    # The same numbers in every format.
    return [torch.randn(shape, generator=generator).bfloat16().to(dtype).requires_grad_() for _ in range(3)]


def masks(tokens: int = TOKENS) -> dict[str, Tensor | None]:
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril().expand(BATCH, 1, tokens, tokens)
    padding = torch.ones(BATCH, 1, 1, tokens, dtype=torch.bool)
    padding[1, ..., tokens // 2 :] = False
    added = torch.randn(BATCH, 1, tokens, tokens, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return {"none": None, "causal": causal, "padding": padding, "both": causal & padding, "added": added}


def by_hand(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """The definition, one query at a time, as [batch, queries, heads, dim]."""
    tokens = query.shape[2]
    rows = []
    for row in range(tokens):
        scores = (query[:, :, row, None] * key).sum(-1) / math.sqrt(query.shape[-1])  # [batch, heads, keys]
        if mask is not None:
            part = mask.expand(BATCH, 1, tokens, tokens)[:, :, row]
            scores = scores.where(part, -math.inf) if part.dtype == torch.bool else scores + part
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        weights = weights / weights.sum(-1, keepdim=True)
        rows.append((weights[..., None] * value).sum(2))
    return torch.stack(rows, dim=1)


def results(output: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """The output, and the gradient of a sum of it with uneven weights."""
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return [output.detach(), *torch.autograd.grad((output * weights.to(output.dtype)).sum(), leaves)]


@pytest.mark.parametrize("kind", ["none", "causal", "padding", "both", "added"])
@pytest.mark.parametrize("slice_size", [1, 5, 16, TOKENS, 64])
def test_slices_equal_the_definition_both_ways(kind: str, slice_size: int) -> None:
    mask = masks()[kind]
    leaves = inputs(torch.float64)
    reference = results(by_hand(*leaves, mask), leaves)
    mine, weights = sliced_attention(nn.Module(), *leaves, mask, slice_size=slice_size)
    assert weights is None
    assert mine.is_contiguous()
    assert relative_difference(results(mine, leaves), reference) < 1e-12
    single = inputs(torch.float32)
    mask = mask.float() if kind == "added" and mask is not None else mask
    mine, _ = sliced_attention(nn.Module(), *single, mask, scaling=DIM**-0.5, slice_size=slice_size)
    assert relative_difference(results(mine, single), reference) < 1e-6


def test_a_causal_caller_without_a_mask_is_obeyed() -> None:
    leaves = inputs(torch.float64)
    mine, _ = sliced_attention(nn.Module(), *leaves, None, is_causal=True, slice_size=8)
    assert relative_difference(results(mine, leaves), results(by_hand(*leaves, masks()["causal"]), leaves)) < 1e-12


def test_a_row_that_may_look_nowhere_is_finite() -> None:
    mask = torch.ones(BATCH, 1, TOKENS, TOKENS, dtype=torch.bool)
    mask[0, :, 3] = False
    leaves = inputs(torch.float32)
    mine, _ = sliced_attention(nn.Module(), *leaves, mask, slice_size=8)
    assert all(bool(value.isfinite().all()) for value in results(mine, leaves))


@pytest.mark.parametrize("unknown", ["position_bias", "softcap"])
def test_what_it_does_not_compute_is_refused(unknown: str) -> None:
    with pytest.raises(ConfigurationError, match=unknown):
        sliced_attention(nn.Linear(1, 1), *inputs(torch.float32), None, **{unknown: torch.zeros(1)})


# --- dropout ---


def test_one_block_draws_the_dropout_of_plain_attention() -> None:
    leaves = inputs(torch.float64)
    torch.manual_seed(5)
    weights = F.dropout(torch.softmax(leaves[0] @ leaves[1].mT / math.sqrt(DIM), dim=-1), 0.4)
    reference = results((weights @ leaves[2]).transpose(1, 2), leaves)
    torch.manual_seed(5)
    mine, _ = sliced_attention(nn.Module(), *leaves, None, dropout=0.4, slice_size=TOKENS)
    assert relative_difference(results(mine, leaves), reference) < 1e-12


def test_recomputed_blocks_drop_what_they_dropped() -> None:
    """Against the same blocks with their graphs kept."""
    leaves = inputs(torch.float64)
    torch.manual_seed(5)
    blocks = [
        F.dropout(torch.softmax(rows @ leaves[1].mT / math.sqrt(DIM), dim=-1), 0.4) @ leaves[2]
        for rows in leaves[0].split(8, dim=2)
    ]
    after = torch.get_rng_state()
    reference = results(torch.cat(blocks, dim=2).transpose(1, 2), leaves)
    torch.manual_seed(5)
    mine, _ = sliced_attention(nn.Module(), *leaves, None, dropout=0.4, slice_size=8)
    assert relative_difference(results(mine, leaves), reference) < 1e-12
    assert torch.equal(torch.get_rng_state(), after)  # the second time takes no numbers of its own


@pytest.mark.parametrize("covered", [True, False])
def test_a_device_whose_random_state_torch_forgets_is_covered(monkeypatch: pytest.MonkeyPatch, covered: bool) -> None:
    """MPS (pytorch issue 127676), acted by the CPU: torch's own replay of the generator is off."""
    module = importlib.import_module("domainclip.models.sliced_attention")

    def forgetful(*arguments: Any, preserve_rng_state: bool, **options: Any) -> Any:
        assert preserve_rng_state
        return checkpoint(*arguments, preserve_rng_state=False, **options)

    monkeypatch.setattr(torch.mps, "get_rng_state", torch.get_rng_state)
    monkeypatch.setattr(torch.mps, "set_rng_state", torch.set_rng_state)
    monkeypatch.setattr(module, "checkpoint", forgetful)
    if covered:
        monkeypatch.setattr(module, "checkpoint_options", lambda _: checkpoint_options(torch.device("mps")))
    leaves = inputs(torch.float64)
    torch.manual_seed(5)
    blocks = [
        F.dropout(torch.softmax(rows @ leaves[1].mT / math.sqrt(DIM), dim=-1), 0.4) @ leaves[2]
        for rows in leaves[0].split(8, dim=2)
    ]
    reference = results(torch.cat(blocks, dim=2).transpose(1, 2), leaves)
    torch.manual_seed(5)
    mine, _ = sliced_attention(nn.Module(), *leaves, None, dropout=0.4, slice_size=8)
    difference = relative_difference(results(mine, leaves), reference)
    assert difference < 1e-12 if covered else difference > 0.1


# --- memory ---


def kept_bytes(compute: Any) -> tuple[int, int, Tensor]:
    """All bytes that wait for the backward pass, the largest storage among them, and the output."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = compute()
    return sum(storages.values()), max(storages.values()), output


def peak_bytes(compute: Any) -> int:
    """The most that was allocated at one time, counted by torch's own allocator."""
    with profile(profile_memory=True) as record:
        compute()
    present = most = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            present += event.nbytes()
            most = max(most, present)
    return most


def test_no_matrix_waits_for_the_backward_pass() -> None:
    tokens = 256
    leaves = inputs(torch.float32, tokens)
    each = leaves[0].numel() * 4
    matrix = BATCH * HEADS * tokens**2 * 4
    sliced, largest, _ = kept_bytes(lambda: sliced_attention(nn.Module(), *leaves, None, slice_size=32)[0])
    assert largest == each
    assert sliced <= 4 * each  # queries (scaled), keys, values
    plain, _, _ = kept_bytes(lambda: torch.softmax(leaves[0] @ leaves[1].mT, dim=-1) @ leaves[2])
    assert plain >= matrix


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_block_takes_what_was_predicted(precision: str, dtype: torch.dtype, dropout: float) -> None:
    tokens, memory = 1024, 40 * 2**20
    leaves = inputs(dtype, tokens)
    size, _ = choose_slice_size(tokens, BATCH, HEADS, precision, memory, dropout > 0)
    assert size < tokens / 4

    def compute() -> None:
        output, _ = sliced_attention(nn.Module(), *leaves, None, dropout=dropout, slice_size=size)
        output.sum().backward()

    compute()
    whole = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
    peak = peak_bytes(compute)  # gradients, outputs and the scaled queries come on top of the block
    assert 0.7 * memory * BLOCK_FRACTION < peak <= memory * BLOCK_FRACTION + 3 * whole


class Operations(TorchDispatchMode):
    """The names of the operations that reach the kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["none", "causal flag", "causal", "added", "dropout"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_auto_believes_of_sdpa_on_the_cpu(kind: str, dtype: torch.dtype) -> None:
    tokens = 256
    leaves = inputs(dtype, tokens)
    mask = masks(tokens).get(kind)
    if mask is not None and kind == "added":
        mask = mask.to(dtype)
    matrix = BATCH * HEADS * tokens**2 * dtype.itemsize
    with Operations() as seen:
        kept, _, output = kept_bytes(
            lambda: F.scaled_dot_product_attention(
                *leaves, mask, dropout_p=0.1 if kind == "dropout" else 0.0, is_causal=kind == "causal flag"
            )
        )
        output.sum().backward()
    fused = {
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    } <= seen.names
    decision = choose_attention(tokens, BATCH, HEADS, "cpu", True, "fp32", GIB, dropout=0.1 * (kind == "dropout"))
    if kind == "dropout":
        assert not fused
        assert kept > 2 * matrix
        assert decision.name == "sliced"
    else:
        assert fused
        assert kept < matrix
        assert decision.name == "sdpa"

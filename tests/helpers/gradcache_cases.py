"""Batches and gradients for tests of chunks."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from domainclip.losses import CLIPContrastiveLoss, MultiPositiveContrastiveLoss
from domainclip.models import DualEncoder, make_tiny_clip
from domainclip.training import ContrastiveStep

ROWS = 8
Loss = CLIPContrastiveLoss | MultiPositiveContrastiveLoss


def batch_of(texts: int = 5, seed: int = 0) -> dict[str, Any]:
    """Eight images that share five texts."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.tensor([0, 1, 2, 3, 4, 0, 2, 0])
    length = 9
    ids = torch.randint(5, 300, (texts, length), generator=generator)
    end = make_tiny_clip().processor.tokenizer.eos_token_id
    ids[:, -1] = end
    return {
        "pixels": torch.randn(ROWS, 3, 32, 32, generator=generator, dtype=torch.float64),
        "input_ids": ids,
        "attention_mask": torch.ones(texts, length, dtype=torch.long),
        "caption_index": index,
        "group_ids": index.clone(),
    }


def step_of(encoder: DualEncoder, loss: Loss, micro_batch: int | None) -> ContrastiveStep:
    return ContrastiveStep(
        encoder.encode_image,
        encoder.encode_text,
        lambda x, y, g: loss(x, y, group_ids=g, logit_scale=encoder.logit_scale),
        contextlib.nullcontext,
        torch.device("cpu"),
        micro_batch,
    )


def gradients(encoder: DualEncoder) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in encoder.model.named_parameters() if p.grad is not None}
    encoder.zero_grad(set_to_none=True)
    return found


def assert_equal(mine: dict[str, Tensor], reference: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert mine.keys() == reference.keys()
    for name, expected in reference.items():
        torch.testing.assert_close(
            mine[name], expected, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert any(float(value.abs().max()) > 1e-4 for value in reference.values())

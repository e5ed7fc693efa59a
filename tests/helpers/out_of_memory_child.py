"""A short training that holds far more for a whole batch than for a part of it; as a process, under a real limit.

``python out_of_memory_child.py FILE ROOM`` trains with at most ROOM MiB beyond what the process has mapped after a
first, small step, and writes the final weights and what the step said to FILE.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from domainclip.losses import CLIPContrastiveLoss
from domainclip.training.step.adaptive_step import AdaptiveStep
from domainclip.training.step.gradcache import ContrastiveStep

ROWS, WIDTH, STEPS = 512, 8_192, 2


class WideTowers(nn.Module):
    """32 MiB after each of the image tower's two wide layers for 512 rows in float64; 2 MiB of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(16, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 8))
        self.text = nn.EmbeddingBag(50, 8)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        embeds: Tensor = self.text(input_ids)
        return embeds


def batch_of(rows: int, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 50, (rows, 5), generator=generator)
    return {
        "pixels": torch.randn(rows, 16, generator=generator, dtype=torch.float64),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "caption_index": torch.arange(rows),
        "group_ids": torch.arange(rows),
    }


def train(room_mb: int | None = None) -> tuple[dict[str, Tensor], list[tuple[int, int, int, str]]]:
    """The final weights, and the changes of the micro-batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        towers = WideTowers().double().train()
    loss = CLIPContrastiveLoss()
    optimizer = torch.optim.SGD(towers.parameters(), lr=0.05, momentum=0.9)
    changes: list[tuple[int, int, int, str]] = []
    step = AdaptiveStep(
        ContrastiveStep(
            towers.image,
            towers.encode_text,
            lambda x, y, groups: loss(x, y, group_ids=groups, logit_scale=towers.logit_scale),
            contextlib.nullcontext,
            torch.device("cpu"),
        ),
        towers,
        loss,
        on_change=lambda *change: changes.append(change),
    )

    def one_step(batch: dict[str, Any]) -> None:
        optimizer.zero_grad(set_to_none=True)
        step(batch)
        optimizer.step()

    one_step(batch_of(8, seed=99))  # what is loaded or allocated once, the optimizer's state with it
    if room_mb is not None:
        import resource

        mapped = psutil.Process().memory_info().vms
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (mapped + room_mb * 2**20, hard))
    for index in range(STEPS):
        one_step(batch_of(ROWS, seed=index))
    return {name: value.detach() for name, value in towers.state_dict().items()}, changes


if __name__ == "__main__":
    torch.set_num_threads(1)
    weights, changes = train(int(sys.argv[2]))
    torch.save({"weights": weights, "changes": [list(change) for change in changes]}, Path(sys.argv[1]))

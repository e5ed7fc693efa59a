"""What several tests of batches read."""

from __future__ import annotations

import torch

from domainclip.data.batches import (
    EpochBatchSampler,
)

# --- order ---


def keys(sampler: EpochBatchSampler) -> list[list[tuple[int, int]]]:
    return list(sampler)


# --- batches of hard negatives ---


def random_neighbours(rows: int, k: int, seed: int) -> torch.Tensor:
    """Any row numbers, the row itself and −1 among them."""
    return torch.randint(-1, rows, (rows, k), generator=torch.Generator().manual_seed(seed))


def hard_negative_sampler(
    rows, size, fraction, neighbours, seed=0, drop_last=True, epoch=0, skip=0
) -> EpochBatchSampler:
    sampler = EpochBatchSampler(
        rows, size, seed, shuffle=True, drop_last=drop_last, hard_negative_batch_fraction=fraction
    )
    sampler.set_neighbours(neighbours)
    sampler.set_position(epoch, skip)
    return sampler

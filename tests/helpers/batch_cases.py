"""What several tests of batches read."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader

from domainclip.config import CLIPFinetuningConfig
from domainclip.data.batches import EpochBatchSampler, create_training_loader
from domainclip.data.dataset import CLIPDataset
from domainclip.data.step_plan import StepPlan


def plan_of(rows: int = 100, batch: int = 8, resolution: int = 224, **values) -> StepPlan:
    config = CLIPFinetuningConfig(**{"num_epochs": 3, **values})
    size = {"rows": rows, "batch_size": batch, "full_resolution": resolution}
    return StepPlan.from_settings(config, config, config, seed=config.seed, **size)


def training_loader(
    dataset: CLIPDataset, config: CLIPFinetuningConfig, batch_size: int, pad_to_multiple: int = 1
) -> DataLoader:
    """The trainer's own loader for a flat recipe."""
    size = {"rows": len(dataset), "batch_size": batch_size, "full_resolution": dataset.image_transform.resolution}
    plan = StepPlan.from_settings(config, config, config, seed=config.seed, **size)
    return create_training_loader(dataset, config, plan, pad_to_multiple)


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

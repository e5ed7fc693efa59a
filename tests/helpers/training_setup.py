"""A trainer over the tiny data, built by hand so that a test can change any part."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from batch_cases import training_loader
from domainclip.config import CLIPFinetuningConfig
from domainclip.data.dataset import CLIPDataset
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.transforms import ImageTransform
from domainclip.data.records import ImageTextPair
from domainclip.devices.precision import choose_precision
from domainclip.domains.files import load_domain
from domainclip.events import Emitter
from domainclip.losses import build_loss
from domainclip.models import DualEncoder, make_tiny_clip
from domainclip.resolve import ResolvedRun
from domainclip.tracking import ConsoleListener
from domainclip.tracking.jsonl import EventFile, metrics_row
from domainclip.training import TrainContext, Trainer, TrainingParts, Validation, build_trainer
from domainclip.training.distributed import OneProcess, ProcessGroup
from domainclip.training.regularization.initial_weights import InitialWeights
from domainclip.training.step.train_step import FurtherTerms

SHORT_RUN: dict[str, Any] = {
    "device": "cpu",
    "mixed_precision": False,
    "batch_size": 6,
    "num_epochs": 2,
    "eval_steps": 2,
    "save_steps": 2,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "early_stopping_patience": 0,
    "num_workers": 0,
}
"""Keys of a whole run that is short, and validates, logs and saves all the way."""

DEFAULTS: dict[str, Any] = {
    "model_name": "tiny",
    "loss_type": "multi_positive",
    "batch_size": 6,
    "num_epochs": 2,
    "learning_rate": 1e-3,
    "warmup_steps": 1,
    "image_resolution": 32,
    "num_workers": 0,
    "mixed_precision": False,
    "logging_steps": 1,
    "save_steps": 2,
    "eval_steps": 3,
}


def make_trainer(
    pairs: Sequence[ImageTextPair],
    folder: Path,
    *,
    encoder: DualEncoder | None = None,
    loss: torch.nn.Module | None = None,
    validate: Callable[[], Validation] | None = None,
    processes: ProcessGroup | None = None,
    start: InitialWeights | None = None,
    console: Console | None = None,
    **values: Any,
) -> Trainer:
    """18 rows in batches of 6: three steps an epoch, six in all. Dropout and augmentation are on."""
    config = CLIPFinetuningConfig(**{**DEFAULTS, **values})
    encoder = encoder or make_tiny_clip(attention_dropout=0.1)
    transform = ImageTransform(config, augment=True, spec=ImageSpec.from_processor(encoder.processor.image_processor))
    dataset = CLIPDataset(pairs, encoder.processor, config, transform)
    batch = (config.batch_size or 6) * config.gradient_accumulation_steps
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed + (processes.rank if processes else 0))
    emitter = Emitter()
    if processes is None or processes.is_first:
        emitter.add(EventFile(folder / "metrics.jsonl", metrics_row, emitter.warn))
        emitter.add(ConsoleListener(console or Console(quiet=True)))
    return build_trainer(
        TrainContext(folder, processes=processes or OneProcess(), emitter=emitter),
        encoder,
        loss or build_loss(config),
        training_loader(dataset, config, batch),
        ResolvedRun(config.frozen(), load_domain(config.domain)),
        torch.device("cpu"),
        choose_precision("cpu", "fp32"),
        TrainingParts(evaluate=validate, terms=FurtherTerms(start)),
    )


class Stop(Exception):
    pass


def train_until(trainer: Trainer, stop_at: int) -> None:
    """Train, and be thrown out before the step after step ``stop_at``."""
    take = trainer.step.update

    def stopping(batch: dict[str, Any], step: int) -> Any:
        if step == stop_at:
            raise Stop
        return take(batch, step)

    trainer.step.update = stopping  # type: ignore[method-assign]
    with pytest.raises(Stop):
        trainer.train()


@contextmanager
def one_of_two(rank: int, port: int) -> Iterator[ProcessGroup]:
    """In a process that was spawned for it: a group of two over gloo, with one thread each."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    processes = ProcessGroup.from_environment(torch.device("cpu"))
    assert processes is not None
    with processes:
        yield processes


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.encoder.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())

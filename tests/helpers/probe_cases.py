"""The probe over the tiny data, as tests ask for it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch

from domainclip.config import CLIPFinetuningConfig
from domainclip.data.dataset import CLIPDataset
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.transforms import ImageTransform
from domainclip.data.records import ImageTextPair
from domainclip.inference.prompts import class_prompts
from domainclip.losses import build_loss
from domainclip.models import DualEncoder
from domainclip.training.probe.probe import Probe

CPU = torch.device("cpu")
VALUES: dict[str, Any] = {
    "model_name": "tiny",
    "loss_type": "multi_positive",
    "image_resolution": 32,
    "num_workers": 0,
    "probe_steps": 30,
    "probe_learning_rate": 1e-2,
    "class_balance": False,
}


def dataset(pairs: Sequence[ImageTextPair], encoder: DualEncoder, augment: bool = True, **values: Any) -> CLIPDataset:
    config = CLIPFinetuningConfig(**{**VALUES, **values})
    spec = ImageSpec.from_processor(encoder.processor.image_processor)
    return CLIPDataset(pairs, encoder.processor, config, ImageTransform(config, augment, spec))


def make_probe(
    encoder: DualEncoder, pairs: Sequence[ImageTextPair], val: Sequence[ImageTextPair] = (), **values: Any
) -> Probe:
    """As a run makes it, without its preparation of captions."""
    config = CLIPFinetuningConfig(**{**VALUES, **values})
    data = dataset(pairs, encoder, **values)
    labels = sorted({pair.label for pair in pairs if pair.label})
    return Probe(
        encoder,
        build_loss(config),
        data,
        config,
        config.seed,
        CPU,
        contextlib.nullcontext,
        4,
        dataset(val, encoder, False, **values) if val else None,
        class_prompts(labels) if len(labels) > 1 else None,
        None,
        config.l2sp_strength,
        config.distillation_strength,
    )

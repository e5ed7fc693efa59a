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
from domainclip.training.probe.choice import Choice
from domainclip.training.probe.probe import Probe, ProbeReading
from domainclip.training.probe.progress import ProbeProgress

CPU = torch.device("cpu")
VALUES: dict[str, Any] = {
    "model_name": "tiny",
    "loss_type": "multi_positive",
    "image_resolution": 32,
    "num_workers": 0,
    "probe_steps": 30,
    "probe_learning_rate": 1e-2,
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
    labels = sorted({pair.label for pair in pairs if pair.label})
    return Probe(
        encoder,
        build_loss(config),
        dataset(pairs, encoder, **values),
        dataset(val, encoder, False, **values) if val else None,
        config,
        config.seed,
        CPU,
        contextlib.nullcontext,
        4,
        class_prompts(labels) if len(labels) > 1 else None,
        None,
        config.l2sp_strength,
        config.distillation_strength,
    )


def read(probe: Probe, progress: ProbeProgress | None = None) -> ProbeReading:
    """The rows as features, of a probe that has some."""
    found = probe.read(progress)
    assert isinstance(found, ProbeReading)
    return found


def fitted(probe: Probe, progress: ProbeProgress | None = None) -> tuple[ProbeReading, Choice]:
    """Read, choose and fit to the training rows."""
    reading = read(probe, progress)
    choice = reading.choose()
    reading.fit(reading.training, choice.effort)
    return reading, choice


def surprise(reading: ProbeReading) -> float:
    """At the training rows, with the projections as they are, in nats an answer."""
    return float(reading.fit_projections.held_out(reading.training).surprise().mean())

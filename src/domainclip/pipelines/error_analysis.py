"""The error analysis of a model on some rows: which model, which probabilities, which images as they are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from domainclip.data.records import ImageTextPair
from domainclip.errors import ConfigurationError
from domainclip.evaluation.error_analysis import build_error_analysis
from domainclip.evaluation.evaluators import Embedder
from domainclip.files import try_folder
from domainclip.inference import EmbeddingEngine
from domainclip.models import DualEncoder
from domainclip.pipelines.controller import CLIPFinetuningController
from domainclip.reports.error_analysis_page import write_error_analysis

_TARGET = 400
"""Resolution in pixels that an image keeps at least when a large one is shrunk: more than a thumbnail has."""


def check_folder(folder: Path) -> None:
    """Raises ``ConfigurationError`` for a folder that cannot be written, before any work."""
    try:
        try_folder(folder)
    except OSError as error:
        raise ConfigurationError(
            f"The error analysis's folder {folder} cannot be written: {error.strerror or error}"
        ) from None


def write_error_analysis_of(
    controller: CLIPFinetuningController,
    pairs: Sequence[ImageTextPair],
    engine: EmbeddingEngine,
    embed: Embedder,
    folder: Path,
    title: str,
) -> Path:
    """Write ``error_analysis.html`` into ``folder``. ``embed``: ``engine``, or what remembers its embeddings."""
    config, encoder = controller.recipe or controller.config, controller.model
    assert encoder is not None

    study = build_error_analysis(
        title,
        pairs,
        controller.evaluator(pairs),
        embed,
        model_probabilities(encoder),
        config.error_analysis_images,
        config.seed,
    )
    return write_error_analysis(folder, study, shown_images(engine, config.max_image_pixels))


def shown_images(engine: EmbeddingEngine, max_pixels: int) -> Callable[[Path], np.ndarray]:
    """Images as the domain's steps leave them: what the model is shown, before its own resize.

    Args:
        engine: Knows the steps.
        max_pixels: Above this an image is an error.

    Returns:
        A function from a path to uint8 ``[height, width, 3]``.
    """
    return lambda path: engine.pipeline.apply(engine.pipeline.read(path, max_pixels, _TARGET), _TARGET)


def model_probabilities(encoder: DualEncoder) -> Callable[[Tensor], Tensor]:
    """Cosines ``[images, classes]`` to the model's probabilities: a softmax at its temperature, or for SigLIP a sigmoid
    of each class by itself."""
    scale = encoder.logit_scale.detach().double().exp().cpu()
    if not encoder.is_siglip:
        return lambda cosines: torch.softmax(cosines.double() * scale, dim=1)
    bias = encoder.logit_bias.detach().double().cpu() if encoder.logit_bias is not None else torch.zeros(())
    return lambda cosines: torch.sigmoid(cosines.double() * scale + bias)

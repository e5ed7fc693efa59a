"""The error analysis of a model on some rows: which model, which probabilities, which images as they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from domainclip.data.images.pipeline import DomainImagePipeline
from domainclip.data.images.preparation import Preparation
from domainclip.data.records import ImageTextPair
from domainclip.evaluation.build import build_evaluator
from domainclip.evaluation.error_analysis import build_error_analysis
from domainclip.evaluation.protocols import Embedder
from domainclip.inference import EmbeddingEngine, ModelSession
from domainclip.reports.error_analysis_page import write_error_analysis

_LONGEST, _QUALITY, _BYTES = 312, 95, 60_000
"""An image that is to be shown is kept as a JPEG: its longer side in pixels, its quality, its bytes at most, about."""


def expect_shown(engine: EmbeddingEngine, pairs: Sequence[ImageTextPair]) -> None:
    """Announce, before ``engine`` reads them, that an error analysis may show the images of these rows.

    Args:
        engine: Whose store of images is to keep them.
        pairs: The rows.
    """
    engine.images.expect([pair.image_path for pair in pairs], _shown_by(engine), _BYTES)


def _shown_by(engine: EmbeddingEngine) -> Preparation:
    read = engine.preparation
    key = ("shown", read.pipeline.settings.model_dump_json())
    return Preparation(key, read.pipeline, read.target, partial(_shown, read.pipeline, read.target))


def _shown(pipeline: DomainImagePipeline, target: int, image: np.ndarray) -> UInt8[Tensor, " bytes"]:
    small = Image.fromarray(pipeline.apply(image, target))
    small.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS, reducing_gap=2.0)
    encoded = simplejpeg.encode_jpeg(np.asarray(small), _QUALITY, colorsubsampling="444")
    return torch.from_numpy(np.frombuffer(encoded, np.uint8).copy())


def write_error_analysis_of(
    session: ModelSession,
    pairs: Sequence[ImageTextPair],
    engine: EmbeddingEngine,
    embed: Embedder,
    folder: Path,
    title: str,
) -> Path:
    """Write ``error_analysis.html`` into ``folder``.

    Args:
        session: The loaded model, with its recipe.
        pairs: The rows, whose images can be read.
        engine: Whose store of images they are shown from.
        embed: ``engine``, or what remembers its embeddings.
        folder: Where the page goes.
        title: Of the page.

    Returns:
        The page.
    """
    config = session.config

    shown = _shown_by(engine)

    def read(path: Path) -> np.ndarray:
        """As the domain's steps leave it: what the model is shown, before its own resize."""
        return simplejpeg.decode_jpeg(engine.images.get(path, shown)[0].numpy())

    study = build_error_analysis(
        title,
        pairs,
        build_evaluator(session, pairs),
        embed,
        session.probabilities,
        config.error_analysis_images,
        config.seed,
    )
    return write_error_analysis(folder, study, read)

"""The error analysis of a model on some rows: which model, which probabilities, which images as they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from domainclip.data.records import ImageTextPair
from domainclip.errors import ConfigurationError
from domainclip.evaluation.build import build_evaluator
from domainclip.evaluation.error_analysis import build_error_analysis
from domainclip.evaluation.protocols import Embedder
from domainclip.files import try_folder
from domainclip.inference import EmbeddingEngine, ModelSession
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
    session: ModelSession,
    pairs: Sequence[ImageTextPair],
    engine: EmbeddingEngine,
    embed: Embedder,
    folder: Path,
    title: str,
) -> Path:
    """Write ``error_analysis.html`` into ``folder``. ``embed``: ``engine``, or what remembers its embeddings."""
    config = session.config

    def read(path: Path):  # type: ignore[no-untyped-def]
        """As the domain's steps leave it: what the model is shown, before its own resize."""
        return engine.pipeline.apply(engine.pipeline.read(path, config.max_image_pixels, _TARGET), _TARGET)

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

"""Embedding goes on in smaller batches where memory runs out, says so once, and gives the same embeddings."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from domainclip.errors import MemoryConstraintError
from domainclip.inference import EmbeddingEngine
from domainclip.models import DualEncoder, make_tiny_clip
from domainclip.training.probe.features import FeatureReader
from probe_cases import dataset
from tiny_data import TinyData


def limit(encoder: DualEncoder, monkeypatch: pytest.MonkeyPatch, most: int, error: type[Exception]) -> list[int]:
    """From now on no more than ``most`` rows fit; the sizes that were tried."""
    tried: list[int] = []
    for name in ("encode_image", "encode_text"):
        original = getattr(encoder, name)

        def limited(rows: Tensor, *more: Any, original: Any = original) -> Tensor:
            tried.append(len(rows))
            if len(rows) > most:
                raise error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
            return original(rows, *more)  # type: ignore[no-any-return]

        monkeypatch.setattr(encoder, name, limited)
    return tried


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, torch.OutOfMemoryError])
@pytest.mark.parametrize("most", [7, 3, 1])
def test_embeddings_are_made_in_smaller_batches(
    tiny_data: TinyData,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    most: int,
    error: type[Exception],
) -> None:
    encoder = make_tiny_clip(5)
    images = [pair.image_path for pair in tiny_data.pairs()]
    texts = [pair.caption for pair in tiny_data.pairs()]
    engine = EmbeddingEngine(encoder, batch_size=8)
    expected = engine.encode_images(images), engine.encode_texts(texts)
    tried = limit(encoder, monkeypatch, most, error)
    found = engine.encode_images(images), engine.encode_texts(texts)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    said = caplog.text.count("Out of memory")
    assert "8 images at once (DefaultCPUAllocator" in caplog.text
    assert said == 2 * {7: 1, 3: 2, 1: 3}[most]  # images and texts
    tried.clear()
    engine.encode_images(images)
    assert max(tried) <= most, "what did not fit is not tried again"
    assert caplog.text.count("Out of memory") == said


def test_a_row_that_does_not_fit_is_an_error_with_a_remedy(
    tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = make_tiny_clip(5)
    limit(encoder, monkeypatch, 0, RuntimeError)
    engine = EmbeddingEngine(encoder, batch_size=8)
    with pytest.raises(MemoryConstraintError, match="Not even one of the images fits"):
        engine.encode_images([pair.image_path for pair in tiny_data.pairs()])
    with pytest.raises(MemoryConstraintError, match="Not even one of the texts fits"):
        engine.encode_texts(["a", "b"])


def test_another_error_comes_through(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    encoder = make_tiny_clip(5)

    def broken(*given: Tensor) -> Tensor:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(encoder, "encode_text", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        EmbeddingEngine(encoder).encode_texts(["a"])


def test_features_of_the_probe_are_read_in_smaller_batches(
    tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = make_tiny_clip(5)
    data = dataset(tiny_data.pairs(), encoder)
    reader = FeatureReader(encoder, torch.device("cpu"), contextlib.nullcontext, 8)
    ids = [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10]]
    expected = reader.images(data, range(18)), reader.texts(ids)
    limit(encoder, monkeypatch, 3, RuntimeError)
    found = reader.images(data, range(18)), reader.texts(ids)
    assert found[0].rows == expected[0].rows
    torch.testing.assert_close(found[0].inputs.features, expected[0].inputs.features)
    torch.testing.assert_close(found[1].features, expected[1].features)

"""The golden batch: float32's own embeddings of a few drawn images and fixed texts, saved beside a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from domainclip.data.images.image_spec import ImageSpec
from domainclip.errors import BackendError
from domainclip.inference import ModelSession
from domainclip.inference.backends.golden import (
    GOLDEN_FILE,
    GOLDEN_TEXTS,
    GoldenBatch,
    check_cosine,
    drawn_images,
    least_cosine,
)
from domainclip.inference.backends.graphs import fingerprint_of
from domainclip.inference.backends.torch_encoder import golden_batch
from domainclip.models import make_tiny_clip


def test_a_saved_model_brings_what_plain_transformers_gives(tmp_path: Path) -> None:
    """The embeddings in the file are those of the saved weights, by the library alone, one at a time."""
    from transformers import CLIPModel

    ModelSession.from_pretrained("tiny", Console(quiet=True)).save(tmp_path / "model")
    golden = GoldenBatch.read(tmp_path / "model")
    assert golden is not None and golden.fingerprint == fingerprint_of(tmp_path / "model")
    assert len(golden.ids) == len(golden.text_embeds) == len(GOLDEN_TEXTS)
    assert (tmp_path / "model" / GOLDEN_FILE).stat().st_size < 100_000
    model = CLIPModel.from_pretrained(tmp_path / "model").eval()
    spec = ImageSpec.from_processor(make_tiny_clip().processor.image_processor)
    with torch.no_grad():
        for row, image in zip(golden.image_embeds, golden.images, strict=True):
            pixels = spec.normalise(torch.from_numpy(image)[None])
            expected = model.get_image_features(pixel_values=pixels).pooler_output[0].numpy()
            np.testing.assert_allclose(row, expected, atol=1e-5)
        for row, ids in zip(golden.text_embeds, golden.ids, strict=True):
            expected = model.get_text_features(input_ids=torch.tensor([ids])).pooler_output[0].numpy()
            np.testing.assert_allclose(row, expected, atol=1e-5)


def test_the_batch_is_the_same_after_writing_and_reading(tmp_path: Path) -> None:
    golden = golden_batch(make_tiny_clip(2), torch.device("cpu"), "abc")
    golden.write(tmp_path)
    found = GoldenBatch.read(tmp_path)
    assert found is not None
    assert (found.fingerprint, found.ids, found.resolution) == ("abc", golden.ids, 32)
    for name in ("images", "image_embeds", "text_embeds"):
        assert np.array_equal(getattr(found, name), getattr(golden, name))
    assert found.to_bytes() == golden.to_bytes()
    content = (tmp_path / GOLDEN_FILE).read_bytes()
    for damaged in (b"", b"no archive", content[: len(content) // 2]):
        (tmp_path / GOLDEN_FILE).write_bytes(damaged)
        assert GoldenBatch.read(tmp_path) is None


def test_the_least_cosine_is_that_of_a_plain_loop() -> None:
    random = np.random.default_rng(0)
    one, other = random.standard_normal((2, 7, 5)).astype(np.float32)
    cosines = [float(a @ b) / np.sqrt(float(a @ a) * float(b @ b)) for a, b in zip(one, other, strict=True)]
    assert least_cosine(one, other) == pytest.approx(min(cosines), abs=1e-6)
    assert least_cosine(3 * one, one) == pytest.approx(1)
    assert least_cosine(np.zeros((1, 5), np.float32), other[:1]) == -1
    assert least_cosine(np.full((1, 5), np.nan, np.float32), other[:1]) == -1
    assert least_cosine(one[:, :3], other) == -1


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.9999), ("bf16", 0.999), ("int8", 0.98)])
def test_each_precision_has_its_own_bar(precision, least) -> None:
    check_cosine("image", least, precision)
    for cosine in (least - 1e-4, float("nan")):
        with pytest.raises(BackendError, match=f"images to float32 is .* at least {least:g}"):
            check_cosine("image", cosine, precision)


def test_drawn_images_are_the_same_each_time_and_differ() -> None:
    images = drawn_images(4, 24)
    assert np.array_equal(images, drawn_images(4, 24)) and images.std(axis=(1, 2, 3)).min() > 10
    assert len({image.tobytes() for image in [*images, *drawn_images(4, 24, seed=1)]}) == 8

"""What a model card says of plain ``transformers`` is what plain ``transformers`` gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from transformers import AutoImageProcessor, CLIPModel

from domainclip.config import CLIPFinetuningConfig
from domainclip.data.records import ImageTextPair
from domainclip.inference import ModelSession
from domainclip.pipelines.plain_use import plain_use
from domainclip.resolve import resolve_for_inference
from tiny_data import TinyData


def session_of(**values: object) -> ModelSession:
    config = CLIPFinetuningConfig(model_name="tiny", device="cpu", **values)
    return ModelSession.from_pretrained(resolve_for_inference(config), Console(quiet=True))


def test_without_steps_of_a_domain_it_gives_the_same(tiny_data: TinyData) -> None:
    session = session_of()
    found = plain_use(session, session.engine(), tiny_data.pairs("test"))
    assert (found.image_steps, found.caption_steps, found.not_taken) == ((), (), 0)
    assert found.image_cosine == pytest.approx(1, abs=1e-4)
    assert found.caption_cosine == pytest.approx(1, abs=1e-6)
    assert 0 < found.images <= 16 and found.captions > 0


def test_a_domains_steps_are_named_and_what_they_change_is_measured(tiny_data: TinyData, tmp_path: Path) -> None:
    """Against the saved folder, loaded as anybody would."""
    pytest.importorskip("skimage", reason="local contrast needs scikit-image")
    session = session_of(image_preprocessing={"clahe_clip_limit": 0.05}, text_preprocessing={"lowercase": True})
    pairs = tiny_data.pairs("test")
    found = plain_use(session, session.engine(), pairs)
    assert found.image_steps == ("clahe_clip_limit = 0.05",)
    assert found.caption_steps == ("lowercase = True",)
    session.save(tmp_path / "model")
    model = CLIPModel.from_pretrained(tmp_path / "model").eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model", backend="pil")
    paths = list(dict.fromkeys(pair.image_path for pair in pairs))[: found.images]
    pixels = processor([Image.open(path).convert("RGB") for path in paths], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        plain = model.get_image_features(pixel_values=pixels).pooler_output
    expected = torch.cosine_similarity(plain, session.encode_images(paths)).mean()
    assert found.image_cosine == pytest.approx(float(expected), abs=1e-5)
    assert found.image_cosine < 0.9999


def test_an_image_that_pillow_does_not_open_is_counted(tiny_data: TinyData, tmp_path: Path) -> None:
    (tmp_path / "image.dcm").write_bytes(b"no image")
    session = session_of()
    rows = [ImageTextPair(tmp_path / "image.dcm", "a scan"), *tiny_data.pairs("test")[:2]]
    found = plain_use(session, session.engine(), rows)
    assert (found.not_taken, found.images) == (1, 2)
    nothing = plain_use(session, session.engine(), [])
    assert (nothing.images, nothing.image_cosine, nothing.caption_cosine) == (0, None, None)

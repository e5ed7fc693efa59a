"""The back end of docs/back-ends.md, as the page shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from domainclip.config import CLIPFinetuningConfig
from domainclip.inference import ModelSession
from domainclip.inference.backends.encoder import BACKENDS
from domainclip.models import make_tiny_clip
from domainclip.models.io import save_encoder
from domainclip.resolve import resolve_for_inference

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "back-ends.md").read_text("utf-8")


def test_the_pages_back_end_computes_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BACKENDS, "_entries", dict(BACKENDS.entries))
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    (tmp_path / "torchscript.py").write_text(block, encoding="utf-8")
    save_encoder(make_tiny_clip(), tmp_path / "model")
    config = CLIPFinetuningConfig(
        model_name=str(tmp_path / "model"),
        device="cpu",
        plugins=[str(tmp_path / "torchscript.py")],
        backend="torchscript",
    )
    session = ModelSession.from_pretrained(resolve_for_inference(config), Console(quiet=True))
    texts = ["a photo", "red " * 30, "grass"]
    torch.testing.assert_close(session.encode_texts(texts), session.engine().encode_texts(texts), atol=1e-6, rtol=0)
    assert session.backend.encoder.name == "torchscript"
    assert (tmp_path / "model" / "backends" / "torchscript" / "image.pt").is_file()

"""Texts of many requests at once: a tokenizer has a state, which no thread may change for another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from domainclip.config import CLIPFinetuningConfig
from domainclip.service.served_model import ServedModel
from running_service import save_tiny_model


def test_threads_tokenize_as_one_does(tmp_path: Path) -> None:
    config = CLIPFinetuningConfig(model_name=str(save_tiny_model(tmp_path / "model")), device="cpu")
    model = ServedModel.load(config, None, Console(quiet=True))
    draw = np.random.default_rng(0)
    # Few words and many tokens: whether they fit is counted, and some are cut.
    texts = [" ".join("".join(draw.choice(list("qxzjkv"), 9)) for _ in range(draw.integers(1, 60))) for _ in range(300)]
    one_after_the_other = [model.texts([text])[0] for text in texts]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda text: model.texts([text])[0], texts)) == one_after_the_other


def test_what_counts_tokens_has_the_tokenizer_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CLIPFinetuningConfig(model_name=str(save_tiny_model(tmp_path / "model")), device="cpu")
    model = ServedModel.load(config, None, Console(quiet=True))
    alone: list[bool] = []
    inner = type(model.session.processor.tokenizer).__call__

    def call(*arguments: Any, **options: Any) -> Any:
        alone.append(model._tokenizing.locked())
        return inner(*arguments, **options)

    monkeypatch.setattr(type(model.session.processor.tokenizer), "__call__", call)
    model.texts(["qxz " * 70])
    assert len(alone) >= 2 and all(alone)

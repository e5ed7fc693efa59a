"""Texts are embedded by a stored graph as the model itself embeds them, and torch is not imported for it."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from domainclip.config import CLIPFinetuningConfig
from domainclip.domains.files import load_domain
from domainclip.domains.recipes import write_domain
from domainclip.errors import DataError
from domainclip.inference import ModelSession, TextEncoder
from domainclip.inference.backends.encoder import BACKENDS
from domainclip.inference.backends.model_graphs import stored_tokenizer
from domainclip.inference.backends.names import in_order
from domainclip.inference.text_encoder import StoredTokenizer
from domainclip.models import DualEncoder, EncoderProcessor, make_tiny_clip
from domainclip.models.io import save_encoder
from domainclip.resolve import resolve_for_inference

TEXTS = ["a photo of grass", "Moon  seen\tfrom afar", "a photo of grass", "é ñ 草の写真 😀", "red brick " * 60, "x"]


@pytest.fixture(scope="module", params=in_order())
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A medical model with a graph of one back end, which is named."""
    name = request.param
    if (package := BACKENDS[name].missing()) is not None:
        pytest.skip(f"{package} is not installed (domainclip[{BACKENDS[name].extra}])")
    folder = tmp_path_factory.mktemp(name) / "model"
    save_encoder(make_tiny_clip(4), folder)
    write_domain(load_domain("medical"), folder)
    resolved = resolve_for_inference(CLIPFinetuningConfig(model_name=str(folder), backend=f"{name}:fp32", device="cpu"))
    assert ModelSession.from_pretrained(resolved, Console(quiet=True)).backend.encoder.name == name
    return folder, name


def found(folder: Path, **values: object) -> TextEncoder:
    encoder = TextEncoder.find(resolve_for_inference(CLIPFinetuningConfig(model_name=str(folder), **values)))
    assert encoder is not None
    return encoder


def test_its_embeddings_are_the_sessions(saved: tuple[Path, str]) -> None:
    """What the domain does to captions is done, and the recipe's limit kept."""
    folder, name = saved
    texts = [*TEXTS, "CXR shows no PTX, 3 cm effusion in the LLL. " * 9, "2 CM nodule, w/o calcification"]
    for limit in ({}, {"max_sequence_length": 20}):
        session = ModelSession.from_pretrained(
            resolve_for_inference(CLIPFinetuningConfig(model_name=str(folder), device="cpu", **limit)),
            Console(quiet=True),
        )
        encoder = found(folder, backend=f"{name}:fp32", **limit)
        assert (encoder.shapes.encoder.name, encoder.shapes.encoder.precision) == (name, "fp32")
        embeds = encoder.encode_texts(texts)
        assert embeds.dtype == np.float32
        torch.testing.assert_close(torch.from_numpy(embeds), session.encode_texts(texts), atol=1e-5, rtol=0)
        assert np.array_equal(embeds[0], embeds[2])
    np.testing.assert_allclose(encoder.encode_texts("one text"), encoder.encode_texts(["one text"]))
    with pytest.raises(DataError):
        encoder.encode_texts([])
    with pytest.raises(TypeError):
        encoder.encode_texts(["a", 3])  # type: ignore[list-item]


def test_any_back_end_will_do_where_none_is_named(saved: tuple[Path, str]) -> None:
    folder, name = saved
    assert found(folder).shapes.encoder.name == name
    assert TextEncoder.find(folder) is not None
    torch_only = resolve_for_inference(CLIPFinetuningConfig(model_name=str(folder), backend="torch"))
    assert TextEncoder.find(torch_only) is None
    assert TextEncoder.find("tiny") is None


def test_torch_is_not_imported(saved: tuple[Path, str]) -> None:
    folder, _ = saved
    check = (
        "import sys\nfrom domainclip.inference import TextEncoder\n"
        "encoder = TextEncoder.find(sys.argv[1])\n"
        "print(encoder.encode_texts(['a red brick', 'grass']).shape)\n"
        "heavy = ('torch', 'transformers', 'PIL', 'sklearn', 'scipy', 'pandas')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["(2, 32)", "[]"]


def test_a_changed_model_has_none(saved: tuple[Path, str], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(saved[0], tmp_path / "model")
    assert TextEncoder.find(tmp_path / "model") is not None
    (tmp_path / "model" / "backends" / saved[1] / "golden.npz").write_bytes(b"")
    assert TextEncoder.find(tmp_path / "model") is None
    shutil.copytree(saved[0], tmp_path / "other")
    save_encoder(make_tiny_clip(5), tmp_path / "other")
    assert TextEncoder.find(tmp_path / "other") is None


# --- the tokenizer ---


def stored(processor: EncoderProcessor, folder: Path) -> StoredTokenizer:
    text = stored_tokenizer(processor)
    assert text is not None
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    return StoredTokenizer(folder / "tokenizer.json", processor.max_length)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[EncoderProcessor, StoredTokenizer]:
    processor = make_tiny_clip().processor
    return processor, stored(processor, tmp_path_factory.mktemp("tokenizer"))


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=200), min_size=1, max_size=5),
    limit=st.none() | st.integers(4, 90),
)
def test_any_text_has_the_same_tokens(
    pair: tuple[EncoderProcessor, StoredTokenizer], texts: list[str], limit: int | None
) -> None:
    processor, tokenizer = pair
    assert tokenizer.token_ids(texts, limit) == processor.token_ids(texts, limit)
    assert tokenizer.count_tokens(texts) == processor.count_tokens(texts)


@pytest.mark.parametrize("kind", ["clip", "siglip", "vision_text"])
def test_of_each_kind_of_model(kind: str, build: Callable[[str], DualEncoder], tmp_path: Path) -> None:
    processor = build(kind).processor
    tokenizer = stored(processor, tmp_path)
    texts = [*TEXTS, "[SEP] a </s> b <|endoftext|> c", ""]
    assert tokenizer.token_ids(texts) == processor.token_ids(texts)
    assert tokenizer.token_ids(texts, 7) == processor.token_ids(texts, 7)
    assert tokenizer.token_ids(texts) == processor.token_ids(texts)
    assert tokenizer.count_tokens(texts) == processor.count_tokens(texts)


def test_clips_own_tokens_are_those_that_are_known_to_be_right(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    from _clip_tokenizer import clip_tokenizer

    folder = shared_data / "clip_tokenizer"
    processor = EncoderProcessor(clip_tokenizer(folder), make_tiny_clip().processor.image_processor, "causal", 77)
    tokenizer = stored(processor, tmp_path)
    with open(folder / "golden_tokens.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    expected = [[int(token) for token in row["token_ids"].split()] for row in rows]
    assert tokenizer.token_ids([row["caption"] for row in rows]) == expected

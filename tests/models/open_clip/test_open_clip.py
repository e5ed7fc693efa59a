"""OpenCLIP checkpoints: loaded, trained and saved in both layouts, beside a plain-torch reference and open_clip."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertConfig

from domainclip.data.images.image_spec import ImageSpec
from domainclip.errors import ModelLoadError
from domainclip.models.loading import load_config, load_processor
from model_zoo import word_tokenizer
from open_clip_cases import CONFIG, WEIGHTS, config_of, embeddings, load, reference
from open_clip_zoo import KINDS, PREPROCESS, Draw, write_clip, write_foreign

# --- loading ---


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_those_of_the_published_architecture(open_clip_folders: dict[str, Path], kind: str) -> None:
    encoder = load(open_clip_folders[kind])
    for mine, other in zip(embeddings(encoder), reference(open_clip_folders[kind], encoder), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
        assert float(mine.std(dim=0).max()) > 0.01  # different inputs, different embeddings
    assert encoder.logit_scale == load_file(open_clip_folders[kind] / WEIGHTS)["logit_scale"]
    assert encoder.embedding_dim == 12


def test_quick_gelu_changes_the_embeddings(open_clip_folders: dict[str, Path], tmp_path: Path) -> None:
    """The two activations differ by up to 0.02: a wrong one would not be seen in a loose comparison."""
    plain, quick = embeddings(load(open_clip_folders["clip"])), embeddings(load(open_clip_folders["clip_quick"]))
    for mine, other in zip(plain, quick, strict=True):
        assert float((mine - other).abs().max()) > 1e-3


def test_pickled_weights_of_a_training_checkpoint(open_clip_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "pickled", pickled=True)
    for mine, other in zip(embeddings(load(folder)), embeddings(load(open_clip_folders["clip"])), strict=True):
        assert torch.equal(mine, other)


def test_a_folder_may_be_named_as_open_clip_names_it(open_clip_folders: dict[str, Path]) -> None:
    for mine, other in zip(
        embeddings(load(f"local-dir:{open_clip_folders['biomed']}")),
        embeddings(load(open_clip_folders["biomed"])),
        strict=True,
    ):
        assert torch.equal(mine, other)


def test_preprocessing_is_that_of_the_checkpoint(open_clip_folders: dict[str, Path], tmp_path: Path) -> None:
    spec = ImageSpec.from_processor(load(open_clip_folders["clip"]).processor.image_processor)
    assert (spec.size, spec.crop, spec.resize, spec.resample) == (32, None, "squash", Image.Resampling.BILINEAR)
    assert spec.mean == tuple(PREPROCESS["mean"]) and spec.std == tuple(PREPROCESS["std"])
    folder = write_clip(tmp_path / "defaults")
    (folder / CONFIG).write_text(json.dumps({"model_cfg": config_of(folder)["model_cfg"]}))
    spec = ImageSpec.from_processor(load_processor(str(folder)).image_processor)
    assert spec == ImageSpec(size=32, crop=32)  # CLIP's own, in the tower's resolution
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8))
    squashed = load(open_clip_folders["clip"]).processor(images=image)["pixel_values"][0]
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float64) / 255
    expected = (expected - PREPROCESS["mean"]) / PREPROCESS["std"]
    np.testing.assert_allclose(squashed.permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_length_of_a_text_is_that_of_the_checkpoint(open_clip_folders: dict[str, Path]) -> None:
    long = " ".join(["grass"] * 100)
    for kind, length in (("clip", 16), ("biomed", 18)):
        processor = load_processor(str(open_clip_folders[kind]))
        assert processor.max_length == length
        ids = processor.token_ids([long])[0]
        assert len(ids) == length and ids[-1] == processor.token_ids(["sky"])[0][-1]  # the end token is kept


def test_shape_without_weights(open_clip_folders: dict[str, Path]) -> None:
    config = load_config(str(open_clip_folders["biomed"]))
    assert config.vision_config.num_attention_heads == 3 and config.text_config.num_hidden_layers == 2
    assert load_config(str(open_clip_folders["clip"])).vision_config.hidden_act == "gelu"


def test_bert_of_base_width_needs_no_config(tmp_path: Path) -> None:
    """As in BiomedCLIP's repository, which does not hold the text tower's config."""
    folder = write_foreign(tmp_path / "base")
    state = {k: v for k, v in load_file(folder / WEIGHTS).items() if not k.startswith("text.")}
    tokenizer = word_tokenizer("bert", 24)
    draw = Draw(1)
    bert = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=12,
        max_position_embeddings=24,
    )
    draw.bert(bert, pooler=False, mlp=True)
    save_file(state | draw.state, folder / WEIGHTS)
    config = config_of(folder)
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "nobody/a-bert-that-is-not-in-the-cache"
    (folder / CONFIG).write_text(json.dumps(config))
    found = load(folder).model.config.text_config
    for key in ("model_type", "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings"):
        assert getattr(found, key) == getattr(bert, key), key
    assert (found.layer_norm_eps, found.hidden_act, found.num_hidden_layers) == (1e-12, "gelu", 1)


class FakeHub:
    """Stands in for ``huggingface_hub.snapshot_download``: hands out the files of a folder that fit the patterns."""

    def __init__(self, source: Path, cache: Path) -> None:
        self.source, self.cache = source, cache

    def __call__(self, repository: str, allow_patterns: list[str]) -> str:
        if repository != "somebody/clip":
            raise LocalEntryNotFoundError("no network")
        self.cache.mkdir(exist_ok=True)
        for path in self.source.iterdir():
            if path.is_file() and any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, self.cache)
        return str(self.cache)


@pytest.mark.parametrize("pickled", [False, True])
def test_from_the_hub(
    open_clip_folders: dict[str, Path], pickled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_clip(tmp_path / "source", pickled=pickled)
    if not pickled:
        (source / "open_clip_pytorch_model.bin").write_bytes(b"twice the download")
    (source / "images.zip").write_bytes(b"not wanted")
    monkeypatch.setattr("domainclip.models.source.name.on_hub", lambda name: name)
    monkeypatch.setattr("huggingface_hub.snapshot_download", FakeHub(source, tmp_path / "cache"))
    for mine, other in zip(
        embeddings(load("hf-hub:somebody/clip")), embeddings(load(open_clip_folders["clip"])), strict=True
    ):
        assert torch.equal(mine, other)
    assert (tmp_path / "cache/open_clip_pytorch_model.bin").exists() == pickled
    assert not (tmp_path / "cache/images.zip").exists()


def test_the_hub_fails_with_a_way_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").mkdir()
    monkeypatch.setattr("domainclip.models.source.name.on_hub", lambda name: name)
    monkeypatch.setattr("huggingface_hub.snapshot_download", FakeHub(tmp_path / "source", tmp_path / "cache"))
    with pytest.raises(ModelLoadError, match="hf download nobody/clip --local-dir DIR"):
        load("hf-hub:nobody/clip")
    with pytest.raises(ModelLoadError, match="Leave out the prefix hf-hub:"):
        load("hf-hub:somebody/clip")

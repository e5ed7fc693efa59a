"""Dual encoders against plain transformers: loading, embedding, saving, padding, and what goes wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from domainclip.config import CLIPFinetuningConfig, ModelSettings
from domainclip.errors import CLIPFinetuningError, ConfigurationError, DataError, ModelLoadError
from domainclip.models import DualEncoder, load_encoder, make_tiny_clip
from domainclip.models.dual_encoder import MAX_LOGIT_SCALE
from domainclip.models.io import load_weights, save_encoder
from model_zoo import save_bert, save_mobilenet, save_vit

TEXTS = ["a photo of the red brick", "moon", "large grass texture seen from far above, sample 7", "sky"]
KINDS = ["clip", "siglip", "vision_text", "mobilenet"]


def load(folder: Path, **settings: object) -> DualEncoder:
    return load_encoder(ModelSettings(model_name=str(folder), **settings))


def images(count: int = 3) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(count)]


@torch.no_grad()
def ours(encoder: DualEncoder) -> tuple[torch.Tensor, torch.Tensor]:
    batch = encoder.processor(text=TEXTS, images=images())
    encoder.eval()
    return (
        encoder.encode_image(batch["pixel_values"]),
        encoder.encode_text(batch["input_ids"], batch["attention_mask"]),
    )


@torch.no_grad()
def theirs(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain transformers, as the model's own documentation uses it: SigLIP padded to its full length, no mask."""
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = processor(images=images(), return_tensors="pt")["pixel_values"]
    if model.config.model_type == "siglip":
        limit = model.config.text_config.max_position_embeddings
        tokens = tokenizer(TEXTS, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        text = model.get_text_features(input_ids=tokens["input_ids"])
    else:
        tokens = tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="pt")
        text = model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    return model.get_image_features(pixel_values=pixels).pooler_output, text.pooler_output


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_those_of_plain_transformers(zoo: dict[str, Path], kind: str) -> None:
    for mine, other in zip(ours(load(zoo[kind])), theirs(zoo[kind]), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
        assert float(mine.std(dim=0).max()) > 0  # different inputs, different embeddings


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_model_opens_in_plain_transformers(zoo: dict[str, Path], kind: str, tmp_path: Path) -> None:
    encoder = load(zoo[kind])
    with torch.no_grad():  # as if trained: no longer what was loaded
        for parameter in encoder.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    save_encoder(encoder, tmp_path / "saved")
    for mine, other in zip(ours(encoder), theirs(tmp_path / "saved"), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)
    for mine, again in zip(ours(encoder), ours(load(tmp_path / "saved")), strict=True):
        torch.testing.assert_close(mine, again, rtol=1e-6, atol=1e-6)
    fresh = load(zoo[kind])
    load_weights(fresh, tmp_path / "saved")
    for name, value in encoder.model.state_dict().items():
        assert torch.equal(fresh.model.state_dict()[name], value), name


def test_the_starter_model_is_that_of_plain_transformers(shared_data: Path) -> None:
    folder = shared_data.parent / "models" / "starter"
    if not folder.is_dir():
        pytest.skip(f"no starter model at {folder}")
    encoder = load(folder)
    assert encoder.native_resolution == 160
    assert encoder.image_tower_kind == "convolutional"
    for mine, other in zip(ours(encoder), theirs(folder), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "padding"), [("clip", "causal"), ("vision_text", "masked")])
@torch.no_grad()
def test_padding_to_the_longest_caption_is_exact(zoo: dict[str, Path], kind: str, padding: str) -> None:
    encoder = load(zoo[kind])
    processor = encoder.processor
    assert processor.text_padding == padding
    short = processor.tokenize(TEXTS)
    ids = processor.token_ids(TEXTS)
    assert short["input_ids"].shape[1] == max(map(len, ids)) < processor.max_length
    full_ids, full_mask = processor.pad(ids, processor.max_length)
    torch.testing.assert_close(
        encoder.encode_text(**short), encoder.encode_text(full_ids, full_mask), rtol=1e-6, atol=1e-6
    )


@torch.no_grad()
def test_siglip_is_padded_to_its_full_length(zoo: dict[str, Path]) -> None:
    encoder = load(zoo["siglip"])
    processor = encoder.processor
    assert processor.text_padding == "fixed"
    assert processor.tokenize(["moon"])["input_ids"].shape == (1, 16)
    full = encoder.encode_text(**processor.tokenize(["moon"]))
    shorter = encoder.encode_text(*processor.pad(processor.token_ids(["moon"]), 8))
    assert float((full - shorter).abs().max()) > 1e-3  # why it must be


def test_captions_beyond_the_limit_keep_their_end(zoo: dict[str, Path]) -> None:
    encoder = load(zoo["clip"])
    (ids,) = encoder.processor.token_ids(["a photo of the moon " * 40])
    assert len(ids) == 77
    assert ids[-1] == encoder.processor.tokenizer.eos_token_id
    (cut,) = encoder.processor.token_ids(["a photo of the moon " * 40], max_length=10)
    assert len(cut) == 10
    assert encoder.processor.count_tokens(["a photo of the moon " * 40])[0] > 77


def test_two_backbones_are_joined(zoo: dict[str, Path]) -> None:
    settings = {"vision_model_name": str(zoo["parts"] / "vit"), "text_model_name": str(zoo["parts"] / "bert")}
    encoder = load_encoder(ModelSettings(**settings))
    images, texts = ours(encoder)
    assert images.shape == (3, encoder.embedding_dim)
    assert texts.shape == (4, encoder.embedding_dim)
    vit = AutoModel.from_pretrained(zoo["parts"] / "vit").state_dict()
    for name, value in encoder.model.vision_model.state_dict().items():
        assert torch.equal(value, vit[name]), name
    again = load_encoder(ModelSettings(**settings))
    assert torch.equal(again.model.text_projection.weight, encoder.model.text_projection.weight)
    other = load_encoder(ModelSettings(**settings, seed=1))
    assert not torch.equal(other.model.text_projection.weight, encoder.model.text_projection.weight)


@torch.no_grad()
def test_a_convolutional_backbone_is_joined(zoo: dict[str, Path], tmp_path: Path) -> None:
    """MobileNet's config does not state the width of its pooled vector."""
    vision = str(save_mobilenet(tmp_path / "mobilenet"))
    encoder = load_encoder(ModelSettings(vision_model_name=vision, text_model_name=str(zoo["parts"] / "bert")))
    pixels = encoder.processor(images=images())["pixel_values"]
    pooled = AutoModel.from_pretrained(vision).eval()(pixel_values=pixels).pooler_output
    expected = pooled @ encoder.model.visual_projection.weight.T
    torch.testing.assert_close(encoder.encode_image(pixels), expected, rtol=1e-5, atol=1e-6)
    save_encoder(encoder, tmp_path / "saved")
    torch.testing.assert_close(theirs(tmp_path / "saved")[0], expected, rtol=1e-5, atol=1e-6)


def test_one_backbone_alone_is_refused(zoo: dict[str, Path]) -> None:
    with pytest.raises(ConfigurationError, match="go together"):
        load_encoder(ModelSettings(vision_model_name=str(zoo["parts"] / "vit")))


def test_a_wrong_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="does not exist"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelLoadError, match="empty"):
        load(tmp_path / "empty")


def test_a_hub_name_without_network_says_how_to_go_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    attempts: list[object] = []
    monkeypatch.setattr("time.sleep", attempts.append)  # a pause before another try
    monkeypatch.setattr("socket.socket.connect", lambda _, address: attempts.append(address))
    with pytest.raises(ModelLoadError, match=r"hf download nobody/nothing --local-dir DIR.*model_name=DIR"):
        load_encoder(ModelSettings(model_name="nobody/nothing"))
    assert attempts == []


def test_a_text_model_is_no_dual_encoder(zoo: dict[str, Path]) -> None:
    with pytest.raises(ModelLoadError, match="not a dual encoder"):
        load(zoo["parts"] / "bert")


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_damaged_weights_are_a_load_error(zoo: dict[str, Path], tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "damaged"
    save_encoder(load(zoo["clip"]), folder)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2] if damage == "cut" else b"\xff" * 64 + content[64:])
    with pytest.raises(ModelLoadError, match=r"model\.safetensors is damaged or was cut off"):
        load(folder)


def test_a_config_that_is_no_json_is_a_load_error(zoo: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    save_encoder(load(zoo["clip"]), folder)
    (folder / "config.json").write_text("{ not json")
    with pytest.raises(ModelLoadError):
        load(folder)


def test_texts_that_are_no_list_of_strings_are_refused() -> None:
    processor = make_tiny_clip().processor
    for wrong in ("moon", ["moon", 3]):
        with pytest.raises(DataError, match="Texts must be a list of strings"):
            processor.tokenize(wrong)  # type: ignore[arg-type]


def test_the_tiny_clip_is_its_seeds_and_leaves_chance_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = make_tiny_clip(1), make_tiny_clip(1), make_tiny_clip(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert not all(torch.equal(value, other.state_dict()[name]) for name, value in first.state_dict().items())


def test_batch_norm_statistics_stay_in_training(zoo: dict[str, Path]) -> None:
    def statistics(encoder: DualEncoder) -> list[torch.Tensor]:
        return [b.clone() for name, b in encoder.named_buffers() if "running_" in name]

    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    frozen = load(zoo["mobilenet"]).train()
    assert frozen.image_tower_kind == "convolutional"
    before = statistics(frozen)
    assert before
    together = frozen.encode_image(pixels)
    alone = torch.cat([frozen.encode_image(row[None]) for row in pixels])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(frozen), strict=True))
    moving = load(zoo["mobilenet"])
    moving.frozen_batch_norm = False
    moving.train()
    moving.encode_image(pixels)
    assert not all(torch.equal(a, b) for a, b in zip(before, statistics(moving), strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_locked_tower_does_not_learn(zoo: dict[str, Path], kind: str, tower: str) -> None:
    encoder = load(zoo[kind])
    encoder.train()
    encoder.lock(tower)  # type: ignore[arg-type]
    owners = {name: owner for owner, name, _ in encoder.named_tower_parameters()}
    assert owners.keys() == dict(encoder.model.named_parameters()).keys()
    for name, parameter in encoder.model.named_parameters():
        assert parameter.requires_grad == (owners[name] != tower), name
    locked, free = encoder.model.vision_model, encoder.model.text_model
    if tower == "text":
        locked, free = free, locked
    assert free.training
    assert not any(module.training for module in locked.modules())  # no dropout in what does not learn
    encoder.eval().train()
    assert not locked.training


def test_new_projections_of_a_locked_tower_learn(zoo: dict[str, Path]) -> None:
    encoder = load_encoder(
        ModelSettings(vision_model_name=str(zoo["parts"] / "vit"), text_model_name=str(zoo["parts"] / "bert"))
    )
    encoder.lock("image")
    assert encoder.model.visual_projection.weight.requires_grad
    assert not any(p.requires_grad for p in encoder.model.vision_model.parameters())


def test_the_scale_is_clamped_for_clip_and_free_for_siglip(zoo: dict[str, Path]) -> None:
    for kind, expected in (("clip", MAX_LOGIT_SCALE), ("vision_text", MAX_LOGIT_SCALE), ("siglip", 5.5)):
        encoder = load(zoo[kind])
        with torch.no_grad():
            encoder.logit_scale.fill_(5.5)
        encoder.clamp_logit_scale()
        assert float(encoder.logit_scale.detach().squeeze()) == pytest.approx(expected)
    assert math.exp(MAX_LOGIT_SCALE) == pytest.approx(100)


def test_a_fixed_temperature_is_not_clamped() -> None:
    encoder = make_tiny_clip()
    encoder.set_temperature(0.005, trainable=False)
    encoder.clamp_logit_scale()
    assert float(encoder.logit_scale.exp()) == pytest.approx(200)
    assert not encoder.logit_scale.requires_grad


@pytest.mark.parametrize(
    ("kind", "dim", "resolution", "length"),
    [("clip", 32, 32, 77), ("siglip", 24, 32, 16), ("vision_text", 16, 32, 24), ("mobilenet", 16, 32, 24)],
)
def test_an_encoder_says_what_it_is(zoo: dict[str, Path], kind: str, dim: int, resolution: int, length: int) -> None:
    encoder = load(zoo[kind])
    assert (encoder.embedding_dim, encoder.native_resolution, encoder.text_length) == (dim, resolution, length)
    assert encoder.is_siglip == (kind == "siglip")
    assert (encoder.image_tower_kind == "convolutional") == (kind == "mobilenet")
    assert not encoder.training
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


def test_half_precision_files_are_trained_in_float32(zoo: dict[str, Path], tmp_path: Path) -> None:
    encoder = load(zoo["clip"])
    encoder.model.half().save_pretrained(tmp_path / "half")
    encoder.processor.save(tmp_path / "half")
    assert {parameter.dtype for parameter in load(tmp_path / "half").parameters()} == {torch.float32}


@pytest.mark.parametrize("save", [save_vit, save_bert, save_mobilenet])
def test_a_single_tower_is_refused_as_a_model(save: Callable[[Path], Path], tmp_path: Path) -> None:
    with pytest.raises(CLIPFinetuningError):
        load(save(tmp_path / "tower"))


def test_tiny_is_a_model_name() -> None:
    config = CLIPFinetuningConfig(model_name="tiny", seed=3)
    expected = make_tiny_clip(3).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in load_encoder(config).state_dict().items())

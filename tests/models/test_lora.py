"""LoRA adapters in every kind of encoder: what they adapt, how they train, what they leave behind; checkpointed blocks.

References are the unadapted model, W + (alpha / r) · B A written out, and plain ``transformers``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from domainclip.config import CLIPFinetuningConfig, OptimizerSettings
from domainclip.errors import ConfigurationError, MissingExtraError
from domainclip.models import make_tiny_clip
from domainclip.models.adapters import is_adapter
from domainclip.models.io import load_weights, save_encoder
from domainclip.models.lora import attach_lora, require_peft
from domainclip.pipelines.controller import CLIPFinetuningController
from domainclip.resolve import DataFacts, ModelFacts, resolve
from domainclip.training.optim.optimizer import parameter_groups
from lora_cases import KINDS, Build, assert_same_directions, embeddings, inputs, settings, teach, trainable
from tiny_data import TinyData
from training_setup import same

# --- what is adapted ---

CLIP_LAYERS = {f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")} | {"mlp.fc1", "mlp.fc2"}
VIT_LAYERS = {f"attention.{part}_proj" for part in ("q", "k", "v", "o")} | {"mlp.fc1", "mlp.fc2"}
BERT_LAYERS = {f"attention.self.{part}" for part in ("query", "key", "value")} | {
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
}


def blocks(prefix: str, layers: set[str]) -> set[str]:
    return {f"{prefix}.{block}.{layer}" for block in (0, 1) for layer in layers}


TEXT_OF_CLIP = blocks("text_model.encoder.layers", CLIP_LAYERS)
IMAGE_OF_CLIP = blocks("vision_model.encoder.layers", CLIP_LAYERS)
EXPECTED = {
    "clip": TEXT_OF_CLIP | IMAGE_OF_CLIP,
    "siglip": TEXT_OF_CLIP | IMAGE_OF_CLIP | {"vision_model.head.mlp.fc1", "vision_model.head.mlp.fc2"},
    "vision_text": blocks("vision_model.layers", VIT_LAYERS) | blocks("text_model.encoder.layer", BERT_LAYERS),
    "mobilenet": blocks("text_model.encoder.layer", BERT_LAYERS),
}
POOLERS = {f"{tower}.pooler.dense.{part}" for tower in ("vision_model", "text_model") for part in ("weight", "bias")}
PROJECTIONS = {"visual_projection.weight", "text_projection.weight", "logit_scale"}
WHOLE = {
    "clip": PROJECTIONS,
    "siglip": {"text_model.head.weight", "text_model.head.bias", "logit_scale", "logit_bias"},
    "vision_text": PROJECTIONS | POOLERS,
    "mobilenet": PROJECTIONS | {name for name in POOLERS if name.startswith("text_model")},
}


@pytest.mark.parametrize("kind", KINDS)
def test_both_transformers_attention_and_mlp_are_adapted_and_projections_trained(build: Build, kind: str) -> None:
    encoder = build(kind)
    plain = dict(encoder.model.named_parameters())
    image_tower = {name for name in plain if name.startswith("vision_model.")}
    sizes = {name: plain[f"{name}.weight"].shape for name in EXPECTED[kind]}
    attach_lora(encoder, settings(), seed=0)
    assert encoder.adapters is not None
    assert set(encoder.adapters.layers) == EXPECTED[kind]
    learns = trainable(encoder)
    assert {name.split(".lora_")[0] for name in learns if is_adapter(name)} == EXPECTED[kind]
    whole = WHOLE[kind] | (image_tower if kind == "mobilenet" else set())  # batch-normalised: no adapters, trained
    assert {name for name in learns if not is_adapter(name)} == whole
    adapters = sum(4 * (outputs + width) for outputs, width in sizes.values())
    counted = sum(p.numel() for p in encoder.model.parameters() if p.requires_grad)
    assert counted == adapters + sum(plain[name].numel() for name in whole)
    message = encoder.adapters.describe()
    assert f"{counted:,} weights are trained, the model has {sum(p.numel() for p in plain.values()):,}" in message
    assert ("the convolutional image tower gets none" in message) == (kind == "mobilenet")


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_start_nothing_has_changed_and_removed_nothing_is_left(build: Build, kind: str) -> None:
    encoder = build(kind)
    before, state, learned = embeddings(encoder), dict(encoder.state_dict()), trainable(encoder)
    random = torch.get_rng_state()
    attach_lora(encoder, settings(), seed=0)
    assert torch.equal(torch.get_rng_state(), random)
    for now, then in zip(embeddings(encoder), before, strict=True):
        assert torch.equal(now, then)
    teach(encoder)
    assert not torch.equal(embeddings(encoder)[1], before[1])
    encoder.remove_adapters()
    assert same(encoder.state_dict(), state)
    assert trainable(encoder) == learned
    assert not hasattr(encoder.model, "peft_config")


def test_adapters_repeat_with_their_seed() -> None:
    def matrices(seed: int) -> list[Tensor]:
        encoder = make_tiny_clip()
        attach_lora(encoder, settings(), seed)
        return [p for name, p in encoder.model.named_parameters() if ".lora_A." in name]

    first, again, other = matrices(3), matrices(3), matrices(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_locked_tower_gets_none_and_stays_locked() -> None:
    encoder = make_tiny_clip()
    encoder.lock("text")
    attach_lora(encoder, settings(), seed=0)
    assert encoder.adapters is not None
    assert set(encoder.adapters.layers) == IMAGE_OF_CLIP
    assert not any(name.startswith("text_") for name in trainable(encoder))
    assert "visual_projection.weight" in trainable(encoder)


def test_target_modules_name_layers_or_their_endings(build: Build) -> None:
    encoder = make_tiny_clip()
    one = "text_model.encoder.layers.1.mlp.fc2"
    attach_lora(encoder, settings(target_modules=["q_proj", one]), seed=0)
    assert encoder.adapters is not None
    assert set(encoder.adapters.layers) == {name for name in EXPECTED["clip"] if name.endswith("q_proj")} | {one}
    assert {name for name in trainable(encoder) if not is_adapter(name)} == PROJECTIONS
    # SigLIP's pooling head has an out_proj too, but reads its weight without calling it.
    siglip = build("siglip")
    attach_lora(siglip, settings(target_modules=["out_proj"]), seed=0)
    assert siglip.adapters is not None
    assert len(siglip.adapters.layers) == 4
    teach(siglip)


# --- what is refused ---


def test_everything_locked_or_nothing_to_adapt_is_refused(build: Build) -> None:
    with pytest.raises(ConfigurationError, match="nothing to train"):
        settings(lock_image=True, lock_text=True)
    encoder = build("mobilenet")
    encoder.lock("text")
    with pytest.raises(ConfigurationError, match=r"lora_r has no layer to adapt: every .* tower \(lock_text\)"):
        attach_lora(encoder, settings(), seed=0)
    assert encoder.adapters is None
    with pytest.raises(ConfigurationError, match=r"'q_prj'. Did you mean 'q_proj'\? Endings"):
        attach_lora(make_tiny_clip(), settings(target_modules=["q_prj"]), seed=0)
    with pytest.raises(ConfigurationError, match=r"named 'convolution'\. Endings of this model: dense, key, query"):
        attach_lora(build("mobilenet"), settings(target_modules=["convolution"]), seed=0)
    with pytest.raises(ConfigurationError, match="set lora_r too"):
        OptimizerSettings(target_modules=["q_proj"])
    with pytest.raises(ConfigurationError, match="must be positive"):
        OptimizerSettings(lora_r=0)


def test_a_missing_peft_names_the_extra(monkeypatch: pytest.MonkeyPatch, tiny_data: TinyData) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "peft" else object())
    with pytest.raises(MissingExtraError, match=r"pip install 'domainclip\[lora\]'"):
        require_peft()
    with pytest.raises(MissingExtraError, match="peft"):
        CLIPFinetuningController(CLIPFinetuningConfig(model_name="tiny", lora_r=2)).setup()


# --- rates, decay ---

CLIP_FACTS = ModelFacts(224, 77, False, "transformer", "transformer", 0.01)
DATA_FACTS = DataFacts(800, 0.0, 0.0, 0, False, 8)


def test_adapters_want_ten_times_the_rate() -> None:
    run = resolve(CLIPFinetuningConfig(lora_r=8), CLIP_FACTS, DATA_FACTS)
    recipe, decisions = run.recipe, list(run.decisions)
    assert recipe.learning_rate == 5e-5
    assert recipe.image_learning_rate == recipe.text_learning_rate == pytest.approx(5e-4)
    reasons = {decision.key: decision.reason for decision in decisions}
    assert "Schulman" in reasons["image_learning_rate"]
    # What the user sets is meant for what is trained.
    recipe = resolve(CLIPFinetuningConfig(lora_r=8, learning_rate=2e-4), CLIP_FACTS, DATA_FACTS).recipe
    assert recipe.image_learning_rate == recipe.text_learning_rate == 2e-4
    # A domain preset's rate is that of full fine-tuning.
    recipe = resolve(CLIPFinetuningConfig(lora_r=8, domain="medical"), CLIP_FACTS, DATA_FACTS).recipe
    assert recipe.text_learning_rate == pytest.approx(3e-4)
    run = resolve(CLIPFinetuningConfig(**recipe.to_dict()), CLIP_FACTS, DATA_FACTS)
    again, later = run.recipe, list(run.decisions)
    assert again.to_dict() == recipe.to_dict()
    assert later == []


def test_a_convolutional_tower_alone_has_nothing_to_adapt() -> None:
    facts = ModelFacts(160, 77, False, "convolutional", "transformer", 0.01)
    with pytest.raises(ConfigurationError, match="lora_r=8 has nothing to adapt"):
        resolve(CLIPFinetuningConfig(lora_r=8, lock_text=True), facts, DATA_FACTS)
    named = CLIPFinetuningConfig(lora_r=8, lock_text=True, target_modules=["dense"])
    assert resolve(named, facts, DATA_FACTS).recipe.target_modules == ["dense"]
    assert resolve(CLIPFinetuningConfig(lora_r=8, lock_image=True), facts, DATA_FACTS).recipe.lora_r == 8


def test_groups_know_adapters(build: Build) -> None:
    encoder = make_tiny_clip(layers=3)
    rates = {"learning_rate": 1e-4, "image_learning_rate": 1e-3, "text_learning_rate": 2e-3, "layer_decay": 0.5}
    attach_lora(encoder, settings(), seed=0)
    groups = parameter_groups(encoder, settings(weight_decay=0.1, **rates))
    found = {name: group for group in groups for name in group["names"]}
    assert set(found) == trainable(encoder)
    tower = {"vision_model": 1e-3, "text_model": 2e-3}
    for name, group in found.items():
        if is_adapter(name):
            depth = int(name.split(".layers.")[1].split(".")[0])
            assert group["lr"] == pytest.approx(tower[name.split(".")[0]] * 0.5 ** (3 - depth)), name
            assert group["weight_decay"] == 0.0
        else:
            assert group["lr"] == 1e-4, name
            assert group["weight_decay"] == (0.0 if name == "logit_scale" else 0.1)
    mixed = build("mobilenet")
    attach_lora(mixed, settings(), seed=0)
    for group in parameter_groups(mixed, settings(**{**rates, "layer_decay": 1.0})):
        for name in group["names"]:  # trained whole at its own rate, as without adapters elsewhere
            if name.startswith("vision_model."):
                assert group["lr"] == 1e-3, name


# --- merged ---


@pytest.mark.parametrize("kind", KINDS)
def test_the_exported_model_is_plain_transformers_and_gives_the_same_embeddings(
    build: Build, kind: str, tmp_path: Path
) -> None:
    encoder = build(kind)
    plain = encoder.model.state_dict().keys()
    start = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    attach_lora(encoder, settings(), seed=0)
    teach(encoder)
    image, text = embeddings(encoder)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with torch.no_grad():
        torch.set_float32_matmul_precision("medium")  # as devices may have it: the merged weights are exact anyway
    try:
        save_encoder(encoder, tmp_path / "model")
    finally:
        torch.set_float32_matmul_precision("highest")
    assert same(encoder.state_dict(), before)  # training goes on as if nothing had been written
    model = AutoModel.from_pretrained(tmp_path / "model").eval()
    assert model.state_dict().keys() == plain
    pixels, tokens = inputs(encoder)
    if kind == "siglip":
        del tokens["attention_mask"]
    with torch.no_grad():
        theirs = model.get_image_features(pixel_values=pixels).pooler_output
        texts = model.get_text_features(**tokens).pooler_output
    assert_same_directions((theirs, texts), (image, text))
    assert not list((tmp_path / "model").glob("adapter*"))
    layer = sorted(EXPECTED[kind])[0]
    a, b = (before[f"model.{layer}.lora_{part}.default.weight"].double() for part in "AB")
    expected = (start[f"{layer}.weight"].double() + 8 / 4 * (b @ a)).float()
    assert torch.equal(model.state_dict()[f"{layer}.weight"], expected)

    encoder.merge_adapters()
    assert same(encoder.model.state_dict(), dict(model.state_dict()))
    load_weights(encoder, tmp_path / "model")  # names and shapes are the plain ones again
    assert trainable(encoder) == set(dict(encoder.model.named_parameters()))

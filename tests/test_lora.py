"""LoRA adapters in every kind of encoder: what they adapt, how they train, what they leave behind; checkpointed blocks.

References are the unadapted model, W + (alpha / r) · B A written out, and plain ``transformers``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, BertConfig, BertModel

from conftest import TinyData
from domainclip.config import CLIPFinetuningConfig, DataFacts, ModelFacts, ModelSettings, OptimizerSettings, resolve
from domainclip.errors import CheckpointError, ConfigurationError, MissingExtraError
from domainclip.finetune.controller import CLIPFinetuningController
from domainclip.losses import CLIPContrastiveLoss
from domainclip.models import DualEncoder, load_encoder, make_tiny_clip
from domainclip.models.checkpoint_blocks import checkpoint_blocks, checkpoint_options
from domainclip.models.lora import is_adapter, load_training_state, require_peft, training_state
from domainclip.training import ContrastiveStep, Validation
from domainclip.training.optimizer import parameter_groups
from model_zoo import save_siglip, save_vision_text
from training_setup import make_trainer, same, weights

LORA: dict[str, Any] = {"lora_r": 4, "lora_alpha": 8.0, "lora_dropout": 0.0}
KINDS = ["clip", "siglip", "vision_text", "mobilenet"]
Build = Callable[[str], DualEncoder]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    clip = base / "clip"
    make_tiny_clip().save(clip)
    return {
        "clip": clip,
        "siglip": save_siglip(base / "siglip"),
        "vision_text": save_vision_text(base / "vision_text", base / "parts"),
        "mobilenet": save_vision_text(base / "mobilenet", base / "parts", "mobilenet"),
    }


@pytest.fixture
def build(folders: dict[str, Path]) -> Build:
    return lambda kind: load_encoder(ModelSettings(model_name=str(folders[kind])))


def settings(**values: Any) -> OptimizerSettings:
    return OptimizerSettings(**{**LORA, **values})


def inputs(encoder: DualEncoder, rows: int = 4) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    texts = ["a photo of red grass", "sky seen from above", "small brick", "the moon, large"][:rows]
    pixels = torch.randn(rows, 3, 32, 32, generator=generator, dtype=torch.float64).to(encoder.dtype)
    return pixels, encoder.processor.tokenize(texts)


def embeddings(encoder: DualEncoder) -> tuple[Tensor, Tensor]:
    pixels, tokens = inputs(encoder)
    with torch.no_grad():
        return encoder.encode_image(pixels), encoder.encode_text(**tokens)


def assert_same_directions(mine: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    """Unit-length embeddings equal to 1e-6."""
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(F.normalize(a, dim=-1), F.normalize(b, dim=-1), rtol=0, atol=1e-6)


def teach(encoder: DualEncoder) -> None:
    """Give B values, as training would: at the start an adapter adds nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in encoder.model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def trainable(encoder: DualEncoder) -> set[str]:
    return {name for name, parameter in encoder.model.named_parameters() if parameter.requires_grad}


# --- what is adapted ---

CLIP_LAYERS = {f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")} | {"mlp.fc1", "mlp.fc2"}
VIT_LAYERS = {f"attention.{part}_proj" for part in ("q", "k", "v", "o")} | {"mlp.fc1", "mlp.fc2"}
BERT_LAYERS = {f"attention.self.{part}" for part in ("query", "key", "value")} | {
    "attention.output.dense", "intermediate.dense", "output.dense",
}  # fmt: skip


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
    encoder.attach_adapters(settings(), seed=0)
    assert encoder.adapters is not None
    assert set(encoder.adapters.layers) == EXPECTED[kind]
    learns = trainable(encoder)
    assert {name.split(".lora_")[0] for name in learns if is_adapter(name)} == EXPECTED[kind]
    whole = WHOLE[kind] | (image_tower if kind == "mobilenet" else set())  # batch-normalised: no adapters, trained
    assert {name for name in learns if not is_adapter(name)} == whole
    adapters = sum(4 * (outputs + width) for outputs, width in sizes.values())
    counted = sum(p.numel() for p in encoder.model.parameters() if p.requires_grad)
    assert counted == adapters + sum(plain[name].numel() for name in whole)
    said = encoder.adapters.describe()
    assert f"{counted:,} weights are trained, the model has {sum(p.numel() for p in plain.values()):,}" in said
    assert ("the convolutional image tower gets none" in said) == (kind == "mobilenet")


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_start_nothing_has_changed_and_removed_nothing_is_left(build: Build, kind: str) -> None:
    encoder = build(kind)
    before, state, learned = embeddings(encoder), dict(encoder.state_dict()), trainable(encoder)
    random = torch.get_rng_state()
    encoder.attach_adapters(settings(), seed=0)
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
        encoder.attach_adapters(settings(), seed)
        return [p for name, p in encoder.model.named_parameters() if ".lora_A." in name]

    first, again, other = matrices(3), matrices(3), matrices(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_locked_tower_gets_none_and_stays_locked() -> None:
    encoder = make_tiny_clip()
    encoder.lock("text")
    encoder.attach_adapters(settings(), seed=0)
    assert encoder.adapters is not None
    assert set(encoder.adapters.layers) == IMAGE_OF_CLIP
    assert not any(name.startswith("text_") for name in trainable(encoder))
    assert "visual_projection.weight" in trainable(encoder)


def test_target_modules_name_layers_or_their_endings(build: Build) -> None:
    encoder = make_tiny_clip()
    one = "text_model.encoder.layers.1.mlp.fc2"
    encoder.attach_adapters(settings(target_modules=["q_proj", one]), seed=0)
    assert encoder.adapters is not None
    assert set(encoder.adapters.layers) == {name for name in EXPECTED["clip"] if name.endswith("q_proj")} | {one}
    assert {name for name in trainable(encoder) if not is_adapter(name)} == PROJECTIONS
    # SigLIP's pooling head has an out_proj too, but reads its weight without calling it.
    siglip = build("siglip")
    siglip.attach_adapters(settings(target_modules=["out_proj"]), seed=0)
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
        encoder.attach_adapters(settings(), seed=0)
    assert encoder.adapters is None
    with pytest.raises(ConfigurationError, match=r"'q_prj'. Did you mean 'q_proj'\? Endings"):
        make_tiny_clip().attach_adapters(settings(target_modules=["q_prj"]), seed=0)
    with pytest.raises(ConfigurationError, match=r"named 'convolution'\. Endings of this model: dense, key, query"):
        build("mobilenet").attach_adapters(settings(target_modules=["convolution"]), seed=0)
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
    recipe, decisions = resolve(CLIPFinetuningConfig(lora_r=8), CLIP_FACTS, DATA_FACTS)
    assert recipe.learning_rate == 5e-5
    assert recipe.image_learning_rate == recipe.text_learning_rate == pytest.approx(5e-4)
    reasons = {decision.key: decision.reason for decision in decisions}
    assert "Schulman" in reasons["image_learning_rate"]
    # What the user sets is meant for what is trained.
    recipe, _ = resolve(CLIPFinetuningConfig(lora_r=8, learning_rate=2e-4), CLIP_FACTS, DATA_FACTS)
    assert recipe.image_learning_rate == recipe.text_learning_rate == 2e-4
    # A domain preset's rate is that of full fine-tuning.
    recipe, _ = resolve(CLIPFinetuningConfig(lora_r=8, domain="medical"), CLIP_FACTS, DATA_FACTS)
    assert recipe.text_learning_rate == pytest.approx(3e-4)
    again, later = resolve(CLIPFinetuningConfig(**recipe.to_dict()), CLIP_FACTS, DATA_FACTS)
    assert again.to_dict() == recipe.to_dict()
    assert later == []


def test_a_convolutional_tower_alone_has_nothing_to_adapt() -> None:
    facts = ModelFacts(160, 77, False, "convolutional", "transformer", 0.01)
    with pytest.raises(ConfigurationError, match="lora_r=8 has nothing to adapt"):
        resolve(CLIPFinetuningConfig(lora_r=8, lock_text=True), facts, DATA_FACTS)
    named = CLIPFinetuningConfig(lora_r=8, lock_text=True, target_modules=["dense"])
    assert resolve(named, facts, DATA_FACTS)[0].target_modules == ["dense"]
    assert resolve(CLIPFinetuningConfig(lora_r=8, lock_image=True), facts, DATA_FACTS)[0].lora_r == 8


def test_groups_know_adapters(build: Build) -> None:
    encoder = make_tiny_clip(layers=3)
    rates = {"learning_rate": 1e-4, "image_learning_rate": 1e-3, "text_learning_rate": 2e-3, "layer_decay": 0.5}
    encoder.attach_adapters(settings(), seed=0)
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
    mixed.attach_adapters(settings(), seed=0)
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
    encoder.attach_adapters(settings(), seed=0)
    teach(encoder)
    image, text = embeddings(encoder)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with torch.no_grad():
        torch.set_float32_matmul_precision("medium")  # as devices may have it: the merged weights are exact anyway
    try:
        encoder.save(tmp_path / "model")
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
    encoder.load_weights(tmp_path / "model")  # names and shapes are the plain ones again
    assert trainable(encoder) == set(dict(encoder.model.named_parameters()))


# --- through the loop ---


def lora_encoder(seed: int = 0) -> DualEncoder:
    """Dropout in the attention and in the adapters."""
    encoder = make_tiny_clip(attention_dropout=0.1)
    encoder.attach_adapters(settings(lora_dropout=0.1), seed)
    return encoder


def _validation(encoder: DualEncoder) -> Callable[[], Validation]:
    calls: list[int] = []

    def validate() -> Validation:
        calls.append(1)
        return Validation({"acc": float(len(calls))}, "acc")  # better each time: best/ is written each time

    return validate


def test_writing_the_best_weights_does_not_disturb_training(tiny_data: TinyData, tmp_path: Path) -> None:
    runs = {}
    for name in ("validated", "plain"):
        encoder = lora_encoder()
        runs[name] = make_trainer(
            tiny_data.pairs(), tmp_path / name, encoder=encoder, eval_steps=1, **LORA,
            validate=_validation(encoder) if name == "validated" else None,
        )  # fmt: skip
        runs[name].train()
    assert same(weights(runs["validated"]), weights(runs["plain"]))
    trained = runs["validated"].encoder
    best = load_encoder(ModelSettings(model_name=str(tmp_path / "validated" / "best")))
    trained.eval()
    assert_same_directions(embeddings(best), embeddings(trained))
    moved = [p for name, p in trained.model.named_parameters() if ".lora_B." in name]
    assert all(float(p.detach().abs().max()) > 0 for p in moved)
    frozen = dict(make_tiny_clip().model.named_parameters())
    for name, parameter in trained.model.named_parameters():
        if name.startswith(("vision_model", "text_model")) and not is_adapter(name):
            assert torch.equal(parameter, frozen[name.replace(".base_layer.", ".")]), name


class Stop(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("stop_at", [1, 4])
def test_a_resumed_run_is_the_undisturbed_run(
    tiny_data: TinyData, tmp_path: Path, stop_at: int, optimizer: str
) -> None:
    values: dict[str, Any] = {**LORA, "save_steps": 1, "optimizer": optimizer, "mini_batch_size": 4}
    whole = make_trainer(tiny_data.pairs(), tmp_path / "whole", encoder=lora_encoder(), **values)
    whole.train()
    broken = make_trainer(tiny_data.pairs(), tmp_path / "broken", encoder=lora_encoder(), **values)
    take = broken._step

    def stopping(batch: dict[str, Any]) -> Any:
        if broken.state.step == stop_at:
            raise Stop
        return take(batch)

    broken._step = stopping  # type: ignore[method-assign]
    with pytest.raises(Stop):
        broken.train()
    torch.manual_seed(999)
    again = make_trainer(tiny_data.pairs(), tmp_path / "broken", encoder=lora_encoder(seed=5), **values)
    assert again.train(resume=True).resumed_from == stop_at
    assert same(weights(again), weights(whole))


def test_what_a_checkpoint_needs_is_small_and_exact(tmp_path: Path) -> None:
    encoder = lora_encoder()
    teach(encoder)
    with torch.no_grad():
        encoder.model.visual_projection.weight.mul_(1.5)
        encoder.logit_scale.fill_(2.0)
    torch.save(training_state(encoder), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    names = {name.removeprefix("model.") for name in state["trained"]}
    assert names == trainable(encoder)
    whole = sum(p.numel() for p in encoder.model.parameters())
    assert sum(value.numel() for value in state["trained"].values()) < whole / 4
    fresh = lora_encoder(seed=7)
    load_training_state(fresh, state)
    assert same(fresh.state_dict(), encoder.state_dict())
    other = make_tiny_clip(seed=1)
    other.attach_adapters(settings(), seed=0)
    with pytest.raises(CheckpointError, match="beside other weights"):
        load_training_state(other, state)
    plain = make_tiny_clip()
    assert same(training_state(plain), plain.state_dict())


def test_a_convolutional_towers_statistics_are_part_of_a_checkpoint(build: Build) -> None:
    encoder = build("mobilenet")
    encoder.attach_adapters(settings(), seed=0)
    names = training_state(encoder)["trained"].keys()
    assert {name for name, _ in encoder.named_buffers()} & set(encoder.state_dict()) <= names
    assert any(name.endswith("running_mean") for name in names)
    assert "model.vision_model.conv_stem.convolution.weight" in names


@pytest.mark.parametrize("validated", [True, False])
def test_the_controller_leaves_a_plain_model(tiny_data: TinyData, tmp_path: Path, validated: bool) -> None:
    config = CLIPFinetuningConfig(
        model_name="tiny", lora_r=4, batch_size=6, num_epochs=2, num_workers=0, mixed_precision=False, device="cpu",
        learning_rate=1e-2, gradient_checkpointing=True, image_resolution=32,
    )  # fmt: skip
    controller = CLIPFinetuningController(config)
    controller.setup()
    pairs = tiny_data.pairs()
    start = controller.encode_text(["a texture of brick"])
    result = controller.fine_tune(pairs, tiny_data.pairs("val") if validated else None, tmp_path / "run")
    assert controller.model is not None and controller.model.adapters is None
    assert controller.get_model_state()["parameters"] == sum(p.numel() for p in make_tiny_clip().model.parameters())
    texts = controller.encode_text(["a texture of brick"])
    assert not torch.allclose(texts, start, atol=1e-3)
    saved = load_encoder(ModelSettings(model_name=result["model_path"]))
    assert same(saved.model.state_dict(), controller.model.model.state_dict())
    # Once more, over the merged weights.
    controller.fine_tune(pairs, None, tmp_path / "second")
    assert controller.model.adapters is None


# --- blocks computed again ---


def step_of(encoder: DualEncoder, chunk: int | None) -> ContrastiveStep:
    loss = CLIPContrastiveLoss()
    return ContrastiveStep(
        encoder.encode_image, encoder.encode_text,
        lambda x, y, g: loss(x, y, group_ids=g, logit_scale=encoder.logit_scale),
        contextlib.nullcontext, torch.device("cpu"), chunk,
    )  # fmt: skip


def gradients(encoder: DualEncoder, chunk: int | None) -> dict[str, Tensor]:
    pixels, tokens = inputs(encoder)
    encoder.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    index = torch.arange(len(pixels))
    step_of(encoder, chunk)({"pixels": pixels, **tokens, "caption_index": index, "group_ids": index})
    return {name: p.grad.clone() for name, p in encoder.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("dropout", "adapters", "chunk"), [(0.0, False, None), (0.3, False, 3), (0.3, True, None), (0.3, True, 3)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_blocks_give_the_same_gradients(
    build: Build, kind: str, dropout: float, adapters: bool, chunk: int | None
) -> None:
    encoder = make_tiny_clip(attention_dropout=dropout) if kind == "clip" else build(kind)
    if dropout and not adapters and kind != "clip":
        for module in encoder.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
    if adapters:
        encoder.attach_adapters(settings(lora_dropout=dropout), seed=0)
        teach(encoder)
    encoder.double().train()
    reference = gradients(encoder, chunk)
    saved = bytes_saved(encoder)
    assert checkpoint_blocks(encoder.model, True) == (["image"] if kind == "mobilenet" else [])
    mine = gradients(encoder, chunk)
    assert mine.keys() == reference.keys()
    for name, expected in reference.items():
        torch.testing.assert_close(mine[name], expected, rtol=1e-9, atol=1e-12)
    assert any(float(value.abs().max()) > 1e-4 for value in reference.values())
    assert bytes_saved(encoder) < saved / 1.5
    assert checkpoint_blocks(encoder.model, False) == (["image"] if kind == "mobilenet" else [])
    assert bytes_saved(encoder) == saved


@pytest.mark.parametrize("restored", [True, False])
def test_a_replay_on_mps_draws_the_same_numbers(monkeypatch: pytest.MonkeyPatch, restored: bool) -> None:
    """The CPU's generator stands in for that of MPS, which torch's checkpoint does not restore by itself."""
    monkeypatch.setattr(torch.mps, "get_rng_state", torch.get_rng_state)
    monkeypatch.setattr(torch.mps, "set_rng_state", torch.set_rng_state)
    options = {**checkpoint_options(torch.device("mps")), "preserve_rng_state": False}
    if not restored:
        del options["context_fn"]
    block = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5), nn.Linear(16, 16), nn.Dropout(0.5), nn.Linear(16, 1))
    rows = torch.randn(8, 16)
    found = []
    for run in (block, lambda x: checkpoint(block, x, **options)):
        block.zero_grad()
        torch.manual_seed(3)
        loss = run(rows).square().sum()
        after = torch.get_rng_state()
        loss.backward()
        found.append([p.grad.clone() for p in block.parameters() if p.grad is not None])
        assert torch.equal(torch.get_rng_state(), after) or not restored
    equal = all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert equal == restored


def test_a_locked_tower_is_not_run_backward_for_checkpoints() -> None:
    encoder = make_tiny_clip()
    encoder.lock("text")
    encoder.train()
    assert checkpoint_blocks(encoder.model, True) == []
    pixels, tokens = inputs(encoder)
    assert not encoder.encode_text(**tokens).requires_grad
    assert encoder.encode_image(pixels).requires_grad


def bytes_saved(encoder: DualEncoder) -> int:
    """Activations of the text tower that wait for the backward pass (its weights not counted)."""
    own = {p.data_ptr() for p in encoder.parameters()}
    held: list[Tensor] = []  # all of them kept, so that no memory is used twice

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor)
        return tensor

    _, tokens = inputs(encoder)
    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = encoder.encode_text(**tokens)
    assert kept.requires_grad
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    return sum(size for pointer, size in storages.items() if pointer not in own)


def test_a_bert_with_dropout_is_really_random_in_training() -> None:
    """The comparison above would pass with dropout that does nothing."""
    config = BertConfig(vocab_size=50, hidden_size=20, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2)
    model = BertModel(config).train()
    ids = torch.arange(6)[None]
    assert not torch.equal(model(ids).pooler_output, model(ids).pooler_output)

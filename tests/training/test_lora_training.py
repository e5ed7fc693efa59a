"""Adapters through the loop, and blocks that are computed again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertModel

from domainclip.config import CLIPFinetuningConfig, ModelSettings
from domainclip.errors import CheckpointError
from domainclip.losses import CLIPContrastiveLoss
from domainclip.models import DualEncoder, load_encoder, make_tiny_clip
from domainclip.models.adapters import is_adapter
from domainclip.models.checkpoint_blocks import checkpoint_blocks, checkpoint_options
from domainclip.models.io import load_training_state, training_state
from domainclip.models.lora import attach_lora
from domainclip.pipelines.controller import CLIPFinetuningController
from domainclip.training import ContrastiveStep, Validation
from lora_cases import KINDS, LORA, Build, assert_same_directions, embeddings, inputs, settings, teach, trainable
from tiny_data import TinyData
from training_setup import make_trainer, same, train_until, weights

pytestmark = pytest.mark.slow

# --- through the loop ---


def lora_encoder(seed: int = 0) -> DualEncoder:
    """Dropout in the attention and in the adapters."""
    encoder = make_tiny_clip(attention_dropout=0.1)
    attach_lora(encoder, settings(lora_dropout=0.1), seed)
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
            tiny_data.pairs(),
            tmp_path / name,
            encoder=encoder,
            eval_steps=1,
            **LORA,
            validate=_validation(encoder) if name == "validated" else None,
        )
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


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("stop_at", [1, 4])
def test_a_resumed_run_is_the_undisturbed_run(
    tiny_data: TinyData, tmp_path: Path, stop_at: int, optimizer: str
) -> None:
    values: dict[str, Any] = {**LORA, "save_steps": 1, "optimizer": optimizer, "mini_batch_size": 4}
    whole = make_trainer(tiny_data.pairs(), tmp_path / "whole", encoder=lora_encoder(), **values)
    whole.train()
    broken = make_trainer(tiny_data.pairs(), tmp_path / "broken", encoder=lora_encoder(), **values)
    train_until(broken, stop_at)
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
    attach_lora(other, settings(), seed=0)
    with pytest.raises(CheckpointError, match="beside other weights"):
        load_training_state(other, state)
    plain = make_tiny_clip()
    assert same(training_state(plain), plain.state_dict())


def test_a_convolutional_towers_statistics_are_part_of_a_checkpoint(build: Build) -> None:
    encoder = build("mobilenet")
    attach_lora(encoder, settings(), seed=0)
    names = training_state(encoder)["trained"].keys()
    assert {name for name, _ in encoder.named_buffers()} & set(encoder.state_dict()) <= names
    assert any(name.endswith("running_mean") for name in names)
    assert "model.vision_model.conv_stem.convolution.weight" in names


@pytest.mark.parametrize("validated", [True, False])
def test_the_controller_leaves_a_plain_model(tiny_data: TinyData, tmp_path: Path, validated: bool) -> None:
    config = CLIPFinetuningConfig(
        model_name="tiny",
        lora_r=4,
        batch_size=6,
        num_epochs=2,
        num_workers=0,
        mixed_precision=False,
        device="cpu",
        learning_rate=1e-2,
        gradient_checkpointing=True,
        image_resolution=32,
    )
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


def step_of(encoder: DualEncoder, micro_batch: int | None) -> ContrastiveStep:
    loss = CLIPContrastiveLoss()
    return ContrastiveStep(
        encoder.encode_image,
        encoder.encode_text,
        lambda x, y, g: loss(x, y, group_ids=g, logit_scale=encoder.logit_scale),
        contextlib.nullcontext,
        torch.device("cpu"),
        micro_batch,
    )


def gradients(encoder: DualEncoder, micro_batch: int | None) -> dict[str, Tensor]:
    pixels, tokens = inputs(encoder)
    encoder.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    index = torch.arange(len(pixels))
    step_of(encoder, micro_batch)({"pixels": pixels, **tokens, "caption_index": index, "group_ids": index})
    return {name: p.grad.clone() for name, p in encoder.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("dropout", "adapters", "micro_batch"), [(0.0, False, None), (0.3, False, 3), (0.3, True, None), (0.3, True, 3)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_blocks_give_the_same_gradients(
    build: Build, kind: str, dropout: float, adapters: bool, micro_batch: int | None
) -> None:
    encoder = make_tiny_clip(attention_dropout=dropout) if kind == "clip" else build(kind)
    if dropout and not adapters and kind != "clip":
        for module in encoder.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
    if adapters:
        attach_lora(encoder, settings(lora_dropout=dropout), seed=0)
        teach(encoder)
    encoder.double().train()
    reference = gradients(encoder, micro_batch)
    saved = bytes_saved(encoder)
    assert checkpoint_blocks(encoder.model, True) == (["image"] if kind == "mobilenet" else [])
    mine = gradients(encoder, micro_batch)
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

"""Parameter groups, rates and schedule of the optimizer."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from domainclip.config import ModelSettings, OptimizerSettings
from domainclip.errors import ConfigurationError
from domainclip.losses import CLIPContrastiveLoss
from domainclip.models import DualEncoder, load_encoder, make_tiny_clip
from domainclip.training.optimizer import build_optimizer, parameter_groups, rate_factor, set_rates
from model_zoo import save_siglip, save_vision_text

CPU = torch.device("cpu")


def by_name(encoder: DualEncoder, **settings: Any) -> dict[str, dict[str, Any]]:
    groups = parameter_groups(encoder, OptimizerSettings(**settings))
    return {name: group for group in groups for name in group["names"]}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DualEncoder]:
    base = tmp_path_factory.mktemp("models")
    siglip = save_siglip(base / "siglip")
    joined = save_vision_text(base / "vision_text", base / "parts")
    mobile = save_vision_text(base / "mobilenet", base / "parts", "mobilenet")
    made = {str(path.name): load_encoder(ModelSettings(model_name=str(path))) for path in (siglip, joined, mobile)}
    return made | {"clip": make_tiny_clip()}


@pytest.mark.parametrize("kind", ["clip", "siglip", "vision_text", "mobilenet"])
def test_every_parameter_is_in_one_group_and_only_matrices_decay(encoders: dict[str, DualEncoder], kind: str) -> None:
    encoder = encoders[kind]
    groups = by_name(encoder, weight_decay=0.3)
    assert sorted(groups) == sorted(name for name, _ in encoder.model.named_parameters())
    held = [id(p) for group in parameter_groups(encoder, OptimizerSettings()) for p in group["params"]]
    assert len(held) == len(set(held))
    norms = {
        f"{module_name}.{name}"
        for module_name, module in encoder.model.named_modules()
        if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d))
        for name, _ in module.named_parameters()
    }
    assert norms
    for name, group in groups.items():
        exempt = name in norms or name.endswith("bias") or name in {"logit_scale", "logit_bias"}
        if exempt:
            assert group["weight_decay"] == 0.0, name
    for name, module in encoder.model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            assert groups[f"{name}.weight"]["weight_decay"] == 0.3, name


def test_each_tower_has_its_rate(encoders: dict[str, DualEncoder]) -> None:
    encoder = encoders["vision_text"]
    groups = by_name(encoder, learning_rate=1e-5, image_learning_rate=3e-4, text_learning_rate=7e-6)
    expected = {"vision_model": 3e-4, "visual_projection": 3e-4, "text_model": 7e-6, "text_projection": 7e-6}
    for name, group in groups.items():
        assert group["lr"] == expected.get(name.split(".")[0], 1e-5), name
    assert groups["logit_scale"]["lr"] == 1e-5


def test_layers_nearer_the_input_learn_slower() -> None:
    groups = by_name(make_tiny_clip(layers=3), learning_rate=1.0, layer_decay=0.5)
    # three blocks: 0.5³, 0.5², 0.5¹ from the input on; what lies before them 0.5⁴, what comes after 1
    expected = {
        "vision_model.embeddings.class_embedding": 0.5**4,
        "vision_model.embeddings.patch_embedding.weight": 0.5**4,
        "vision_model.embeddings.position_embedding.weight": 0.5**4,
        "vision_model.pre_layrnorm.weight": 0.5**4,
        "vision_model.encoder.layers.0.self_attn.q_proj.weight": 0.5**3,
        "vision_model.encoder.layers.1.mlp.fc1.bias": 0.5**2,
        "vision_model.encoder.layers.2.layer_norm1.weight": 0.5**1,
        "vision_model.post_layernorm.weight": 1.0,
        "visual_projection.weight": 1.0,
        "text_model.embeddings.token_embedding.weight": 0.5**4,
        "text_model.encoder.layers.0.self_attn.q_proj.weight": 0.5**3,
        "text_model.final_layer_norm.weight": 1.0,
        "text_projection.weight": 1.0,
        "logit_scale": 1.0,
    }
    assert {name: groups[name]["lr"] for name in expected} == expected


def test_what_is_locked_is_left_out() -> None:
    encoder = make_tiny_clip()
    encoder.lock("text")
    names = set(by_name(encoder))
    assert not any(name.startswith("text_") for name in names)
    assert "visual_projection.weight" in names
    encoder.lock("image")
    encoder.logit_scale.requires_grad_(False)
    with pytest.raises(ConfigurationError, match="Nothing to train"):
        parameter_groups(encoder, OptimizerSettings())


def test_a_losss_own_parameters_learn_without_decay() -> None:
    loss = CLIPContrastiveLoss(learnable_temp=True)
    groups = parameter_groups(make_tiny_clip(), OptimizerSettings(learning_rate=1e-3), loss)
    (group,) = [group for group in groups if "loss.log_scale" in group["names"]]
    assert group["lr"] == 1e-3
    assert group["weight_decay"] == 0.0


def test_the_optimizer_takes_the_recipes_numbers() -> None:
    settings = OptimizerSettings(adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-5)
    optimizer = build_optimizer(make_tiny_clip(), settings, CPU)
    for group in optimizer.param_groups:
        assert group["betas"] == (0.8, 0.95)
        assert group["eps"] == 1e-5
        assert len(group["names"]) == len(group["params"])


@pytest.mark.parametrize(("warmup", "total"), [(5, 40), (0, 12), (1, 2)])
def test_the_schedule_is_transformers_cosine(warmup: int, total: int) -> None:
    """Ours is theirs, except that the warm-up's first step already learns (theirs is wasted at rate 0)."""
    parameter = nn.Parameter(torch.zeros(1))
    reference = get_cosine_schedule_with_warmup(torch.optim.SGD([parameter], lr=1.0), warmup, total).lr_lambdas[0]
    for step in range(total):
        theirs = reference(step + 1) if step < warmup else reference(step)
        assert rate_factor(step, warmup, total) == pytest.approx(theirs, abs=1e-12)


def test_the_schedule_starts_above_zero_peaks_at_one_and_ends_low() -> None:
    rates = [rate_factor(step, 10, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == 1.0
    assert rates[9] == rates[10] == 1.0
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.001
    assert rate_factor(99, 10, 100, floor=0.2) == pytest.approx(0.2, abs=0.001)
    assert rate_factor(10, 10, 100, floor=0.2) == 1.0
    assert rate_factor(500, 10, 100) == pytest.approx(0.0)


def test_set_rates_keeps_the_groups_proportions() -> None:
    optimizer = build_optimizer(make_tiny_clip(), OptimizerSettings(learning_rate=1e-3, image_learning_rate=1e-2), CPU)
    set_rates(optimizer, 0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25e-2, 0.25e-3}
    set_rates(optimizer, 1.0)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-2, 1e-3}


def test_one_step_is_adamws_own(tmp_path: Path) -> None:
    """The first step against its formula: decay, then lr · g / (|g| + eps), moments corrected for their start."""
    encoder = make_tiny_clip()
    settings = OptimizerSettings(learning_rate=1e-2, weight_decay=0.1, adam_epsilon=1e-8)
    optimizer = build_optimizer(encoder, settings, CPU)
    before = {name: parameter.detach().clone() for name, parameter in encoder.model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for parameter in encoder.model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    for name in ("visual_projection.weight", "vision_model.post_layernorm.weight", "logit_scale"):
        parameter, start = dict(encoder.model.named_parameters())[name], before[name]
        decay = 0.1 if start.ndim == 2 else 0.0
        assert parameter.grad is not None
        expected = start * (1 - 1e-2 * decay) - 1e-2 * parameter.grad / (parameter.grad.abs() + 1e-8)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-6)

"""Parameter groups, rates and schedule of the optimizer; the lean ones, and what each keeps in memory."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from domainclip.config import CLIPFinetuningConfig, ModelSettings, OptimizerSettings
from domainclip.errors import ConfigurationError, MissingExtraError
from domainclip.losses import CLIPContrastiveLoss
from domainclip.models import DualEncoder, load_encoder, make_tiny_clip
from domainclip.models.lora import attach_lora
from domainclip.pipelines.controller import CLIPFinetuningController
from domainclip.training.optim.choice import OPTIMIZERS, check_optimizer, optimizer_state_bytes
from domainclip.training.optim.optimizer import build_optimizer, parameter_groups, rate_factor, set_rates
from model_zoo import save_siglip, save_vision_text
from tiny_data import TinyData
from training_setup import make_trainer

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


# --- lean optimizers ---


def give_gradients(encoder: DualEncoder, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in encoder.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def test_every_name_a_recipe_may_give_is_known() -> None:
    annotation = OptimizerSettings.model_fields["optimizer"].annotation
    assert set(annotation.__args__) == set(OPTIMIZERS)  # type: ignore[union-attr]
    assert OptimizerSettings().optimizer == "adamw"
    with pytest.raises(ConfigurationError, match="Invalid optimizer 'sgd': choose"):
        CLIPFinetuningConfig(optimizer="sgd")
    with pytest.raises(ConfigurationError, match="Invalid optimizer 'sgd': choose"):
        optimizer_state_bytes("sgd", [])


def test_one_step_is_adafactors_own() -> None:
    """Shazeer & Stern 2018, algorithm 4 at the first step (where the decay of the mean of squares is 0), by loops."""
    encoder = make_tiny_clip()
    optimizer = build_optimizer(
        encoder, OptimizerSettings(optimizer="adafactor", learning_rate=1e-2, weight_decay=0.1), CPU
    )
    before = {name: parameter.detach().clone() for name, parameter in encoder.model.named_parameters()}
    give_gradients(encoder)
    optimizer.step()
    for name, decay in (("visual_projection.weight", 0.1), ("vision_model.post_layernorm.weight", 0.0)):
        parameter, start = dict(encoder.model.named_parameters())[name], before[name].double()
        assert parameter.grad is not None
        gradient = parameter.grad.double()
        if gradient.ndim == 1:
            update = gradient / gradient.abs()
        else:
            square = gradient.square()
            rows = [sum(row) for row in square.tolist()]
            columns = [sum(column) for column in square.T.tolist()]
            update = torch.zeros_like(gradient)
            for i, row in enumerate(rows):
                for j, column in enumerate(columns):
                    update[i, j] = gradient[i, j] / (row * column / sum(rows)) ** 0.5
        update = update / max(1.0, float(update.square().mean().sqrt()))
        expected = start * (1 - 1e-2 * decay) - 1e-2 * update
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-7)


def test_adafactors_rate_is_adamws_whatever_the_weights_size() -> None:
    """A LoRA matrix is zero at the start, and must learn as fast as any other."""
    moved = []
    for size in (0.0, 1.0):
        encoder = make_tiny_clip()
        with torch.no_grad():
            for parameter in encoder.model.parameters():
                parameter.mul_(size)
        start = encoder.model.visual_projection.weight.detach().clone()
        settings = OptimizerSettings(optimizer="adafactor", learning_rate=1e-2, weight_decay=0.0)
        optimizer = build_optimizer(encoder, settings, CPU)
        give_gradients(encoder)
        optimizer.step()
        moved.append(encoder.model.visual_projection.weight.detach() - start)
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-4, atol=1e-6)
    assert float(moved[0].square().mean().sqrt()) == pytest.approx(1e-2, rel=1e-3)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", ["clip", "siglip", "vision_text", "mobilenet"])
@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_the_stated_memory_is_what_the_state_takes(
    encoders: dict[str, DualEncoder], name: str, kind: str, lora: bool
) -> None:
    encoder = encoders[kind]
    settings = OptimizerSettings(optimizer=name, lora_r=4 if lora else None)
    if lora:
        attach_lora(encoder, settings, seed=0)
    try:
        optimizer = build_optimizer(encoder, settings, CPU)
        start = {n: p.detach().clone() for n, p in encoder.model.named_parameters()}
        give_gradients(encoder)
        optimizer.step()
        held = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        assert optimizer_state_bytes(name, trained) == sum(v.numel() * v.element_size() for v in held)
        on_meta = [p.to("meta") for p in trained]
        assert optimizer_state_bytes(name, on_meta) == optimizer_state_bytes(name, trained)
        with torch.no_grad():
            for n, parameter in encoder.model.named_parameters():
                parameter.copy_(start[n])
                parameter.grad = None
    finally:
        encoder.remove_adapters()


def test_lean_optimizers_keep_a_fraction_of_a_transformers_state() -> None:
    layer = [torch.empty(3072, 768, device="meta"), torch.empty(768, 3072, device="meta")]
    whole = optimizer_state_bytes("adamw", layer)
    assert whole == 2 * 4 * 2 * 3072 * 768 + 2 * 4
    assert optimizer_state_bytes("adafactor", layer) == 2 * 4 * (3072 + 768 + 1)
    assert whole / 4 < optimizer_state_bytes("adamw_8bit", layer) < whole / 3.8
    half = [torch.empty(8, 8, dtype=torch.bfloat16, device="meta")]
    assert optimizer_state_bytes("adafactor", half) == 4 * 17  # kept in float32
    # Too small for eight bits: plain float32.
    assert optimizer_state_bytes("adamw_8bit", [torch.empty(4095, device="meta")]) == 8 * 4095


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_state_that_was_saved_goes_on_exactly(name: str, tmp_path: Path) -> None:
    settings = OptimizerSettings(optimizer=name, learning_rate=1e-2)
    whole, broken = make_tiny_clip(), make_tiny_clip()
    first, second = (build_optimizer(encoder, settings, CPU) for encoder in (whole, broken))
    for step in range(4):
        if step == 2:
            torch.save({"model": broken.state_dict(), "optimizer": second.state_dict()}, tmp_path / "state.pt")
            saved = torch.load(tmp_path / "state.pt", weights_only=True)
            broken = make_tiny_clip(seed=9)
            broken.load_state_dict(saved["model"])
            second = build_optimizer(broken, settings, CPU)
            second.load_state_dict(saved["optimizer"])
        for encoder, optimizer in ((whole, first), (broken, second)):
            give_gradients(encoder, step)
            set_rates(optimizer, 1 / (step + 1))
            optimizer.step()
    for key, value in whole.state_dict().items():
        assert torch.equal(value, broken.state_dict()[key]), key


def test_adafactor_trains_through_the_loop(tiny_data: TinyData, tmp_path: Path) -> None:
    trainer = make_trainer(
        tiny_data.pairs(), tmp_path, optimizer="adafactor", num_epochs=6, encoder=make_tiny_clip(), learning_rate=3e-3
    )
    assert type(trainer.step.optimizer).__name__ == "Adafactor"
    trainer.train()
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_8_bit_adamw_says_that_it_needs_cuda_and_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for device in ("cpu", "mps"):
        with pytest.raises(ConfigurationError, match=rf"CUDA only \(this device is {device}\): choose adafactor"):
            check_optimizer("adamw_8bit", torch.device(device))
    controller = CLIPFinetuningController(CLIPFinetuningConfig(model_name="tiny", optimizer="adamw_8bit", device="cpu"))
    with pytest.raises(ConfigurationError, match="CUDA only"):  # before anything is loaded
        controller.setup()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'domainclip\[memory\]'"):
        check_optimizer("adamw_8bit", torch.device("cuda"))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_8_bit_adamw_on_cuda(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    encoder = make_tiny_clip(width=128).cuda()
    settings = OptimizerSettings(optimizer="adamw_8bit", learning_rate=1e-3)
    optimizer = build_optimizer(encoder, settings, torch.device("cuda"))
    for parameter in encoder.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    held = {
        value.data_ptr(): value.numel() * value.element_size()  # the tables are shared: counted once
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value)
    }
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    assert optimizer_state_bytes("adamw_8bit", trained) == sum(held.values())
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    again = build_optimizer(encoder, settings, torch.device("cuda"))
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for mine, theirs in zip(optimizer.state.values(), again.state.values(), strict=True):
        for key, value in mine.items():
            assert torch.equal(value, theirs[key]) if torch.is_tensor(value) else value == theirs[key]

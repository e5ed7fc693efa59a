"""Every objective through chunks, and passes that keep their graph."""

from __future__ import annotations

import contextlib
import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domainclip.config import CLIPFinetuningConfig
from domainclip.losses import LOSSES, CLIPContrastiveLoss, build_loss, call_objective
from domainclip.models import DualEncoder, make_tiny_clip
from domainclip.training import ContrastiveStep
from gradcache_cases import ROWS, assert_equal, batch_of, gradients, step_of

# --- every objective, and passes that keep their graph ---

SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {"loss_type": name} for name in LOSSES},
    "combined": {"loss_type": "combined", "objectives": {"multi_positive": 1.0, "sigmoid": 0.1}},
}
SETTINGS |= {
    balancing: {**SETTINGS["combined"], "loss_balancing": balancing} for balancing in ("uncertainty", "gradient_norm")
}
SETTINGS |= {
    domain: {"loss_type": "domain_specific", "domain": domain} for domain in ("medical", "industrial", "scientific")
}
SETTINGS |= {
    strategy: {"loss_type": "hard_negative", "hard_negative_mining_strategy": strategy}
    for strategy in ("hard", "weighted")
}


def objective(name: str, metric: str = "cosine") -> nn.Module:
    config = CLIPFinetuningConfig(**SETTINGS[name], similarity_metric=metric)
    return build_loss(config, make_tiny_clip().embedding_dim).double().train()


def images_of(encoder: DualEncoder, loss: nn.Module) -> Callable[[Tensor], Tensor]:
    """One embedding for each image, or one for each of its sizes where the objective asks for them."""
    if not hasattr(loss, "resolution_scales"):
        return encoder.encode_image
    assert len(loss.resolution_scales) == 2
    return lambda x: torch.stack([encoder.encode_image(x), encoder.encode_image(F.avg_pool2d(x, 2))], dim=1)


def outcome(
    encoder: DualEncoder, loss: nn.Module, step: Callable[[nn.Module], Tensor]
) -> tuple[dict[str, Tensor], float]:
    """Every gradient, the objective's own too, and the loss. ``loss`` itself stays as it was."""
    own = copy.deepcopy(loss)
    torch.manual_seed(11)
    value = float(step(own).detach())
    found = {f"loss.{name}": p.grad.clone() for name, p in own.named_parameters() if p.grad is not None}
    return gradients(encoder) | found, value


def through_step(encoder: DualEncoder, loss: nn.Module, batch: dict[str, Any], **options: Any) -> Tensor:
    def contrast(x: Tensor, y: Tensor, groups: Tensor) -> dict[str, Any]:
        return call_objective(loss, x, y, group_ids=groups, logit_scale=encoder.logit_scale, progress=0.3)

    step = ContrastiveStep(
        images_of(encoder, loss),
        encoder.encode_text,
        contrast,
        contextlib.nullcontext,
        torch.device("cpu"),
        **options,
    )
    value: Tensor = step(batch)["loss"]
    return value


def with_graph(encoder: DualEncoder, loss: nn.Module, batch: dict[str, Any], micro_batch: int) -> Tensor:
    """The reference: the micro-batches one after another, in one graph, by autograd alone."""
    encode = images_of(encoder, loss)
    images = torch.cat([encode(part) for part in batch["pixels"].split(micro_batch)])
    texts = torch.cat([encoder.encode_text(part) for part in batch["input_ids"].split(micro_batch)])
    output = call_objective(
        loss,
        images,
        texts[batch["caption_index"]],
        group_ids=batch["group_ids"],
        logit_scale=encoder.logit_scale,
        progress=0.3,
    )
    output["loss"].backward()
    value: Tensor = output["loss"]
    return value


@pytest.mark.parametrize("name", SETTINGS)
def test_every_objective_gets_the_whole_batchs_gradient(name: str) -> None:
    encoder = make_tiny_clip(layers=1).double().train()
    batch, loss = batch_of(), objective(name)
    reference, expected = outcome(encoder, loss, lambda own: with_graph(encoder, own, batch, ROWS))
    for micro_batch, kept in ((1, 0), (3, 0), (3, 1), (8, 0), (3, 99)):
        found, value = outcome(
            encoder,
            loss,
            lambda own, c=micro_batch, k=kept: through_step(encoder, own, batch, micro_batch=c, kept_micro_batches=k),
        )
        assert value == pytest.approx(expected, rel=1e-9)
        assert_equal(found, reference)


@pytest.mark.parametrize("name", SETTINGS)
def test_with_dropout_every_objective_gets_that_of_the_same_micro_batches(name: str) -> None:
    encoder = make_tiny_clip(layers=1, attention_dropout=0.3).double().train()
    batch, loss = batch_of(), objective(name)
    for micro_batch, kept in ((3, 0), (3, 1), (3, 99), (1, 2)):
        reference, expected = outcome(encoder, loss, lambda own, c=micro_batch: with_graph(encoder, own, batch, c))
        found, value = outcome(
            encoder,
            loss,
            lambda own, c=micro_batch, k=kept: through_step(encoder, own, batch, micro_batch=c, kept_micro_batches=k),
        )
        assert value == pytest.approx(expected, rel=1e-9)
        assert_equal(found, reference)


def test_a_learned_metric_gets_its_gradient_through_micro_batches() -> None:
    encoder = make_tiny_clip(layers=1).double().train()
    batch, loss = batch_of(), objective("multi_positive", "bilinear")
    reference, _ = outcome(encoder, loss, lambda own: with_graph(encoder, own, batch, ROWS))
    found, _ = outcome(
        encoder, loss, lambda own: through_step(encoder, own, batch, micro_batch=3, kept_micro_batches=1)
    )
    assert "loss.similarity.weight" in reference
    assert_equal(found, reference)


@pytest.mark.parametrize("kept", [0, 1, 99])
def test_a_locked_tower_says_the_same_to_an_objective_that_asks_for_gradients(kept: int) -> None:
    """GradNorm weighs by the gradient at the embeddings: a locked tower's has none, in micro-batches as in one pass."""
    encoder = make_tiny_clip(layers=1).double().train()
    encoder.lock("text")
    batch, loss = batch_of(), objective("gradient_norm")
    reference, expected = outcome(encoder, loss, lambda own: with_graph(encoder, own, batch, ROWS))
    found, value = outcome(
        encoder,
        loss,
        lambda own: through_step(encoder, own, batch, micro_batch=3, kept_micro_batches=kept, learning=("image",)),
    )
    assert value == pytest.approx(expected, rel=1e-9)
    assert not any(name.startswith("text_") for name in found)
    assert_equal(found, reference)


def test_under_bf16_micro_batches_differ_by_less_than_its_rounding() -> None:
    encoder, loss = make_tiny_clip().train(), CLIPContrastiveLoss()
    exact = make_tiny_clip().double().train()
    batch = batch_of()
    step_of(exact, loss, None)(batch)
    reference = gradients(exact)
    batch["pixels"] = batch["pixels"].float()

    def low(micro_batch: int | None, kept: int = 0) -> dict[str, Tensor]:
        step = step_of(encoder, loss, micro_batch)
        step.autocast, step.kept_micro_batches = lambda: torch.autocast("cpu", torch.bfloat16), kept
        step(batch)
        return {name: value.double() for name, value in gradients(encoder).items()}

    def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
        total = sum(float((one[name] - value).square().sum()) for name, value in other.items())
        return (total / sum(float(value.square().sum()) for value in other.values())) ** 0.5

    whole = low(None)
    rounding = apart(whole, reference)
    assert 1e-3 < rounding < 0.1  # bf16 keeps eight bits
    for micro_batch, kept in ((1, 0), (3, 0), (3, 2)):
        assert apart(low(micro_batch, kept), whole) <= rounding
        assert apart(low(micro_batch, kept), reference) <= 1.5 * rounding


class _Saved:
    """A tensor that autograd keeps, and the pass that made it."""

    def __init__(self, tensor: Tensor, owner: int) -> None:
        self.tensor, self.owner = tensor, owner


@pytest.mark.parametrize(("kept", "most"), [(0, 1), (1, 1), (2, 2), (5, 5), (99, 7)])
def test_no_more_graphs_are_alive_than_may_be_kept(kept: int, most: int) -> None:
    encoder = make_tiny_clip(layers=1).double().train()
    alive: weakref.WeakSet[_Saved] = weakref.WeakSet()
    passes: list[tuple[str, int, bool]] = []
    peak = 0

    def watched(tower: str, encode: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*inputs: Tensor) -> Tensor:
            nonlocal peak
            number = len(passes)
            passes.append((tower, len(inputs[0]), torch.is_grad_enabled()))

            def pack(tensor: Tensor) -> _Saved:
                saved = _Saved(tensor, number)
                alive.add(saved)
                return saved

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
                embeds = encode(*inputs)
            peak = max(peak, len({saved.owner for saved in alive}))
            return embeds

        return run

    step = step_of(encoder, CLIPContrastiveLoss(), 2)
    step.kept_micro_batches = kept
    step.encode_image = watched("image", encoder.encode_image)
    step.encode_text = watched("text", encoder.encode_text)
    step(batch_of())
    assert peak == most
    assert not alive
    micro_batches = [("image", 2)] * 4 + [("text", 2)] * 2 + [("text", 1)]  # five distinct captions
    first = [(*micro_batch, number < kept) for number, micro_batch in enumerate(micro_batches)]
    assert passes == first + [(*micro_batch, True) for micro_batch in micro_batches[kept:]]


def test_a_first_pass_leaves_no_tensor_behind() -> None:
    """One that is made between two passes and stays keeps a C allocator from using the space around it again: wide
    towers took 145 MiB where they now take 22, each micro-batch of the first pass some more."""
    encoder = make_tiny_clip(layers=1).double().train()
    counts: dict[str, list[int]] = {"image": [], "text": []}

    def watched(tower: str, encode: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*inputs: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                counts[tower].append(sum(type(value) is Tensor for value in gc.get_objects()))
            return encode(*inputs)

        return run

    step = step_of(encoder, CLIPContrastiveLoss(), 1)
    step.encode_image = watched("image", encoder.encode_image)
    step.encode_text = watched("text", encoder.encode_text)
    gc.collect()
    step(batch_of())
    for tower, passes in (("image", ROWS), ("text", 5)):
        assert len(counts[tower]) == passes
        assert len(set(counts[tower][1:])) == 1  # the first one brings the room for all

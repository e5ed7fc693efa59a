"""The sigmoid objective, several sizes, and every registered objective at the edges."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import ConfigurationError, ShapeError
from domainclip.losses import (
    LOSSES,
    CLIPContrastiveLoss,
    DomainSpecificLoss,
    HardNegativeMiningLoss,
    MultiPositiveContrastiveLoss,
    MultiResolutionLoss,
    MultiScaleLoss,
    SigmoidContrastiveLoss,
    build_loss,
    call_objective,
    sigmoid,
)
from loss_definitions import (
    CASES,
    TAU,
    batch_of,
    embeddings,
    owned_scale,
    product,
    unit,
)
from objective_cases import GROUPS, close

# --- sigmoid ---


def test_sigmoid_loss_is_that_of_transformers() -> None:
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = SiglipModel(
        SiglipConfig(
            text_config={**tower, "vocab_size": 50, "max_position_embeddings": 8},
            vision_config={**tower, "image_size": 16, "patch_size": 8},
        )
    ).double()
    with torch.no_grad():
        model.logit_scale.fill_(1.7)
        model.logit_bias.fill_(-2.3)
    inputs = {"input_ids": torch.randint(0, 50, (5, 8)), "pixel_values": torch.randn(5, 3, 16, 16, dtype=torch.float64)}
    theirs = model(**inputs, return_loss=True)
    theirs.loss.backward()
    expected = model.logit_scale.grad.clone(), model.logit_bias.grad.clone()
    model.zero_grad()
    images = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
    texts = model.get_text_features(input_ids=inputs["input_ids"]).pooler_output
    loss = SigmoidContrastiveLoss()
    output = call_objective(
        loss, images, texts, logit_scale=model.logit_scale, logit_bias=model.logit_bias, progress=0.5
    )
    output["loss"].backward()
    torch.testing.assert_close(output["loss"], theirs.loss)
    torch.testing.assert_close((model.logit_scale.grad, model.logit_bias.grad), expected)
    assert loss.bias.grad is None  # the model's takes its place, and nothing is set from the batch
    assert not loss.bias_is_set
    # SigLIP holds both as tensors of shape [1]; what is told are numbers.
    assert output["bias"].shape == output["temperature"].shape == ()
    assert float(output["bias"].detach()) == close(-2.3)


def expected_matches(loss: SigmoidContrastiveLoss, images: Tensor, texts: Tensor) -> float:
    images, texts = (torch.nn.functional.normalize(side, dim=-1) for side in (images, texts))
    return float(torch.sigmoid(images @ texts.T / TAU + loss.bias.detach()).sum())


@pytest.mark.parametrize("groups", GROUPS)
def test_the_first_batch_sets_the_bias(groups: str) -> None:
    images, texts = embeddings()
    ids = torch.tensor(GROUPS[groups])
    loss = SigmoidContrastiveLoss()
    loss.eval()
    loss(images, texts, ids, owned_scale())
    assert not loss.bias_is_set  # validation is no training batch
    loss.train()
    loss(images, texts, ids, owned_scale())
    if groups == "all equal":  # any bias above some number would do: the next batch will tell
        assert not loss.bias_is_set
        return
    matches = sum(a == b for a in GROUPS[groups] for b in GROUPS[groups])
    assert expected_matches(loss, images, texts) == close(matches, rel=1e-5)
    kept = float(loss.bias.detach())
    loss(*embeddings(seed=1), ids, owned_scale())
    assert float(loss.bias.detach()) == kept


def test_a_part_of_a_large_batch_sets_the_bias_against_all_its_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts = embeddings(64, 8)
    monkeypatch.setattr(sigmoid, "CHUNK_ENTRIES", 64 * 16)
    loss = SigmoidContrastiveLoss()
    loss(images, texts, logit_scale=owned_scale())
    # From a 16 × 16 corner it would be four times as many.
    assert expected_matches(loss, images, texts) == close(64, rel=0.25)


def test_a_broken_first_batch_does_not_break_the_bias() -> None:
    images, texts = embeddings()
    broken = images.clone()
    broken[0, 0] = float("nan")
    loss = SigmoidContrastiveLoss()
    assert math.isnan(float(loss(broken, texts, logit_scale=owned_scale())["loss"].detach()))
    loss(images, texts, logit_scale=owned_scale())
    assert expected_matches(loss, images, texts) == close(6, rel=1e-5)


def test_the_bias_survives_a_state_dict() -> None:
    loss = SigmoidContrastiveLoss()
    loss(*embeddings())
    again = SigmoidContrastiveLoss()
    again.load_state_dict(loss.state_dict())
    again(*embeddings(seed=4))
    assert torch.equal(again.bias, loss.bias)
    given = SigmoidContrastiveLoss(bias=-3.0)
    given(*embeddings())
    assert float(given.bias.detach()) == -3.0
    assert build_loss(CLIPFinetuningConfig(loss_type="sigmoid", sigmoid_bias=-7.0)).bias.item() == -7.0


# --- several sizes of the image ---


def sizes(seed: int = 0) -> tuple[Tensor, Tensor]:
    one, texts = embeddings(4, 3, seed)
    two, three = embeddings(4, 3, seed + 1)
    return torch.stack([one, two, three], dim=1), texts


def test_several_sizes_are_the_definition() -> None:
    images, texts = sizes()
    groups = [0, 1, 0, 2]
    loss = MultiResolutionLoss((1.0, 0.5, 0.25), (2.0, 1.0, 1.0), consistency_weight=0.7)
    output = loss(images, texts, torch.tensor(groups), owned_scale())
    case = CASES["multi_positive"]
    losses = [case.value(batch_of(images[:, k], texts, "cosine", groups)) for k in range(3)]
    apart = [1 - product(unit(images[i, k].tolist()), unit(images[i, 0].tolist())) for k in (1, 2) for i in range(4)]
    consistency = sum(apart) / len(apart)
    assert output["resolution_losses"].tolist() == close([value[0] for value in losses])
    assert float(output["consistency_loss"]) == close(consistency)
    weighted = [0.5 * a + 0.25 * b + 0.25 * c for a, b, c in zip(*losses, strict=True)]
    assert float(output["loss"]) == close(weighted[0] + 0.7 * consistency)
    assert float(output["image_to_text_loss"]) == close(weighted[1])
    assert float(output["text_to_image_loss"]) == close(weighted[2])


def test_the_small_image_learns_from_the_large_one() -> None:
    images, texts = sizes()
    images.requires_grad_()
    MultiResolutionLoss((1.0, 0.5, 0.25))(images, texts)["consistency_loss"].backward()
    assert torch.equal(images.grad[:, 0], torch.zeros(4, 3, dtype=torch.float64))
    assert bool((images.grad[:, 1:].abs().sum(dim=(0, 2)) > 0).all())
    lead = images.detach()[:, :1]

    def apart(small: Tensor) -> Tensor:
        return MultiResolutionLoss((1.0, 0.5, 0.25))(torch.cat([lead, small], 1), texts)["consistency_loss"]

    assert torch.autograd.gradcheck(apart, images.detach()[:, 1:].clone().requires_grad_())


def test_one_size_is_the_loss_itself() -> None:
    images, texts = embeddings()
    plain = MultiPositiveContrastiveLoss()(images, texts)["loss"]
    assert torch.equal(MultiResolutionLoss((1.0, 0.5))(images, texts)["loss"], plain)
    assert torch.equal(MultiResolutionLoss((1.0, 0.5))(images[:, None], texts)["loss"], plain)


@pytest.mark.parametrize("wrong", [{"resolution_scales": ()}, {"resolution_scales": (1, 0)}, {"weights": (1.0,)}])
def test_sizes_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"resolution_scales"):
        MultiResolutionLoss(**wrong)


# --- every registered objective at the edges ---

RECIPES: dict[str, dict[str, Any]] = {
    **{name: {"loss_type": name} for name in LOSSES if name != "combined"},
    "hard": {"loss_type": "hard_negative", "hard_negative_mining_strategy": "hard"},
    "weighted": {"loss_type": "hard_negative", "hard_negative_mining_strategy": "weighted"},
    **{
        domain: {"loss_type": "domain_specific", "domain": domain} for domain in ("medical", "industrial", "scientific")
    },
    **{
        f"combined, {balancing}": {
            "loss_type": "combined",
            "objectives": {"contrastive": 1.0, "sigmoid": 0.5},
            "loss_balancing": balancing,
        }
        for balancing in ("fixed", "uncertainty", "gradient_norm")
    },
    **{metric: {"loss_type": "multi_positive", "similarity_metric": metric} for metric in ("euclidean", "bilinear")},
    "dot": {"loss_type": "hard_negative", "normalize_embeddings": False},
    "chunked": {"loss_type": "hard_negative", "loss_chunk_size": 2},
}
every_objective = pytest.mark.parametrize("name", RECIPES)


def built(name: str) -> nn.Module:
    return build_loss(CLIPFinetuningConfig(**RECIPES[name], temperature=0.1), 5)


def image_views(name: str, images: Tensor) -> Tensor:
    """At two sizes where the objective reads them."""
    return torch.stack([images, images.flip(1)], dim=1) if name == "multi_resolution" else images


def backward(name: str, images: Tensor, texts: Tensor, **others: Any) -> tuple[dict[str, Any], Tensor, Tensor]:
    images, texts = (side.detach().clone().requires_grad_() for side in (images, texts))
    output = call_objective(built(name), image_views(name, images), texts, progress=1.0, **others)
    output["loss"].backward()
    return output, images.grad, texts.grad


def test_every_registered_objective_is_tried_at_the_edges() -> None:
    assert set(LOSSES) <= {recipe["loss_type"] for recipe in RECIPES.values()}


@every_objective
@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        ((5,), (6, 5), "Expected"),
        ((6, 3, 5), (6, 5), "Expected"),
        ((6, 5), (6, 1, 5), "Expected 2D embeddings"),
        ((6, 5), (4, 5), "Batch size mismatch"),
        ((6, 5), (6, 4), "Embedding dimension mismatch"),
        ((0, 5), (0, 5), "Expected 2D embeddings"),
    ],
)
def test_wrong_shapes_are_plain_errors(name: str, left: tuple, right: tuple, message: str) -> None:
    with pytest.raises(ShapeError, match=f"^{message}"):
        built(name)(torch.ones(left), torch.ones(right))


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "contrastive"])
def test_group_ids_of_another_length_are_named(name: str) -> None:
    images, texts = embeddings()
    with pytest.raises(ShapeError, match=r"^Batch size mismatch: group_ids has shape \(5,\)"):
        built(name)(image_views(name, images), texts, group_ids=torch.arange(5))


def test_labels_of_another_length_are_named() -> None:
    with pytest.raises(ShapeError, match=r"^Batch size mismatch: domain_labels has shape \(5,\)"):
        DomainSpecificLoss("medical")(*embeddings(), domain_labels=torch.arange(5))


@every_objective
@pytest.mark.parametrize("rows", [1, 2, 6])
@pytest.mark.parametrize("grouped", [False, True])
def test_one_pair_and_one_group_are_finite(name: str, rows: int, grouped: bool) -> None:
    images, texts = embeddings(rows)
    output, *gradients = backward(name, images, texts, **({"group_ids": torch.zeros(rows).long()} if grouped else {}))
    assert math.isfinite(float(output["loss"].detach()))
    for gradient in gradients:
        assert bool(gradient.isfinite().all())


@every_objective
@pytest.mark.parametrize("side", [0, 1])
def test_nan_is_not_hidden(name: str, side: int) -> None:
    sides = embeddings()
    sides[side][2, 1] = float("nan")
    assert math.isnan(float(backward(name, *sides)[0]["loss"].detach()))


@every_objective
def test_zero_vectors_are_finite(name: str) -> None:
    images, texts = (side.float() for side in embeddings())
    images[1], texts[1], texts[3] = 0, 0, 0
    output, *gradients = backward(name, images, texts)
    assert math.isfinite(float(output["loss"].detach()))
    for gradient in gradients:
        assert bool(gradient.isfinite().all())


@every_objective
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_embeddings_are_compared_in_float32(name: str, dtype: torch.dtype) -> None:
    images, texts = (side.to(dtype) for side in embeddings())
    output, *gradients = backward(name, images, texts)
    exact, *expected = backward(name, images.double(), texts.double())
    assert output["loss"].dtype == torch.float32
    torch.testing.assert_close(output["loss"].double(), exact["loss"], rtol=1e-5, atol=1e-5)
    for found, wanted in zip(gradients, expected, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, rtol=2e-2, atol=2e-2 * float(wanted.abs().max()))


@every_objective
def test_autocast_does_not_reach_into_the_loss(name: str) -> None:
    images, texts = (side.float() for side in embeddings())
    plain = built(name)(image_views(name, images), texts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = built(name)(image_views(name, images), texts)
    for key in ("loss", "image_to_text_loss", "text_to_image_loss", "temperature"):
        assert inside[key].dtype == torch.float32
        assert torch.equal(inside[key], plain[key])


def test_a_model_in_bf16_keeps_its_temperature() -> None:
    """exp in bf16 would round one over the temperature to 8 bits."""
    images, texts = (side.float() for side in embeddings())
    scale = torch.tensor(4.59375, dtype=torch.bfloat16)
    output = CLIPContrastiveLoss()(images, texts, logit_scale=scale)
    assert float(1 / output["temperature"]) == close(math.exp(4.59375), rel=1e-6)


# --- what cannot be ---


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DomainSpecificLoss("nautical"), r"^Invalid domain 'nautical'"),
        (lambda: DomainSpecificLoss(domain_weight=-1), r"^Domain weight must be zero or more"),
        (lambda: HardNegativeMiningLoss(mining_strategy="soft"), r"^Invalid mining strategy 'soft'"),
        (lambda: HardNegativeMiningLoss(hard_negative_ratio=-0.1), r"^Hard negative ratio must be in \[0, 1\]"),
        (lambda: HardNegativeMiningLoss(hard_negative_weight=0.5), r"^Hard negative weight must be at least 1"),
        (lambda: MultiScaleLoss(()), r"^Scales must be positive"),
        (lambda: MultiScaleLoss((1.0, -1.0)), r"^Scales must be positive"),
        (lambda: MultiScaleLoss((1.0, 0.5), scale_weights=(1.0,)), r"^2 scales and 1 scale_weights"),
        (lambda: MultiScaleLoss((1.0, 0.5), scale_weights=(0.0, 0.0)), r"^scale_weights must be zero or more"),
        (lambda: CLIPContrastiveLoss(chunk_size=0), r"^chunk_size must be at least 1"),
        (lambda: CLIPContrastiveLoss(similarity_metric="sine"), r"^Invalid metric 'sine'"),
    ],
)
def test_wrong_numbers_are_named(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


# --- the user's own ---


class OnlyPairs(nn.Module):
    """Takes nothing but the embeddings, returns nothing but the loss."""

    def forward(self, image_embeds: Tensor, text_embeds: Tensor) -> dict[str, Tensor]:
        return {"loss": (image_embeds - text_embeds).square().sum(-1).mean()}


def test_an_objective_gets_what_it_names() -> None:
    images, texts = embeddings()
    offered = {"group_ids": torch.arange(6), "logit_scale": owned_scale(), "logit_bias": None, "progress": 0.0}
    output = call_objective(OnlyPairs(), images, texts, **offered)
    assert float(output["loss"]) == close(sum(math.dist(a, b) ** 2 for a, b in zip(images, texts, strict=True)) / 6)

    class Everything(nn.Module):
        def forward(self, image_embeds: Tensor, text_embeds: Tensor, **given: Any) -> dict[str, Any]:
            return given

    assert set(call_objective(Everything(), images, texts, **offered)) == {"group_ids", "logit_scale", "progress"}

    class Positions(nn.Module):
        def forward(self, image_embeds: Tensor, text_embeds: Tensor, progress: float) -> dict[str, Any]:
            return {"progress": progress}

    assert call_objective(Positions(), images, texts, **offered) == {"progress": 0.0}

"""Objectives as a recipe makes them, and several at once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import ConfigurationError
from domainclip.losses import (
    LOSSES,
    CLIPContrastiveLoss,
    DomainSpecificLoss,
    HardNegativeMiningLoss,
    MultiPositiveContrastiveLoss,
    MultiResolutionLoss,
    MultiScaleLoss,
    SigmoidContrastiveLoss,
    WeightedSumLoss,
    build_loss,
)
from loss_cases import embeddings

# --- what a recipe makes ---


RECIPES: dict[str, tuple[dict[str, Any], nn.Module]] = {
    "contrastive": ({"label_smoothing": 0.1}, CLIPContrastiveLoss(0.2, label_smoothing=0.1)),
    "multi_positive": (
        {"similarity_metric": "euclidean", "normalize_embeddings": False},
        MultiPositiveContrastiveLoss(0.2, False, "euclidean"),
    ),
    "sigmoid": ({"sigmoid_bias": -4.0}, SigmoidContrastiveLoss(0.2, bias=-4.0)),
    "hard_negative": (
        {
            "hard_negative_ratio": 0.4,
            "hard_negative_mining_strategy": "weighted",
            "hard_negative_weight": 5.0,
            "hardness_strength": 0.3,
            "hardness_warmup": 0.5,
        },
        HardNegativeMiningLoss(0.2, 0.4, "weighted", 5.0, hardness_strength=0.3, hardness_warmup=0.5),
    ),
    "domain_specific": (
        {"domain": "medical", "domain_weight": 2.0, "margin": 0.2},
        DomainSpecificLoss("medical", 0.2, 2.0, margin=0.2),
    ),
    "multi_scale": (
        {"multi_scale_scales": [2.0, 0.5], "multi_scale_weights": [1.0, 3.0]},
        MultiScaleLoss((2.0, 0.5), 0.2, (1.0, 3.0)),
    ),
    "multi_resolution": (
        {"resolution_scales": [1.0, 0.25], "consistency_weight": 0.4},
        MultiResolutionLoss((1.0, 0.25), consistency_weight=0.4, objective=MultiPositiveContrastiveLoss(0.2)),
    ),
    "combined": (
        {
            "objectives": {"contrastive": 2.0, "multi_scale": 1.0},
            "multi_scale_scales": [2.0, 0.5],
            "multi_scale_weights": [1.0, 3.0],
        },
        WeightedSumLoss(
            {
                "contrastive": (CLIPContrastiveLoss(0.2), 2.0),
                "multi_scale": (MultiScaleLoss((2.0, 0.5), 0.2, (1.0, 3.0)), 1.0),
            }
        ),
    ),
}


@pytest.mark.parametrize("name", ["hard_negative", "domain_specific", "multi_scale", "multi_resolution"])
def test_label_smoothing_reaches_every_cross_entropy(name: str) -> None:
    images, texts = embeddings()
    plain, smooth = (
        build_loss(CLIPFinetuningConfig(loss_type=name, label_smoothing=fraction))(images, texts)
        for fraction in (0.0, 0.2)
    )
    # The smallest loss such targets allow: (1 - ε + ε/B) and B - 1 times ε/B.
    fraction, rest = 1 - 0.2 + 0.2 / 6, 0.2 / 6
    floor = -fraction * math.log(fraction) - 5 * rest * math.log(rest)
    assert float(smooth["target_entropy"]) == pytest.approx(floor, rel=1e-5)
    assert float(smooth["loss"]) != pytest.approx(float(plain["loss"]), rel=1e-3)


def test_every_registered_objective_is_made_from_a_recipe_here() -> None:
    assert set(RECIPES) == set(LOSSES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_makes_what_its_keys_say(name: str) -> None:
    keys, by_hand = RECIPES[name]
    built = build_loss(CLIPFinetuningConfig(loss_type=name, temperature=0.2, **keys))
    default = build_loss(
        CLIPFinetuningConfig(loss_type=name, **({"objectives": keys["objectives"]} if name == "combined" else {}))
    )
    images, texts = embeddings()
    if name == "multi_resolution":
        images = torch.stack([images, embeddings(seed=1)[0]], dim=1)
    values = [
        float(loss(images, texts, group_ids=torch.tensor([0, 1, 0, 2, 3, 4]), progress=0.25)["loss"].detach())
        for loss in (built, by_hand, default)
    ]
    assert values[0] == values[1]
    assert values[0] != pytest.approx(values[2], rel=1e-3)


# --- several objectives at once ---


class Times(nn.Module):
    """Another objective, on another scale."""

    def __init__(self, objective: nn.Module, factor: float) -> None:
        super().__init__()
        self.objective = objective
        self.factor = factor

    def forward(self, image_embeds: Tensor, text_embeds: Tensor) -> dict[str, Tensor]:
        return {"loss": self.factor * self.objective(image_embeds, text_embeds)["loss"]}


def two(balancing: Any, factor: float = 1.0, weights: tuple[float, float] = (1.0, 3.0)) -> WeightedSumLoss:
    sigmoid = Times(SigmoidContrastiveLoss(0.3, bias=-2.0), factor)
    return WeightedSumLoss(
        {"softmax": (CLIPContrastiveLoss(0.2), weights[0]), "sigmoid": (sigmoid, weights[1])}, balancing
    )


def gradients(loss: nn.Module, images: Tensor, texts: Tensor) -> Tensor:
    """Of ``loss`` at both sides' embeddings, in one row of numbers."""
    images, texts = (side.detach().clone().requires_grad_() for side in (images, texts))
    loss(images, texts)["loss"].backward()
    return torch.cat([images.grad.flatten(), texts.grad.flatten()])


def test_a_fixed_weighted_sum_is_the_sum() -> None:
    images, texts = embeddings()
    parts = CLIPContrastiveLoss(0.2)(images, texts), SigmoidContrastiveLoss(0.3, bias=-2.0)(images, texts)
    loss = WeightedSumLoss(
        {"softmax": (CLIPContrastiveLoss(0.2), 1.0), "sigmoid": (SigmoidContrastiveLoss(0.3, bias=-2.0), 3.0)}
    )
    output = loss(images, texts)
    for name in ("loss", "image_to_text_loss", "text_to_image_loss"):
        expected = float(parts[0][name]) + 3 * float(parts[1][name].detach())
        assert float(output[name].detach()) == pytest.approx(expected)
    assert {name: float(value) for name, value in output["objective_weights"].items()} == {"softmax": 1, "sigmoid": 3}
    assert float(output["objective_losses"]["sigmoid"]) == pytest.approx(float(parts[1]["loss"].detach()))
    expected = gradients(CLIPContrastiveLoss(0.2), images, texts)
    expected = expected + 3 * gradients(SigmoidContrastiveLoss(0.3, bias=-2.0), images, texts)
    torch.testing.assert_close(gradients(loss, images, texts), expected)


def test_uncertainty_has_the_gradient_of_its_equation() -> None:
    images, texts = embeddings()
    loss = two("uncertainty").double()
    with torch.no_grad():
        loss.log_variances.copy_(torch.tensor([0.4, -0.7]))
    output = loss(images, texts)
    output["loss"].backward()
    parts = [float(value) for value in output["objective_losses"].values()]
    total = 0.0
    for index, (weight, c) in enumerate(((1.0, 0.4), (3.0, -0.7))):
        total += weight * math.exp(-c) * parts[index] + weight * c / 2
        slope = -weight * math.exp(-c) * parts[index] + weight / 2
        assert float(loss.log_variances.grad[index]) == pytest.approx(slope)
    assert float(output["loss"].detach()) == pytest.approx(total)


def test_uncertainty_converges_where_the_variance_is_twice_the_loss() -> None:
    images, texts = embeddings()
    loss = two("uncertainty", factor=5.0).double()
    optimizer = torch.optim.SGD([loss.log_variances], lr=0.2)
    for _ in range(300):
        optimizer.zero_grad()
        output = loss(images, texts)
        output["loss"].backward()
        optimizer.step()
    for c, value in zip(loss.log_variances.detach().exp(), output["objective_losses"].values(), strict=True):
        assert float(c) == pytest.approx(2 * float(value), rel=1e-6)


def test_gradients_are_balanced_in_the_ratio_of_the_weights() -> None:
    images, texts = embeddings()
    norms = [
        float(gradients(part, images, texts).norm())
        for part in (CLIPContrastiveLoss(0.2), Times(SigmoidContrastiveLoss(0.3, bias=-2.0), 50.0))
    ]
    assert norms[1] > 5 * norms[0]
    loss = two("gradient_norm", 50.0).double()
    images.requires_grad_(), texts.requires_grad_()
    weights = [float(weight) for weight in loss(images, texts)["objective_weights"].values()]
    contributions = [weight * norm for weight, norm in zip(weights, norms, strict=True)]
    assert contributions[1] / contributions[0] == pytest.approx(3.0)
    assert sum(weights) == pytest.approx(4.0)
    assert loss.norms.tolist() == pytest.approx(norms)


def test_gradient_norms_are_smoothed_over_batches_and_kept_in_the_state() -> None:
    loss, seen = two("gradient_norm").double(), []
    for seed in (0, 1):
        images, texts = (side.requires_grad_() for side in embeddings(seed=seed))
        alone = two("gradient_norm").double()
        alone(images, texts)
        seen.append(alone.norms)
        loss(images, texts)
    torch.testing.assert_close(loss.norms, 0.9 * seen[0] + 0.1 * seen[1])
    again = two("gradient_norm").double()
    again.load_state_dict(loss.state_dict())
    with torch.no_grad():  # validation: by the balance there is, which stays
        outputs = [each(*embeddings(seed=2)) for each in (loss, again, two("gradient_norm").double())]
    assert torch.equal(outputs[0]["loss"], outputs[1]["loss"])
    assert torch.equal(again.norms, loss.norms)
    assert outputs[0]["objective_weights"] != outputs[2]["objective_weights"]
    assert list(outputs[2]["objective_weights"].values()) == [1.0, 3.0]  # nothing seen yet


def test_the_scale_of_an_objective_does_not_change_where_a_balanced_sum_goes() -> None:
    images, texts = embeddings()
    one, thousand = (gradients(two("gradient_norm", factor), images, texts) for factor in (1.0, 1000.0))
    torch.testing.assert_close(one / one.norm(), thousand / thousand.norm(), rtol=1e-6, atol=1e-8)
    fixed = [gradients(two("fixed", factor), images, texts) for factor in (1.0, 1000.0)]
    assert float(torch.nn.functional.cosine_similarity(*fixed, dim=0)) < 0.999


def test_an_objective_that_moves_nothing_leaves_the_weights_as_they_are() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, image_embeds: Tensor, text_embeds: Tensor) -> dict[str, Tensor]:
            return {"loss": self.value * 1}

    loss = WeightedSumLoss({"softmax": (CLIPContrastiveLoss(), 1.0), "constant": (Constant(), 2.0)}, "gradient_norm")
    images, texts = (side.requires_grad_() for side in embeddings())
    output = loss(images, texts)
    assert [float(weight) for weight in output["objective_weights"].values()] == [1.0, 2.0]
    output["loss"].backward()
    assert bool(images.grad.isfinite().all())


def test_objectives_share_one_learned_metric() -> None:
    config = CLIPFinetuningConfig(
        loss_type="combined",
        objectives={"contrastive": 1.0, "hard_negative": 1.0, "sigmoid": 1.0},
        similarity_metric="bilinear",
    )
    loss = build_loss(config, 5)
    assert sum(parameter.ndim == 2 for parameter in loss.parameters()) == 1
    images, texts = embeddings(dtype=torch.float32)
    loss(images, texts)["loss"].backward()
    weight = loss.objectives["contrastive"].similarity.weight
    expected = torch.zeros(5, 5)
    for part in loss.objectives.values():
        expected += torch.autograd.grad(part(images, texts)["loss"], weight)[0]
    torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-5)
    again = build_loss(config, 5)
    again.load_state_dict(loss.state_dict())
    assert sum(parameter.ndim == 2 for parameter in again.parameters()) == 1
    inner = MultiResolutionLoss(objective=MultiPositiveContrastiveLoss(similarity_metric="bilinear"))
    outer = CLIPContrastiveLoss(similarity_metric="bilinear")
    WeightedSumLoss({"inner": (inner, 1.0), "outer": (outer, 1.0)})
    assert inner.objective.similarity is outer.similarity


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightedSumLoss({}), "A weighted sum needs objectives"),
        (lambda: WeightedSumLoss({"a": (CLIPContrastiveLoss(), 0.0)}), "The weight of 'a' must be positive"),
        (lambda: WeightedSumLoss({"a": (CLIPContrastiveLoss(), 1.0)}, "fair"), "Invalid loss balancing 'fair'"),
        (
            lambda: build_loss(CLIPFinetuningConfig(loss_type="combined", objectives={"multi_resolution": 1.0})),
            "objectives: 'multi_resolution' reads images at several sizes",
        ),
        (
            lambda: build_loss(CLIPFinetuningConfig(loss_type="combined", objectives={"contrastiv": 1.0})),
            "Invalid loss type 'contrastiv'",
        ),
    ],
)
def test_sums_that_make_no_sense(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{message}"):
        make()

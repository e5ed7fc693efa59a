"""The contrastive objectives against transformers' own, plain loops, and numerical derivatives."""

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
    WeightedSumLoss,
    build_loss,
)
from domainclip.models import make_tiny_clip
from domainclip.similarity import SIMILARITIES

KEYS = {
    "loss", "image_to_text_loss", "text_to_image_loss", "temperature", "logits_per_image", "logits_per_text",
    "target_entropy",
}  # fmt: skip


def embeddings(rows: int = 6, dim: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    make = lambda: torch.randn(rows, dim, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    return make(), make()


def reference(images: Tensor, texts: Tensor, groups: list[int], temperature: float, smoothing: float = 0.0) -> float:
    """The definition, one row and one column at a time."""
    size = len(images)
    logits = [
        [
            float(x @ y) / (math.sqrt(float(x @ x)) * math.sqrt(float(y @ y))) / temperature
            for y in texts
        ]
        for x in images
    ]  # fmt: skip

    def direction(value):  # value(i, j): logit of query i and candidate j
        total = 0.0
        for i in range(size):
            row = [value(i, j) for j in range(size)]
            log_sum = math.log(sum(math.exp(v) for v in row))
            positives = [j for j in range(size) if groups[i] == groups[j]]
            for j in range(size):
                target = (1 - smoothing) * (j in positives) / len(positives) + smoothing / size
                total -= target * (row[j] - log_sum)
        return total / size

    return (direction(lambda i, j: logits[i][j]) + direction(lambda i, j: logits[j][i])) / 2


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_clip_loss_is_that_of_transformers(temperature: float) -> None:
    encoder = make_tiny_clip()
    model = encoder.model.double()
    encoder.set_temperature(temperature, trainable=True)
    pixels = torch.randn(5, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = encoder.processor.tokenize(["red", "a green crack", "moon", "blue cells with grass", "rock"])
    theirs = model(pixel_values=pixels, **tokens, return_loss=True)
    with torch.no_grad():
        images, texts = encoder.encode_image(pixels), encoder.encode_text(**tokens)
    output = CLIPContrastiveLoss(temperature)(images, texts)
    torch.testing.assert_close(output["loss"], theirs.loss.detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(output["logits_per_image"], theirs.logits_per_image.detach(), rtol=1e-6, atol=1e-6)


def test_clip_loss_is_its_definition() -> None:
    images, texts = embeddings()
    output = CLIPContrastiveLoss(0.2)(images, texts)
    assert float(output["loss"]) == pytest.approx(reference(images, texts, list(range(6)), 0.2), rel=1e-6)


@pytest.mark.parametrize("groups", [[0, 1, 0, 2, 1, 0], [0, 1, 2, 3, 4, 5], [3, 3, 3, 3, 3, 3]])
def test_multi_positive_loss_is_its_definition(groups: list[int]) -> None:
    images, texts = embeddings()
    output = MultiPositiveContrastiveLoss(0.2)(images, texts, group_ids=torch.tensor(groups))
    assert float(output["loss"]) == pytest.approx(reference(images, texts, groups, 0.2), rel=1e-6)


def test_multi_positive_without_equal_groups_is_clip_exactly() -> None:
    images, texts = embeddings()
    plain = CLIPContrastiveLoss(0.1)(images, texts)["loss"]
    assert torch.equal(MultiPositiveContrastiveLoss(0.1)(images, texts)["loss"], plain)
    assert torch.equal(MultiPositiveContrastiveLoss(0.1)(images, texts, torch.arange(6))["loss"], plain)


def test_multi_positive_does_not_push_equal_captions_apart() -> None:
    """Two rows of one caption, all embeddings perfect: the loss is as low as it can be, plain CLIP still pushes."""
    images = torch.eye(3, dtype=torch.float64)[[0, 0, 1]]
    texts = images.clone()
    groups = torch.tensor([0, 0, 1])
    multi = MultiPositiveContrastiveLoss(0.02)(images, texts, groups)
    assert float(multi["loss"]) == pytest.approx(2 / 3 * math.log(2), rel=1e-6)  # the targets' own entropy

    def spread(loss: CLIPContrastiveLoss, distance: float) -> float:
        moved = images.clone()
        moved[0, 2], moved[1, 2] = distance, -distance
        return float(loss(moved, moved, groups)["loss"])

    assert spread(CLIPContrastiveLoss(0.1), 0.3) < spread(CLIPContrastiveLoss(0.1), 0.1)
    assert spread(MultiPositiveContrastiveLoss(0.1), 0.3) > spread(MultiPositiveContrastiveLoss(0.1), 0.1)


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4, 5], [0, 1, 0, 2, 1, 0]])
def test_label_smoothing_is_its_definition(smoothing: float, groups: list[int]) -> None:
    images, texts = embeddings()
    loss = MultiPositiveContrastiveLoss(0.2, label_smoothing=smoothing)
    value = float(loss(images, texts, torch.tensor(groups))["loss"])
    assert value == pytest.approx(reference(images, texts, groups, 0.2, smoothing), rel=1e-6)


@pytest.mark.parametrize("metric", list(SIMILARITIES))
@pytest.mark.parametrize("groups", [None, [0, 1, 0, 2]])
def test_derivatives_are_those_of_finite_differences(metric: str, groups: list[int] | None) -> None:
    images, texts = (x.requires_grad_() for x in embeddings(4, 3))
    scale = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    loss = MultiPositiveContrastiveLoss(similarity_metric=metric)
    ids = None if groups is None else torch.tensor(groups)
    assert torch.autograd.gradcheck(
        lambda x, y, s: loss(x, y, group_ids=ids, logit_scale=s)["loss"], (images, texts, scale)
    )


def test_output_has_the_promised_keys_and_shapes() -> None:
    output = CLIPContrastiveLoss()(*embeddings(dtype=torch.float32))
    assert set(output) == KEYS
    assert output["logits_per_image"].shape == output["logits_per_text"].shape == (6, 6)
    assert torch.equal(output["logits_per_image"].T, output["logits_per_text"])
    assert all(output[key].ndim == 0 for key in KEYS - {"logits_per_image", "logits_per_text"})
    halves = (output["image_to_text_loss"] + output["text_to_image_loss"]) / 2
    assert torch.equal(output["loss"], halves)
    assert float(output["temperature"]) == pytest.approx(0.07)


def test_gradient_reaches_both_sides() -> None:
    images, texts = (x.requires_grad_() for x in embeddings())
    CLIPContrastiveLoss()(images, texts)["loss"].backward()
    for grad in (images.grad, texts.grad):
        assert grad is not None
        assert bool((grad.abs().sum(dim=1) > 0).all())


def test_temperature_is_fixed_unless_learnable() -> None:
    assert list(CLIPContrastiveLoss(0.07).parameters()) == []
    learnable = CLIPContrastiveLoss(0.07, learnable_temp=True)
    (parameter,) = learnable.parameters()
    learnable(*embeddings())["loss"].backward()
    assert parameter.grad is not None
    assert float(parameter.grad) != 0.0


def test_temperature_is_a_tensor_that_takes_a_float() -> None:
    for learnable in (False, True):
        loss = CLIPContrastiveLoss(0.07, learnable_temp=learnable)
        assert isinstance(loss.temperature, Tensor)
        loss.temperature = 0.5
        assert float(loss.temperature.detach()) == pytest.approx(0.5)
        images, texts = embeddings()
        assert float(loss(images, texts)["loss"].detach()) == pytest.approx(
            reference(images, texts, list(range(6)), 0.5), rel=1e-6
        )
        with pytest.raises(ConfigurationError, match=r"^Temperature must be positive"):
            loss.temperature = 0.0
    assert float(CLIPContrastiveLoss(0.2).state_dict()["log_scale"]) == pytest.approx(math.log(5))


def test_the_models_scale_takes_the_place_of_the_losss_own() -> None:
    images, texts = embeddings()
    owned = torch.tensor(math.log(1 / 0.3), dtype=torch.float64, requires_grad=True)
    loss = CLIPContrastiveLoss(0.07, learnable_temp=True)
    output = loss(images, texts, logit_scale=owned)
    assert float(output["loss"].detach()) == pytest.approx(reference(images, texts, list(range(6)), 0.3), rel=1e-9)
    assert float(output["temperature"].detach()) == pytest.approx(0.3)
    output["loss"].backward()
    assert owned.grad is not None
    assert all(parameter.grad is None for parameter in loss.parameters())


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ConfigurationError, match=r"^Temperature must be positive"):
        CLIPContrastiveLoss(temperature)


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        ((6,), (6, 4), "Expected 2D embeddings"),
        ((2, 3, 4), (2, 4), "Expected 2D embeddings"),
        ((6, 4), (5, 4), "Batch size mismatch"),
        ((6, 4), (6, 3), "Embedding dimension mismatch"),
    ],
)
def test_wrong_shapes_are_named(left: tuple[int, ...], right: tuple[int, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=f"^{message}"):
        CLIPContrastiveLoss()(torch.ones(left), torch.ones(right))
    with pytest.raises(ValueError, match=message):
        MultiPositiveContrastiveLoss()(torch.ones(left), torch.ones(right))


def test_group_ids_of_another_length_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"^Batch size mismatch: group_ids"):
        MultiPositiveContrastiveLoss()(*embeddings(), group_ids=torch.arange(5))


def test_one_pair_has_nothing_to_be_confused_with() -> None:
    images, texts = embeddings(1)
    images.requires_grad_()
    loss = CLIPContrastiveLoss()(images, texts)["loss"]
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert torch.equal(images.grad, torch.zeros_like(images))


def test_zero_vectors_give_finite_numbers() -> None:
    images, texts = embeddings(4)
    images[1] = 0
    images.requires_grad_()
    loss = CLIPContrastiveLoss()(images, texts)["loss"]
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert bool(images.grad.isfinite().all())


@pytest.mark.parametrize("loss", [CLIPContrastiveLoss(), MultiPositiveContrastiveLoss()])
def test_nan_is_not_hidden(loss: CLIPContrastiveLoss) -> None:
    images, texts = embeddings(4)
    images[2, 0] = float("nan")
    assert not math.isfinite(float(loss(images, texts)["loss"]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_are_compared_in_float32(dtype: torch.dtype) -> None:
    images, texts = embeddings(8, 16, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # must not reach into the loss
        output = CLIPContrastiveLoss(0.01)(images, texts)
    assert output["loss"].dtype == output["logits_per_image"].dtype == torch.float32
    exact = CLIPContrastiveLoss(0.01)(images.double(), texts.double())
    torch.testing.assert_close(output["loss"].double(), exact["loss"], rtol=1e-5, atol=1e-5)


def test_losses_are_found_by_name_with_the_recipes_numbers() -> None:
    loss = build_loss(CLIPFinetuningConfig(loss_type="contrastive", temperature=0.2, label_smoothing=0.1))
    images, texts = embeddings()
    assert float(loss(images, texts)["loss"]) == pytest.approx(
        reference(images, texts, list(range(6)), 0.2, 0.1), rel=1e-6
    )
    with pytest.raises(ConfigurationError, match=r"^Invalid loss type 'contrastiv'.*contrastive.*multi_positive"):
        build_loss(CLIPFinetuningConfig(loss_type="contrastiv"))
    assert {"contrastive", "multi_positive"} <= set(LOSSES)


def test_unnormalised_embeddings_are_compared_by_their_product() -> None:
    images, texts = embeddings()
    loss = build_loss(CLIPFinetuningConfig(loss_type="contrastive", normalize_embeddings=False, temperature=2.0))
    torch.testing.assert_close(loss(images, texts)["logits_per_image"], images @ texts.T / 2.0, rtol=1e-6, atol=1e-6)


def test_euclidean_similarity_is_the_negative_distance() -> None:
    images, texts = embeddings()
    torch.testing.assert_close(SIMILARITIES["euclidean"](images, texts), -torch.cdist(images, texts))


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
            "hard_negative_ratio": 0.4, "hard_negative_mining_strategy": "weighted", "hard_negative_weight": 5.0,
            "hardness_strength": 0.3, "hardness_warmup": 0.5,
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
        {"objectives": {"contrastive": 2.0, "multi_scale": 1.0}, "multi_scale_scales": [2.0, 0.5],
         "multi_scale_weights": [1.0, 3.0]},
        WeightedSumLoss({
            "contrastive": (CLIPContrastiveLoss(0.2), 2.0),
            "multi_scale": (MultiScaleLoss((2.0, 0.5), 0.2, (1.0, 3.0)), 1.0),
        }),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ["hard_negative", "domain_specific", "multi_scale", "multi_resolution"])
def test_label_smoothing_reaches_every_cross_entropy(name: str) -> None:
    images, texts = embeddings()
    plain, smooth = (
        build_loss(CLIPFinetuningConfig(loss_type=name, label_smoothing=share))(images, texts) for share in (0.0, 0.2)
    )
    # The smallest loss such targets allow: (1 - ε + ε/B) and B - 1 times ε/B.
    share, rest = 1 - 0.2 + 0.2 / 6, 0.2 / 6
    floor = -share * math.log(share) - 5 * rest * math.log(rest)
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
    loss = WeightedSumLoss({
        "softmax": (CLIPContrastiveLoss(0.2), 1.0), "sigmoid": (SigmoidContrastiveLoss(0.3, bias=-2.0), 3.0)
    })  # fmt: skip
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
    for number, (weight, c) in enumerate(((1.0, 0.4), (3.0, -0.7))):
        total += weight * math.exp(-c) * parts[number] + weight * c / 2
        slope = -weight * math.exp(-c) * parts[number] + weight / 2
        assert float(loss.log_variances.grad[number]) == pytest.approx(slope)
    assert float(output["loss"].detach()) == pytest.approx(total)


def test_uncertainty_settles_where_the_variance_is_twice_the_loss() -> None:
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
    with torch.no_grad():  # validation: judged by the balance there is, which stays
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
        loss_type="combined", objectives={"contrastive": 1.0, "hard_negative": 1.0, "sigmoid": 1.0},
        similarity_metric="bilinear",
    )  # fmt: skip
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
            "objectives: 'multi_resolution' reads pictures at several sizes",
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

"""The contrastive objectives against transformers' own, plain loops, and numerical derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import ConfigurationError, ShapeError
from domainclip.losses import (
    LOSSES,
    CLIPContrastiveLoss,
    MultiPositiveContrastiveLoss,
    build_loss,
)
from domainclip.models import make_tiny_clip
from domainclip.similarity import SIMILARITIES
from loss_cases import embeddings

KEYS = {
    "loss",
    "image_to_text_loss",
    "text_to_image_loss",
    "temperature",
    "logits_per_image",
    "logits_per_text",
    "target_entropy",
}


def reference(images: Tensor, texts: Tensor, groups: list[int], temperature: float, smoothing: float = 0.0) -> float:
    """The definition, one row and one column at a time."""
    size = len(images)
    logits = [
        [float(x @ y) / (math.sqrt(float(x @ x)) * math.sqrt(float(y @ y))) / temperature for y in texts]
        for x in images
    ]

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

"""How two embeddings are compared, and what a metric that learns must do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import ConfigurationError, ShapeError
from domainclip.losses import LOSSES, CLIPContrastiveLoss, MultiPositiveContrastiveLoss, build_loss, call_objective
from domainclip.similarity import (
    SIMILARITIES,
    BilinearSimilarity,
    check_embeddings,
    cosine,
    dot,
    euclidean,
    make_similarity,
)
from loss_definitions import compare, embeddings


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = dict(LOSSES._entries), dict(SIMILARITIES._entries)
    yield
    LOSSES._entries, SIMILARITIES._entries = before


def rotation(dim: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_each_is_its_definition(metric: str) -> None:
    images, texts = embeddings(5, 4)
    expected = [[compare(metric, x, y) for y in texts[:3].tolist()] for x in images.tolist()]
    found = SIMILARITIES[metric](images, texts[:3])
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_euclidean_is_the_negative_distance_in_float32_too() -> None:
    images, texts = (side.float() for side in embeddings(7, 512))
    expected = -torch.cdist(images.double(), texts.double())
    torch.testing.assert_close(euclidean(images, texts).double(), expected, rtol=1e-5, atol=1e-5)


def test_equal_embeddings_are_at_no_distance_and_have_a_gradient() -> None:
    images = embeddings(4, 3)[0].requires_grad_()
    distance = euclidean(images, images.detach())
    assert bool((distance.diagonal().abs() < 1e-5).all())
    distance.sum().backward()
    assert bool(images.grad.isfinite().all())


def test_a_zero_vector_is_at_cosine_zero() -> None:
    images, texts = embeddings(3, 4)
    images[1] = 0
    assert torch.equal(cosine(images, texts)[1], torch.zeros(3, dtype=torch.float64))


def test_bilinear_is_the_cosine_at_first() -> None:
    images, texts = embeddings(5, 4)
    torch.testing.assert_close(BilinearSimilarity(4)(images, texts), cosine(images, texts))
    torch.testing.assert_close(BilinearSimilarity()(images, texts), cosine(images, texts))
    plain = CLIPContrastiveLoss()(images, texts)["loss"]
    torch.testing.assert_close(CLIPContrastiveLoss(similarity_metric="bilinear")(images, texts)["loss"], plain)


def test_bilinear_is_its_equation() -> None:
    images, texts = embeddings(5, 4)
    metric = BilinearSimilarity(4).double()
    with torch.no_grad():
        metric.weight.copy_(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    for i, x in enumerate(F.normalize(images, dim=-1)):
        for j, y in enumerate(F.normalize(texts, dim=-1)):
            mapped = metric.weight.detach() @ y
            assert float(metric(images, texts)[i, j].detach()) == pytest.approx(float(x @ mapped / mapped.norm()))


def test_a_learned_metric_can_be_multiplied_into_the_text_side() -> None:
    """A text tower's last layer P, replaced by W P, needs the plain cosine only: in retrieval and in the loss."""
    images, states = embeddings(5, 4)
    projection = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    texts = states @ projection.T
    loss = CLIPContrastiveLoss(similarity_metric="bilinear").double()
    loss.similarity.materialise(4)
    with torch.no_grad():
        loss.similarity.weight.copy_(torch.randn(4, 4, generator=torch.Generator().manual_seed(2)))
    exported = states @ (loss.similarity.weight.detach() @ projection).T
    torch.testing.assert_close(cosine(images, exported), loss.similarity(images, texts).detach())
    plain = CLIPContrastiveLoss()(images, exported)["loss"]
    torch.testing.assert_close(loss(images, texts)["loss"].detach(), plain)


@pytest.mark.parametrize("chunk", [None, 5])
def test_bilinear_learns_to_turn_the_texts_back(chunk: int | None) -> None:
    images = embeddings(32, 6)[0]
    texts = images @ rotation(6).T
    loss = CLIPContrastiveLoss(0.2, similarity_metric="bilinear", chunk_size=chunk).double()
    loss.similarity.materialise(6)
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)

    def accuracy() -> float:
        with torch.no_grad():
            return float((loss.similarity(images, texts).argmax(1) == torch.arange(32)).double().mean())

    before = accuracy()
    for _ in range(40):
        optimizer.zero_grad()
        loss(images, texts)["loss"].backward()
        optimizer.step()
    assert before < 0.2
    assert accuracy() > 0.9
    assert float(F.cosine_similarity(images, loss.similarity.map_texts(texts).detach()).mean()) > 0.9


def test_the_map_has_its_size_before_an_optimizer_is_built() -> None:
    loss = build_loss(CLIPFinetuningConfig(similarity_metric="bilinear", loss_type="multi_positive"), 7)
    (weight,) = loss.parameters()
    assert torch.equal(weight.detach(), torch.eye(7))
    assert weight.rate_factor == BilinearSimilarity.rate_factor
    loss.similarity.materialise(9)  # it has one already
    assert weight.shape == (7, 7)


def test_each_objective_gets_a_map_of_its_own() -> None:
    one, other = (make_similarity("bilinear") for _ in range(2))
    assert one is not other
    assert make_similarity("dot") is dot
    assert make_similarity(one) is one


def test_wrong_names_and_shapes() -> None:
    for ask in (lambda: make_similarity("cosin"), lambda: CLIPContrastiveLoss(similarity_metric="cosin")):
        with pytest.raises(ConfigurationError, match=r"^Invalid metric 'cosin'.*cosine"):
            ask()
    with pytest.raises(ValueError, match="Invalid metric 'cosin'"):
        CLIPFinetuningConfig(similarity_metric="cosin")
    with pytest.raises(ShapeError, match=r"^Expected 2D embeddings"):
        check_embeddings(torch.ones(3), torch.ones(3, 2))
    with pytest.raises(ShapeError, match=r"^Embedding dimension mismatch: 3 and 2"):
        check_embeddings(torch.ones(3, 3), torch.ones(3, 2))


def test_a_metric_of_the_users_own(forgotten: None) -> None:
    @SIMILARITIES.register("mine")
    def mine(a: Tensor, b: Tensor) -> Tensor:
        return -(a[:, None] - b[None]).abs().sum(-1)

    images, texts = embeddings(5, 4)
    for chunk, at_unit_length in ((None, False), (2, False), (None, True), (2, True)):
        loss = build_loss(
            CLIPFinetuningConfig(
                similarity_metric="mine",
                loss_type="contrastive",
                temperature=0.5,
                loss_chunk_size=chunk,
                normalize_embeddings=at_unit_length,
            )
        )
        sides = [F.normalize(side) if at_unit_length else side for side in (images, texts)]
        scores = -torch.cdist(*sides, p=1) / 0.5
        expected = (F.cross_entropy(scores, torch.arange(5)) + F.cross_entropy(scores.T, torch.arange(5))) / 2
        torch.testing.assert_close(loss(images, texts)["loss"], expected, rtol=1e-6, atol=1e-6)


def test_a_metric_of_the_users_own_that_learns(forgotten: None) -> None:
    @SIMILARITIES.register("scaled")
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(2.0))

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.factor * (a @ b.T)

    images, texts = embeddings(5, 4)
    gradients = []
    for chunk in (None, 2):
        loss = build_loss(CLIPFinetuningConfig(similarity_metric="scaled", loss_chunk_size=chunk))
        loss(images, texts)["loss"].backward()
        gradients.append(float(next(p for name, p in loss.named_parameters() if name.endswith("factor")).grad))
    assert gradients[0] != 0
    assert gradients[1] == pytest.approx(gradients[0], rel=1e-6)


def test_an_objective_of_the_users_own(forgotten: None) -> None:
    class Squares(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, image_embeds: Tensor, text_embeds: Tensor) -> dict[str, Tensor]:
            return {"loss": self.factor * (image_embeds - text_embeds).square().sum(-1).mean()}

    LOSSES.register("squares")(lambda settings: Squares(settings.temperature))
    images, texts = embeddings(5, 4)
    loss = build_loss(CLIPFinetuningConfig(loss_type="squares", temperature=0.5), 4)
    expected = 0.5 * float((images - texts).square().sum() / 5)
    output = call_objective(loss, images, texts, group_ids=torch.arange(5), logit_scale=None, progress=0.5)
    assert float(output["loss"]) == pytest.approx(expected)
    summed = build_loss(
        CLIPFinetuningConfig(loss_type="combined", objectives={"squares": 2.0, "multi_positive": 1.0}, temperature=0.5)
    )
    total = call_objective(summed, images, texts, group_ids=torch.arange(5), progress=0.5)
    plain = MultiPositiveContrastiveLoss(0.5)(images, texts, torch.arange(5))["loss"]
    assert float(total["loss"]) == pytest.approx(2 * expected + float(plain))
    assert "image_to_text_loss" not in total  # one of the two has no directions


def test_a_learned_metric_is_loaded_before_it_was_ever_used() -> None:
    learned = BilinearSimilarity(3)
    with torch.no_grad():
        learned.weight.add_(torch.randn(3, 3))
    fresh = BilinearSimilarity()
    fresh.load_state_dict(learned.state_dict())
    assert torch.equal(fresh.weight, learned.weight)


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean"])
def test_a_recipe_compares_unit_vectors_unless_told_otherwise(name: str) -> None:
    images, texts = embeddings(5, 4)
    loss = build_loss(CLIPFinetuningConfig(similarity_metric=name))
    long = loss(7 * images, texts)["loss"]
    torch.testing.assert_close(long, loss(images, texts)["loss"])
    raw = build_loss(CLIPFinetuningConfig(similarity_metric=name, normalize_embeddings=False))
    assert float(raw(7 * images, texts)["loss"]) != pytest.approx(float(raw(images, texts)["loss"]), rel=1e-3)

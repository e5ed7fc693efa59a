"""Every objective against its definition in plain loops, numerical derivatives, and what it promises of itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from domainclip.losses import (
    DomainSpecificLoss,
    HardNegativeMiningLoss,
    MultiPositiveContrastiveLoss,
    MultiScaleLoss,
    Rows,
)
from loss_definitions import (
    CASES,
    METRICS,
    TAU,
    batch_of,
    embeddings,
    mined_by,
    owned_scale,
)
from objective_cases import GROUPS, close

LABELS = [0, 1, -1, 0, -1, 1]


def learned_map(dim: int, seed: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.eye(dim).double() + 0.3 * torch.randn(dim, dim, generator=generator, dtype=torch.float64)


def arguments(metric: str, dim: int) -> dict[str, Any]:
    return {"weight": learned_map(dim)} if metric == "bilinear" else {}


def context(name: str, labels: list[int] | None) -> dict[str, Any]:
    takes = CASES[name].kind is DomainSpecificLoss and labels is not None
    return {"domain_labels": torch.tensor(labels)} if takes else {}


# --- the definitions ---


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", CASES)
def test_value_and_both_directions_are_the_definition(name: str, metric: str, groups: str) -> None:
    images, texts = embeddings()
    case, learned = CASES[name], arguments(metric, 5)
    batch = batch_of(images, texts, metric, GROUPS[groups], progress=0.2, **learned)
    output = case.make(metric, **learned)(
        images, texts, group_ids=torch.tensor(GROUPS[groups]), logit_scale=owned_scale(), progress=0.2
    )
    loss, image_to_text, text_to_image = case.value(batch)
    assert output["loss"].dtype == torch.float64
    assert float(output["loss"].detach()) == close(loss, rel=1e-6)  # sums of float32 weights, in float64
    assert float(output["image_to_text_loss"].detach()) == close(image_to_text, rel=1e-6)
    assert float(output["text_to_image_loss"].detach()) == close(text_to_image, rel=1e-6)
    assert float(output["temperature"].detach()) == close(TAU)
    scores = [[batch.score("i2t", i, j) / TAU for j in range(6)] for i in range(6)]
    torch.testing.assert_close(output["logits_per_image"].detach(), torch.tensor(scores, dtype=torch.float64))
    assert torch.equal(output["logits_per_text"], output["logits_per_image"].T)


@pytest.mark.parametrize("name", ["general", "medical", "industrial", "scientific"])
@pytest.mark.parametrize("groups", ["pairs", "some equal"])
def test_domain_labels_are_the_definition(name: str, groups: str) -> None:
    images, texts = embeddings(seed=3)
    batch = batch_of(images, texts, "cosine", GROUPS[groups], labels=LABELS)
    output = CASES[name].make()(images, texts, torch.tensor(GROUPS[groups]), owned_scale(), 1.0, torch.tensor(LABELS))
    assert float(output["loss"]) == close(CASES[name].value(batch)[0], rel=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", CASES)
def test_gradient_is_that_of_the_definition(name: str, metric: str) -> None:
    """Central differences of the plain loops, with everything that must carry no gradient held where it was."""
    groups, labels, size, dim, h = [0, 1, 0, 2], [0, 1, -1, 1], 4, 3, 1e-5
    images, texts = embeddings(size, dim, seed=1)
    case, learned = CASES[name], arguments(metric, dim)
    labelled = {"labels": labels} if case.kind is DomainSpecificLoss else {}

    def batch(x: Tensor, y: Tensor):
        return batch_of(x, y, metric, groups, progress=0.3, **learned, **labelled)

    frozen = batch(images, texts)
    gaps = [
        abs(frozen.score(direction, q, a) - frozen.score(direction, q, b))
        for direction in ("i2t", "t2i")
        for q in range(size)
        for a in range(size)
        for b in range(a)
    ]
    assert min(gaps) > 1e-3  # no ties: nobody else is mined nearby
    sides = [images.clone().requires_grad_(), texts.clone().requires_grad_()]
    output = case.make(metric, **learned)(
        *sides, group_ids=torch.tensor(groups), logit_scale=owned_scale(), progress=0.3, **context(name, labels)
    )
    output["loss"].backward()
    for which, side in enumerate(sides):
        expected = torch.zeros_like(side)
        for row in range(size):
            for column in range(dim):
                values = []
                for sign in (1, -1):
                    moved = [images.clone(), texts.clone()]
                    moved[which][row, column] += sign * h
                    values.append(case.value(batch(*moved), frozen)[0])
                expected[row, column] = (values[0] - values[1]) / (2 * h)
        torch.testing.assert_close(side.grad, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.smooth])
def test_derivatives_of_all_that_learns(name: str, metric: str) -> None:
    images, texts = (side.requires_grad_() for side in embeddings(4, 3, seed=2))
    loss = CASES[name].make(metric, **arguments(metric, 3)).double()
    learned = {key: value.detach().clone().requires_grad_() for key, value in loss.named_parameters()}
    assert set(learned) == ({"bias"} if name == "sigmoid" else set()) | (
        {"similarity.weight"} if metric == "bilinear" else set()
    )
    scale = owned_scale().requires_grad_()

    def value(x: Tensor, y: Tensor, s: Tensor, *parameters: Tensor) -> Tensor:
        given = dict(zip(learned, parameters, strict=True))
        keywords = {"group_ids": torch.tensor([0, 1, 0, 2]), "logit_scale": s}
        return functional_call(loss, given, (x, y), keywords)["loss"]

    assert torch.autograd.gradcheck(value, (images, texts, scale, *learned.values()))


@pytest.mark.parametrize("name", [name for name in CASES if name != "weighted"])  # its weights hold the scale fixed
def test_a_learnable_temperature_gets_the_derivative(name: str) -> None:
    images, texts = embeddings(5, 3)
    loss = CASES[name].make(learnable_temp=True).double()
    loss(images, texts)["loss"].backward()
    values = []
    for step in (1e-5, -1e-5):
        moved = CASES[name].make().double()
        moved.log_scale.copy_(loss.log_scale.detach() + step)
        values.append(float(moved(images, texts)["loss"].detach()))
    assert float(loss.log_scale.grad) == close((values[0] - values[1]) / 2e-5, rel=1e-4)


# --- what each tells besides ---


@pytest.mark.parametrize("strategy", ["semi-hard", "hard", "weighted"])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("groups", GROUPS)
def test_mined_negatives_are_counted(strategy: str, ratio: float, groups: str) -> None:
    images, texts = embeddings(seed=5)
    batch = batch_of(images, texts, "cosine", GROUPS[groups])
    mined = sum(len(mined_by(batch, d, q, ratio, strategy)) for d in ("i2t", "t2i") for q in range(6))
    negatives = 2 * sum(a != b for a in GROUPS[groups] for b in GROUPS[groups])
    output = HardNegativeMiningLoss(0.3, ratio, strategy)(images, texts, torch.tensor(GROUPS[groups]))
    assert int(output["hard_negative_count"]) == mined
    assert float(output["hard_negative_ratio_actual"]) == close(mined / negatives if negatives else 0.0)


def test_the_fraction_that_is_mined_is_exact() -> None:
    """In float32 9 % of 300 candidates is a little more than 27."""
    images, texts = embeddings(301, 16)
    output = HardNegativeMiningLoss(0.3, 0.09, "hard")(images.float(), texts.float())
    assert int(output["hard_negative_count"]) == 2 * 301 * 27


def test_scales_are_told_and_add_up() -> None:
    images, texts = embeddings()
    groups = torch.tensor(GROUPS["some equal"])
    output = MultiScaleLoss((2.0, 1.0, 0.5), 0.2, (2.0, 1.0, 1.0))(images, texts, groups)
    for index, scale in enumerate((2.0, 1.0, 0.5)):
        alone = MultiPositiveContrastiveLoss(0.2 * scale)(images, texts, groups)["loss"]
        assert float(output["scale_losses"][index]) == close(float(alone), rel=1e-6)
    assert output["scale_weights"].tolist() == [0.5, 0.25, 0.25]
    assert output["temperatures"].tolist() == close([0.4, 0.2, 0.1], rel=1e-6)
    assert float(output["base_temperature"]) == close(0.2)
    assert float(output["loss"]) == close(float(output["scale_losses"] @ output["scale_weights"].double()))
    raw = MultiScaleLoss((2.0, 1.0, 0.5), 0.2, (2.0, 1.0, 1.0), normalize_weights=False)(images, texts, groups)
    assert float(raw["loss"]) == close(4 * float(output["loss"]))
    assert float(raw["target_entropy"]) == close(4 * float(output["target_entropy"]))


@pytest.mark.parametrize("name", [name for name in CASES if name != "sigmoid"])
def test_the_target_entropy_is_that_of_the_targets_and_a_lower_bound(name: str) -> None:
    groups = [0, 1, 0, 2, 1, 0]
    images, texts = embeddings()
    output = CASES[name].make()(images, texts, torch.tensor(groups))
    assert float(output["loss"]) >= float(output["target_entropy"]) - 1e-9
    if name in ("multi_positive", "general", "medical", "industrial", "semi-hard", "multi_scale"):
        expected = sum(math.log(groups.count(g)) for g in groups) / 6
        assert float(output["target_entropy"]) == close(expected, rel=1e-6)


def test_the_domain_is_told() -> None:
    output = DomainSpecificLoss("medical", domain_weight=0.5)(*embeddings())
    assert (output["domain"], output["domain_weight"]) == ("medical", 0.5)


# --- directions ---

seeds = st.integers(0, 10_000)
group_lists = st.lists(st.integers(0, 5), min_size=6, max_size=6)
few = settings(max_examples=30, deadline=None)


def at(loss: nn.Module, seed: int, groups: list[int], **others: Any) -> float:
    images, texts = embeddings(seed=seed)
    return float(loss(images, texts, torch.tensor(groups), owned_scale(0.2), **others)["loss"])


@few
@given(
    seed=seeds,
    groups=group_lists,
    strategy=st.sampled_from(["semi-hard", "hard", "weighted"]),
    ratio=st.floats(0.05, 1),
    weights=st.tuples(st.floats(1, 20), st.floats(1, 20)),
)
def test_a_larger_weight_of_hard_negatives_never_lowers_the_loss(seed, groups, strategy, ratio, weights) -> None:
    low, high = sorted(weights)
    losses = [at(HardNegativeMiningLoss(0.07, ratio, strategy, weight), seed, groups) for weight in (low, high)]
    assert losses[1] >= losses[0] - 1e-9


@few
@given(
    seed=seeds,
    groups=group_lists,
    domain=st.sampled_from(["medical", "industrial"]),
    weights=st.tuples(st.floats(0, 5), st.floats(0, 5)),
    labels=st.lists(st.integers(-1, 2), min_size=6, max_size=6),
)
def test_a_larger_domain_weight_never_lowers_the_loss(seed, groups, domain, weights, labels) -> None:
    losses = [
        at(DomainSpecificLoss(domain, domain_weight=weight), seed, groups, domain_labels=torch.tensor(labels))
        for weight in sorted(weights)
    ]
    assert losses[1] >= losses[0] - 1e-9


@few
@given(seed=seeds, groups=group_lists, margins=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_larger_margin_never_lowers_the_loss(seed, groups, margins) -> None:
    losses = [at(DomainSpecificLoss("medical", margin=margin), seed, groups) for margin in sorted(margins)]
    assert losses[1] >= losses[0] - 1e-9


@few
@given(seed=seeds, groups=group_lists)
def test_without_hardness_each_is_the_multi_positive_loss_exactly(seed, groups) -> None:
    plain = at(MultiPositiveContrastiveLoss(), seed, groups)
    for strategy in ("semi-hard", "hard", "weighted"):
        assert at(HardNegativeMiningLoss(0.07, 0.5, strategy, 1.0), seed, groups) == plain
        warming = HardNegativeMiningLoss(0.07, 0.5, strategy, 5.0, hardness_warmup=0.1)
        assert at(warming, seed, groups, progress=0.0) == plain
        full = at(HardNegativeMiningLoss(0.07, 0.5, strategy, 5.0), seed, groups)
        assert at(warming, seed, groups, progress=0.1) == full
        assert plain - 1e-9 <= at(warming, seed, groups, progress=0.05) <= full + 1e-9
    for domain in ("general", "medical", "industrial"):
        assert at(DomainSpecificLoss(domain, domain_weight=0), seed, groups) == plain
    assert at(DomainSpecificLoss("scientific", domain_weight=0), seed, groups) == close(plain, rel=1e-12)
    assert at(DomainSpecificLoss("industrial", hardness_warmup=0.1), seed, groups, progress=0.0) == plain


def rows_seen(loss: nn.Module, *inputs: Any, **others: Any) -> list[Rows]:
    seen: list[Rows] = []
    row_loss = loss.row_loss

    def record(rows: Rows) -> Any:
        seen.append(rows)
        return row_loss(rows)

    loss.row_loss = record
    loss(*inputs, **others)
    return seen


@few
@given(seed=seeds, groups=group_lists, ratio=st.floats(0.05, 1))
def test_semi_hard_mines_nothing_above_the_own_pair(seed, groups, ratio) -> None:
    images, texts = embeddings(seed=seed)
    loss = HardNegativeMiningLoss(0.07, ratio, "semi-hard")
    for rows in rows_seen(loss, images, texts, torch.tensor(groups)):
        mined, _ = loss.mine(rows)
        assert not bool((mined & (rows.scores >= rows.scores.diagonal()[:, None])).any())


@pytest.mark.parametrize("strategy", ["semi-hard", "hard", "weighted"])
def test_duplicates_of_the_positive_are_never_mined(strategy: str) -> None:
    """Rows 0 and 1 hold the same text under two numbers; rows 2 and 3 share a group; 4 and 5 the same image."""
    images, texts = embeddings(8, 6)
    texts[1] = 2.5 * texts[0]  # the length is no part of it
    images[5] = images[4]
    loss = HardNegativeMiningLoss(0.07, 1.0, strategy)
    forward, back = rows_seen(loss, images, texts, torch.tensor([0, 1, 2, 2, 3, 4, 5, 6]))
    to_texts, to_images = (loss.mine(rows)[0] for rows in (forward, back))
    assert not bool(to_texts[0, 1] | to_texts[1, 0] | to_images[4, 5] | to_images[5, 4])
    for mined in (to_texts, to_images):
        assert not bool(mined.diagonal().any() | mined[2, 3] | mined[3, 2])
    if strategy != "semi-hard":  # all the others are mined
        assert int(to_texts.sum()) == int(to_images.sum()) == 8 * 7 - 2 - 2


def test_a_like_caption_is_confused_at_less_cost() -> None:
    """The same similarities, once with the captions of rows 0 and 1 alike, once with those of 0 and 2."""
    scores = 0.2 * torch.eye(4, dtype=torch.float64)
    scores[0, 1] = 0.5  # image 0 is taken for text 1
    images = torch.eye(4, dtype=torch.float64)

    def cost(like: int) -> float:
        texts = torch.eye(4, dtype=torch.float64)
        texts[like, 0] = 2.0
        loss = DomainSpecificLoss("scientific", similarity_metric=lambda a, b: scores)
        return float(loss(images, texts)["image_to_text_loss"])

    assert cost(like=1) < cost(like=2) - 0.01
    assert cost(like=2) == close(cost(like=3))


def test_medical_is_sharper_than_industrial_than_scientific_unless_the_model_owns_it() -> None:
    images, texts = embeddings()
    own = [
        float(DomainSpecificLoss(d, 0.1)(images, texts)["temperature"]) for d in ("medical", "industrial", "scientific")
    ]
    assert own == close([0.08, 0.1, 0.125], rel=1e-6)
    for domain in ("medical", "industrial", "scientific", "general"):
        owned = DomainSpecificLoss(domain, 0.1)(images, texts, logit_scale=owned_scale(0.3))
        assert float(owned["temperature"]) == close(0.3)


def test_medical_labels_make_positives() -> None:
    images, texts = embeddings()
    labels, alone = torch.tensor([0, 0, 1, 2, 3, 1]), torch.arange(6)
    loss = DomainSpecificLoss("medical", domain_weight=0.0)
    by_label = loss(images, texts, alone, owned_scale(), domain_labels=labels)["loss"]
    torch.testing.assert_close(by_label, MultiPositiveContrastiveLoss()(images, texts, labels, owned_scale())["loss"])
    unknown = loss(images, texts, alone, owned_scale(), domain_labels=torch.full((6,), -1))["loss"]
    assert torch.equal(unknown, MultiPositiveContrastiveLoss()(images, texts, alone, owned_scale())["loss"])


def test_industrial_labels_are_no_hard_negatives() -> None:
    images, texts = embeddings()
    images[1] = images[0] + 0.01  # hard negatives, for certain
    loss = DomainSpecificLoss("industrial")
    without = loss(images, texts)["loss"]
    same = loss(images, texts, domain_labels=torch.zeros(6, dtype=torch.long))["loss"]
    assert float(same) < float(without) - 1e-3
    torch.testing.assert_close(same, MultiPositiveContrastiveLoss()(images, texts)["loss"])
    unknown = loss(images, texts, domain_labels=torch.full((6,), -1))["loss"]
    assert torch.equal(unknown, without)

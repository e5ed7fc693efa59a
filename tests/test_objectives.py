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
    Rows,
    SigmoidContrastiveLoss,
    build_loss,
    call_objective,
    sigmoid,
)
from loss_definitions import (
    CASES,
    METRICS,
    TAU,
    batch_of,
    embeddings,
    mined_by,
    owned_scale,
    product,
    unit,
)

GROUPS = {"pairs": [0, 1, 2, 3, 4, 5], "some equal": [0, 1, 0, 2, 1, 0], "all equal": [7] * 6}
LABELS = [0, 1, -1, 0, -1, 1]
close = pytest.approx


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
    output = CASES[name].make()(
        images, texts, torch.tensor(GROUPS[groups]), owned_scale(), 1.0, torch.tensor(LABELS)
    )  # fmt: skip
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
        for direction in ("i2t", "t2i") for q in range(size) for a in range(size) for b in range(a)
    ]  # fmt: skip
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


def test_the_share_that_is_mined_is_exact() -> None:
    """In float32 9 % of 300 candidates is a little more than 27."""
    images, texts = embeddings(301, 16)
    output = HardNegativeMiningLoss(0.3, 0.09, "hard")(images.float(), texts.float())
    assert int(output["hard_negative_count"]) == 2 * 301 * 27


def test_scales_are_told_and_add_up() -> None:
    images, texts = embeddings()
    groups = torch.tensor(GROUPS["some equal"])
    output = MultiScaleLoss((2.0, 1.0, 0.5), 0.2, (2.0, 1.0, 1.0))(images, texts, groups)
    for number, scale in enumerate((2.0, 1.0, 0.5)):
        alone = MultiPositiveContrastiveLoss(0.2 * scale)(images, texts, groups)["loss"]
        assert float(output["scale_losses"][number]) == close(float(alone), rel=1e-6)
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
    seed=seeds, groups=group_lists, strategy=st.sampled_from(["semi-hard", "hard", "weighted"]),
    ratio=st.floats(0.05, 1), weights=st.tuples(st.floats(1, 20), st.floats(1, 20)),
)  # fmt: skip
def test_a_larger_weight_of_hard_negatives_never_lowers_the_loss(seed, groups, strategy, ratio, weights) -> None:
    low, high = sorted(weights)
    losses = [at(HardNegativeMiningLoss(0.07, ratio, strategy, weight), seed, groups) for weight in (low, high)]
    assert losses[1] >= losses[0] - 1e-9


@few
@given(
    seed=seeds, groups=group_lists, domain=st.sampled_from(["medical", "industrial"]),
    weights=st.tuples(st.floats(0, 5), st.floats(0, 5)), labels=st.lists(st.integers(-1, 2), min_size=6, max_size=6),
)  # fmt: skip
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
    """Rows 0 and 1 hold the same text under two numbers; rows 2 and 3 share a group; 4 and 5 the same picture."""
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
    scores[0, 1] = 0.5  # picture 0 is taken for text 1
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


def test_industrial_labels_are_no_look_alikes() -> None:
    images, texts = embeddings()
    images[1] = images[0] + 0.01  # look-alikes, for certain
    loss = DomainSpecificLoss("industrial")
    without = loss(images, texts)["loss"]
    same = loss(images, texts, domain_labels=torch.zeros(6, dtype=torch.long))["loss"]
    assert float(same) < float(without) - 1e-3
    torch.testing.assert_close(same, MultiPositiveContrastiveLoss()(images, texts)["loss"])
    unknown = loss(images, texts, domain_labels=torch.full((6,), -1))["loss"]
    assert torch.equal(unknown, without)


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
    )  # fmt: skip
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


# --- several sizes of the picture ---


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


def test_the_small_picture_learns_from_the_large_one() -> None:
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
        domain: {"loss_type": "domain_specific", "domain": domain}
        for domain in ("medical", "industrial", "scientific")
    },
    **{
        f"combined, {balancing}": {
            "loss_type": "combined", "objectives": {"contrastive": 1.0, "sigmoid": 0.5}, "loss_balancing": balancing,
        }
        for balancing in ("fixed", "uncertainty", "gradient_norm")
    },
    **{metric: {"loss_type": "multi_positive", "similarity_metric": metric} for metric in ("euclidean", "bilinear")},
    "dot": {"loss_type": "hard_negative", "normalize_embeddings": False},
    "chunked": {"loss_type": "hard_negative", "loss_chunk_size": 2},
}  # fmt: skip
every_objective = pytest.mark.parametrize("name", RECIPES)


def built(name: str) -> nn.Module:
    return build_loss(CLIPFinetuningConfig(**RECIPES[name], temperature=0.1), 5)


def pictures(name: str, images: Tensor) -> Tensor:
    """At two sizes where the objective reads them."""
    return torch.stack([images, images.flip(1)], dim=1) if name == "multi_resolution" else images


def backward(name: str, images: Tensor, texts: Tensor, **others: Any) -> tuple[dict[str, Any], Tensor, Tensor]:
    images, texts = (side.detach().clone().requires_grad_() for side in (images, texts))
    output = call_objective(built(name), pictures(name, images), texts, progress=1.0, **others)
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
        built(name)(pictures(name, images), texts, group_ids=torch.arange(5))


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
    plain = built(name)(pictures(name, images), texts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = built(name)(pictures(name, images), texts)
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
        (lambda: HardNegativeMiningLoss(hard_negative_ratio=0), r"^Hard negative ratio must be in \(0, 1\]"),
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

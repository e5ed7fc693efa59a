"""A loss computed in chunks of rows is the loss computed at once: value, extras, and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from domainclip.losses import (
    ContrastiveObjective,
    MultiPositiveContrastiveLoss,
    MultiResolutionLoss,
    SigmoidContrastiveLoss,
    WeightedSumLoss,
    objective,
)
from loss_definitions import CASES, METRICS, embeddings, owned_scale

SIZE, DIM = 10, 4
GROUPS = torch.tensor([0, 1, 2, 0, 3, 4, 5, 1, 6, 0])
LABELS = torch.tensor([0, 1, -1, 0, 2, -1, 1, 2, 0, 1])
WHOLE_ONLY = {"logits_per_image", "logits_per_text"}


def learned_map() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.eye(DIM).double() + 0.2 * torch.randn(DIM, DIM, generator=generator, dtype=torch.float64)


def outcome(loss: nn.Module, owned: bool, images: Tensor, texts: Tensor, **others: Any) -> dict[str, Any]:
    """Everything that came out, and the gradient of everything that can learn."""
    loss = loss.double()
    images, texts = (side.clone().requires_grad_() for side in (images, texts))
    scale = owned_scale().requires_grad_()
    output = loss(images, texts, group_ids=GROUPS, logit_scale=scale if owned else None, progress=0.3, **others)
    output["loss"].backward()
    reported = {name: value for name, value in output.items() if isinstance(value, Tensor)}
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in loss.named_parameters()}
    if owned:
        gradients["gradient of logit_scale"] = scale.grad
    return {**reported, **gradients, "gradient of images": images.grad, "gradient of texts": texts.grad}


def assert_same(chunked: dict[str, Any], whole: dict[str, Any]) -> None:
    assert not WHOLE_ONLY & set(chunked)
    assert set(whole) - WHOLE_ONLY == set(chunked)
    for name, value in chunked.items():
        if value is None:
            assert whole[name] is None, name  # the objective's own temperature where the model owns it
        else:
            torch.testing.assert_close(
                value, whole[name], rtol=1e-9, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}"
            )


@pytest.mark.parametrize("chunk", [1, 3, 7, SIZE - 1])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", CASES)
def test_chunks_are_the_whole(name: str, metric: str, chunk: int) -> None:
    images, texts = embeddings(SIZE, DIM)
    case, weight = CASES[name], learned_map() if metric == "bilinear" else None
    labels = {"domain_labels": LABELS} if "domain" in case.keywords else {}
    for owned in (True, False):
        parts, whole = (
            outcome(case.make(metric, weight, chunk_size=size, learnable_temp=True), owned, images, texts, **labels)
            for size in (chunk, None)
        )
        assert set(whole) >= WHOLE_ONLY
        expected = {"gradient of images", "gradient of texts", "gradient of log_scale"}
        expected |= {"gradient of logit_scale"} if owned else set()
        expected |= {"gradient of similarity.weight"} if metric == "bilinear" else set()
        expected |= {"gradient of bias"} if name == "sigmoid" else set()
        assert expected == {key for key in whole if key.startswith("gradient of")}
        assert_same(parts, whole)


@pytest.mark.parametrize("metric", METRICS)
def test_chunks_of_sigmoid_with_the_models_bias(metric: str) -> None:
    images, texts = embeddings(SIZE, DIM)
    results = []
    for chunk in (3, None):
        bias = torch.tensor([-2.0], dtype=torch.float64, requires_grad=True)
        loss = SigmoidContrastiveLoss(similarity_metric=metric, chunk_size=chunk)
        results.append(outcome(loss, True, images, texts, logit_bias=bias) | {"gradient of logit_bias": bias.grad})
    assert_same(*results)


@pytest.mark.parametrize("balancing", ["fixed", "uncertainty", "gradient_norm"])
def test_chunks_of_a_weighted_sum(balancing: str) -> None:
    images, texts = embeddings(SIZE, DIM)

    def make(chunk: int | None) -> WeightedSumLoss:
        names = ("multi_positive", "sigmoid", "semi-hard")
        parts = {name: (CASES[name].make(chunk_size=chunk), 1.0 + index) for index, name in enumerate(names)}
        return WeightedSumLoss(parts, balancing)

    assert_same(*(outcome(make(chunk), True, images, texts) for chunk in (3, None)))


def test_chunks_of_several_sizes() -> None:
    images = torch.stack([embeddings(SIZE, DIM)[0], embeddings(SIZE, DIM, 1)[0]], dim=1)
    texts = embeddings(SIZE, DIM)[1]
    parts, whole = (
        outcome(MultiResolutionLoss(objective=MultiPositiveContrastiveLoss(chunk_size=chunk)), True, images, texts)
        for chunk in (3, None)
    )
    assert_same(parts, whole)


class Recording(MultiPositiveContrastiveLoss):
    """Knows the shape of all rows it was handed."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.shapes: list[tuple[int, ...]] = []

    def row_loss(self, rows: objective.Rows) -> objective.RowLoss:
        self.shapes.append(tuple(rows.scores.shape))
        return super().row_loss(rows)


def test_large_batches_are_chunked_of_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts = embeddings(SIZE, DIM)
    whole = outcome(Recording(), True, images, texts)
    monkeypatch.setattr(objective, "WHOLE_MATRIX", SIZE - 1)
    monkeypatch.setattr(objective, "CHUNK_ENTRIES", 3 * SIZE + 5)
    loss = Recording()
    assert_same(outcome(loss, True, images, texts), whole)
    one_direction = [(3, SIZE)] * 3 + [(1, SIZE)]
    # Forward, and once more backward: nothing of it was kept.
    assert sorted(loss.shapes) == sorted(one_direction * 4)
    monkeypatch.setattr(objective, "WHOLE_MATRIX", SIZE)
    at_once = Recording()
    at_once(images, texts)
    assert at_once.shapes == [(SIZE, SIZE)] * 2


@pytest.mark.parametrize("name", CASES)
def test_no_chunk_is_kept_for_the_backward_pass(name: str) -> None:
    """Autograd saves nothing of the size of a chunk's matrix; of the whole matrix it saves several."""
    images, texts = (side.requires_grad_() for side in embeddings(40, DIM))

    def saved(loss: ContrastiveObjective) -> int:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss(images, texts, logit_scale=owned_scale())
        return max(sizes)

    assert saved(CASES[name].make()) >= 40 * 40
    assert saved(CASES[name].make(chunk_size=8)) <= 40 * DIM


@pytest.mark.parametrize("name", CASES)
def test_chunks_without_gradient(name: str) -> None:
    images, texts = embeddings(SIZE, DIM)
    with torch.no_grad():
        parts, whole = (CASES[name].make(chunk_size=chunk)(images, texts, GROUPS, owned_scale()) for chunk in (3, None))
    assert not parts["loss"].requires_grad
    torch.testing.assert_close(parts["loss"], whole["loss"], rtol=1e-9, atol=0)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", CASES)
def test_chunks_inside_autocast_stay_in_float32(name: str, metric: str) -> None:
    """Also when they are computed again backward, outside of it."""
    results = []
    for autocast in (True, False):
        images, texts = (side.float().requires_grad_() for side in embeddings(SIZE, DIM))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = CASES[name].make(metric, chunk_size=3)(images, texts, GROUPS)["loss"]
        assert loss.dtype == torch.float32
        loss.backward()
        results.append((loss.detach(), images.grad, texts.grad))
    for inside, outside in zip(*results, strict=True):
        assert torch.equal(inside, outside)


def test_gradients_are_balanced_over_chunks_as_over_the_whole() -> None:
    """The balance asks for each objective's gradient before the backward pass: chunks are then computed twice."""
    images, texts = (side.requires_grad_() for side in embeddings(SIZE, DIM))
    norms = []
    for chunk in (3, None):
        parts = {name: (CASES[name].make(chunk_size=chunk), 1.0) for name in ("contrastive", "weighted")}
        loss = WeightedSumLoss(parts, "gradient_norm").double()
        loss(images, texts, logit_scale=owned_scale())["loss"].backward()
        norms.append(loss.norms)
    torch.testing.assert_close(*norms, rtol=1e-9, atol=0)

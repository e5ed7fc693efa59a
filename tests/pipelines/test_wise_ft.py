"""Weights between two ends: exact at both, merged adapters, recomputed batch norm, and the choice among them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from domainclip.config import CLIPFinetuningConfig, ModelSettings
from domainclip.config.settings import AdapterSettings
from domainclip.domains import load_domain
from domainclip.errors import ConfigurationError
from domainclip.evaluation.trade_off import (
    TradeOffPoint,
    choose_trade_off,
    given_trade_off,
    pareto_front,
)
from domainclip.models import DualEncoder, load_encoder, make_tiny_clip
from domainclip.models.batch_norm import recompute_statistics, statistics_differ
from domainclip.models.lora import attach_lora
from domainclip.pipelines.wise_ft import FIRST_ALPHAS, REFINEMENTS, Interpolation, sweep
from domainclip.reports.plots.trade_off import _name_points, plot_trade_off
from domainclip.reports.schema.run import TradeOff
from domainclip.resolve.draft import Draft
from domainclip.resolve.stages import resolve_reference_sets
from domainclip.training.regularization.initial_weights import weights_of
from model_zoo import save_vision_text
from report_cases import pages, write_run
from wise_ft_cases import embeddings, move

pytestmark = pytest.mark.figures


def point(alpha: float, domain: float, reference: float) -> TradeOffPoint:
    return TradeOffPoint(alpha, domain, reference, {"a": reference + 0.1, "b": reference - 0.1})


def convolutional(folder: Path) -> DualEncoder:
    path = save_vision_text(folder / "joined", folder / "parts", "mobilenet")
    return load_encoder(ModelSettings(model_name=str(path)))


@pytest.mark.parametrize("kind", ["clip", "convolutional"])
def test_the_ends_are_exact_and_the_middle_is_the_mean(tmp_path: Path, kind: str) -> None:
    encoder = make_tiny_clip() if kind == "clip" else convolutional(tmp_path)
    before, start = embeddings(encoder), weights_of(encoder)
    move(encoder)
    after, end = embeddings(encoder), weights_of(encoder)
    images = [torch.randn(4, 3, encoder.native_resolution, encoder.native_resolution)]
    between = Interpolation(encoder, start, lambda alpha: images)
    for alpha, expected in ((0.0, before), (1.0, after), (0.5, None), (0.0, before), (1.0, after)):
        between.set(alpha)
        found = embeddings(encoder)
        if expected is None:
            assert not torch.equal(found[0], before[0]) and not torch.equal(found[0], after[0])
            for name, value in encoder.model.state_dict().items():
                if value.is_floating_point() and "running" not in name:
                    torch.testing.assert_close(value, (start[name] + end[name]) / 2)
        else:
            assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert float(start["logit_scale"]) != float(end["logit_scale"])  # it takes part as well


def test_what_the_recipe_fixes_stays_what_it_is() -> None:
    encoder = make_tiny_clip()
    start = weights_of(encoder)
    move(encoder)
    end = weights_of(encoder)
    Interpolation(encoder, start, kept=("logit_scale",)).set(0.5)
    found = weights_of(encoder)
    assert found["logit_scale"] == end["logit_scale"] != start["logit_scale"]
    name = "visual_projection.weight"
    torch.testing.assert_close(found[name], (start[name] + end[name]) / 2)


def test_adapters_are_merged_first() -> None:
    pytest.importorskip("peft")
    encoder = make_tiny_clip()
    before, start = embeddings(encoder), weights_of(encoder)
    attach_lora(encoder, AdapterSettings(lora_r=2, lora_dropout=0.0), seed=0)
    with torch.no_grad():
        for parameter in encoder.model.parameters():
            if parameter.requires_grad:
                parameter += 0.05
    encoder.merge_adapters()
    after = embeddings(encoder)
    between = Interpolation(encoder, start)
    for alpha, expected in ((0.0, before), (1.0, after)):
        between.set(alpha)
        assert torch.equal(embeddings(encoder)[0], expected[0]) and torch.equal(embeddings(encoder)[1], expected[1])
    assert not torch.equal(before[0], after[0])


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="not of the trained model's shape"):
        Interpolation(make_tiny_clip(width=32), weights_of(make_tiny_clip(width=64)))


def test_recomputed_statistics_are_those_of_the_images(tmp_path: Path) -> None:
    """Against a plain pass in training mode: the first layer's mean over two batches, and the others' over one."""
    encoder = convolutional(tmp_path)
    move(encoder)
    resolution = encoder.native_resolution
    batches = [torch.randn(6, 3, resolution, resolution) + index for index in range(2)]
    layers = [m for m in encoder.model.vision_model.modules() if isinstance(m, nn.BatchNorm2d)]
    seen: dict[int, list[tuple[Tensor, Tensor]]] = {index: [] for index in range(len(layers))}
    hooks = [
        layer.register_forward_pre_hook(
            lambda module, inputs, n=index: seen[n].append(
                (inputs[0].mean((0, 2, 3)), inputs[0].transpose(0, 1).flatten(1).var(1))
            )
        )
        for index, layer in enumerate(layers)
    ]
    momenta, weights = [layer.momentum for layer in layers], encoder.model.visual_projection.weight.clone()
    assert recompute_statistics(encoder, iter(batches)) == 12
    for hook in hooks:
        hook.remove()
    for index, layer in enumerate(layers):
        means, variances = zip(*seen[index], strict=True)
        assert len(means) == 2
        torch.testing.assert_close(layer.running_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.running_var, torch.stack(variances).mean(0), rtol=1e-4, atol=1e-5)
    assert [layer.momentum for layer in layers] == momenta and not any(layer.training for layer in layers)
    assert torch.equal(encoder.model.visual_projection.weight, weights)


def test_statistics_that_did_not_move_are_left_alone(tmp_path: Path) -> None:
    encoder = convolutional(tmp_path)
    start = weights_of(encoder)
    with torch.no_grad():
        for parameter in encoder.model.parameters():
            parameter += 0.1
    assert not statistics_differ(encoder.model, start, encoder.model.state_dict())
    next(m for m in encoder.model.modules() if isinstance(m, nn.BatchNorm2d)).running_mean += 1  # type: ignore[operator]
    assert statistics_differ(encoder.model, start, encoder.model.state_dict())
    assert not statistics_differ(make_tiny_clip().model, {}, {})


# --- the choice ---


def test_the_best_within_both_limits_is_chosen() -> None:
    points = [
        point(0, 0.4, 0.8),
        point(0.25, 0.7, 0.79),
        point(0.5, 0.88, 0.78),
        point(0.75, 0.89, 0.771),
        point(0.875, 0.895, 0.769),
        point(1, 0.9, 0.3),
    ]
    choice = choose_trade_off(points, 0.03, 0.9)
    assert choice.point.alpha == 0.75  # 0.875 gains more and loses 3.1 points
    assert choice.within_limits
    assert choice.gain == pytest.approx(0.49)
    assert choice.gain_kept == pytest.approx(0.98)
    assert choice.forgetting == pytest.approx(0.029)
    # Exactly at both limits, whatever rounding says: 0.1 + 0.2 and the like.
    at_limits = [point(0, 0.1, 0.33), point(0.5, 0.1 + 0.9 * 0.2, 0.3), point(1, 0.3, 0.1)]
    assert choose_trade_off(at_limits, 0.03, 0.9).within_limits


def test_of_equal_gains_the_one_that_loses_less_is_chosen() -> None:
    points = [point(0, 0.4, 0.8), point(0.5, 0.9, 0.79), point(0.75, 0.9, 0.795), point(1, 0.9, 0.78)]
    assert choose_trade_off(points).point.alpha == 0.75


def test_where_both_cannot_be_had_the_nearest_of_the_front_is_said_to_be_so() -> None:
    points = [
        point(0, 0.4, 0.8),
        point(0.25, 0.6, 0.79),
        point(0.5, 0.8, 0.7),
        point(0.625, 0.79, 0.65),
        point(0.75, 0.87, 0.5),
        point(1, 0.9, 0.2),
    ]
    choice = choose_trade_off(points, 0.03, 0.9)
    # Wanted: domain 0.85, reference 0.77. 0.5 misses by .05 and .07; 0.25 by .25; 0.75 by .27.
    assert choice.point.alpha == 0.5
    assert not choice.within_limits
    assert "no model of 6" in choice.reason and "misses it by least" in choice.reason
    assert [p.alpha for p in pareto_front(points)] == [0, 0.25, 0.5, 0.75, 1]


def test_a_training_that_gained_nothing_is_not_kept_for_its_own_sake() -> None:
    choice = choose_trade_off([point(0, 0.9, 0.8), point(0.5, 0.85, 0.8), point(1, 0.6, 0.3)])
    assert choice.point.alpha == 0
    assert choice.gain_kept is None and "gained nothing" in choice.reason
    with pytest.raises(ConfigurationError, match="initial model"):
        choose_trade_off([point(0.5, 0.5, 0.5)])


def test_the_sweep_looks_closer_beside_the_best() -> None:
    """The score of the reference sets falls below its limit at 0.6 of the way; the domain gains all along."""
    asked: list[float] = []

    def measure(alpha: float) -> TradeOffPoint:
        asked.append(alpha)
        return point(
            alpha, 0.4 + 0.5 * min(1.0, 2 * alpha) + 0.01 * alpha, 0.8 - (0.05 * alpha if alpha < 0.6 else 0.4)
        )

    points, choice = sweep(measure, 0.03, 0.9)
    assert tuple(asked[:9]) == FIRST_ALPHAS == (0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1)
    assert asked[9:] == [0.5625, 0.59375] and len(asked) == 9 + REFINEMENTS
    assert choice.point.alpha == 0.59375 and choice.within_limits
    assert [p.alpha for p in points] == sorted(asked)


def test_a_given_alpha_is_told_what_it_costs() -> None:
    points = [point(0, 0.4, 0.8), point(0.5, 0.8, 0.78), point(1, 0.9, 0.2)]
    found = given_trade_off(points, 0.5, 0.03, 0.9)
    assert found.gain_kept == pytest.approx(0.8) and not found.within_limits
    assert given_trade_off(points, 0.5, 0.03, 0.75).within_limits


def test_plot_and_page_name_every_alpha(tmp_path: Path) -> None:
    points = [point(alpha, 0.4 + 0.5 * alpha, 0.8 - 0.3 * alpha**2) for alpha in FIRST_ALPHAS]
    front = pareto_front(points)
    reported = {
        "chosen_alpha": 0.5,
        "chosen_by": "validation",
        "within_limits": False,
        "reason": "because",
        "gain": 0.25,
        "gain_kept": 0.5,
        "forgetting": 0.075,
        "domain_metric": "acc1",
        "domain_rows": 40,
        "retention_rows": 60,
        "max_forgetting": 0.03,
        "min_gain_kept": 0.9,
        "batch_norm": "None here.",
        "points": [
            {
                "alpha": p.alpha,
                "domain": p.domain,
                "reference": p.reference,
                "sets": dict(p.sets),
                "on_front": p in front,
            }
            for p in points
        ],
    }
    assert plot_trade_off(TradeOff.from_values(reported), tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").stat().st_size > 10_000
    fixed = TradeOff.from_values(reported | {"points": []})
    assert not plot_trade_off(fixed, tmp_path / "none.png") and not (tmp_path / "none.png").exists()
    write_run(tmp_path / "run", {"trade_off": reported})
    page = pages(tmp_path / "run")
    assert all(f"{alpha:.4g}" in page for alpha in FIRST_ALPHAS)
    assert "0.5 (chosen)" in page and "−7.5 points" in page and "could not be had together" in page
    write_run(tmp_path / "run", {})
    assert "WiSE-FT" not in pages(tmp_path / "run")


def test_labels_say_what_the_table_says_and_keep_off_the_legend() -> None:
    axis = Figure().subplots()
    _name_points(axis, [point(0, 0.4, 0.8), point(0.3125, 0.89, 0.7), point(1, 0.9, 0.2)], 0.3125)
    assert [(text.get_text(), text.get_ha()) for text in axis.texts] == [
        ("α = 0", "left"),
        ("α = 0.3125", "right"),
        ("α = 1", "right"),
    ]


# --- the recipe ---


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"wise_ft": True}, "retention_data names nothing"),
        ({"wise_ft_alpha": "auto"}, "retention_data names nothing"),
        ({"wise_ft": False, "wise_ft_alpha": 0.5}, "contradict each other"),
        ({"wise_ft_alpha": 1.5}, "wise_ft_alpha must be in"),
        ({"wise_ft_alpha": "half"}, "wise_ft_alpha|alpha"),
        ({"max_forgetting": 3}, "must be at most 1"),
        ({"max_forgetting": 0.1}, "max_forgetting has no effect without retention_data"),
        ({"rehearsal_strength": 5.0}, "rehearsal_strength has no effect without retention_data"),
        ({"retention_rows": 50}, "retention_rows has no effect without retention_data"),
        ({"wise_ft_batch_norm": "interpolate"}, "wise_ft_batch_norm has no effect without retention_data"),
    ],
)
def test_what_contradicts_itself_is_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        CLIPFinetuningConfig(**values)


def test_a_recorded_recipe_can_be_run_without_the_sets_or_without_wise_ft() -> None:
    CLIPFinetuningConfig(rehearsal_strength=0.0)
    CLIPFinetuningConfig(wise_ft_alpha=0.5, wise_ft_batch_norm="recompute")
    whole = CLIPFinetuningConfig(retention_data=["a"], wise_ft_alpha="auto", max_forgetting=0.1).to_dict()
    assert CLIPFinetuningConfig(**whole | {"wise_ft": False}).wise_ft is False
    CLIPFinetuningConfig(**whole | {"retention_data": None, "wise_ft_alpha": None})
    with pytest.raises(ConfigurationError, match="contradict each other"):
        CLIPFinetuningConfig(**whole | {"wise_ft": False, "wise_ft_alpha": 0.5})


@pytest.mark.parametrize(
    ("fresh", "given", "resolved"),
    [
        (False, {}, {"rehearsal_strength": 10.0, "wise_ft": True, "wise_ft_alpha": "auto"}),
        (True, {}, {"rehearsal_strength": 0.0, "wise_ft": False, "wise_ft_alpha": None}),
        (True, {"wise_ft": True}, {"rehearsal_strength": 0.0, "wise_ft": True, "wise_ft_alpha": "auto"}),
        (False, {"wise_ft": False, "wise_ft_alpha": "auto"}, {"wise_ft": False, "wise_ft_alpha": None}),
    ],
)
def test_random_projections_are_no_end_to_go_back_to(fresh: bool, given: dict, resolved: dict) -> None:
    draft = Draft.of(CLIPFinetuningConfig(retention_data=["a"], **given), load_domain("general"))
    resolve_reference_sets(draft, fresh)
    values, reasons = draft.values, {each.key: each.reason for each in draft.decisions}
    assert {key: values[key] for key in resolved} == resolved
    assert ("random numbers" in reasons.get("wise_ft", "")) == (fresh and not given)


def test_one_reference_set_needs_no_list() -> None:
    assert CLIPFinetuningConfig(retention_data="a/b").retention_data == ["a/b"]
    assert CLIPFinetuningConfig(wise_ft_alpha=0.5).wise_ft_alpha == 0.5

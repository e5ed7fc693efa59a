"""Projections before towers: locks, chance, and whole trainings with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import CommandResult
from domainclip.config import CLIPFinetuningConfig
from domainclip.data.records import ImageTextPair
from domainclip.errors import ConfigurationError
from domainclip.models import make_tiny_clip
from domainclip.models.lora import attach_lora
from domainclip.resolve import DataFacts, ModelFacts, resolve
from domainclip.tracking import read_rows
from domainclip.training import Validation
from domainclip.training.probe.fit import ProbeRestraint
from domainclip.training.probe.stages import HALF_WAY, chosen_fraction
from probe_cases import fitted, make_probe, read, surprise
from tiny_data import TinyData
from training_setup import make_trainer, same, train_until, weights

pytestmark = pytest.mark.slow

# --- locks and adapters ---


def test_a_locked_tower_keeps_its_projection(tiny_data: TinyData) -> None:
    encoder = make_tiny_clip()
    encoder.lock("text")
    before = encoder.model.text_projection.weight.clone()
    first = make_probe(encoder, tiny_data.pairs(), tiny_data.pairs("val"))
    assert {name for name, _ in first.trained_parameters()} == {"logit_scale", "visual_projection.weight"}
    fitted(first)
    assert torch.equal(encoder.model.text_projection.weight, before)
    encoder.lock("image")
    assert make_probe(encoder, tiny_data.pairs()).read() == "both projections are locked"


@pytest.mark.parametrize("targets", [None, ["q_proj", "visual_projection"]])
def test_adapters_of_towers_stay_and_those_of_projections_learn(targets: list[str] | None, tiny_data: TinyData) -> None:
    pytest.importorskip("peft")
    encoder = make_tiny_clip()
    attach_lora(encoder, CLIPFinetuningConfig(lora_r=2, target_modules=targets), 0)
    first = make_probe(encoder, tiny_data.pairs(), tiny_data.pairs("val"))
    names = {name for name, _ in first.trained_parameters()}
    if targets is None:
        assert names == {"logit_scale", "visual_projection.weight", "text_projection.weight"}
    else:
        adapters = {f"visual_projection.lora_{part}.default.weight" for part in "AB"}
        assert names == {"logit_scale", "text_projection.weight", *adapters}
    before = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    reading = read(first)
    unfitted = surprise(reading)
    reading.fit(reading.training, reading.choose().effort)
    after = encoder.model.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} <= names
    assert surprise(reading) < unfitted


# --- chance ---


def test_it_depends_on_the_seed_alone(tiny_data: TinyData) -> None:
    def once(state: int, seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(state)
        encoder = make_tiny_clip(attention_dropout=0.1)
        random = torch.get_rng_state()
        fitted(make_probe(encoder, tiny_data.pairs(), seed=seed, probe_steps=5))
        assert torch.equal(torch.get_rng_state(), random)
        return dict(encoder.state_dict())

    assert same(once(1, 42), once(2, 42))
    assert not same(once(1, 42), once(1, 43))


def test_a_pass_shows_every_row_once(tiny_data: TinyData) -> None:
    rows = read(make_probe(make_tiny_clip(), tiny_data.pairs())).rows
    some = torch.tensor([3, 5, 7, 9, 11, 13, 15])
    draws = list(rows.batches(some, 3, 4, torch.Generator().manual_seed(0)))
    assert [len(draw.images) for draw in draws] == [3] * 4
    first, second = (torch.cat([draw.images for draw in part]) for part in (draws[:2], draws[2:]))
    assert len(set(first.tolist())) == 6 and set(first.tolist()) | set(second.tolist()) <= set(some.tolist())
    assert all(torch.equal(draw.classes, rows.classes[draw.images]) for draw in draws)
    assert all(torch.equal(draw.texts, rows.first_texts[draw.images]) for draw in draws)


# --- in a training ---


def with_probe(pairs: Sequence[ImageTextPair], val: Sequence[ImageTextPair], folder: Path, **values: Any) -> Any:
    trainer = make_trainer(pairs, folder, save_steps=1, **values)
    trainer.probes.probe, trainer.probes.first = make_probe(trainer.encoder, pairs, val, probe_steps=6), True
    return trainer


@pytest.mark.parametrize("stop_at", [0, 2])
def test_a_killed_run_ends_as_a_whole_one(tiny_data: TinyData, tmp_path: Path, stop_at: int) -> None:
    """Before the first checkpoint the projections are trained again, after it they are not."""
    pairs, val = tiny_data.pairs(), tiny_data.pairs("val")
    whole = with_probe(pairs, val, tmp_path / "whole")
    whole.train()
    plain = make_trainer(pairs, tmp_path / "plain")
    plain.train()
    assert not same(weights(whole), weights(plain))
    broken = with_probe(pairs, val, tmp_path / "broken")
    train_until(broken, stop_at)
    torch.manual_seed(999)
    again = with_probe(pairs, val, tmp_path / "broken")
    calls: list[int] = []
    read = again.probes.probe.read

    def counted(progress: object = None) -> object:
        calls.append(1)
        return read()

    again.probes.probe.read = counted
    result = again.train(resume=True)
    assert result.resumed_from == stop_at and len(calls) == (stop_at == 0)
    assert same(weights(again), weights(whole))
    rows = read_rows(tmp_path / "broken" / "metrics.jsonl")
    assert sum("probe_rows" in row for row in rows) == 1
    assert {**result.probe_first, "seconds": 0} == {**whole.state.probe_first, "seconds": 0}


@pytest.mark.parametrize(("last", "kept"), [(False, 2), (True, 0)])
def test_towers_replace_the_probe_by_validations_only_where_nothing_else_chooses(
    tiny_data: TinyData, tmp_path: Path, last: bool, kept: int
) -> None:
    """Every validation has a standard error of .1: the latest that is within one of the best is kept."""
    values = iter([0.8, 0.95, 0.86, 0.79])
    trainer = with_probe(
        tiny_data.pairs(),
        (),
        tmp_path,
        validate=lambda: Validation({"acc": next(values)}, "acc", True, 0.1),
        eval_steps=1,
        max_steps=3,
    )
    trainer.validator.chosen_later = last
    result = trainer.train()
    assert result.steps == 3 and next(values, None) is None
    assert result.best["step"] == kept


def test_a_run_goes_on_where_projections_are_left_out(tiny_data: TinyData, tmp_path: Path) -> None:
    trainer = with_probe(
        tiny_data.pairs(), (), tmp_path, num_epochs=1, validate=lambda: Validation({"acc": 0.5}, "acc", True, 0.1)
    )
    trainer.probes.probe.read = lambda progress: "for a test"
    result = trainer.train()
    assert result.best is not None and result.best["step"] == 3
    assert result.probe_first == {"skipped": "for a test", "said": "Probe first: left out (for a test)"}


def test_only_the_first_process_trains_the_projections(tiny_data: TinyData, tmp_path: Path) -> None:
    class Beside:
        """The second of two processes, as far as the projections are concerned: the first one's result, and its
        weights."""

        is_first = False

        def __init__(self) -> None:
            self.shared: list[Any] = []

        def on_first(self, work: Callable[[], Any]) -> dict[str, Any]:
            return {"probe_first": {"skipped": "by the first"}}

        def broadcast_state(self, *modules: Any) -> None:
            self.shared += modules

    trainer = with_probe(tiny_data.pairs(), (), tmp_path)
    trainer.context.processes = Beside()
    before = weights(trainer)
    assert not trainer.probes.begin()
    assert trainer.context.processes.shared == [trainer.encoder]
    assert same(before, weights(trainer))


# --- which towers ---


@pytest.mark.parametrize(
    ("frozen", "trained", "expected"),
    [
        ([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], HALF_WAY),
        ([0.1, 0.1, 0.1, -0.1], [0.3, 0.3, 0.3, 0.3], 1.0),  # both clearly, the latter more
        ([-0.1, -0.2, -0.1, -0.2], [0.5, -0.4, 0.3, -0.3], HALF_WAY),  # by less than its standard error
        ([0.3, 0.2, 0.3, 0.2], [-0.5, -0.4, -0.3, -0.3], 0.0),
    ],
)
def test_half_way_is_left_for_a_clear_gain_alone(frozen: list[float], trained: list[float], expected: float) -> None:
    middle = [1.0, 0.5, 0.7, 0.2]
    surprises = {
        fraction: [value - gain for value, gain in zip(middle, gains, strict=True)]
        for fraction, gains in ((0.0, frozen), (HALF_WAY, [0.0] * 4), (1.0, trained))
    }
    found, why = chosen_fraction(surprises)
    assert found == expected and "4 held-out answers" in why and "frozen" in why
    # Answers of other rows are not compared with these.
    found, why = chosen_fraction({**surprises, 0.0: [0.0] * 3})
    assert found == (1.0 if min(trained) > 0 else HALF_WAY) and "frozen" not in why


# --- what holds it near the start ---


@pytest.mark.parametrize("held", [{"l2sp_strength": 100.0}, {"distillation_strength": 1000.0}])
def test_what_holds_the_towers_holds_the_projections(tiny_data: TinyData, held: dict[str, float]) -> None:
    def moved(**values: float) -> tuple[float, float]:
        """How far the weights and the embeddings of the clean images went, relative to their size."""
        encoder = make_tiny_clip(3)
        train = make_probe(encoder, tiny_data.pairs(), **values)
        weight = encoder.model.visual_projection.weight.detach().clone()
        images = torch.stack([train.data.clean(row) for row in range(18)]).float()
        with torch.no_grad():
            start = encoder.eval().encode_image(images)
            fitted(train)
            end = encoder.eval().encode_image(images)
        distance = (encoder.model.visual_projection.weight.detach() - weight).norm() / weight.norm()
        return float(distance), float(1 - torch.nn.functional.cosine_similarity(start, end).mean())

    free, kept = moved(), moved(**held)
    assert free[0] > 0.1
    assert free[1] > 0.01
    assert kept[0 if "l2sp_strength" in held else 1] < free[0 if "l2sp_strength" in held else 1] / 20


def test_the_two_terms_are_their_definitions(tiny_data: TinyData) -> None:
    encoder = make_tiny_clip(3)
    train = make_probe(encoder, tiny_data.pairs())
    rows = read(train).rows
    parameters = train.trained_parameters()
    restraint = ProbeRestraint(parameters, rows, l2sp=3.0, distillation=5.0)
    (batch,) = rows.batches(torch.arange(18), 7, 1, torch.Generator().manual_seed(0))
    start = rows.images.embed(batch.images).detach(), rows.texts.embed(batch.texts).detach()
    before = {name: parameter.detach().clone() for name, parameter in parameters}
    with torch.no_grad():
        for _, parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 10)
    now = rows.images.embed(batch.images), rows.texts.embed(batch.texts)
    squares = sum(
        float((moved - before[name]).detach().square().sum()) for name, moved in parameters if name != "logit_scale"
    )
    cosines = [torch.nn.functional.cosine_similarity(a, b).mean() for a, b in zip(now, start, strict=True)]
    expected = 0.5 * 3.0 * squares + 0.5 * 5.0 * float(2 - cosines[0].detach() - cosines[1].detach())
    assert restraint(batch, *now).item() == pytest.approx(expected, rel=1e-5)


# --- what is decided, and the command ---


@pytest.mark.parametrize(
    ("values", "classes", "message"),
    [
        ({"classification_weight": 2.0}, 0, "needs rows of two classes"),
        ({"class_balance": True}, 1, "needs rows of two classes"),
        ({"class_balance": True, "probe_first": False}, 3, "read by probe_first and probe_last alone"),
    ],
)
def test_keys_that_nothing_would_read_are_refused(values: dict[str, Any], classes: int, message: str) -> None:
    model = ModelFacts(32, 77, False, "transformer", "transformer", 0.07)
    data = DataFacts(300, 0.5, 1.0 if classes else 0.0, classes, False, 2)
    with pytest.raises(ConfigurationError, match=message):
        resolve(CLIPFinetuningConfig(**values), model, data)


@pytest.mark.parametrize(
    ("rows", "fresh", "expected"),
    [
        (300, False, (True, True)),
        (4999, False, (True, True)),
        (5000, False, (False, False)),
        (300, True, (True, True)),
        (90_000, True, (True, False)),
    ],
)
def test_what_is_left_unset_is_decided_with_a_reason(rows: int, fresh: bool, expected: tuple[bool, bool]) -> None:
    model = ModelFacts(32, 77, False, "transformer", "transformer", 0.07, fresh_projections=fresh)
    data = DataFacts(rows, 0.5, 1.0, 3, False, 2)
    run = resolve(CLIPFinetuningConfig(), model, data)
    recipe, decisions = run.recipe, list(run.decisions)
    assert (recipe.probe_first, recipe.probe_last) == expected
    assert {decision.key: decision.reason for decision in decisions}["probe_first"]
    assert not resolve(CLIPFinetuningConfig(probe_first=False), model, data).recipe.probe_first


def test_a_run_says_what_the_projections_came_to(
    tiny_data: TinyData, tmp_path: Path, domainclip: Callable[..., CommandResult]
) -> None:
    folder = tmp_path / "run"
    result = domainclip(
        "train",
        "--data",
        tiny_data.folder,
        "--output",
        folder,
        "model_name=tiny",
        "num_epochs=1",
        "device=cpu",
        "probe_steps=20",
    )
    assert result.exit_code == 0, result.err
    assert "Probe first: 18 rows" in result.out + result.err
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["step"] == 0]
    assert any("probe_surprise" in row for row in rows) and any("val_acc1" in row for row in rows)

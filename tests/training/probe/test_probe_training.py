"""Projections before towers: locks, chance, and whole trainings with them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import CommandResult
from domainclip.config import CLIPFinetuningConfig
from domainclip.data.records import ImageTextPair
from domainclip.errors import ConfigurationError
from domainclip.inference.prompts import class_prompts
from domainclip.models import make_tiny_clip
from domainclip.models.lora import attach_lora
from domainclip.resolve import DataFacts, ModelFacts, resolve
from domainclip.tracking import read_metrics
from domainclip.training import Validation
from domainclip.training.probe.draws import ClassPrompts, PairDraws
from domainclip.training.probe.features import FeatureReader
from domainclip.training.probe.probe import Probed, ProbeRestraint
from probe_cases import CPU, dataset, make_probe
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
    first()
    assert torch.equal(encoder.model.text_projection.weight, before)
    encoder.lock("image")
    assert make_probe(encoder, tiny_data.pairs())() == Probed({"skipped": "both projections are locked"}, {})


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
    reported = first().outcome
    after = encoder.model.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} <= names
    assert reported["loss"] < reported["loss_before"]


# --- chance ---


def test_it_depends_on_the_seed_alone(tiny_data: TinyData) -> None:
    def once(state: int, seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(state)
        encoder = make_tiny_clip(attention_dropout=0.1)
        random = torch.get_rng_state()
        make_probe(encoder, tiny_data.pairs(), seed=seed, probe_steps=5)()
        assert torch.equal(torch.get_rng_state(), random)
        return dict(encoder.state_dict())

    assert same(once(1, 42), once(2, 42))
    assert not same(once(1, 42), once(1, 43))


def test_classes_are_drawn_equally_often_where_that_is_asked(tiny_data: TinyData) -> None:
    encoder = make_tiny_clip()
    pairs = [pair for pair in tiny_data.pairs() if pair.label == "brick"][:1]
    pairs += [pair for pair in tiny_data.pairs() if pair.label != "brick"]
    data = dataset(pairs, encoder)
    reader = FeatureReader(encoder, CPU, contextlib.nullcontext, 64)
    classes = ClassPrompts.read(reader, class_prompts(["brick", "grass", "sky"]), data)
    draws = PairDraws.read(reader, data, range(len(pairs)), 1, classes)
    generator = torch.Generator().manual_seed(0)
    seen: Counter[int] = Counter()
    for _ in range(300):
        seen.update(draws.draw(13, True, generator).classes.tolist())
    assert all(abs(seen[label] / 3900 - 1 / 3) < 0.04 for label in range(3))
    plain = draws.draw(13, False, generator)
    assert Counter(plain.classes.tolist()) == {0: 1, 1: 6, 2: 6}
    assert sorted((plain.images % 13).tolist()) == list(range(13))
    shown = {data.texts[text] for text in data.shown_texts(0)}
    assert shown == {pairs[0].caption}


# --- in a training ---


def with_probe(pairs: Sequence[ImageTextPair], val: Sequence[ImageTextPair], folder: Path, **values: Any) -> Any:
    trainer = make_trainer(pairs, folder, save_steps=1, **values)
    trainer.probes.first = make_probe(trainer.encoder, pairs, val, probe_steps=6)
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
    train_probe = again.probes.first

    def counted(progress: object = None) -> Probed:
        calls.append(1)
        return train_probe()

    again.probes.first = counted
    result = again.train(resume=True)
    assert result.resumed_from == stop_at and len(calls) == (stop_at == 0)
    assert same(weights(again), weights(whole))
    rows = read_metrics(tmp_path / "broken" / "metrics.jsonl")
    assert sum("probe_rows" in row for row in rows) == 1
    assert {**result.probe_first, "seconds": 0} == {**whole.state.probe_first, "seconds": 0}


@pytest.mark.parametrize(
    ("later", "kept"),
    [
        ([0.74, 0.7, 0.6], 0),
        ([0.82, 0.7, 0.7], 0),
        ([0.91, 0.7, 0.7], 0),  # one good epoch early on
        ([0.91, 0.92, 0.7, 0.7, 0.7, 0.7], 2),
        ([0.89, 0.95, 0.91, 0.7, 0.7, 0.7], 3),
        ([0.7, 0.7, 0.91, 0.89, 0.7, 0.7], 4),  # from the middle on each speaks for itself
        ([0.99, 0.7, 0.81, 0.82, 0.81, 0.82], 6),  # one good epoch early on does not bar what is better than the probe
        ([0.7, 0.79, 0.79], 0),
        ([0.7, 0.8, 0.79], 2),
        ([0.95, 0.86, 0.79], 2),
        ([0.81, 0.9, 0.86], 3),
    ],
)
def test_trained_towers_must_do_as_well_as_the_projections(
    tiny_data: TinyData, tmp_path: Path, later: list[float], kept: int
) -> None:
    """The probe's model has .80; every validation has a standard error of .1. In the first half of the training the
    towers must be better by that, twice in a row, later as good."""
    values = iter([0.8, *later])

    def validate() -> Validation:
        return Validation({"acc": next(values)}, "acc", True, 0.1)

    trainer = with_probe(tiny_data.pairs(), (), tmp_path, validate=validate, eval_steps=1, max_steps=len(later))
    result = trainer.train()
    assert result.steps == len(later) and next(values, None) is None
    assert result.best["step"] == kept
    assert result.probe_first["validation"] == 0.8


@pytest.mark.parametrize(
    ("scores", "patience", "steps"),
    [
        ([0.8, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7], 2, 2),  # never past the probe
        ([0.8, 0.7, 0.81, 0.7, 0.7, 0.7, 0.7], 2, 4),  # a little better, but not kept in the first half
        ([0.8, 0.95, 0.7, 0.7, 0.7, 0.7, 0.7], 2, 3),  # one good epoch
        ([0.8, 0.92, 0.95, 0.7, 0.7, 0.7, 0.7], 2, 6),  # kept in place of the probe: the schedule's end is waited for
        ([0.8, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7], 0, 6),
    ],
)
def test_a_training_that_does_not_get_past_the_projections_ends(
    tiny_data: TinyData, tmp_path: Path, scores: list[float], patience: int, steps: int
) -> None:
    values = iter(scores)

    def validate() -> Validation:
        return Validation({"acc": next(values)}, "acc", True, 0.1)

    options = {"validate": validate, "eval_steps": 1, "max_steps": 6, "num_epochs": 2, "probe_patience": patience}
    result = with_probe(tiny_data.pairs(), (), tmp_path, **options).train()
    assert (result.steps, result.stopped_early) == (steps, steps < 6)
    # Resumed where it has ended: it stays ended.
    values = iter([0.99] * 6)
    assert with_probe(tiny_data.pairs(), (), tmp_path, **options).train(resume=True).steps == steps


def test_a_run_goes_on_where_projections_are_left_out(tiny_data: TinyData, tmp_path: Path) -> None:
    trainer = make_trainer(
        tiny_data.pairs(), tmp_path, num_epochs=1, validate=lambda: Validation({"acc": 0.5}, "acc", True, 0.1)
    )
    trainer.probes.first = lambda progress: Probed({"skipped": "for a test"}, {})  # type: ignore[assignment, return-value]
    result = trainer.train()
    assert result.best is not None and result.best["step"] == 3
    assert result.probe_first == {"skipped": "for a test"}


def test_only_the_first_process_trains_the_projections(tiny_data: TinyData, tmp_path: Path) -> None:
    class Beside:
        """The second of two processes, as far as the projections are concerned: the first one's result, and its
        weights."""

        is_first = False

        def __init__(self) -> None:
            self.shared: list[Any] = []

        def on_first(self, work: Callable[[], Any]) -> Probed:
            return Probed({"skipped": "by the first"}, {})

        def broadcast_state(self, *modules: Any) -> None:
            self.shared += modules

    trainer = with_probe(tiny_data.pairs(), (), tmp_path)
    trainer.context.processes = Beside()
    before = weights(trainer)
    trainer.probes.begin()
    assert trainer.context.processes.shared == [trainer.encoder]
    assert same(before, weights(trainer))


# --- what holds it near the start ---


@pytest.mark.parametrize("held", [{"l2sp_strength": 100.0}, {"distillation_strength": 1000.0}])
def test_what_holds_the_towers_holds_the_projections(tiny_data: TinyData, held: dict[str, float]) -> None:
    def moved(**values: float) -> tuple[float, float]:
        """How far the weights and the embeddings of the clean images went, relative to their size."""
        encoder = make_tiny_clip(3)
        train = make_probe(encoder, tiny_data.pairs(), **values)
        weight = encoder.model.visual_projection.weight.detach().clone()
        images = torch.stack([train.data.pixels(row) for row in range(18)]).float()
        with torch.no_grad():
            start = encoder.eval().encode_image(images)
            train()
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
    draws = PairDraws.read(train.reader, train.data, range(18), 1, None)
    parameters = train.trained_parameters()
    restraint = ProbeRestraint(parameters, draws, l2sp=3.0, distillation=5.0)
    batch = draws.draw(7, False, torch.Generator().manual_seed(0))
    start = draws.images.embed(batch.images).detach(), draws.texts.embed(batch.texts).detach()
    before = {name: parameter.detach().clone() for name, parameter in parameters}
    with torch.no_grad():
        for _, parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 10)
    now = draws.images.embed(batch.images), draws.texts.embed(batch.texts)
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
    ("rows", "fresh", "imbalance", "expected"),
    [
        (300, False, 1.0, (True, False)),
        (4999, False, 40.0, (True, False)),
        (5000, False, 40.0, (False, False)),
        (90_000, True, 3.0, (True, False)),
    ],
)
def test_what_is_left_unset_is_decided_with_a_reason(
    rows: int, fresh: bool, imbalance: float, expected: tuple[bool, bool]
) -> None:
    model = ModelFacts(32, 77, False, "transformer", "transformer", 0.07, fresh_projections=fresh)
    data = DataFacts(rows, 0.5, 1.0, 3, False, 2, class_imbalance=imbalance)
    run = resolve(CLIPFinetuningConfig(), model, data)
    recipe, decisions = run.recipe, list(run.decisions)
    assert (recipe.probe_first, recipe.class_balance) == expected
    reasons = {decision.key: decision.reason for decision in decisions}
    assert reasons["probe_first"]
    assert ("class_balance" in reasons) == (recipe.probe_first and imbalance > 20)
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
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row["step"] == 0]
    assert any("probe_loss" in row for row in rows) and any("val_acc1" in row for row in rows)

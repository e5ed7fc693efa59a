"""Projections once more after the towers: what is kept, and what is forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import CommandResult
from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import ConfigurationError, ShapeError
from domainclip.models import make_tiny_clip
from domainclip.models.io import load_weights
from domainclip.resolve import DataFacts, ModelFacts, resolve
from domainclip.tracking import read_rows
from domainclip.training import Trainer, Validation
from domainclip.training.probe import stages
from domainclip.training.probe.fit import Effort
from domainclip.training.probe.held_out import calibrated_surprise
from probe_cases import fitted, make_probe, read
from tiny_data import TinyData
from training_setup import make_trainer, same, train_until, weights

pytestmark = pytest.mark.slow

STEPS = 6
EFFORT: dict[str, Any] = {"probe_steps": 10, "probe_learning_rate": 1e-2}


def scored(values: Iterable[float]) -> Callable[[], Validation]:
    """One score for each validation; of "nan" the error that scores which are not finite raise."""
    left = iter(values)

    def validate() -> Validation:
        value = next(left)
        if value != value:
            raise ShapeError("image embeddings contain NaN")
        return Validation({"acc": value}, "acc", True, 0.0)

    return validate


def with_probe(tiny_data: TinyData, folder: Path, scores: Iterable[float] | None, **values: Any) -> Trainer:
    """Six steps, validated after each where there are scores, then the projections."""
    pairs = tiny_data.pairs()
    validate = scored(scores) if scores is not None else None
    trainer = make_trainer(pairs, folder, validate=validate, eval_steps=1, save_steps=1, **values)
    trainer.probes.probe = make_probe(trainer.encoder, pairs, (), **EFFORT)
    trainer.probes.last = scores is not None
    return trainer


def plain(tiny_data: TinyData, folder: Path, **values: Any) -> Trainer:
    trainer = make_trainer(tiny_data.pairs(), folder, **values)
    trainer.train()
    return trainer


def of_projections(trainer: Trainer) -> set[str]:
    assert trainer.probes.probe is not None
    return {f"model.{name}" for name, _ in trainer.probes.probe.trained_parameters()}


def kept_in(folder: Path) -> dict[str, torch.Tensor]:
    encoder = make_tiny_clip(attention_dropout=0.1)
    load_weights(encoder, folder / "best")
    return encoder.state_dict()


@pytest.mark.parametrize("ema_fraction", [0.0, 0.5])
def test_the_towers_stay_and_the_projections_are_what_they_become_on_them(
    tiny_data: TinyData, tmp_path: Path, ema_fraction: float
) -> None:
    trainer = with_probe(tiny_data, tmp_path / "a", [0.5] * 6 + [0.5], ema_fraction=ema_fraction)
    result = trainer.train()
    before = plain(tiny_data, tmp_path / "b", ema_fraction=ema_fraction)
    found, was = weights(trainer), weights(before)
    assert {name for name in found if not torch.equal(found[name], was[name])} == of_projections(trainer)
    # The same by hand, on the model that the plain training ended with, from the projections that it began with.
    assert trainer.probes.probe is not None
    by_hand = make_probe(before.encoder, tiny_data.pairs(), (), **EFFORT)
    by_hand.initial = trainer.probes.probe.initial
    fitted(by_hand)
    assert same(weights(before), found) and same(kept_in(tmp_path / "a"), found)
    assert result.best == {"step": STEPS, "metric": "acc", "value": 0.5, "all": {"acc": 0.5}}
    reported = result.probe_last
    assert reported is not None and (reported["kept"], reported["validation"], reported["rows"]) == (True, 0.5, 18)
    rows = read_rows(tmp_path / "a" / "metrics.jsonl")
    assert [row["probe_last_kept"] for row in rows if "probe_last_kept" in row] == [True]


@pytest.mark.parametrize("fit_validation_rows", [False, True])
@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_the_result_is_what_was_chosen_of_frozen_half_way_and_trained_towers(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fraction: float, fit_validation_rows: bool
) -> None:
    """Projections before and after; by hand: towers of that fraction, and a fit to the same rows from the start."""
    asked: list[dict[float, list[float]]] = []

    def choose(surprises: dict[float, list[float]]) -> tuple[float, str]:
        asked.append(surprises)
        return fraction, "by a test"

    monkeypatch.setattr(stages, "chosen_fraction", choose)
    train, val = tiny_data.pairs(), tiny_data.pairs("val")
    trainer = make_trainer(train, tmp_path / "a", validate=scored([0.5] * 8), eval_steps=1, save_steps=1)
    start = {name: value.clone() for name, value in trainer.encoder.model.state_dict().items()}
    both = {"probe_first": True, "probe_last": True}
    trainer.probes.probe = make_probe(trainer.encoder, train, val, **EFFORT, **both)
    trainer.probes.first = trainer.probes.last = trainer.validator.chosen_later = True  # type: ignore[union-attr]
    trainer.probes.fit_validation_rows = fit_validation_rows
    ends: list[dict[str, torch.Tensor]] = []
    average = trainer.step.average.apply

    def then_remembered() -> None:
        average()
        ends.append({name: value.clone() for name, value in trainer.encoder.model.state_dict().items()})

    monkeypatch.setattr(trainer.step.average, "apply", then_remembered)
    result = trainer.train()
    by_hand = make_tiny_clip(attention_dropout=0.1)
    (end,) = ends
    by_hand.model.load_state_dict(
        {n: (1 - fraction) * v + fraction * end[n] if v.is_floating_point() else v for n, v in start.items()}
    )
    probe = make_probe(by_hand, train, val, **EFFORT)
    probe.initial = trainer.probes.probe.initial
    reading = read(probe)
    rows = torch.arange(24) if fit_validation_rows else reading.training
    reading.fit(rows, Effort(10, 1e-2))
    found, expected = kept_in(tmp_path / "a"), by_hand.state_dict()
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)
    assert result.best is not None and result.best["step"] == (STEPS if fraction else 0)
    assert result.probe_last is not None and result.probe_last["fraction"] == fraction
    assert result.probe_last.get("fitted_rows") == (None if not fraction else 24 if fit_validation_rows else 18)
    # The three are compared on the same six rows, each by projections fitted to the training rows alone.
    (surprises,) = asked
    assert list(surprises) == [0.0, 0.5, 1.0] and {len(nats) for nats in surprises.values()} == {6}
    reading.fit(reading.training, Effort(10, 1e-2))
    held = reading.fit_projections.held_out(torch.arange(18, 24))
    torch.testing.assert_close(
        torch.tensor(surprises[fraction]), calibrated_surprise([held]).float(), atol=2e-4, rtol=0
    )


@pytest.mark.parametrize("last", [0.79, float("nan")])
def test_projections_that_validate_worse_are_forgotten(tiny_data: TinyData, tmp_path: Path, last: float) -> None:
    trainer = with_probe(tiny_data, tmp_path / "a", [0.5, 0.6, 0.8, 0.7, 0.7, 0.7, last])
    result = trainer.train()
    assert same(weights(trainer), weights(plain(tiny_data, tmp_path / "b")))
    assert result.best is not None and (result.best["step"], result.best["value"]) == (3, 0.8)
    assert result.probe_last is not None and not result.probe_last["kept"]
    # What is loaded in the end is the third step's.
    third = make_trainer(tiny_data.pairs(), tmp_path / "c")
    train_until(third, 3)
    assert same(kept_in(tmp_path / "a"), weights(third))


def test_a_disk_that_is_full_costs_the_projections_alone(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = with_probe(tiny_data, tmp_path / "a", [0.5] * 6 + [0.9])
    read: Any = trainer.probes.probe.read  # type: ignore[union-attr]

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    def then_full(progress: object = None) -> Any:
        monkeypatch.setattr("domainclip.training.validation.save_encoder", full)
        return read()

    trainer.probes.probe.read = then_full  # type: ignore
    result = trainer.train()
    assert any("No space left" in warning for warning in result.warnings)
    assert same(weights(trainer), weights(plain(tiny_data, tmp_path / "b")))
    assert result.best is not None and result.best["value"] == 0.5


def test_a_run_killed_while_the_projections_learn_ends_as_a_whole_one(tiny_data: TinyData, tmp_path: Path) -> None:
    scores = [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6]
    whole = with_probe(tiny_data, tmp_path / "a", scores)
    expected = whole.train()
    broken = with_probe(tiny_data, tmp_path / "b", scores)

    def killed(progress: object = None) -> dict[str, Any]:
        raise KeyboardInterrupt

    broken.probes.probe.read = killed  # type: ignore
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    for _ in range(2):  # and once more after it has ended
        again = with_probe(tiny_data, tmp_path / "b", [0.6])
        result = again.train(resume=True)
        assert result.resumed_from == STEPS and same(weights(again), weights(whole))
        assert result.best == expected.best and same(kept_in(tmp_path / "b"), weights(whole))
        rows = read_rows(tmp_path / "b" / "metrics.jsonl")
        assert sum("probe_last_rows" in row for row in rows) == 1


def test_without_a_validation_or_a_step_nothing_is_done(tiny_data: TinyData, tmp_path: Path) -> None:
    trainer = with_probe(tiny_data, tmp_path / "a", None)
    assert trainer.train().probe_last is None
    assert same(weights(trainer), weights(plain(tiny_data, tmp_path / "b")))
    trainer = with_probe(tiny_data, tmp_path / "c", [])
    trainer.probes.end()
    assert trainer.state.probe_last is None


def test_the_other_processes_take_what_the_first_has_found(tiny_data: TinyData, tmp_path: Path) -> None:
    found = {"best": {"step": 6}, "probe_last": {"kept": True}, "skipped_images": {}, "warnings": ["reported"]}

    class Beside:
        def __init__(self) -> None:
            self.shared: list[Any] = []

        def on_first(self, work: Callable[[], Any]) -> dict[str, Any]:
            return found

        def broadcast_state(self, *modules: Any) -> None:
            self.shared += modules

    trainer = with_probe(tiny_data, tmp_path, [])
    trainer.context.processes, trainer.state.step = Beside(), STEPS  # type: ignore[assignment]
    before = weights(trainer)
    trainer.probes.end()
    assert {name: getattr(trainer.state, name) for name in found} == found
    assert trainer.context.processes.shared == [trainer.encoder] and same(before, weights(trainer))  # type: ignore


@pytest.mark.parametrize(
    ("values", "expected", "message"),
    [
        ({}, True, "which model is better"),
        ({"probe_first": False}, False, None),
        ({"probe_first": False, "probe_last": True}, True, None),
        ({"probe_last": False}, False, None),
        ({"l2sp_strength": 0.1}, False, "l2sp_strength holds the projections"),
        ({"distillation_strength": 0.1}, False, "distillation_strength holds the projections"),
    ],
)
def test_what_is_decided(values: dict[str, Any], expected: bool, message: str | None) -> None:
    model = ModelFacts(32, 77, False, "transformer", "transformer", 0.07)
    run = resolve(CLIPFinetuningConfig(**values), model, DataFacts(300, 0.5, 1.0, 3, False, 2))
    recipe, decisions = run.recipe, list(run.decisions)
    assert recipe.probe_last is expected
    reasons = [decision.reason for decision in decisions if decision.key == "probe_last"]
    assert len(reasons) == (message is not None) and all(message in reason for reason in reasons if message)


def test_what_is_held_near_the_start_is_not_fitted_anew() -> None:
    model = ModelFacts(32, 77, False, "transformer", "transformer", 0.07)
    with pytest.raises(ConfigurationError, match="probe_last=true does not go with l2sp_strength"):
        resolve(CLIPFinetuningConfig(probe_last=True, l2sp_strength=1.0), model, DataFacts(300, 0.5, 1.0, 3, False, 2))


def test_a_run_tells_and_saves_it(
    tiny_data: TinyData, tmp_path: Path, domainclip: Callable[..., CommandResult]
) -> None:
    """Alone, without the probe first; and the saved model is the one that is reported."""
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
        "probe_first=false",
        "probe_last=true",
        "probe_steps=20",
    )
    assert result.exit_code == 0, result.err
    message = result.out + result.err
    assert "Probe last: 18 rows, trained towers, validation acc1" in message and "Probe first" not in message
    rows = read_rows(folder / "metrics.jsonl")
    (reported,) = [row for row in rows if "probe_last_kept" in row]
    last = [row["val_acc1"] for row in rows if "val_acc1" in row][-1]
    assert reported["probe_last_kept"] == (reported["probe_last_validation"] >= last)

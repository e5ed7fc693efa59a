"""Listeners: they hear everything, and none can end or hold up a run but by ``StopRun``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from domainclip import events
from domainclip.config import CLIPFinetuningConfig
from domainclip.data.records import ImageTextPair
from domainclip.errors import InputTypeError
from domainclip.events import (
    CheckpointSaved,
    Emitter,
    Event,
    ImageSkipped,
    InitialValidated,
    Listener,
    Noted,
    PhaseFinished,
    PhaseProgress,
    PhaseStarted,
    RunFinished,
    RunStarted,
    StepLogged,
    StopRun,
    Validated,
    Warned,
)
from domainclip.pipelines import run_training
from domainclip.pipelines.controller import CLIPFinetuningController
from domainclip.reports.schema import RunReport
from domainclip.tracking import read_rows
from domainclip.training import Validation
from probe_cases import make_probe
from tiny_data import TinyData
from training_setup import make_trainer, same, train_until, weights

pytestmark = pytest.mark.slow

STEP = Noted(name="test", step=1)


def test_a_listener_that_raises_is_switched_off_with_one_warning() -> None:
    emitter, heard = Emitter(), []
    calls = []

    def broken(event: Event) -> None:
        calls.append(event)
        raise ValueError("no such page")

    emitter.add(broken)
    emitter.add(heard.append)
    for _ in range(3):
        emitter.emit(STEP)
    assert calls == [STEP]
    (warning,) = [event for event in heard if isinstance(event, Warned)]
    assert "broken failed at Noted (ValueError: no such page)" in warning.text and "switched off" in warning.text
    assert emitter.warnings == [warning.text]
    assert [event for event in heard if event is STEP] == [STEP] * 3


def test_listeners_that_fail_at_the_warning_are_switched_off_too() -> None:
    emitter = Emitter()

    class Broken:
        def __call__(self, event: Event) -> None:
            raise OSError("gone")

    for _ in range(3):
        emitter.add(Broken())
    emitter.emit(STEP)
    assert len(emitter.warnings) == 3
    emitter.emit(STEP)
    assert len(emitter.warnings) == 3


def test_of_two_listeners_that_are_equal_the_one_that_failed_is_switched_off() -> None:
    @dataclass
    class Counter:
        limit: int
        heard: list[Event] = field(default_factory=list, compare=False)

        def __call__(self, event: Event) -> None:
            self.heard.append(event)
            if len(self.heard) > self.limit - (self is second) * 2:
                raise ValueError("full")

    first, second = Counter(3), Counter(3)
    emitter = Emitter()
    for each in (first, second):
        emitter.add(each)
    for _ in range(2):
        emitter.emit(STEP)
    assert first.heard.count(STEP) == 2 and second.heard.count(STEP) == 2
    assert len(emitter.warnings) == 1 and f"{Path(__file__).name}, line " in emitter.warnings[0]
    emitter.emit(STEP)
    assert first.heard.count(STEP) == 2 + 1 and second.heard.count(STEP) == 2


def test_what_cannot_be_called_is_no_listener() -> None:
    async def later(event: Event) -> None: ...

    class Later:
        async def __call__(self, event: Event) -> None: ...

    for listener, what in ((later, "is asynchronous"), (Later(), "is asynchronous"), ("events.log", "is a str")):
        with pytest.raises(InputTypeError, match=what):
            Emitter().add(listener)  # type: ignore[arg-type]


EVENTS = (
    RunStarted,
    PhaseStarted,
    PhaseProgress,
    PhaseFinished,
    StepLogged,
    InitialValidated,
    Validated,
    CheckpointSaved,
    Noted,
    Warned,
    RunFinished,
)


def test_a_listener_that_fails_at_any_event_of_a_run_is_heard_of_once(tiny_data: TinyData, tmp_path: Path) -> None:
    """Switched off from there on, in the evaluation before, the training and the evaluation after; it is named on the
    console's log and in the report, and the run comes to what it comes to without."""

    def run(name: str, *listeners: Listener) -> tuple[bytes, RunReport]:
        config = CLIPFinetuningConfig(
            model_name="tiny",
            data_path=str(tiny_data.folder),
            output_dir=str(tmp_path / name),
            batch_size=6,
            num_epochs=1,
            num_workers=0,
            mixed_precision=False,
            device="cpu",
            logging_steps=1,
        )
        report = run_training(config, console=Console(quiet=True), listeners=listeners).report
        return (tmp_path / name / "model" / "model.safetensors").read_bytes(), report

    plain, expected = run("plain")
    phases = ("evaluation_before", "evaluation_after", "training", "validation")
    cases = [(kind, "") for kind in EVENTS] + [(PhaseStarted, phase) for phase in phases]
    calls: dict[str, list[Event]] = {}

    def broken_at(kind: type, phase: str) -> Listener:
        name = f"broken_at_{kind.__name__}_{phase}"
        calls[name] = []

        def broken(event: Event) -> None:
            if isinstance(event, kind) and getattr(event, "name", phase) == (phase or getattr(event, "name", "")):
                calls[name].append(event)
                raise ValueError("no such page")

        broken.__qualname__ = name
        return broken

    weights_found, report = run("broken", *(broken_at(kind, phase) for kind, phase in cases))
    assert weights_found == plain
    assert report.after == expected.after
    for (kind, _), (name, heard) in zip(cases, calls.items(), strict=True):
        assert len(heard) == 1, name
        told = [text for text in report.warnings if f"The listener {name} failed" in text]
        assert len(told) == 1 and f"at {kind.__name__} (ValueError: no such page)" in told[0], name


def test_a_wish_to_stop_passes_once_all_have_heard() -> None:
    emitter, heard = Emitter(), []

    def stop(event: Event) -> None:
        raise StopRun("enough")

    emitter.add(stop)
    emitter.add(heard.append)
    with pytest.raises(StopRun, match="enough"):
        emitter.emit(STEP)
    assert heard == [STEP]
    with pytest.raises(StopRun):  # it has not been switched off
        emitter.emit(STEP)


def test_a_slow_listener_is_warned_of_once_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(events, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    emitter, heard = Emitter(), []

    def slow(event: Event) -> None:
        heard.append(event)
        clock[0] += 7

    emitter.add(slow)
    emitter.emit(STEP)
    emitter.emit(STEP)
    assert len(emitter.warnings) == 1 and "took 7.0 s" in emitter.warnings[0]
    assert heard.count(STEP) == 2


def test_a_phase_ends_however_it_ends() -> None:
    emitter, heard = Emitter(), []
    emitter.add(heard.append)
    with pytest.raises(ZeroDivisionError), emitter.phase("validation"):
        raise ZeroDivisionError
    assert [type(event) for event in heard] == [PhaseStarted, PhaseFinished]


# --- in a training ---


def test_a_training_tells_everything(tiny_data: TinyData, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    pairs = [*tiny_data.pairs(), ImageTextPair(tmp_path / "broken.png", "a broken one", "sky")]
    heard: list[Event] = []
    trainer = make_trainer(
        pairs, tmp_path / "run", validate=lambda: Validation({"acc": 0.5, "other": 1.0}, "acc", True, 0.1), num_epochs=4
    )
    trainer.probes.probe = make_probe(trainer.encoder, tiny_data.pairs(), (), probe_steps=2)
    trainer.probes.first = True
    trainer.context.emitter.add(heard.append)
    result = trainer.train()
    kinds = [type(event) for event in heard]
    assert kinds[0] is RunStarted and kinds[-1] is RunFinished
    of = {kind: [event for event in heard if isinstance(event, kind)] for kind in set(kinds)}
    steps: list[StepLogged] = of[StepLogged]  # type: ignore[assignment]
    assert [event.step for event in steps] == list(range(1, 13))
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    for event, row in zip(steps, rows, strict=True):
        assert event.metrics["loss"] == row["loss"]
        assert {"image_to_text_loss", "text_to_image_loss"} <= event.metrics.keys()
        assert event.learning_rates[0] == row["learning_rate"] and len(event.learning_rates) > 1
        assert event.gradient_norm == row["grad_norm"] > 0
        assert event.temperature == pytest.approx(1 / row["logit_scale"])
        assert event.samples_per_second is not None and event.samples_per_second > 0 and event.peak_memory_mb > 10
    validated: list[Validated] = of[Validated]  # type: ignore[assignment]
    assert [event.step for event in validated] == [0, 3, 6, 9, 12]
    assert all((event.primary, event.value, event.metrics["other"]) == ("acc", 0.5, 1.0) for event in validated)
    assert [event.step for event in of[CheckpointSaved]] == [2, 4, 6, 8, 10, 12]  # type: ignore[union-attr]
    assert all(Path(event.path).parent.name == "checkpoints" for event in of[CheckpointSaved])  # type: ignore[union-attr]
    assert [event.done for event in of[PhaseProgress]] == list(range(1, 13))  # type: ignore[union-attr]
    (skipped,) = of[ImageSkipped]
    assert isinstance(skipped, ImageSkipped) and skipped.path.endswith("broken.png") and "broken.png" in skipped.reason
    assert [event.name for event in of[Noted] if event.values] == ["probe_first"]  # type: ignore[union-attr]
    phases = [event.name for event in of[PhaseStarted]]  # type: ignore[union-attr]
    assert phases == ["probe_first", "validation", "training", *["validation"] * 4]
    (finished,) = of[RunFinished]
    assert isinstance(finished, RunFinished) and result.best is not None
    assert (finished.steps, finished.train_loss, finished.best_step) == (12, result.train_loss, result.best["step"])


def test_listeners_change_nothing_that_is_learned(tiny_data: TinyData, tmp_path: Path) -> None:
    def broken(event: Event) -> None:
        raise OSError("gone")

    plain = make_trainer(tiny_data.pairs(), tmp_path / "plain")
    plain.train()
    trainer = make_trainer(tiny_data.pairs(), tmp_path / "listened")
    trainer.context.emitter.add(broken)
    result = trainer.train()
    assert same(weights(trainer), weights(plain))
    assert len([text for text in result.warnings if "switched off" in text]) == 1


def test_totals_are_those_of_the_run_over_its_resumptions(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look at the clock is a second later than the one before: times count looks."""
    clock = iter(range(1_000_000))
    monkeypatch.setattr("domainclip.training.trainer.time", SimpleNamespace(monotonic=lambda: float(next(clock))))

    def finished(trainer, **how: bool) -> RunFinished:
        heard: list[Event] = []
        trainer.context.emitter.add(heard.append)
        trainer.train(**how)
        (event,) = [event for event in heard if isinstance(event, RunFinished)]
        return event

    first = make_trainer(tiny_data.pairs(), tmp_path, save_steps=2)
    train_until(first, 4)  # a checkpoint after step 4
    spent = first.state.elapsed, first.state.step_seconds
    assert min(spent) > 0
    again = make_trainer(tiny_data.pairs(), tmp_path, save_steps=2)
    total = finished(again, resume=True)
    assert total.rows_seen == 6 * 6
    assert total.training_time > spent[0] and again.state.step_seconds == pytest.approx(spent[1] * 6 / 4)
    assert total.samples_per_second == pytest.approx(36 / again.state.step_seconds)
    once_more = finished(make_trainer(tiny_data.pairs(), tmp_path, save_steps=2), resume=True)
    assert (once_more.rows_seen, once_more.samples_per_second) == (36, total.samples_per_second)


def test_fine_tune_takes_listeners_and_one_may_stop_it(tiny_data: TinyData, tmp_path: Path) -> None:
    config = CLIPFinetuningConfig(
        model_name="tiny",
        batch_size=6,
        num_epochs=2,
        num_workers=0,
        mixed_precision=False,
        device="cpu",
        probe_first=False,
        probe_last=False,
        eval_steps=2,
    )
    controller = CLIPFinetuningController(config)
    controller.setup()
    heard: list[Event] = []

    def stop(event: Event) -> None:
        if isinstance(event, Validated) and event.step == 4:
            raise StopRun("better stop here")

    with pytest.raises(StopRun, match="better stop here"):
        controller.fine_tune(
            tiny_data.pairs(), tiny_data.pairs("val"), tmp_path / "run", listeners=[heard.append, stop]
        )
    assert [event.step for event in heard if isinstance(event, Validated)] == [2, 3, 4]

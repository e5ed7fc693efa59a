"""The loop: it learns, repeats itself, watches itself, and keeps what was best."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from domainclip.data.records import ImageTextPair
from domainclip.errors import DataError, ShapeError, TrainingDivergedError
from domainclip.inference import EmbeddingEngine
from domainclip.losses import MultiPositiveContrastiveLoss
from domainclip.models import make_tiny_clip
from domainclip.models.io import load_weights
from domainclip.training import Validation
from domainclip.training.guards import check_finite
from domainclip.training.optim.optimizer import rate_factor
from domainclip.training.step.train_step import TrainStep
from tiny_data import TinyData
from training_setup import make_trainer, same, weights

pytestmark = pytest.mark.slow


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_loss_goes_down_and_classes_are_told_apart(tiny_data: TinyData, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_data.pairs(), tmp_path, num_epochs=20, learning_rate=2e-3, logging_steps=1)
    result = trainer.train()
    losses = [row["loss"] for row in rows_of(tmp_path)]
    assert result.steps == len(losses) == 60
    assert sum(losses[-6:]) / 6 < 0.75 * sum(losses[:6]) / 6
    assert result.train_loss == pytest.approx(sum(losses) / len(losses))
    assert result.final_loss == losses[-1]
    # images that were never trained on, each nearest to its own class
    held = tiny_data.pairs("test")
    labels = sorted({pair.label for pair in held})
    engine = EmbeddingEngine(trainer.encoder)
    scores = (
        engine.encode_images([p.image_path for p in held])
        @ engine.encode_texts([f"a texture of {label}" for label in labels]).T
    )
    hits = sum(labels[int(row.argmax())] == pair.label for row, pair in zip(scores, held, strict=True))
    assert hits >= 5


def test_two_runs_are_the_same_run(tiny_data: TinyData, tmp_path: Path) -> None:
    first = make_trainer(tiny_data.pairs(), tmp_path / "a")
    start = weights(first)
    first.train()
    second = make_trainer(tiny_data.pairs(), tmp_path / "b")
    assert same(start, weights(second))
    second.train()
    assert same(weights(first), weights(second))
    assert not same(start, weights(first))
    third = make_trainer(tiny_data.pairs(), tmp_path / "c", seed=43)
    third.train()
    assert not same(weights(first), weights(third))
    losses = [[row["loss"] for row in rows_of(tmp_path / name)] for name in "ab"]
    assert losses[0] == losses[1]


def test_workers_do_not_change_the_numbers(tiny_data: TinyData, tmp_path: Path) -> None:
    alone = make_trainer(tiny_data.pairs(), tmp_path / "alone")
    alone.train()
    helped = make_trainer(tiny_data.pairs(), tmp_path / "helped", num_workers=2)
    helped.train()
    assert same(weights(alone), weights(helped))


def test_metric_rows_are_whole_and_say_what_they_should(tiny_data: TinyData, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_data.pairs(), tmp_path, warmup_steps=2, image_learning_rate=1e-3)
    trainer.train()
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["epoch"] for row in rows] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2], abs=1e-4)
    for row in rows:
        assert row["learning_rate"] == pytest.approx(1e-3 * rate_factor(row["step"] - 1, 2, 6))
        assert row["loss"] == pytest.approx((row["image_to_text_loss"] + row["text_to_image_loss"]) / 2)
        assert 0 < row["embedding_spread"] <= 1
        assert row["grad_norm"] > 0
        assert row["samples_per_second"] > 0
        assert row["peak_memory_mb"] > 10


def test_gradients_are_cut_to_their_norm(tiny_data: TinyData, tmp_path: Path) -> None:
    """With the norm held at almost nothing and AdamW's epsilon far above it, the weights hardly move."""
    moved = {}
    for norm in (1e-9, 1e3):
        trainer = make_trainer(
            tiny_data.pairs(),
            tmp_path / str(norm),
            max_grad_norm=norm,
            adam_epsilon=1e-3,
            weight_decay=0.0,
            max_steps=1,
        )
        before = weights(trainer)
        trainer.train()
        after = weights(trainer)
        moved[norm] = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert moved[1e-9] < 1e-7 < moved[1e3]


class Scores:
    """A validation that answers from a list and remembers the weights it saw."""

    def __init__(self, values: list[float], greater: bool = True, error: float = 0.0) -> None:
        self.values, self.greater, self.error = values, greater, error
        self.trainer = None
        self.seen: list[dict[str, torch.Tensor]] = []

    def __call__(self) -> Validation:
        self.seen.append(weights(self.trainer))
        value = self.values[len(self.seen) - 1]
        return Validation({"acc": value, "other": 1.0}, "acc", self.greater, self.error)


def run_with(scores: Scores, tiny_data: TinyData, folder: Path, **values: object):
    trainer = make_trainer(tiny_data.pairs(), folder, validate=scores, eval_steps=1, **values)
    scores.trainer = trainer
    return trainer, trainer.train()


@pytest.mark.parametrize(
    ("values", "greater", "best"),
    [([0.1, 0.9, 0.3, 0.2, 0.9, 0.1], True, 2), ([5.0, 4.0, 1.0, 3.0, 2.0, 6.0], False, 3)],
)
def test_the_best_weights_are_kept(
    tiny_data: TinyData, tmp_path: Path, values: list[float], greater: bool, best: int
) -> None:
    scores = Scores(values, greater)
    trainer, result = run_with(scores, tiny_data, tmp_path)
    assert result.best is not None
    # of equal values the later one may be kept: it has seen more
    assert values[result.best["step"] - 1] == values[best - 1] == result.best["value"]
    kept = make_tiny_clip(attention_dropout=0.1)
    load_weights(kept, tmp_path / "best")
    assert same(kept.state_dict(), scores.seen[result.best["step"] - 1])
    assert not same(kept.state_dict(), weights(trainer)) or result.best["step"] == 6
    assert json.loads((tmp_path / "best" / "best.json").read_text()) == result.best
    assert [row["val_acc"] for row in rows_of(tmp_path) if "val_acc" in row] == values


def test_validation_leaves_the_training_alone(tiny_data: TinyData, tmp_path: Path) -> None:
    watched, _ = run_with(Scores([0.5] * 6), tiny_data, tmp_path / "a")
    plain = make_trainer(tiny_data.pairs(), tmp_path / "b", eval_steps=1)
    plain.train()
    assert same(weights(watched), weights(plain))


def test_no_early_stopping(tiny_data: TinyData, tmp_path: Path) -> None:
    scores = [0.9, *[0.1] * 5]
    _, result = run_with(Scores(scores), tiny_data, tmp_path, early_stopping_patience=0)
    assert not result.stopped_early
    assert result.best["value"] == 0.9


def test_early_stopping(tiny_data: TinyData, tmp_path: Path) -> None:
    _, result = run_with(Scores([0.5, 0.6, 0.6, 0.2, 0.9, 0.9]), tiny_data, tmp_path, early_stopping_patience=2)
    assert result.stopped_early
    assert result.steps == 4


class Poison(nn.Module):
    """The loss, made non-finite at one step."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.inner, self.at, self.calls = MultiPositiveContrastiveLoss(), at, 0

    def forward(self, *args, **kwargs):
        output = self.inner(*args, **kwargs)
        self.calls += 1
        if self.calls == self.at:
            output["loss"] = output["loss"] * float("nan")
        return output


def test_a_loss_that_is_no_number_stops_the_run_and_spares_the_weights(tiny_data: TinyData, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_data.pairs(), tmp_path, loss=Poison(4), precision="bf16", save_steps=1)
    with pytest.raises(TrainingDivergedError, match=r"step 4: loss nan.*step 3.*lower learning_rate \(now 0.001\)"):
        trainer.train()
    assert all(bool(value.isfinite().all()) for value in weights(trainer).values())
    (saved, checkpoint, _) = trainer.checkpointer.store.load_latest()
    assert checkpoint.step == 3
    assert same(saved["model"], weights(trainer))


def test_an_accelerator_finds_out_before_it_saves_or_validates(tiny_data: TinyData, tmp_path: Path) -> None:
    """There the step is not waited for; still no spoilt weights may reach a checkpoint or become the best."""
    for name, values in (("save", {"save_steps": 5}), ("validate", {"eval_steps": 5})):
        validated: list[int] = []

        def validate(validated: list[int] = validated) -> Validation:
            validated.append(1)
            return Validation({"acc": 1.0}, "acc")

        trainer = make_trainer(
            tiny_data.pairs(),
            tmp_path / name,
            loss=Poison(4),
            logging_steps=100,
            batch_size=3,
            **{"save_steps": 100, "eval_steps": 100, **values},
            validate=validate if name == "validate" else None,
        )
        TrainStep.on_cpu, kept = property(lambda self: False), TrainStep.on_cpu
        try:
            with pytest.raises(TrainingDivergedError, match="step 5"):
                trainer.train()
        finally:
            TrainStep.on_cpu = kept
        assert trainer.checkpointer.store.all() == []
        assert validated == []


def test_check_finite_gives_advice() -> None:
    check_finite(1.0, 2.0, 3, 1e-4, "fp32", "")
    with pytest.raises(
        TrainingDivergedError, match=r"step 3: gradient norm inf.*learning_rate \(now 0.0001\)"
    ) as caught:
        check_finite(1.0, math.inf, 3, 1e-4, "fp16", "Nothing was saved.")
    assert "precision=fp32 (now fp16)" in str(caught.value)


def test_unreadable_images_are_skipped(tiny_data: TinyData, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    pairs = [*tiny_data.pairs(), ImageTextPair(broken, "a broken one", "sky")]
    result = make_trainer(pairs, tmp_path / "run", num_epochs=4).train()
    assert list(result.skipped_images) == [str(broken)]
    assert result.steps == 12


def test_a_run_without_one_readable_batch_is_an_error(tmp_path: Path) -> None:
    pairs = [ImageTextPair(tmp_path / f"broken_{i}.png", f"caption {i}", "x") for i in range(6)]
    for pair in pairs:
        pair.image_path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"Nothing was learned.*6 skipped.*broken_"):
        make_trainer(pairs, tmp_path / "run").train()


def test_fixed_temperature_stays(tiny_data: TinyData, tmp_path: Path) -> None:
    encoder = make_tiny_clip()
    encoder.set_temperature(0.005, trainable=False)
    make_trainer(tiny_data.pairs(), tmp_path, encoder=encoder).train()
    assert float(encoder.logit_scale) == pytest.approx(math.log(200))


def test_accumulation_is_one_loss_over_all(tiny_data: TinyData, tmp_path: Path) -> None:
    """batch 3 × 2 gives the run of batch 6 (no dropout), not that of two losses over 3."""
    runs = {}
    for name, values in {
        "whole": {"batch_size": 6},
        "micro_batches": {"batch_size": 3, "gradient_accumulation_steps": 2},
        "mini": {"batch_size": 6, "mini_batch_size": 2},
        "small": {"batch_size": 3},
    }.items():
        trainer = make_trainer(tiny_data.pairs(), tmp_path / name, encoder=make_tiny_clip(), **values)
        trainer.train()
        runs[name] = [row["loss"] for row in rows_of(tmp_path / name)]
    assert runs["micro_batches"] == pytest.approx(runs["whole"], rel=1e-4)
    assert runs["mini"] == pytest.approx(runs["whole"], rel=1e-4)
    assert runs["small"][0] != pytest.approx(runs["whole"][0], rel=1e-2)


def test_weights_that_are_spoilt_before_a_validation_are_called_that(tiny_data, tmp_path) -> None:
    """The loss of the last step was fine, its update was not."""

    def spoil_and_validate():
        with torch.no_grad():
            next(trainer.encoder.parameters()).fill_(float("nan"))
        raise ShapeError("The scores contain NaN")

    trainer = make_trainer(tiny_data.pairs(), tmp_path, eval_steps=1, validate=spoil_and_validate)
    with pytest.raises(TrainingDivergedError, match=r"at step 1: the weights .* not finite.*learning_rate"):
        trainer.train()


def test_an_evaluators_own_error_stays_its_own(tiny_data, tmp_path) -> None:
    def validate():
        raise ShapeError("of another kind")

    trainer = make_trainer(tiny_data.pairs(), tmp_path, eval_steps=1, validate=validate)
    with pytest.raises(ShapeError, match="of another kind"):
        trainer.train()

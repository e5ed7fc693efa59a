"""Training whose resolutions and batches change: what it learns on, and that it can be taken up anywhere."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from domainclip.errors import Interrupted
from domainclip.training import Trainer
from training_setup import make_trainer, same, weights

pytestmark = pytest.mark.slow


def reported(folder: Path, *keys: str) -> list[tuple]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [tuple(row[key] for key in keys) for row in rows if "loss" in row]


def watched(trainer: Trainer, stop_after: int | None = None) -> list[tuple]:
    """Filled while the trainer trains: pairs, resolution and rate of each step. It is stopped by a signal where
    asked."""
    seen: list[tuple] = []
    step = trainer.step.update

    def watch(batch, number):
        result = step(batch, number)
        seen.append((len(batch["rows"]), batch["pixels"].shape[-1], trainer.step.optimizer.param_groups[0]["lr"]))
        if len(seen) == stop_after:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    trainer.step.update = watch
    return seen


@pytest.mark.parametrize(
    "values",
    [
        {"resolution_schedule": {0: 16, 0.5: 32}, "batch_size_schedule": {0: 3, 4: 6}},
        {"training_resolutions": [16, 32]},
    ],
)
def test_a_resumed_run_ends_where_the_whole_one_does(tiny_data, tmp_path, values):
    values = {"num_epochs": 3, "save_steps": 100, **values}
    whole = make_trainer(tiny_data.pairs(), tmp_path / "whole", **values)
    plan, seen = whole.plan, watched(whole)
    result = whole.train()
    steps = range(plan.total_steps)
    assert (result.steps, result.epochs) == (plan.total_steps, 3)
    assert [pair[:2] for pair in seen] == [(plan.size(step), plan.resolution(step)) for step in steps]
    assert {resolution for _, resolution, _ in seen} == {16, 32}
    assert reported(tmp_path / "whole", "batch_size", "resolution") == [pair[:2] for pair in seen]

    stopped = make_trainer(tiny_data.pairs(), tmp_path / "part", **values)
    before = watched(stopped, stop_after=5)
    with pytest.raises(Interrupted):
        stopped.train()
    again = make_trainer(tiny_data.pairs(), tmp_path / "part", **values)
    after = watched(again)
    again.train(resume=True)
    assert len(before) == 5
    assert before + after == seen
    assert same(weights(again), weights(whole))


def test_the_rate_follows_batch_and_resolution(tiny_data, tmp_path):
    values = {
        "num_epochs": 16,
        "save_steps": 1000,
        "warmup_steps": 0,
        "min_learning_rate_ratio": 1.0,
        "learning_rate": 1e-4,
    }
    trainer = make_trainer(
        tiny_data.pairs(),
        tmp_path,
        **values,
        resolution_schedule={0: 16, 0.25: 32},
        batch_size_schedule={0: 3, 10: 6},
    )
    seen = watched(trainer)
    trainer.train()
    first = trainer.plan.phases[1][0]
    rises = [0.1 + 0.9 * step / 2 for step in range(2)]  # 5 % of the second phase's steps, rounded down
    expected = [(0.5**0.5 if step < 10 else 1) for step in range(len(seen))]
    expected[first : first + 2] = [factor * rise for factor, rise in zip(expected[first:], rises, strict=False)]
    assert [rate / 1e-4 for _, _, rate in seen] == pytest.approx(expected)


def test_micro_batches_of_small_images_are_larger(tiny_data, tmp_path, monkeypatch):
    trainer = make_trainer(
        tiny_data.pairs(), tmp_path, mini_batch_size=1, num_epochs=3, resolution_schedule={0: 16, 0.5: 32}
    )
    micro_batches, kind = [], type(trainer.step.adaptive.step)
    made = kind.__call__

    def watch(self, batch):
        micro_batches.append((batch["pixels"].shape[-1], self.micro_batch_of(len(batch["rows"]))))
        return made(self, batch)

    monkeypatch.setattr(kind, "__call__", watch)
    trainer.train()
    assert set(micro_batches) == {(16, 4), (32, 1)}

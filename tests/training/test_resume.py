"""A run that is killed and resumed ends with the very weights of one that was left alone.

``RESUME_TEST_KILLS`` sets how often the randomly killed run is killed (3 unless set).
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import resume_child
from checkpoints import best_weights
from domainclip.models import make_tiny_clip
from domainclip.models.io import save_encoder
from domainclip.training import Validation
from forked import forking, run_python, start_python
from tiny_data import TinyData
from training_setup import make_trainer, same, train_until, weights

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("RESUME_TEST_KILLS", "3"))
EPOCHS = max(8, 2 * KILLS)
STEPS = 3 * EPOCHS
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.mark.parametrize("stop_at", [1, 3, 4, 5])
def test_a_trainer_takes_up_where_it_was(tiny_data: TinyData, tmp_path: Path, stop_at: int) -> None:
    """Dropout and augmentation on; stopped at an epoch's start, end and middle."""
    whole = make_trainer(tiny_data.pairs(), tmp_path / "whole", save_steps=1)
    whole.train()
    broken = make_trainer(tiny_data.pairs(), tmp_path / "broken", save_steps=1)
    train_until(broken, stop_at)
    torch.manual_seed(999)
    again = make_trainer(
        tiny_data.pairs(), tmp_path / "broken", save_steps=1, encoder=make_tiny_clip(9, attention_dropout=0.1)
    )
    result = again.train(resume=True)
    assert result.resumed_from == stop_at
    assert same(weights(again), weights(whole))
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")


def test_a_run_that_stopped_early_is_not_trained_on(tiny_data: TinyData, tmp_path: Path) -> None:
    def falling() -> Validation:
        return Validation({"acc": -float(len(calls.append(1) or calls))}, "acc")

    calls: list[int] = []
    values: dict[str, Any] = {"early_stopping_patience": 2, "eval_steps": 1, "validate": falling}
    first = make_trainer(tiny_data.pairs(), tmp_path, **values)
    assert first.train().stopped_early
    stopped_at = first.state.step
    assert stopped_at == 3
    again = make_trainer(tiny_data.pairs(), tmp_path, **values)
    result = again.train(resume=True)
    assert result.stopped_early
    assert result.steps == stopped_at
    assert len(calls) == 3
    assert same(weights(again), weights(first))


def test_a_finished_run_resumed_is_the_same_run(tiny_data: TinyData, tmp_path: Path) -> None:
    first = make_trainer(tiny_data.pairs(), tmp_path)
    done = first.train()
    again = make_trainer(tiny_data.pairs(), tmp_path)
    result = again.train(resume=True)
    assert (result.steps, result.resumed_from) == (6, 6)
    assert result.train_loss == done.train_loss
    assert same(weights(again), weights(first))


# --- whole runs in their own processes ---


@pytest.fixture(scope="module")
def values(tiny_data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    model = tmp_path_factory.mktemp("model")
    save_encoder(make_tiny_clip(attention_dropout=0.1), model)
    return {
        "model_name": str(model),
        "data_path": str(tiny_data.folder),
        "batch_size": 6,
        "num_epochs": EPOCHS,
        "num_workers": 0,
        "mixed_precision": False,
        "device": "cpu",
        "learning_rate": 1e-3,
        "augment_images": True,
        "early_stopping_patience": 0,  # small_data and probe_first would stop early
        "save_steps": 1,
        "eval_steps": 2,
        "logging_steps": 1,
        "mini_batch_size": 4,
    }


Start = Callable[..., BaseProcess]


@pytest.fixture(scope="module")
def start(values: dict[str, Any]) -> Start:
    def start(folder: Path, kill: tuple[str, int] | None = None, **changed: Any) -> BaseProcess:
        process = forking().Process(
            target=resume_child.train, args=({**values, "output_dir": str(folder), **changed}, kill)
        )
        process.start()
        return process

    return start


@pytest.fixture(scope="module")
def undisturbed(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start(folder)
    process.join(300)
    assert process.exitcode == 0
    assert last_step(folder) == STEPS
    return folder


def metric_rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in metric_rows(folder) if "loss" in row]


def last_step(folder: Path) -> int:
    return max((row["step"] for row in metric_rows(folder)), default=0)


def assert_same_run(folder: Path, undisturbed: Path) -> None:
    expected = load_file(undisturbed / "model" / "model.safetensors")
    assert same(load_file(folder / "model" / "model.safetensors"), expected)
    mine, other = ((path / "model" / "model.safetensors").read_bytes() for path in (folder, undisturbed))
    assert mine == other
    assert losses(folder) == losses(undisturbed)
    best = [json.loads((best_weights(path) / "best.json").read_text()) for path in (folder, undisturbed)]
    assert best[0] == best[1]
    reports = [json.loads((path / "report.json").read_text()) for path in (folder, undisturbed)]
    for part in ("before", "after"):
        assert reports[0][part] == reports[1][part]
    assert not [path.name for path in folder.rglob(".*") if path.name.endswith((".tmp", ".old"))]


@pytest.mark.slowest
@pytest.mark.slow
def test_killed_at_random_moments(start: Start, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    chance = random.Random(2)
    killed, began = 0, time.monotonic()
    moments = []
    while killed < KILLS:
        at_start = last_step(folder)
        goal = min(at_start + chance.randint(1, 3), STEPS - 2)
        process = start(folder)
        while process.is_alive() and (last_step(folder) < goal or last_step(folder) == 0):
            time.sleep(0.005)
            assert time.monotonic() - began < 300
        time.sleep(chance.uniform(0, 0.12))  # a step with its checkpoint takes about that
        if not process.is_alive():
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        moments.append(last_step(folder))
        killed += 1
    assert killed == KILLS, f"the run ended after kills at steps {moments}"
    last = start(folder, num_workers=2)  # reading the images in other processes changes nothing either
    last.join(300)
    assert last.exitcode == 0
    assert_same_run(folder, undisturbed)
    print(f"killed at steps {moments} of {STEPS}")


@pytest.mark.slow
def test_killed_in_the_middle_of_saving(start: Start, undisturbed: Path, tmp_path: Path) -> None:
    """Between files of a checkpoint, and between the two renames that exchange the best weights."""
    folder = tmp_path / "run"
    for kill in (("fsync", 20), ("best moved aside", 1), ("fsync", 33), ("best moved aside", 1)):
        process = start(folder, kill)
        process.join(300)
        assert process.exitcode == -signal.SIGKILL, f"{kill} was never reached"
        if kill[0] != "fsync":
            assert not (folder / "best").exists()
    last = start(folder)
    last.join(300)
    assert last.exitcode == 0
    assert_same_run(folder, undisturbed)


@posix
@pytest.mark.slow
def test_signals_save_and_exit_as_a_shell_expects(values: dict[str, Any], undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    # null stays unset, as for the other runs
    keys = [f"{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in values.items()]
    command = ["from domainclip.cli import main; main()", "train", *keys, f"output_dir={folder}"]
    output, errors = tmp_path / "said", tmp_path / "said.err"
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        again = ["--resume"] if folder.exists() else []
        process = start_python(*command, *again, output=output)
        goal, began = last_step(folder) + 2, time.monotonic()
        while last_step(folder) < goal and process.is_alive():
            time.sleep(0.005)
            assert time.monotonic() - began < 120
        assert process.pid is not None
        os.kill(process.pid, number)
        process.join(120)
        assert process.exitcode == code, errors.read_text()
        assert "saved. Go on with" in errors.read_text()
        assert "Traceback" not in errors.read_text()
        newest = max(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*"))
        assert newest == last_step(folder)  # the step that was under way is on the disk
    done = run_python(*command, "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_run(folder, undisturbed)


@pytest.mark.slow
def test_a_refused_resumption_leaves_the_recipe_on_record(start: Start, undisturbed: Path) -> None:
    before = {name: (undisturbed / name).read_bytes() for name in ("recipe.yaml", "before.json")}
    refused = start(undisturbed, learning_rate=5e-3)
    refused.join(120)
    assert refused.exitcode == 1
    assert {name: (undisturbed / name).read_bytes() for name in before} == before

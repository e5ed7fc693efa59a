"""A whole run in two processes: the weights of one process, one validation and one writer, and an end at the same
step."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch.distributed import TCPStore

from domainclip.config import CLIPFinetuningConfig
from domainclip.data.records import ImageTextPair
from domainclip.errors import ConfigurationError, Interrupted
from domainclip.models import make_tiny_clip
from domainclip.resolve import resolve
from domainclip.training import Trainer, Validation
from domainclip.training.distributed import ProcessGroup
from forked import forking
from resolve_cases import PLAIN as PLAIN_DATA
from resolve_cases import STARTER
from tiny_data import TinyData
from training_setup import make_trainer, one_of_two, same, weights

pytestmark = pytest.mark.slow

STEPS = 6
PLAIN = {"save_steps": 100, "eval_steps": 3}


def _pairs(data: TinyData) -> list[ImageTextPair]:
    """18 rows, one of which cannot be read."""
    pairs = data.pairs()
    broken = data.folder / "broken.png"
    broken.write_bytes(b"no image")
    return [ImageTextPair(broken, pairs[0].caption, pairs[0].label), *pairs[1:]]


def _validation(values: list[float], calls: list[int]) -> Callable[[], Validation]:
    def validate() -> Validation:
        calls.append(1)
        value = values[min(len(calls), len(values)) - 1]
        return Validation({"acc1": value}, "acc1")

    return validate


def _process(rank: int, port: int, data: TinyData, folder: Path) -> None:
    with one_of_two(rank, port) as processes:
        got = {
            "plain": _plain(processes, data, folder / "plain"),
            "stopped": _stopped_and_resumed(processes, data, folder),
            "early": _stopped_early(processes, data, folder / "early"),
            "validation fails": _validation_fails(processes, data, folder / "fails"),
            "memory": _out_of_memory(processes, data, folder / "memory"),
            "other recipes": _other_recipes(processes, data, folder / "other"),
        }
    torch.save(got, folder / f"{rank}.pt")


def _plain(processes: ProcessGroup, data: TinyData, folder: Path) -> dict[str, Any]:
    """Without dropout. The second begins with other weights, which must not matter."""
    calls: list[int] = []
    trainer = make_trainer(
        _pairs(data),
        folder,
        encoder=make_tiny_clip(processes.rank),
        validate=_validation([0.5, 0.25], calls),
        processes=processes,
        mini_batch_size=2,
        **PLAIN,
    )
    result = trainer.train()
    return {
        "weights": weights(trainer),
        "steps": result.steps,
        "best": result.best,
        "calls": len(calls),
        "bad": list(result.skipped_images.values()),
        "loss": result.final_loss,
    }


def _stopped_and_resumed(processes: ProcessGroup, data: TinyData, folder: Path) -> dict[str, Any]:
    """With dropout, which each process draws by itself; the second alone receives a signal."""

    def make(name: str, seed: int = 0) -> Trainer:
        return make_trainer(
            _pairs(data),
            folder / name,
            encoder=make_tiny_clip(seed, attention_dropout=0.2),
            processes=processes,
            **PLAIN,
        )

    whole = make("whole")
    whole.train()
    broken = make("broken")
    take = broken.step.update

    def signalled(batch: dict[str, Any], step: int) -> Any:
        if broken.state.step == 3 and processes.rank == 1:
            broken.stop.received = signal.SIGTERM
        return take(batch, step)

    broken.step.update = signalled  # type: ignore[method-assign]
    try:
        broken.train()
        message = "ran on"
    except Interrupted as stop:
        message = str(stop)
    torch.manual_seed(999)
    again = make("broken", seed=9)
    resumed_from = again.train(resume=True).resumed_from
    return {"message": message, "from": resumed_from, "whole": weights(whole), "again": weights(again)}


def _stopped_early(processes: ProcessGroup, data: TinyData, folder: Path) -> tuple[int, bool]:
    result = make_trainer(
        data.pairs(),
        folder,
        validate=_validation([0.5, 0.1], []),
        processes=processes,
        num_epochs=4,
        eval_steps=1,
        early_stopping_patience=2,
    ).train()
    return result.steps, result.stopped_early


def _validation_fails(processes: ProcessGroup, data: TinyData, folder: Path) -> str:
    def fail() -> Validation:
        raise ValueError("nothing to validate")

    try:
        make_trainer(data.pairs(), folder, validate=fail, processes=processes, eval_steps=1).train()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def _out_of_memory(processes: ProcessGroup, data: TinyData, folder: Path) -> str:
    def fail(pixels: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")

    trainer = make_trainer(data.pairs(), folder, processes=processes)
    trainer.step.adaptive.step.encode_image = fail
    try:
        trainer.step.adaptive(next(iter(trainer.loader)))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def _other_recipes(processes: ProcessGroup, data: TinyData, folder: Path) -> str:
    try:
        make_trainer(data.pairs(), folder, processes=processes, learning_rate=1e-3 * (1 + processes.rank)).train()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


@pytest.fixture(scope="module")
def runs(tiny_data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("runs")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    forking()
    mp.start_processes(_process, (store.port, tiny_data, folder), nprocs=2, start_method="forkserver")
    return folder, [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_a_run_in_two_processes_is_the_run_in_one(
    runs: tuple[Path, list[dict[str, Any]]], tiny_data: TinyData, tmp_path: Path
) -> None:
    folder, both = runs
    calls: list[int] = []
    one = make_trainer(
        _pairs(tiny_data), tmp_path / "one", encoder=make_tiny_clip(), validate=_validation([0.5, 0.25], calls), **PLAIN
    )
    begun = weights(one)
    result = one.train()
    first, second = (got["plain"] for got in both)
    assert same(first["weights"], second["weights"])
    for name, value in weights(one).items():  # float32 sums in another order
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-4, atol=2e-5)
    name = "model.visual_projection.weight"
    assert float((first["weights"][name] - begun[name]).abs().max()) > 1e-3
    assert first["steps"] == second["steps"] == result.steps == STEPS
    assert first["loss"] == pytest.approx(result.final_loss, rel=1e-4)
    assert (first["calls"], second["calls"]) == (len(calls), 0)
    assert first["best"] == second["best"] == result.best
    assert first["bad"] == second["bad"] == list(result.skipped_images.values())
    assert len(first["bad"]) == 1

    def lines(path: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]

    for mine, expected in zip(lines(folder / "plain"), lines(tmp_path / "one"), strict=True):
        assert mine.keys() == expected.keys()
        for key in ("loss", "grad_norm", "embedding_spread", "logit_scale"):
            if key in mine:
                assert mine[key] == pytest.approx(expected[key], rel=1e-3), key


def test_a_signal_to_one_stops_both_and_the_resumed_run_is_the_whole_one(
    runs: tuple[Path, list[dict[str, Any]]],
) -> None:
    first, second = (got["stopped"] for got in runs[1])
    assert first["message"] == second["message"] == "Stopped by SIGTERM at step 4; saved. Go on with resume=True"
    assert first["from"] == second["from"] == 4
    assert same(first["again"], first["whole"]) and same(second["again"], first["whole"])


def test_a_run_of_two_goes_on_in_one(runs: tuple[Path, list[dict[str, Any]]], tiny_data: TinyData) -> None:
    folder, _ = runs
    trainer = make_trainer(
        tiny_data.pairs(),
        folder / "early",
        validate=_validation([0.5], []),
        num_epochs=4,
        eval_steps=1,
        early_stopping_patience=2,
    )
    result = trainer.train(resume=True)
    assert result.resumed_from == 3
    assert any("in 2 processes, this one has 1" in warning for warning in result.warnings)


def test_both_stop_early(runs: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [got["early"] for got in runs[1]] == [(3, True)] * 2


def test_what_ends_the_first_ends_the_other(runs: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = (got["validation fails"] for got in runs[1])
    assert first == "ValueError: nothing to validate"
    assert "The first of 2 processes stopped with ValueError: nothing to validate" in second


def test_processes_with_different_recipes_are_refused(runs: tuple[Path, list[dict[str, Any]]]) -> None:
    for got in runs[1]:
        assert "The 2 processes have different recipes" in got["other recipes"]


def test_batch_norm_is_frozen_where_a_batch_is_spread_out() -> None:
    """Live statistics would be those of each process' own rows."""
    model, data = STARTER, dataclasses.replace(PLAIN_DATA, processes=2)
    run = resolve(CLIPFinetuningConfig(), model, data)
    recipe, decisions = run.recipe, list(run.decisions)
    assert recipe.freeze_batch_norm
    assert "2 processes" in next(made.reason for made in decisions if made.key == "freeze_batch_norm")
    assert not resolve(CLIPFinetuningConfig(), model, PLAIN_DATA).recipe.freeze_batch_norm
    with pytest.raises(ConfigurationError, match="freeze_batch_norm=false does not go with 2 processes"):
        resolve(CLIPFinetuningConfig(freeze_batch_norm=False), model, data)


def test_running_out_of_memory_is_not_repeated_among_several(runs: tuple[Path, list[dict[str, Any]]]) -> None:
    for got in runs[1]:
        assert got["memory"].startswith(
            "MemoryConstraintError: One of several processes ran out of memory on its 3 pairs"
        )
        assert "mini_batch_size below 3" in got["memory"]

"""Studies that are stopped, killed and taken up again, and what is refused before they begin."""

from __future__ import annotations

import importlib
import math
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest

from domainclip.cli.tune import tune
from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import (
    CheckpointError,
    ConfigurationError,
    DataError,
    Interrupted,
    MissingExtraError,
)
from domainclip.tune import Space, study
from forked import start_python
from tiny_data import TinyData
from tune_cases import recipe, search

pytestmark = pytest.mark.slow


def study_of(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="domainclip", storage=f"sqlite:///{folder / 'study.db'}")


# --- going on ---


@pytest.mark.usefixtures("undrawn")
def test_a_killed_trial_is_tried_again_and_the_count_is_right(
    tiny_data: TinyData, tmp_path: Path, scripted: Any
) -> None:
    scripted(lambda config: [0.5])
    config = recipe(tiny_data, tmp_path)
    search(config, trials=2)
    trial = study_of(tmp_path).ask()  # a process that draws its values, trains, and is no more
    value = trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True)
    (tmp_path / "trials" / "0002" / "best").mkdir(parents=True)
    outcome = search(config, None, trials=4, steps=None, resume=True)  # space and steps are the study's own
    assert [record.outcome for record in outcome.trials] == ["complete", "complete", "killed", "complete", "complete"]
    assert outcome.trials[3].retry_of == 2
    assert outcome.trials[3].params == {"learning_rate": value}
    assert not (tmp_path / "trials" / "0002" / "best").exists()
    rates = [record.params["learning_rate"] for record in outcome.trials]
    assert Counter(rates)[value] == 2
    assert len(set(rates)) == 4  # nothing else is drawn twice
    assert search(config, trials=4, resume=True).trials == outcome.trials  # nothing is left to do


@pytest.mark.usefixtures("undrawn")
def test_a_trial_that_is_killed_again_and_again_is_given_up(tiny_data: TinyData, tmp_path: Path, scripted: Any) -> None:
    scripted(lambda config: [0.5])
    config = recipe(tiny_data, tmp_path)
    search(config, trials=1)
    study = study_of(tmp_path)
    study.enqueue_trial({"learning_rate": 1e-4}, user_attrs={"attempt": 3, "retry_of": 0})
    study.ask()
    outcome = search(config, trials=2, resume=True)
    assert [record.outcome for record in outcome.trials] == ["complete", "gave_up"]
    assert "3 times" in outcome.trials[1].reason


@pytest.mark.usefixtures("undrawn")
def test_a_resumed_study_draws_what_an_undisturbed_one_draws(
    tiny_data: TinyData, tmp_path: Path, scripted: Any
) -> None:
    scripted(lambda config: [1 / (1 + abs(math.log(config.learning_rate / 1e-4)))])
    whole = search(recipe(tiny_data, tmp_path / "whole"), trials=6)
    for trials in (2, 4, 6):
        parts = search(recipe(tiny_data, tmp_path / "parts"), trials=trials, resume=(tmp_path / "parts").exists())
    drawn = [record.params for record in whole.trials]
    assert [record.params for record in parts.trials] == drawn
    assert len({params["learning_rate"] for params in drawn}) == 6


@pytest.mark.usefixtures("undrawn")
def test_what_has_changed_is_refused(tiny_data: TinyData, tmp_path: Path, scripted: Any) -> None:
    scripted(lambda config: [0.5])
    config = recipe(tiny_data, tmp_path)
    search(config)
    with pytest.raises(ConfigurationError, match=r"already holds a study.*resume=True"):
        search(config)
    with pytest.raises(ConfigurationError, match="one of the two"):
        search(config, resume=True, overwrite=True)
    with pytest.raises(ConfigurationError, match=r"another space \(learning_rate\)"):
        search(config, Space.from_options(["learning_rate=1e-5..1e-3:log"]), resume=True)
    with pytest.raises(ConfigurationError, match=r"another steps \(was 2\)"):
        search(config, steps=3, resume=True)
    with pytest.raises(ConfigurationError, match=r"another recipe \(weight_decay\)"):
        search(config.updated(weight_decay=0.2), resume=True)
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for split, last in (("train", -1), ("val", None)):
        lines = tiny_data.table(split).read_text().splitlines()[:last]
        (fewer / f"{split}.csv").write_text("\n".join(lines) + "\n")
    (fewer / "images").symlink_to(tiny_data.folder / "images")
    with pytest.raises(ConfigurationError, match="another data:"):
        search(config.updated(data_path=str(fewer)), resume=True)
    assert len(study_of(tmp_path).trials) == 2  # a refused study is as it was
    assert len(search(config, steps=3, overwrite=True).trials) == 2
    (tmp_path / "study.db").write_bytes(b"no database" * 100)
    with pytest.raises(CheckpointError, match=r"study.db cannot be read"):
        search(config, resume=True)


@pytest.mark.usefixtures("undrawn")
def test_a_signal_closes_the_trial_and_it_is_tried_again(tiny_data: TinyData, tmp_path: Path, scripted: Any) -> None:
    def interrupted(config: CLIPFinetuningConfig) -> list[float]:
        if config.learning_rate != 1e-3:
            os.kill(os.getpid(), signal.SIGTERM)
        return [0.5]

    handlers = signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)
    scripted(interrupted)
    with pytest.raises(Interrupted, match=r"finished: 1 of 3 trials.*resume=True") as stop:
        search(recipe(tiny_data, tmp_path), trials=3)
    assert stop.value.exit_code == 143
    assert (signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)) == handlers
    scripted(lambda config: [0.5])
    outcome = search(recipe(tiny_data, tmp_path), trials=3, resume=True)
    assert [record.outcome for record in outcome.trials] == ["complete", "interrupted", "complete", "complete"]
    assert outcome.trials[2].params == outcome.trials[1].params


@pytest.mark.usefixtures("undrawn")
def test_a_signal_that_the_loop_has_taken_is_not_lost(tiny_data: TinyData, tmp_path: Path, scripted: Any) -> None:
    """In its last step the loop has nothing to stop; the study has."""

    def swallowed(config: CLIPFinetuningConfig) -> list[float]:
        before = signal.signal(signal.SIGINT, lambda *_: None)
        os.kill(os.getpid(), signal.SIGINT)
        signal.signal(signal.SIGINT, before)
        return []

    scripted(lambda config: [0.5, *swallowed(config)])
    with pytest.raises(Interrupted) as stop:
        search(recipe(tiny_data, tmp_path), trials=3)
    assert stop.value.exit_code == 130


CHILD = """
import sys
from rich.console import Console
from domainclip.config import CLIPFinetuningConfig
from domainclip.tune import Space, run_tuning
config = CLIPFinetuningConfig(**{values!r})
space = Space.from_options(["learning_rate=1e-5..1e-2:log"])
run_tuning(config, space, trials=3, steps=3, console=Console(file=sys.stderr))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.usefixtures("undrawn")
def test_killed_in_the_middle_of_a_trial(tiny_data: TinyData, tmp_path: Path) -> None:
    config = recipe(tiny_data, tmp_path / "out")
    values = config.to_dict(only_set=True)
    process = start_python(CHILD.format(values=values), output=tmp_path / "said")
    began = time.monotonic()
    while process.is_alive() and not (tmp_path / "out" / "trials" / "0001" / "metrics.jsonl").exists():
        time.sleep(0.002)
        assert time.monotonic() - began < 120
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    outcome = search(config, trials=3, steps=3, resume=True)
    assert [record.outcome for record in outcome.trials] == ["complete", "killed", "complete", "complete"]
    assert outcome.trials[2].params == outcome.trials[1].params
    assert {path.name for path in (tmp_path / "out" / "trials").rglob("*") if path.is_file()} == {
        "metrics.jsonl",
        "milestones.jsonl",
        "validations.jsonl",
        "classes.json",
        "memory.json",
    }


# --- before work ---


def test_a_missing_package_names_the_extra(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'domainclip\[tune\]'"):
        search(recipe(tiny_data, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_without_a_validation_split_there_is_nothing_to_compare(tiny_data: TinyData, tmp_path: Path) -> None:
    config = recipe(tiny_data, tmp_path / "out", data_path=str(tiny_data.table("train")))
    with pytest.raises(DataError, match=r"validation split.*val_split"):
        search(config.updated(train_split=1.0, val_split=0.0, test_split=0.0))


@pytest.mark.usefixtures("undrawn")
def test_the_command(domainclip: Any, tiny_data: TinyData, tmp_path: Path, scripted: Any) -> None:
    app = importlib.import_module("domainclip.cli.main").app
    if all(command.callback is not tune for command in app.registered_commands):
        app.command("tune")(tune)
    seen = scripted(lambda config: [0.5 + config.weight_decay])
    (tmp_path / "space.yaml").write_text("weight_decay: 0.0..0.2\n")
    options = ["tune", "--data", tiny_data.folder, "--model", "tiny", "--output", tmp_path / "out", "--steps", 2]
    result = domainclip(
        *options, "--trials", 3, "--space", tmp_path / "space.yaml", "-s", "adam_beta2=0.9,0.98", "batch_size=6"
    )
    assert result.exit_code == 0, result.err
    assert result.out == ""
    lines = [line for line in result.err.splitlines() if line.startswith("Trial ")]
    assert len(lines) == 3
    assert lines[0].startswith("Trial 0: acc1 0.5100  complete  default recipe")
    assert "adam_beta2=0.9" in lines[1]
    assert {config.batch_size for config in seen} == {6}
    result = domainclip("tune", "--output", tmp_path / "out", "--resume", "--trials", 4)
    assert result.exit_code == 0, result.err
    assert len([line for line in result.err.splitlines() if line.startswith("Trial ")]) == 1
    result = domainclip(*options, "-s", "learning_rate=1..2", "learning_rate=1e-5", "--overwrite")
    assert result.exit_code == 2
    assert "fixed and searched at once" in result.err
    assert len(study_of(tmp_path / "out").trials) == 4


def test_a_study_that_cannot_be_written_is_told(tiny_data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a full disk does it: the error comes out of the middle of a trial."""
    import optuna
    from optuna.storages import RDBStorage

    def full(*args: Any, **kwargs: Any) -> None:
        raise optuna.exceptions.StorageInternalError("commit") from OSError(28, "No space left on device")

    monkeypatch.setattr(RDBStorage, "set_trial_intermediate_value", full)
    with pytest.raises(ConfigurationError, match=r"study\.db cannot be written: .*No space left.*resume=True"):
        search(recipe(tiny_data, tmp_path / "study"))


def outcome_of(folder: Path) -> Any:
    try:
        return study.records(study.open_study(folder, True))
    except CheckpointError as error:
        return str(error)


@pytest.mark.usefixtures("undrawn")
def test_a_damaged_study_is_the_same_study_or_refused(tiny_data: TinyData, tmp_path: Path, scripted: Any) -> None:
    scripted(lambda config: [0.5 + config.learning_rate])
    search(recipe(tiny_data, tmp_path), trials=4)
    expected = study.records(study.open_study(tmp_path, True))
    assert len(expected) == 4
    content = (tmp_path / "study.db").read_bytes()
    places = [place for place in range(0, len(content), 61) if content[place]]  # where something is written
    refused = 0
    for index, place in enumerate(places[:: max(1, len(places) // 60)]):
        folder = tmp_path / f"damaged-{index}"
        folder.mkdir()
        damaged = bytearray(content)
        damaged[place] ^= 1
        (folder / "study.db").write_bytes(bytes(damaged))
        said = outcome_of(folder)
        refused += "study.db cannot be read as a study" in str(said)
        assert said == expected or "study.db cannot be read as a study" in str(said), place
    assert refused >= 3

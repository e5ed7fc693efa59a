"""Tuning: the space, the trials, what a kill leaves, and what is written."""

from __future__ import annotations

import csv
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from rich.console import Console

from conftest import TinyData
from domainclip.cli.tune import tune
from domainclip.config import CLIPFinetuningConfig, load_recipe
from domainclip.errors import (
    CheckpointError,
    ConfigurationError,
    DataError,
    Interrupted,
    MemoryConstraintError,
    MissingExtraError,
    TrainingDivergedError,
)
from domainclip.finetune.controller import CLIPFinetuningController
from domainclip.losses import LOSSES
from domainclip.training import Validation
from domainclip.tune import Space, TuningOutcome, run_tuning
from domainclip.tune.conditions import Conditions, keys_read
from domainclip.tune.default_space import default_space
from domainclip.tune.prepare import default_steps

VALUES: dict[str, Any] = {
    "model_name": "tiny", "batch_size": 6, "num_epochs": 2, "num_workers": 0, "mixed_precision": False, "device": "cpu",
    "learning_rate": 1e-3,
}  # fmt: skip
RATES = Space.from_options(["learning_rate=1e-5..1e-2:log"])


def recipe(tiny_data: TinyData, folder: Path, **values: Any) -> CLIPFinetuningConfig:
    return CLIPFinetuningConfig(**{**VALUES, "data_path": str(tiny_data.folder), "output_dir": str(folder), **values})


def search(config: CLIPFinetuningConfig, space: Space | None = RATES, **options: Any) -> TuningOutcome:
    return run_tuning(config, space, **{"trials": 2, "steps": 2, "console": Console(quiet=True), **options})


def study_of(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="domainclip", storage=f"sqlite:///{folder / 'study.db'}")


Script = Callable[[CLIPFinetuningConfig], list[float]]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take most of the time of trials this short; one test looks at them."""
    for name in ("plot_history", "plot_importances", "plot_slices"):
        monkeypatch.setattr(f"domainclip.tune.results.{name}", lambda *arguments: False)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Script], list[CLIPFinetuningConfig]]:
    """Trials that train nothing: validation says what a script says of the trial's recipe. Returns the recipes seen."""

    def install(script: Script) -> list[CLIPFinetuningConfig]:
        seen: list[CLIPFinetuningConfig] = []

        def fine_tune(
            self: CLIPFinetuningController, train: Any, val: Any, folder: Path, *, on_validation: Any, **rest: Any
        ) -> dict[str, Any]:
            self.prepare(train)
            seen.append(self.config)
            for weights in ("checkpoints", "best", "model"):
                (folder / weights).mkdir(parents=True)
                (folder / weights / "file").write_text("weights")
            values = script(self.config)
            for value in values:
                on_validation(Validation({"acc1": value}, "acc1", standard_error=0.1))
            best = max(values)
            step = self.config.eval_steps * (values.index(best) + 1)
            return {"best": {"value": best, "step": step}, "steps": self.config.max_steps}

        monkeypatch.setattr(CLIPFinetuningController, "fine_tune", fine_tune)
        monkeypatch.setattr("domainclip.tune.trial._free_memory", lambda: None)  # there is none to free
        return seen

    return install


# --- the space ---


def test_ranges_and_choices_are_read() -> None:
    space = Space.from_options(
        ["learning-rate=1e-6..1e-4:log", "warmup_steps=10..20", "loss_type=contrastive,multi_positive",
         "batch_size=4,8", "multi_scale_scales=[1.0, 0.5],[1.0, 0.75]", "learnable_temp=true,false",
         "temperature=1e-2,5e-2"]
    )  # fmt: skip
    rate, warmup = space["learning_rate"], space["warmup_steps"]
    assert (rate.low, rate.high, rate.log, rate.integer) == (1e-6, 1e-4, True, False)
    assert (warmup.low, warmup.high, warmup.log, warmup.integer) == (10, 20, False, True)
    assert space["batch_size"].choices == (4, 8)
    assert space["multi_scale_scales"].choices == ([1.0, 0.5], [1.0, 0.75])
    assert space["learnable_temp"].choices == (True, False)
    assert space["temperature"].choices == (0.01, 0.05)
    assert Space.from_dict(yaml.safe_load(yaml.safe_dump(space.to_dict(), sort_keys=False))) == space


def test_a_space_file_is_read_and_the_command_line_goes_before_it(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("learning_rate: 1e-6..1e-4:log\nloss_type: [contrastive, multi_positive]\nmargin: 0..0.1\n")
    space = Space.from_file(path).merged(Space.from_options(["margin=0.2..0.3"]))
    assert (space["margin"].low, space["margin"].high) == (0.2, 0.3)
    assert space["loss_type"].choices == ("contrastive", "multi_positive")
    path.write_text("seed: 1..2\nlearing_rate: 1..2\n")
    with pytest.raises(ConfigurationError, match=r"seed cannot be searched.*space.yaml line 1"):
        Space.from_file(path)
    path.write_text("# rates\nlearing_rate: 1..2\n")
    with pytest.raises(ConfigurationError, match=r"'learing_rate': did you mean 'learning_rate'.*space.yaml line 2"):
        Space.from_file(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Space.from_file(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("learning_rate", "is not key=low..high"),
        ("learning_rate=1e-4..1e-6", "lower end must be below"),
        ("learning_rate=0..1e-3:log", "must begin above 0"),
        ("learning_rate=a..b", "is not a range"),
        ("learning_rate=1..2:sqrt", "the only scale is :log"),
        ("learning_rate=1e-4", "nothing to choose between"),
        ("loss_type=contrastive,contrastive", "a choice twice"),
        ("warmup_steps=1.5..9", "whole number"),
        ("max_steps=10..20", "--steps"),
        ("val_split=0.1,0.2", "must be the same for all"),
    ],
)
def test_a_wrong_dimension_says_what_is_wrong(option: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Space.from_options([option])


def test_a_space_that_leaves_the_recipes_limits_is_refused_before_work(tiny_data: TinyData, tmp_path: Path) -> None:
    config = recipe(tiny_data, tmp_path / "out")
    for options, message in (
        (["label_smoothing=0..1"], r"label_smoothing=1.0.*must be below 1"),
        (["min_temp=0.01..0.09", "max_temp=0.05..0.1"], r"min_temp=0.09 with max_temp=0.05.*is above"),
        (["loss_type=contrastive,contrastiv"], r"Invalid loss type 'contrastiv'.*Did you mean 'contrastive'"),
        (["margin=0..0.1"], r"nothing in the search reads margin.*Read by: domain_specific"),
        (["max_sequence_length=16..99"], r"reaches max_sequence_length=99.*more than the text tower's 77"),
        (["hardness_strength=0..2", "loss_type=contrastive,hard_negative"], r"mining strategy semi-hard"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            search(config, Space.from_options(options))
    with pytest.raises(ConfigurationError, match="learning_rate is fixed and searched"):
        search(config, fixed={"learning_rate"})
    assert not (tmp_path / "out" / "study.db").exists()


def test_what_an_objective_reads_is_found_by_building_it() -> None:
    config = CLIPFinetuningConfig()
    assert "hard_negative_weight" in keys_read("hard_negative", config)
    assert "hard_negative_weight" not in keys_read("contrastive", config)
    assert "temperature" in keys_read("contrastive", config)


class Recorded:
    """Draws the first choice of everything but ``loss_type``."""

    def __init__(self, loss_type: str) -> None:
        self.loss_type = loss_type

    def suggest_float(self, name: str, low: float, high: float, log: bool) -> float:
        return low

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        return self.loss_type if name == "loss_type" else choices[-1]


def test_label_smoothing_is_not_drawn_for_the_objective_that_has_none() -> None:
    assert "label_smoothing" not in keys_read("sigmoid", CLIPFinetuningConfig())
    assert "label_smoothing" in keys_read("hard_negative", CLIPFinetuningConfig())


def test_conditional_keys_are_drawn_where_they_are_read() -> None:
    config = CLIPFinetuningConfig(domain="medical")
    defaults = {**config.to_dict(), "loss_type": "contrastive"}
    frozen = CLIPFinetuningConfig(**defaults).frozen()
    space = default_space(config, frozen)
    assert set(space["loss_type"].choices) <= set(LOSSES)
    conditions = Conditions(space, config, defaults)
    always = {"learning_rate", "temperature", "learnable_temp", "weight_decay", "loss_type"}
    mining = {"hard_negative_weight", "hard_negative_mining_strategy", "hardness_strength", "label_smoothing"}
    smooth = {"label_smoothing"}
    expected = {"contrastive": smooth, "sigmoid": set(), "domain_specific": {"margin", *smooth}}
    for loss_type, own in {**expected, "hard_negative": mining}.items():
        assert set(conditions.suggest(Recorded(loss_type))) == always | own, loss_type
    point = conditions.default_params()
    assert point["loss_type"] == "contrastive"
    assert point["temperature"] == frozen.temperature
    assert not {"margin", "hard_negative_weight"} & set(point)


def test_the_default_space_leaves_alone_what_is_fixed_and_holds_the_recipe() -> None:
    config = CLIPFinetuningConfig(learning_rate=3.3e-4, temperature=0.01)
    frozen = config.frozen()
    space = default_space(config, frozen, fixed={"loss_type", "weight_decay"})
    assert "loss_type" not in space
    assert "weight_decay" not in space
    assert "hard_negative_weight" not in space  # the fixed objective has no use for it
    for dimension in space.dimensions:
        assert dimension.contains(getattr(frozen, dimension.key)), dimension
    assert space["temperature"].low == pytest.approx(0.01)  # CLIP holds its scale below 100
    assert default_space(config, frozen, scale_is_clamped=False)["temperature"].low == pytest.approx(0.005)


def test_the_budget_of_a_trial() -> None:
    assert [default_steps(full) for full in (20, 100, 1000, 1003)] == [20, 50, 200, 201]


# --- trials ---


def test_a_study_with_real_training(tiny_data: TinyData, tmp_path: Path) -> None:
    """Trial 0 is the recipe as it stands, and best.yaml trains."""
    folder = tmp_path / "out"
    space = Space.from_options(["learning_rate=1e-3..1e-2:log", "loss_type=multi_positive,hard_negative"])
    outcome = search(recipe(tiny_data, folder), space, trials=3, steps=4)
    assert [record.outcome for record in outcome.trials] == ["complete"] * 3
    assert [record.default for record in outcome.trials] == [True, False, False]
    assert outcome.trials[0].params == {"learning_rate": 1e-3, "loss_type": "multi_positive"}  # its resolved values
    # The same as training the recipe for four steps by hand.
    controller = CLIPFinetuningController(recipe(tiny_data, tmp_path / "hand", max_steps=4), Console(quiet=True))
    controller.setup()
    alone = controller.fine_tune(tiny_data.pairs(), tiny_data.pairs("val"), tmp_path / "hand")
    by_hand = [
        json.loads(line)["val_acc1"] for line in (tmp_path / "hand" / "metrics.jsonl").read_text().splitlines()
        if "val_acc1" in line and json.loads(line)["step"]  # at 0 the heads are judged
    ]  # fmt: skip
    assert alone["steps"] == outcome.trials[0].steps == 4
    # by hand it is judged at steps 3 (the end of the epoch) and 4
    assert by_hand == [outcome.trials[0].history[step] for step in (3, 4)]
    for record in outcome.trials:
        logged = [json.loads(line) for line in (folder / "trials" / f"{record.number:04d}" / "metrics.jsonl").open()]
        judged = {row["step"]: row["val_acc1"] for row in logged if "val_acc1" in row and row["step"]}
        assert judged == record.history
        assert {path.name for path in (folder / "trials" / f"{record.number:04d}").iterdir()} == {
            "metrics.jsonl",
            "memory.json",
        }
    assert max(record.value for record in outcome.trials) == outcome.best.value

    written = yaml.safe_load((folder / "best.yaml").read_text())
    assert not {"max_steps", "output_dir", "eval_steps", "save_steps"} & set(written)
    assert written["data_path"] == str(tiny_data.folder)
    best = load_recipe(folder / "best.yaml", {"output_dir": str(tmp_path / "full"), "max_steps": 2})
    for key, value in ({} if outcome.best.default else outcome.best.params).items():
        assert getattr(best, key) == value
    from domainclip.finetune import run_training

    assert run_training(best, console=Console(quiet=True)).report["training"]["steps"] == 2


def test_what_is_written(tiny_data: TinyData, tmp_path: Path, scripted: Any) -> None:
    seen = scripted(lambda config: [0.5] if config.learning_rate == 1e-3 else [0.4, 0.55, 0.5, 0.52])
    outcome = search(recipe(tiny_data, tmp_path, warmup_steps=3), trials=12, steps=8)
    assert [config.max_steps for config in seen] == [8] * 12
    assert {config.warmup_steps for config in seen} == {4}  # 3 of the whole run's 6 are half of it
    rows = list(csv.DictReader((tmp_path / "trials.csv").open()))
    assert len(rows) == 12
    assert {row["state"] for row in rows} == {"complete"}
    for row, record in zip(rows, outcome.trials, strict=True):
        assert float(row["learning_rate"]) == record.params["learning_rate"]
        assert float(row["gain_over_default"]) == pytest.approx(float(row["value"]) - 0.5)
    text = (tmp_path / "tuning.md").read_text()
    assert "within one standard error" in text  # 0.05 better, and the standard error is 0.1
    content = json.loads((tmp_path / "tuning.json").read_text())
    assert content["gain"] == pytest.approx(0.05)
    assert content["trials"][1]["history"] == {"2": 0.4, "3": 0.55, "4": 0.5, "6": 0.52}
    assert content["importances"] == {"learning_rate": pytest.approx(1.0)}
    for name in ("history", "slices", "importances"):
        assert (tmp_path / "tuning_plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"tuning_plots/{name}.png" in text
    assert not [path for path in (tmp_path / "trials").rglob("*") if path.name == "file"]


@pytest.mark.usefixtures("undrawn")
def test_the_default_is_kept_where_nothing_is_better(tiny_data: TinyData, tmp_path: Path, scripted: Any) -> None:
    scripted(lambda config: [0.5])
    outcome = search(recipe(tiny_data, tmp_path, learning_rate=0.5), trials=3)  # outside the searched range
    assert outcome.best is outcome.default is outcome.trials[0]
    assert outcome.default.params == {}
    assert "keep it" in (tmp_path / "tuning.md").read_text()
    assert yaml.safe_load((tmp_path / "best.yaml").read_text())["learning_rate"] == 0.5


@pytest.mark.usefixtures("undrawn")
def test_trials_below_the_median_are_pruned(tiny_data: TinyData, tmp_path: Path, scripted: Any) -> None:
    told: list[int] = []

    def worse_and_worse(config: CLIPFinetuningConfig) -> list[float]:
        told.append(0)
        return [0.9 - 0.1 * len(told)] * 5  # at steps 2, 3, 4, 6, 8: an epoch has three

    scripted(worse_and_worse)
    outcome = search(recipe(tiny_data, tmp_path), trials=7, steps=8)
    assert [record.outcome for record in outcome.trials] == ["complete"] * 5 + ["pruned"] * 2
    pruned = outcome.trials[5]
    assert pruned.steps == 3  # not at the first validation, when the rate has hardly risen
    assert pruned.history == {2: pytest.approx(0.3), 3: pytest.approx(0.3)}
    assert "median" in pruned.reason
    assert outcome.best.number == 0


@pytest.mark.usefixtures("undrawn")
def test_divergence_and_lack_of_memory_are_results(tiny_data: TinyData, tmp_path: Path, scripted: Any) -> None:
    errors: list[Exception | None] = [
        None, TrainingDivergedError("loss nan at step 1"), MemoryConstraintError("4 GiB wanted"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), None,
    ]  # fmt: skip

    def script(config: CLIPFinetuningConfig) -> list[float]:
        error = errors.pop(0)
        if error:
            raise error
        return [0.5]

    scripted(script)
    outcome = search(recipe(tiny_data, tmp_path), trials=5)
    assert [r.outcome for r in outcome.trials] == ["complete", "diverged", "out_of_memory", "out_of_memory", "complete"]
    assert [r.value for r in outcome.trials] == [0.5, None, None, None, 0.5]
    rows = list(csv.DictReader((tmp_path / "trials.csv").open()))
    assert rows[1]["reason"] == "loss nan at step 1"
    assert "4 GiB wanted" in (tmp_path / "tuning.md").read_text()
    assert not [path for path in (tmp_path / "trials").rglob("*") if path.name == "file"]


@pytest.mark.usefixtures("undrawn")
def test_real_divergence_does_not_stop_the_study(tiny_data: TinyData, tmp_path: Path) -> None:
    outcome = search(recipe(tiny_data, tmp_path), Space.from_options(["learning_rate=1e30,1e31"]), trials=2)
    assert [record.outcome for record in outcome.trials] == ["complete", "diverged"]


@pytest.mark.usefixtures("undrawn")
def test_other_errors_stop_the_study_and_the_trial_is_tried_again(
    tiny_data: TinyData, tmp_path: Path, scripted: Any
) -> None:
    def broken(config: CLIPFinetuningConfig) -> list[float]:
        if config.learning_rate != 1e-3:
            raise RuntimeError("a bug")
        return [0.5]

    scripted(broken)
    with pytest.raises(RuntimeError, match="a bug"):
        search(recipe(tiny_data, tmp_path), trials=3)
    scripted(lambda config: [0.6])
    outcome = search(recipe(tiny_data, tmp_path), trials=3, resume=True)
    assert [record.outcome for record in outcome.trials] == ["complete", "error", "complete", "complete"]
    assert outcome.trials[2].retry_of == 1
    assert outcome.trials[2].params == outcome.trials[1].params


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
        parts = search(recipe(tiny_data, tmp_path / "parts"), trials=trials, resume=True)
    drawn = [record.params for record in whole.trials]
    assert [record.params for record in parts.trials] == drawn
    assert len({params["learning_rate"] for params in drawn}) == 6


@pytest.mark.usefixtures("undrawn")
def test_what_has_changed_is_refused(tiny_data: TinyData, tmp_path: Path, scripted: Any) -> None:
    scripted(lambda config: [0.5])
    config = recipe(tiny_data, tmp_path)
    search(config)
    with pytest.raises(ConfigurationError, match=r"already holds a study.*--resume"):
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
    with pytest.raises(Interrupted, match=r"1 of 3 trials are finished.*--resume") as stop:
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
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(values=values)], env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    began = time.monotonic()
    while process.poll() is None and not (tmp_path / "out" / "trials" / "0001" / "metrics.jsonl").exists():
        time.sleep(0.002)
        assert time.monotonic() - began < 120
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    outcome = search(config, trials=3, steps=3, resume=True)
    assert [record.outcome for record in outcome.trials] == ["complete", "killed", "complete", "complete"]
    assert outcome.trials[2].params == outcome.trials[1].params
    assert {path.name for path in (tmp_path / "out" / "trials").rglob("*") if path.is_file()} == {
        "metrics.jsonl",
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
    with pytest.raises(ConfigurationError, match=r"study\.db cannot be written: .*No space left.*--resume"):
        search(recipe(tiny_data, tmp_path / "study"))

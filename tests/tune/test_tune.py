"""Tuning: the space, the trials, what a kill leaves, and what is written."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from domainclip.config import CLIPFinetuningConfig, load_recipe
from domainclip.domains import load_domain
from domainclip.errors import (
    ConfigurationError,
    MemoryConstraintError,
    TrainingDivergedError,
)
from domainclip.losses import LOSSES
from domainclip.pipelines.controller import CLIPFinetuningController
from domainclip.reports.schema import TuningReport
from domainclip.resolve import ResolvedRun
from domainclip.tune import Space
from domainclip.tune.conditions import Conditions, keys_read
from domainclip.tune.default_space import default_space
from domainclip.tune.prepare import default_steps
from tiny_data import TinyData
from tune_cases import recipe, search

pytestmark = [pytest.mark.slow, pytest.mark.figures]

# --- the space ---


def test_ranges_and_choices_are_read() -> None:
    space = Space.from_options(
        [
            "learning-rate=1e-6..1e-4:log",
            "warmup_steps=10..20",
            "loss_type=contrastive,multi_positive",
            "batch_size=4,8",
            "multi_scale_scales=[1.0, 0.5],[1.0, 0.75]",
            "learnable_temp=true,false",
            "temperature=1e-2,5e-2",
        ]
    )
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
    with pytest.raises(ConfigurationError, match="does not exist"):
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
        ("max_steps=10..20", "steps="),
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
    space = default_space(config, ResolvedRun(frozen, load_domain("medical")))
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
    run = ResolvedRun(frozen, load_domain("general"))
    space = default_space(config, run, fixed={"loss_type", "weight_decay"})
    assert "loss_type" not in space
    assert "weight_decay" not in space
    assert "hard_negative_weight" not in space  # the fixed objective has no use for it
    for dimension in space.dimensions:
        assert dimension.contains(getattr(frozen, dimension.key)), dimension
    assert space["temperature"].low == pytest.approx(0.01)  # CLIP holds its scale below 100
    assert default_space(config, run, scale_is_clamped=False)["temperature"].low == pytest.approx(0.005)


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
        json.loads(line)["val_acc1"]
        for line in (tmp_path / "hand" / "metrics.jsonl").read_text().splitlines()
        if "val_acc1" in line and json.loads(line)["step"]  # at 0 the probe's model is validated
    ]
    assert alone["steps"] == outcome.trials[0].steps == 4
    # by hand it is validated at steps 3 (the end of the epoch) and 4
    assert by_hand == [outcome.trials[0].history[step] for step in (3, 4)]
    for record in outcome.trials:
        logged = [json.loads(line) for line in (folder / "trials" / f"{record.number:04d}" / "metrics.jsonl").open()]
        validated = {row["step"]: row["val_acc1"] for row in logged if "val_acc1" in row and row["step"]}
        assert validated == record.history
        assert {path.name for path in (folder / "trials" / f"{record.number:04d}").iterdir()} == {
            "metrics.jsonl",
            "milestones.jsonl",
            "validations.jsonl",
            "classes.json",
            "memory.json",
        }
    assert max(record.value for record in outcome.trials) == outcome.best.value

    written = yaml.safe_load((folder / "best.yaml").read_text())
    assert not {"max_steps", "output_dir", "eval_steps", "save_steps"} & set(written)
    assert written["data_path"] == str(tiny_data.folder)
    best = load_recipe(folder / "best.yaml", {"output_dir": str(tmp_path / "full"), "max_steps": 2})
    for key, value in ({} if outcome.best.default else outcome.best.params).items():
        assert getattr(best, key) == value
    from domainclip.pipelines import run_training

    assert run_training(best, console=Console(quiet=True)).report.training.steps == 2


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
    assert content["schema_version"] == "1.0" and TuningReport.model_validate(content).to_dict() == content
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
    reported: list[int] = []

    def worse_and_worse(config: CLIPFinetuningConfig) -> list[float]:
        reported.append(0)
        return [0.9 - 0.1 * len(reported)] * 5  # at steps 2, 3, 4, 6, 8: an epoch has three

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
        None,
        TrainingDivergedError("loss nan at step 1"),
        MemoryConstraintError("4 GiB wanted"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        None,
    ]

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

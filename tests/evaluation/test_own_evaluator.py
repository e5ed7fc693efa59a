"""An evaluator in one plugin file, as docs/adding-an-evaluator.md shows it: its figures are everywhere."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest

from checkpoints import best_weights
from domainclip.evaluation import EVALUATORS
from domainclip.metrics.metric import METRICS

pytestmark = pytest.mark.slow

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-an-evaluator.md"
TITLE = "nearer to its own caption than to another"
RUN = ["--model", "tiny", "max_steps=4", "eval_steps=1", "batch_size=6", "num_workers=0", "mixed_precision=false"]


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path) -> Iterator[list[str]]:
    """The recipe keys that name the page's evaluator; what it registers is gone after the test."""
    evaluators, facts, modules = dict(EVALUATORS._entries), deepcopy(METRICS._facts), set(sys.modules)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    (tmp_path / "pairs.py").write_text(block, encoding="utf-8")
    yield [f"plugins=[{tmp_path / 'pairs.py'}]", "evaluators=[pairs]", "device=cpu"]
    EVALUATORS._entries, METRICS._facts = evaluators, facts
    for name in set(sys.modules) - modules:
        if name.startswith("domainclip_plugin_"):
            del sys.modules[name]


def test_evaluate_shows_it_on_the_terminal_and_in_its_file(domainclip, tiny_data, tmp_path: Path, plugin) -> None:
    output = tmp_path / "figures.json"
    found = domainclip("evaluate", "--model", "tiny", "--data", tiny_data.folder, "--output", output, *plugin)
    assert found.exit_code == 0, found.err
    assert "pair_accuracy" in found.out or TITLE in found.out
    assert 0 <= json.loads(output.read_text(encoding="utf-8"))["metrics"]["pair_accuracy"] <= 1


def test_training_validates_chooses_and_reports_by_it(domainclip, tiny_data, tmp_path: Path, plugin) -> None:
    folder = tmp_path / "run"
    keys = [*RUN, *plugin, "primary_metric=pair_accuracy", "early_stopping_patience=1"]
    done = domainclip("train", "--data", tiny_data.folder, "--output", folder, *keys)
    assert done.exit_code == 0, done.err
    assert "pair_accuracy" in done.out + done.err  # each validation's line
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    values = [line["val_pair_accuracy"] for line in lines if "val_pair_accuracy" in line]
    best = json.loads((best_weights(folder) / "best.json").read_text(encoding="utf-8"))
    assert best["metric"] == "pair_accuracy" and best["value"] in values
    # It stops at the first validation that is no better than the best one before it.
    assert all(later > max(values[: at + 1]) for at, later in enumerate(values[1:-1]))
    report = (folder / "report.json").read_text(encoding="utf-8")
    assert "pair_accuracy" in report
    text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("report*.md"))
    assert TITLE in text


def test_a_comparison_tests_it(domainclip, tiny_data, plugin) -> None:
    arguments = ["--model", "a=tiny", "--model", "b=tiny", "--data", f"own={tiny_data.folder}"]
    found = domainclip("compare", *arguments, "--metric", "pair_accuracy", "--json", *plugin)
    assert found.exit_code == 0, found.err
    reference, other = json.loads(found.out)["cells"]
    assert reference["metric"] == "pair_accuracy" and reference["low"] <= reference["value"] <= reference["high"]
    assert other["p_value"] == 1.0 and other["verdict"] == "no difference"  # the same model twice
    missing = domainclip("compare", *arguments, "--metric", "pair_acuracy", *plugin)
    assert missing.exit_code == 2 and "pair_acuracy" in missing.err


def test_tuning_searches_for_it(domainclip, tiny_data, tmp_path: Path, plugin) -> None:
    pytest.importorskip("optuna")
    folder = tmp_path / "tuning"
    keys = [*plugin, "primary_metric=pair_accuracy", "batch_size=6", "num_workers=0", "mixed_precision=false"]
    found = domainclip(
        "tune", "--model", "tiny", "--data", tiny_data.folder, "--output", folder, "--trials", 1, "--steps", 2, *keys
    )
    assert found.exit_code == 0, found.err
    (content,) = (json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("tuning.json"))
    assert content["metric"] == "pair_accuracy"


def test_wrong_names_say_what_there_is(domainclip, tiny_data, plugin) -> None:
    data = ("evaluate", "--model", "tiny", "--data", tiny_data.folder)
    unknown = domainclip(*data, plugin[0], "evaluators=[pair]", "device=cpu")
    assert unknown.exit_code == 2 and "Invalid evaluator 'pair'. Did you mean 'pairs'?" in unknown.err
    metric = domainclip(*data, *plugin, "primary_metric=pair_acuracy")
    assert (
        metric.exit_code == 2 and "Invalid primary_metric 'pair_acuracy': did you mean 'pair_accuracy'?" in metric.err
    )

"""Going on with a run, and what commands may replace, as a user types it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from domainclip.models import make_tiny_clip
from domainclip.models.io import save_encoder
from domainclip.pipelines.output_lock import locked_output
from tiny_data import TinyData

SHORT = [
    "num_epochs=1",
    "batch_size=6",
    "num_workers=0",
    "mixed_precision=false",
    "device=cpu",
    "bootstrap_resamples=0",
]


@pytest.mark.parametrize("command", ["train", "tune"])
@pytest.mark.parametrize("given", [[], ["error_analysis=true"], ["output_dir=HERE/none"]])
def test_resuming_where_nothing_is_says_so(domainclip: Any, tmp_path: Path, command: str, given: list[str]) -> None:
    where = ["-o", tmp_path / "none"] if "output_dir=HERE/none" not in given else []
    done = domainclip(command, "--resume", *where, *[each.replace("HERE", str(tmp_path)) for each in given])
    assert done.exit_code == 2 and f"in {tmp_path / 'none'} to resume" in done.err
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_recipe_wherever_its_data_are(
    domainclip: Any, tiny_data: TinyData, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(tiny_data.folder, data)
    done = domainclip("train", "-d", data, "-m", "tiny", "-o", out, *SHORT)
    assert done.exit_code == 0, done.err
    data.rename(tmp_path / "moved")
    lost = domainclip("train", "-o", out, "--resume", "retrieval_top_k=3")
    assert lost.exit_code == 2 and f"Data not found: {data}" in lost.err
    found = domainclip("train", f"output_dir={out}", "--resume", "--data", tmp_path / "moved", "retrieval_top_k=3")
    assert found.exit_code == 0, found.err
    saved = yaml.safe_load((out / "recipe.yaml").read_text())
    assert (saved["data_path"], saved["retrieval_top_k"]) == (str(tmp_path / "moved"), 3)


def test_home_is_meant_wherever_a_path_is_given(
    domainclip: Any, tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny_data.folder, tmp_path / "data")
    (tmp_path / "own.yaml").write_text("num_epochs: 3\ndata_path: ~/data\n")
    checked = domainclip("data", "check", "~/data")
    assert "not found" not in checked.err.lower() and checked.exit_code in (0, 1), checked.err
    assert domainclip("config", "validate", "~/own.yaml").exit_code == 0
    shown = domainclip("config", "show", "--recipe=~/own.yaml", "output_dir=~/out", "--json")
    assert str(tmp_path / "out") in shown.out and f"{tmp_path}/data" in shown.out and "~" not in shown.out
    made = domainclip("domain", "new", "own", "--output=~/made.yaml")
    assert made.exit_code == 0 and (tmp_path / "made.yaml").is_file()
    refused = domainclip("train", "--resume", "--output=~/none")
    assert str(tmp_path / "none") in refused.err


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_training_into_a_folder_of_the_users_own_deletes_nothing(
    domainclip: Any, tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_encoder(make_tiny_clip(), tmp_path / "model")
    (tmp_path / "report.md").write_text("my report")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for model in ("model", "tiny"):
        done = domainclip("train", "-d", tiny_data.folder, "--model", model, "--output", ".", *overwrite, *SHORT)
        assert done.exit_code == 2 and "give another output directory" in done.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "command",
    [
        ["train", "-d", "DATA", "-m", "tiny", "-o", "OUT"],
        ["train", "-d", "DATA", "-m", "tiny", "-o", "OUT", "--overwrite"],
        ["tune", "-d", "DATA", "-m", "tiny", "-o", "OUT"],
        ["compare", "-d", "DATA", "-m", "tiny", "-o", "OUT"],
        ["align", "report", "-d", "DATA", "-m", "tiny", "-o", "OUT"],
        ["evaluate", "-d", "DATA", "-m", "tiny", "-o", "OUT/figures.json"],
    ],
    ids=lambda words: " ".join(words[:1] + words[6:]),
)
def test_what_another_process_writes_is_left_alone(
    domainclip: Any, tiny_data: TinyData, tmp_path: Path, command: list[str]
) -> None:
    out = tmp_path / "out"
    is_file = command[0] == "evaluate"
    with locked_output(out / "figures.json" if is_file else out, "--output", print, is_file=is_file):
        there = sorted(out.iterdir())
        words = [each.replace("DATA", str(tiny_data.folder)).replace("OUT", str(out)) for each in command]
        done = domainclip(*words)
        assert done.exit_code == 2 and "is being written by another process (process " in done.err
        assert sorted(out.iterdir()) == there


@pytest.mark.parametrize("what", ["table", "image", "model"])
def test_figures_do_not_replace_what_they_are_of(
    domainclip: Any, tiny_data: TinyData, tmp_path: Path, what: str
) -> None:
    shutil.copytree(tiny_data.folder, tmp_path / "data")
    save_encoder(make_tiny_clip(), tmp_path / "model")
    targets = {"table": "data/test.csv", "image": "data/images/brick_0.jpg", "model": "model/config.json"}
    target = tmp_path / targets[what]
    before = target.read_bytes()
    done = domainclip("evaluate", "-d", tmp_path / "data", "-m", tmp_path / "model", "-o", target)
    assert done.exit_code == 2 and f"would replace {target}, a file of" in done.err
    assert target.read_bytes() == before


def test_a_comparison_replaces_only_a_comparison(domainclip: Any, tiny_data: TinyData, tmp_path: Path) -> None:
    (tmp_path / "matrix.png").write_text("mine")
    words = ["compare", "-d", tiny_data.folder, "-m", "tiny", "-o"]
    done = domainclip(*words, tmp_path)
    assert done.exit_code == 2 and "no comparison has written" in done.err
    for _ in range(2):
        done = domainclip(*words, tmp_path / "out")
        assert done.exit_code == 0, done.err
    assert (tmp_path / "matrix.png").read_text() == "mine"


def test_a_run_without_its_recipe_is_said(domainclip: Any, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for more in ((), ("num_epochs=3",)):
        done = domainclip("train", "--output", tmp_path / "run", "--resume", *more)
        assert done.exit_code == 2 and "no recipe.yaml" in done.err and "--recipe FILE" in done.err

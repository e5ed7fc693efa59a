"""Runs that go on otherwise than they began: longer, with other data, by other threads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

SHORT = ["batch_size=6", "num_workers=0", "mixed_precision=false", "device=cpu", "early_stopping_patience=0"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data`` and ``run``, of two epochs."""
    from typer.testing import CliRunner

    from domainclip.cli.main import app
    from tiny_data import write_tiny_data

    base = tmp_path_factory.mktemp("finished")
    write_tiny_data(base / "data")
    words = ["train", "-d", str(base / "data"), "-m", "tiny", "-o", str(base / "run"), "num_epochs=2", *SHORT]
    assert CliRunner().invoke(app, words).exit_code == 0
    return base


@pytest.fixture
def base(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "base")
    return tmp_path / "base"


def resume(domainclip: Any, base: Path, *words: str) -> Any:
    return domainclip("train", "-o", base / "run", "--resume", "-d", base / "data", *words)


def weights(base: Path) -> dict[str, torch.Tensor]:
    return load_file(base / "run" / "model" / "model.safetensors")


def test_a_finished_run_is_lengthened_and_says_so(domainclip: Any, base: Path) -> None:
    before = weights(base)
    done = resume(domainclip, base, "num_epochs=4")
    assert done.exit_code == 0, done.err
    report = json.loads((base / "run" / "report.json").read_text())
    assert report["training"]["steps"] == 12
    assert any("num_epochs=4 in place of num_epochs=2" in warning for warning in report["warnings"])
    assert yaml.safe_load((base / "run" / "recipe.yaml").read_text())["num_epochs"] == 4
    assert any(not torch.equal(value, before[name]) for name, value in weights(base).items())
    (base / "run" / "domain.yaml").unlink()  # of the run's record, so it is written again
    again = resume(domainclip, base)
    assert again.exit_code == 0 and (base / "run" / "domain.yaml").is_file(), again.err
    less = resume(domainclip, base, "num_epochs=1")
    assert less.exit_code == 2 and "num_epochs=1 asks for 3 steps" in less.err and "has made 12 already" in less.err


def test_data_that_have_changed_are_named_and_refused(domainclip: Any, base: Path) -> None:
    table = base / "data" / "test.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:-1]) + "\n")
    changed = next((base / "data" / "images").glob("*_0.*"))
    Image.new("RGB", (40, 40), "blue").save(changed)
    kept = {path: path.read_bytes() for path in (base / "run").rglob("*") if path.is_file()}
    refused = resume(domainclip, base)
    assert refused.exit_code == 2, refused.out
    words = " ".join(refused.err.split())
    assert "test: 1 row gone" in words and "with other bytes" in words and changed.name in words
    assert "--accept-changed-data" in words
    same = {path: path.read_bytes() for path in (base / "run").rglob("*") if path.is_file()}
    assert same.keys() == kept.keys()
    assert all(same[path] == kept[path] for path in kept if path.name not in (".domainclip.json", "metrics.jsonl"))
    taken = resume(domainclip, base, "--accept-changed-data")
    assert taken.exit_code == 0, taken.err
    report = json.loads((base / "run" / "report.json").read_text())
    assert any("data that had changed" in warning for warning in report["warnings"])
    assert report["before"].keys() == report["after"].keys()
    assert len((base / "run" / "predictions.csv").read_text().splitlines()) == len(lines) - 1
    assert resume(domainclip, base).exit_code == 0


def test_a_run_with_more_training_rows_goes_on_where_that_is_wanted(domainclip: Any, base: Path) -> None:
    table = base / "data" / "train.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, *lines[1:8]]) + "\n")
    assert resume(domainclip, base, "num_epochs=3").exit_code == 2
    done = resume(domainclip, base, "num_epochs=3", "--accept-changed-data")
    assert done.exit_code == 0, done.err
    assert json.loads((base / "run" / "report.json").read_text())["training"]["steps"] > 6


def test_another_number_of_threads_is_said(domainclip: Any, base: Path) -> None:
    threads = torch.get_num_threads()
    assert f"# Trained by {threads} threads" in (base / "run" / "recipe.yaml").read_text()
    try:
        torch.set_num_threads(threads + 1)
        done = resume(domainclip, base, "num_epochs=3")
    finally:
        torch.set_num_threads(threads)
    assert done.exit_code == 0
    warnings = json.loads((base / "run" / "report.json").read_text())["warnings"]
    assert any(f"by {threads} threads until step 6, and by {threads + 1}" in warning for warning in warnings)

"""A run's folder: whose it is, what may be deleted, and that a run resolves its recipe once."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import ConfigurationError
from domainclip.files import require_writable
from domainclip.output_record import RECORD
from domainclip.pipelines import fine_tune, run_training
from domainclip.pipelines.run_folder import RunFolder
from tiny_data import TinyData

pytestmark = pytest.mark.slow


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_run_writes_what_its_folder_knows_and_resolves_once(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    resolve = fine_tune.resolve
    monkeypatch.setattr(
        fine_tune, "resolve", lambda *given, **named: calls.append("resolve") or resolve(*given, **named)
    )
    config = CLIPFinetuningConfig(
        model_name="tiny",
        data_path=str(tiny_data.folder),
        output_dir=str(tmp_path / "run"),
        batch_size=6,
        max_steps=2,
        num_workers=0,
        mixed_precision=False,
        error_analysis=True,
        alignment_visualization=True,
        retention_data=[str(tiny_data.folder)],
        wise_ft=False,
    )
    run_training(config, console=Console(quiet=True))
    assert calls == ["resolve"]
    folder = RunFolder(tmp_path / "run")
    known = {Path(name).parts[0] for name in RunFolder.FILES}
    assert files_of(folder.path) <= known | {"alignment", RECORD}
    for path in (folder.recipe, folder.facts, folder.before, folder.metrics, folder.model, folder.report):
        assert path.exists(), path
    assert folder.is_trained
    (folder.path / "notes.txt").write_text("the user's")
    with pytest.raises(ConfigurationError, match=r"already holds a run \(recipe\.yaml, domain\.yaml, run\.json\)"):
        folder.claim()
    folder.claim(resume=True)
    folder.claim(overwrite=True)
    assert folder.recipe.exists(), "claiming deletes nothing"
    folder.clear()
    assert files_of(folder.path) == {"notes.txt"}
    folder.claim()


def test_a_claim_is_one_of_two_ways(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="give one of the two"):
        RunFolder(tmp_path).claim(resume=True, overwrite=True)


@pytest.mark.parametrize("inner", ["", "deeper/run"])
def test_a_place_that_cannot_be_written_is_said_and_left_alone(tmp_path: Path, inner: str) -> None:
    (tmp_path / "taken").write_text("the user's")
    with pytest.raises(ConfigurationError, match=r"The output directory .* cannot be written"):
        RunFolder(tmp_path / "taken" / inner).claim()
    assert (tmp_path / "taken").read_text() == "the user's"


def test_looking_whether_a_place_can_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "run", "--output")
    require_writable(tmp_path / "new" / "figures.json", "--output", is_file=True)
    assert os.listdir(tmp_path) == []
    with pytest.raises(ConfigurationError, match=r"--output .* is a directory: give the name of a file"):
        require_writable(tmp_path, "--output", is_file=True)


def test_a_finished_run_keeps_one_checkpoint_and_says_its_size(tiny_data: TinyData, tmp_path: Path) -> None:
    said = io.StringIO()
    values = {
        "model_name": "tiny",
        "data_path": str(tiny_data.folder),
        "output_dir": str(tmp_path / "run"),
        "batch_size": 6,
        "num_epochs": 2,
        "num_workers": 0,
        "mixed_precision": False,
        "save_steps": 1,
        "early_stopping_patience": 0,
    }
    run_training(CLIPFinetuningConfig(**values), console=Console(file=said, width=300))
    folder = RunFolder(tmp_path / "run")
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-00000006"]
    weights = folder.model / "model.safetensors"
    assert not folder.best.exists()
    files = {path.stat().st_ino: path.stat().st_size for path in folder.path.rglob("*") if path.is_file()}
    size = float(said.getvalue().split("Folder: ")[1].split(" MB")[0].replace(",", ""))
    assert abs(size - sum(files.values()) / 1e6) < 0.1
    first = weights.read_bytes()
    again = run_training(CLIPFinetuningConfig(**values), resume=True, console=Console(quiet=True))
    assert weights.read_bytes() == first
    assert again.report.training.steps == 6
    longer = run_training(CLIPFinetuningConfig(**{**values, "num_epochs": 3}), resume=True, console=Console(quiet=True))
    assert longer.report.training.steps == 9

"""What is left in the folder of a finished run, and that it goes on from there, or says that it cannot."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import CheckpointError, ConfigurationError
from domainclip.models import make_tiny_clip
from domainclip.models.io import save_encoder
from domainclip.pipelines import CLIPFinetuningController, run_training
from domainclip.pipelines.run_folder import RunFolder
from domainclip.training import CheckpointStore
from tiny_data import TinyData

pytestmark = pytest.mark.slow

Train = Callable[..., str]


class Killed(BaseException):
    """Stands for SIGKILL: nothing that follows is done."""


@pytest.fixture(scope="module")
def train(tiny_data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains in a folder, and gives what was said. The model that it saves has another temperature than the best."""
    model = tmp_path_factory.mktemp("models") / "clip"
    save_encoder(make_tiny_clip(7), model)

    def run(folder: Path, resume: bool = False, **changed: Any) -> str:
        values = {
            "model_name": str(model),
            "data_path": str(tiny_data.folder),
            "output_dir": str(folder),
            "batch_size": 6,
            "num_epochs": 2,
            "num_workers": 0,
            "mixed_precision": False,
            "device": "cpu",
            "learning_rate": 1e-3,
            "save_steps": 2,
            "probe_first": False,
            "early_stopping_patience": 0,
        }
        said = io.StringIO()
        run_training(
            CLIPFinetuningConfig(**{**values, **changed}), resume=resume, console=Console(file=said, width=1000)
        )
        return said.getvalue()

    return run


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def result(folder: Path) -> tuple[bytes, Any]:
    report = json.loads((folder / "report.json").read_text())
    return (folder / "model" / "model.safetensors").read_bytes(), report["after"]


@pytest.fixture(scope="module")
def longer(train: Train, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, Any]]:
    """What a run comes to that was lengthened once it had finished, where nothing was removed before."""
    found = {}
    for calibrated in (False, True):
        folder = tmp_path_factory.mktemp("longer") / "run"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CheckpointStore, "finish", lambda self, keep: None)
            train(folder, calibrate_temperature=calibrated)
            train(folder, resume=True, num_epochs=3, calibrate_temperature=calibrated)
        found[str(calibrated)] = result(folder)
    return found


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_finished_run_goes_on_from_its_checkpoint(
    train: Train, longer: dict[str, tuple[bytes, Any]], tmp_path: Path, calibrated: bool
) -> None:
    folder = tmp_path / "run"
    said = train(folder, calibrate_temperature=calibrated)
    assert "keep_checkpoints=0" in said and "(checkpoints/) are kept only so that the run can go on" in said
    assert not (folder / "best").exists()
    [checkpoint] = (folder / "checkpoints").iterdir()
    weights = [place / "model.safetensors" for place in (folder / "model", checkpoint / "best")]
    assert weights[0].samefile(weights[1]) != calibrated, "what the model has is not kept twice"
    first = result(folder)
    train(folder, resume=True, calibrate_temperature=calibrated)
    assert result(folder) == first
    train(folder, resume=True, num_epochs=3, calibrate_temperature=calibrated)
    assert result(folder) == longer[str(calibrated)]
    assert not (folder / "best").exists()


def test_without_checkpoints_the_model_stays_and_a_lengthening_says_why_not(train: Train, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    said = train(folder, keep_checkpoints=0)
    assert "no checkpoint is kept (keep_checkpoints=0), so that the run cannot go on" in said
    assert not {"best", "checkpoints"} & {path.name for path in folder.iterdir()}
    before = files_of(folder)
    assert {"model/model.safetensors", "report.md", "report.json", "plots/loss.png"} <= before
    with pytest.raises(ConfigurationError, match="finished, and no checkpoint of it was kept"):
        train(folder, resume=True, num_epochs=3)
    assert files_of(folder) == before


def test_the_checkpoint_of_a_finished_run_can_be_dropped_later(train: Train, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder)
    first = result(folder)
    train(folder, resume=True, keep_checkpoints=0)
    assert result(folder) == first
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize("links", [True, False])
def test_a_model_that_was_taken_away(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """Where the file system knows no links, nothing but the model has the best weights."""

    def no_links(*arguments: Any) -> None:
        raise PermissionError("no links here")

    folder = tmp_path / "run"
    if not links:
        monkeypatch.setattr("domainclip.training.checkpoint.os.link", no_links)
    train(folder)
    first = result(folder)
    (folder / "model").rename(tmp_path / "elsewhere")
    if links:
        train(folder, resume=True)
        assert result(folder) == first
    else:
        with pytest.raises(CheckpointError, match=r"config\.json of the best weights is neither in .* \(put it back\)"):
            train(folder, resume=True)


def test_a_folder_where_a_file_has_to_be_is_said_before_the_work(train: Train, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder)
    for name in ("plots/loss.png", "report.json", "memory.json"):
        (folder / name).rename(tmp_path / "aside")
        (folder / name).mkdir()
        with pytest.raises(ConfigurationError, match="is a folder, where a file has to be: move it away"):
            train(folder, resume=True)
        (folder / name).rmdir()
        (tmp_path / "aside").rename(folder / name)


@pytest.mark.parametrize("keep", [1, 0])
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_kill_in_the_clean_up_leaves_a_run_that_goes_on_or_is_finished(
    train: Train, longer: dict[str, tuple[bytes, Any]], tmp_path: Path, keep: int, calibrated: bool
) -> None:
    """Before and after each file that is removed and each folder that is moved."""
    whole = tmp_path / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointStore, "finish", lambda self, keep: None)
        train(whole, calibrate_temperature=calibrated, keep_checkpoints=max(1, keep))
    first, call, ended = result(whole), 0, False
    while not ended:
        call += 1
        folder = tmp_path / f"{call}"
        shutil.copytree(whole, folder)
        ended = _killed_at(call, folder, keep)
        if call % 4 and not ended:  # each takes a while
            continue
        again = {"calibrate_temperature": calibrated, "keep_checkpoints": keep}
        if RunFolder(folder).is_trained:
            train(folder, resume=True, **again)
        else:
            with pytest.raises(ConfigurationError, match="no checkpoint of it was kept"):
                train(folder, resume=True, **again)
        assert result(folder) == first
        assert not (folder / "best").exists()
        assert not [path for path in folder.iterdir() if path.name.startswith(".") and path.suffix == ".tmp"]
        shutil.rmtree(folder)
    assert call > 5


def _killed_at(call: int, folder: Path, keep: int) -> bool:
    """Tidy until a file is removed, or a file or folder moved, for the ``call``-th time; True if it ends before."""
    seen = [0]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("unlink", "rename"):
            original = getattr(Path, name)

            def watched(self: Path, *args: Any, _original: Any = original, **options: Any) -> Any:
                seen[0] += 1
                if seen[0] == call:
                    raise Killed
                return _original(self, *args, **options)

            patch.setattr(Path, name, watched)

        def rmtree(path: Path, ignore_errors: bool = False) -> None:
            for each in sorted(path.rglob("*"), reverse=True) if path.is_dir() else ():
                seen[0] += 1
                if seen[0] == call:
                    raise Killed
                each.rmdir() if each.is_dir() else each.unlink()
            if path.is_dir():
                path.rmdir()

        patch.setattr("domainclip.training.checkpoint.shutil.rmtree", rmtree)
        try:
            RunFolder(folder).tidy(keep)
        except Killed:
            return False
    return True


def test_a_run_from_python_is_tidied_as_well(tiny_data: TinyData, tmp_path: Path) -> None:
    for keep in (2, 0):
        config = CLIPFinetuningConfig(
            model_name="tiny", batch_size=6, num_epochs=1, num_workers=0, mixed_precision=False, keep_checkpoints=keep
        )
        controller = CLIPFinetuningController(config, Console(quiet=True))
        controller.setup()
        controller.fine_tune(tiny_data.pairs(), tiny_data.pairs("val"), tmp_path / f"{keep}")
        assert not (tmp_path / f"{keep}" / "best").exists()
        assert (tmp_path / f"{keep}" / "checkpoints").exists() == bool(keep)

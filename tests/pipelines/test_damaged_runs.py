"""Files of a stopped run that are damaged before it goes on: the same result, or one sentence that names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import CLIPFinetuningError, DamagedFileError
from domainclip.events import CheckpointSaved, Event, StopRun
from domainclip.files import read_checked, read_record, with_checksum, write_record
from domainclip.pipelines import run_training
from domainclip.pipelines.run_folder import RunFolder
from domainclip.training import CheckpointStore
from tiny_data import TinyData

WAYS = (
    *(f"bit {part}" for part in range(16)),
    *(f"cut {part}" for part in range(5)),
    "empty",
    "gone",
    "a folder",
    "no JSON",
    "a list",
    "null",
    "another object",
    "deeply nested",
    "no text",
    "a line more",
)


def damage(path: Path, way: str) -> None:
    """One way in which a file can be spoilt."""
    kind, _, part = way.partition(" ")
    content = bytearray(path.read_bytes())
    if kind == "bit":
        content[int(part) * (len(content) - 1) // 15] ^= 1
    elif kind == "cut":
        content = content[: int(part) * len(content) // 5]
    elif kind == "gone":
        path.unlink()
        return
    elif way == "a folder":
        path.unlink()
        path.mkdir()
        return
    else:
        content = bytearray(
            {
                "empty": b"",
                "no JSON": b"{",
                "a list": b"[1, 2]",
                "null": b"null",
                "another object": b'{"step": "x", "files": 3, "decisions": 7, "best": []}',
                "deeply nested": b"[" * 100_000,
                "no text": b"\xff\xfe\x00",
                "a line more": bytes(content) + b"\nepochs: 3\n",
            }[way]
        )
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_record_is_told_from_a_whole_one(tmp_path: Path, way: str) -> None:
    path, content = tmp_path / "record.json", {"decisions": [{"key": "epochs", "value": 3}], "time": 0.1, "name": "ä"}
    write_record(path, content)
    assert read_record(path) == content
    damage(path, way)
    with pytest.raises(DamagedFileError, match=r"record\.json"):
        read_record(path)


def test_a_record_in_anothers_place_is_told_from_it(tmp_path: Path) -> None:
    write_record(tmp_path / "data.json", {"splits": {}})
    (tmp_path / "data.json").rename(tmp_path / "run.json")
    with pytest.raises(DamagedFileError, match=r"run\.json"):
        read_record(tmp_path / "run.json")


@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_recipe_is_told_from_a_whole_one(tmp_path: Path, way: str) -> None:
    path, text = tmp_path / "recipe.yaml", "domain: general\nnum_epochs: 3\nprompt_templates:\n- ein {} für alle\n"
    path.write_text(with_checksum(text), encoding="utf-8")
    assert read_checked(path) == text
    damage(path, way)
    with pytest.raises(DamagedFileError, match=r"recipe\.yaml"):
        read_checked(path)


def values_of(data: TinyData, model: str, folder: Path) -> dict[str, Any]:
    return {
        "model_name": model,
        "data_path": str(data.folder),
        "output_dir": str(folder),
        "batch_size": 6,
        "num_epochs": 4,
        "num_workers": 0,
        "mixed_precision": False,
        "device": "cpu",
        "learning_rate": 1e-3,
        "augment_images": True,
        "early_stopping_patience": 0,
        "probe_first": False,
        "save_steps": 4,
        "eval_steps": 3,
        "logging_steps": 1,
        "alignment_visualization": True,
        "retention_data": [str(data.folder)],
        "wise_ft": False,
    }


def stop_at(step: int) -> Callable[[Event], None]:
    def listener(event: Event) -> None:
        if isinstance(event, CheckpointSaved) and event.step == step:
            raise StopRun

    return listener


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from domainclip.models import make_tiny_clip
    from domainclip.models.io import save_encoder

    folder = tmp_path_factory.mktemp("start") / "model"
    save_encoder(make_tiny_clip(attention_dropout=0.1), folder)
    return str(folder)


@pytest.fixture(scope="module")
def stopped(tiny_data: TinyData, model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped after the checkpoint at step 8 of 12, with ``best/`` from a validation before it."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(StopRun):
        run_training(
            CLIPFinetuningConfig(**values_of(tiny_data, model, folder)),
            console=Console(quiet=True),
            listeners=[stop_at(8)],
        )
    return folder


def go_on(data: TinyData, model: str, folder: Path) -> tuple[bytes, dict[str, Any], dict[str, Any], Any, Any]:
    """What must not depend on the damage: weights, figures, decisions, curves."""
    report = run_training(
        CLIPFinetuningConfig(**values_of(data, model, folder)), resume=True, console=Console(quiet=True)
    ).report
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    curve = [(row["step"], row.get("loss"), row.get("val_acc1")) for row in rows]
    after = {} if report.after is None else report.after
    references = report.reference_sets
    weights = (folder / "model" / "model.safetensors").read_bytes()
    return weights, dict(report.before or {}), dict(after), curve, references


@pytest.fixture(scope="module")
def expected(tiny_data: TinyData, model: str, stopped: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("expected") / "run"
    shutil.copytree(stopped, folder)
    return go_on(tiny_data, model, folder)


REFUSED = {("run.json", "bit 9"), ("run.json", "null")}
"""Nothing else on the disk has what these held."""


def files_of(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "way"),
    [
        *((name, way) for name in ("before.json", "reference_before.json") for way in ("bit 7", "gone")),
        *(("alignment_before.safetensors", way) for way in ("bit 15", "cut 1", "gone")),
        *(("metrics.jsonl", way) for way in ("bit 3", "no text", "a list", "gone")),
        *(("recipe.yaml", way) for way in ("bit 9", "gone")),
        *(("domain.yaml", way) for way in ("empty",)),
        *(("run.json", way) for way in ("bit 9", "null", "gone")),
        *(("best/model.safetensors", way) for way in ("bit 12", "gone")),
        *(("checkpoints/step-00000008/state.pt", way) for way in ("bit 9", "gone")),
    ],
)
def test_a_run_with_a_damaged_file_ends_alike_or_says_so(
    tiny_data: TinyData, model: str, stopped: Path, expected: Any, tmp_path: Path, name: str, way: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    damage(folder / name, way)
    if (name, way) in REFUSED:
        with pytest.raises(CLIPFinetuningError, match=Path(name).name.replace(".", r"\.")):
            go_on(tiny_data, model, folder)
    else:
        assert go_on(tiny_data, model, folder) == expected


@pytest.mark.slow
def test_every_file_of_a_checkpoint_and_of_the_best_weights_is_checked(stopped: Path, tmp_path: Path) -> None:
    """A damaged newest checkpoint gives way to the one before; damaged best weights to one that knows others."""
    cases = 0
    names = [Path("best") / name for name in files_of(stopped / "best") if name.name != "best.json"]
    newest = sorted((stopped / "checkpoints").glob("step-*"))[-1]
    names += [newest.relative_to(stopped) / name for name in files_of(newest)]
    assert {"state.pt", "manifest.json", "model.safetensors", "tokenizer.json"} <= {name.name for name in names}
    for name in names:
        for way in (*(f"bit {part}" for part in (0, 2, 5, 8, 11, 15)), "cut 1", "cut 4", "empty", "gone"):
            folder, cases = tmp_path / f"{cases}", cases + 1
            shutil.copytree(stopped, folder)
            damage(folder / name, way)
            store = CheckpointStore(folder / "checkpoints")
            found = store.load_latest()
            assert found is not None
            if name.parts[0] == "best" and found[1].step == 8:  # another checkpoint's best weights have this very file
                store.put_back_best(found[1])
                assert (folder / name).read_bytes() == (stopped / name).read_bytes()
                assert name.suffix != ".safetensors"
                shutil.rmtree(folder)
                continue
            assert found[1].step < 8
            assert len(found[2]) == 1
            assert name.name in found[2][0] or newest.name in found[2][0] or name.name == "manifest.json", (name, way)
            shutil.rmtree(folder)
    assert cases >= 80


@pytest.mark.slow
def test_best_weights_of_a_course_given_up_are_not_taken(
    tiny_data: TinyData, model: str, stopped: Path, expected: Any, tmp_path: Path
) -> None:
    """Killed after later weights were the best and before the next checkpoint."""
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    former = folder / "checkpoints" / "step-00000008" / "best"
    (folder / "best").rename(former)
    shutil.copytree(former, folder / "best")
    (folder / "best" / "best.json").write_text("{}")
    assert go_on(tiny_data, model, folder) == expected
    assert not former.exists() or (folder / "best" / "best.json").read_text() != "{}"


@pytest.mark.slow
def test_other_initial_weights_are_refused_where_they_are_needed(
    tiny_data: TinyData, model: str, stopped: Path, tmp_path: Path
) -> None:
    other = tmp_path / "model"
    shutil.copytree(model, other)
    damage(other / "model.safetensors", "bit 12")
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    (folder / "before.json").unlink()
    with pytest.raises(CLIPFinetuningError, match=r"has other weights now than when the run in .* began"):
        go_on(tiny_data, str(other), folder)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(CLIPFinetuningError, match=r"No checkpoint was written yet, and .* has other weights now"):
        go_on(tiny_data, str(other), folder)


@pytest.mark.slow
def test_the_command_refuses_a_damaged_recipe(domainclip: Callable[..., Any], stopped: Path, tmp_path: Path) -> None:
    for name in ("recipe.yaml", "domain.yaml"):
        for way in WAYS:
            if way == "gone":
                continue
            folder = tmp_path / "run"
            folder.mkdir()
            for kept in ("recipe.yaml", "domain.yaml"):
                shutil.copy(stopped / kept, folder / kept)
            damage(folder / name, way)
            result = domainclip("train", "--output", folder, "--resume")
            assert result.exit_code == 2
            assert name in result.err, (name, way, result.err)
            assert "--recipe FILE" in result.err
            shutil.rmtree(folder)


def test_a_folder_knows_the_files_that_are_checked() -> None:
    assert {"recipe.yaml", "run.json", "before.json", "reference_before.json"} <= set(RunFolder.FILES)

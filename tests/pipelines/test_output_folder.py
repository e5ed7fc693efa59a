"""What may be written and deleted in an output folder: only what one of our own runs has left there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import ConfigurationError
from domainclip.pipelines.run_folder import OutputFolder, RunFolder, paths_read
from domainclip.tune.results import PARTS


def write(path: Path, text: str = "the user's") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["model/config.json", "plots/own.png", "report.md", "domain.yaml", "checkpoints/a"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_the_user_are_never_replaced(tmp_path: Path, name: str, overwrite: bool) -> None:
    own = write(tmp_path / name)
    with pytest.raises(ConfigurationError, match=r"holds files that no run has written.*move them away"):
        RunFolder(tmp_path).claim(overwrite=overwrite)
    folder = RunFolder(tmp_path)
    folder.clear()
    assert own.read_text() == "the user's"


@pytest.mark.parametrize("kind", ["file", "folder", "dangling"])
def test_a_link_of_the_users_is_a_file_of_the_users(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "elsewhere"
    if kind == "file":
        write(target)
    elif kind == "folder":
        write(target / "weights")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model").symlink_to(target)
    with pytest.raises(ConfigurationError, match="no run has written"):
        RunFolder(tmp_path / "out").claim(overwrite=True)


def finished(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.claim()
    folder.begin()
    for name in ("recipe.yaml", "model/config.json", "plots/loss.png", "checkpoints/step-00000002/state.pt"):
        write(path / name, "ours")
    folder.end()
    return folder


def test_a_run_is_replaced_and_nothing_beside_it(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run")
    own = write(tmp_path / "run" / "notes.txt")
    with pytest.raises(ConfigurationError, match="already holds a run"):
        folder.claim()
    folder.claim(overwrite=True)
    folder.clear()
    assert os.listdir(tmp_path / "run") == ["notes.txt"] and own.read_text() == "the user's"
    folder.claim()


@pytest.mark.parametrize("name", ["plots/own.png", "model/notes.txt", "report.md"])
def test_what_was_added_to_a_finished_run_is_not_deleted_with_it(tmp_path: Path, name: str) -> None:
    folder = finished(tmp_path)
    own = write(tmp_path / name)
    with pytest.raises(ConfigurationError, match=rf"has not written \({name}\): move them away"):
        folder.claim(overwrite=True)
    own.unlink()
    folder.claim(overwrite=True)


def test_a_killed_run_is_replaced(tmp_path: Path) -> None:
    """It could not say which files it had written; their names were taken before the first of them."""
    folder = RunFolder(tmp_path)
    folder.begin()
    write(tmp_path / "best" / "config.json", "ours")
    folder.claim(overwrite=True)
    folder.clear()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("way", ["plain", "inside", "dotted", "link to it", "link inside", "its parent is a link"])
@pytest.mark.parametrize("key", ["model_name", "data_path", "retention_data", "domain"])
def test_what_a_run_reads_is_not_deleted_for_it(tmp_path: Path, key: str, way: str) -> None:
    folder = finished(tmp_path / "run")
    model = tmp_path / "run" / "model"
    inside = write(model / "domain.yaml", "name: own\nextends: general\n")
    folder.end()
    path = inside if key == "domain" or way == "inside" else model
    if way == "dotted":
        path = path.parent / ".." / path.parent.name / path.name
    elif way == "link to it":
        (tmp_path / "link.yaml").symlink_to(path)
        path = tmp_path / "link.yaml"
    elif way == "link inside":
        (model / "link.yaml").symlink_to(write(tmp_path / "other.yaml", "name: other\nextends: general\n"))
        folder.end()
        path = model / "link.yaml"
    elif way == "its parent is a link":
        (tmp_path / "linked").symlink_to(tmp_path / "run")
        path = tmp_path / "linked" / path.relative_to(tmp_path / "run")
    value = [str(path)] if key == "retention_data" else str(path)
    read = paths_read(CLIPFinetuningConfig(**{key: value}))
    assert (key, str(path)) in read
    with pytest.raises(ConfigurationError, match=rf"{key}=.* is read, and .*model would be replaced"):
        folder.claim(overwrite=True, inputs=read)
    folder.claim(overwrite=True, inputs=[("data_path", str(tmp_path / "run"))])  # holds it: what is beside it stays


def test_there_must_be_a_run_to_go_on_with(tmp_path: Path) -> None:
    write(tmp_path / "recipe.yaml")
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigurationError, match=r"There is no run in .* to resume: leave resume=True out"):
            RunFolder(path).claim(resume=True)
    with pytest.raises(ConfigurationError, match="There is no study in"):
        OutputFolder(tmp_path, PARTS, "study").claim(resume=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_run_and_a_study_share_a_folder(tmp_path: Path) -> None:
    finished(tmp_path)
    study = OutputFolder(tmp_path, PARTS, "study")
    study.claim()
    study.begin()
    write(tmp_path / "tuning.md", "ours")
    study.end()
    study.clear()
    assert (tmp_path / "recipe.yaml").exists() and not (tmp_path / "tuning.md").exists()
    RunFolder(tmp_path).claim(overwrite=True)


def test_a_damaged_record_deletes_nothing(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    for text in ("{", "[]", '{"run": 3}', '{"run": {"names": 1, "files": []}}'):
        write(tmp_path / ".domainclip.json", text)
        with pytest.raises(ConfigurationError, match=r"\.domainclip\.json cannot be read"):
            folder.claim(overwrite=True)


def test_what_killed_writes_have_left_is_removed_by_the_next_start(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    left = [
        ".run.json.0a1b2c3d.tmp",
        ".notes.0a1b2c3d.tmp",
        ".best.0a1b2c3d.tmp/config.json",
        "plots/.loss.png.0a1b2c3d.tmp",
    ]
    own = [".notes.mine.tmp", ".best.mine.tmp"]
    for name in [*left, *own]:
        write(tmp_path / name)
    folder.begin()
    assert [name for name in [*left, *own] if (tmp_path / name).exists()] == own

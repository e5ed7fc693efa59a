"""Checkpoints: whole or not at all, checked, and never the cause of a loss."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from domainclip.data.records import ImageTextPair
from domainclip.errors import CheckpointError
from domainclip.files import sha256_of
from domainclip.models import DualEncoder
from domainclip.training import CheckpointStore, Validation, validation
from domainclip.training.checkpoint import MANIFEST, random_state, recover_directory, restore_random_state
from forked import run_python
from tiny_data import TinyData
from training_setup import make_trainer, same, weights

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def steps(store: CheckpointStore) -> list[int]:
    return [checkpoint.step for checkpoint in store.all()]


def damage(path: Path) -> None:
    content = bytearray((path / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    (path / "state.pt").write_bytes(bytes(content))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    state = {"model": {"w": torch.randn(3, 4)}, "step": 5, "names": ["a", "b"], "best": None}
    path = store.save(5, state)
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest == {"step": 5, "files": {"state.pt": sha256_of(path / "state.pt")}, "best": None}
    found = store.load_latest()
    assert found is not None
    loaded, checkpoint, problems = found
    assert (checkpoint.step, problems) == (5, [])
    assert torch.equal(loaded["model"]["w"], state["model"]["w"])
    assert {key: loaded[key] for key in ("step", "names", "best")} == {"step": 5, "names": ["a", "b"], "best": None}


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "nothing").load_latest() is None


def test_the_last_few_are_kept_in_the_order_of_steps(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (2, 9, 10, 100):
        store.save(step, {"step": step})
    assert steps(store) == [10, 100]
    store.save(100, {"step": 100, "again": True})
    assert steps(store) == [10, 100]
    assert store.load_latest()[0]["again"] is True
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("how", ["bit", "cut", "missing file", "manifest", "no manifest"])
def test_a_damaged_newest_gives_way_to_the_one_before(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, {"value": torch.arange(1000)})
    newest = store.save(2, {"value": torch.arange(1000)})
    if how == "bit":
        damage(newest)
    elif how == "cut":
        os.truncate(newest / "state.pt", 100)
    elif how == "missing file":
        (newest / "state.pt").unlink()
    elif how == "manifest":
        (newest / MANIFEST).write_text("{")
    else:
        (newest / MANIFEST).unlink()
    found = store.load_latest()
    assert found is not None
    assert found[1].step == 1
    assert len(found[2]) == 1
    assert "step-00000002" in found[2][0]
    assert "step-00000002" in caplog.text


def test_all_damaged_is_an_error_that_names_them(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        damage(store.save(step, {"value": torch.arange(1000)}))
    with pytest.raises(CheckpointError, match=r"No checkpoint is whole.*step-00000002.*step-00000001"):
        store.load_latest()


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    store = CheckpointStore(tmp_path)
    store.save(1, {"value": Evil()})
    with pytest.raises(CheckpointError):
        store.load_latest()
    assert not (tmp_path / "owned").exists()


def test_a_course_given_up_does_not_push_out_the_sound_one(tmp_path: Path) -> None:
    """Step 30 is damaged; the run went on from 10. Keeping one must not mean keeping the damaged one."""
    store = CheckpointStore(tmp_path, keep=1)
    damage(store.save(30, {"value": torch.arange(1000)}))
    store.save(20, {"sound": True})
    assert steps(store) == [20]
    assert store.load_latest()[0] == {"sound": True}


@pytest.mark.parametrize("culprit", ["torch.save", "os.fsync", "os.replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failed_save_leaves_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, culprit: str, number: int
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, {"step": 1})
    store.save(2, {"step": 2})

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(culprit, fail)
        with pytest.raises(CheckpointError, match=f"step 3 could not be written.*{os.strerror(number)}"):
            store.save(3, {"step": 3})
    assert steps(store) == [1, 2]
    assert store.load_latest()[0] == {"step": 2}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_a_kill_left_behind_is_put_in_order(tmp_path: Path) -> None:
    for name in (".best.ab12.old", ".best.ab12.tmp", ".other.x.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    recover_directory(tmp_path / "best")  # killed between the two renames: the old one is all there is
    assert (tmp_path / "best" / "file").read_text() == ".best.ab12.old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.x.tmp", "best"]
    (tmp_path / ".best.cd34.old").mkdir()
    recover_directory(tmp_path / "best")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.x.tmp", "best"]


def test_random_states_come_back() -> None:
    import random

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    random.gauss(0, 1), np.random.randn()  # both keep half a pair back
    state = random_state(CPU)
    expected = [draw(), random.gauss(0, 1), float(np.random.randn())]
    draw()
    restore_random_state(state, CPU)
    assert [draw(), random.gauss(0, 1), float(np.random.randn())] == expected


def test_a_full_disk_does_not_end_the_training(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make_trainer(tiny_data.pairs(), tmp_path / "plain")
    plain.train()
    trainer = make_trainer(tiny_data.pairs(), tmp_path / "full")
    save, calls = torch.save, []

    def full(*args: object, **kwargs: object) -> None:
        calls.append(1)
        if len(calls) == 2:  # step 4 of 2, 4, 6
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    result = trainer.train()
    assert any("step 4 could not be written" in warning and "goes on" in warning for warning in result.warnings)
    assert steps(trainer.checkpointer.store) == [2, 6]
    assert same(weights(trainer), weights(plain))


def test_the_best_is_what_could_be_written(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.1, 0.2, 0.9, 0.3, 0.3, 0.3])
    console = Console(file=io.StringIO(), width=200)
    trainer = make_trainer(
        tiny_data.pairs(),
        tmp_path,
        validate=lambda: Validation({"acc": next(values)}, "acc"),
        console=console,
        eval_steps=1,
    )
    write = validation.save_encoder

    def full(encoder: DualEncoder, folder: Path, **layout: bool) -> None:
        if trainer.state.step == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(encoder, folder, **layout)

    monkeypatch.setattr(validation, "save_encoder", full)
    result = trainer.train()
    reported = [line for line in console.file.getvalue().splitlines() if "validation" in line]
    assert ["kept" in line for line in reported] == [True, True, False, False, False, False]
    assert result.best is not None
    assert json.loads((tmp_path / "best" / "best.json").read_text()) == result.best
    assert result.best["step"] != 3
    assert any("best weights could not be written" in warning for warning in result.warnings)


LIMITED = """
import resource, sys, csv
from pathlib import Path
from training_setup import make_trainer
from domainclip.data.records import ImageTextPair
from domainclip.training import Validation
data, folder = Path(sys.argv[1]), Path(sys.argv[2])
rows = csv.DictReader(open(data / "train.csv"))
pairs = [ImageTextPair(data / row["image_path"], row["caption"], row["label"]) for row in rows]
trainer = make_trainer(pairs, folder, save_steps=1, eval_steps=1, validate=lambda: Validation({"acc": 1.0}, "acc"))
def limit():
    # From step 3 on no file may grow beyond 50 kB: what a disk does that has run full.
    if trainer.state.step == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    if trainer.state.step == 6:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return Validation({"acc": trainer.state.step / 10}, "acc")
trainer.validator.evaluate = limit
result = trainer.train()
print(len([w for w in result.warnings if "could not be written" in w]), result.steps, result.best["step"])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE is POSIX")
def test_a_disk_that_is_really_full(tiny_data: TinyData, tmp_path: Path) -> None:
    """Neither torch's nor safetensors' own writers may end the run; afterwards it saves again."""
    done = run_python(LIMITED, str(tiny_data.folder), str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["6", "6", "6"]  # steps 3, 4, 5: the best weights and the checkpoint each
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    assert steps(store)[-1] == 6
    assert store.load_latest()[2] == []
    assert not [path.name for path in (tmp_path / "run").rglob(".*.tmp")]


def test_another_recipe_is_refused_with_its_keys(tiny_data: TinyData, tmp_path: Path) -> None:
    make_trainer(tiny_data.pairs(), tmp_path).train()
    other = make_trainer(tiny_data.pairs(), tmp_path, learning_rate=2e-3, weight_decay=0.5)
    before = weights(other)
    with pytest.raises(
        CheckpointError,
        match=r"another recipe \(different: (learning_rate, weight_decay|weight_decay, learning_rate)\)",
    ):
        other.train(resume=True)
    assert same(weights(other), before)
    # what changes nothing that is learned may differ
    result = make_trainer(tiny_data.pairs(), tmp_path, save_steps=1, keep_checkpoints=5, num_workers=0).train(
        resume=True
    )
    assert result.resumed_from == 6


def test_other_rows_are_refused(tiny_data: TinyData, tmp_path: Path) -> None:
    pairs = tiny_data.pairs()
    make_trainer(pairs, tmp_path).train()
    reworded = [ImageTextPair(p.image_path, p.caption + "!", p.label) if i == 4 else p for i, p in enumerate(pairs)]
    exchanged = [ImageTextPair(pairs[1].image_path, pairs[0].caption), *pairs[1:]]
    for other in (pairs[:-1] + pairs[:1], list(reversed(pairs)), reworded, exchanged):
        with pytest.raises(CheckpointError, match="trained on other rows"):
            make_trainer(other, tmp_path).train(resume=True)


def test_the_folder_of_the_images_may_move(tiny_data: TinyData, tmp_path: Path) -> None:
    import shutil

    make_trainer(tiny_data.pairs(), tmp_path / "run").train()
    shutil.copytree(tiny_data.folder, tmp_path / "moved")
    moved = [
        ImageTextPair(tmp_path / "moved" / p.image_path.relative_to(tiny_data.folder), p.caption, p.label)
        for p in tiny_data.pairs()
    ]
    assert make_trainer(moved, tmp_path / "run").train(resume=True).resumed_from == 6

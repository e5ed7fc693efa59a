"""Programs of several forms under spawn: they read in processes, or in one, and never run themselves again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_data import TinyData

HEAD = """
import multiprocessing, os, sys
multiprocessing.set_start_method("spawn", force=True)
open("starts", "a").write("x")
import logging
logging.basicConfig(level=logging.WARNING)
"""
TRAIN = """
from domainclip import CLIPFinetuningConfig, run_training
outcome = run_training(CLIPFinetuningConfig(model_name="tiny", data_path={data!r}, output_dir="run", max_steps=2,
                                            num_workers=1, device="cpu", batch_size=4, image_cache_mb=0))
print("ended", outcome.report.training.steps)
"""
LOADER = """
from domainclip import CLIPFinetuningConfig, CLIPDataset, DatasetLoader, ModelSession
from domainclip.data import create_dataloader
config = CLIPFinetuningConfig(model_name="tiny", device="cpu")
pairs = DatasetLoader.from_csv({data!r} + "/train.csv")
data = CLIPDataset(pairs, ModelSession.from_pretrained("tiny").processor, config)
batches = list(create_dataloader(data, config, batch_size=4, num_workers=1))
print("ended", len(batches))
"""
GUARD = 'if __name__ == "__main__":'


def indented(code: str) -> str:
    return "\n".join(f"    {line}" for line in code.strip().splitlines())


def run(place: Path, arguments: list[str], source: str | None = None) -> tuple[subprocess.CompletedProcess[str], int]:
    """The process, and how often the program was begun."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=place, input=source, capture_output=True, text=True, timeout=300
    )
    return done, len((place / "starts").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain", "function", "guarded", "command", "stdin"])
def test_a_program_is_begun_once(form: str, tiny_data: TinyData, tmp_path: Path) -> None:
    code = (LOADER + TRAIN).format(data=str(tiny_data.folder))
    source = {
        "plain": HEAD + code,
        "function": f"{HEAD}\ndef main():\n{indented(code)}\nmain()\n",
        "guarded": f"{HEAD}\n{GUARD}\n{indented(code)}\n",
    }.get(form, HEAD + code)
    (tmp_path / "program.py").write_text(source)
    arguments = {"command": ["-c", source], "stdin": ["-"]}.get(form, ["program.py"])
    done, starts = run(tmp_path, arguments, source if form == "stdin" else None)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "ended 4" in done.stdout and "ended 2" in done.stdout
    said = [line for line in done.stderr.splitlines() if "read in this process" in line]
    if form in ("plain", "function"):
        assert len(said) == 2 and all(GUARD in line for line in said)  # of the loader and of the training
        assert starts == 1
    else:
        assert said == [] or form == "stdin"
        assert starts == (3 if form == "guarded" else 1)  # the two readers import a guarded program


@pytest.mark.slowest
@pytest.mark.slow
def test_work_outside_the_guard_beside_work_within_ends_in_a_sentence(tiny_data: TinyData, tmp_path: Path) -> None:
    """The first training is outside: the readers of the second one would begin it again."""
    train = TRAIN.format(data=str(tiny_data.folder))
    again = train.replace("output_dir='run'", "").replace('output_dir="run"', 'output_dir="second"')
    catch = f"try:\n{indented(again)}\nexcept ValueError as error:\n    print('said', error)"
    (tmp_path / "program.py").write_text(f"{HEAD}{train}\n{GUARD}\n{indented(catch)}\n")
    done, starts = run(tmp_path, ["program.py"])
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert GUARD in done.stdout and "num_workers=0" in done.stdout
    assert starts <= 2  # the program and its reader, never a reader of that one


@pytest.mark.slow
def test_what_a_notebook_defines_is_read_in_one_process(tiny_data: TinyData, tmp_path: Path) -> None:
    own = """
import torch
def blank(image):
    return torch.zeros(3, 32, 32)
"""
    code = LOADER.format(data=str(tiny_data.folder)).replace("processor, config)", "processor, config, blank)")
    done, starts = run(tmp_path, ["-c", HEAD + own + code])
    assert done.returncode == 0, done.stderr
    assert "defined in a notebook" in done.stderr and "Traceback" not in done.stderr
    assert (starts, done.stdout.strip()) == (1, "ended 4")


def test_the_line_that_is_run_decides(tmp_path: Path) -> None:
    from domainclip.data.readers import _guarded

    file = tmp_path / "program.py"
    file.write_text(f"import os\nrun()\n{GUARD}\n    run()\nif os.name == 'nt':\n    run()\n")
    assert [_guarded(str(file), line) for line in (2, 4, 6, None)] == [False, True, False, True]
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    assert _guarded(str(tmp_path / "binary"), 3)  # no source: an installed command


def test_under_fork_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from domainclip.data import readers

    monkeypatch.setattr(readers, "start_method", lambda: "fork")
    assert readers.reader_processes(3, [lambda: 0]) == 3
    monkeypatch.setattr(readers, "start_method", lambda: "spawn")
    assert readers.reader_processes(3, [lambda: 0]) == 0
    assert readers.reader_processes(0, [json]) == 0

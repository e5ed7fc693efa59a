"""Every command that takes a model answers a wrong one with one message, before any work."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

COMMANDS = [
    ("train", "--data", "{data}", "--output", "{out}"),
    ("evaluate", "--data", "{data}"),
    ("evaluate", "--data", "{data}", "--resolutions", "32,64"),
    ("compare", "--data", "{data}"),
    ("align", "report", "--data", "{data}", "--output", "{out}"),
    ("align", "report", "--data", "{data}", "--output", "{out}", "--model", "tiny", "--compare"),
    ("tune", "--data", "{data}", "--output", "{out}"),
    ("data", "check", "{data}"),
    ("data", "preview", "--data", "{data}"),
    ("memory", "plan"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("vit-b-23", "Did you mean vit-b-32?"),
        ("nobody/clip", "hf download nobody/clip --local-dir DIR"),
        ("{data}", "has no config.json"),
        ("./clip.gguf", "clip.gguf does not exist"),
    ],
)
def test_one_message(
    command: tuple[str, ...],
    model: str,
    said: str,
    domainclip: Callable,
    tiny_data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    names = {"data": tiny_data.folder, "out": tmp_path / "out"}
    option = [] if command[-1] == "--compare" else ["--model"]
    result = domainclip(*(part.format(**names) for part in [*command, *option, model]))
    assert result.exit_code == 2
    assert said in result.err
    assert result.err.count("\n") == 1
    assert not result.out
    assert not (tmp_path / "out").exists()


def test_without_torch(tiny_data) -> None:
    call = (
        "import sys; from domainclip.cli.main import main\n"
        f"sys.argv = ['domainclip', 'evaluate', '--data', {str(tiny_data.folder)!r}, '--model', 'vit-b-32']\n"
        "try: main()\nexcept SystemExit as stop: assert stop.code == 2\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", call],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1

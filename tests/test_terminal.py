"""Nothing is silent for long on a terminal, whatever a command is busy with; programs that read its output see nothing
of that."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from domainclip.models import make_tiny_clip
from domainclip.models.io import save_encoder
from tiny_data import TinyData

pytest.importorskip("pty", reason="there are no pseudo-terminals on this system")

from terminal import Shown, run_on_terminal

MIXED = """
import logging, sys, time
from domainclip.streams import StandardErrorHandler, keep_streams
from domainclip.waiting import Progress
keep_streams()
logging.basicConfig(format="%(levelname)s %(message)s", handlers=[StandardErrorHandler()])
with Progress(None, "Working"):
    time.sleep(1.6)
    print("A figure: 1")
    with Progress(30, "Embedding images") as progress:
        for done in range(30):
            progress.at(done)
            time.sleep(0.1)
        logging.getLogger("domainclip").warning("An image is damaged")
    print("half a ", end="")
    sys.stdout.flush()
    time.sleep(0.5)
    print("line")
    busy = time.monotonic()
    while time.monotonic() < busy + 2.5:  # holds on to the interpreter
        sum(range(1000))
print("The end")
"""


def longest_silence() -> float:
    """Two seconds, or more where other processes keep the machine busy."""
    return 2.0 * max(1.0, 2 * os.getloadavg()[0] / (os.cpu_count() or 1))


def assert_never_silent(shown: Shown) -> None:
    assert shown.exit_code == 0, shown.text
    assert not shown.silences(longest_silence()), shown.silences(longest_silence())


def test_work_and_output_share_a_terminal() -> None:
    shown = run_on_terminal([sys.executable, "-c", MIXED])
    assert_never_silent(shown)
    assert [line for line in shown.screen() if line] == [
        "A figure: 1",
        "WARNING An image is damaged",
        "half a line",
        "The end",
    ]
    assert re.search(r"Embedding images: ━+─* \d+ of 30 \(\d+ s left\)", shown.text)
    seconds = [int(found) for found in re.findall(r"\rWorking: (\d+) s", shown.text)]
    assert seconds[0] == 1 and len(set(seconds)) >= 3 and seconds == sorted(seconds)


def test_a_narrow_terminal_has_one_line_too() -> None:
    shown = run_on_terminal([sys.executable, "-c", MIXED], columns=30)
    assert max(len(line) for line in shown.lines) < 30
    assert "The end" in shown.screen()


def test_standard_output_is_for_results_alone() -> None:
    shown = run_on_terminal([sys.executable, "-c", MIXED], output_elsewhere=True)
    assert shown.out == "A figure: 1\nhalf a line\nThe end\n"
    assert "Working: 5 s" in shown.text and "A figure" not in shown.text


def test_in_a_pipe_nothing_is_drawn() -> None:
    ended = subprocess.run([sys.executable, "-c", MIXED], capture_output=True, text=True)
    assert ended.stdout == "A figure: 1\nhalf a line\nThe end\n"
    assert ended.stderr == "WARNING An image is damaged\n"


def test_where_warnings_are_not_wanted_nothing_is_drawn() -> None:
    quiet = MIXED.replace("keep_streams()\n", "keep_streams()\nlogging.getLogger('domainclip').setLevel(50)\n", 1)
    shown = run_on_terminal([sys.executable, "-c", quiet])
    assert [line for line in shown.lines if line] == ["A figure: 1", "half a line", "The end"]
    assert "\x1b" not in shown.text


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_encoder(make_tiny_clip(7), folder)
    return folder


def command(*arguments: object, **options: bool) -> Shown:
    """A command as it is typed, with nothing kept warm for it: the imports are what takes longest."""
    typed = [sys.executable, "-m", "domainclip", *map(str, arguments)]
    return run_on_terminal(typed, {"OMP_NUM_THREADS": "1"}, **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_training_is_never_silent(tiny_data: TinyData, model: Path, tmp_path: Path) -> None:
    run = ("batch_size=4", "device=cpu", "num_workers=0", "max_steps=4", "probe_steps=20", "error_analysis=true")
    shown = command("train", "--data", tiny_data.folder, "--model", model, "--output", tmp_path / "run", *run)
    assert_never_silent(shown)
    assert "Loading PyTorch" in shown.text
    screen = "\n".join(shown.screen())
    assert (
        "Before and after, test split" in screen and "Loading" not in screen and "━━" not in screen.split("Before")[0]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evaluate", "doctor", "data check", "predict", "preview"])
def test_a_command_is_never_silent(name: str, tiny_data: TinyData, model: Path, tmp_path: Path) -> None:
    arguments: dict[str, tuple[object, ...]] = {
        "evaluate": ("evaluate", "--data", tiny_data.folder, "--model", model),
        "doctor": ("doctor",),
        "data check": ("data", "check", tiny_data.table("train"), "--model", model),
        "predict": ("predict", tiny_data.folder / "images", "--model", model, "--labels", "brick,sky"),
        "preview": ("data", "preview", "--data", tiny_data.folder, "--output", tmp_path / "sheet.png"),
    }
    shown = command(*arguments[name])
    assert_never_silent(shown)
    assert "Loading PyTorch" in shown.text
    assert not [line for line in shown.screen() if re.match(r"(Working|Loading)", line)]


@pytest.mark.slow
def test_json_is_clean_while_the_terminal_is_told(tiny_data: TinyData, model: Path) -> None:
    shown = command("evaluate", "--data", tiny_data.folder, "--model", model, "--json", output_elsewhere=True)
    assert_never_silent(shown)
    assert "acc1" in json.loads(shown.out)["metrics"]
    assert "Loading PyTorch" in shown.text and "acc1" not in shown.text

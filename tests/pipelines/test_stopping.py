"""A signal in any phase of a run saves what can be saved and exits as a shell expects; a closed stream ends nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import signal_child
from domainclip.models import make_tiny_clip
from domainclip.models.io import save_encoder
from forked import forking
from tiny_data import TinyData

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")]

PHASES = (
    ("reading", signal.SIGTERM),
    ("loading the model", signal.SIGINT),
    ("evaluation before", signal.SIGHUP),
    ("probe", signal.SIGTERM),
    ("validation", signal.SIGINT),
    ("training", signal.SIGHUP),
    ("best weights", signal.SIGTERM),
    ("saving the model", signal.SIGTERM),
    ("evaluation after", signal.SIGINT),
    ("report", signal.SIGTERM),
    ("error analysis", signal.SIGHUP),
)


@pytest.fixture(scope="module", autouse=True)
def hang_up_is_heard() -> Iterator[None]:
    """Processes inherit what is ignored, as where the tests themselves are started by nohup."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "start"
    save_encoder(make_tiny_clip(attention_dropout=0.1), folder)
    return folder


def arguments(data: TinyData, model: Path, folder: Path) -> list[str]:
    keys = "batch_size=6 num_epochs=3 num_workers=0 mixed_precision=false device=cpu learning_rate=1e-3 eval_steps=2 "
    keys += "save_steps=2 logging_steps=1 early_stopping_patience=0 probe_steps=40 error_analysis=true"
    return ["train", "--data", str(data.folder), "--model", str(model), "--output", str(folder), *keys.split()]


def result_of(folder: Path) -> tuple[bytes, Any, list[Any]]:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    decisions = [(each["key"], each["value"]) for each in report["decisions"]]
    return (folder / "model" / "model.safetensors").read_bytes(), (report["before"], report["after"]), decisions


@pytest.fixture(scope="module")
def whole(tiny_data: TinyData, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Any, list[Any]]:
    """What a run came to that nothing stopped."""
    folder, log = tmp_path_factory.mktemp("whole") / "run", tmp_path_factory.mktemp("log") / "log"
    child = forking().Process(target=signal_child.command, args=(arguments(tiny_data, model, folder), log, None))
    child.start()
    child.join(300)
    assert child.exitcode == 0, log.read_text()
    return result_of(folder)


def test_a_run_stopped_in_every_phase_ends_alike(tiny_data: TinyData, model: Path, tmp_path: Path, whole: Any) -> None:
    log = tmp_path / "log"

    def run(folder: Path, *more: str, place: str | None = None, number: int = 0) -> int:
        child = forking().Process(
            target=signal_child.command, args=([*arguments(tiny_data, model, folder), *more], log, place, number)
        )
        child.start()
        child.join(300)
        return int(child.exitcode)

    folder = tmp_path / "stopped"
    for place, number in PHASES:
        log.unlink(missing_ok=True)
        again = ["--resume"] if (folder / "recipe.yaml").is_file() else []
        assert run(folder, *again, place=place, number=number) == 128 + number, (place, log.read_text())
        said = log.read_text()
        assert f"Stopped by {number.name}" in said, (place, said)
        assert "Traceback" not in said, (place, said)
    assert run(folder, "--resume") == 0, log.read_text()
    stopped = result_of(folder)
    assert stopped[0] == whole[0]
    assert stopped[1] == whole[1]
    assert {key for key, _ in stopped[2]} == {key for key, _ in whole[2]}
    assert not [path.name for path in folder.rglob(".*") if path.name.endswith((".tmp", ".old"))]


@pytest.mark.slowest
def test_a_second_signal_leaves_at_once_in_every_phase(
    tiny_data: TinyData, model: Path, tmp_path: Path, whole: Any
) -> None:
    """In the step that is being finished, or while files are closed and locks released: the exit code is that of the
    last signal, and what was saved goes on to the same end."""
    log, folder = tmp_path / "log", tmp_path / "stopped"

    def run(folder: Path, *more: str, place: str = "", number: int = 0, second: int = 0, late: bool = False) -> int:
        given = [*arguments(tiny_data, model, folder), *more]
        child = forking().Process(
            target=signal_child.command, args=(given, log, place or None, number, 1, second, late)
        )
        child.start()
        child.join(300)
        return int(child.exitcode)

    for index, (place, _) in enumerate(PHASES):
        log.unlink(missing_ok=True)
        first, second = [(signal.SIGINT, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)][index % 2]
        again = ["--resume"] if (folder / "recipe.yaml").is_file() else []
        late = index % 4 > 1
        code = run(folder, *again, place=place, number=first, second=second, late=late)
        assert code == 128 + second, (place, log.read_text())
        assert "Traceback" not in log.read_text() and "ignored" not in log.read_text(), (place, log.read_text())
    assert run(folder, "--resume") == 0, log.read_text()
    assert result_of(folder)[:2] == whole[:2]
    assert not [path.name for path in folder.rglob(".*") if path.name.endswith((".tmp", ".old", ".lock"))]


def test_other_commands_end_as_a_shell_expects(tiny_data: TinyData, model: Path, tmp_path: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        log = tmp_path / number.name
        given = ["evaluate", "--data", str(tiny_data.folder), "--model", str(model)]
        child = forking().Process(target=signal_child.command, args=(given, log, "evaluate", number))
        child.start()
        child.join(120)
        assert child.exitcode == 128 + number
        assert log.read_text().strip().endswith(f"Stopped by {number.name}")


COMMAND = "import torch; torch.set_num_threads(1); from domainclip.cli import main; main()"


def shell(line: str, **paths: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PY": sys.executable, "COMMAND": COMMAND}
    environment |= {name: str(path) for name, path in paths.items()}
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=300, env=environment, check=False
    )


def test_closed_and_full_streams_end_no_training(tiny_data: TinyData, model: Path, tmp_path: Path) -> None:
    for index, streams in enumerate(("2>&-", "2>&1 | head -1 >/dev/null", ">/dev/full 2>/dev/full", "<&- >&- 2>&-")):
        folder = tmp_path / str(index)
        given = " ".join(arguments(tiny_data, model, folder)).replace("error_analysis=true", "max_steps=2")
        done = shell(f'set -o pipefail; "$PY" -c "$COMMAND" {given} {streams}')
        assert done.returncode == 0, (streams, done.stderr[-2000:])
        assert (folder / "report.md").is_file(), streams
        assert "Traceback" not in done.stderr, done.stderr


def test_figures_that_nobody_reads_are_no_error_and_those_that_are_lost_are(
    tiny_data: TinyData, model: Path, tmp_path: Path
) -> None:
    given = f'"$PY" -c "$COMMAND" evaluate --json --data {tiny_data.folder} --model {model}'
    done = shell(f"set -o pipefail; {given} | head -1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")
    done = shell(f"{given} >/dev/full")
    assert done.returncode == 2
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr

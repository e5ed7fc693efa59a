"""A real ``mlflow server`` that dies in the middle of a training, and gets the rest afterwards."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from rich.console import Console

pytest.importorskip("mlflow", reason="needs the extra 'mlflow'")
pytest.importorskip("flask", reason="the server needs it")

from domainclip.config import CLIPFinetuningConfig
from domainclip.events import Event, StepLogged
from domainclip.pipelines import run_training
from domainclip.tracking.exporters import live
from tiny_data import TinyData
from tracker_cases import expected_figures, until
from tracker_readers import mlflow as held_by_mlflow

pytestmark = pytest.mark.slow


def answers(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


class Server:
    """An ``mlflow server`` on a port, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            self.port = int(listening.getsockname()[1])
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [*command, "--workers", "1", "--backend-store-uri", "sqlite:///server.db"],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "MLFLOW_TRACKING_URI": "", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        until(lambda: answers(self.port), 120)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
            time.sleep(0.2)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    running = Server(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{running.port}")
    running.start()
    yield running
    running.kill()


def test_a_server_that_dies_gets_the_rest_afterwards(
    tiny_data: TinyData, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, domainclip
) -> None:
    monkeypatch.setattr(live, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(live, "RETRY_SECONDS", (0.1,))
    folder = tmp_path / "run"
    arrived: list[int] = []

    def kill(event: Event) -> None:
        """Once something has arrived."""
        if isinstance(event, StepLogged) and event.step == 4:
            until(lambda: (1, "loss") in held(folder), 60)
            arrived.append(len(held(folder)))
            server.kill()

    def held(folder: Path) -> dict[tuple[int, str], list[float]]:
        try:
            return held_by_mlflow(folder)
        except (ValueError, AttributeError):  # no experiment or no run yet
            return {}

    config = CLIPFinetuningConfig(
        model_name="tiny",
        data_path=str(tiny_data.folder),
        output_dir=str(folder),
        batch_size=6,
        num_epochs=4,
        num_workers=0,
        mixed_precision=False,
        device="cpu",
        logging_steps=1,
        probe_first=False,
        probe_last=False,
        report_to=["mlflow"],
    )
    began = time.monotonic()
    outcome = run_training(config, console=Console(quiet=True), listeners=[kill])
    assert time.monotonic() - began < 120 and outcome.report.training.steps == 12
    server.start()
    refound = held(folder)
    assert 0 < len(refound) < len(expected_figures(folder))
    result = domainclip("export-metrics", folder, "--to", "mlflow")
    assert result.exit_code == 0, result.err
    expected = {(step, name): [value] for step, name, value in expected_figures(folder)}
    found = held(folder)
    assert {key: values for key, values in found.items() if key in expected} == expected
    assert {name for step, name in found if step == 12} >= {"before_acc1", "after_acc1"}

    from mlflow import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("domainclip").experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    assert run.data.params["batch_size"] == "6" and "by acc1" in run.data.tags["verdict"]

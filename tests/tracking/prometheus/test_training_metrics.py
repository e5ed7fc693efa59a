"""What a training says of itself to Prometheus, and the rules about it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from rich.console import Console

pytest.importorskip("prometheus_client", reason="needs the extra 'prometheus'")
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import ConfigurationError, MissingExtraError, TrainingDivergedError
from domainclip.events import (
    Emitter,
    Event,
    ImageSkipped,
    InitialValidated,
    Milestone,
    Noted,
    PhaseFinished,
    PhaseProgress,
    PhaseStarted,
    RunEnded,
    RunStarted,
    StepLogged,
    Validated,
    Warned,
)
from domainclip.pipelines import run_training
from domainclip.tracking import read_rows
from domainclip.tracking.prometheus import prometheus, serving
from domainclip.tracking.prometheus.metrics import MILESTONES, TrainingMetrics
from monitoring_cases import metric_names
from tiny_data import TinyData
from tracker_cases import until

FOLDER = Path(str(resources.files("domainclip.tracking") / "prometheus"))
Series = dict[tuple[str, str], float]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def series_of(text: str) -> Series:
    """Value by name and the values of the labels, by their names."""
    return {
        (
            sample.name.removeprefix("domainclip_training_"),
            ",".join(value for _, value in sorted(sample.labels.items())),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def exposed(metrics: TrainingMetrics) -> Series:
    registry = CollectorRegistry()
    registry.register(metrics)
    return series_of(generate_latest(registry).decode())


STEP = StepLogged(
    step=7,
    total_steps=20,
    epoch=1.5,
    batch_size=6,
    resolution=32,
    metrics={"loss": 0.5},
    learning_rates=(1e-3, 1e-4),
    gradient_norm=2.0,
    logit_scale=20.0,
    embedding_spread=0.5,
    effective_rank=3.0,
    seconds={"data": 0.1, "towers": 0.2, "made_up": 9.0},
    samples_per_second=30.0,
    memory_mb=1.0,
    peak_memory_mb=2.0,
)
BEST = {"primary": "acc1", "greater_is_better": True, "standard_error": 0.1, "metrics": {}}


def test_events_become_series(tmp_path: Path) -> None:
    (tmp_path / "memory.json").write_text(json.dumps({"predicted_mb": 3}))
    metrics = TrainingMetrics(tmp_path)
    before = exposed(metrics)
    assert before["state", "running"] == 1 and before["out_of_memory_total", ""] == 0 and before["diverged", ""] == 0
    assert ("loss", "") not in before and not any("created" in name for name, _ in before)
    events: list[Event] = [
        InitialValidated(value=0.2, **BEST),
        RunStarted(folder="run", step=5, total_steps=20),
        PhaseStarted(name="training", total=20, done=5),
        PhaseProgress(name="training", done=6, total=20, loss=0.7),
        PhaseProgress(name="training", done=7, total=20, loss=0.5),
        STEP,
        PhaseStarted(name="validation"),
        PhaseProgress(name="validation", done=3, total=6),
        Validated(step=7, value=0.4, top=0.6, kept=False, **BEST),
        Noted(name="out_of_memory", step=8),
        Noted(name="memory", step=0),
        ImageSkipped(path="a", reason="b"),
        Warned(text="c"),
    ]
    for event in events:
        metrics(event)
    found = exposed(metrics)
    assert found["run_info", f"acc1,{tmp_path.name}"] == 1
    wanted = {
        ("step", ""): 7,
        ("total_steps", ""): 20,
        ("loss", ""): 0.5,
        ("gradient_norm", ""): 2,
        ("temperature", ""): 0.05,
        ("learning_rate", ""): 1e-3,
        ("images_per_second", ""): 30,
        ("step_seconds", "data"): 0.1,
        ("step_seconds", "towers"): 0.2,
        ("memory_bytes", "held"): 2**20,
        ("memory_bytes", "peak"): 2 * 2**20,
        ("memory_bytes", "predicted"): 3 * 2**20,
        ("zero_shot_value", ""): 0.2,
        ("validation_value", ""): 0.4,
        ("validation_best", ""): 0.6,
        ("out_of_memory_total", ""): 1,
        ("skipped_images_total", ""): 1,
        ("warnings_total", ""): 1,
        ("phase", "validation"): 1,
        ("phase", "training"): 0,
    }
    assert {key: found.get(key) for key in wanted} == pytest.approx(wanted)
    assert ("step_seconds", "made_up") not in found
    assert found["seconds_left", ""] >= 0 and time.time() - found["last_step_timestamp_seconds", ""] < 60
    metrics(PhaseFinished(name="validation", seconds=1))
    metrics(PhaseStarted(name="of a plugin"))
    assert exposed(metrics)["phase", "other"] == 1
    metrics(RunEnded(outcome="failed", text="", error="TrainingDivergedError"))
    ended = exposed(metrics)
    assert (ended["state", "failed"], ended["state", "running"], ended["diverged", ""]) == (1, 0, 1)
    assert ("seconds_left", "") not in ended


def test_labels_are_bounded(tmp_path: Path) -> None:
    metrics = TrainingMetrics(tmp_path)
    for number in range(10 * MILESTONES):
        name = f"m{number}"
        metrics(Milestone(name=name, step=1, level="info", text="", rule="", evidence={}, advice=""))
    found = exposed(metrics)
    milestones = {labels: value for (name, labels), value in found.items() if name == "milestones_total"}
    assert len(milestones) == MILESTONES + 1 and milestones["info,other"] == 9 * MILESTONES


def test_what_cannot_be_served_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cases = {
            rf"metrics_port={port}: nothing can be served there": {"metrics_port": port},
            "end in .prom": {"metrics_textfile": str(tmp_path / "figures.txt")},
            "is a directory": {"metrics_textfile": str(tmp_path / "folder.prom")},
        }
        (tmp_path / "folder.prom").mkdir()
        for words, values in cases.items():
            with (
                pytest.raises(ConfigurationError, match=words),
                prometheus(tmp_path, CLIPFinetuningConfig(**values), Emitter()),
            ):
                pass
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with (
        pytest.raises(MissingExtraError, match=r"domainclip\[prometheus\]"),
        prometheus(tmp_path, CLIPFinetuningConfig(metrics_port=port), Emitter()),
    ):
        pass


def config_of(data: TinyData, folder: Path, **values: object) -> CLIPFinetuningConfig:
    fixed = {"model_name": "tiny", "batch_size": 6, "num_epochs": 2, "num_workers": 0, "mixed_precision": False}
    steady = {"device": "cpu", "logging_steps": 1, "probe_first": False, "probe_last": False}
    return CLIPFinetuningConfig(data_path=str(data.folder), output_dir=str(folder), **fixed, **steady, **values)


def test_a_training_is_in_the_textfile_and_on_the_port(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "EVERY_SECONDS", 0.05)
    port, file = free_port(), tmp_path / "textfiles" / "training.prom"
    scraped: list[Series] = []

    def scrape(event: Event) -> None:
        if isinstance(event, Validated):
            with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
                scraped.append(series_of(response.read().decode()))

    config = config_of(tiny_data, tmp_path / "run", metrics_port=port, metrics_textfile=str(file))
    run_training(config, console=Console(quiet=True), listeners=[scrape])
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    written = series_of(file.read_text())
    assert [path.name for path in file.parent.iterdir()] == ["training.prom"]
    assert written["state", "finished"] == 1 and written["step", ""] == rows[-1]["step"]
    assert written["loss", ""] == rows[-1]["loss"] and written["gradient_norm", ""] == rows[-1]["grad_norm"]
    assert written["temperature", ""] == pytest.approx(1 / rows[-1]["logit_scale"])
    assert scraped and scraped[0]["phase", "validation"] + scraped[0]["phase", "training"] == 1
    with pytest.raises(OSError):
        urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)


def test_a_diverged_run_says_so(tiny_data: TinyData, tmp_path: Path) -> None:
    file = tmp_path / "training.prom"
    config = config_of(
        tiny_data, tmp_path / "run", metrics_textfile=str(file), learning_rate=1e30, max_grad_norm=1e30, warmup_steps=0
    )
    with pytest.raises(TrainingDivergedError):
        run_training(config, console=Console(quiet=True))
    written = series_of(file.read_text())
    assert written["diverged", ""] == 1 and written["state", "failed"] == 1


def run(*command: str) -> str:
    """What a tool of Prometheus says of a file that it accepts."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules() -> list[dict[str, Any]]:
    content = yaml.safe_load((FOLDER / "training-rules.yml").read_text(encoding="utf-8"))
    return [rule for group in content["groups"] for rule in group["rules"]]


def test_promtool_accepts_the_rules_and_they_pass_their_tests() -> None:
    assert f"{len(rules())} rules found" in run("promtool", "check", "rules", "training-rules.yml")
    assert "SUCCESS" in run("promtool", "test", "rules", "training-rules-test.yml")


def test_rules_ask_for_what_there_is_and_each_is_tested(tmp_path: Path) -> None:
    metrics = TrainingMetrics(tmp_path)
    registry = CollectorRegistry()
    registry.register(metrics)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    names = {family.name for family in families} | {f"{family.name}_total" for family in registry.collect()}
    tests = (FOLDER / "training-rules-test.yml").read_text(encoding="utf-8")
    for rule in rules():
        assert metric_names(rule["expr"]) <= names, rule["alert"]
        assert rule["alert"] in tests and rule["annotations"].keys() == {"summary", "description", "action"}
        assert rule["labels"]["severity"] in {"critical", "warning"}


@pytest.fixture
def scraper(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A Prometheus that scrapes a port every second: its own port and that."""
    if shutil.which("prometheus") is None:
        pytest.skip("needs prometheus")
    own, target = free_port(), free_port()
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(FOLDER / "training-rules.yml")],
        "scrape_configs": [{"job_name": "training", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(settings))
    command = ["prometheus", "--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{own}"]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen([*command, "--storage.tsdb.path=data"], cwd=tmp_path, stdout=log, stderr=log) as process,
    ):
        yield own, target
        process.terminate()


@pytest.mark.slow
def test_prometheus_scrapes_a_training(tiny_data: TinyData, tmp_path: Path, scraper: tuple[int, int]) -> None:
    own, target = scraper

    def query(expression: str) -> list[Any]:
        with urlopen(f"http://127.0.0.1:{own}/api/v1/query?query={expression}", timeout=10) as response:
            return json.load(response)["data"]["result"]

    seen: list[Event] = []
    scraped = threading.Event()

    def wait(event: Event) -> None:
        """Hold the training at its last validation until it has been scraped there."""
        if isinstance(event, Validated) and event.step == 6 and not seen:
            seen.append(event)
            asked = "domainclip_training_step==6"
            until(lambda: reachable(asked), 60)
            scraped.set()

    def reachable(expression: str) -> list[Any]:
        try:
            return query(expression)
        except OSError:
            return []

    run_training(
        config_of(tiny_data, tmp_path / "run", metrics_port=target), console=Console(quiet=True), listeners=[wait]
    )
    assert scraped.is_set()
    (loss,) = query("last_over_time(domainclip_training_loss[5m])")
    rows = {row["step"]: row["loss"] for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "loss" in row}
    assert float(loss["value"][1]) in rows.values()
    assert not query("ALERTS")

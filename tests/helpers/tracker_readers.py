"""What a tracker holds of a run, by its own reader: the values of each figure at each step, by step and name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from domainclip.files import read_record

Held = dict[tuple[int, str], list[float]]


def tensorboard(folder: Path) -> Held:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    held: Held = defaultdict(list)
    for name in accumulator.Tags()["scalars"]:
        for event in accumulator.Scalars(name):
            held[event.step, name].append(event.value)
    return dict(held)


def mlflow(folder: Path) -> Held:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("domainclip")
    tag = read_record(folder / "exports.json")["run_id"]
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`domainclip.run` = '{tag}'")
    held: Held = defaultdict(list)
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            held[metric.step, name.replace("_at_", "@")].append(metric.value)
    return dict(held)


def trackio(folder: Path) -> Held:
    from trackio.sqlite_storage import SQLiteStorage

    tag = read_record(folder / "exports.json")["run_id"][:8]
    (name,) = [each for each in SQLiteStorage.get_runs("domainclip") if each.endswith(tag)]
    held: Held = defaultdict(list)
    for row in SQLiteStorage.get_logs("domainclip", name):
        for key, value in row.items():
            if key not in ("step", "timestamp"):
                held[row["step"], key].append(value)
    return dict(held)


def wandb(folder: Path) -> Held:
    from domainclip.tracking.exporters.wandb import read_history

    held: Held = defaultdict(list)
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for row in read_history(path):
            for key, value in row.items():
                if not key.startswith("_") and key != "step":
                    held[row["step"], key].append(value)
    return dict(held)


READERS: dict[str, Callable[[Path], Held]] = {
    "tensorboard": tensorboard,
    "mlflow": mlflow,
    "trackio": trackio,
    "wandb": wandb,
}


def kept(name: str, value: float) -> float:
    """A figure as a tracker keeps it."""
    return float(np.float32(value)) if name == "tensorboard" else value


def places(folder: Path) -> dict[str, str]:
    """Environment in which the trackers keep what they get in a folder, and reach nobody."""
    return {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "TRACKIO_DIR": str(folder / "trackio"),
        "WANDB_MODE": "offline",
        "WANDB_DIR": "",
    }

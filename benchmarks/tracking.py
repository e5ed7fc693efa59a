"""Steps a second of a training that everything listens to, beside one that nothing does.

    python benchmarks/tracking.py --model MODEL --data DATA     # writes benchmarks/results/
    python benchmarks/tracking.py --quick                       # a tiny model for seconds, to see that it runs

Two equal trainings run in processes of their own and take turns: one goes on for a block of seconds while the other,
with everything that it has started, is stopped by the system. A pair of blocks gives a ratio of their steps a second;
steps that a stop fell into are left out. ``all`` has every tracker that is installed, Prometheus on a port and in a
file, the live page, and notifications to a command; each step is logged, which is the most that there is to tell.

Beside it stands the processor time of each thread that tracking has, as a fraction of the training's wall-clock time.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from _record import RESULTS, machine_facts, median, write_record
from train_step import quick_data

SIDES = ("none", "all")
TRACKERS = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb", "trackio": "trackio"}
OWN_THREADS = ("export to ", "metrics_textfile", "prometheus", "notif", "page")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def recipe_of(side: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    values = {
        "model_name": arguments.model,
        "data_path": arguments.data,
        "output_dir": str(folder / "run"),
        "batch_size": arguments.batch_size,
        "num_epochs": 1_000_000,  # it is ended from outside
        "eval_steps": 1_000_000,
        "save_steps": 1_000_000,
        "logging_steps": 1,
        "num_workers": 0,
        "probe_first": False,
        "probe_last": False,
        "early_stopping_patience": 0,
        "device": "cpu",
    }
    if side == "none":
        return values
    return {
        **values,
        "report_to": [name for name, package in TRACKERS.items() if importlib.util.find_spec(package) is not None],
        "metrics_port": free_port() if importlib.util.find_spec("prometheus_client") else None,
        "metrics_textfile": str(folder / "training.prom") if importlib.util.find_spec("prometheus_client") else None,
        "dashboard": True,
        "notify": [f"command:{shutil.which('true')}"],
        "notify_level": "info",
    }


def train(values: dict[str, Any], folder: Path, threads: int) -> None:
    """What a side's process does: a line for each step, and the times of its threads whenever a step is done."""
    import torch
    from rich.console import Console

    from domainclip.config import CLIPFinetuningConfig
    from domainclip.events import Event, PhaseProgress
    from domainclip.pipelines import run_training

    torch.set_num_threads(threads)
    lines = open(folder / "steps", "w", buffering=1)  # noqa: SIM115 - as long as the process
    process, last = psutil.Process(), [0.0]

    def note(event: Event) -> None:
        if not isinstance(event, PhaseProgress) or event.name != "training":
            return
        now = time.monotonic()
        lines.write(f"{now:.6f}\n")
        if now - last[0] > 2:
            last[0] = now
            names = {thread.native_id: thread.name for thread in threading.enumerate()}
            used = {names[each.id]: each.user_time + each.system_time for each in process.threads() if each.id in names}
            (folder / "threads.json").write_text(json.dumps(used))

    with open(folder / "log", "w", encoding="utf-8") as log:
        run_training(CLIPFinetuningConfig(**values), console=Console(file=log), listeners=[note])


class Side:
    """One of the trainings, in a session of its own, so that all that it starts is stopped with it."""

    def __init__(self, name: str, folder: Path, arguments: argparse.Namespace) -> None:
        self.name, self.folder = name, folder
        folder.mkdir(parents=True)
        (folder / "recipe.json").write_text(json.dumps(recipe_of(name, folder, arguments)))
        places = {
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            "TRACKIO_DIR": str(folder / "trackio"),
            "WANDB_MODE": "offline",
        }
        command = [sys.executable, __file__, "--child", str(folder), "--threads", str(arguments.threads)]
        with open(folder / "errors", "w") as errors:
            self.process = subprocess.Popen(
                command, env={**os.environ, **places}, start_new_session=True, stdout=errors, stderr=errors
            )

    def steps(self) -> list[float]:
        path = self.folder / "steps"
        return [float(line) for line in path.read_text().split("\n")[:-1]] if path.is_file() else []

    def threads(self) -> dict[str, float]:
        """Seconds of processor time of each thread so far, up to two seconds ago."""
        return json.loads((self.folder / "threads.json").read_text())

    def wait_for_steps(self, count: int) -> None:
        while len(self.steps()) < count:
            if self.process.poll() is not None:
                raise SystemExit(f"The side {self.name} has ended: {(self.folder / 'errors').read_text()[-2000:]}")
            time.sleep(0.1)

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    @contextmanager
    def going(self) -> Iterator[None]:
        self.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)

    def end(self) -> None:
        self.signal(signal.SIGKILL)
        self.signal(signal.SIGCONT)
        self.process.wait()


def steps_a_second(times: list[float], began: float, ended: float) -> float | None:
    """Of the whole steps within a block."""
    inside = [each for each in times if began <= each <= ended]
    return (len(inside) - 1) / (inside[-1] - inside[0]) if len(inside) > 2 else None


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    sides = {name: Side(name, folder / name, arguments) for name in SIDES}
    blocks: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
    try:
        for side in sides.values():  # one after the other, until what is first made is made
            with side.going():
                side.wait_for_steps(arguments.warmup)
                time.sleep(arguments.settle)
        before = sides["all"].threads()
        for number in range(arguments.blocks):
            for name in SIDES if number % 2 else reversed(SIDES):
                with sides[name].going():
                    began = time.monotonic()
                    time.sleep(arguments.block_seconds)
                    blocks[name].append((began, time.monotonic()))
        return result_of(sides, blocks, before)
    finally:
        for side in sides.values():
            side.end()


def result_of(
    sides: dict[str, Side], blocks: dict[str, list[tuple[float, float]]], before: dict[str, float]
) -> dict[str, Any]:
    rates = {name: [steps_a_second(side.steps(), *block) for block in blocks[name]] for name, side in sides.items()}
    pairs = [(with_all, without) for with_all, without in zip(rates["all"], rates["none"], strict=True)]
    ratios = sorted(with_all / without for with_all, without in pairs if with_all and without)
    if not ratios:
        raise SystemExit("No block holds three steps: give a longer --block-seconds")
    used = sides["all"].threads()
    going = sum(ended - began for began, ended in blocks["all"])
    return {
        "blocks": len(ratios),
        "steps_per_s": {name: round(median([rate for rate in rates[name] if rate]), 4) for name in SIDES},
        "steps_with_all_over_none": round(median(ratios), 4),
        "quartiles": [round(ratios[len(ratios) // 4], 4), round(ratios[-1 - len(ratios) // 4], 4)],
        "thread_seconds_over_training_seconds": {
            name: round((seconds - before.get(name, 0.0)) / going, 5)
            for name, seconds in sorted(used.items())
            if name.startswith(OWN_THREADS)
        },
        "trackers": json.loads((sides["all"].folder / "recipe.json").read_text())["report_to"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--data", help="left out, sixteen images of noise")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=30, help="of each side")
    parser.add_argument("--block-seconds", type=float, default=20)
    parser.add_argument("--warmup", type=int, default=5, help="steps before the first block")
    parser.add_argument("--settle", type=float, default=20, help="seconds after them, in which trackers begin")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        train(json.loads((arguments.child / "recipe.json").read_text()), arguments.child, arguments.threads)
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tracking-")))
        if arguments.quick:
            arguments.blocks, arguments.block_seconds, arguments.settle = 2, 2.0, 2.0
        if arguments.data is None:
            arguments.data, arguments.batch_size = str(quick_data(folder / "data")), 8
        record = {
            "machine": machine_facts(),
            "quick": arguments.quick,
            "model": Path(arguments.model).name,
            "data": Path(arguments.data).name,
            "batch_size": arguments.batch_size,
            "threads": arguments.threads,
            "block_seconds": arguments.block_seconds,
            **measure(folder, arguments),
        }
        path = write_record("tracking", record, arguments.output)
    print(json.dumps({key: value for key, value in record.items() if key != "machine"}, indent=2))
    print(path)


if __name__ == "__main__":
    main()

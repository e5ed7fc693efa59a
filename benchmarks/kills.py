"""``kill -9`` a small run in all its phases, let it go on, and compare with one that was left alone.

    python benchmarks/kills.py --kills 100 --folder /tmp/kills

Half of the kills come inside a chosen ``fsync`` or rename, evenly over all that one run makes; the others at random
moments, several in a row in one folder. Afterwards weights, predictions, figures, decisions and curves must be those of
the undisturbed run, and no temporary file may be left. Ends with a summary line; exit code 1 where something differed.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CALLS = ("fsync", "replace", "rename")
DEBRIS = re.compile(r"\..*\.(tmp|old)$|\.alignment-|pymp-")


def write_data(folder: Path) -> None:
    """30 images of three classes that colour tells apart, in three tables."""
    from PIL import Image

    rng = np.random.default_rng(0)
    folder.mkdir()
    tables: dict[str, list[tuple[str, str, str]]] = {"train": [], "val": [], "test": []}
    for label, colour in {"brick": (180, 60, 50), "grass": (50, 160, 60), "sky": (70, 110, 210)}.items():
        for index in range(10):
            pixels = np.array(colour) + rng.normal(0, 25, (40, 44, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{label}_{index}.png")
            split = "train" if index < 6 else "val" if index < 8 else "test"
            tables[split].append((f"{label}_{index}.png", f"a photo of {label}, sample {index}", label))
    for split, rows in tables.items():
        with open(folder / f"{split}.csv", "w", encoding="utf-8", newline="") as handle:
            csv.writer(handle).writerows([("image_path", "caption", "label"), *rows])


def values_of(base: Path, folder: Path) -> dict[str, Any]:
    return {
        "model_name": str(base / "start"),
        "data_path": str(base / "data"),
        "output_dir": str(folder),
        "batch_size": 6,
        "num_epochs": 3,
        "num_workers": 0,
        "mixed_precision": False,
        "device": "cpu",
        "learning_rate": 1e-3,
        "eval_steps": 2,
        "save_steps": 1,
        "logging_steps": 1,
        "probe_steps": 30,
        "early_stopping_patience": 0,
        "error_analysis": True,
        "alignment_visualization": True,
        "retention_data": [str(base / "data")],
    }


def child(base: Path, folder: Path, kill_at: int | None, count: Path | None) -> None:
    """A run that goes on if it can, and dies inside the ``kill_at``-th of ``CALLS``; it counts them into ``count``."""
    import torch
    from rich.console import Console

    from domainclip.config import CLIPFinetuningConfig
    from domainclip.pipelines import run_training
    from domainclip.pipelines.run_folder import RunFolder
    from domainclip.training.probe import features, progress

    torch.set_num_threads(1)
    gc.freeze()  # the searches for garbage need not go through what was imported before the fork
    progress.SAVE_SECONDS = features.SAVE_SECONDS = 0.05  # a probe this short is not saved otherwise
    calls = [0]

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] == kill_at and calls[0] % 2:  # before the work, or just behind it
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*given, **named)
            if calls[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in CALLS:
        setattr(os, name, watched(getattr(os, name)))
    resume = RunFolder(folder).holds_one
    with open(folder.parent / f"{folder.name}.log", "a", encoding="utf-8") as log:
        config = CLIPFinetuningConfig(**values_of(base, folder))
        run_training(config, resume=resume, console=Console(file=log))
    if count is not None:
        count.write_text(str(calls[0]))


def result_of(folder: Path) -> dict[str, Any]:
    """Everything that must not depend on kills."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = ("step", "loss", "val_acc1", "learning_rate", "saved_mean")
    return {
        "weights": (folder / "model" / "model.safetensors").read_bytes(),
        "predictions": (folder / "predictions.csv").read_bytes() if (folder / "predictions.csv").is_file() else b"",
        "before": report["before"],
        "after": report["after"],
        "decisions": [(each["key"], each["value"], each["reason"]) for each in report["decisions"]],
        "reference sets": report.get("reference_sets"),
        "curves": [[row.get(key) for key in kept] for row in rows],
    }


def debris(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if DEBRIS.match(path.name)]


class Kills:
    """Starts runs, kills them, and notes what differs.

    Args:
        base: For everything.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["domainclip.pipelines"])
        self.problems: list[str] = []
        self.kills = self.compared = 0
        self.seconds = float("inf")  # of the shortest run to its end

    def start(self, folder: Path, kill_at: int | None = None, count: Path | None = None) -> Any:
        process = self.context.Process(target=child, args=(self.base, folder, kill_at, count))
        process.start()
        return process

    def finish(self, folder: Path, expected: dict[str, Any], what: str) -> None:
        began, process = time.monotonic(), self.start(folder)
        process.join()
        self.seconds = min(self.seconds, time.monotonic() - began)
        self.compared += 1
        if process.exitcode != 0:
            log = folder.parent / f"{folder.name}.log"
            self.problems.append(f"{what}: the next start ended with {process.exitcode}: {log.read_text()[-300:]}")
            return
        found = result_of(folder)
        differ = [name for name in expected if found[name] != expected[name]]
        if differ:
            self.problems.append(f"{what}: other {', '.join(differ)}")
        if left := debris(folder):
            self.problems.append(f"{what}: left behind {', '.join(left)}")
        shutil.rmtree(folder)

    def inside_call(self, expected: dict[str, Any], number: int) -> None:
        folder = self.base / f"call-{number}"
        process = self.start(folder, kill_at=number)
        process.join()
        if process.exitcode == -signal.SIGKILL:
            self.kills += 1
        self.finish(folder, expected, f"killed inside call {number}")

    def at_random(self, expected: dict[str, Any], chance: random.Random, kills: int) -> None:
        folder = self.base / f"random-{self.kills}"
        moments = []
        for _ in range(kills):
            process = self.start(folder)
            moments.append(round(chance.uniform(0.05, 0.9) * self.seconds, 2))
            process.join(moments[-1])
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                self.kills += 1
            process.join()
        self.finish(folder, expected, f"killed after {moments} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from-call", type=int, default=1, help="the first of the calls that are looked at")
    parser.add_argument("--folder", type=Path, help="kept; a temporary one by default")
    options = parser.parse_args()
    base = options.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    from domainclip.models import make_tiny_clip
    from domainclip.models.io import save_encoder

    save_encoder(make_tiny_clip(attention_dropout=0.1), base / "start")
    write_data(base / "data")
    kills, began = Kills(base), time.monotonic()
    whole = kills.start(base / "whole", count=base / "calls")
    whole.join()
    if whole.exitcode != 0:
        print((base / "whole.log").read_text()[-2000:])
        return 1
    calls = int((base / "calls").read_text())
    expected, chance = result_of(base / "whole"), random.Random(options.seed)
    wanted, first = max(1, options.kills // 2), min(options.from_call, calls)
    for number in sorted({first + index * (calls - first) // max(1, wanted - 1) for index in range(wanted)}):
        kills.inside_call(expected, number)
        print(f"call {number} of {calls}: {len(kills.problems)} problems", flush=True)
    while kills.kills < options.kills:
        kills.at_random(expected, chance, min(4, options.kills - kills.kills))
        print(f"{kills.kills} kills: {len(kills.problems)} problems", flush=True)
    for problem in kills.problems:
        print(problem)
    print(
        f"{kills.kills} kills (of {calls} fsyncs and renames, every {max(1, calls // wanted)}th; the rest at random), "
        f"{kills.compared} runs compared: {len(kills.problems)} problems, {time.monotonic() - began:.0f} s"
    )
    if options.folder is None:
        shutil.rmtree(base)
    return bool(kills.problems)


if __name__ == "__main__":
    sys.exit(main())

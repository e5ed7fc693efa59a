"""Training steps a second and peak memory: this package's trainer beside a plain ``transformers`` loop.

    python benchmarks/train_step.py                 # the whole measurement, writes benchmarks/results/
    python benchmarks/train_step.py --quick         # a tiny model for two steps, to see that it runs

Both sides train the same CLIP (ViT-B/32's shape, equal random weights) on the same batches with the same AdamW,
clipping and schedule, without dropout, in one process each. They take turns, a few steps at a time, while the
other waits. What is timed:

- plain: ``CLIPModel(..., return_loss=True).loss``, backward, clipping, AdamW, schedule. Its captions are tokenized
  and padded to the full length, and its images normalised, before the clock starts.
- ours: ``TrainStep.update`` on a batch collated inside the timing, normalising included.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from _record import RESULTS, machine_facts, median, write_record
from _train_step_sides import prepare
from _worker import Worker, serve

MEMORY_NEEDED_GIB = 10  # both sides of a ViT-B/32 at batch 32, with their optimizers
DATA_SETS = ("ind_solar_cells", "med_covid_cxr")
LOSS_TOLERANCE = 1e-4

# Each entry: the settings of both processes, plain first. "highest" and "medium": torch's float32 matmul precision and
# nothing else; "float32": DeviceManager.optimize_for_device() with mixed_precision=False; "policy": the package's own
# choice of precision as well, which is what a user gets.
COMPARISONS: dict[str, tuple[str, ...]] = {
    "highest": ("highest", "highest"),
    "medium": ("medium", "medium"),
    "float32": ("highest", "float32"),
    "policy": ("highest", "policy"),
}
LOSS_COMPARISON = "medium"
"""The comparison that runs long enough to compare the losses: float32 on both sides, and the faster one."""


_MEASURED = ("seconds", "cpu_seconds", "losses")


def measure(specs: dict[str, dict[str, Any]], steps: int, block: int) -> dict[str, dict[str, Any]]:
    """Let the workers take turns, ``block`` steps at a time, until each has done ``steps``.

    The order within a round turns around every time, so that a machine that slows down or speeds up harms none.
    """
    runs: dict[str, dict[str, Any]] = {name: {key: [] for key in _MEASURED} for name in specs}
    script = Path(__file__).resolve()
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(script, spec)) for name, spec in specs.items()}
        for worker in workers.values():  # no one works while another still starts
            _ = worker.facts
        order = list(workers)
        done = 0
        while done < steps:
            count = min(block, steps - done)
            for name in order:
                answer = workers[name].ask("steps", count=count)
                for key in _MEASURED:
                    runs[name][key] += answer[key]
            done += count
            order.reverse()
        for name, worker in workers.items():
            runs[name]["settings"] = worker.facts["settings"]
            runs[name]["peak_memory_mb"] = round(worker.ask("finish")["peak_memory_mb"], 1)
    return runs


def compare(plain: dict[str, Any], ours: dict[str, Any], batch: int) -> dict[str, Any]:
    """Medians over the steps after the first, which also fills caches and the optimizer's state."""
    pairs = list(zip(plain["seconds"][1:], ours["seconds"][1:], strict=True))
    ratios = sorted(a / b for a, b in pairs)
    losses = [abs(a - b) for a, b in zip(plain["losses"], ours["losses"], strict=True)]
    plain_rate = batch / median([a for a, _ in pairs])
    our_rate = batch / median([b for _, b in pairs])
    plain_cpu, our_cpu = median(plain["cpu_seconds"][1:]), median(ours["cpu_seconds"][1:])
    return {
        "plain_samples_per_s": round(plain_rate, 3),
        "ours_samples_per_s": round(our_rate, 3),
        "speedup": round(our_rate / plain_rate, 3),
        "plain_samples_per_cpu_s": round(batch / plain_cpu, 3),
        "ours_samples_per_cpu_s": round(batch / our_cpu, 3),
        # With one thread, processor time leaves out what other work on the machine took.
        "speedup_in_cpu_time": round(plain_cpu / our_cpu, 3),
        "speedup_per_step_quartiles": [
            round(ratios[len(ratios) // 4], 3),
            round(ratios[-1 - len(ratios) // 4], 3),
        ],
        "plain_peak_memory_mb": plain["peak_memory_mb"],
        "ours_peak_memory_mb": ours["peak_memory_mb"],
        "steps_timed": len(pairs),
        "losses_compared": len(losses),
        "largest_loss_difference": max(losses),
        "plain_settings": plain["settings"],
        "ours_settings": ours["settings"],
    }


def quick_data(folder: Path) -> Path:
    """Sixteen images of noise with repeated short and distinct longer captions, in the layout of the real sets."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    with open(folder / "train.csv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["image_path", "caption"])
        for row in range(16):
            name = f"images/{row:02}.png"
            Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / name)
            writer.writerow([name, f"a {('red', 'blue')[row % 2]} image" if row % 4 else f"number {row} of them"])
    return folder


def run(arguments: argparse.Namespace) -> Path:
    """Measure, and write the record anew after each comparison: what an interruption leaves is a valid record."""
    batch, steps, loss_steps, block = (
        arguments.batch_size,
        arguments.steps,
        arguments.loss_steps,
        arguments.block,
    )
    settings = {"model": "vit-b-32", "tokenizer": str(arguments.data_root / "clip_tokenizer")}
    model = "ViT-B/32 shape, random weights"
    with ExitStack() as stack:
        if arguments.quick:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            data = {"quick": quick_data(folder / "quick")}
            batch, steps, loss_steps, block = 8, 2, 2, 1
            settings, model = {"model": "tiny"}, "tiny"
        else:
            data = {name: arguments.data_root / name for name in arguments.data}
        results: dict[str, dict[str, Any]] = {name: {} for name in data}
        record = {
            "machine": machine_facts(),
            "quick": arguments.quick,
            "model": model,
            "batch_size": batch,
            "threads": arguments.threads,
            "results": results,
        }
        path = Path()
        for comparison in arguments.comparisons:
            count = max(steps, loss_steps) if comparison == LOSS_COMPARISON else steps
            for name, folder in data.items():
                base = {**settings, "data": str(folder), "batch": batch, "seed": 0, "total_steps": 100}
                results[name][comparison] = _one_comparison(base, comparison, count, block)
                path = write_record("train_step", record, arguments.output)
        return path


def _one_comparison(base: dict[str, Any], name: str, steps: int, block: int) -> dict[str, Any]:
    # A pair of workers at a time: two sides of a ViT-B/32 take 9 GiB together.
    sides = {
        side: {**base, "side": side, "settings": settings, "name": f"{side}, {settings}"}
        for side, settings in zip(("plain", "ours"), COMPARISONS[name], strict=True)
    }
    load = machine_facts()["load_average_at_start"]
    runs = measure(sides, steps, block)
    result = {**compare(runs["plain"], runs["ours"], base["batch"]), "load_average_at_start": load}
    print(
        f"{Path(base['data']).name}, {name}: {result['speedup']:.2f} times "
        f"({result['plain_samples_per_s']:.2f} -> {result['ours_samples_per_s']:.2f} samples/s), "
        f"{result['speedup_in_cpu_time']:.2f} in processor time, "
        f"losses differ by at most {result['largest_loss_difference']:.1e}",
        flush=True,
    )
    if name != "policy" and not result["largest_loss_difference"] <= LOSS_TOLERANCE:
        raise SystemExit(
            f"{name}: the two losses differ by {result['largest_loss_difference']:.2e}, more than "
            f"{LOSS_TOLERANCE:g}: they do not train the same thing, so their speeds cannot be compared"
        )
    return result


def main() -> None:
    default_data = Path(__file__).resolve().parents[1] / "../shared/data"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("DOMAINCLIP_DATA", default_data)))
    parser.add_argument("--data", nargs="+", default=list(DATA_SETS), help="names of data sets in --data-root")
    parser.add_argument("--comparisons", nargs="+", choices=list(COMPARISONS), default=list(COMPARISONS))
    parser.add_argument("--steps", type=int, default=6, help="steps of each side, the first untimed")
    parser.add_argument(
        "--loss-steps",
        type=int,
        default=20,
        help=f"steps of the comparison {LOSS_COMPARISON!r}, if that is more",
    )
    parser.add_argument("--block", type=int, default=2, help="steps before the other side's turn")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--threads",
        type=int,
        help="OMP_NUM_THREADS of both sides; 1 makes processor time meaningful on a busy machine",
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model on made-up data, two steps")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON record")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(prepare, arguments.worker)
        return
    if arguments.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # for the workers
    if arguments.steps < 2 or arguments.block < 1:
        parser.error("--steps must be at least 2 (the first is not timed), --block at least 1")
    if not arguments.quick:
        for name in [*arguments.data, "clip_tokenizer"]:
            if not (arguments.data_root / name).is_dir():
                parser.error(f"{arguments.data_root / name} is missing: give --data-root or set DOMAINCLIP_DATA")
        if (available := psutil.virtual_memory().available / 2**30) < MEMORY_NEEDED_GIB:
            parser.error(
                f"{available:.1f} GiB of memory are available and about {MEMORY_NEEDED_GIB} needed: end other work, "
                "or use --quick"
            )
    print(run(arguments))


if __name__ == "__main__":
    main()

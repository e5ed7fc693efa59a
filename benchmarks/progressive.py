"""Does training on images that grow reach the accuracy of full-sized ones sooner?

    python benchmarks/progressive.py                # two data sets, three seeds: 20 to 25 minutes on two free cores
    python benchmarks/progressive.py --ways fixed fixed_short progressive progressive_short
    python benchmarks/progressive.py --quick        # a tiny model, to see that it runs

Every run starts from the same weights, with the data set's domain preset, and is validated on the same rows, which are
cut from ``train.csv``; a seed means the same batches. The target is what the ``fixed`` run of the same seed validates
with at its end. A way reaches it at the first crossing of its curve, interpolated between two validations; the fixed
run's own first crossing is recorded as well, since a curve that wavers crosses its last value early by luck.

Seconds are those inside training steps, as the trainer counts them: validations, waiting for images and writing are
not in them. ``run_s`` has all of it. Images are decoded in the first epoch only, for every way at the largest
resolution. Test accuracy is that of the weights which the package keeps.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _record import RESULTS, machine_facts, write_record

DATA = ("sci_pollen", "ind_solar_cells")
DOMAINS = {"ind": "industrial", "sci": "scientific", "med": "medical"}
FIXED = "fixed"
WAYS: dict[str, dict[str, Any]] = {
    FIXED: {},
    "progressive": {"resolution_schedule": {0: 96, 0.5: 128, 0.75: 160}},
    "progressive_mild": {"resolution_schedule": "auto"},
    "progressive_short": {"resolution_schedule": "auto"},
    "progressive_low": {"resolution_schedule": {0: 96, 0.6: 128, 0.85: 160}},
    "fixed_short": {},
}
FRACTION_OF_STEPS = {"progressive_short": 0.7, "fixed_short": 0.6}
"""A whole training of fewer steps, its schedules with it. ``fixed_short`` takes about as long as ``progressive``: what
it reaches is due to the shorter training alone."""
DEFAULT_WAYS = (FIXED, "progressive", "progressive_mild")
WARM_UP_STEPS = 3


def one_run(data: Path, model: str, way: str, seed: int, steps: int, batch: int, validations: int) -> dict[str, Any]:
    """Train one way and evaluate it. Raises ``SystemExit`` for a data set without classes."""
    from rich.console import Console

    from domainclip import CLIPFinetuningConfig, CLIPFinetuningController
    from domainclip.data.splits import load_splits
    from domainclip.tracking import read_rows

    steps = max(1, round(FRACTION_OF_STEPS.get(way, 1.0) * steps))
    config = CLIPFinetuningConfig(
        model_name=model,
        data_path=str(data),
        seed=seed,
        batch_size=batch,
        max_steps=steps,
        num_epochs=1000,
        domain=DOMAINS.get(data.name.split("_")[0], "general"),
        num_workers=0,
        logging_steps=1,
        eval_steps=math.ceil(steps / validations),
        save_steps=10**6,
        probe_first=False,  # towers alone: projections that fit beforehand leave less of a curve to compare
        **WAYS[way],
    )
    splits = load_splits(data)  # the seed of the split is not the run's: all runs are evaluated on the same rows
    load = machine_facts()["load_average_at_start"]
    with tempfile.TemporaryDirectory() as folder:
        controller = CLIPFinetuningController(config, Console(quiet=True))
        controller.setup()
        result = controller.fine_tune(splits.train, splits.val, folder)
        log = read_rows(Path(folder) / "metrics.jsonl")
        metrics = controller.evaluate(splits.test).metrics
    assert controller.recipe is not None
    schedule = controller.recipe.resolution_schedule
    del controller
    gc.collect()  # a finished run refers to itself, and Python waits for many objects, not for large ones
    steps_of_run = step_times(log)
    points = curve(log, steps_of_run)
    if not points:
        raise SystemExit(f"{data}: the validation rows have fewer than two classes, so there is no acc1 to reach")
    return {
        "data": data.name,
        "way": way,
        "seed": seed,
        "steps": result["steps"],
        "resolution_schedule": schedule,
        "curve": points,
        "acc1_validation": points[-1]["acc1"],
        "standard_error": math.sqrt(points[-1]["acc1"] * (1 - points[-1]["acc1"]) / points[-1]["n_classified"]),
        "acc1_test": metrics["acc1"],
        "mean_per_class_recall_test": metrics["mean_per_class_recall"],
        "training_s": steps_of_run[-1]["seconds"],
        "run_s": result["training_time"],
        "seconds_per_step": seconds_per_step(steps_of_run),
        "kept_step": result["best"]["step"] if result["best"] else None,
        "load_average_at_start": load,
        "warnings": result["warnings"],
    }


def step_times(log: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Step, resolution and cumulative seconds of each step, from a ``metrics.jsonl`` with a line for every one.

    The trainer writes rows so far over seconds so far; the rows of a step are its ``batch_size``.
    """
    times, rows = [], 0
    for line in log:
        if line.get("samples_per_second"):
            rows += line["batch_size"]
            seconds = rows / line["samples_per_second"]
            times.append({"step": line["step"], "resolution": line["resolution"], "seconds": seconds})
    return times


def curve(log: Sequence[dict[str, Any]], times: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The validations: step, seconds of training until there, ``acc1`` and of how many images."""
    seconds = {entry["step"]: entry["seconds"] for entry in times}
    return [
        {
            "step": line["step"],
            "seconds": round(seconds[line["step"]], 3),
            "acc1": line["val_acc1"],
            "n_classified": line["val_n_classified"],
        }
        for line in log
        if "val_acc1" in line
    ]


def seconds_per_step(times: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The median by resolution in pixels. The run's first step is left out: it does what is done once."""
    took: dict[str, list[float]] = {}
    for before, after in itertools.pairwise(times):
        took.setdefault(str(after["resolution"]), []).append(after["seconds"] - before["seconds"])
    return {resolution: round(statistics.median(values), 4) for resolution, values in took.items()}


def first_reached(points: Sequence[dict[str, Any]], target: float) -> float | None:
    """Seconds until ``acc1`` is at least ``target`` for the first time, on straight lines between validations.

    A curve that is there at its first validation counts from that one; None for one that never gets there.
    """
    before = None
    for point in points:
        if point["acc1"] >= target:
            if before is None:
                return float(point["seconds"])
            fraction = (target - before["acc1"]) / (point["acc1"] - before["acc1"])
            return float(before["seconds"] + fraction * (point["seconds"] - before["seconds"]))
        before = point
    return None


def comparisons(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each run beside the fixed one of its data set and seed (the fixed one as well), where there is one.

    ``target``: the fixed run's last validation. ``seconds``: when this way reached it; ``fixed_first_s``: when the
    fixed run did for the first time; ``fixed_s``: all its training. ``…_less_error``: of the target minus one
    standard error.
    """
    fixed = {(run["data"], run["seed"]): run for run in runs if run["way"] == FIXED}
    found = []
    for run in runs:
        other = fixed.get((run["data"], run["seed"]))
        if other is None:
            continue
        target = other["acc1_validation"]
        lower = target - other["standard_error"]
        found.append(
            {
                "data": run["data"],
                "way": run["way"],
                "seed": run["seed"],
                "target": target,
                "standard_error": other["standard_error"],
                "fixed_s": other["training_s"],
                "seconds": first_reached(run["curve"], target),
                "fixed_first_s": first_reached(other["curve"], target),
                "seconds_less_error": first_reached(run["curve"], lower),
                "fixed_first_s_less_error": first_reached(other["curve"], lower),
                "acc1_test_change": run["acc1_test"] - other["acc1_test"],
            }
        )
    return found


def main() -> None:
    root = Path(os.environ.get("DOMAINCLIP_DATA", "../shared/data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", type=Path, default=[root / name for name in DATA])
    parser.add_argument("--model", default=str(root.parent / "models" / "starter"))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(DEFAULT_WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=72, help="optimizer steps of a whole run")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--validations", type=int, default=10, help="in a run, besides those at the end of each epoch")
    parser.add_argument("--quick", action="store_true", help="a tiny model, a few steps and one seed")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if FIXED not in arguments.ways:
        parser.error(f"--ways needs {FIXED!r}: it sets the target of the others")
    if min(arguments.steps, arguments.batch - 1, arguments.validations) < 1:
        parser.error("--steps and --validations must be at least 1, --batch at least 2")
    if arguments.quick:
        arguments.model, arguments.seeds, arguments.steps, arguments.batch = "tiny", arguments.seeds[:1], 8, 8
        arguments.validations = 4
    import torch

    facts = machine_facts()
    record: dict[str, Any] = {
        "machine": facts,
        "quick": arguments.quick,
        "model": Path(arguments.model).name,
        "threads": torch.get_num_threads(),
        "budget": {"steps": arguments.steps, "batch_size": arguments.batch},
        "ways": {way: {**WAYS[way], "share_of_steps": FRACTION_OF_STEPS.get(way, 1.0)} for way in arguments.ways},
    }
    runs: list[dict[str, Any]] = []
    present = [data for data in arguments.data if data.is_dir()]
    for data in arguments.data:
        if data not in present:
            print(f"{data} is not here: left out")
    if present:  # what is loaded and compiled at the first use would count against whichever run comes first
        one_run(present[0], arguments.model, FIXED, 0, WARM_UP_STEPS, arguments.batch, 1)
    for index, seed in enumerate(arguments.seeds):  # seed by seed: a table that is cut short has whole rows
        for data in present:
            # In turned order every second seed, so that a machine that slows down slows no way more than another.
            for way in arguments.ways if index % 2 == 0 else reversed(arguments.ways):
                run = one_run(data, arguments.model, way, seed, arguments.steps, arguments.batch, arguments.validations)
                runs.append(run)
                print(
                    f"{data.name} {way} seed {seed}: validation {run['acc1_validation']:.3f} test "
                    f"{run['acc1_test']:.3f} training {run['training_s']:.0f} s of {run['run_s']:.0f} s",
                    flush=True,
                )
                # After every run: what was measured stays, whatever happens to the next.
                write_record(
                    "progressive", {**record, "runs": runs, "comparisons": comparisons(runs)}, arguments.output
                )


if __name__ == "__main__":
    main()

"""What each objective makes of real data sets from one initial model: several seeds, one equal budget.

    python benchmarks/objectives.py                                   # the whole table, about an hour on two cores
    python benchmarks/objectives.py --data DIR --seeds 0 --steps 4    # a part of it
    python benchmarks/objectives.py --resume                          # what the newest record does not have yet

Every run starts from the same weights, sees the same batches for a seed, trains for the same number of steps, and is
evaluated by its last weights on the test split (nothing is chosen on validation rows, which are not held out here: all
of ``train.csv`` is trained on). Accuracy does not depend on how busy the machine is; the seconds do.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _record import RESULTS, machine_facts, write_record
from make_tables import newest

DATA = ("ind_solar_cells", "ind_pcb_defects", "sci_pollen")
METRICS = ("acc1", "mean_per_class_recall", "i2t_R@1", "t2i_R@1", "mean_R@1", "n_classified")
OBJECTIVES: dict[str, dict[str, Any]] = {
    "contrastive": {"loss_type": "contrastive"},
    "multi_positive": {"loss_type": "multi_positive"},
    "sigmoid": {"loss_type": "sigmoid"},
    "hard_negative": {"loss_type": "hard_negative"},
    "domain_specific": {"loss_type": "domain_specific"},
}
DOMAINS = {"ind": "industrial", "sci": "scientific", "med": "medical"}


def one_run(data: Path, model: str, objective: str, seed: int, steps: int, batch: int) -> dict[str, Any]:
    from rich.console import Console

    from domainclip import CLIPFinetuningConfig, CLIPFinetuningController
    from domainclip.data.splits import load_splits

    config = CLIPFinetuningConfig(
        model_name=model,
        data_path=str(data),
        seed=seed,
        batch_size=batch,
        max_steps=steps,
        num_epochs=1000,
        domain=DOMAINS.get(data.name.split("_")[0], "general"),
        save_steps=10**6,
        **OBJECTIVES[objective],
    )
    splits = load_splits(data, seed=seed)
    folder = Path(tempfile.mkdtemp())
    try:
        started = time.monotonic()
        controller = CLIPFinetuningController(config, Console(quiet=True))
        controller.setup()
        result = controller.fine_tune([*splits.train, *splits.val], None, folder)
        metrics = controller.evaluate(splits.test).metrics
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        gc.collect()  # a trainer refers to itself, and Python waits for many objects, not for large ones
    return {
        "data": data.name,
        "objective": objective,
        "seed": seed,
        **{name: metrics.get(name) for name in METRICS},
        "training_s": result["training_time"],
        "run_s": time.monotonic() - started,
        "warnings": result["warnings"],
    }


def main() -> None:
    root = Path(os.environ.get("DOMAINCLIP_DATA", "../shared/data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", type=Path, default=[root / name for name in DATA])
    parser.add_argument("--model", default=str(root.parent / "models" / "starter"))
    parser.add_argument("--objectives", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument(
        "--resume", action="store_true", help="keep the runs of the newest record and add what it lacks"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    budget = {"steps": arguments.steps, "batch_size": arguments.batch}
    runs: list[dict[str, Any]] = []
    if arguments.resume:
        record = newest("objectives", arguments.output)
        if isinstance(record, dict) and record["budget"] == budget:
            runs = record["runs"]
    done = {(run["data"], run["objective"], run["seed"]) for run in runs}
    facts = machine_facts()
    for seed in arguments.seeds:  # seed by seed: a table that is cut short has whole rows
        for data in arguments.data:
            if not data.is_dir():
                print(f"{data} is not here: left out")
                continue
            for objective in arguments.objectives:
                if (data.name, objective, seed) in done:
                    continue
                run = one_run(data, arguments.model, objective, seed, steps=arguments.steps, batch=arguments.batch)
                runs.append(run)
                print(
                    f"{data.name} {objective} seed {seed}: acc1 {run['acc1']:.3f} R@1 {run['mean_R@1']:.3f} "
                    f"{run['run_s']:.0f} s",
                    flush=True,
                )
                # After every run: what was measured stays, whatever happens to the next.
                content = {"machine": facts, "model": Path(arguments.model).name, "budget": budget, "runs": runs}
                write_record("objectives", content, arguments.output)


if __name__ == "__main__":
    main()

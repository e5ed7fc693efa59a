"""What the defaults make of real data sets from one initial model, beside its baselines and other trainers.

    python benchmarks/recipes.py                                  # every set of DATA in DOMAINCLIP_DATA, one seed
    python benchmarks/recipes.py --seeds 0 1 2 --ways domainclip  # three seeds of our own
    python benchmarks/recipes.py --data DIR [DIR …] --model M --ways linear_probe plain

Ways: ``domainclip`` is ``domainclip train`` with the domain of the set (the beginning of its name: med, ind, sci) and
no other key set (``--set key=value`` adds some); ``linear_probe`` a logistic regression on the frozen image tower, and
``linear_probe_larger`` the same of images read 1.4 times larger; ``plain`` a plain loop with several positives;
``transformers`` the same loop with the model's own loss, and ``sentence_transformers`` that package's trainer: with our
batches and steps (the ``domainclip`` run of the same seed comes first), and the rates of our towers without the probe
first. None of them needs validation rows, so that all train on these, too. All are evaluated alike, by classification
of the test rows with the domain's prompts; only the probe has classes of its own.

A run that is in today's record already is not repeated.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _record import RESULTS, machine_facts, runs_so_far, write_record

LARGER = {"starter": 224}
"""What ``linear_probe_larger`` reads images at, by the model's name: 1.4 times its own resolution."""
METRICS = ("acc1", "mean_per_class_recall", "i2t_R@1", "t2i_R@1", "n_classified", "n_classes", "n_texts")
DATA = (
    "med_blood_cells",
    "sci_pollen",
    "ind_pcb_defects",
    "ind_solar_cells",
    "sci_rock_thin_sections",
    "med_modalities6",
)
DOMAINS = {"med": "medical", "ind": "industrial", "sci": "scientific"}
OURS = "domainclip"
WAYS = (OURS, "linear_probe", "linear_probe_larger", "plain", "transformers", "sentence_transformers")


def our_run(data: Path, model: str, seed: int, overrides: dict[str, Any], folder: Path) -> dict[str, Any]:
    from domainclip import CLIPFinetuningConfig, run_training

    started = time.monotonic()
    config = CLIPFinetuningConfig(
        **{
            "data_path": str(data),
            "model_name": model,
            "output_dir": str(folder),
            "seed": seed,
            "domain": DOMAINS.get(data.name.split("_")[0], "general"),
            **overrides,
        }
    )
    report = run_training(config).report.to_dict()
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    return {
        "before": {name: report["before"].get(name) for name in METRICS},
        "after": {name: report["after"].get(name) for name in METRICS},
        "acc1_interval": report["acc1_interval"],
        "training_time_s": report["training"]["training_time_s"],
        "run_s": time.monotonic() - started,
        "steps": report["training"]["steps"],
        "batch": recipe["batch_size"],
        "kept_step": report["training"]["best_step"],
        "resolution": recipe["image_resolution"],
        "samples_per_s": report["training"]["samples_per_s"],
        "peak_memory_mb": report["training"]["peak_memory_mb"],
        "device": report["device"],
    }


def other_run(
    way: str, data: Path, model: str, seed: int, ours: dict[str, Any] | None, folder: str
) -> dict[str, Any] | None:
    """None where it has nothing to go by."""
    import torch
    from rich.console import Console

    from _recipe_peers import linear_probe, plain_loop, sentence_transformers_loop
    from domainclip import CLIPFinetuningConfig, CLIPFinetuningController
    from domainclip.data.records import PairList
    from domainclip.data.splits import load_splits

    domain = DOMAINS.get(data.name.split("_")[0], "general")
    # Rates for towers whose batch norm learns along, as in these loops; our own, after the probe, are lower.
    config = CLIPFinetuningConfig(data_path=str(data), model_name=model, seed=seed, domain=domain, probe_first=False)
    if way == "linear_probe_larger":
        config = config.updated(image_resolution=LARGER[Path(model).name])
    controller = CLIPFinetuningController(config, Console(quiet=True))
    controller.setup()
    torch.manual_seed(seed)
    splits = load_splits(data, seed=seed)
    started = time.monotonic()
    rows = PairList.joined([splits.train, splits.val])
    if way.startswith("linear_probe"):
        found = linear_probe(controller, rows, splits.test)
        return {"after": found, "run_s": time.monotonic() - started}
    recipe = controller.prepare(rows)
    if ours is None:
        print(f"{data.name}, seed {seed}: {way} is given as many steps as {OURS}, which has not run: left out")
        return None
    reported = {"steps": ours["steps"], "batch": ours["batch"]}
    if way != "sentence_transformers":
        plain_loop(controller, rows, recipe, **reported, seed=seed, multi_positive=way == "plain")
    else:
        reported = sentence_transformers_loop(controller, rows, recipe, ours["steps"], ours["batch"], seed, folder)
    seconds = time.monotonic() - started
    metrics = controller.evaluate(splits.test).metrics
    return {
        **reported,
        "training_time_s": seconds,
        "after": {name: metrics.get(name) for name in METRICS},
        "run_s": time.monotonic() - started,
    }


def main() -> None:
    root = Path(os.environ.get("DOMAINCLIP_DATA", "../shared/data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", type=Path, default=[root / name for name in DATA])
    parser.add_argument("--model", default=str(root.parent / "models" / "starter"))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[OURS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--go-on", action="store_true", help="begin with the runs of the newest record, of any day")
    arguments = parser.parse_args()
    from domainclip.config import parse_overrides

    overrides = parse_overrides(arguments.set)
    facts = machine_facts()
    present = [data for data in arguments.data if data.is_dir()]
    for data in arguments.data:
        if data not in present:
            print(f"{data} is not here: left out")
    runs = [run for run in runs_so_far("recipes", arguments.output, arguments.go_on) if "way" in run]
    for seed in arguments.seeds:
        for data in present:
            for way in arguments.ways:
                key = {
                    "data": data.name,
                    "model": Path(arguments.model).name,
                    "way": way,
                    "seed": seed,
                    "settings": overrides if way == OURS else {},
                }
                if any(key.items() <= run.items() for run in runs):
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    if way == OURS:
                        found = our_run(data, arguments.model, seed, overrides, Path(folder))
                    else:
                        same = {**key, "way": OURS, "settings": overrides}
                        ours = next((run for run in runs if same.items() <= run.items()), None)
                        found = other_run(way, data, arguments.model, seed, ours, folder)
                if found is None:
                    continue
                runs.append({**key, **found})
                # After every run: what was measured stays, whatever happens to the next.
                print(write_record("recipes", {"machine": facts, "runs": runs}, arguments.output))


if __name__ == "__main__":
    main()

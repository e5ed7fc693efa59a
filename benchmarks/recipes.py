"""What the defaults make of real data sets from one starting model: accuracy before and after, and the time.

    python benchmarks/recipes.py                                # three sets from DOMAINCLIP_DATA
    python benchmarks/recipes.py --data DIR [DIR …] --model M   # others

Each run is ``domainclip train`` with no key set but data and model (``--set key=value`` adds some); the figures are
those of its report.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _record import RESULTS, machine_facts, write_record

METRICS = ("acc1", "mean_per_class_recall", "i2t_R@1", "t2i_R@1", "n_classified", "n_classes", "n_texts")


def one_run(data: Path, model: str, overrides: dict[str, Any], folder: Path) -> dict[str, Any]:
    from domainclip import CLIPFinetuningConfig, run_training

    config = CLIPFinetuningConfig(
        **{"data_path": str(data), "model_name": model, "output_dir": str(folder), **overrides}
    )
    report = run_training(config).report
    return {
        "data": data.name,
        "model": Path(model).name,
        "settings": overrides,
        "before": {name: report["before"].get(name) for name in METRICS},
        "after": {name: report["after"].get(name) for name in METRICS},
        "acc1_interval": report["acc1_interval"],
        "training_time_s": report["training"]["training_time_s"],
        "steps": report["training"]["steps"],
        "samples_per_s": report["training"]["samples_per_s"],
        "peak_memory_mb": report["training"]["peak_memory_mb"],
        "device": report["device"],
    }


def main() -> None:
    root = Path(os.environ.get("DOMAINCLIP_DATA", "../shared/data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("ind_solar_cells", "med_blood_cells", "sci_pollen")
    parser.add_argument("--data", nargs="+", type=Path, default=[root / name for name in names])
    parser.add_argument("--model", default=str(root.parent / "models" / "starter"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    from domainclip.config import parse_overrides

    overrides = parse_overrides(arguments.set)
    facts = machine_facts()
    runs: list[dict[str, Any]] = []
    for data in arguments.data:
        if not data.is_dir():
            print(f"{data} is not here: left out")
            continue
        with tempfile.TemporaryDirectory() as folder:
            runs.append(one_run(data, arguments.model, overrides, Path(folder)))
        # After every run: what was measured stays, whatever happens to the next.
        print(write_record("recipes", {"machine": facts, "runs": runs}, arguments.output))


if __name__ == "__main__":
    main()

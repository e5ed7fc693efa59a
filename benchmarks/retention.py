"""What adapting to a domain costs elsewhere: two reference sets before and after, by three ways of keeping them.

    python benchmarks/retention.py                          # two sets of DATA in DOMAINCLIP_DATA, one seed
    python benchmarks/retention.py --ways default           # some of the ways
    python benchmarks/retention.py --quick                  # four steps each: does it run?

``default``: rehearsal, and the trade-off that validation rows choose. ``wise_ft``: the trade-off without rehearsal.
``nothing``: neither. Figures are those of the test splits, which chose nothing. A run that is in today's record already
is not repeated.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _record import RESULTS, machine_facts, runs_so_far, write_record
from recipes import DOMAINS

DATA = ("ind_solar_cells", "sci_pollen")
REFERENCE = ("gen_clothing", "gen_grocery")
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "wise_ft": {"rehearsal_strength": 0.0},
    "nothing": {"rehearsal_strength": 0.0, "wise_ft": False},
}


def one_run(data: Path, model: str, way: str, seed: int, sets: list[Path], more: dict[str, Any]) -> dict[str, Any]:
    from domainclip import CLIPFinetuningConfig, run_training

    with tempfile.TemporaryDirectory() as folder:
        config = CLIPFinetuningConfig(
            **{
                "data_path": str(data),
                "model_name": model,
                "output_dir": folder,
                "seed": seed,
                "domain": DOMAINS.get(data.name.split("_")[0], "general"),
                "retention_data": [str(path) for path in sets],
                **WAYS[way],
                **more,
            }
        )
        report = run_training(config).report.to_dict()
    return {
        "before": report["before"]["acc1"],
        "after": report["after"]["acc1"],
        "acc1_interval": report["acc1_interval"],
        "retention_before": report["reference_sets"]["before"]["acc1"],
        "retention_after": report["reference_sets"]["after"]["acc1"],
        "sets": {
            name: {key: part[key] for key in ("before", "after", "rows")}
            for name, part in report["reference_sets"]["sets"].items()
        },
        "trade_off": report["trade_off"],
        "training_time_s": report["training"]["training_time_s"],
    }


def main() -> None:
    root = Path(os.environ.get("DOMAINCLIP_DATA", "../shared/data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", type=Path, default=[root / name for name in DATA])
    parser.add_argument("--reference", nargs="+", type=Path, default=[root / name for name in REFERENCE])
    parser.add_argument("--model", default=str(root.parent / "models" / "starter"))
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=list(WAYS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--go-on", action="store_true", help="begin with the runs of the newest record, of any day")
    arguments = parser.parse_args()
    facts = machine_facts()
    runs = runs_so_far("retention", arguments.output, arguments.go_on)
    if absent := [str(path) for path in (*arguments.data, *arguments.reference) if not path.is_dir()]:
        print(f"Nothing is run, since these are not here: {', '.join(absent)}")
        return
    more: dict[str, Any] = {"max_steps": 4} if arguments.quick else {}
    for way in arguments.ways:
        for data in arguments.data:
            key = {"data": data.name, "way": way, "seed": arguments.seed}
            if any(key.items() <= run.items() for run in runs):
                continue
            found = one_run(data, arguments.model, way, arguments.seed, arguments.reference, more)
            runs.append({**key, **found})
            content = {"machine": facts, "quick": arguments.quick, "runs": runs}
            # After every run: what was measured stays, whatever happens to the next.
            print(write_record("retention", content, arguments.output))


if __name__ == "__main__":
    main()

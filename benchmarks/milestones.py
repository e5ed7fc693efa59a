"""Which milestones clean trainings come to: default recipes on five sets, of which none should warn of anything.

    python benchmarks/milestones.py                     # five sets of DOMAINCLIP_DATA, whole default trainings
    python benchmarks/milestones.py --max-steps 200     # shorter ones
    python benchmarks/milestones.py --quick             # four steps each: does it run?

Each step is logged, so that every rule has as much to look at as it can. A run that is in today's record already is not
repeated.
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

DATA = ("sci_pollen", "med_blood_cells", "ind_solar_cells", "ind_pcb_defects", "sci_rock_thin_sections")


def one_run(data: Path, model: str, max_steps: int | None) -> dict[str, Any]:
    from domainclip import CLIPFinetuningConfig, run_training

    with tempfile.TemporaryDirectory() as folder:
        config = CLIPFinetuningConfig(
            data_path=str(data),
            model_name=model,
            output_dir=folder,
            domain=DOMAINS.get(data.name.split("_")[0], "general"),
            logging_steps=1,
            **({"max_steps": max_steps} if max_steps else {}),
        )
        report = run_training(config).report
    milestones = [each.model_dump() for each in report.milestones]
    return {
        "steps": report.training.steps,
        "before": report.before.get("acc1"),
        "after": report.after.get("acc1"),
        "warnings": [each["name"] for each in milestones if each["level"] != "info"],
        "milestones": [
            {key: each[key] for key in ("name", "step", "level", "text", "evidence")} for each in milestones
        ],
    }


def main() -> None:
    root = Path(os.environ.get("DOMAINCLIP_DATA", "../shared/data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", type=Path, default=[root / name for name in DATA])
    parser.add_argument("--model", default=str(root.parent / "models" / "starter"))
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    facts = machine_facts()
    runs = runs_so_far("milestones", arguments.output, go_on=False)
    for data in arguments.data:
        if not data.is_dir():
            print(f"{data.name} is left out: it is not here")
            continue
        if any(run["data"] == data.name for run in runs):
            continue
        runs.append(
            {"data": data.name, **one_run(data, arguments.model, 4 if arguments.quick else arguments.max_steps)}
        )
        # After every run: what was measured stays, whatever happens to the next.
        print(write_record("milestones", {"machine": facts, "quick": arguments.quick, "runs": runs}, arguments.output))


if __name__ == "__main__":
    main()

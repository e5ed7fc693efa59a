"""What each part of a domain's preset, and of how the towers are trained, is worth: one run without it.

    python benchmarks/ablation.py                               # the sets of DATA in DOMAINCLIP_DATA, one seed
    python benchmarks/ablation.py --parts nothing probe --seeds 0 1 2 3 4
    python benchmarks/ablation.py --quick                  # four steps each: does it run?

Parts of the preset are put back to what the general domain has, one at a time (``all``: the domain is general); parts
of the training are turned off. A run that is in today's record already is not repeated.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _record import RESULTS, machine_facts, runs_so_far, write_record
from recipes import our_run

DATA = ("ind_solar_cells", "sci_pollen", "sci_rock_thin_sections", "ind_pcb_defects")
NOTHING = "nothing"
PRESET = ("all", "images", "texts", "prompts", "augmentation", "training")
NATIVE = {"starter": 160}
"""The resolution of a model's own, by its name."""
TRAINING: dict[str, dict[str, Any]] = {
    "probe": {"probe_first": False, "probe_last": False},
    "probe_last": {"probe_last": False},
    "validation_rows": {"fit_validation_rows": False},
    "larger": {"image_resolution": NATIVE["starter"]},
    "classification": {"classification_weight": 0.0},
    "averaging": {"ema_fraction": 0.0},
    "small_data": {"small_data": False},
}


def without(part: str) -> dict[str, Any]:
    """The recipe keys that take ``part`` away."""
    from domainclip.config.image_preprocessing import ImagePreprocessing
    from domainclip.config.settings import DEFAULT_TEMPLATES
    from domainclip.config.text_preprocessing import TextPreprocessing

    ways: dict[str, dict[str, Any]] = {
        NOTHING: {},
        "all": {"domain": "general"},
        "images": {"image_preprocessing": ImagePreprocessing()},
        "texts": {"text_preprocessing": TextPreprocessing()},
        "prompts": {"prompt_templates": list(DEFAULT_TEMPLATES)},
        "augmentation": {"horizontal_flip": True, "vertical_flip": False, "rotate90": False},
        "training": {"learning_rate": 5e-5},
        **TRAINING,
    }
    return ways[part]


def main() -> None:
    root = Path(os.environ.get("DOMAINCLIP_DATA", "../shared/data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", type=Path, default=[root / name for name in DATA])
    parser.add_argument("--model", default=str(root.parent / "models" / "starter"))
    parser.add_argument(
        "--parts", nargs="+", choices=(NOTHING, *PRESET, *TRAINING), default=[NOTHING, *PRESET, *TRAINING]
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--go-on", action="store_true", help="begin with the runs of the newest record, of any day")
    arguments = parser.parse_args()
    facts = machine_facts()
    runs = runs_so_far("ablation", arguments.output, arguments.go_on)
    for data in arguments.data:
        if not data.is_dir():
            print(f"{data} is not here: left out")
            continue
        for seed, part in itertools.product(arguments.seeds, arguments.parts):
            key = {"data": data.name, "without": part, "seed": seed}
            if any(key.items() <= run.items() for run in runs):
                continue
            more: dict[str, Any] = {"max_steps": 4} if arguments.quick else {}
            with tempfile.TemporaryDirectory() as folder:
                found = our_run(data, arguments.model, seed, {**without(part), **more}, Path(folder))
            runs.append({**key, **found})
            content = {"machine": facts, "quick": arguments.quick, "runs": runs}
            # After every run: what was measured stays, whatever happens to the next.
            print(write_record("ablation", content, arguments.output))


if __name__ == "__main__":
    main()

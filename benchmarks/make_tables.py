"""Write the tables of results into the documents, from the newest record of each benchmark and device.

    python benchmarks/make_tables.py                # rewrites docs/**/*.md and README.md where they have markers
    python benchmarks/make_tables.py --check        # changes nothing; exit code 1 where a table is out of date

A table stands between ``<!-- table: NAME -->`` and ``<!-- end table -->``. What was not run stays an empty cell.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from _memory_tables import gradcache_table, memory_table
from _progressive_tables import progressive_resolutions_table, progressive_table
from _record import RESULTS
from _search_tables import search_table
from _serve_tables import serve_table
from _table_cells import look_up, newest, number, ratio, table
from derived_sets import SETS as DERIVED
from domainclip.files import write_text

_MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n)(.*?)(<!-- end table -->)", re.DOTALL)

DEVICES = ("cpu", "cuda", "mps")
TRAIN_STEP_DATA = ("ind_solar_cells", "med_covid_cxr")
TRAIN_STEP_ROWS = {
    "highest": "float32, torch's defaults on both sides",
    "medium": "float32, `medium` matmul precision on both sides",
    "float32": "float32: torch's defaults, against `optimize_for_device()`",
    "policy": "torch's defaults in float32, against the package's own choice",
}
PIPELINE_SIZES = ("640x480", "2000x1500")
PIPELINE_ROWS = {
    ("plain", "first"): "first epoch",
    ("plain", "later"): "later epochs",
    ("augmented", "first"): "first epoch, augmented",
    ("augmented", "later"): "later epochs, augmented",
}


def train_step_table(results: Path) -> str:
    rows = []
    for device in DEVICES:
        record = newest("train_step", results, device)
        for name in TRAIN_STEP_DATA:
            for comparison, words in TRAIN_STEP_ROWS.items():
                entry = look_up(record, "results", name, comparison)
                rows.append(
                    [
                        device,
                        f"`{name}`",
                        words,
                        number(look_up(entry, "plain_samples_per_s")),
                        number(look_up(entry, "ours_samples_per_s")),
                        "" if entry is None else f"{entry['speedup']:.2f}×",
                        number(look_up(entry, "plain_peak_memory_mb"), ".0f"),
                        number(look_up(entry, "ours_peak_memory_mb"), ".0f"),
                        number(look_up(entry, "largest_loss_difference"), ".0e"),
                        number(look_up(entry, "losses_compared"), "d"),
                        number(look_up(entry, "steps_timed"), "d"),
                    ]
                )
    header = [
        "device",
        "captions",
        "compared",
        "plain, samples/s",
        "ours, samples/s",
        "ratio",
        "plain, peak MiB",
        "ours, peak MiB",
        "largest loss difference",
        "over steps",
        "steps timed",
    ]
    return table(header, rows)


def input_pipeline_table(results: Path) -> str:
    record = newest("input_pipeline", results)
    rows = []
    for size in PIPELINE_SIZES:
        for (kind, when), words in PIPELINE_ROWS.items():
            rate = {
                side: look_up(record, "results", size, kind, side, when, "pictures_per_s")
                for side in ("reference", "reference, same settings", "ours", "ours, prefetch thread")
            }
            largest, mean = (
                look_up(record, "results", size, "difference_in_levels", key) if kind == "plain" else None
                for key in ("largest", "mean")
            )
            rows.append(
                [
                    size.replace("x", " × "),
                    words,
                    *(number(value, ".0f") for value in rate.values()),
                    ratio(rate["ours"], rate["reference"]),
                    ratio(rate["ours"], rate["reference, same settings"]),
                    number(largest),
                    number(mean, ".4f"),
                ]
            )
    header = [
        "JPEG",
        "what",
        "reference, images/s",
        "reference, same settings",
        "ours",
        "ours, prefetch thread",
        "ratio",
        "ratio, same settings",
        "largest difference, 1/255",
        "mean difference, 1/255",
    ]
    return table(header, rows)


def mean(values: Iterable[float]) -> str:
    found = list(values)
    return number(statistics.fmean(found) if found else None, ".3f")


RECIPE_DATA = (
    "med_blood_cells",
    "med_modalities6",
    "ind_pcb_defects",
    "ind_solar_cells",
    "sci_pollen",
    "sci_rock_thin_sections",
    *DERIVED,
)
RECIPE_WAYS = ("linear_probe", "linear_probe_larger", "plain", "transformers", "sentence_transformers")


def recipes_table(results: Path) -> str:
    """The seeds' mean of each way, with the lowest and the highest of several for ours."""
    runs = look_up(newest("recipes", results), "runs") or []
    rows = []
    for data in RECIPE_DATA:
        of = {
            way: [run for run in runs if (run["data"], run.get("way")) == (data, way) and not run["settings"]]
            for way in ("domainclip", *RECIPE_WAYS)
        }
        ours, first = of["domainclip"], next(iter(of["domainclip"]), None)
        found = [run["after"]["acc1"] for run in ours]
        others = [mean(run["after"]["acc1"] for run in of[way]) for way in RECIPE_WAYS]
        after = mean(found)
        if len(found) > 1:
            after += f" ({min(found):.3f}–{max(found):.3f})"
        rows.append(
            [
                data,
                number(look_up(first, "before.acc1"), ".3f"),
                *others,
                after,
                str(len(ours) or ""),
                mean(run["after"]["mean_per_class_recall"] for run in ours),
                number(look_up(first, "run_s"), ".0f"),
            ]
        )
    header = [
        "data",
        "before",
        "linear probe",
        "linear probe, 224 pixels",
        "plain loop",
        "`transformers`",
        "sentence-transformers",
        "domainclip",
        "seeds",
        "mean per-class recall",
        "whole run, s",
    ]
    return table(header, rows)


ABLATION_DATA = ("ind_solar_cells", "sci_pollen", "sci_rock_thin_sections", "ind_pcb_defects")
ABLATION_PARTS = {
    "nothing": "nothing: the defaults",
    "all": "the preset: domain general",
    "images": "its image steps",
    "texts": "its text steps",
    "prompts": "its prompts",
    "augmentation": "its augmentation",
    "training": "its learning rate",
    "probe": "the probe, first and last",
    "probe_last": "the probe last",
    "validation_rows": "the last fit to validation rows",
    "larger": "larger images",
    "classification": "the classes' own term",
    "averaging": "the mean of the weights",
    "small_data": "the restraint under 1,000 rows",
}


def ablation_table(results: Path) -> str:
    """What a part is worth: the change of accuracy without it, in points, with the standard error over the seeds that
    both have."""
    runs = look_up(newest("ablation", results), "runs") or []
    found = {(run["data"], run["without"], run["seed"]): run["after"]["acc1"] for run in runs}
    seeds = sorted({seed for _, _, seed in found})
    rows = []
    for part, words in ABLATION_PARTS.items():
        cells = []
        for data in ABLATION_DATA:
            whole = {seed: found[data, "nothing", seed] for seed in seeds if (data, "nothing", seed) in found}
            changes = [100 * (found[data, part, s] - whole[s]) for s in whole if (data, part, s) in found]
            if part == "nothing":
                cells.append(mean(whole.values()))
            elif len(changes) > 1:
                error = statistics.stdev(changes) / len(changes) ** 0.5
                cells.append(f"{statistics.fmean(changes):+.1f} ± {error:.1f}")
            else:
                cells.append(f"{changes[0]:+.1f}" if changes else "")
        rows.append([words, *cells])
    return table(["without", *ABLATION_DATA], rows)


FORGETTING_WAYS = {
    "default": "rehearsal and the chosen mean (default)",
    "wise_ft": "the chosen mean alone",
    "nothing": "neither",
}


def forgetting_table(results: Path) -> str:
    runs = look_up(newest("retention", results), "runs") or []
    rows = []
    for data in ("ind_solar_cells", "sci_pollen"):
        for way, words in FORGETTING_WAYS.items():
            run = next((run for run in runs if (run["data"], run["way"]) == (data, way)), None)
            lost = run and 100 * (run["retention_before"] - run["retention_after"])
            rows.append(
                [
                    data,
                    words,
                    *(
                        number(look_up(run, key), ".3f")
                        for key in ("before", "after", "retention_before", "retention_after")
                    ),
                    number(lost, ".1f"),
                    number(look_up(run, "trade_off.chosen_alpha"), ".2f"),
                ]
            )
    header = [
        "domain",
        "kept by",
        "acc1 before",
        "after",
        "reference sets before",
        "after",
        "points lost",
        "wise_ft_alpha",
    ]
    return table(header, rows)


OBJECTIVE_DATA = ("ind_solar_cells", "ind_pcb_defects", "sci_pollen")
OBJECTIVES = ("contrastive", "multi_positive", "sigmoid", "hard_negative", "domain_specific")
OBJECTIVE_PAIRS = (
    *((objective, "contrastive") for objective in OBJECTIVES[1:]),
    ("hard_negative", "multi_positive"),
    ("domain_specific", "multi_positive"),
)
OBJECTIVE_METRICS = ("acc1", "mean_per_class_recall", "mean_R@1")


def _by_seed(record: Any, data: str, objective: str) -> dict[int, dict[str, Any]]:
    runs = look_up(record, "runs") or []
    return {run["seed"]: run for run in runs if run["data"] == data and run["objective"] == objective}


def objectives_table(results: Path) -> str:
    record = newest("objectives", results)
    rows = []
    for data in OBJECTIVE_DATA:
        for objective in OBJECTIVES:
            runs = list(_by_seed(record, data, objective).values())
            cells = []
            for metric in OBJECTIVE_METRICS:
                values = [run[metric] for run in runs]
                cells.append(number(statistics.fmean(values) if values else None, ".3f"))
                cells.append(number(statistics.stdev(values) if len(values) > 1 else None, ".3f"))
            seconds = [run["training_s"] for run in runs]
            rows.append(
                [
                    f"`{data}`",
                    f"`{objective}`",
                    *cells,
                    str(len(runs) or ""),
                    number(statistics.median(seconds) if seconds else None, ".0f"),
                ]
            )
    header = [
        "data",
        "objective",
        "acc@1",
        "± seeds",
        "mean per-class recall",
        "± seeds",
        "R@1, both ways",
        "± seeds",
        "runs",
        "training, s (median)",
    ]
    return table(header, rows)


def objectives_paired_table(results: Path) -> str:
    """Differences between two objectives within a seed, with the interval of Student's t."""
    from scipy.stats import t

    record = newest("objectives", results)
    rows = []
    for data in OBJECTIVE_DATA:
        for objective, other in OBJECTIVE_PAIRS:
            runs, others = _by_seed(record, data, objective), _by_seed(record, data, other)
            seeds = sorted(set(runs) & set(others))
            cells = []
            for metric in OBJECTIVE_METRICS:
                changes = [100 * (runs[seed][metric] - others[seed][metric]) for seed in seeds]
                if len(changes) < 2:
                    cells.append("")
                    continue
                half = t.ppf(0.975, len(changes) - 1) * statistics.stdev(changes) / len(changes) ** 0.5
                cells.append(f"{statistics.fmean(changes):+.1f} ± {half:.1f}")
            rows.append([f"`{data}`", f"`{objective}`", f"`{other}`", *cells])
    return table(["data", "objective", "against", "acc@1", "mean per-class recall", "R@1, both ways"], rows)


LOSS_MEMORY_CELLS = {
    "multi_positive": ("4096", "16384", "32768"),
    "hard_negative": ("32768",),
    "sigmoid": ("32768",),
}


def loss_memory_table(results: Path) -> str:
    record = newest("loss_memory", results)
    rows = []
    for objective, sizes in LOSS_MEMORY_CELLS.items():
        for size in sizes:
            cell = look_up(record, "results", objective, size)
            peak, seconds = (
                {how: look_up(cell, how, key) for how in ("whole", "chunked")} for key in ("peak_memory_mb", "seconds")
            )
            rows.append(
                [
                    f"`{objective}`",
                    f"{int(size):,}",
                    number(peak["whole"], ".0f"),
                    number(seconds["whole"]),
                    number(peak["chunked"], ".0f"),
                    number(seconds["chunked"]),
                    ratio(peak["whole"], peak["chunked"]),
                    number(look_up(cell, "relative_difference", "loss"), ".0e"),
                    number(look_up(cell, "relative_difference", "gradient"), ".0e"),
                ]
            )
    header = [
        "objective",
        "B",
        "full, peak MiB",
        "full, s",
        "chunked, peak MiB",
        "chunked, s",
        "peak, full : chunked",
        "largest relative difference, loss",
        "largest relative difference, gradient",
    ]
    return table(header, rows)


ATTENTION_TOKENS = ("50", "197", "577", "1025", "1600")
ATTENTION_KINDS = ("sdpa", "eager", "sliced")


def attention_table(results: Path) -> str:
    record = newest("attention", results)
    rows = []
    for tokens in ATTENTION_TOKENS:
        plain = look_up(record, "results", tokens, "eager")
        for kind in ATTENTION_KINDS:
            cell = look_up(record, "results", tokens, kind)
            seconds = look_up(cell, "seconds_per_layer")
            rows.append(
                [
                    f"{int(tokens):,}",
                    f"`{kind}`",
                    number(None if seconds is None else 1000 * seconds, ".1f"),
                    number(look_up(cell, "peak_mb_per_layer"), ".1f"),
                    number(look_up(cell, "kept_mb_per_layer"), ".1f"),
                    ratio(look_up(plain, "kept_mb_per_layer"), look_up(cell, "kept_mb_per_layer")),
                    number(look_up(cell, "gradient_difference"), ".0e"),
                ]
            )
    header = [
        "tokens",
        "attention",
        "a layer, ms",
        "a layer, peak MiB",
        "kept for the backward pass, MiB",
        "kept, eager : this",
        "gradient's difference from sdpa",
    ]
    return table(header, rows)


MACHINES_OF = (
    "train_step",
    "input_pipeline",
    "recipes",
    "loss_memory",
    "attention",
    "memory",
    "gradcache",
    "progressive",
    "search",
)


def machines_table(results: Path) -> str:
    """Where and when each of the records in use was taken."""
    rows = []
    for benchmark in MACHINES_OF:
        for device in DEVICES if benchmark == "train_step" else ("cpu",):
            record = newest(benchmark, results, device)
            machine = look_up(record, "machine")
            rows.append(
                [
                    f"`{benchmark}`",
                    device,
                    str(look_up(record, "date") or ""),
                    str(look_up(machine, "cpu") or ""),
                    number(look_up(machine, "cores"), "d"),
                    number(look_up(record, "threads"), "d"),
                    number(look_up(machine, "memory_gib"), ".0f"),
                    str(look_up(machine, "packages", "torch") or ""),
                    str(look_up(machine, "packages", "transformers") or ""),
                    number(look_up(machine, "load_average_at_start")),
                ]
            )
    return table(
        [
            "benchmark",
            "device",
            "date",
            "processor",
            "cores",
            "threads used",
            "memory, GiB",
            "torch",
            "transformers",
            "load before",
        ],
        rows,
    )


TABLES: dict[str, Callable[[Path], str]] = {
    "train_step": train_step_table,
    "input_pipeline": input_pipeline_table,
    "recipes": recipes_table,
    "ablation": ablation_table,
    "retention": forgetting_table,
    "objectives": objectives_table,
    "objectives_paired": objectives_paired_table,
    "loss_memory": loss_memory_table,
    "attention": attention_table,
    "memory": memory_table,
    "gradcache": gradcache_table,
    "progressive": progressive_table,
    "progressive_resolutions": progressive_resolutions_table,
    "search": search_table,
    "serve": serve_table,
    "machines": machines_table,
}


def fill(text: str, results: Path, where: str = "text") -> str:
    """``text`` with every marked table made anew.

    Raises ``ValueError`` for a name that is no table, and for a table without its end marker.
    """

    def one(match: re.Match[str]) -> str:
        name = match.group(2)
        if name not in TABLES:
            raise ValueError(f"{where}: unknown table {name!r}; known: {', '.join(sorted(TABLES))}")
        return match.group(1) + TABLES[name](results) + match.group(4)

    starts = re.findall(r"^<!-- table: ", text, re.MULTILINE)
    if len(starts) != len(_MARKED.findall(text)):
        raise ValueError(f"{where}: a '<!-- table: NAME -->' line has no '<!-- end table -->' after it")
    return _MARKED.sub(one, text)


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", nargs="*", type=Path, help="files to fill; default: docs/**/*.md and README.md")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON records")
    parser.add_argument("--check", action="store_true", help="change nothing, fail where a table is out of date")
    arguments = parser.parse_args()
    stale = 0
    for path in arguments.documents or [*sorted((root / "docs").rglob("*.md")), root / "README.md"]:
        before = path.read_text(encoding="utf-8")
        try:
            after = fill(before, arguments.results, str(path))
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
        if after == before:
            continue
        stale += 1
        print(f"{path}: {'out of date' if arguments.check else 'tables written'}")
        if not arguments.check:
            write_text(path, after)
    return 1 if arguments.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())

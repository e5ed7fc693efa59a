"""Makes of the real sets harder ones, as users bring them: few rows, unequal classes, one image a group, wrong labels.

    python benchmarks/derived_sets.py DIR          # of the sets in DOMAINCLIP_DATA
    python benchmarks/recipes.py --data DIR/*      # measures on them

Only training rows change; the test rows are those of the set. Each folder holds tables, and a link to the images.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

Row = dict[str, str]
SEED = 0


def by_label(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row["label"]].append(row)
    return found


def third(rows: list[Row], rng: random.Random) -> list[Row]:
    """A third of the rows of each class."""
    return [row for part in by_label(rows).values() for row in rng.sample(part, max(2, len(part) // 3))]


def thinned(rows: list[Row], rng: random.Random) -> list[Row]:
    """Classes thinned so that the largest has eight times the rows of the smallest, evenly between on a log scale."""
    parts = sorted(by_label(rows).values(), key=len, reverse=True)
    last = max(1, len(parts) - 1)
    kept = []
    for index, part in enumerate(parts):
        kept += rng.sample(part, max(2, round(len(part) * 8 ** (-index / last))))
    return kept


def one_of_a_group(rows: list[Row], rng: random.Random) -> list[Row]:
    """One image of each group."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["group"]].append(row)
    return [rng.choice(part) for part in groups.values()]


def mislabelled(rows: list[Row], rng: random.Random) -> list[Row]:
    """One row in twenty says that it is of another class, in label and caption."""
    chosen = set(rng.sample(range(len(rows)), round(len(rows) / 20)))
    found = []
    for index, row in enumerate(rows):
        if index in chosen:
            other = rng.choice([each for each in rows if each["label"] != row["label"]])
            row = {**row, "label": other["label"], "caption": other["caption"]}
        found.append(row)
    return found


SETS: dict[str, tuple[str, Callable[[list[Row], random.Random], list[Row]]]] = {
    "sci_rock_third": ("sci_rock_thin_sections", third),
    "ind_solar_thinned": ("ind_solar_cells", thinned),
    "ind_solar_one_of_a_group": ("ind_solar_cells", one_of_a_group),
    "ind_pcb_mislabelled": ("ind_pcb_defects", mislabelled),
}


def read(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    root = Path(os.environ.get("DOMAINCLIP_DATA", "../shared/data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    for name, (source, change) in SETS.items():
        if not (root / source).is_dir():
            print(f"{source} is not here: {name} is left out")
            continue
        groups = {row["image_path"]: row["group"] for row in read(root / source / "meta.csv")}
        rows = [{**row, "group": groups[row["image_path"]]} for row in read(root / source / "train.csv")]
        made = change(rows, random.Random(SEED))
        folder = arguments.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "train.csv", made)
        test = [{**row, "group": groups[row["image_path"]]} for row in read(root / source / "test.csv")]
        write(folder / "test.csv", test)
        images = folder / "images"
        if not images.exists():
            images.symlink_to((root / source / "images").resolve())
        print(f"{name}: {len(made)} of {len(rows)} training rows, {len(test)} test rows")


if __name__ == "__main__":
    main()

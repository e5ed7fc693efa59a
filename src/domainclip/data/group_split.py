"""Dividing pairs by ratio: groups and images stay whole, classes keep their proportions.

The algorithm. Rows that share a group or an image, directly or through other rows, form one unit, which is
never divided. Units are placed one after another, the largest first (they are the hardest to fit), equal
sizes in an order drawn from the seed. Each goes to the split that lacks it most: the split's shortfall in the
unit's classes, each as a fraction of that class, plus its shortfall in rows, as a fraction of all rows. That
descends the sum of squared deviations from the wanted counts, per class and in total (compare Sechidis et
al., "On the Stratification of Multi-Label Data", 2011). Then single units are moved while that sum still
falls, because the large units, placed first, have nearly all gone to the largest split. Two repairs follow:
no split that wants rows stays empty while there are enough units, and a class with three units or more has
one in train.

The order is drawn from hashes of the groups' and images' names, so the result depends on the seed and on
the rows, not on their order nor on where the data set lies on the disk.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from domainclip.data.records import ImageTextPair

REFINING_PASSES = 10
SPLITS = ("train", "val", "test")


def image_key(pair: ImageTextPair) -> str:
    """One key for one file.

    Args:
        pair: The pair.

    Returns:
        The image's path with ``..`` and doubled separators resolved.
    """
    return path_key(pair.image_path)


def path_key(path: Path) -> str:
    """One key for one file, however its path is written.

    Args:
        path: Of the image.

    Returns:
        The path with ``..`` and doubled separators resolved.
    """
    return os.path.normpath(os.fspath(path))


@dataclass
class Unit:
    """Rows that stay together: their indices, a name stable across machines, and (label, count) sorted by
    label."""

    rows: list[int]
    name: str
    labels: list[tuple[str, int]]


def find_units(pairs: Sequence[ImageTextPair], copies: Mapping[str, str] | None = None) -> list[Unit]:
    """The connected components of rows under "same group", "same image" and "copies of each other".

    Args:
        pairs: The rows.
        copies: For images that have copies (by ``image_key``) the name of the copies' group.

    Returns:
        The units, in no particular order; every row is in one.
    """
    images = [image_key(pair) for pair in pairs]
    first: dict[tuple[str, str], int] = {}
    rows_of_edges, others = [], []
    for row, pair in enumerate(pairs):
        keys = [("image", images[row])] + ([("group", pair.group)] if pair.group is not None else [])
        if copies and images[row] in copies:
            keys.append(("copy", copies[images[row]]))
        for key in keys:
            rows_of_edges.append(row)
            others.append(first.setdefault(key, row))
    edges = coo_array((np.ones(len(others), dtype=bool), (rows_of_edges, others)), shape=(len(pairs), len(pairs)))
    members: dict[int, list[int]] = defaultdict(list)
    for row, component in enumerate(connected_components(edges, directed=False)[1].tolist() if pairs else ()):
        members[component].append(row)
    base = _common_folder(images)
    units = []
    for rows in members.values():
        groups = [group for row in rows if (group := pairs[row].group) is not None]
        name = f"group {min(groups)}" if groups else min(images[row][base:] for row in rows)
        labels = Counter(label for row in rows for label in pairs[row].labels or (pairs[row].label or "",))
        units.append(Unit(rows, name, sorted(labels.items())))
    return units


def _common_folder(images: list[str]) -> int:
    """How many leading characters all paths share, up to a separator."""
    if not images:
        return 0
    # Of sorted texts the first and the last differ earliest.
    first, last = min(images), max(images)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first.rfind(os.sep, 0, same) + 1


def assign(units: Sequence[Unit], ratios: tuple[float, float, float], seed: int) -> list[int]:
    """Choose each unit's split, by the algorithm at the top of this file.

    Args:
        units: From ``find_units``.
        ratios: Fractions of the rows for train, validation and test, which sum to 1.
        seed: Draws the order of units of one size.

    Returns:
        For each unit the index of its split in ``SPLITS``.
    """
    wanted = [index for index in range(3) if ratios[index] > 0]
    draws = [hashlib.sha256(f"{seed}\0{unit.name}".encode("utf-8", "surrogatepass")).digest() for unit in units]
    class_rows: Counter[str] = Counter()
    for unit in units:
        class_rows.update(dict(unit.labels))
    total = sum(len(unit.rows) for unit in units)
    class_short = [{label: ratio * count for label, count in class_rows.items()} for ratio in ratios]
    total_short = [ratio * total for ratio in ratios]

    def place(unit: Unit, index: int, sign: int) -> None:
        total_short[index] -= sign * len(unit.rows)
        for label, count in unit.labels:
            class_short[index][label] -= sign * count

    def shortfall(index: int, unit: Unit) -> float:
        by_class = sum(count * class_short[index][label] / class_rows[label] for label, count in unit.labels)
        return by_class + len(unit.rows) * total_short[index] / total

    chosen = [0] * len(units)
    for position in sorted(range(len(units)), key=lambda i: (-len(units[i].rows), draws[i])):
        unit = units[position]
        # Rounded, so that a tie is a tie whatever the float sums; then the draw decides, not the place.
        first = draws[position][0] % len(wanted)
        order = wanted[first:] + wanted[:first]
        best = max(order, key=lambda index: round(shortfall(index, unit), 9))
        chosen[position] = best
        place(unit, best, 1)
    places = range(len(units))
    for _ in range(REFINING_PASSES):
        moved = False
        for position in sorted(places, key=lambda i: draws[i]):
            unit, here = units[position], chosen[position]
            n = len(unit.rows)

            def gain(there: int, unit: Unit = unit, here: int = here, n: int = n) -> float:
                """How much the sum of squared deviations falls (halved) when the unit goes there."""
                by_class = sum(
                    count * (class_short[there][label] - class_short[here][label] - count) / class_rows[label]
                    for label, count in unit.labels
                )
                return by_class + n * (total_short[there] - total_short[here] - n) / total

            best = max((index for index in wanted if index != here), key=gain, default=here)
            if best != here and gain(best) > 1e-9:
                place(unit, here, -1)
                place(unit, best, 1)
                chosen[position], moved = best, True
        if not moved:
            break
    _fill_empty_splits(units, chosen, wanted, draws)
    _put_each_class_in_train(units, chosen, draws)
    return chosen


def _fill_empty_splits(units: Sequence[Unit], chosen: list[int], wanted: list[int], draws: list[bytes]) -> None:
    """Give an empty split the smallest unit of the fullest one, preferably no class's last unit there."""
    if len(units) < len(wanted):
        return
    for empty in wanted:
        counts = Counter(chosen)
        if counts[empty]:
            continue
        donor = max(wanted, key=lambda index: counts[index])
        there = Counter(
            label for unit, at in zip(units, chosen, strict=True) if at == donor for label, _ in unit.labels
        )
        candidates = [i for i, at in enumerate(chosen) if at == donor]
        moved = min(
            candidates,
            key=lambda i: (min(there[label] for label, _ in units[i].labels) < 2, len(units[i].rows), draws[i]),
        )
        chosen[moved] = empty


def _put_each_class_in_train(units: Sequence[Unit], chosen: list[int], draws: list[bytes]) -> None:
    """Move the smallest unit of a class that train lacks there, from the split that has most units of it."""
    holders: dict[str, list[int]] = defaultdict(list)
    for i, unit in enumerate(units):
        for label, _ in unit.labels:
            holders[label].append(i)
    for label in sorted(holders):
        places = Counter(chosen[i] for i in holders[label])
        if len(holders[label]) >= 3 and not places[0]:
            donor = max(places, key=lambda index: (places[index], index))
            moved = min((i for i in holders[label] if chosen[i] == donor), key=lambda i: (len(units[i].rows), draws[i]))
            chosen[moved] = 0

"""What a run's folder tells of it, read-only, whoever wrote it and whether or not it still lives."""

from __future__ import annotations

import json
import math
import socket
import time
from array import array
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from domainclip.config import CLIPFinetuningConfig
from domainclip.config.key_facts import facts_by_key
from domainclip.config.located_yaml import yaml_value
from domainclip.errors import CLIPFinetuningError
from domainclip.tracking.live_page.downsample import POINTS, kept_points
from domainclip.tracking.tail import Tail

SILENT_SECONDS = 120.0
"""A run on another machine of which nothing was heard for so long counts as killed."""
VALIDATIONS = 60
"""Histograms that are shown at most, evenly drawn."""
CLASSES_WITH_IMAGES = 6
"""So many of the worst classes are shown with images."""
_INITIAL = "zero_shot_"
_OF_ONE_RUN = ("output_dir",)


class RunView:
    """A run, as its folder shows it.

    Args:
        folder: Of the run. Files that are missing, damaged or of an older version show less and break nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows = Tail(folder / "metrics.jsonl")
        self._milestones, self._validations = Tail(folder / "milestones.jsonl"), Tail(folder / "validations.jsonl")
        self._steps: dict[str, array[float]] = {}
        self._values: dict[str, array[float]] = {}
        self._lists: dict[str, list[dict[str, Any]]] = {"milestones": [], "validations": []}
        self._files: dict[str, tuple[tuple[int, int], Any]] = {}

    @property
    def images(self) -> set[str]:
        """The paths of the images that the page may show."""
        classes = self._classes()
        return {path for each in classes["classes"] for path, _ in each["mistaken"]} if classes else set()

    def snapshot(self, points: int = POINTS) -> dict[str, Any]:
        """Read what is new, and give everything.

        Args:
            points: Of a curve at most.

        Returns:
            The run, as the page's scripts take it.
        """
        self._read()
        progress = self._file("progress.json")
        state, text = self._state(progress)
        zero_shot = {
            name.removeprefix(_INITIAL): values[-1]
            for name, values in self._values.items()
            if name.startswith(_INITIAL) and not math.isnan(values[-1])
        }
        usual = (name for name in ("acc1", "mAP", "mean_R@1") if f"val_{name}" in self._values)
        primary = progress["primary"] if isinstance(progress.get("primary"), str) else next(usual, None)
        last_step = max((int(steps[-1]) for steps in self._steps.values()), default=0)
        return {
            "name": self.folder.resolve().name,
            "folder": str(self.folder),
            "state": state,
            "text": text,
            "step": progress.get("step") or last_step,
            "total_steps": progress.get("total_steps"),
            "started_at": progress.get("started_at"),
            "updated_at": progress.get("updated_at"),
            "phases": _well_formed(progress.get("phases"), {"name": str}) if state == "running" else [],
            "series": self._series(primary, points),
            "zero_shot": zero_shot,
            "primary": primary,
            "greater_is_better": progress.get("greater_is_better", True),
            "milestones": self._lists["milestones"],
            "validations": _evenly(self._lists["validations"]),
            "classes": self._classes(),
            "memory": self._file("memory.json") or None,
            "report": self._report(),
            "recipe": {name: value for name, value in self.recipe.items() if name in _MAIN_KEYS},
        }

    @property
    def recipe(self) -> dict[str, Any]:
        """All keys of the resolved recipe."""
        return self._file("recipe.yaml")

    def _read(self) -> None:
        anew, rows = _new_rows(self._rows)
        if anew:
            self._steps, self._values = {}, {}
        for row in rows:
            for name, value in row.items():
                if name != "step" and (number := _number(value)) is not None:
                    self._add(name, row["step"], number)
        milestone = {"name": str, "text": str}
        histograms = {"positives": list, "hardest_negatives": list, "low": Real, "high": Real}
        for name, tail, types in (
            ("milestones", self._milestones, milestone),
            ("validations", self._validations, histograms),
        ):
            anew, rows = _new_rows(tail)
            self._lists[name] = [*([] if anew else self._lists[name]), *_well_formed(rows, types)]

    def _add(self, name: str, step: int, value: float) -> None:
        steps, values = self._steps.setdefault(name, array("d")), self._values.setdefault(name, array("d"))
        if steps and steps[-1] == step:  # the reference sets are evaluated before the probe and after it
            values[-1] = value
        else:
            steps.append(step)
            values.append(value)

    def _series(self, primary: str | None, points: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, numbers in self._values.items():
            if name.startswith(_INITIAL) or name == "val_standard_error":
                continue
            values, steps = np.array(numbers), np.array(self._steps[name])
            kept = kept_points(values, points)
            found[name] = {"steps": steps[kept].astype(int).tolist(), "values": _listed(values[kept])}
            errors = self._values.get("val_standard_error")
            if name == f"val_{primary}" and errors is not None:
                # Two standard errors on both sides: nineteen of twenty times the true value lies within.
                of_step = dict(zip(self._steps["val_standard_error"], errors, strict=True))
                margin = 1.96 * np.array([of_step.get(step, math.nan) for step in steps[kept]])
                found[name] |= {"low": _listed(values[kept] - margin), "high": _listed(values[kept] + margin)}
        return found

    def _state(self, progress: Mapping[str, Any]) -> tuple[str, str]:
        state, text = progress.get("state"), str(progress.get("text", ""))
        if state == "running":
            heard = progress.get("updated_at")
            recently = isinstance(heard, int | float) and abs(time.time() - heard) < SILENT_SECONDS
            if progress.get("host") == socket.gethostname():
                alive = _is_alive(progress.get("pid"), progress.get("started_at"), recently)
                return ("running" if alive else "killed"), ""
            if recently:
                return "running", ""
            minutes = f"{SILENT_SECONDS / 60:.0f} minutes or more"
            return "killed", f"It ran on {progress.get('host')}, and has written nothing for {minutes}"
        if state in ("finished", "interrupted", "failed"):
            return str(state), text
        return ("finished", "") if (self.folder / "report.json").is_file() else ("unknown", "")

    def _report(self) -> dict[str, Any] | None:
        report = self._file("report.json")
        verdict = report.get("verdict")
        if not isinstance(verdict, Mapping):
            return None
        metric = verdict.get("metric")
        sentence = f"{verdict.get('outcome')}" + (f", by {metric}" if metric else "")
        before, after = report.get("before"), report.get("after")
        figures = {"before": before, "after": after} if isinstance(before, dict) and isinstance(after, dict) else {}
        return {"verdict": sentence, **figures}

    def _classes(self) -> dict[str, Any] | None:
        content = self._file("classes.json")
        found = _well_formed(content.get("classes"), {"label": str, "recall": Real})
        classes, with_images = [], 0
        for each in sorted(found, key=lambda each: each["recall"]):
            mistaken = _mistaken(each.get("mistaken")) if with_images < CLASSES_WITH_IMAGES else []
            with_images += bool(mistaken)
            classes.append({**each, "mistaken": mistaken})
        return {"step": content.get("step"), "classes": classes} if classes else None

    def _file(self, name: str) -> dict[str, Any]:
        """The content of a small file, read again when it has changed; empty where there is none that can be read."""
        path = self.folder / name
        try:
            found = path.stat()
            identity = found.st_ino, found.st_mtime_ns
            if name not in self._files or self._files[name][0] != identity:
                read = yaml_value if path.suffix == ".yaml" else json.loads
                self._files[name] = identity, read(path.read_text(encoding="utf-8"))
            content = self._files[name][1]
        except (OSError, ValueError, RecursionError, CLIPFinetuningError):
            return {}
        return content if isinstance(content, dict) else {}


def recipe_difference(views: list[RunView]) -> list[dict[str, Any]]:
    """The keys in which the recipes of several runs differ.

    Args:
        views: The runs.

    Returns:
        ``key`` and its ``values`` as text, one for each run, None where a recipe has no such key.
    """
    recipes = [view.recipe for view in views]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe if key not in _OF_ONE_RUN)
    found = []
    for key in keys:
        values = [str(recipe[key]) if key in recipe else None for recipe in recipes]
        if len(set(values)) > 1:
            found.append({"key": key, "values": values})
    return found


_MAIN_KEYS = frozenset(
    name for name, facts in facts_by_key(CLIPFinetuningConfig) if facts.common or name in ("model_name", "data_path")
)


def _new_rows(tail: Tail) -> tuple[bool, list[dict[str, Any]]]:
    try:
        return tail.read()
    except OSError:  # a folder of somebody else's, or a disk that is away: the page shows what it has
        return False, []


def _is_alive(pid: object, started_at: object, recently: bool) -> bool:
    """Whether the process lives, and is not another one that has got its number since. Of one that was heard of
    recently it is the same, whatever the clock says, which may have been set meanwhile."""
    if not isinstance(pid, int) or not isinstance(started_at, int | float):
        return False
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and (recently or process.create_time() <= started_at + 1)
    except psutil.Error:
        return False


def _number(value: object) -> float | None:
    """A figure: NaN for one that was not finite, None for what is none."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:
        return None


def _well_formed(rows: object, types: Mapping[str, type]) -> list[dict[str, Any]]:
    """Those of the rows of a file that have what the page's scripts count on: values of these types by these keys."""
    found = rows if isinstance(rows, list) else []
    return [
        row
        for row in found
        if isinstance(row, dict) and all(isinstance(row.get(name), of_type) for name, of_type in types.items())
    ]


def _mistaken(pairs: object) -> list[list[str]]:
    """Path of an image, and the class that it was taken for."""
    found = pairs if isinstance(pairs, list) else []
    return [
        pair
        for pair in found
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(each, str) for each in pair)
    ]


def _listed(values: np.ndarray) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _evenly(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(rows) <= VALIDATIONS:
        return rows
    return [rows[round(index)] for index in np.linspace(0, len(rows) - 1, VALIDATIONS)]

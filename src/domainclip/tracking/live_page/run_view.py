"""What a run's folder tells of it, read-only, whoever wrote it and whether or not it still lives."""

from __future__ import annotations

import json
import math
import socket
import time
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from domainclip.config import CLIPFinetuningConfig
from domainclip.config.key_facts import facts_by_key
from domainclip.config.located_yaml import yaml_value
from domainclip.errors import CLIPFinetuningError
from domainclip.tracking.live_page.downsample import kept_points
from domainclip.tracking.tail import Tail

SILENT_SECONDS = 120.0
"""A run on another machine of which nothing was heard for so long counts as killed."""
VALIDATIONS = 60
"""Histograms that are shown at most, evenly drawn."""
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
        classes = self._file("classes.json").get("classes")
        found: set[str] = set()
        for each in classes if isinstance(classes, list) else []:
            mistaken = each.get("mistaken") if isinstance(each, Mapping) else None
            for pair in mistaken if isinstance(mistaken, list) else []:
                if isinstance(pair, list) and pair:
                    found.add(str(pair[0]))
        return found

    def snapshot(self) -> dict[str, Any]:
        """Read what is new, and give everything.

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
        primary = progress.get("primary") or next(
            (name for name in ("acc1", "mAP", "mean_R@1") if f"val_{name}" in self._values), None
        )
        classes = self._file("classes.json")
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
            "phases": progress.get("phases", []) if state == "running" else [],
            "series": self._series(primary),
            "zero_shot": zero_shot,
            "primary": primary,
            "greater_is_better": progress.get("greater_is_better", True),
            "milestones": self._lists["milestones"],
            "validations": _evenly(self._lists["validations"]),
            "classes": classes if isinstance(classes.get("classes"), list) else None,
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
            step = float(row.pop("step"))
            for name, value in row.items():
                if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
                    self._steps.setdefault(name, array("d")).append(step)
                    self._values.setdefault(name, array("d")).append(math.nan if value is None else value)
        for name, tail in (("milestones", self._milestones), ("validations", self._validations)):
            anew, rows = _new_rows(tail)
            self._lists[name] = rows if anew else [*self._lists[name], *rows]

    def _series(self, primary: str | None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, numbers in self._values.items():
            if name.startswith(_INITIAL) or name == "val_standard_error":
                continue
            values, steps = np.array(numbers), np.array(self._steps[name])
            kept = kept_points(values)
            found[name] = {"steps": steps[kept].astype(int).tolist(), "values": _listed(values[kept])}
            errors = self._values.get("val_standard_error")
            if name == f"val_{primary}" and errors is not None and len(errors) == len(values):
                # Two standard errors on both sides: nineteen of twenty times the true value lies within.
                margin = 1.96 * np.array(errors)[kept]
                found[name] |= {"low": _listed(values[kept] - margin), "high": _listed(values[kept] + margin)}
        return found

    def _state(self, progress: Mapping[str, Any]) -> tuple[str, str]:
        state, text = progress.get("state"), str(progress.get("text", ""))
        if state == "running":
            if progress.get("host") == socket.gethostname():
                alive = _is_alive(progress.get("pid"), progress.get("started_at"))
            else:
                alive = time.time() - float(progress.get("updated_at") or 0) < SILENT_SECONDS
            return ("running", "") if alive else ("killed", "Its process is gone and has not said why")
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
        return {"verdict": sentence, "before": report.get("before", {}), "after": report.get("after", {})}

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


def _is_alive(pid: object, started_at: object) -> bool:
    """Whether the process lives, and is not another one that has got its number since."""
    if not isinstance(pid, int) or not isinstance(started_at, int | float):
        return False
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= started_at + 1
    except psutil.Error:
        return False


def _listed(values: np.ndarray) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _evenly(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(rows) <= VALIDATIONS:
        return rows
    return [rows[round(index)] for index in np.linspace(0, len(rows) - 1, VALIDATIONS)]

"""``metrics.jsonl``: one JSON object a line, appended as training goes, cut back on resume."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domainclip.files import write_text

log = logging.getLogger(__name__)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a last line cut short by a crash is left out."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def logged_metrics(output: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The single numbers among what an objective returned, tables flattened to ``name_key``. Waits for the device."""
    numbers: dict[str, float] = {}
    for name, value in output.items():
        if isinstance(value, Mapping):
            numbers |= logged_metrics(value, f"{name}_")
        elif isinstance(value, Tensor) and value.ndim == 0:
            numbers[prefix + name] = float(value)
    return numbers


class MetricsLog:
    """Appends rows and flushes each. A disk that is full is said once and does not stop the training."""

    def __init__(self, path: Path, resume_at: int) -> None:
        self.path = path
        self._failed = False
        rows = [row for row in read_metrics(path) if row["step"] <= resume_at]
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))

    def keep_latest(self, step: int) -> None:
        """Of several rows of ``step`` with the same keys, keep the last: a start that was killed before its first
        checkpoint has been made again."""
        rows = read_metrics(self.path)
        last = {frozenset(row): index for index, row in enumerate(rows) if row["step"] == step}
        kept = [row for index, row in enumerate(rows) if row["step"] != step or last[frozenset(row)] == index]
        if len(kept) < len(rows):
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, **row: Any) -> None:
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
        }
        try:
            with open(self.path, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(clean) + "\n")
        except OSError as error:
            if not self._failed:
                log.warning("Metrics cannot be written to %s: %s", self.path, error)
            self._failed = True


def peak_memory_mb(device: torch.device) -> float:
    """Most memory this process has held so far, in MiB: of the GPU on CUDA, of the whole process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**20
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)

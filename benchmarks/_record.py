"""Dated JSON records of a measurement, with the facts about the machine that its numbers depend on.

Standard library and psutil only: a process that has imported torch hands its own peak memory on to every process
it starts (Linux counts the memory before ``exec``), and the peaks measured there would be wrong.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from domainclip.files import write_json

RESULTS = Path(__file__).resolve().parent / "results"

_PACKAGES = ("domainclip", "torch", "transformers", "numpy", "pillow", "simplejpeg")
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


def machine_facts() -> dict[str, Any]:
    """Processor, cores, memory, load and versions; no host name, no user, no path."""
    packages: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    model, flags = _processor()
    return {
        "cpu": model,
        "cpu_instruction_sets": [name for name in _INSTRUCTION_SETS if name in flags],
        "cores": psutil.cpu_count(logical=True),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": packages,
        # Other work on the machine is the largest error of such figures: the reader must see it.
        "load_average_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _processor() -> tuple[str, set[str]]:
    """Model name, and the instruction sets the system lists."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        fields: dict[str, str] = {}
        for line in listing.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
        name = fields.get("model name") or platform.machine()
        if "cpu family" in fields:  # virtual machines often hide the model: the family still tells the generation
            name += f" (family {fields['cpu family']}, model {fields.get('model', '?')})"
        return name, set((fields.get("flags") or fields.get("Features", "")).split())
    if sys.platform == "darwin":
        found = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=True)
        return found.stdout.strip(), set()
    return platform.processor() or platform.machine(), set()


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def runs_so_far(benchmark: str, folder: Path, go_on: bool) -> list[dict[str, Any]]:
    """The runs in today's record, for a benchmark that goes on with what it has, or (``go_on``) in the newest of any
    day; each says of which ``date`` it is. None where there is no record."""
    pattern = f"{benchmark}-*.json" if go_on else f"{benchmark}-{datetime.date.today().isoformat()}.json"
    paths = sorted(folder.glob(pattern))
    if not paths:
        return []
    record = json.loads(paths[-1].read_text(encoding="utf-8"))
    return [{"date": record["date"], **run} for run in record["runs"]]


def write_record(benchmark: str, content: dict[str, Any], folder: Path, device: str = "cpu") -> Path:
    """Write ``<benchmark>-<date>.json`` (another device than the CPU is part of the name); returns its path."""
    today = datetime.date.today().isoformat()
    suffix = "" if device == "cpu" else f"-{device}"
    path = folder / f"{benchmark}-{today}{suffix}.json"
    write_json(path, {"benchmark": benchmark, "date": today, "device": device, **content})
    return path

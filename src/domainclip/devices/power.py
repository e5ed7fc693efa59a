"""What the machine draws, and whether it slows down for heat, where the system lets that be read."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

RAPL = Path("/sys/class/powercap")
THROTTLE_COUNTS = Path("/sys/devices/system/cpu")
TIMEOUT_SECONDS = 10.0
_NVIDIA_HEAT = 0x08 | 0x20 | 0x40
"""Bits of NVML's ``clocksEventReasons``: hardware slowdown, software and hardware thermal slowdown."""

Run = Callable[[Sequence[str]], str]
"""Runs a program and returns what it prints."""


class Unreadable(Exception):
    """A source cannot be read here, for a reason that its text says."""


@dataclass(frozen=True)
class Reading:
    """What a source says now; None for what it does not know.

    Attributes:
        joules: Since the last reading, or since the source was made.
        throttled: Whether the machine runs slower than it could, to stay cool.
    """

    joules: float | None = None
    throttled: bool | None = None


class PowerSource(Protocol):
    """Something that knows of energy or heat.

    Attributes:
        name: What is read.
        covers: What its joules are of; empty where it has none.
    """

    name: str
    covers: str

    def read(self) -> Reading:
        """Read it.

        Returns:
            What it says.

        Raises:
            Unreadable: It says nothing any more.
        """


def run_program(words: Sequence[str]) -> str:
    """Run a program and return what it prints.

    Args:
        words: Program and arguments.

    Returns:
        Its standard output.

    Raises:
        Unreadable: It is not there, fails, or takes longer than ten seconds.
    """
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, stdin=subprocess.DEVNULL, errors="replace"
        )
    except FileNotFoundError as error:
        raise Unreadable(f"{words[0]} is not installed") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unreadable(f"{words[0]} failed ({type(error).__name__})") from error
    if done.returncode:
        raise Unreadable(f"{words[0]} ended with {done.returncode}")
    return done.stdout


class Rapl:
    """Energy counters of Intel's and AMD's processors, in microjoules, which begin anew at a limit of their own.

    Args:
        root: Of the counters.

    Raises:
        Unreadable: There are none, or only root may read them.
    """

    name, covers = "RAPL", "CPU packages"

    def __init__(self, root: Path = RAPL) -> None:
        # Zones within a package (core, dram) are named package:zone and are parts of it.
        self._zones = [path for path in sorted(root.glob("intel-rapl:*")) if path.name.count(":") == 1]
        if not self._zones:
            raise Unreadable("there are no RAPL counters")
        self._ranges = [_number(zone / "max_energy_range_uj") for zone in self._zones]
        self._last = [_number(zone / "energy_uj") for zone in self._zones]

    def read(self) -> Reading:
        """See ``PowerSource.read``."""
        now = [_number(zone / "energy_uj") for zone in self._zones]
        steps = [
            new - old if new >= old else new - old + limit + 1
            for new, old, limit in zip(now, self._last, self._ranges, strict=True)
        ]
        self._last = now
        return Reading(joules=sum(steps) / 1e6)


class ThrottleCounts:
    """Linux' counters of how often a processor package was slowed down for heat.

    Args:
        root: Of the processors.

    Raises:
        Unreadable: There are none.
    """

    name, covers = "thermal_throttle", ""

    def __init__(self, root: Path = THROTTLE_COUNTS) -> None:
        self._files = sorted(root.glob("cpu*/thermal_throttle/package_throttle_count"))
        if not self._files:
            raise Unreadable("there are no counters of thermal throttling")
        self._last = self._total()

    def read(self) -> Reading:
        """See ``PowerSource.read``."""
        before, self._last = self._last, self._total()
        return Reading(throttled=self._last > before)

    def _total(self) -> int:
        return sum(_number(path) for path in self._files)


class NvidiaSmi:
    """Power of an NVIDIA GPU and the reasons why its clock is low, by ``nvidia-smi``.

    Args:
        index: Of the GPU.
        run: Runs programs.
        clock: Gives seconds.

    Raises:
        Unreadable: There is no such program, or it knows no power.
    """

    name = "nvidia-smi"

    def __init__(self, index: int = 0, run: Run = run_program, clock: Callable[[], float] = time.monotonic) -> None:
        self.covers = f"GPU {index}"
        self._run, self._clock = run, clock
        self._command = [
            *("nvidia-smi", f"--id={index}", "--query-gpu=power.draw,clocks_throttle_reasons.active"),
            "--format=csv,noheader,nounits",
        ]
        self._last = self._power()[0], clock()

    def read(self) -> Reading:
        """See ``PowerSource.read``."""
        (watts, reasons), now = self._power(), self._clock()
        joules = (self._last[0] + watts) / 2 * (now - self._last[1])
        self._last = watts, now
        return Reading(joules=joules, throttled=bool(reasons & _NVIDIA_HEAT))

    def _power(self) -> tuple[float, int]:
        text = self._run(self._command)
        try:
            watts, reasons = text.strip().splitlines()[0].split(",")
            return float(watts), int(reasons.strip(), 16)
        except (ValueError, IndexError) as error:
            raise Unreadable(f"nvidia-smi says {text.strip()[:60]!r}") from error


class Pmset:
    """Whether a Mac limits its processor's speed, by ``pmset -g therm``.

    Args:
        run: Runs programs.

    Raises:
        Unreadable: There is no such program, or it says no limit.
    """

    name, covers = "pmset", ""

    def __init__(self, run: Run = run_program) -> None:
        self._run = run
        self.read()

    def read(self) -> Reading:
        """See ``PowerSource.read``."""
        text = self._run(["pmset", "-g", "therm"])
        limit = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", text)
        if limit is None and "No thermal warning level has been recorded" not in text:
            raise Unreadable(f"pmset says {text.strip()[:60]!r}")
        return Reading(throttled=limit is not None and int(limit[1]) < 100)


class Powermetrics:
    """Power of a Mac's processor, GPU and neural engine, by ``powermetrics``, where ``sudo`` asks for no password.

    Args:
        run: Runs programs.
        clock: Gives seconds.

    Raises:
        Unreadable: It is not permitted, or says no power.
    """

    name, covers = "powermetrics", "CPU, GPU and neural engine"
    _COMMAND = ("sudo", "-n", "powermetrics", "-n", "1", "-i", "500", "--samplers", "cpu_power,gpu_power")

    def __init__(self, run: Run = run_program, clock: Callable[[], float] = time.monotonic) -> None:
        self._run, self._clock = run, clock
        self._last = self._watts(), clock()

    def read(self) -> Reading:
        """See ``PowerSource.read``."""
        watts, now = self._watts(), self._clock()
        joules = (self._last[0] + watts) / 2 * (now - self._last[1])
        self._last = watts, now
        return Reading(joules=joules)

    def _watts(self) -> float:
        text = self._run(self._COMMAND)
        power = re.search(r"Combined Power[^:]*:\s*([\d.]+)\s*mW", text)
        if power is None:
            raise Unreadable("powermetrics says no combined power")
        return float(power[1]) / 1000


def power_sources(device_type: str, index: int = 0) -> tuple[list[PowerSource], list[str]]:
    """What can be read on this machine.

    Args:
        device_type: That trains: ``cuda``, ``mps`` or ``cpu``.
        index: Of the GPU.

    Returns:
        The sources, and why the others say nothing.
    """
    makers: list[Callable[[], PowerSource]] = [Rapl, ThrottleCounts]
    if device_type == "cuda":
        makers.insert(0, lambda: NvidiaSmi(index))
    if sys.platform == "darwin":
        makers = [Powermetrics, Pmset]
    sources: list[PowerSource] = []
    reasons: list[str] = []
    for make in makers:
        try:
            sources.append(make())
        except Unreadable as error:
            reasons.append(str(error))
    return sources, reasons


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except PermissionError as error:
        raise Unreadable(f"only root may read {path.name}") from error
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path} cannot be read") from error

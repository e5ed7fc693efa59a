"""Limits that a container puts on this process (Linux control groups, versions 1 and 2).

``psutil`` and torch see the whole host. Inside a container that is the wrong number: the kernel kills the
process at the group's limit, however much the host has free.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")

# Version 1 has no word for "no limit": it writes the largest page-aligned 64-bit number.
_UNLIMITED = 1 << 60


@dataclass(frozen=True)
class MemoryLimit:
    """The tightest memory limit above this process, in bytes."""

    limit: int
    used: int
    """Bytes charged to the group, less the page cache that the kernel drops under pressure."""


def memory_limit(root: Path | None = None, membership: Path | None = None) -> MemoryLimit | None:
    """The group with the least room left, or None where nothing limits memory.

    Args:
        root: Where the groups are mounted.
        membership: File that names this process's groups.

    Returns:
        The tightest limit on the way up, and what is used of it; None where nothing limits.
    """
    found: list[MemoryLimit] = []
    for folder in _groups("memory", root or ROOT, membership or MEMBERSHIP):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        if limit is None or limit >= _UNLIMITED:
            continue
        charged = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
        found.append(MemoryLimit(limit, max(0, charged - _inactive_file(folder / "memory.stat"))))
    return min(found, key=lambda group: group.limit - group.used, default=None)


def cpu_quota(root: Path | None = None, membership: Path | None = None) -> float | None:
    """How many cores' worth of time the tightest group grants; None where nothing limits it.

    Args:
        root: Where the groups are mounted.
        membership: File that names this process's groups.

    Returns:
        CPUs that may be used at once; None where nothing limits.
    """
    quotas: list[float] = []
    for folder in _groups("cpu", root or ROOT, membership or MEMBERSHIP):
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                quotas.append(int(quota) / int(period))
        else:
            granted, every = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
            if granted is not None and every and granted > 0:  # -1: no limit
                quotas.append(granted / every)
    return min(quotas, default=None)


def _groups(controller: str, root: Path, membership: Path) -> list[Path]:
    """Folders of this process's group and of those above it: a limit anywhere on the way up holds."""
    if not membership.is_file():
        return []
    folders: list[Path] = []
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = root
        elif controller in controllers.split(","):
            # "cpu,cpuacct" is mounted under its joint name, often with a link for each part.
            base = next((root / name for name in (controllers, controller) if (root / name).is_dir()), root)
        else:
            continue
        inside = base / path.lstrip("/")
        # In a container the path may be the host's: then only the mount's own top is there to read.
        folders += [p for p in (inside, *inside.parents) if p.is_relative_to(base) and p.is_dir()]
    return list(dict.fromkeys(folders))


def _number(path: Path) -> int | None:
    if not path.is_file():
        return None
    text = path.read_text().strip()
    return None if text == "max" else int(text)


def _inactive_file(path: Path) -> int:
    if not path.is_file():
        return 0
    values = dict(line.split() for line in path.read_text().splitlines() if len(line.split()) == 2)
    return int(values.get("total_inactive_file", values.get("inactive_file", 0)))

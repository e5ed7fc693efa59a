"""What machine this is. Every question to the operating system or the torch build goes through here.

The other files call ``platform.<function>()`` through the module, so that a test can play another machine by
replacing these functions, and nothing else touches a Mac's calls where there is no Mac.
"""

from __future__ import annotations

import logging
import os
import platform as _stdlib
import re
import shutil
import subprocess
from pathlib import Path

import torch

logger = logging.getLogger(__name__)


def system() -> str:
    """``Darwin``, ``Linux`` or ``Windows``."""
    return _stdlib.system()


def machine() -> str:
    """Instruction set this *process* runs: ``arm64``, ``x86_64``, … (under Rosetta: ``x86_64``)."""
    return _stdlib.machine()


def macos_version() -> tuple[int, ...] | None:
    """``(14, 5)`` on macOS 14.5; None elsewhere."""
    if system() != "Darwin":
        return None
    return tuple(int(part) for part in _stdlib.mac_ver()[0].split(".") if part.isdigit()) or None


def sysctl(name: str) -> str | None:
    """A kernel value of macOS, or None where the kernel has no such name (or this is no Mac).

    Args:
        name: Such as ``hw.memsize``.
    """
    if system() != "Darwin":
        return None
    command = ["/usr/sbin/sysctl", "-n", name]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("Could not read %s from sysctl (%s): taken as unknown", name, error)
        return None
    # An unknown name is an ordinary answer: Intel Macs have no sysctl.proc_translated.
    return answer.stdout.strip() or None if answer.returncode == 0 else None


def is_rosetta() -> bool:
    """An Intel build of Python translated by Rosetta on Apple Silicon: it cannot reach the GPU."""
    return system() == "Darwin" and machine() == "x86_64" and sysctl("sysctl.proc_translated") == "1"


def is_apple_silicon() -> bool:
    """The *hardware* is Apple Silicon, also when this process is translated by Rosetta."""
    return system() == "Darwin" and (machine() == "arm64" or is_rosetta())


def chip_name() -> str | None:
    """``Apple M3 Pro`` on a Mac; None elsewhere."""
    return sysctl("machdep.cpu.brand_string")


def apple_chip_generation(name: str | None) -> int | None:
    """3 for ``Apple M3 Pro``; None for anything else (Intel, virtual machines: ``Apple processor``).

    Args:
        name: Such as ``Apple M2 Pro``.
    """
    found = re.match(r"Apple M(\d+)\b", name or "")
    return int(found.group(1)) if found else None


def mps_is_built() -> bool:
    return torch.backends.mps.is_built()


def mps_is_available() -> bool:
    return torch.backends.mps.is_available()


def cuda_is_built() -> bool:
    """Also true for a ROCm build, which answers under CUDA's name."""
    return torch.version.cuda is not None or torch.version.hip is not None


def cuda_is_available() -> bool:
    return torch.cuda.is_available()


def cuda_device_count() -> int:
    return torch.cuda.device_count()


def cuda_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


def cuda_capability(device: torch.device) -> tuple[int, int]:
    """``(8, 0)`` for an A100: the generation decides which number formats have hardware.

    Args:
        device: A CUDA one.
    """
    return torch.cuda.get_device_capability(device)


def nvidia_driver_present() -> bool:
    """A driver without a usable torch build is worth saying: the user has a GPU that stands idle."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def cpu_bfloat16_unit() -> str | None:
    """The CPU's bfloat16 hardware: ``amx`` or ``avx512_bf16``; None when it has none."""
    # Private in torch, and cheaper than parsing; where a release drops them the kernel's flags say the same.
    amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    avx = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    if amx is None or avx is None:
        flags = _cpuinfo_flags()
        return "amx" if "amx_bf16" in flags else "avx512_bf16" if "avx512_bf16" in flags else None
    return "amx" if amx() else "avx512_bf16" if avx() else None


def _cpuinfo_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    if not path.exists():
        return frozenset()
    for line in path.read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def cpu_affinity() -> int:
    """Logical cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def probe(device: torch.device) -> str | None:
    """Do one small sum on ``device``; None when it worked, else what went wrong.

    A backend can call itself available and still fail at the first tensor: Metal inside a virtual machine, a
    GPU that another process holds exclusively, a card too old for this torch's kernels.

    Args:
        device: Where the work runs.
    """
    try:
        total = torch.ones(8, device=device).sum().item()
    except RuntimeError as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None if total == 8.0 else f"the sum of eight ones came out as {total}"

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
    """Name the operating system.

    Returns:
        ``Darwin``, ``Linux`` or ``Windows``.
    """
    return _stdlib.system()


def machine() -> str:
    """Name the instruction set that this *process* runs.

    Returns:
        ``arm64``, ``x86_64``, … (under Rosetta: ``x86_64``).
    """
    return _stdlib.machine()


def macos_version() -> tuple[int, ...] | None:
    """Tell the version of macOS.

    Returns:
        ``(14, 5)`` on macOS 14.5; None elsewhere.
    """
    if system() != "Darwin":
        return None
    return tuple(int(part) for part in _stdlib.mac_ver()[0].split(".") if part.isdigit()) or None


def sysctl(name: str) -> str | None:
    """Read a kernel value of macOS.

    Args:
        name: Such as ``hw.memsize``.

    Returns:
        The value as text, or None where the kernel has no such name, does not answer, or this is no Mac.
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
    """Whether this is an Intel build of Python translated by Rosetta on Apple Silicon.

    Returns:
        True where it is; it cannot reach the GPU.
    """
    return system() == "Darwin" and machine() == "x86_64" and sysctl("sysctl.proc_translated") == "1"


def is_apple_silicon() -> bool:
    """Whether the *hardware* is Apple Silicon.

    Returns:
        True also when this process is translated by Rosetta.
    """
    return system() == "Darwin" and (machine() == "arm64" or is_rosetta())


def chip_name() -> str | None:
    """Name a Mac's chip.

    Returns:
        ``Apple M3 Pro`` on a Mac; None elsewhere.
    """
    return sysctl("machdep.cpu.brand_string")


def apple_chip_generation(name: str | None) -> int | None:
    """Tell the generation of Apple's chips from a name.

    Args:
        name: Such as ``Apple M2 Pro``.

    Returns:
        3 for ``Apple M3 Pro``; None for anything else (Intel, virtual machines: ``Apple processor``).
    """
    found = re.match(r"Apple M(\d+)\b", name or "")
    return int(found.group(1)) if found else None


def mps_is_built() -> bool:
    """Whether this torch is built with Metal.

    Returns:
        What torch says.
    """
    return torch.backends.mps.is_built()


def mps_is_available() -> bool:
    """Whether torch finds a GPU for Metal.

    Returns:
        What torch says; a computation may fail all the same.
    """
    return torch.backends.mps.is_available()


def cuda_is_built() -> bool:
    """Whether this torch is built for CUDA.

    Returns:
        True also for a ROCm build, which answers under CUDA's name.
    """
    return torch.version.cuda is not None or torch.version.hip is not None


def cuda_is_available() -> bool:
    """Whether torch finds a card for CUDA.

    Returns:
        What torch says; a computation may fail all the same.
    """
    return torch.cuda.is_available()


def cuda_device_count() -> int:
    """Count the cards that are visible to this process.

    Returns:
        Their number; they are numbered from 0.
    """
    return torch.cuda.device_count()


def cuda_name(device: torch.device) -> str:
    """Name a card.

    Args:
        device: A CUDA one.

    Returns:
        Such as ``NVIDIA A100-SXM4-80GB``.
    """
    return torch.cuda.get_device_name(device)


def cuda_capability(device: torch.device) -> tuple[int, int]:
    """Tell a card's generation, which decides which number formats have hardware.

    Args:
        device: A CUDA one.

    Returns:
        Its compute capability: ``(8, 0)`` for an A100.
    """
    return torch.cuda.get_device_capability(device)


def nvidia_driver_present() -> bool:
    """Whether there is an NVIDIA driver.

    A driver without a usable torch build is worth saying: the user has a GPU that stands idle.

    Returns:
        True where the kernel has one, or ``nvidia-smi`` is on the path.
    """
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def cpu_bfloat16_unit() -> str | None:
    """Name the CPU's bfloat16 hardware.

    Returns:
        ``amx`` or ``avx512_bf16``; None when it has none.
    """
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
    """Count the logical cores that this process may run on.

    Returns:
        At least 1; all of the machine where the system does not say.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def probe(device: torch.device) -> str | None:
    """Do one small sum on a device.

    A backend can call itself available and still fail at the first tensor: Metal inside a virtual machine, a
    GPU that another process holds exclusively, a card too old for this torch's kernels.

    Args:
        device: The one to try.

    Returns:
        None when it worked, else what went wrong.
    """
    try:
        total = torch.ones(8, device=device).sum().item()
    except RuntimeError as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None if total == 8.0 else f"the sum of eight ones came out as {total}"

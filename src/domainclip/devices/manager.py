"""Which device the work runs on, why that one, and why not the others."""

from __future__ import annotations

import logging
import re
from typing import NamedTuple

import torch

from domainclip.devices import platform
from domainclip.devices.memory import MemoryInfo, read_memory
from domainclip.devices.optimization import Optimization, Undo, optimize
from domainclip.errors import ConfigurationError, DeviceError, MPSCompatibilityError

logger = logging.getLogger(__name__)


class Fallback(NamedTuple):
    """A device that was considered and why it is not used."""

    device: str
    reason: str


def mps_obstacle() -> str | None:
    """Why Metal cannot be used here, with the remedy.

    Returns:
        A sentence for an error or the log; None when it can be used.
    """
    if platform.system() != "Darwin":
        return f"this is {platform.system()} on {platform.machine()}, not a Mac"
    if platform.is_rosetta():
        return (
            "this Python is an Intel build translated by Rosetta, which cannot reach the GPU. "
            "Install an arm64 Python (python.org's universal2, Homebrew in /opt/homebrew or Miniforge) "
            "and torch again"
        )
    if platform.machine() != "arm64":
        return "this is an Intel Mac, for which torch has no Metal builds any more"
    if not platform.mps_is_built():
        return (
            f"torch {torch.__version__} was built without Metal. "
            "Install PyPI's build: pip install --force-reinstall torch"
        )
    if not platform.mps_is_available():
        version = platform.macos_version()
        shown = ".".join(map(str, version)) if version else "of unknown version"
        return f"Metal is not available to torch {torch.__version__} on macOS {shown}. Update macOS to 14"
    failure = platform.probe(torch.device("mps"))
    if failure is not None:
        return f"the first computation on Metal failed ({failure}). Virtual Macs often have no usable GPU"
    return None


def cuda_obstacle(device: torch.device) -> str | None:
    """Why ``device`` (a CUDA or ROCm card) cannot be used here, with the remedy.

    Args:
        device: ``cuda`` or ``cuda:N``.

    Returns:
        A sentence for an error or the log; None when it can be used.
    """
    if platform.system() == "Darwin":
        return "Macs have no CUDA"
    if not platform.cuda_is_built():
        remedy = (
            ". An NVIDIA driver is present: install a CUDA build, see https://pytorch.org/get-started/locally"
            if platform.nvidia_driver_present()
            else ""
        )
        return f"torch {torch.__version__} is built for the CPU only{remedy}"
    if not platform.cuda_is_available():
        return "no NVIDIA GPU is visible. Check `nvidia-smi`, the driver's version and CUDA_VISIBLE_DEVICES"
    count = platform.cuda_device_count()
    if device.index is not None and device.index >= count:
        return f"there is no {device}: {count} found, numbered from 0"
    failure = platform.probe(device)
    if failure is not None:
        return f"the first computation failed ({failure}). The card may be in use or too old for this torch"
    return None


class DeviceManager:
    """Chooses MPS, then CUDA, then the CPU; or the device asked for.

    Args:
        use_mps: False passes over Apple's GPU.
        device: ``cpu``, ``cuda``, ``cuda:1``, … or ``mps``; None chooses.

    Attributes:
        device: the ``torch.device`` chosen.
        reason: one sentence, why this one.
        fallbacks: what was tried before it, and why it was not taken.

    Raises:
        MPSCompatibilityError: ``mps`` was asked for and cannot be used.
        DeviceError: ``cuda`` was asked for and cannot be used.
        ConfigurationError: an unknown device name, or ``mps`` together with ``use_mps=False``.
    """

    def __init__(self, use_mps: bool = True, device: str | None = None) -> None:
        self.fallbacks: list[Fallback] = []
        self._undo: list[Undo] = []
        self.device, self.reason = self._choose(use_mps) if device is None else self._as_asked(device, use_mps)

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_undo": []}  # what was changed in this process is not undone in another

    def _choose(self, use_mps: bool) -> tuple[torch.device, str]:
        obstacle = mps_obstacle() if use_mps else "switched off by use_mps=false"
        if obstacle is None:
            return torch.device("mps"), f"{platform.chip_name() or 'Apple Silicon'} with a working Metal backend"
        self._pass_over("mps", obstacle, alarming=use_mps and platform.is_apple_silicon())
        chosen = torch.device("cuda")
        obstacle = cuda_obstacle(chosen)
        if obstacle is None:
            return chosen, f"{platform.cuda_name(chosen)} is visible and works"
        self._pass_over("cuda", obstacle, alarming=platform.cuda_is_built() and platform.cuda_is_available())
        return torch.device("cpu"), "no usable accelerator: " + "; ".join(f"{d}: {r}" for d, r in self.fallbacks)

    def _pass_over(self, device: str, reason: str, alarming: bool) -> None:
        self.fallbacks.append(Fallback(device, reason))
        # A machine that never had the device is no news; one whose GPU stands idle is.
        logger.log(logging.WARNING if alarming else logging.DEBUG, "Not using %s: %s", device, reason)

    @staticmethod
    def _as_asked(name: str, use_mps: bool) -> tuple[torch.device, str]:
        if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
            raise ConfigurationError(
                f"Invalid device {name!r}: choose cpu, cuda, cuda:<number> or mps, or leave it unset"
            )
        device = torch.device(name)
        if device.type == "mps":
            if not use_mps:
                raise ConfigurationError("device='mps' contradicts use_mps=false: drop one of the two")
            if (obstacle := mps_obstacle()) is not None:
                raise MPSCompatibilityError(f"device='mps' cannot be used: {obstacle}. Otherwise use device='cpu'")
        if device.type == "cuda" and (obstacle := cuda_obstacle(device)) is not None:
            raise DeviceError(f"device={name!r} cannot be used: {obstacle}. Otherwise use device='cpu'")
        return device, "asked for"

    @property
    def is_apple_silicon(self) -> bool:
        """The hardware is Apple Silicon (whether or not this process can use its GPU)."""
        return platform.is_apple_silicon()

    @property
    def is_mps_available(self) -> bool:
        """Apple's GPU can be used by this process (whether or not it was chosen)."""
        return mps_obstacle() is None

    @property
    def name(self) -> str:
        """The device in words: ``NVIDIA A100-SXM4-80GB``, ``Apple M3 Pro``, ``x86_64 CPU``."""
        if self.device.type == "cuda":
            return platform.cuda_name(self.device)
        if self.device.type == "mps":
            return platform.chip_name() or "Apple GPU"
        return platform.chip_name() or f"{platform.machine()} CPU"

    def get_memory_info(self) -> MemoryInfo:
        """Read the device's memory, now; ``devices.memory.read_memory`` describes the keys.

        Returns:
            Readings in GB (2**30 bytes) by name.
        """
        return read_memory(self.device)

    def log_device_info(self) -> None:
        """Write device, reason, what was passed over, and memory to the log, at level INFO."""
        memory = self.get_memory_info()
        logger.info("Device: %s (%s): %s", self.device, self.name, self.reason)
        for device, reason in self.fallbacks:
            logger.info("Not using %s: %s", device, reason)
        logger.info("Memory: %.1f GB, of which %.1f GB available", memory["total_gb"], memory["available_gb"])

    def optimize_for_device(self) -> list[Optimization]:
        """Change torch's global settings where that helps on this device; ``restore()`` puts back what was changed.

        Returns:
            What was decided and why.
        """
        done, undo = optimize(self.device)
        self._undo += undo
        for what, reason in done:
            logger.info("%s: %s", what, reason)
        return done

    def restore(self) -> None:
        """Undo every change of ``optimize_for_device``, last first."""
        while self._undo:
            self._undo.pop()()

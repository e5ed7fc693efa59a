"""In which number format the towers compute, and why."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from domainclip.devices import platform
from domainclip.errors import ConfigurationError

Precision = Literal["fp32", "bf16", "fp16"]

AUTOCAST_DTYPES: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

# torch's bfloat16 kernels for Metal need macOS 14 (Metal 3.1 brought the type).
MACOS_WITH_BFLOAT16 = (14,)
# Tensor cores take bfloat16 from Ampere on.
CUDA_CAPABILITY_WITH_BFLOAT16 = (8, 0)
# From the M3 on the GPU computes in bfloat16; M1 and M2 emulate it.
APPLE_GENERATION_WITH_BFLOAT16 = 3


@dataclass(frozen=True)
class PrecisionDecision:
    """The weights stay float32 in every case; the towers' products are computed in ``autocast_dtype``."""

    name: Precision
    reason: str
    autocast_dtype: torch.dtype | None
    use_grad_scaler: bool

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """The context to run the towers in. For fp32 it also switches off an autocast that is on outside.

        Enter it anew for each forward pass: autocast keeps its cast copies of the weights until the outermost
        context ends, and copies made under ``no_grad`` would cut later passes off from their gradients.

        Args:
            device: Where the model runs.

        Returns:
            One of ``torch.autocast``.
        """
        if self.autocast_dtype is None:
            return torch.autocast(device.type, enabled=False)
        return torch.autocast(device.type, dtype=self.autocast_dtype)


def choose_precision(
    device: torch.device | str, requested: Precision | None = None, mixed_precision: bool = True
) -> PrecisionDecision:
    """The precision for ``device``: fp32 if ``mixed_precision=False``, then what was asked for, then policy.

    Args:
        device: Where the work runs.
        requested: The user's; None: chosen.
        mixed_precision: False: ``fp32`` unless another is asked for.

    Returns:
        The format and the reason for it.

    Raises:
        ConfigurationError: For an unknown precision, and for one that the device has not or only slowly.
    """
    device = torch.device(device)
    if requested is not None and requested not in get_args(Precision):
        raise ConfigurationError(f"Invalid precision {requested!r}: choose fp32, bf16 or fp16, or leave it unset")
    if not mixed_precision:
        ignored = f" (precision={requested} is not used)" if requested not in (None, "fp32") else ""
        return _decision("fp32", device, f"mixed_precision is off{ignored}")
    if requested is not None:
        obstacle = _obstacle(device, requested)
        if obstacle is not None:
            raise ConfigurationError(f"precision={requested} on {device.type}: {obstacle}")
        return _decision(requested, device, f"asked for{_caveat(device, requested)}")
    name, reason = _policy(device)
    return _decision(name, device, reason)


def supported_precisions(device: torch.device | str) -> tuple[Precision, ...]:
    """Every precision that ``choose_precision`` would accept for ``device``, fp32 first.

    Args:
        device: Where the work runs.

    Returns:
        Their names.
    """
    return tuple(name for name in get_args(Precision) if _obstacle(torch.device(device), name) is None)


def _decision(name: Precision, device: torch.device, reason: str) -> PrecisionDecision:
    # float16 gradients below 6e-8 vanish, so the loss is scaled up first; bfloat16 has float32's range.
    return PrecisionDecision(name, reason, AUTOCAST_DTYPES[name], name == "fp16" and device.type != "cpu")


def _policy(device: torch.device) -> tuple[Precision, str]:
    if device.type == "cuda":
        major, minor = platform.cuda_capability(device)
        if (major, minor) >= CUDA_CAPABILITY_WITH_BFLOAT16:
            return "bf16", f"compute capability {major}.{minor} has bfloat16 tensor cores"
        return ("fp16", f"compute capability {major}.{minor} has no bfloat16; float16 with a gradient scaler instead")
    if device.type == "mps":
        chip = platform.chip_name()
        generation = platform.apple_chip_generation(chip)
        if generation is None:
            return "fp32", f"unknown chip {chip!r}: float32 is the safe choice"
        if generation < APPLE_GENERATION_WITH_BFLOAT16:
            return "fp32", f"{chip} emulates bfloat16: float32 is as fast and exact"
        if (obstacle := _obstacle(device, "bf16")) is not None:
            return "fp32", f"{chip} could use bfloat16, but {obstacle}"
        return "bf16", f"{chip} computes in bfloat16"
    unit = platform.cpu_bfloat16_unit()
    if unit is not None:
        return "bf16", f"the CPU has {unit}, which multiplies bfloat16 several times faster than float32"
    return "fp32", "the CPU has neither avx512_bf16 nor amx, so bfloat16 would be emulated"


def _obstacle(device: torch.device, name: Precision) -> str | None:
    """Why ``name`` is refused on ``device``, with the remedy; None when it is not."""
    if name == "fp32":
        return None
    if device.type == "cpu" and name == "fp16":
        return "CPUs compute float16 far more slowly than float32. Use precision=bf16 or precision=fp32"
    if device.type == "cuda" and name == "bf16":
        capability = platform.cuda_capability(device)
        if capability < CUDA_CAPABILITY_WITH_BFLOAT16:
            return (
                f"compute capability {capability[0]}.{capability[1]} has no bfloat16 (8.0 and above do). "
                "Use precision=fp16 or precision=fp32"
            )
    if device.type == "mps" and name == "bf16":
        version = platform.macos_version()
        if version is None or version < MACOS_WITH_BFLOAT16:
            shown = ".".join(map(str, version)) if version else "unknown"
            return f"bfloat16 needs macOS 14, this is {shown}. Update macOS, or use precision=fp32"
    return None


def _caveat(device: torch.device, name: Precision) -> str:
    if name == "bf16" and device.type == "cpu" and platform.cpu_bfloat16_unit() is None:
        return ", though this CPU emulates bfloat16: fp32 is likely faster"
    if name == "bf16" and device.type == "mps":
        generation = platform.apple_chip_generation(platform.chip_name())
        if generation is None or generation < APPLE_GENERATION_WITH_BFLOAT16:
            return ", though this chip emulates bfloat16: fp32 is likely faster"
    return ""

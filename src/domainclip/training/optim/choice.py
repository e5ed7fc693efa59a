"""Which optimizer, and what it keeps in memory."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from domainclip.config import OptimizerSettings
from domainclip.errors import ConfigurationError, MissingExtraError

OPTIMIZERS = ("adamw", "adafactor", "adamw_8bit")

# How bitsandbytes lays out its 8-bit states (since 0.44): smaller tensors stay in float32, the others are quantised in
# blocks with one float32 scale each, through two tables of 256 float32 that all tensors share.
_SMALLEST_8BIT = 4096
_BLOCK_8BIT = 256
_TABLES_8BIT = 2 * 256 * 4


def check_optimizer(name: str, device: torch.device) -> None:
    """Make sure that an optimizer can be used.

    Args:
        name: ``adamw``, ``adafactor`` or ``adamw_8bit``.
        device: It has to run on.

    Raises:
        ConfigurationError: There is no such optimizer, or it does not run on the device.
        MissingExtraError: Its library is not installed.
    """
    if name not in OPTIMIZERS:
        raise ConfigurationError(f"Invalid optimizer {name!r}: choose {', '.join(OPTIMIZERS)}")
    if name != "adamw_8bit":
        return
    if device.type != "cuda":
        raise ConfigurationError(
            f"optimizer=adamw_8bit runs on CUDA only (this device is {device.type}): choose adafactor, which keeps "
            "less still, or adamw"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "memory", "optimizer=adamw_8bit")


def make_optimizer(
    groups: list[dict[str, Any]], settings: OptimizerSettings, device: torch.device
) -> torch.optim.Optimizer:
    """Make the optimizer that a recipe names.

    - ``adamw``: in its fused form, one kernel for all parameters, several times faster on MPS and CUDA.
    - ``adafactor``: no mean of gradients, and of their squares' mean only a row and a column of each matrix (Shazeer &
      Stern 2018). ``transformers``' rather than torch's: torch's multiplies every rate by the size of the weights, so
      that ``learning_rate`` would mean something else, and a LoRA matrix, zero at the start, would hardly learn.
      ``adam_beta1``, ``adam_beta2`` and ``adam_epsilon`` are not read.
    - ``adamw_8bit``: AdamW with its state in blocks of 8-bit numbers (Dettmers et al. 2022). CUDA only.

    Args:
        groups: Of parameters, each with its rate and weight decay.
        settings: Of the run.
        device: Where the parameters are.

    Returns:
        The optimizer.

    Raises:
        ConfigurationError: There is no such optimizer, or it does not run on the device.
        MissingExtraError: Its library is not installed.
    """
    check_optimizer(settings.optimizer, device)
    betas, epsilon = (settings.adam_beta1, settings.adam_beta2), settings.adam_epsilon
    if settings.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(
            groups, lr=settings.learning_rate, scale_parameter=False, relative_step=False, warmup_init=False
        )
    if settings.optimizer == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, lr=settings.learning_rate, betas=betas, eps=epsilon)
    return torch.optim.AdamW(groups, betas=betas, eps=epsilon, fused=device.type in {"cpu", "cuda", "mps"})


def optimizer_state_bytes(name: str, parameters: Iterable[Tensor]) -> int:
    """Predict the state that an optimizer keeps after its first step, Python's own numbers aside.

    Args:
        name: Of the optimizer.
        parameters: Those that are trained. Shapes and dtypes are enough: tensors on the ``meta`` device do.

    Returns:
        Bytes.

    Raises:
        ConfigurationError: There is no such optimizer.
    """
    sizes = {"adamw": _adamw_bytes, "adafactor": _adafactor_bytes, "adamw_8bit": _adamw_8bit_bytes}
    if name not in sizes:
        raise ConfigurationError(f"Invalid optimizer {name!r}: choose {', '.join(OPTIMIZERS)}")
    parameters = list(parameters)
    tables = name == "adamw_8bit" and any(parameter.numel() >= _SMALLEST_8BIT for parameter in parameters)
    return sum(sizes[name](parameter) for parameter in parameters) + (_TABLES_8BIT if tables else 0)


def _adamw_bytes(parameter: Tensor) -> int:
    return 2 * parameter.numel() * parameter.element_size() + 4  # two means; the step's number as a float32


def _adafactor_bytes(parameter: Tensor) -> int:
    item = max(4, parameter.element_size())  # float32 for half-precision weights too
    if parameter.ndim < 2:
        return (parameter.numel() + 1) * item  # + the weights' root mean square
    # Rows and columns of the last two dimensions: nothing is saved on a 1 × 1 convolution's.
    *before, rows, columns = parameter.shape
    matrices = 1
    for size in before:
        matrices *= size
    return (matrices * (rows + columns) + 1) * item


def _adamw_8bit_bytes(parameter: Tensor) -> int:
    numel = parameter.numel()
    if numel < _SMALLEST_8BIT:
        return 2 * numel * 4
    blocks = -(-numel // _BLOCK_8BIT)
    return 2 * (numel + blocks * 4)

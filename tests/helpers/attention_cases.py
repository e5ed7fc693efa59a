"""What several tests of attention compute with."""

from __future__ import annotations

from torch import Tensor

GIB = 2**30


def relative_difference(mine: list[Tensor], reference: list[Tensor]) -> float:
    """The largest among the tensors, each as the norm of the difference by the norm of the reference."""
    return max(
        float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(mine, reference, strict=True)
    )

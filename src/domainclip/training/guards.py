"""Watching for what ruins a run in silence, and saying what to do about it."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from domainclip.errors import TrainingDivergedError


def check_finite(loss: float, grad_norm: float, step: int, learning_rate: float, precision: str, saved: str) -> None:
    """Look at the numbers a step came to.

    Args:
        loss: Its loss.
        grad_norm: The norm of its gradient.
        step: Its number, from 1.
        learning_rate: Of the recipe, for the advice.
        precision: ``fp32``, ``bf16`` or ``fp16``, for the advice.
        saved: A sentence that says what is saved.

    Raises:
        TrainingDivergedError: One of the two is not finite.
    """
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    what = f"loss {loss}" if not math.isfinite(loss) else f"gradient norm {grad_norm}"
    advice = f"lower learning_rate (now {learning_rate:g}) by three, lengthen warmup_steps"
    if precision != "fp32":
        advice += f", or set precision=fp32 (now {precision})"
    raise TrainingDivergedError(
        f"Training diverged at step {step}: {what}. {saved} To go on: {advice}; "
        "`domainclip data check` shows whether images or captions are broken"
    )


class FiniteCheck:
    """Holds the newest loss and gradient norm until looking at them costs nothing or has to be.

    Looking at the newest step is enough: weights that were spoilt earlier make every later loss non-finite.

    Args:
        learning_rate: Of the recipe, for the advice.
        precision: Its name, for the advice.
        last_saved: Gives the step of the newest checkpoint, None where there is none.
    """

    def __init__(self, learning_rate: float, precision: str, last_saved: Callable[[], int | None]) -> None:
        self.learning_rate, self.precision, self.last_saved = learning_rate, precision, last_saved
        self._unchecked: tuple[Tensor, Tensor | None] | None = None

    def hold(self, loss: Tensor, norm: Tensor | None) -> None:
        """Remember what a step came to.

        Args:
            loss: A single number.
            norm: Of the gradient; None where a ``GradScaler`` skips steps that are not finite by itself.
        """
        self._unchecked = loss, norm

    def check(self, step: int) -> None:
        """Look at what is held. This waits for the device.

        Args:
            step: The one that it is of, from 1.

        Raises:
            TrainingDivergedError: It is not finite. Nothing may be saved or validated before this has passed.
        """
        if self._unchecked is None:
            return
        (loss, norm), self._unchecked = self._unchecked, None
        saved = self.last_saved()
        check_finite(
            float(loss),
            0.0 if norm is None else float(norm),
            step,
            self.learning_rate,
            self.precision,
            "No checkpoint was saved yet." if saved is None else f"The last checkpoint is of step {saved}.",
        )

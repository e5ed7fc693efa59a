"""Watching for what ruins a run in silence, and saying what to do about it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from domainclip.errors import TrainingDivergedError

COLLAPSED_SPREAD = 0.02
"""Root-mean-square distance of unit embeddings from their mean, in [0, 1]; below this all images look the same."""
PATIENCE = 3
"""Observations in a row before a warning: one bad batch is no collapse."""


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


@dataclass
class CollapseGuard:
    """Looks at one observation per log line and warns (once per kind) when the run stands still or falls together."""

    warmup_steps: int
    clamped_scale: float | None
    """The largest logit scale the model allows (its logarithm's clamp), or None."""
    scale_trained: bool = True
    """Whether the scale learns. A fixed one is what the user asked for, and no sign of anything."""
    warnings: list[str] = field(default_factory=list)
    _runs: dict[str, int] = field(default_factory=dict)
    _warned: set[str] = field(default_factory=set)

    def observe(
        self, step: int, loss: float, batch: int, spread: float, logit_scale: float, floor: float | None = 0.0
    ) -> list[str]:
        """Look at one logged step.

        Args:
            step: Its number, from 1; none is judged before the warm-up is over.
            loss: Its loss, in nats where it is a cross-entropy.
            batch: Pairs of the contrastive batch.
            spread: See ``COLLAPSED_SPREAD``.
            logit_scale: The factor itself, not its logarithm.
            floor: The smallest loss the batch's targets allow, in nats (above 0 where rows share their positives); None
                for an objective that is no cross-entropy.

        Returns:
            New warnings.
        """
        if step <= self.warmup_steps:
            return []
        chance = math.log(batch)
        found = {
            # Where nearly all rows are of one kind, the best loss there is lies near guessing too.
            "chance": floor is not None and batch > 1 and abs(loss - chance) < 0.01 * chance and floor < 0.9 * chance,
            "collapse": spread < COLLAPSED_SPREAD,
            "scale_high": self.scale_trained
            and self.clamped_scale is not None
            and logit_scale >= 0.999 * self.clamped_scale,
            "scale_low": self.scale_trained and logit_scale < 1.0,
        }
        text = {
            "chance": f"the loss stands at ln({batch}) = {chance:.2f}, as if guessing: the model learns nothing. Raise "
            "learning_rate, unlock a tower, or look whether captions fit the images",
            "collapse": f"image embeddings have collapsed (spread {spread:.4f}): every image gets the same one. "
            "Lower learning_rate, lengthen warmup_steps, or start again from the pretrained weights",
            "scale_high": f"logit_scale is at its limit ({logit_scale:.0f}): the model is over-confident, usually on "
            "captions it has learned by heart. Train shorter, augment more, or fix temperature",
            "scale_low": f"logit_scale fell to {logit_scale:.2f}: similarities hardly count any more. Lower "
            "learning_rate or fix temperature",
        }
        new = []
        for kind, seen in found.items():
            self._runs[kind] = self._runs.get(kind, 0) + 1 if seen else 0
            if self._runs[kind] == PATIENCE and kind not in self._warned:
                self._warned.add(kind)
                new.append(f"step {step}: {text[kind]}")
        self.warnings += new
        return new

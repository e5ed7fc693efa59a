"""Validating in the middle of a run, and keeping the weights that did best."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from domainclip.config import EvaluationSettings
from domainclip.errors import CheckpointError, ShapeError, TrainingDivergedError
from domainclip.events import Validated, ValidationDetails
from domainclip.files import damage_of, digests_of, replaced_directory, write_json
from domainclip.models.dual_encoder import DualEncoder
from domainclip.models.io import load_weights, save_encoder
from domainclip.training.checkpoint import CheckpointStore
from domainclip.training.regularization.weight_average import WeightAverage
from domainclip.training.state import Best, TrainContext

LEARNED = "loss.pt"


@dataclass(frozen=True)
class Validation:
    """What an evaluator says of the present weights; ``primary`` chooses the best checkpoint."""

    metrics: dict[str, float]
    primary: str
    greater_is_better: bool = True
    standard_error: float = 0.0
    """Of the primary metric; two values nearer than this are not told apart."""
    details: ValidationDetails = field(default_factory=ValidationDetails)

    @property
    def value(self) -> float:
        """Of the primary metric."""
        return self.metrics[self.primary]

    @property
    def sign(self) -> int:
        """1 where a greater value is better, −1 where a smaller one is."""
        return 1 if self.greater_is_better else -1

    def at(self, step: int) -> Best:
        """What is remembered of the weights that were validated.

        Args:
            step: Which they are of.

        Returns:
            Their step and their scores.
        """
        return Best(step=step, metric=self.primary, value=self.value, all=self.metrics)


Evaluate = Callable[[], Validation]
"""Validates the weights that are in the encoder."""


class BestWeights:
    """The weights a run would end with, in ``best/`` of its folder, in ``transformers``' layout.

    Args:
        context: Of the training.
        encoder: Whose weights are kept.
        loss: What an objective has learned belongs to these weights, and is kept beside them.
        store: The checkpoints, which keep the former best weights as long as they need them.
    """

    def __init__(self, context: TrainContext, encoder: DualEncoder, loss: nn.Module, store: CheckpointStore) -> None:
        self.context, self.encoder, self.loss, self.store = context, encoder, loss, store

    def keep(self, best: Best) -> bool:
        """Write the present weights and what they scored.

        Args:
            best: Their step and their validation.

        Returns:
            False where they could not be written; the former best then stays, and a warning says so.
        """
        state = self.context.state
        try:
            with replaced_directory(self.store.best, self.store.home_of(state.best_files)) as temporary:
                save_encoder(self.encoder, temporary, open_clip=False)  # for these runs alone, not for the user
                if list(self.loss.parameters()):
                    torch.save(self.loss.state_dict(), temporary / LEARNED)
                files = digests_of(temporary)
                write_json(temporary / "best.json", best)  # for people: no run reads it
        except (OSError, RuntimeError, SafetensorError) as error:
            self.context.warn(f"step {state.step}: the best weights could not be written ({error}); training goes on")
            return False
        state.best, state.best_files = best, files
        return True


def load_best(folder: Path, digests: Mapping[str, str] | None, encoder: DualEncoder, loss: nn.Module) -> None:
    """Take over the best weights of a training that has come to its end.

    Args:
        folder: Where they lie.
        digests: Of the files there, as they were written.
        encoder: Gets the weights; its adapters are taken out.
        loss: Gets what the objective had learned.

    Raises:
        CheckpointError: They are not there any more, or damaged.
    """
    if problem := damage_of(folder, digests or {}):
        raise CheckpointError(
            f"{problem}. The run would end with these weights: start it again with resume=True, which goes on from "
            "the last checkpoint whose best weights are whole"
        )
    load_weights(encoder, folder)
    if (learned := folder / LEARNED).is_file():
        loss.load_state_dict(torch.load(learned, map_location="cpu", weights_only=True))


class Validator:
    """Validates the averaged weights, keeps them where they are the best so far, and says when to stop.

    Of several processes the first does so, and what it finds holds in all.

    Args:
        context: Of the training.
        evaluate: Validates what is in the encoder.
        encoder: In training.
        average: Whose mean is validated in place of the latest weights.
        best: Where the best weights go.
        evaluation: When it is time to stop.
        learning_rate: For advice.
        chosen_later: Whether the weights after the last step are compared with those of step 0 in another way, so that
            no validation between them replaces those: of many on few rows, one is good by chance.
    """

    def __init__(
        self,
        context: TrainContext,
        evaluate: Evaluate,
        encoder: DualEncoder,
        average: WeightAverage,
        best: BestWeights,
        evaluation: EvaluationSettings,
        learning_rate: float,
        chosen_later: bool,
    ) -> None:
        self.context, self.evaluate, self.encoder, self.average = context, evaluate, encoder, average
        self.best, self.evaluation = best, evaluation
        self.learning_rate, self.chosen_later = learning_rate, chosen_later

    def __call__(self) -> bool:
        """Validate once.

        Returns:
            Whether it is time to stop early.

        Raises:
            TrainingDivergedError: The last update has left weights that are not finite.
        """
        state = self.context.state

        def validate() -> dict[str, Any]:
            with self.context.emitter.phase("validation"), self.average.in_place():
                self._validate()
            return state.parts("best", "best_files", "top", "without_gain", "warnings")

        state.load_state_dict(self.context.processes.on_first(validate))
        return state.stops_early(self.evaluation)

    def _validate(self) -> None:
        state = self.context.state
        try:
            result = self.evaluate()
        except ShapeError as error:  # "… contain NaN": the last update has spoilt the weights, though its loss was fine
            spoilt = next((n for n, p in self.encoder.named_parameters() if not bool(p.isfinite().all())), None)
            if spoilt is None:
                raise
            raise TrainingDivergedError(
                f"Training diverged at step {state.step}: the weights {spoilt} are not finite after it. Lower "
                f"learning_rate (now {self.learning_rate:g}) by three or lengthen warmup_steps"
            ) from error
        sign = result.sign
        if state.top is None or sign * result.value > sign * state.top:
            state.top, state.without_gain = result.value, 0
        else:
            state.without_gain += 1
        # The later weights, unless they are worse than the best by more than chance: the best of many validations is
        # mostly the luckiest (docs/log.md).
        near = sign * result.value >= sign * state.top - result.standard_error
        kept = near and not (state.step and self.chosen_later) and self.best.keep(result.at(state.step))
        self.context.emitter.emit(
            Validated(
                step=state.step,
                metrics=dict(result.metrics),
                primary=result.primary,
                value=result.value,
                greater_is_better=result.greater_is_better,
                standard_error=result.standard_error,
                top=state.top,
                kept=kept,
                details=result.details,
            )
        )

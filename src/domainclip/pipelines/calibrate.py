"""After training: are the model's probabilities true, and which temperature would make them so?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from domainclip.data.records import ImageTextPair
from domainclip.evaluation.evaluators import ZeroShotEvaluator, known_labels
from domainclip.evaluation.protocols import Embedder
from domainclip.inference import ModelSession
from domainclip.metrics.calibration import calibration_summary
from domainclip.pipelines.assemble import write_model


def calibrate(
    session: ModelSession,
    val: Sequence[ImageTextPair],
    test: Sequence[ImageTextPair],
    embed: Embedder,
    folder: Path,
    confidence: float | None = None,
) -> dict[str, Any] | None:
    """Fit a temperature on ``val``, and report calibration on ``test``, or on ``val`` too where there is no test split.
    With ``fit_validation_rows`` the model has learned from ``val``: then it is the one that fitted before it did.

    With the recipe's ``calibrate_temperature`` the model in ``folder / "model"`` gets the fitted temperature, unless
    the rows do not determine one; ``best/`` and the checkpoints keep the trained one.

    Args:
        session: The trained model, with its resolved recipe.
        val: The validation rows.
        test: The test rows.
        embed: Embeds both.
        folder: Of the run.
        confidence: What the logits of the model before its last fit are to be multiplied by, so that ``val`` surprises
            it least.

    Returns:
        ``calibration`` of a run's report, or ``skipped`` with the reason; None where no row has a label and nobody
        asked.

    Raises:
        CheckpointError: The model cannot be written.
    """
    recipe, encoder = session.config, session.encoder
    # One list of classes for both splits: each class takes its part of the probability.
    classes = known_labels([*val, *test])
    wanted = recipe.calibrate_temperature
    if not classes and not wanted:
        return None
    unlabelled = [
        name
        for name, pairs in (("validation", val), *((("test", test),) if len(test) else ()))
        if not known_labels(pairs)
    ]
    if encoder.is_siglip:
        reason = "a SigLIP model gives each class a probability of its own (a sigmoid), which no temperature sets right"
    elif unlabelled:
        reason = f"there is no labelled row in the {' and the '.join(unlabelled)} split, and it takes both"
    elif len(classes) < 2:
        reason = f"the rows are all of one class, {classes[0]!r}"
    else:
        reason = ""
    if reason:
        return {"skipped": reason + (", so calibrate_temperature did nothing" if wanted else "")}

    def scored(pairs: Sequence[ImageTextPair]) -> tuple[Tensor, Tensor]:
        names = session.domain.prompts.names_of
        evaluator = ZeroShotEvaluator(pairs, recipe.prompt_templates, class_names=classes, names_of=names)
        return evaluator.similarities(embed)

    own = float((-encoder.logit_scale.detach().double()).exp())
    shown = scored(test) if len(test) else None
    if recipe.fit_validation_rows:
        held_out = (own / confidence, len(val)) if confidence is not None else None
        found = calibration_summary(None, shown, own, held_out)
    else:
        found = calibration_summary(scored(val), shown, own)
    found["saved"] = "fitted" if wanted and found["problem"] is None else "own"
    if found["saved"] == "fitted":
        encoder.set_temperature(found["fitted_temperature"], trainable=encoder.logit_scale.requires_grad)
        write_model(session, folder)
    return found

"""The projections once more, after the towers: fitted to features that have moved since the projections were.

During fine-tuning the projections learn at the towers' rate from a batch at a time, and end behind the features they
read: a linear probe on the trained tower finds two points that its own projection does not. Fitting the last layer anew
on the finished features is the second stage of "decoupled" training (Kang et al. 2020, "Decoupling Representation and
Classifier for Long-Tailed Recognition"; Kirichenko et al. 2023, "Last Layer Re-Training is Sufficient for Robustness to
Spurious Correlations").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from domainclip.errors import ShapeError
from domainclip.training.metrics_log import MetricsLog
from domainclip.training.validation import keep_best

if TYPE_CHECKING:
    from domainclip.training.trainer import Trainer


def end_with_probe(trainer: Trainer, metrics: MetricsLog | None) -> None:
    """Train the projections on the towers as the last step has left them, where the trainer has a ``probe_last``; the
    model this makes is the result if validation rows are no worse with it than with the best before, and forgotten
    otherwise.

    Of several processes the first does it. A run resumed after its last step does it again, with the same outcome.
    """
    state = trainer.state
    if trainer.probe_last is None or trainer.validate is None or not state.step:
        return

    def fit() -> dict[str, Any]:
        assert metrics is not None
        _fit(trainer, metrics)
        return {name: getattr(state, name) for name in ("best", "probe_last", "skipped_images", "warnings")}

    vars(state).update(trainer.processes.on_first(fit))
    trainer.processes.broadcast_state(trainer.encoder)


def _fit(trainer: Trainer, metrics: MetricsLog) -> None:
    assert trainer.probe_last is not None and trainer.validate is not None
    state = trainer.state
    parameters = [parameter for _, parameter in trainer.probe_last.trained_parameters()]
    before = [parameter.detach().clone() for parameter in parameters]
    outcome = trainer.probe_last()
    state.skipped_images |= outcome.pop("skipped_images")
    state.probe_last = outcome
    if "skipped" in outcome:
        trainer.console.print(f"Probe last: left out ({outcome['skipped']})", markup=False)
        return
    kept, change = False, "its scores are not finite"
    try:
        result = trainer.validate()
    except ShapeError:  # "… contain NaN": what was trained before stays
        pass
    else:
        sign = 1 if result.greater_is_better else -1
        outcome["validation"] = result.value
        change = f"validation {result.primary} {result.value:.4f}"
        if state.best is None or sign * result.value >= sign * state.best["value"]:
            kept = keep_best(trainer, result)
    outcome["kept"] = kept
    if not kept:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
    trainer.console.print(
        f"Probe last: {outcome['rows']} rows, {change}{', kept' if kept else ': the weights before stay'}, "
        f"{outcome['seconds']:.1f} s",
        highlight=False,
        markup=False,
    )
    metrics.write(step=state.step, **{f"probe_last_{name}": value for name, value in outcome.items()})
    metrics.keep_latest(state.step)

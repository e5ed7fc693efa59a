"""Validating in the middle of a run, and keeping the weights that did best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from domainclip.errors import ShapeError, TrainingDivergedError
from domainclip.files import replaced_directory, write_json
from domainclip.models.io import save_encoder
from domainclip.training.metrics_log import MetricsLog
from domainclip.training.state import Validation

if TYPE_CHECKING:
    from domainclip.training.trainer import Trainer


def validate_weights(trainer: Trainer, metrics: MetricsLog | None) -> bool:
    """Validate the averaged weights, keep them when they are the best so far; True when it is time to stop.

    Of several processes the first does so (it alone has ``metrics``), and what it finds holds in all.
    """

    def validate() -> tuple[bool, dict[str, Any]]:
        assert metrics is not None
        with trainer.average.in_place():
            stop = _validate(trainer, metrics)
        names = ("best", "top", "without_gain", "previous", "confirmed", "probe_first", "warnings")
        return stop, {name: getattr(trainer.state, name) for name in names}

    stop, found = trainer.processes.on_first(validate)
    vars(trainer.state).update(found)
    return stop


def _validate(trainer: Trainer, metrics: MetricsLog) -> bool:
    """Validate the weights, keep them when they are the best so far; True when it is time to stop."""
    assert trainer.validate is not None
    state, settings = trainer.state, trainer.settings
    trainer._check(state.step)
    try:
        result = trainer.validate()
    except ShapeError as error:  # "… contain NaN": the last update has spoilt the weights, though its loss was fine
        spoilt = next((n for n, p in trainer.encoder.named_parameters() if not bool(p.isfinite().all())), None)
        if spoilt is None:
            raise
        raise TrainingDivergedError(
            f"Training diverged at step {state.step}: the weights {spoilt} are not finite after it. Lower "
            f"learning_rate (now {settings.learning_rate:g}) by three or lengthen warmup_steps"
        ) from error
    metrics.write(step=state.step, **{f"val_{name}": value for name, value in result.metrics.items()})
    sign = 1 if result.greater_is_better else -1
    if state.top is None or sign * result.value > sign * state.top:
        state.top, state.without_gain = result.value, 0
    else:
        state.without_gain += 1
    probed = state.probe_first.get("validation") if state.step and state.probe_first is not None else None
    early = probed is not None and 2 * state.step < trainer.total_steps
    value = result.value
    if early and state.previous is not None:
        # In the first half the rate is high and one epoch of many validates well by chance, so a value counts only as
        # far as the one before it bears it out: neither to be kept nor to bar what comes later (docs/log.md).
        value = sign * min(sign * value, sign * state.previous)
    if state.confirmed is None or sign * value > sign * state.confirmed:
        state.confirmed = value
    kept = sign * value >= sign * state.confirmed - result.standard_error
    if not state.step and state.probe_first is not None:
        state.probe_first["validation"] = result.value
    elif probed is not None:  # trained towers must do as well as the probe; in the first half clearly better
        kept = kept and sign * value >= sign * probed + (result.standard_error if early else 0.0)
    state.previous = result.value
    kept = kept and keep_best(trainer, result)
    trainer.console.print(
        f"  step {state.step}: validation {result.primary} {result.value:.4f} "
        f"(best {state.top:.4f}{', kept' if kept else ''})"
    )
    return state.stops_early(settings)


def keep_best(trainer: Trainer, result: Validation) -> bool:
    """Write the weights and what they scored; False when they could not be written (the former best stays)."""
    best = {"step": trainer.state.step, "metric": result.primary, "value": result.value, "all": result.metrics}
    try:
        with replaced_directory(trainer.folder / "best") as temporary:
            save_encoder(trainer.encoder, temporary, open_clip=False)  # for these runs alone, not for the user
            write_json(temporary / "best.json", best)
            if list(trainer.loss.parameters()):  # what the objective has learned belongs to these weights
                torch.save(trainer.loss.state_dict(), temporary / "loss.pt")
    except (OSError, RuntimeError, SafetensorError) as error:
        trainer.warn(f"step {trainer.state.step}: the best weights could not be written ({error}); training goes on")
        return False
    trainer.state.best = best
    return True

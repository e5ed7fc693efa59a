"""Events of a training that goes well, each figure of which can be set."""

from __future__ import annotations

from typing import Any

from domainclip.events import InitialValidated, StepLogged, Validated


def logged(step: int, **values: Any) -> StepLogged:
    given = {
        "total_steps": 100,
        "epoch": 1.5,
        "batch_size": 32,
        "resolution": 32,
        "metrics": {"loss": 1.0, "target_entropy": 0.0},
        "learning_rates": (1e-4,),
        "gradient_norm": 1.0,
        "logit_scale": 14.0,
        "embedding_spread": 0.5,
        "effective_rank": 20.0,
        "seconds": {"data": 0.1, "towers": 1.0},
        "samples_per_second": 10.0,
        "memory_mb": 1.0,
        "peak_memory_mb": 1.0,
    }
    return StepLogged(step=step, **(given | values))  # type: ignore[arg-type]


def validated(step: int, value: float, error: float = 0.01, better: bool = True, **metrics: float) -> Validated:
    return Validated(
        step=step,
        metrics={"acc1": value, **metrics},
        primary="acc1",
        value=value,
        greater_is_better=better,
        standard_error=error,
        top=value,
        kept=False,
    )


def initial(value: float, error: float = 0.01, better: bool = True) -> InitialValidated:
    return InitialValidated(
        metrics={"acc1": value}, primary="acc1", value=value, greater_is_better=better, standard_error=error
    )

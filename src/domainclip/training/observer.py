"""Reading the figures of a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from domainclip.devices.memory import peak_memory_mb
from domainclip.events import StepLogged
from domainclip.metrics.uniformity import effective_rank
from domainclip.training.memory.monitor import MemoryMonitor
from domainclip.training.state import TrainContext
from domainclip.training.step.train_step import TrainStep


class StepObserver:
    """Reads the numbers of steps (this waits for an accelerator), and emits those that are due.

    Args:
        context: Of the training.
        step: Whose steps are read.
        logging_steps: Between two steps that are logged.
        monitor: Of the memory that is held.
    """

    def __init__(self, context: TrainContext, step: TrainStep, logging_steps: int, monitor: MemoryMonitor) -> None:
        self.context, self.step, self.logging_steps, self.monitor = context, step, logging_steps, monitor

    def is_due(self, step: int) -> bool:
        """Ask whether the figures of a step go into the log.

        Args:
            step: Its number, from 1.

        Returns:
            True every ``logging_steps`` steps and at the last.
        """
        return step % self.logging_steps == 0 or step == self.step.plan.total_steps

    def __call__(self, output: Mapping[str, Any], norm: Tensor, rows: int) -> None:
        """Read the figures of the step that is just behind.

        Args:
            output: What ``TrainStep.update`` has returned.
            norm: The same.
            rows: Pairs of the contrastive batch.
        """
        state, plan, encoder = self.context.state, self.step.plan, self.step.encoder
        state.last_loss = float(output["loss"])
        state.loss_sum += state.last_loss
        state.loss_count += 1
        if not self.is_due(state.step) or not self.context.processes.is_first:  # nobody listens in the others
            return
        unit = F.normalize(output["image_embeds"].reshape(rows, -1), dim=-1)
        spread = float((unit - unit.mean(0)).square().sum(-1).mean().sqrt())
        scale = float(encoder.logit_scale.detach().exp())
        self.context.emitter.emit(
            StepLogged(
                step=state.step,
                total_steps=plan.total_steps,
                epoch=plan.epochs(state.step),
                batch_size=rows,
                resolution=plan.resolution(state.step - 1),
                metrics=logged_metrics(output),
                learning_rates=tuple(group["lr"] for group in self.step.optimizer.param_groups),
                gradient_norm=float(norm),
                logit_scale=scale,
                embedding_spread=spread,
                effective_rank=effective_rank(unit) if rows > 1 else 1.0,
                seconds=self.step.times.take(),
                samples_per_second=state.rows_seen / state.step_seconds if state.step_seconds else None,
                memory_mb=self.monitor.take() / 2**20,
                peak_memory_mb=peak_memory_mb(self.step.device),
            )
        )


def logged_metrics(output: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The single numbers among what an objective has returned. Waits for the device.

    Args:
        output: Tensors, and tables of them, by name.
        prefix: Put before each name.

    Returns:
        Numbers by name; those of a table as ``name_key``.
    """
    numbers: dict[str, float] = {}
    for name, value in output.items():
        if isinstance(value, Mapping):
            numbers |= logged_metrics(value, f"{name}_")
        elif isinstance(value, Tensor) and value.ndim == 0:
            numbers[prefix + name] = float(value)
    return numbers

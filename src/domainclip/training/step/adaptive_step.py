"""A contrastive step that goes on in smaller micro-batches where memory runs out, and repeats the batch it happened in.

A micro-batch is only how the arithmetic is cut up (see ``gradcache``): halving it changes neither the contrastive batch
nor the gradient. What a failed attempt has left behind is undone first, so that the run's weights are those of a run
that never ran out. With dropout they are those of a run that was given the same micro-batches beforehand, since each
micro-batch draws its own numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from domainclip.data.batches import Batch
from domainclip.devices.out_of_memory import attempt, is_out_of_memory, release_memory
from domainclip.errors import CLIPFinetuningError, MemoryConstraintError
from domainclip.models.batch_norm import has_live_batch_norm
from domainclip.training.checkpoint import random_state, restore_random_state
from domainclip.training.step.gradcache import ContrastiveStep
from domainclip.words import counted

MicroBatchReport = Callable[[int, int, int, str], None]
"""``(step, old_micro_batch, new_micro_batch, reason)``: the step's number from 1, micro-batches in rows."""

PATIENCE = 32
"""Steps that must go well before a larger micro-batch is tried: a failed try costs at most one step more in so many."""


class AdaptiveStep:
    """A step with a micro-batch that follows the memory there is; call it as the step itself.

    Out of memory: first ``kept_micro_batches`` goes to 0, then micro-batches are no longer ``enlarged``, then the
    micro-batch is halved (rounded up) until it is 1. After ``patience`` steps that went well the former, larger setting
    is tried; when that fails, at once or later, the patience is doubled. All of it depends on the number of steps
    alone, never on a clock.

    One process only: a repeat on one of several that average their gradients would leave the others waiting.

    Args:
        step: What is repeated.
        encoder: Module whose gradients and state a repeat must find as they were before the batch: the buffers of
            modules in training mode.
        loss: The same of the objective: its parameters, its buffers, and what ``get_extra_state`` gives, as for a
            checkpoint.
        on_change: Called with each new micro-batch.
        patience: Steps that must go well before a larger micro-batch is tried.
    """

    def __init__(
        self,
        step: ContrastiveStep,
        encoder: nn.Module,
        loss: nn.Module,
        on_change: MicroBatchReport = lambda step, old, new, reason: None,
        patience: int = PATIENCE,
    ) -> None:
        self.step, self.encoder, self.loss = step, encoder, loss
        self.on_change = on_change
        self.patience = patience
        self.steps = 0
        # (micro-batch, kept_micro_batches) that were given up, the last one smallest.
        self._larger: list[tuple[int | None, int]] = []
        self._went_well = 0
        self._grown = False  # the present setting was given up once before
        self._may_enlarge = True

    def enlarge(self, factor: int) -> None:
        """Let the next steps' micro-batches be larger, unless that has been too much before.

        Args:
            factor: So many times as large.
        """
        self.step.enlarged = factor if self._may_enlarge else 1

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """Make one contrastive step, in smaller micro-batches where memory runs out.

        Args:
            batch: As ``ContrastiveStep`` takes it. Gradients must be None before
                (``optimizer.zero_grad(set_to_none=True)``).

        Returns:
            What the step returns.

        Raises:
            MemoryConstraintError: Even one row at a time does not fit, or batch norm in training mode forbids
                micro-batches. Every other error comes through as it is.
        """
        if self.step.processes is not None:
            return self._without_repeat(batch)
        if any(p.grad is not None for module in (self.encoder, self.loss) for p in module.parameters()):
            raise CLIPFinetuningError(
                "There are gradients from before this batch, and a repeat would lose them: call "
                "optimizer.zero_grad(set_to_none=True) before each step"
            )
        size = len(batch["pixels"])
        before = BeforeStep(self.encoder, self.loss, self.step.device)
        self._try_larger(size)
        output, reason = attempt(lambda: self.step(batch))
        while output is None:
            before.restore()
            self._shrink(size, reason)
            output, reason = attempt(lambda: self.step(batch))
        self.steps += 1
        self._went_well += 1
        return output

    def _without_repeat(self, batch: Batch) -> dict[str, Any]:
        try:
            return self.step(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size = len(batch["pixels"]) if batch["pixels"] is not None else 0
            raise MemoryConstraintError(
                f"One of several processes ran out of memory on its {size} pairs ({error}), and the others would not "
                f"wait for a repeat: set mini_batch_size below {self.step.micro_batch_of(size)}, or start more "
                f"processes"
            ) from error

    def _try_larger(self, size: int) -> None:
        old = self.step.micro_batch_of(size)
        if not self._larger or self._went_well < self.patience or old == size:  # a batch that fits proves nothing
            return
        self.step.micro_batch, self.step.kept_micro_batches = self._larger.pop()
        self._grown = True
        self._report(
            old,
            self.step.micro_batch_of(size),
            f"{counted(self._went_well, 'step')} in a row went well: trying the larger one",
        )
        self._went_well = 0

    def _shrink(self, size: int, reason: str) -> None:
        step = self.step
        old = step.micro_batch_of(size)
        if has_live_batch_norm(self.encoder):
            raise MemoryConstraintError(
                f"A batch of {size} pairs does not fit into memory ({reason}), and cannot go in micro-batches while "
                f"batch "
                "norm takes its statistics from the batch: they would become the micro-batches'. Set "
                "freeze_batch_norm=true, "
                f"which allows micro-batches, or a smaller batch_size (the batch is {size} now)"
            )
        drops_graphs = step.kept_micro_batches > 0 and old < size
        if not drops_graphs and step.enlarged > 1:
            self._may_enlarge, step.enlarged = False, 1
            if (now := step.micro_batch_of(size)) < old:
                self._report(old, now, f"out of memory ({reason}): no larger micro-batches for small images any more")
                return
        if old == 1 and not drops_graphs:
            raise MemoryConstraintError(
                f"A batch of {size} pairs does not fit into memory even one pair at a time ({reason}). Set "
                "gradient_checkpointing=true, a smaller image_resolution, loss_chunk_size (rows of the similarity "
                f"matrix held at once), a smaller batch_size (the batch is {size} now), or a smaller model; or close "
                "other programs"
            )
        if self._grown:
            self.patience *= 2
        self._grown, self._went_well = False, 0
        self._larger.append((step.micro_batch, step.kept_micro_batches))
        if drops_graphs:
            self._report(old, old, f"out of memory ({reason}): no micro-batch keeps its graph any more")
        else:
            step.micro_batch = (old + 1) // 2
            self._report(old, step.micro_batch, f"out of memory ({reason})")
        step.kept_micro_batches = 0

    def _report(self, old: int, new: int, reason: str) -> None:
        self.on_change(self.steps + 1, old, new, reason)

    def state_dict(self) -> dict[str, Any]:
        """What the next step's micro-batch depends on.

        Returns:
            Plain numbers and lists.
        """
        return {
            "micro_batch": self.step.micro_batch,
            "kept_micro_batches": self.step.kept_micro_batches,
            "larger": [list(setting) for setting in self._larger],
            "patience": self.patience,
            "went_well": self._went_well,
            "grown": self._grown,
            "may_enlarge": self._may_enlarge,
            "steps": self.steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the micro-batch of a checkpoint.

        Args:
            state: From ``state_dict``.
        """
        self.step.micro_batch, self.step.kept_micro_batches = state["micro_batch"], state["kept_micro_batches"]
        self._larger = [(micro_batch, kept) for micro_batch, kept in state["larger"]]
        self.patience, self._went_well = state["patience"], state["went_well"]
        self._grown, self._may_enlarge, self.steps = state["grown"], state["may_enlarge"], state["steps"]


class BeforeStep:
    """What a forward and backward pass changes, as it was before.

    Args:
        encoder: Whose buffers it changes where they are in training mode.
        loss: Whose parameters, buffers and extra state it may change.
        device: Whose random numbers it draws.
    """

    def __init__(self, encoder: nn.Module, loss: nn.Module, device: torch.device) -> None:
        self.device = device
        self.modules = (encoder, loss)
        self.random = random_state(device)
        # A forward pass changes the weights of no tower; an objective may set its own (the sigmoid's bias).
        self.parameters = [(p, p.detach().clone()) for p in loss.parameters() if not nn.parameter.is_lazy(p)]
        changing = [module for module in encoder.modules() if module.training] + list(loss.modules())
        self.buffers = [
            (module, name, buffer, None if buffer is None else buffer.detach().clone())
            for module in changing
            for name, buffer in module._buffers.items()
        ]
        self.extra_states = [
            (module, copy.deepcopy(module.get_extra_state()))
            for module in loss.modules()
            if type(module).get_extra_state is not nn.Module.get_extra_state
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back, without gradients."""
        for module in self.modules:
            module.zero_grad(set_to_none=True)
        release_memory(self.device)
        for parameter, value in self.parameters:
            parameter.copy_(value)
        for module, name, buffer, content in self.buffers:
            module._buffers[name] = buffer  # which an assignment may have put another one in the place of
            if buffer is not None and content is not None:
                buffer.copy_(content)
        for module, state in self.extra_states:
            module.set_extra_state(copy.deepcopy(state))
        restore_random_state(self.random, self.device)

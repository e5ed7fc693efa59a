"""One optimizer step: the gradient of all terms, clipped, applied, and what follows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from domainclip.config import MemorySettings, OptimizerSettings, ReferenceSettings, TemperatureSettings
from domainclip.data.batches import Batch
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.step_plan import StepPlan
from domainclip.devices.precision import PrecisionDecision
from domainclip.losses import TemperatureScheduler, call_objective
from domainclip.models.dual_encoder import DualEncoder
from domainclip.training.distributed import OneProcess, ProcessGroup
from domainclip.training.guards import FiniteCheck
from domainclip.training.optim.optimizer import build_optimizer, rate_factor, set_rates
from domainclip.training.regularization.initial_weights import InitialWeights
from domainclip.training.regularization.regularizers import L2SP, FeatureDistillation
from domainclip.training.regularization.rehearsal import Rehearsal
from domainclip.training.regularization.weight_average import WeightAverage
from domainclip.training.step.adaptive_step import AdaptiveStep
from domainclip.training.step.class_term import ClassificationTerm
from domainclip.training.step.gradcache import ContrastiveStep
from domainclip.training.step.times import StepTimes
from domainclip.training.step.views import ImageViews


@dataclass(frozen=True)
class FurtherTerms:
    """What a step learns beside its objective.

    Attributes:
        start: The model it begins with, where the settings hold the training near it.
        classification: Tells the classes of a batch apart.
        rehearsal: Keeps other rows as they were.
    """

    start: InitialWeights | None = None
    classification: ClassificationTerm | None = None
    rehearsal: Rehearsal | None = None


class TrainStep:
    """Makes optimizer steps.

    Args:
        encoder: What is trained.
        loss: The objective; parameters of its own are trained as well.
        optim: Rates, decays, and what the gradient is clipped to.
        memory: The micro-batch.
        temperature: Its schedule, where it has one.
        references: What holds the training near the initial weights.
        plan: Size, resolution and rate of each step.
        spec: How images are normalised.
        device: Where everything is.
        precision: Of the towers' passes.
        processes: Those that share each batch.
        finite: Is shown each step's loss and gradient.
        terms: Beside the objective.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        loss: nn.Module,
        optim: OptimizerSettings,
        memory: MemorySettings,
        temperature: TemperatureSettings,
        references: ReferenceSettings,
        plan: StepPlan,
        spec: ImageSpec,
        device: torch.device,
        precision: PrecisionDecision,
        processes: ProcessGroup | OneProcess,
        finite: FiniteCheck,
        terms: FurtherTerms,
    ) -> None:
        self.encoder, self.loss, self.optim, self.plan, self.device = encoder, loss, optim, plan, device
        self.processes, self.finite, self.terms = processes, finite, terms
        self.optimizer = build_optimizer(encoder, optim, device, loss)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.use_grad_scaler)
        self.temperature: TemperatureScheduler | None = None
        self.reads_loss = temperature.temperature_schedule_type == "adaptive"
        if temperature.temperature_scheduling:
            self.temperature = TemperatureScheduler.from_settings(
                temperature, temperature.temperature, plan.total_steps
            )
        self.average = WeightAverage(encoder, optim.ema_fraction * plan.total_steps)
        self.l2sp = L2SP(encoder, references.l2sp_strength) if references.l2sp_strength > 0 else None
        self.times = StepTimes(self.on_cpu)
        self._step = 0
        learning = {tower for tower, _, p in encoder.named_tower_parameters() if p.requires_grad}
        scales = getattr(loss, "resolution_scales", None)
        distillation = None
        if terms.start is not None and terms.start.encoder is not None:
            distillation = FeatureDistillation(
                ImageViews(terms.start.encoder, spec, scales),
                terms.start.encoder.encode_text,
                references.distillation_strength,
                lambda: precision.autocast(device),
                learning,
            )
        contrastive = ContrastiveStep(
            ImageViews(encoder, spec, scales),
            encoder.encode_text,
            self._contrast,
            lambda: precision.autocast(device),
            device,
            micro_batch=_micro_batch(memory),
            backward_scale=self.scaler.scale,
            learning=learning,
            distillation=distillation,
            classification=terms.classification,
            processes=processes if isinstance(processes, ProcessGroup) else None,
            parameters=self.parameters,
            times=self.times,
        )
        self.adaptive = AdaptiveStep(contrastive, encoder, loss)

    @property
    def on_cpu(self) -> bool:
        """Whether reading a number costs nothing."""
        return self.device.type == "cpu"

    def pairs(self, batch: Batch) -> int:
        """Count the pairs of the contrastive batch.

        Args:
            batch: This process' part of it.

        Returns:
            Over all processes.
        """
        if "pairs" not in batch:
            batch["pairs"] = self.processes.total(len(batch["rows"]))
        return batch["pairs"]

    def set_temperature(self) -> None:
        """Give the encoder the scheduled temperature, where there is a schedule."""
        if self.temperature is not None:
            self.encoder.set_temperature(self.temperature.get_temperature(), trainable=False)

    def update(self, batch: Batch, step: int) -> tuple[dict[str, Any] | None, Tensor]:
        """Make one step. On an accelerator nothing here waits for the device.

        Args:
            batch: As the training loader gives it, on the device.
            step: Steps that are behind.

        Returns:
            What the objective and the further terms have come to, without graph, with ``image_embeds`` ``[rows, dim]``;
            and the norm of the gradient before it was clipped. None and 0 where the batch has fewer than two pairs.

        Raises:
            TrainingDivergedError: On the CPU, where loss or gradient are not finite; the weights are then untouched.
        """
        if self.pairs(batch) < 2:  # nothing to contrast: the batch's images could not be read
            return None, torch.zeros(())
        optim, optimizer, terms = self.optim, self.optimizer, self.terms
        self._step = step
        factor = rate_factor(step, optim.warmup_steps, self.plan.total_steps, optim.min_learning_rate_ratio)
        set_rates(optimizer, factor * self.plan.rate(step))
        if terms.classification is not None:
            batch["classes"] = terms.classification.begin(step, torch.as_tensor(batch["rows"]))
        self.adaptive.enlarge(int((self.plan.resolutions[-1] / self.plan.resolution(step)) ** 2))
        optimizer.zero_grad(set_to_none=True)
        self.set_temperature()
        output = self.adaptive(batch)
        if terms.rehearsal is not None:
            micro_batch = self.adaptive.step.micro_batch_of(len(batch["rows"]))
            penalty = terms.rehearsal.add_gradient(step, self.pairs(batch), micro_batch, self.scaler.scale)
            output = {**output, "rehearsal": penalty}
        with self.times.of("optimizer"):
            self.scaler.unscale_(optimizer)
            if self.l2sp is not None:
                output = {**output, "l2sp": self.l2sp.add_gradient()}
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, optim.max_grad_norm)
            self.finite.hold(output["loss"], None if self.scaler.is_enabled() else norm)
            if self.on_cpu:  # free of cost there, and the weights stay as they were
                self.finite.check(step + 1)
            self.scaler.step(optimizer)
            self.scaler.update()
            self.encoder.clamp_logit_scale()
            self.average.update()
        if self.temperature is not None:  # only the adaptive schedule reads the loss, and waits for the device to do so
            self.temperature.step(step + 1, float(output["loss"]) if self.reads_loss else None)
        return output, norm

    def _contrast(self, image_embeds: Tensor, text_embeds: Tensor, group_ids: Tensor) -> dict[str, Any]:
        return call_objective(
            self.loss,
            image_embeds,
            text_embeds,
            group_ids=group_ids,
            logit_scale=self.encoder.logit_scale,
            logit_bias=self.encoder.logit_bias,
            progress=self._step / self.plan.total_steps,
        )


def _micro_batch(memory: MemorySettings) -> int | None:
    if memory.mini_batch_size is not None:
        return memory.mini_batch_size
    return memory.batch_size if memory.gradient_accumulation_steps > 1 else None

"""Putting the parts of a training together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from domainclip.data.dataset import CLIPDataset
from domainclip.data.sampler import EpochBatchSampler
from domainclip.devices.precision import PrecisionDecision
from domainclip.models.dual_encoder import DualEncoder
from domainclip.models.io import weights_digest
from domainclip.resolve import ResolvedRun
from domainclip.signals import StopSignals
from domainclip.training.checkpoint import CheckpointStore
from domainclip.training.checkpointer import Checkpointer, TrainedWeights
from domainclip.training.guards import FiniteCheck
from domainclip.training.identity import RunIdentity
from domainclip.training.memory.run import RunMemory
from domainclip.training.observer import StepObserver
from domainclip.training.probe.probe import Probe
from domainclip.training.probe.progress import ProbeProgress
from domainclip.training.probe.stages import ProbeStages
from domainclip.training.state import Stateful, TrainContext
from domainclip.training.step.train_step import FurtherTerms, TrainStep
from domainclip.training.trainer import Trainer
from domainclip.training.validation import BestWeights, Evaluate, Validator


@dataclass(frozen=True)
class TrainingParts:
    """What a training may have and need not.

    Attributes:
        evaluate: Validates the present weights.
        terms: Of the loss, beside the objective.
        probe: Fits the projections, before the first step or after the last.
        find_hard_negatives: Finds for each training row those hardest to tell from it, ``[rows, k]``.
        accept_changed_data: Whether a run may go on with other training rows.
    """

    evaluate: Evaluate | None = None
    terms: FurtherTerms = field(default_factory=FurtherTerms)
    probe: Probe | None = None
    find_hard_negatives: Callable[[], Tensor] | None = None
    accept_changed_data: bool = False


def build_trainer(
    context: TrainContext,
    encoder: DualEncoder,
    loss: nn.Module,
    loader: DataLoader,
    run: ResolvedRun,
    device: torch.device,
    precision: PrecisionDecision,
    parts: TrainingParts | None = None,
    stop: StopSignals | None = None,
) -> Trainer:
    """Put together a trainer of ``encoder`` with everything that is saved in a checkpoint.

    Args:
        context: Folder, listeners and processes. The folder gets ``checkpoints/``, ``best/`` and ``memory.json``.
        encoder: What is trained, on ``device``.
        loss: The objective, on ``device``.
        loader: See ``data.batches.create_training_loader``.
        run: The resolved recipe, of which each part gets its group.
        device: Where the steps are made.
        precision: Of the towers' passes.
        parts: What this training has besides.
        stop: Remembers the signal to stop; by default one that speaks on the standard error.

    Returns:
        A trainer that has made no step yet.

    Raises:
        ConfigurationError: Nothing is trained, or the optimizer does not run on the device.
        MissingExtraError: The optimizer's library is not installed.
    """
    parts = parts or TrainingParts()
    data: CLIPDataset = loader.dataset.dataset  # type: ignore[attr-defined]
    sampler: EpochBatchSampler = loader.batch_sampler  # type: ignore[assignment]
    assert sampler.plan is not None
    plan, state, terms = sampler.plan, context.state, parts.terms
    store = CheckpointStore(context.folder / "checkpoints", max(1, run.record.keep_checkpoints))
    step = TrainStep(
        encoder,
        loss,
        run.optim,
        run.memory,
        run.objective,
        run.references,
        plan,
        data.image_transform.spec,
        device,
        precision,
        context.processes,
        FiniteCheck(run.optim.learning_rate, precision.name, store.last_step),
        terms,
    )
    memory = RunMemory(
        encoder,
        loss,
        step.adaptive.step,
        run.memory,
        run.optim,
        context.folder,
        plan.resolutions[-1],
        run.may_freeze_batch_norm,
        data.images.bytes_to_come,
    )
    shared: dict[str, Stateful] = {
        "model": TrainedWeights(encoder),
        "average": step.average,
        "loss": loss,
        "optimizer": step.optimizer,
        "scaler": step.scaler,
        **({"temperature": step.temperature} if step.temperature is not None else {}),
        "sampler": sampler,
        "state": state,
    }
    identity = RunIdentity.of(
        run.recipe.to_dict(),
        data,
        terms.start.digest if terms.start is not None else None,
        terms.rehearsal.digest if terms.rehearsal is not None else None,
        run.domain.digest(),
    )
    checkpointer = Checkpointer(
        context,
        store,
        identity,
        shared,
        {"memory": memory, "step": step.adaptive},  # the former may freeze batch norm
        seed=run.record.seed,
        device=device,
        plan=plan,
        model_name=encoder.name,
        accept_changed_data=parts.accept_changed_data,
    )
    best = BestWeights(context, encoder, loss, store)
    stop = stop or StopSignals(Console(stderr=True).print)

    def progress(stage: str) -> ProbeProgress:
        return ProbeProgress(store.folder / stage, f"{identity.digest} {weights_digest(encoder)}", stop)

    probes = ProbeStages(context, encoder, parts.probe, run.probe, parts.evaluate, best, progress)
    validator = None
    if parts.evaluate is not None:
        validator = Validator(
            context,
            parts.evaluate,
            encoder,
            step.average,
            best,
            run.evaluation,
            run.optim.learning_rate,
            chosen_later=probes.choose,
        )
    return Trainer(
        context,
        run.record,
        run.evaluation,
        loader,
        step,
        StepObserver(context, step, run.record.logging_steps, memory.monitor),
        memory,
        checkpointer,
        probes,
        validator,
        parts.find_hard_negatives,
        stop,
    )

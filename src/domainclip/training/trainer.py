"""The training loop: the only one, readable from top to bottom."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from domainclip.config import TrainingSettings
from domainclip.data.batches import EpochBatchSampler, PrefetchDataLoader
from domainclip.data.images.image_spec import ImageSpec
from domainclip.devices.precision import PrecisionDecision
from domainclip.errors import DataError, Interrupted
from domainclip.losses import TemperatureScheduler, call_objective
from domainclip.models.dual_encoder import MAX_LOGIT_SCALE, DualEncoder
from domainclip.training.checkpoint import CheckpointStore
from domainclip.training.distributed import OneProcess, ProcessGroup
from domainclip.training.guards import CollapseGuard, check_finite
from domainclip.training.identity import check_same_run, data_fingerprint, recipe_digest
from domainclip.training.memory.run import RunMemory
from domainclip.training.metrics_log import MetricsLog, logged_metrics, peak_memory_mb
from domainclip.training.optim.optimizer import build_optimizer, rate_factor, set_rates
from domainclip.training.probe.last import end_with_probe
from domainclip.training.probe.probe import Probe, begin_with_probe
from domainclip.training.regularization.initial_weights import InitialWeights
from domainclip.training.regularization.regularizers import L2SP, FeatureDistillation
from domainclip.training.regularization.rehearsal import Rehearsal
from domainclip.training.regularization.weight_average import WeightAverage
from domainclip.training.snapshot import identity_of, restore, save_checkpoint
from domainclip.training.state import RunState, TrainingResult, Validation
from domainclip.training.step.adaptive_step import AdaptiveStep
from domainclip.training.step.class_term import ClassificationTerm
from domainclip.training.step.gradcache import ContrastiveStep
from domainclip.training.step.views import ImageViews
from domainclip.training.terminal import StopSignals, progress_bar
from domainclip.training.validation import validate_weights

log = logging.getLogger(__name__)


class Trainer:
    """Trains ``encoder`` on the batches of ``loader`` (see ``data.batches.create_training_loader``).

    ``validate``: a callable that validates the present weights, or None. ``find_hard_negatives``: a callable that finds
    for each training row those hardest to tell from it (``[rows, k]``), asked between epochs, or None. ``folder`` gets
    ``metrics.jsonl``, ``checkpoints/`` and ``best/`` (the best weights, in ``transformers``' layout). ``processes``:
    several train together, each on its rows of every batch; the first alone validates and writes, all go the same way.
    ``start``: the model it begins with, which ``encoder`` still is, where the settings hold the training near it.
    ``probe_first``, ``probe_last``: what trains the projections before the first step and after the last, or None.
    ``domain_digest``: of the content of the settings' domain, which counts in place of its name.
    ``classification``: a term of the loss beside the objective. ``rehearsal``: keeps other rows as they were.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        loss: nn.Module,
        loader: DataLoader,
        spec: ImageSpec,
        settings: TrainingSettings,
        device: torch.device,
        precision: PrecisionDecision,
        folder: Path,
        validate: Callable[[], Validation] | None = None,
        console: Console | None = None,
        find_hard_negatives: Callable[[], Tensor] | None = None,
        may_freeze_batch_norm: bool = False,
        processes: ProcessGroup | OneProcess | None = None,
        start: InitialWeights | None = None,
        probe_first: Probe | None = None,
        classification: ClassificationTerm | None = None,
        rehearsal: Rehearsal | None = None,
        probe_last: Probe | None = None,
        domain_digest: str | None = None,
    ) -> None:
        self.encoder, self.loss, self.start = encoder, loss, start
        self.probe_first, self.probe_last = probe_first, probe_last
        self.find_hard_negatives, self.classification, self.rehearsal = find_hard_negatives, classification, rehearsal
        self.processes = processes or OneProcess()
        self.loader = PrefetchDataLoader(loader, device)
        self.sampler: EpochBatchSampler = loader.batch_sampler  # type: ignore[assignment]
        self.sampler.shard = self.processes.shard
        self.settings, self.device, self.precision = settings, device, precision
        self.folder, self.validate, self.console = folder, validate, console or Console(stderr=True)
        self.optimizer = build_optimizer(encoder, settings, device, loss)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.use_grad_scaler)
        self.store = CheckpointStore(folder / "checkpoints", settings.keep_checkpoints)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        assert self.sampler.plan is not None
        self.plan = self.sampler.plan
        self.total_steps = self.plan.total_steps
        self.temperature = None
        if settings.temperature_scheduling:
            self.temperature = TemperatureScheduler.from_settings(settings, settings.temperature, self.total_steps)
        self.average = WeightAverage(encoder, settings.ema_fraction * self.total_steps)
        self.state = RunState()
        self.domain_digest = domain_digest
        self.digest = recipe_digest(settings.model_dump(mode="json"), domain_digest)
        self.fingerprint = data_fingerprint(loader.dataset.dataset)  # type: ignore[attr-defined]
        self.rehearsed = rehearsal.digest if rehearsal is not None else None
        self._unchecked: tuple[dict[str, Tensor], Tensor] | None = None
        self.stop = StopSignals(self.console)
        self.l2sp = L2SP(encoder, settings.l2sp_strength) if settings.l2sp_strength > 0 else None
        learning = {tower for tower, _, p in encoder.named_tower_parameters() if p.requires_grad}
        scales = getattr(loss, "resolution_scales", None)
        distillation = None
        if start is not None and start.encoder is not None:
            distillation = FeatureDistillation(
                ImageViews(start.encoder, spec, scales),
                start.encoder.encode_text,
                settings.distillation_strength,
                lambda: precision.autocast(device),
                learning,
            )
        step = ContrastiveStep(
            ImageViews(encoder, spec, scales),
            encoder.encode_text,
            self._contrast,
            lambda: precision.autocast(device),
            device,
            micro_batch=self._micro_batch(),
            backward_scale=self.scaler.scale,
            learning=learning,
            distillation=distillation,
            classification=classification,
            processes=processes if isinstance(processes, ProcessGroup) else None,
            parameters=self.parameters,
        )
        self.adaptive = AdaptiveStep(step, encoder, loss, self._micro_batch_changed)
        self.step_fn: Callable[[dict[str, Any]], dict[str, Any]] = self.adaptive
        self.memory = RunMemory(
            encoder,
            loss,
            step,
            settings,
            folder,
            self.plan.resolutions[-1],
            may_freeze_batch_norm,
            loader.dataset.dataset.cache_bytes_to_come,  # type: ignore[attr-defined]
        )

    def _pairs(self, batch: dict[str, Any]) -> int:
        """Pairs of the contrastive batch, over all processes."""
        if "pairs" not in batch:
            batch["pairs"] = self.processes.total(len(batch["rows"]))
        return batch["pairs"]

    def _micro_batch(self) -> int | None:
        settings = self.settings
        if settings.mini_batch_size is not None:
            return settings.mini_batch_size
        return settings.batch_size if settings.gradient_accumulation_steps > 1 else None

    def _fit_memory(self, batch: dict[str, Any]) -> None:
        """Set the micro-batch before the run's first step; a resumed run goes on with the one it had."""
        if self.memory.forecast is None and len(batch["rows"]) > 1:
            batches = self.plan.batch_schedule
            largest = min(batches.largest, batches.rows)
            forecast = self.memory.fit(batch, -(-largest // self.processes.world_size))
            if forecast is not None and forecast.frozen_batch_norm:
                self.warn(
                    "Batch norm is frozen, since the batch does not fit into memory whole: the image tower may adapt "
                    "less. A smaller batch_size that fits keeps its statistics in training"
                )
            if forecast is not None and forecast.micro_batch is not None:
                self.console.print(f"Memory: {forecast.reason}", highlight=False, markup=False)

    def _micro_batch_changed(self, step: int, old: int, new: int, reason: str) -> None:
        self.memory.note_change(self.state.step + 1, old, new, reason)
        text = f"step {self.state.step + 1}: {new} pairs at once instead of {old}: {reason}"
        if new < old:
            self.warn(text)
        else:
            log.info(text)

    def _contrast(self, image_embeds: Tensor, text_embeds: Tensor, group_ids: Tensor) -> dict[str, Any]:
        return call_objective(
            self.loss,
            image_embeds,
            text_embeds,
            group_ids=group_ids,
            logit_scale=self.encoder.logit_scale,
            logit_bias=self.encoder.logit_bias,
            progress=self.state.step / self.total_steps,
        )

    def train(self, resume: bool = False) -> TrainingResult:
        """Run to the end (or to early stopping).

        Raises ``TrainingDivergedError`` (non-finite numbers), ``Interrupted`` (SIGINT or SIGTERM, after saving),
        ``CheckpointError`` (nothing usable to resume from), ``DataError`` (no batch had two readable images).
        """
        resumed_from = restore(self) if resume else 0
        check_same_run(self.processes.gather_objects(identity_of(self)))
        self.processes.broadcast_state(self.encoder, self.loss)  # new layers are random
        state, settings = self.state, self.settings
        metrics = MetricsLog(self.folder / "metrics.jsonl", state.step) if self.processes.is_first else None
        guard = CollapseGuard(
            settings.warmup_steps,
            None if self.encoder.is_siglip else float(torch.tensor(MAX_LOGIT_SCALE).exp()),
            scale_trained=self.encoder.logit_scale.requires_grad,
        )
        if not resumed_from:
            begin_with_probe(self, metrics)
        stopped_early = state.stops_early(settings)
        started, training_seconds, rows_seen = time.monotonic(), 0.0, 0
        self.encoder.train()
        with (
            self.stop.watch(),
            self.memory.monitor,
            progress_bar(self.console, self.total_steps, state.step) as advance,
        ):
            while state.step < self.total_steps and not stopped_early:
                if self.find_hard_negatives and state.epoch and not state.batch:
                    self.sampler.set_neighbours(self.processes.on_first(self.find_hard_negatives))
                self.sampler.set_position(state.epoch, state.batch)
                for batch in self.loader:
                    if not resumed_from and not state.step:
                        self._fit_memory(batch)
                    clock = time.monotonic()
                    output, norm = self._step(batch)
                    rows = self._pairs(batch)
                    rows_seen += rows
                    state.step += 1
                    state.batch += 1
                    if state.batch == len(self.sampler):
                        state.epoch, state.batch = state.epoch + 1, 0
                    last = state.step == self.total_steps
                    if output is not None and (state.step % settings.logging_steps == 0 or last or self._on_cpu):
                        seconds = training_seconds + time.monotonic() - clock
                        self._observe(output, norm, rows, guard, metrics, seconds, rows_seen, last)
                    training_seconds += time.monotonic() - clock
                    advance(state.last_loss)
                    if self.validate and (state.step % settings.eval_steps == 0 or state.batch == 0 or last):
                        stopped_early = validate_weights(self, metrics)
                    done = last or stopped_early
                    # Read once: one that comes while saving waits for the next step. All processes stop at the same.
                    stop_signal = self.processes.largest(self.stop.received or 0)
                    if done or stop_signal or state.step % settings.save_steps == 0:
                        save_checkpoint(self, must_succeed=bool(done or stop_signal))
                    if stop_signal and not done:
                        name = signal.Signals(stop_signal).name
                        raise Interrupted(
                            stop_signal,
                            f"Stopped by {name} at step {state.step}; saved. Resume with --resume",
                        )
                    if done or state.batch == 0:
                        break
        if state.step and state.steps_skipped == state.step:
            raise DataError(
                f"Nothing was learned: no batch of {state.step} had two readable images "
                f"({len(state.skipped_images)} skipped, such as: {next(iter(state.skipped_images.values()), '')})"
            )
        self.average.apply()
        end_with_probe(self, metrics)
        return TrainingResult(
            steps=state.step,
            epochs=self.plan.epochs(state.step),
            train_loss=state.loss_sum / max(1, state.loss_count),
            final_loss=state.last_loss,
            training_time=time.monotonic() - started,
            peak_memory_mb=peak_memory_mb(self.device),
            samples_per_second=rows_seen / training_seconds if training_seconds else 0.0,
            best=state.best,
            stopped_early=stopped_early,
            resumed_from=resumed_from,
            warnings=state.warnings,
            skipped_images=state.skipped_images,
            probe_first=state.probe_first,
            probe_last=state.probe_last,
            memory=self.processes.on_first(self.memory.record),
        )

    @property
    def _on_cpu(self) -> bool:
        return self.device.type == "cpu"

    def _step(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor] | None, Tensor]:
        """One optimizer step. On an accelerator nothing here waits for the device."""
        for path, reason in batch["skipped"]:
            if path not in self.state.skipped_images:
                self.state.skipped_images[path] = reason
                log.warning("Set aside: %s", reason)
        if self._pairs(batch) < 2:  # nothing to contrast: the batch's images could not be read
            self.state.steps_skipped += 1
            return None, torch.zeros(())
        settings, optimizer, step = self.settings, self.optimizer, self.state.step
        factor = rate_factor(step, settings.warmup_steps, self.total_steps, settings.min_learning_rate_ratio)
        set_rates(optimizer, factor * self.plan.rate(step))
        if self.classification is not None:
            batch["classes"] = self.classification.begin(step, torch.as_tensor(batch["rows"]))
        self.adaptive.enlarge(int((self.plan.resolutions[-1] / self.plan.resolution(step)) ** 2))
        optimizer.zero_grad(set_to_none=True)
        if self.temperature:
            self.encoder.set_temperature(self.temperature.get_temperature(), trainable=False)
        output = self.step_fn(batch)
        if self.rehearsal is not None:
            pairs, micro_batch = self._pairs(batch), self.adaptive.step.micro_batch_of(len(batch["rows"]))
            output = {**output, "rehearsal": self.rehearsal.add_gradient(step, pairs, micro_batch, self.scaler.scale)}
        self.scaler.unscale_(optimizer)
        if self.l2sp is not None:
            output = {**output, "l2sp": self.l2sp.add_gradient()}
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, settings.max_grad_norm)
        self._unchecked = (output, norm)
        if self._on_cpu:  # free of cost there, and the weights stay as they were
            self._check(self.state.step + 1)
        self.scaler.step(optimizer)
        self.scaler.update()
        self.encoder.clamp_logit_scale()
        self.average.update()
        if self.temperature:  # only the adaptive schedule reads the loss, and waits for the device to tell it
            adaptive = self.settings.temperature_schedule_type == "adaptive"
            self.temperature.step(self.state.step + 1, float(output["loss"]) if adaptive else None)
        return output, norm

    def _check(self, step: int) -> None:
        """Raise for a loss or gradient that is not finite; nothing is saved or validated before this has passed.

        Looking at the newest step is enough: weights that were spoilt earlier make every later loss non-finite.
        """
        if self._unchecked is None:
            return
        (output, norm), self._unchecked = self._unchecked, None
        if self.scaler.is_enabled():  # it skips such steps and lowers its scale by itself
            norm = torch.zeros(())
        saved = self.store.all()
        check_finite(
            float(output["loss"]),
            float(norm),
            step,
            self.settings.learning_rate,
            self.precision.name,
            f"The last checkpoint is of step {saved[-1].step}." if saved else "No checkpoint was saved yet.",
        )

    def _observe(
        self,
        output: dict[str, Tensor],
        norm: Tensor,
        rows: int,
        guard: CollapseGuard,
        metrics: MetricsLog | None,
        seconds: float,
        rows_seen: int,
        last: bool,
    ) -> None:
        """Read the numbers (this waits for an accelerator), check them, write a line where one is due."""
        state = self.state
        self._check(state.step)
        state.last_loss = float(output["loss"])
        state.loss_sum += state.last_loss
        state.loss_count += 1
        if state.step % self.settings.logging_steps and not last:
            return
        unit = F.normalize(output["image_embeds"].reshape(rows, -1), dim=-1)
        spread = float((unit - unit.mean(0)).square().sum(-1).mean().sqrt())
        scale = float(self.encoder.logit_scale.detach().exp())
        # Only a cross-entropy tells it, and only for one is ln(B) what guessing costs.
        floor = float(output["target_entropy"]) if "target_entropy" in output else None
        for warning in guard.observe(state.step, state.last_loss, rows, spread, scale, floor):
            state.warnings.append(warning)
            log.warning(warning)
        if metrics is None:
            return
        metrics.write(
            step=state.step,
            epoch=round(self.plan.epochs(state.step), 4),
            batch_size=rows,
            resolution=self.plan.resolution(state.step - 1),
            **logged_metrics(output),
            learning_rate=self.optimizer.param_groups[0]["lr"],
            grad_norm=float(norm),
            logit_scale=scale,
            embedding_spread=spread,
            samples_per_second=rows_seen / seconds if seconds else None,
            memory_mb=self.memory.monitor.take() / 2**20,
            peak_memory_mb=peak_memory_mb(self.device),
        )

    def warn(self, text: str) -> None:
        self.state.warnings.append(text)
        log.warning(text)

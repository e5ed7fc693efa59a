"""The training loop: the only one, readable from top to bottom."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable

from torch import Tensor
from torch.utils.data import DataLoader

from domainclip.config import EvaluationSettings, RunSettings
from domainclip.data.batches import Batch, PrefetchDataLoader
from domainclip.data.sampler import EpochBatchSampler
from domainclip.devices.memory import peak_memory_mb
from domainclip.errors import DataError, Interrupted
from domainclip.events import ImageSkipped, Noted, RunFinished, RunStarted
from domainclip.signals import StopSignals
from domainclip.training.checkpointer import Checkpointer
from domainclip.training.memory.run import RunMemory
from domainclip.training.observer import StepObserver
from domainclip.training.probe.stages import ProbeStages
from domainclip.training.state import RunState, TrainContext, TrainingResult
from domainclip.training.step.train_step import TrainStep
from domainclip.training.validation import Validator
from domainclip.words import counted

log = logging.getLogger(__name__)


class Trainer:
    """Trains on the batches of ``loader``; ``training.assemble.build_trainer`` puts its parts together.

    Args:
        context: State, processes, folder and listeners, which all parts share.
        record: How often is saved.
        evaluation: How often is validated, and when it is time to stop.
        loader: See ``data.batches.create_training_loader``.
        step: Makes an optimizer step.
        observer: Reads the figures of a step.
        memory: Fits the micro-batch to what there is.
        checkpointer: Saves and restores the parts.
        probes: Trains the projections before the first step and after the last.
        validator: Validates the present weights, or None.
        find_hard_negatives: Finds for each training row those hardest to tell from it (``[rows, k]``), asked between
            epochs; or None.
        stop: Remembers the signal to stop.
    """

    def __init__(
        self,
        context: TrainContext,
        record: RunSettings,
        evaluation: EvaluationSettings,
        loader: DataLoader,
        step: TrainStep,
        observer: StepObserver,
        memory: RunMemory,
        checkpointer: Checkpointer,
        probes: ProbeStages,
        validator: Validator | None,
        find_hard_negatives: Callable[[], Tensor] | None,
        stop: StopSignals,
    ) -> None:
        self.context, self.record, self.evaluation = context, record, evaluation
        self.step, self.observer, self.memory = step, observer, memory
        self.checkpointer, self.probes, self.validator = checkpointer, probes, validator
        self.find_hard_negatives, self.stop = find_hard_negatives, stop
        self.loader = PrefetchDataLoader(loader, step.device)
        self.sampler: EpochBatchSampler = loader.batch_sampler  # type: ignore[assignment]
        self.sampler.shard = context.processes.shard
        self.encoder, self.plan, self.total_steps = step.encoder, step.plan, step.plan.total_steps
        step.adaptive.on_change = self._micro_batch_changed

    @property
    def state(self) -> RunState:
        """Where the run is."""
        return self.context.state

    def train(self, resume: bool = False) -> TrainingResult:
        """Run to the end, or to early stopping.

        Args:
            resume: Go on from the newest checkpoint.

        Returns:
            What the training has come to; ``encoder`` has the last weights, or their mean.

        Raises:
            TrainingDivergedError: Loss, gradient or weights are not finite.
            Interrupted: By SIGINT or SIGTERM, after saving.
            CheckpointError: There is nothing usable to resume from.
            DataError: No batch had two readable images.
            StopRun: A listener wants the run to end.
        """
        context, state, emitter = self.context, self.state, self.context.emitter
        resumed_from = self.checkpointer.restore() if resume else 0
        self.checkpointer.check_processes()
        context.processes.broadcast_state(self.encoder, self.step.loss)  # new layers are random
        earlier_time = state.elapsed
        began = time.monotonic() - earlier_time
        emitter.emit(RunStarted(folder=str(context.folder), step=state.step, total_steps=self.total_steps))
        if not state.step and state.probe_first is None and self.probes.first:
            self.step.set_temperature()
            with self.stop.watch():
                if self.probes.begin() and self.validator is not None:
                    self.validator()
                    self.probes.keep_first()
            self._save_probe()
        stopped_early = state.stops_early(self.evaluation)
        self.encoder.train()
        training = emitter.phase("training", self.total_steps, state.step)
        with self.stop.watch(), self.memory.monitor, training:
            while state.step < self.total_steps and not stopped_early:
                if self.find_hard_negatives is not None and state.epoch and not state.batch:
                    with emitter.phase("hard_negatives"):
                        self.sampler.set_neighbours(context.processes.on_first(self.find_hard_negatives))
                self.sampler.set_position(state.epoch, state.batch)
                waiting = time.monotonic()
                for batch in self.loader:
                    waited = time.monotonic() - waiting
                    if not resumed_from and not state.step:
                        self._fit_memory(batch)
                    clock = time.monotonic()

                    # Step.
                    self._note_skipped(batch)
                    output, norm = self.step.update(batch, state.step)
                    rows = self.step.pairs(batch)
                    state.steps_skipped += output is None
                    state.finish_step(rows, len(self.sampler))
                    last = state.step == self.total_steps

                    # Log.
                    read = self.step.on_cpu or self.observer.is_due(state.step)
                    if read:
                        self.step.finite.check(state.step)  # this waits for the device
                    seconds = time.monotonic() - clock
                    state.step_seconds += seconds
                    self.step.times.finish_step(waited, seconds)
                    if read and output is not None:
                        self.observer(output, norm, rows)
                    training.at(state.step, loss=state.last_loss)

                    # Validate.
                    if self.validator is not None and (
                        state.step % self.evaluation.eval_steps == 0 or state.batch == 0 or last
                    ):
                        self.step.finite.check(state.step)
                        stopped_early = self.validator()

                    # Save. The signal is read once: one that comes while saving waits for the next step. All processes
                    # stop at the same.
                    done = last or stopped_early
                    stop_signal = context.processes.largest(self.stop.received or 0)
                    state.elapsed = time.monotonic() - began
                    if done or stop_signal or state.step % self.record.save_steps == 0:
                        self.step.finite.check(state.step)
                        self.checkpointer.save(must_succeed=bool(done or stop_signal))
                    if stop_signal and not done:
                        name = signal.Signals(stop_signal).name
                        raise Interrupted(
                            stop_signal,
                            f"Stopped by {name} at step {state.step}; saved. Go on with resume=True",
                        )
                    if done or state.batch == 0:
                        break
                    waiting = time.monotonic()
        if state.step and state.steps_skipped == state.step:
            raise DataError(
                f"Nothing was learned: no batch of {state.step} had two readable images "
                f"({len(state.skipped_images)} skipped, such as: {next(iter(state.skipped_images.values()), '')})"
            )
        self.step.average.apply()
        with self.stop.watch():
            self.probes.end()
        state.elapsed = time.monotonic() - began
        return self._result(resumed_from, stopped_early, earlier_time)

    def _save_probe(self) -> None:
        """A probe that took long becomes a checkpoint of step 0, in place of its own progress."""
        progress = self.probes.begun
        if self.context.processes.largest(int(progress is not None and progress.is_saved)):
            self.checkpointer.save(must_succeed=False)
            if progress is not None and self.checkpointer.store.last_step() is not None:
                progress.clear()

    def _result(self, resumed_from: int, stopped_early: bool, earlier_time: float) -> TrainingResult:
        state = self.state
        memory = self.context.processes.on_first(self.memory.record)
        finished = RunFinished(
            steps=state.step,
            epochs=self.plan.epochs(state.step),
            train_loss=state.loss_sum / max(1, state.loss_count),
            final_loss=state.last_loss,
            training_time=state.elapsed,
            samples_per_second=state.rows_seen / state.step_seconds if state.step_seconds else 0.0,
            rows_seen=state.rows_seen,
            peak_memory_mb=peak_memory_mb(self.step.device),
            stopped_early=stopped_early,
            best_step=state.best["step"] if state.best else None,
            best_value=state.best["value"] if state.best else None,
        )
        self.context.emitter.emit(finished)
        return TrainingResult(
            steps=finished.steps,
            epochs=finished.epochs,
            train_loss=finished.train_loss,
            final_loss=finished.final_loss,
            training_time=finished.training_time,
            earlier_time=earlier_time,
            peak_memory_mb=finished.peak_memory_mb,
            samples_per_second=finished.samples_per_second,
            best=state.best,
            stopped_early=stopped_early,
            resumed_from=resumed_from,
            warnings=state.warnings + self.context.emitter.warnings,
            skipped_images=state.skipped_images,
            probe_first=state.probe_first,
            probe_last=state.probe_last,
            memory=memory,
        )

    def _note_skipped(self, batch: Batch) -> None:
        for path, reason in batch["skipped"]:
            if path not in self.state.skipped_images:
                self.state.skipped_images[path] = reason
                self.context.emitter.emit(ImageSkipped(path=str(path), reason=reason))

    def _fit_memory(self, batch: Batch) -> None:
        """Set the micro-batch before the run's first step; a resumed run goes on with the one it had."""
        if self.memory.forecast is not None or len(batch["rows"]) < 2:
            return
        batches = self.plan.batch_schedule
        largest = min(batches.largest, batches.rows)
        forecast = self.memory.fit(batch, -(-largest // self.context.processes.world_size))
        if forecast is not None and self.context.processes.is_first:
            self.memory.record()  # for those who watch the run: at its end it is written again
        if forecast is not None and forecast.frozen_batch_norm:
            self.context.warn(
                "Batch norm is frozen, since the batch does not fit into memory whole: the image tower may adapt "
                "less. A smaller batch_size that fits keeps its statistics in training"
            )
        if forecast is not None and forecast.micro_batch is not None:
            self.context.emitter.emit(Noted(name="memory", step=0, text=f"Memory: {forecast.reason}"))

    def _micro_batch_changed(self, _: int, old: int, new: int, reason: str) -> None:
        step = self.state.step + 1
        self.memory.note_change(step, old, new, reason)
        text = f"step {step}: {counted(new, 'pair')} at once instead of {old}: {reason}"
        if new <= old:
            self.context.emitter.emit(Noted(name="out_of_memory", step=step))
        if new < old:
            self.context.warn(text)
        else:
            log.info(text)

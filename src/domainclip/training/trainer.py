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
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader

from domainclip.config import TrainingSettings
from domainclip.data.batches import EpochBatchSampler, PrefetchDataLoader
from domainclip.data.image_spec import ImageSpec
from domainclip.devices.precision import PrecisionDecision
from domainclip.errors import CheckpointError, DataError, Interrupted
from domainclip.files import replaced_directory, write_json
from domainclip.models.dual_encoder import MAX_LOGIT_SCALE, DualEncoder
from domainclip.training.checkpoint import (
    CheckpointStore,
    random_state,
    recover_directory,
    restore_random_state,
)
from domainclip.training.gradcache import ContrastiveStep
from domainclip.training.guards import CollapseGuard, check_finite
from domainclip.training.identity import NEUTRAL_KEYS, data_fingerprint, recipe_digest
from domainclip.training.metrics_log import MetricsLog, peak_memory_mb
from domainclip.training.optimizer import build_optimizer, rate_factor, set_rates
from domainclip.training.results import RunState, TrainingResult, Validation
from domainclip.training.terminal import StopSignals, progress_bar

log = logging.getLogger(__name__)


class Trainer:
    """Trains ``encoder`` on the batches of ``loader`` (see ``data.batches.create_training_loader``).

    ``validate``: a callable that judges the present weights, or None. ``folder`` gets ``metrics.jsonl``,
    ``checkpoints/`` and ``best/`` (the best weights, in ``transformers``' layout).
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
    ) -> None:
        self.encoder, self.loss, self.spec = encoder, loss, spec
        self.loader = PrefetchDataLoader(loader, device)
        self.sampler: EpochBatchSampler = loader.batch_sampler  # type: ignore[assignment]
        self.settings, self.device, self.precision = settings, device, precision
        self.folder, self.validate = folder, validate
        self.console = console or Console(stderr=True)
        self.optimizer = build_optimizer(encoder, settings, device, loss)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.use_grad_scaler)
        self.store = CheckpointStore(folder / "checkpoints", settings.keep_checkpoints)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.total_steps = len(self.sampler) * settings.num_epochs
        if settings.max_steps is not None:
            self.total_steps = min(self.total_steps, settings.max_steps)
        self.state = RunState()
        self.digest = recipe_digest(settings.model_dump(mode="json"))
        self.fingerprint = data_fingerprint(loader.dataset.dataset)  # type: ignore[attr-defined]
        self._unchecked: tuple[dict[str, Tensor], Tensor] | None = None
        self.stop = StopSignals(self.console)
        self.step_fn = ContrastiveStep(
            self._encode_image, encoder.encode_text, self._contrast, lambda: precision.autocast(device), device,
            chunk=self._chunk(), backward_scale=self.scaler.scale,
        )  # fmt: skip

    def _chunk(self) -> int | None:
        settings = self.settings
        if settings.mini_batch_size is not None:
            return settings.mini_batch_size
        return settings.batch_size if settings.gradient_accumulation_steps > 1 else None

    def _encode_image(self, pixels: Tensor) -> Tensor:
        return self.encoder.encode_image(self.spec.normalise(pixels).to(self.encoder.dtype))

    def _contrast(self, image_embeds: Tensor, text_embeds: Tensor, group_ids: Tensor) -> dict[str, Tensor]:
        return self.loss(image_embeds, text_embeds, group_ids=group_ids, logit_scale=self.encoder.logit_scale)

    def train(self, resume: bool = False) -> TrainingResult:
        """Run to the end (or to early stopping).

        Raises ``TrainingDivergedError`` (non-finite numbers), ``Interrupted`` (SIGINT or SIGTERM, after saving),
        ``CheckpointError`` (nothing usable to resume from), ``DataError`` (no batch had two readable pictures).
        """
        resumed_from = self._restore() if resume else 0
        state, settings = self.state, self.settings
        metrics = MetricsLog(self.folder / "metrics.jsonl", state.step)
        guard = CollapseGuard(
            settings.warmup_steps,
            None if self.encoder.is_siglip else float(torch.tensor(MAX_LOGIT_SCALE).exp()),
            scale_trained=self.encoder.logit_scale.requires_grad,
        )
        stopped_early = state.patience_spent(settings.early_stopping_patience)
        started, training_seconds, rows_seen = time.monotonic(), 0.0, 0
        self.encoder.train()
        with self.stop.watch(), progress_bar(self.console, self.total_steps, state.step) as advance:
            while state.step < self.total_steps and not stopped_early:
                self.sampler.set_position(state.epoch, state.batch)
                for batch in self.loader:
                    clock = time.monotonic()
                    output, norm = self._step(batch)
                    rows = len(batch["rows"])
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
                        stopped_early = self._validate(metrics)
                    done = last or stopped_early
                    stop_signal = self.stop.received  # read once: one that comes while saving waits for the next step
                    if done or stop_signal or state.step % settings.save_steps == 0:
                        self._save(must_succeed=bool(done or stop_signal))
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
                f"Nothing was learned: no batch of {state.step} had two readable pictures "
                f"({len(state.bad_pictures)} set aside, such as: {next(iter(state.bad_pictures.values()), '')})"
            )
        return TrainingResult(
            steps=state.step,
            epochs=state.step / len(self.sampler),
            train_loss=state.loss_sum / max(1, state.loss_count),
            training_time=time.monotonic() - started,
            samples_per_second=rows_seen / training_seconds if training_seconds else 0.0,
            peak_memory_mb=peak_memory_mb(self.device),
            best=state.best,
            stopped_early=stopped_early,
            warnings=state.warnings,
            bad_pictures=state.bad_pictures,
            resumed_from=resumed_from,
            final_loss=state.last_loss,
        )

    @property
    def _on_cpu(self) -> bool:
        return self.device.type == "cpu"

    def _step(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor] | None, Tensor]:
        """One optimizer step. On an accelerator nothing here waits for the device."""
        for path, reason in batch["problems"]:
            if path not in self.state.bad_pictures:
                self.state.bad_pictures[path] = reason
                log.warning("Set aside: %s", reason)
        if len(batch["rows"]) < 2:  # nothing to contrast: the batch's pictures could not be read
            self.state.steps_skipped += 1
            return None, torch.zeros(())
        settings, optimizer = self.settings, self.optimizer
        set_rates(
            optimizer,
            rate_factor(self.state.step, settings.warmup_steps, self.total_steps, settings.min_learning_rate_ratio),
        )
        optimizer.zero_grad(set_to_none=True)
        output = self.step_fn(batch)
        self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, settings.max_grad_norm)
        self._unchecked = (output, norm)
        if self._on_cpu:  # free of cost there, and the weights stay as they were
            self._check(self.state.step + 1)
        self.scaler.step(optimizer)
        self.scaler.update()
        self.encoder.clamp_logit_scale()
        return output, norm

    def _check(self, step: int) -> None:
        """Raise for a loss or gradient that is not finite; nothing is saved or judged before this has passed.

        Looking at the newest step is enough: weights that were spoilt earlier make every later loss non-finite.
        """
        if self._unchecked is None:
            return
        (output, norm), self._unchecked = self._unchecked, None
        if self.scaler.is_enabled():  # it skips such steps and lowers its scale by itself
            norm = torch.zeros(())
        saved = self.store.all()
        check_finite(
            float(output["loss"]), float(norm), step, self.settings.learning_rate, self.precision.name,
            f"The last checkpoint is of step {saved[-1].step}." if saved else "No checkpoint was saved yet.",
        )  # fmt: skip

    def _observe(
        self, output: dict[str, Tensor], norm: Tensor, rows: int, guard: CollapseGuard, metrics: MetricsLog,
        seconds: float, rows_seen: int, last: bool,
    ) -> None:  # fmt: skip
        """Read the numbers (this waits for an accelerator), check them, write a line where one is due."""
        state = self.state
        self._check(state.step)
        state.last_loss = float(output["loss"])
        state.loss_sum += state.last_loss
        state.loss_count += 1
        if state.step % self.settings.logging_steps and not last:
            return
        unit = F.normalize(output["image_embeds"], dim=-1)
        spread = float((unit - unit.mean(0)).square().sum(-1).mean().sqrt())
        scale = float(self.encoder.logit_scale.detach().exp())
        floor = float(output.get("target_entropy", 0.0))  # a user's own loss need not tell
        for warning in guard.observe(state.step, state.last_loss, rows, spread, scale, floor):
            state.warnings.append(warning)
            log.warning(warning)
        metrics.write(
            step=state.step,
            epoch=round(state.step / len(self.sampler), 4),
            loss=state.last_loss,
            image_to_text_loss=float(output["image_to_text_loss"]),
            text_to_image_loss=float(output["text_to_image_loss"]),
            learning_rate=self.optimizer.param_groups[0]["lr"],
            grad_norm=float(norm),
            logit_scale=scale,
            embedding_spread=spread,
            samples_per_second=rows_seen / seconds if seconds else None,
            peak_memory_mb=peak_memory_mb(self.device),
        )

    def _validate(self, metrics: MetricsLog) -> bool:
        """Judge the weights, keep them when they are the best so far; True when it is time to stop."""
        assert self.validate is not None
        state, settings = self.state, self.settings
        self._check(state.step)
        result = self.validate()
        metrics.write(step=state.step, **{f"val_{name}": value for name, value in result.metrics.items()})
        sign = 1 if result.greater_is_better else -1
        if state.top is None or sign * result.value > sign * state.top:
            state.top, state.without_gain = result.value, 0
        else:
            state.without_gain += 1
        kept = sign * result.value >= sign * state.top - result.standard_error
        if kept:
            best = {"step": state.step, "metric": result.primary, "value": result.value, "all": result.metrics}
            if self._keep_best(best):
                state.best = best
        self.console.print(
            f"  step {state.step}: validation {result.primary} {result.value:.4f} "
            f"(best {state.top:.4f}{', kept' if kept else ''})"
        )
        return state.patience_spent(settings.early_stopping_patience)

    def _keep_best(self, best: dict[str, Any]) -> bool:
        """Write the weights and what they scored; False when they could not be written (the former best stays)."""
        try:
            with replaced_directory(self.folder / "best") as temporary:
                self.encoder.save(temporary)
                write_json(temporary / "best.json", best)
        except (OSError, RuntimeError, SafetensorError) as error:
            self._warn(f"step {self.state.step}: the best weights could not be written ({error}); training goes on")
            return False
        return True

    def _warn(self, text: str) -> None:
        self.state.warnings.append(text)
        log.warning(text)

    # --- checkpoints ---

    def _save(self, must_succeed: bool) -> None:
        state = self.state
        self._check(state.step)
        content = {
            "digest": self.digest,
            "data": self.fingerprint,
            "settings": self.settings.model_dump(mode="json"),
            "state": dict(state.__dict__),
            "model": self.encoder.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": random_state(self.device),
        }
        try:
            self.store.save(state.step, content)
        except CheckpointError as error:
            if must_succeed:
                raise
            self._warn(f"{error}. Training goes on")

    def _restore(self) -> int:
        """Continue from the newest whole checkpoint; 0 when there is none."""
        found = self.store.load_latest()
        if found is None:
            self.console.print(f"No checkpoint in {self.store.folder}: starting at the first step")
            return 0
        content, checkpoint, problems = found
        if content["digest"] != self.digest:
            saved, now = content["settings"], self.settings.model_dump(mode="json")
            changed = [key for key in now if key not in NEUTRAL_KEYS and saved.get(key) != now[key]]
            raise CheckpointError(
                f"The checkpoint in {self.store.folder} is of another recipe (different: {', '.join(changed)}). Resume "
                "with the recipe.yaml of the run, or use another output_dir"
            )
        if content["data"] != self.fingerprint:
            raise CheckpointError(
                f"The checkpoint in {self.store.folder} was trained on other rows (pictures, captions, groups or their "
                "order have changed since). Resume with the data of the run, or use another output_dir"
            )
        recover_directory(self.folder / "best")
        self.encoder.load_state_dict(content["model"])
        self.loss.load_state_dict(content["loss"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.state = RunState(**content["state"])
        restore_random_state(content["random"], self.device)
        for problem in problems:
            self._warn(f"{problem}; used {checkpoint.path.name} instead")
        self.console.print(f"Resumed at step {checkpoint.step} of {self.total_steps}")
        return checkpoint.step

"""The training loop: the only one, readable from top to bottom."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader

from domainclip.config import TrainingSettings
from domainclip.data.batches import EpochBatchSampler, PrefetchDataLoader
from domainclip.data.image_spec import ImageSpec
from domainclip.devices.precision import PrecisionDecision
from domainclip.errors import CheckpointError, Interrupted
from domainclip.files import replaced_directory, write_json
from domainclip.models.dual_encoder import MAX_LOGIT_SCALE, DualEncoder
from domainclip.training.checkpoint import CheckpointStore, random_state, restore_random_state
from domainclip.training.gradcache import ContrastiveStep
from domainclip.training.guards import CollapseGuard, check_finite
from domainclip.training.metrics_log import MetricsLog, peak_memory_mb
from domainclip.training.optimizer import build_optimizer, rate_factor, set_rates

log = logging.getLogger(__name__)

_NEUTRAL_KEYS = {
    "output_dir", "num_workers", "image_cache_mb", "keep_checkpoints", "eval_batch_size", "visualization_output_dir",
    "alignment_visualization", "retrieval_top_k", "logging_steps", "save_steps", "data_path",
}  # fmt: skip
"""Keys that may differ between a run and its resumption: they change nothing that is learned."""


@dataclass(frozen=True)
class Validation:
    """What an evaluator says of the present weights; ``primary`` chooses the best checkpoint."""

    metrics: dict[str, float]
    primary: str
    greater_is_better: bool = True

    @property
    def value(self) -> float:
        return self.metrics[self.primary]


@dataclass
class TrainingResult:
    steps: int
    epochs: float
    train_loss: float
    training_time: float  # seconds in this process, evaluation included
    samples_per_second: float  # training steps alone
    peak_memory_mb: float
    best: dict[str, Any] | None
    stopped_early: bool
    warnings: list[str]
    bad_pictures: dict[str, str]
    resumed_from: int
    final_loss: float


@dataclass
class _State:
    """Where the run is; saved and restored whole."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: dict[str, Any] | None = None
    without_gain: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    last_loss: float = float("nan")
    warnings: list[str] = field(default_factory=list)
    bad_pictures: dict[str, str] = field(default_factory=dict)


def recipe_digest(recipe: dict[str, Any]) -> str:
    kept = {key: value for key, value in recipe.items() if key not in _NEUTRAL_KEYS}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


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
        self.state = _State()
        self.digest = recipe_digest(settings.model_dump(mode="json"))
        self._signal: int | None = None
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
        ``CheckpointError`` (nothing usable to resume from).
        """
        resumed_from = self._restore() if resume else 0
        state, settings = self.state, self.settings
        metrics = MetricsLog(self.folder / "metrics.jsonl", state.step)
        guard = CollapseGuard(
            settings.warmup_steps,
            None if self.encoder.is_siglip else float(torch.tensor(MAX_LOGIT_SCALE).exp()),
        )
        started, training_seconds, rows_seen, stopped_early = time.monotonic(), 0.0, 0, False
        self.encoder.train()
        with self._signals(), self._progress() as advance:
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
                    if output is not None and (
                        state.step % settings.logging_steps == 0 or last or self._on_cpu
                    ):
                        self._observe(output, norm, rows, guard, metrics, training_seconds, rows_seen, last)
                    training_seconds += time.monotonic() - clock
                    advance(state.last_loss)
                    if self.validate and (state.step % settings.eval_steps == 0 or state.batch == 0 or last):
                        stopped_early = self._validate(metrics)
                    done = last or stopped_early
                    if done or self._signal or state.step % settings.save_steps == 0:
                        self._save()
                    if self._signal and not done:
                        name = signal.Signals(self._signal).name
                        raise Interrupted(
                            self._signal,
                            f"Stopped by {name} at step {state.step}; saved. Resume with --resume",
                        )
                    if done or state.batch == 0:
                        break
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
            return None, torch.zeros(())
        settings, optimizer = self.settings, self.optimizer
        set_rates(
            optimizer,
            rate_factor(
                self.state.step, settings.warmup_steps, self.total_steps, settings.min_learning_rate_ratio
            ),
        )
        optimizer.zero_grad(set_to_none=True)
        output = self.step_fn(batch)
        self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, settings.max_grad_norm)
        if self._on_cpu:  # free of cost there, and the weights stay as they were
            self._check(output, norm)
        self.scaler.step(optimizer)
        self.scaler.update()
        self.encoder.clamp_logit_scale()
        return output, norm

    def _check(self, output: dict[str, Tensor], norm: Tensor) -> None:
        if self.scaler.is_enabled():  # it skips such steps and lowers its scale by itself
            norm = torch.zeros(())
        saved = self.store.all()
        check_finite(
            float(output["loss"]), float(norm), self.state.step + 1, self.settings.learning_rate, self.precision.name,
            f"The last checkpoint is of step {saved[-1].step}." if saved else "No checkpoint was saved yet.",
        )  # fmt: skip

    def _observe(
        self, output: dict[str, Tensor], norm: Tensor, rows: int, guard: CollapseGuard, metrics: MetricsLog,
        seconds: float, rows_seen: int, last: bool,
    ) -> None:  # fmt: skip
        """Read the numbers (this waits for an accelerator), check them, write a line where one is due."""
        state = self.state
        if not self._on_cpu:
            self._check(output, norm)
        state.last_loss = float(output["loss"])
        state.loss_sum += state.last_loss
        state.loss_count += 1
        if state.step % self.settings.logging_steps and not last:
            return
        unit = F.normalize(output["image_embeds"], dim=-1)
        spread = float((unit - unit.mean(0)).square().sum(-1).mean().sqrt())
        scale = float(self.encoder.logit_scale.exp())
        for warning in guard.observe(state.step, state.last_loss, rows, spread, scale):
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
        result = self.validate()
        metrics.write(step=state.step, **{f"val_{name}": value for name, value in result.metrics.items()})
        sign = 1 if result.greater_is_better else -1
        if state.best is None or sign * result.value > sign * state.best["value"]:
            state.best = {
                "step": state.step,
                "metric": result.primary,
                "value": result.value,
                "all": result.metrics,
            }
            state.without_gain = 0
            self._keep_best()
        else:
            state.without_gain += 1
        self.console.print(
            f"  step {state.step}: validation {result.primary} {result.value:.4f} "
            f"(best {state.best['value']:.4f} at step {state.best['step']})"
        )
        patience = settings.early_stopping_patience
        return patience is not None and state.without_gain >= patience

    def _keep_best(self) -> None:
        try:
            with replaced_directory(self.folder / "best") as temporary:
                self.encoder.save(temporary)
                write_json(temporary / "best.json", self.state.best)
        except (OSError, RuntimeError) as error:
            self._warn(
                f"step {self.state.step}: the best weights could not be written ({error}); training goes on"
            )

    def _warn(self, text: str) -> None:
        self.state.warnings.append(text)
        log.warning(text)

    # --- checkpoints ---

    def _save(self) -> None:
        state = self.state
        content = {
            "digest": self.digest,
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
            if state.step == self.total_steps or self._signal:
                raise
            self._warn(f"{error}. Training goes on")

    def _restore(self) -> int:
        """Continue from the newest whole checkpoint; 0 when there is none."""
        found = self.store.load_latest()
        if found is None:
            return 0
        content, checkpoint, problems = found
        if content["digest"] != self.digest:
            saved, now = content["settings"], self.settings.model_dump(mode="json")
            changed = [key for key in now if key not in _NEUTRAL_KEYS and saved.get(key) != now[key]]
            raise CheckpointError(
                f"The checkpoint in {self.store.folder} is of another recipe (different: {', '.join(changed)}). Resume "
                "with the recipe.yaml of the run, or use another output_dir"
            )
        self.encoder.load_state_dict(content["model"])
        self.loss.load_state_dict(content["loss"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.state = _State(**content["state"])
        restore_random_state(content["random"], self.device)
        for problem in problems:
            self._warn(f"{problem}; used {checkpoint.path.name} instead")
        self.console.print(f"Resumed at step {checkpoint.step} of {self.total_steps}")
        return checkpoint.step

    # --- the terminal and the signals ---

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM lets the step finish and saves; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: Any) -> None:
            if self._signal:
                raise KeyboardInterrupt
            self._signal = number
            self.console.print(f"{signal.Signals(number).name}: finishing this step, then saving …")

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def _progress(self) -> Iterator[Callable[[float], None]]:
        progress = Progress(
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.4f}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=self.console, transient=True, disable=not self.console.is_terminal,
        )  # fmt: skip
        task = progress.add_task(
            "training", total=self.total_steps, completed=self.state.step, loss=float("nan")
        )
        with progress:
            yield lambda loss: progress.update(task, advance=1, loss=loss)

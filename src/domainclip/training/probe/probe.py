"""Linear probing, then fine-tuning, for dual encoders.

Fine-tuning from a head that does not fit bends the towers' features while the head finds its place, most where there
are few rows (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution").
So the heads come first: what the frozen towers give them is computed once, only the projections and the logit scale
learn from it, and the validation rows say which step to keep. The towers then begin with heads that fit them, and a
training that only loses by going on keeps this model.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domainclip.config.probe_settings import HeadFirstSettings
from domainclip.data.dataset import CLIPDataset
from domainclip.losses import call_objective
from domainclip.losses.contrastive import MultiPositiveContrastiveLoss
from domainclip.models.dual_encoder import DualEncoder
from domainclip.models.heads import tower_head
from domainclip.models.lora import is_adapter
from domainclip.training.metrics_log import MetricsLog
from domainclip.training.optim.optimizer import rate_factor
from domainclip.training.probe.draws import ClassPrompts, PairDraws
from domainclip.training.probe.features import FeatureReader
from domainclip.training.probe.restraint import HeadRestraint
from domainclip.training.regularization.rehearsal import Rehearsal
from domainclip.training.validation import judge

if TYPE_CHECKING:
    from domainclip.training.trainer import Trainer

log = logging.getLogger(__name__)

MAX_ROWS = 20_000
"""More rows than that are not read: projections have learned what they can, and features of all would fill memory."""
MAX_JUDGED = 4096
"""Validation rows, drawn at random, that choose the step."""
_CHECKS = 30
"""How often, over all steps, the validation rows are asked."""
_PATIENCE = 6
"""Checks without a lower validation loss before it stops."""


class HeadFirst:
    """Trains ``encoder``'s projections, logit scale and logit bias, as far as they are trained at all, on features.

    The loss is ``objective`` (the run's own, on a copy that is thrown away) over pairs of pictures and captions, plus,
    where rows have labels, the cross-entropy of the zero-shot classifier that ``class_prompts`` (label to sentences, as
    the classes are judged by) make: with frozen towers that is the linear probe, written as sentences.

    ``validation``: rows that choose the step which is kept, and may stop it; without them all steps are made.
    ``batch_size``: pictures embedded at once. ``rehearsal``: a further term, over all of its rows.
    ``l2sp_strength``, ``distillation_strength``: what holds the towers near their start holds the heads, too.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        objective: nn.Module,
        data: CLIPDataset,
        settings: HeadFirstSettings,
        seed: int,
        device: torch.device,
        autocast: Callable[[], Any],
        batch_size: int,
        validation: CLIPDataset | None = None,
        class_prompts: Mapping[str, Sequence[str]] | None = None,
        rehearsal: Rehearsal | None = None,
        l2sp_strength: float = 0.0,
        distillation_strength: float = 0.0,
    ) -> None:
        self.encoder, self.objective, self.settings, self.device = encoder, objective, settings, device
        self.data, self.validation, self.class_prompts = data, validation, class_prompts or {}
        self.seed, self.rehearsal = seed, rehearsal
        self.l2sp_strength, self.distillation_strength = l2sp_strength, distillation_strength
        self.reader = FeatureReader(encoder, device, autocast, batch_size)
        # A step costs the square of it.
        self.largest_batch = 1024 if device.type == "cpu" else 4096

    def trained_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """By name: those of both heads, the logit scale and the logit bias, without what is frozen."""
        heads = {id(p) for tower in ("image", "text") for p in tower_head(self.encoder, tower).trained}
        scalars = {"logit_scale", "logit_bias"}
        return [
            (name, parameter)
            for name, parameter in self.encoder.model.named_parameters()
            if parameter.requires_grad and (id(parameter) in heads or name in scalars)
        ]

    def __call__(self) -> dict[str, Any]:
        """Train them in place. What comes back: ``skipped`` (why nothing was done), or ``rows``, ``steps``,
        ``kept_step``, ``seconds``, ``loss_before`` and ``loss`` (of the validation rows, in nats; None without any);
        and ``bad_pictures``.

        The same numbers for the same seed, whatever the state of the global generators, which stays as it is.
        """
        started = time.monotonic()
        parameters = self.trained_parameters()
        if not any(tower_head(self.encoder, tower).trained for tower in ("image", "text")):
            return {"skipped": "both projections are locked", "bad_pictures": {}}
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.randperm(len(self.data), generator=generator)[:MAX_ROWS].sort().values.tolist()
        classes = ClassPrompts.read(self.reader, self.class_prompts, self.data) if self.class_prompts else None
        draws = PairDraws.read(self.reader, self.data, rows, self.settings.head_first_views, classes)
        if len(draws) < 2:
            return {"skipped": "fewer than two pictures can be read", "bad_pictures": draws.bad}
        judged = None
        if self.validation is not None:
            some = torch.randperm(len(self.validation), generator=generator)[:MAX_JUDGED].sort().values.tolist()
            judged = PairDraws.read(self.reader, self.validation, some, 0, classes)
            judged = judged if len(judged) > 1 else None
        training = self.encoder.training
        self.encoder.eval()  # an adapter's dropout
        try:
            with torch.enable_grad():
                told = self._train(parameters, draws, classes, judged, generator)
        finally:
            self.encoder.train(training)
        return {
            "rows": len(draws),
            **told,
            "seconds": time.monotonic() - started,
            "bad_pictures": draws.bad,
        }

    def _train(
        self,
        parameters: list[tuple[str, nn.Parameter]],
        draws: PairDraws,
        classes: ClassPrompts | None,
        judged: PairDraws | None,
        generator: torch.Generator,
    ) -> dict[str, Any]:
        settings, total = self.settings, self.settings.head_first_steps
        objective = copy.deepcopy(self.objective).train().requires_grad_(False)
        optimizer = self._optimizer(parameters)
        rehearse = self.rehearsal.of_heads() if self.rehearsal is not None else None
        l2sp = 0.0 if self.encoder.fresh_projections else self.l2sp_strength  # random numbers are no place to hold to
        restraint = HeadRestraint(parameters, draws, l2sp, self.distillation_strength)
        every = max(1, total // _CHECKS)
        kept: tuple[float, int, list[Tensor]] | None = None
        before: float | None = None
        top, step = -1.0, 0
        for step in range(total + 1):
            # Before the step's own forward pass: the weights that step 0 starts from are a candidate, too.
            if judged is not None and (step % every == 0 or step == total):
                value, share = self._judge(judged, classes)
                before = value if before is None else before
                if share is not None:
                    # The latest step whose accuracy is within two standard errors of the best of these many. Cross-
                    # entropy rises long before, as the heads grow surer than they should be; the step it likes best is
                    # up to six points worse (docs/log.md).
                    top = max(top, share)
                    better = share >= top - 2 * math.sqrt(top * (1 - top) / int((judged.classes >= 0).sum()))
                else:
                    better = kept is None or value < kept[0]
                    if not better and kept is not None and step - kept[1] >= _PATIENCE * every:
                        break
                if math.isfinite(value) and better:
                    kept = value, step, [parameter.detach().clone() for _, parameter in parameters]
            if step == total:
                break
            batch = draws.draw(self.largest_batch, bool(settings.class_balance), generator)
            factor = rate_factor(step, max(1, total // 30), total)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimizer.zero_grad(set_to_none=True)
            pictures, texts = draws.pictures.embed(batch.pictures), draws.texts.embed(batch.texts)
            output = call_objective(
                objective,
                pictures,
                texts,
                group_ids=batch.groups,
                logit_scale=self.encoder.logit_scale,
                logit_bias=self.encoder.logit_bias,
                progress=step / total,
            )
            loss = output["loss"] + restraint(batch, pictures, texts)
            if classes is not None:
                loss = loss + classes.loss(pictures, batch.classes, self.encoder.logit_scale)
            if rehearse is not None:
                loss = loss + rehearse()
            loss.backward()
            optimizer.step()
            self.encoder.clamp_logit_scale()
        if kept is not None:
            with torch.no_grad():
                for (_, parameter), value_kept in zip(parameters, kept[2], strict=True):
                    parameter.copy_(value_kept)
        optimizer.zero_grad(set_to_none=True)
        return {
            "steps": step,
            "kept_step": kept[1] if kept else step,
            "loss_before": before,
            "loss": kept[0] if kept else None,
        }

    def _optimizer(self, parameters: list[tuple[str, nn.Parameter]]) -> torch.optim.AdamW:
        rate = self.settings.head_first_learning_rate
        decays = [parameter for name, parameter in parameters if parameter.ndim >= 2 and not is_adapter(name)]
        rest = [parameter for name, parameter in parameters if parameter.ndim < 2 or is_adapter(name)]
        groups = [
            {"params": members, "lr": rate, "peak_lr": rate, "weight_decay": decay}
            for members, decay in ((decays, self.settings.head_first_weight_decay), (rest, 0.0))
            if members
        ]
        return torch.optim.AdamW(groups, fused=self.device.type in {"mps", "cuda"})

    @torch.no_grad()
    def _judge(self, judged: PairDraws, classes: ClassPrompts | None) -> tuple[float, float | None]:
        """The cross-entropy of the classes and the share that is right; without classes the loss of finding captions
        and pictures among all, and None."""
        pictures = judged.pictures.embed()
        labelled = judged.classes >= 0
        if classes is not None and bool(labelled.any()):
            loss = classes.loss(pictures, judged.classes, self.encoder.logit_scale)
            said = (F.normalize(pictures, dim=-1) @ classes.weights().T).argmax(-1)
            return float(loss), float((said == judged.classes)[labelled].float().mean())
        texts = judged.texts.embed(judged.first_texts)
        measure = MultiPositiveContrastiveLoss()
        return float(measure(pictures, texts, judged.groups, self.encoder.logit_scale)["loss"]), None


def begin_with_heads(trainer: Trainer, metrics: MetricsLog | None) -> None:
    """Train the heads, where the trainer has a ``HeadFirst``, and judge the model that makes as step 0.

    Of several processes the first does it. A run that goes on from a checkpoint has it behind it.
    """
    if trainer.head_first is None:
        return
    if trainer.temperature:
        trainer.encoder.set_temperature(trainer.temperature.get_temperature(), trainable=False)
    told = trainer.processes.on_first(trainer.head_first)
    trainer.processes.broadcast_state(trainer.encoder)
    trainer.state.bad_pictures |= told.pop("bad_pictures")
    trainer.state.head_first = told
    if "skipped" in told:
        trainer.console.print(f"Heads first: left out ({told['skipped']})", markup=False)
        return
    change = f", validation loss {told['loss_before']:.3f} → {told['loss']:.3f}" if told["loss"] is not None else ""
    trainer.console.print(
        f"Heads first: {told['rows']} rows, step {told['kept_step']} of {told['steps']} kept{change}, "
        f"{told['seconds']:.1f} s",
        highlight=False,
        markup=False,
    )
    if metrics is not None:
        metrics.write(step=0, **{f"head_first_{name}": value for name, value in told.items()})
    if trainer.validate is not None:
        judge(trainer, metrics)
    if metrics is not None:
        metrics.keep_latest(0)

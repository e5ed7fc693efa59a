"""Linear probing, then fine-tuning, for dual encoders.

Fine-tuning from a projection that does not fit bends the towers' features while the projection finds its place, most
where there are few rows (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution"). So the projections come first: what the frozen towers give them is computed once, only the
projections and the logit scale learn from it, and the validation rows say which step to keep. The towers then begin
with projections that fit them, and a training that only loses by going on keeps this model.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from domainclip.config.probe_settings import ProbeSettings
from domainclip.data.dataset import CLIPDataset
from domainclip.errors import ShapeError
from domainclip.events import Milestone, Number
from domainclip.losses import call_objective
from domainclip.losses.contrastive import MultiPositiveContrastiveLoss
from domainclip.models.adapters import is_adapter
from domainclip.models.dual_encoder import DualEncoder
from domainclip.models.projections import tower_projection
from domainclip.training.optim.optimizer import rate_factor
from domainclip.training.probe.draws import ClassPrompts, Draw, PairDraws
from domainclip.training.probe.features import FeatureReader
from domainclip.training.probe.progress import ProbeProgress
from domainclip.training.regularization.regularizers import distillation_penalty
from domainclip.training.regularization.rehearsal import Rehearsal
from domainclip.training.state import ProbeOutcome, TrainContext
from domainclip.training.validation import BestWeights, Evaluate
from domainclip.words import counted

MAX_ROWS = 20_000
"""More rows than that are not read: projections have learned what they can, and features of all would fill memory."""
MAX_VALIDATION_ROWS = 4096
"""Validation rows, drawn at random, that choose the step."""
_CHECKS = 30
"""How often, over all steps, the validation rows are asked."""
_PATIENCE = 6
"""Checks without a lower validation loss before it stops."""


@dataclass(frozen=True)
class Probed:
    """What a ``Probe`` leaves: its outcome, and images that could not be read with the reason."""

    outcome: ProbeOutcome
    skipped_images: dict[str, str]


class Probe:
    """Trains the projections, the logit scale and the logit bias, as far as they are trained at all, on features.

    The loss is the run's own objective over pairs of images and captions, plus, where rows have labels, the
    cross-entropy of the classifier that the class prompts make: with frozen towers that is the linear probe,
    written as sentences.

    Args:
        encoder: Whose projections they are.
        objective: Of the run; a copy of it is used and thrown away.
        data: The training rows.
        settings: Steps, rate, views.
        seed: Of everything that is drawn.
        device: Where the encoder is.
        autocast: Makes the context in which the towers run.
        batch_size: Images embedded at once.
        validation: Rows that choose the step which is kept, and may stop it; without them all steps are made.
        class_prompts: Label to sentences, as the classes are evaluated by.
        rehearsal: A further term, over all of its rows.
        l2sp_strength: What holds the towers near their start holds the projections, too.
        distillation_strength: The same.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        objective: nn.Module,
        data: CLIPDataset,
        settings: ProbeSettings,
        seed: int,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[object]],
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
        """List what is trained.

        Returns:
            Parameters of both projections, the logit scale and the logit bias by name, without what is frozen.
        """
        projections = {id(p) for tower in ("image", "text") for p in tower_projection(self.encoder, tower).trained}
        scalars = {"logit_scale", "logit_bias"}
        return [
            (name, parameter)
            for name, parameter in self.encoder.model.named_parameters()
            if parameter.requires_grad and (id(parameter) in projections or name in scalars)
        ]

    def __call__(self, progress: ProbeProgress | None = None) -> Probed:
        """Train them in place. The same numbers for the same seed, whatever the state of the global generators, which
        stays as it is.

        Args:
            progress: Where the work is saved from time to time, and taken up again.

        Returns:
            The outcome, and the images that were skipped.
        """
        started = time.monotonic()
        parameters = self.trained_parameters()
        if not any(tower_projection(self.encoder, tower).trained for tower in ("image", "text")):
            return Probed({"skipped": "both projections are locked"}, {})
        self.reader.begin(progress)
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.randperm(len(self.data), generator=generator)[:MAX_ROWS].sort().values.tolist()
        classes = ClassPrompts.read(self.reader, self.class_prompts, self.data) if self.class_prompts else None
        draws = PairDraws.read(self.reader, self.data, rows, self.settings.probe_views, classes)
        if len(draws) < 2:
            return Probed({"skipped": "fewer than two images can be read"}, draws.skipped)
        validation_rows = None
        if self.validation is not None:
            some = (
                torch.randperm(len(self.validation), generator=generator)[:MAX_VALIDATION_ROWS].sort().values.tolist()
            )
            validation_rows = PairDraws.read(self.reader, self.validation, some, 0, classes)
            validation_rows = validation_rows if len(validation_rows) > 1 else None
        training = self.encoder.training
        self.encoder.eval()  # an adapter's dropout
        try:
            with torch.enable_grad():
                outcome = self._train(parameters, draws, classes, validation_rows, generator, progress)
        finally:
            self.encoder.train(training)
        seconds = time.monotonic() - started
        return Probed({"rows": len(draws), **outcome, "seconds": seconds}, draws.skipped)

    def _train(
        self,
        parameters: list[tuple[str, nn.Parameter]],
        draws: PairDraws,
        classes: ClassPrompts | None,
        validation_rows: PairDraws | None,
        generator: torch.Generator,
        progress: ProbeProgress | None,
    ) -> ProbeOutcome:
        settings, total = self.settings, self.settings.probe_steps
        objective = copy.deepcopy(self.objective).train().requires_grad_(False)
        optimizer = self._optimizer(parameters)
        rehearse = self.rehearsal.of_projections() if self.rehearsal is not None else None
        l2sp = 0.0 if self.encoder.fresh_projections else self.l2sp_strength  # random numbers are no place to hold to
        restraint = ProbeRestraint(parameters, draws, l2sp, self.distillation_strength)
        every = max(1, total // _CHECKS)
        kept: tuple[float, int, list[Tensor]] | None = None
        before: float | None = None
        top, step, first = -1.0, 0, 0
        if progress is not None and (saved := progress.load("training")) is not None:
            with torch.no_grad():
                for (_, parameter), value_then in zip(parameters, saved["parameters"], strict=True):
                    parameter.copy_(value_then)
            optimizer.load_state_dict(saved["optimizer"])
            objective.load_state_dict(saved["objective"])
            generator.set_state(saved["generator"])
            first, before, top = saved["step"], saved["before"], saved["top"]
            if saved["kept"] is not None:
                kept = saved["kept"][0], saved["kept"][1], [each.to(self.device) for each in saved["kept"][2]]
        for step in range(first, total + 1):
            if progress is not None and progress.is_due():
                progress.save(
                    "training",
                    {
                        "step": step,
                        "parameters": [parameter.detach() for _, parameter in parameters],
                        "optimizer": optimizer.state_dict(),
                        "objective": objective.state_dict(),
                        "generator": generator.get_state(),
                        "kept": kept,
                        "before": before,
                        "top": top,
                    },
                )
            # Before the step's own forward pass: the weights that step 0 starts from are a candidate, too.
            if validation_rows is not None and (step % every == 0 or step == total):
                value, fraction = self._validate(validation_rows, classes)
                before = value if before is None else before
                if fraction is not None:
                    # The latest step whose accuracy is within two standard errors of the best of these many. Cross-
                    # entropy rises long before, as the projections grow surer than they should be; the step it likes
                    # best is up to six points worse (docs/log.md).
                    top = max(top, fraction)
                    better = fraction >= top - 2 * math.sqrt(
                        top * (1 - top) / int((validation_rows.classes >= 0).sum())
                    )
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
            images, texts = draws.images.embed(batch.images), draws.texts.embed(batch.texts)
            output = call_objective(
                objective,
                images,
                texts,
                group_ids=batch.groups,
                logit_scale=self.encoder.logit_scale,
                logit_bias=self.encoder.logit_bias,
                progress=step / total,
            )
            loss = output["loss"] + restraint(batch, images, texts)
            if classes is not None:
                loss = loss + classes.loss(images, batch.classes, self.encoder.logit_scale)
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
        rate = self.settings.probe_learning_rate
        decays = [parameter for name, parameter in parameters if parameter.ndim >= 2 and not is_adapter(name)]
        rest = [parameter for name, parameter in parameters if parameter.ndim < 2 or is_adapter(name)]
        groups = [
            {"params": members, "lr": rate, "peak_lr": rate, "weight_decay": decay}
            for members, decay in ((decays, self.settings.probe_weight_decay), (rest, 0.0))
            if members
        ]
        return torch.optim.AdamW(groups, fused=self.device.type in {"mps", "cuda"})

    @torch.no_grad()
    def _validate(self, validation_rows: PairDraws, classes: ClassPrompts | None) -> tuple[float, float | None]:
        """The cross-entropy of the classes and the fraction that is right; without classes the loss of finding captions
        and images among all, and None."""
        images = validation_rows.images.embed()
        labelled = validation_rows.classes >= 0
        if classes is not None and bool(labelled.any()):
            loss = classes.loss(images, validation_rows.classes, self.encoder.logit_scale)
            predicted = (F.normalize(images, dim=-1) @ classes.weights().T).argmax(-1)
            return float(loss), float((predicted == validation_rows.classes)[labelled].float().mean())
        texts = validation_rows.texts.embed(validation_rows.first_texts)
        measure = MultiPositiveContrastiveLoss()
        return float(measure(images, texts, validation_rows.groups, self.encoder.logit_scale)["loss"]), None


class ProbeRestraint:
    """Holds the projections near their start while they learn from features: the towers' own two terms, for them. Logit
    scale and bias are left free.

    Args:
        parameters: What is trained, by name.
        draws: The rows as features.
        l2sp: Times half the squared distance of the weights from those they have now.
        distillation: As ``FeatureDistillation`` has it, from what the projections make of ``draws`` now.
    """

    def __init__(
        self, parameters: list[tuple[str, nn.Parameter]], draws: PairDraws, l2sp: float, distillation: float
    ) -> None:
        self.l2sp, self.distillation = l2sp, distillation
        self.held: list[tuple[nn.Parameter, Tensor]] = []
        self.start: tuple[Tensor, Tensor] | None = None
        if l2sp:
            self.held = [(p, p.detach().clone()) for name, p in parameters if name not in {"logit_scale", "logit_bias"}]
        if distillation:
            with torch.no_grad():
                self.start = draws.images.embed(), draws.texts.embed()

    def __call__(self, batch: Draw, images: Float[Tensor, "n dim"], texts: Float[Tensor, "n dim"]) -> Float[Tensor, ""]:
        """Both terms together.

        Args:
            batch: The rows of the step.
            images: Their embeddings ``[n, dim]`` now.
            texts: The same of their captions.

        Returns:
            A single number in the loss's units.
        """
        total = images.new_zeros(())
        for parameter, start in self.held:
            total = total + 0.5 * self.l2sp * (parameter - start).square().sum()
        if self.start is not None:
            pairs = (images, self.start[0][batch.images]), (texts, self.start[1][batch.texts])
            total = total + distillation_penalty(self.distillation, *pairs)
        return total


class ProbeStages:
    """The projections before the first step of a training and once more after its last.

    During fine-tuning the projections learn at the towers' rate from a batch at a time, and end behind the features
    they read: a linear probe on the trained tower finds two points that its own projection does not. Fitting the last
    layer anew on the finished features is the second stage of "decoupled" training (Kang et al. 2020, "Decoupling
    Representation and Classifier for Long-Tailed Recognition"; Kirichenko et al. 2023, "Last Layer Re-Training is
    Sufficient for Robustness to Spurious Correlations").

    Args:
        context: Of the training.
        encoder: In training.
        first: Trains the projections before the first step, or None.
        last: Trains them after the last step, or None.
        evaluate: Validates the present weights; without it nothing is done after the last step.
        best: Where the weights go that the run ends with.
        progress: Makes, for a stage, the place where its work is saved.
    """

    def __init__(
        self,
        context: TrainContext,
        encoder: DualEncoder,
        first: Probe | None,
        last: Probe | None,
        evaluate: Evaluate | None,
        best: BestWeights,
        progress: Callable[[str], ProbeProgress],
    ) -> None:
        self.context, self.encoder, self.first, self.last = context, encoder, first, last
        self.evaluate, self.best, self.progress = evaluate, best, progress
        self.begun: ProbeProgress | None = None
        """Of the probe before the first step, in the process that has made it."""

    def begin(self) -> bool:
        """Train the projections before the first step. A run that goes on from a checkpoint has it behind it.

        Of several processes the first does it.

        Returns:
            Whether there is now a model to be validated as step 0.
        """
        context = self.context
        if self.first is None:
            return False
        probe = self.first
        self.begun = self.progress("probe_first") if context.processes.is_first else None
        with context.emitter.phase("probe_first"):
            probed = context.processes.on_first(lambda: probe(self.begun))
        context.processes.broadcast_state(self.encoder)
        outcome = probed.outcome
        context.state.skipped_images |= probed.skipped_images
        context.state.probe_first = outcome
        if "skipped" in outcome:
            self._report("probe_first", f"Probe first: left out ({outcome['skipped']})")
            return False
        change = ""
        if outcome["loss"] is not None:
            change = f", validation loss {outcome['loss_before']:.3f} → {outcome['loss']:.3f}"
        self._report(
            "probe_first",
            f"Probe first: {counted(outcome['rows'], 'row')}, step {outcome['kept_step']} of {outcome['steps']} "
            f"kept{change}, "
            f"{outcome['seconds']:.1f} s",
            _figures("probe", outcome),
        )
        return True

    def end(self) -> None:
        """Train the projections on the towers as the last step has left them. The model this makes is the result if
        validation rows are no worse with it than with the best before, and forgotten otherwise.

        Of several processes the first does it. A run resumed after its last step does it again, with the same outcome.
        """
        context, state = self.context, self.context.state
        if self.last is None or self.evaluate is None or not state.step:
            return
        last, evaluate = self.last, self.evaluate

        def fit() -> dict[str, object]:
            with context.emitter.phase("probe_last"):
                self._fit(last, evaluate)
            return state.parts("best", "best_files", "probe_last", "skipped_images", "warnings")

        state.load_state_dict(context.processes.on_first(fit))
        context.processes.broadcast_state(self.encoder)

    def _fit(self, probe: Probe, evaluate: Evaluate) -> None:
        state = self.context.state
        parameters = [parameter for _, parameter in probe.trained_parameters()]
        before = [parameter.detach().clone() for parameter in parameters]
        probed = probe(self.progress("probe_last"))
        outcome = probed.outcome
        state.skipped_images |= probed.skipped_images
        state.probe_last = outcome
        if "skipped" in outcome:
            self._report("probe_last", f"Probe last: left out ({outcome['skipped']})")
            return
        kept, change = False, "its scores are not finite"
        try:
            result = evaluate()
        except ShapeError:  # "… contain NaN": what was trained before stays
            pass
        else:
            outcome["validation"] = result.value
            change = f"validation {result.primary} {result.value:.4f}"
            if state.best is None or result.sign * result.value >= result.sign * state.best["value"]:
                kept = self.best.keep(result)
        outcome["kept"] = kept
        if not kept:
            with torch.no_grad():
                for parameter, value in zip(parameters, before, strict=True):
                    parameter.copy_(value)
        self._report(
            "probe_last",
            f"Probe last: {counted(outcome['rows'], 'row')}, "
            f"{change}{', kept' if kept else ': the weights before stay'}, "
            f"{outcome['seconds']:.1f} s",
            _figures("probe_last", outcome),
        )

    def _report(self, name: str, text: str, values: Mapping[str, Number] | None = None) -> None:
        self.context.emitter.emit(
            Milestone(name=name, step=self.context.state.step, text=text, values=dict(values or {}))
        )


def _figures(name: str, outcome: ProbeOutcome) -> dict[str, Number]:
    return {f"{name}_{key}": value for key, value in outcome.items() if value is None or isinstance(value, int | float)}

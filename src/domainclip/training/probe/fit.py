"""Fitting the projections of frozen towers to rows that are read as features."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from domainclip.losses import call_objective
from domainclip.models.adapters import is_adapter
from domainclip.models.dual_encoder import DualEncoder
from domainclip.training.optim.optimizer import rate_factor
from domainclip.training.probe.held_out import HeldOut
from domainclip.training.probe.rows import ClassPrompts, Draw, ProbeRows
from domainclip.training.regularization.regularizers import distillation_penalty
from domainclip.waiting import Progress

BATCH = 256
"""Rows of a step. Batches of 1,024 took four times as long and were 0 to 4 points worse (docs/log.md)."""
WEIGHT_DECAY = 0.1
"""Of the projections' matrices. Ten times more or less makes no difference (docs/log.md)."""
_LARGEST_SCORED = 2048
"""Rows among which captions are looked for, where there are no classes."""


@dataclass(frozen=True)
class Effort:
    """How closely a fit follows its rows.

    Attributes:
        steps: Of ``BATCH`` rows.
        learning_rate: At its peak.
        balanced: Whether a row counts one over the root of its class's rows.
    """

    steps: int
    learning_rate: float
    balanced: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The effort as a report holds it.

        Returns:
            Plain values by name.
        """
        return asdict(self)


class ProjectionFit:
    """Fits the projections, the logit scale and the logit bias, as far as they are trained at all.

    The loss is the run's own objective over pairs of images and captions, plus, where rows have labels, the
    cross-entropy of the classifier that the class prompts make: with frozen towers that is multinomial logistic
    regression, written as sentences.

    Args:
        encoder: Whose projections they are.
        objective: Of the run; copies of it are used and thrown away.
        rows: As features of the towers as they are now.
        classes: Whose prompts are told apart; None where there are none.
        parameters: What is fitted, by name.
        initial: The values from which every fit begins.
        seed: Of the batches.
        l2sp: What holds the towers near their start holds the projections, too.
        distillation: The same.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        objective: nn.Module,
        rows: ProbeRows,
        classes: ClassPrompts | None,
        parameters: list[tuple[str, nn.Parameter]],
        initial: list[Tensor],
        seed: int,
        l2sp: float = 0.0,
        distillation: float = 0.0,
    ) -> None:
        self.encoder, self.objective, self.rows, self.classes = encoder, objective, rows, classes
        self.parameters, self.initial, self.seed = parameters, initial, seed
        self.reset()
        self.restraint = ProbeRestraint(parameters, rows, l2sp, distillation)

    def reset(self) -> None:
        """Put the initial values back."""
        self.put(self.initial)

    @torch.no_grad()
    def put(self, values: list[Tensor]) -> None:
        """Put values into what is fitted.

        Args:
            values: As ``values`` gave them.
        """
        for (_, parameter), value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def values(self) -> list[Tensor]:
        """Copy what is fitted.

        Returns:
            The values, in the order of ``parameters``.
        """
        return [parameter.detach().clone() for _, parameter in self.parameters]

    def __call__(
        self,
        rows: Int[Tensor, " some"],
        effort: Effort,
        rehearse: Callable[[], Tensor] | None = None,
        check: Callable[[], None] | None = None,
    ) -> None:
        """Fit in place, from the initial values. The same numbers for the same seed, whatever the state of the global
        generators, which stays as it is.

        Args:
            rows: What is fitted to, on the CPU.
            effort: How closely.
            rehearse: A further term.
            check: Called at every step: it may raise, to stop.
        """
        self.reset()
        objective = copy.deepcopy(self.objective).train().requires_grad_(False)
        optimizer = self._optimizer(effort.learning_rate)
        weights = self._class_weights(rows) if effort.balanced else None
        generator = torch.Generator().manual_seed(self.seed)
        batches = self.rows.batches(rows, BATCH, effort.steps, generator)
        training = self.encoder.training
        self.encoder.eval()  # an adapter's dropout
        with torch.enable_grad(), Progress(effort.steps, "Fitting projections") as progress:
            for step, batch in enumerate(batches):
                if check is not None:
                    check()
                factor = rate_factor(step, max(1, effort.steps // 30), effort.steps)
                for group in optimizer.param_groups:
                    group["lr"] = effort.learning_rate * factor
                optimizer.zero_grad(set_to_none=True)
                distinct, which = batch.texts.unique(return_inverse=True)  # captions repeat, and equal ones cost once
                images, texts = self.rows.images.embed(batch.images), self.rows.texts.embed(distinct)[which]
                output = call_objective(
                    objective,
                    images,
                    texts,
                    group_ids=batch.groups,
                    logit_scale=self.encoder.logit_scale,
                    logit_bias=self.encoder.logit_bias,
                    progress=step / effort.steps,
                )
                loss = output["loss"] + self.restraint(batch, images, texts)
                if self.classes is not None:
                    loss = loss + self.classes.loss(images, batch.classes, self.encoder.logit_scale, weights)
                if rehearse is not None:
                    loss = loss + rehearse()
                loss.backward()
                optimizer.step()
                self.encoder.clamp_logit_scale()
                progress.at(step + 1)
        optimizer.zero_grad(set_to_none=True)
        self.encoder.train(training)

    def _optimizer(self, rate: float) -> torch.optim.AdamW:
        decays = [parameter for name, parameter in self.parameters if parameter.ndim >= 2 and not is_adapter(name)]
        rest = [parameter for name, parameter in self.parameters if parameter.ndim < 2 or is_adapter(name)]
        groups = [
            {"params": members, "weight_decay": decay}
            for members, decay in ((decays, WEIGHT_DECAY), (rest, 0.0))
            if members
        ]
        fused = self.parameters[0][1].device.type in {"mps", "cuda"}
        return torch.optim.AdamW(groups, lr=rate, fused=fused)

    def _class_weights(self, rows: Tensor) -> Float[Tensor, " classes"] | None:
        """One over the root of each class's rows, of mean 1 over the rows."""
        if self.classes is None:
            return None
        classes = self.rows.classes[rows.to(self.rows.classes.device)]
        classes = classes[classes >= 0]
        weights = torch.bincount(classes, minlength=len(self.classes.labels)).clamp(min=1).double().rsqrt()
        return (weights / weights[classes].mean()).float() if len(classes) else None

    @torch.no_grad()
    def held_out(self, rows: Int[Tensor, " some"]) -> HeldOut:
        """What the projections as they are now say of rows.

        Args:
            rows: Which, on the CPU.

        Returns:
            For each row with a label the classes; where there are no classes, for each row all rows' first captions,
            then for each caption all rows.
        """
        here = rows.to(self.rows.classes.device)
        if self.classes is not None and self.rows.labelled:
            here = here[self.rows.classes[here] >= 0]
            logits = self.classes.logits(self.rows.images.embed(here), self.encoder.logit_scale).cpu()
            return HeldOut(logits, F.one_hot(self.rows.classes[here].cpu(), logits.shape[1]).bool())
        here = here[:_LARGEST_SCORED]
        images = F.normalize(self.rows.images.embed(here), dim=-1)
        texts = F.normalize(self.rows.texts.embed(self.rows.first_texts[here]), dim=-1)
        logits = (images @ texts.T * self.encoder.logit_scale.exp()).cpu()
        groups = self.rows.groups[here].cpu()
        right = groups[:, None] == groups[None]
        return HeldOut(torch.cat([logits, logits.T]), torch.cat([right, right]))


class ProbeRestraint:
    """Holds the projections near their start while they learn from features: the towers' own two terms, for them. Logit
    scale and bias are left free.

    Args:
        parameters: What is trained, by name.
        rows: As features.
        l2sp: Times half the squared distance of the weights from those they have now.
        distillation: As ``FeatureDistillation`` has it, from what the projections make of ``rows`` now.
    """

    def __init__(
        self, parameters: list[tuple[str, nn.Parameter]], rows: ProbeRows, l2sp: float, distillation: float
    ) -> None:
        self.l2sp, self.distillation = l2sp, distillation
        self.held: list[tuple[nn.Parameter, Tensor]] = []
        self.start: tuple[Tensor, Tensor] | None = None
        if l2sp:
            self.held = [(p, p.detach().clone()) for name, p in parameters if name not in {"logit_scale", "logit_bias"}]
        if distillation:
            with torch.no_grad():
                self.start = rows.images.embed(), rows.texts.embed()

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

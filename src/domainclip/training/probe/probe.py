"""Linear probing for dual encoders: what the frozen towers give the projections is computed once, and only the
projections and the logit scale learn from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from domainclip.config.probe_settings import ProbeSettings
from domainclip.data.dataset import CLIPDataset
from domainclip.models.dual_encoder import DualEncoder
from domainclip.models.projections import tower_projection
from domainclip.training.probe.choice import Choice, choose
from domainclip.training.probe.features import FeatureReader
from domainclip.training.probe.fit import Effort, ProjectionFit
from domainclip.training.probe.progress import ProbeProgress
from domainclip.training.probe.rows import ClassPrompts, ProbeRows
from domainclip.training.regularization.rehearsal import Rehearsal

MAX_ROWS = 20_000
"""More training rows than that are not read: projections have learned what they can, and features of all would fill
memory."""
MAX_VALIDATION_ROWS = 4096


class Probe:
    """Reads the features of a run's rows, and fits the projections to them.

    Args:
        encoder: Whose projections they are; every fit begins with the values they have now.
        objective: Of the run; copies of it are used and thrown away.
        data: The training rows.
        validation: Rows that models are compared on.
        settings: Steps, rate and balance, where they are set.
        seed: Of everything that is drawn.
        device: Where the encoder is.
        autocast: Makes the context in which the towers run.
        batch_size: Images embedded at once.
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
        validation: CLIPDataset | None,
        settings: ProbeSettings,
        seed: int,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[object]],
        batch_size: int,
        class_prompts: Mapping[str, Sequence[str]] | None = None,
        rehearsal: Rehearsal | None = None,
        l2sp_strength: float = 0.0,
        distillation_strength: float = 0.0,
    ) -> None:
        self.encoder, self.objective, self.settings = encoder, objective, settings
        self.data, self.validation, self.class_prompts = data, validation, class_prompts or {}
        self.seed, self.rehearsal = seed, rehearsal
        # Random numbers are no place to hold to.
        self.l2sp_strength = 0.0 if encoder.fresh_projections else l2sp_strength
        self.distillation_strength = distillation_strength
        self.reader = FeatureReader(encoder, device, autocast, batch_size)
        self.initial = [parameter.detach().clone() for _, parameter in self.trained_parameters()]
        compared = settings.compares_towers and validation is not None
        self.initial_towers = self.towers() if compared else {}

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

    def towers(self) -> dict[str, Tensor]:
        """Copy what training changes beside the projections.

        Returns:
            Parameters and floating-point buffers by name, on the CPU.
        """
        fitted = {name for name, _ in self.trained_parameters()}
        return {name: value.detach().to("cpu", copy=True) for name, value in self._moving() if name not in fitted}

    def _moving(self) -> Iterator[tuple[str, Tensor]]:
        model = self.encoder.model
        yield from ((name, value) for name, value in model.named_parameters() if value.requires_grad)
        yield from ((name, value) for name, value in model.named_buffers() if value.is_floating_point())

    @torch.no_grad()
    def set_towers(self, trained: Mapping[str, Tensor], fraction: float) -> None:
        """Put (1 − α) θ₀ + α θ₁ into the towers, θ₀ being the weights that the training began with (Wortsman et al.
        2022, "Robust fine-tuning of zero-shot models").

        Args:
            trained: θ₁, as ``towers`` gave them.
            fraction: α; 1 gives θ₁ to the last bit.
        """
        for name, value in self._moving():
            if name in trained:
                value.copy_((1 - fraction) * self.initial_towers[name] + fraction * trained[name])

    def read(self, progress: ProbeProgress | None = None) -> ProbeReading | str:
        """Read the features of the towers as they are now.

        Args:
            progress: Where the work is saved from time to time, and taken up again.

        Returns:
            What to fit to; or why there is nothing to fit.
        """
        if not any(tower_projection(self.encoder, tower).trained for tower in ("image", "text")):
            return "both projections are locked"
        self.reader.begin(progress)
        generator = torch.Generator().manual_seed(self.seed)
        training = self.data, _drawn(len(self.data), MAX_ROWS, generator)
        validation = None
        if self.validation is not None:
            validation = self.validation, _drawn(len(self.validation), MAX_VALIDATION_ROWS, generator)
        classes = ClassPrompts.read(self.reader, self.class_prompts, self.data) if self.class_prompts else None
        read = ProbeRows.read(self.reader, training, validation, classes)
        if int((~read.validation).sum()) < 2:
            return "fewer than two images can be read"
        fit = ProjectionFit(
            self.encoder,
            self.objective,
            read,
            classes,
            self.trained_parameters(),
            self.initial,
            self.seed,
            self.l2sp_strength,
            self.distillation_strength,
        )
        rehearse = self.rehearsal.of_projections() if self.rehearsal is not None else None
        return ProbeReading(self, fit, read, rehearse, progress)


@dataclass(frozen=True)
class ProbeReading:
    """Rows read as features of the towers as they were then."""

    probe: Probe
    fit_projections: ProjectionFit
    rows: ProbeRows
    rehearse: Callable[[], Tensor] | None
    progress: ProbeProgress | None

    @property
    def training(self) -> Int[Tensor, " some"]:
        """The training rows that can be read."""
        return (~self.rows.validation).nonzero().squeeze(1)

    @property
    def validation(self) -> Int[Tensor, " some"]:
        """The validation rows that can be read."""
        return self.rows.validation.nonzero().squeeze(1)

    def choose(self) -> Choice:
        """Choose the effort, by training and validation rows together. Rehearsal has no part in it.

        Returns:
            The choice, taken from ``progress`` where it was made before.
        """
        progress = self.progress
        if progress is not None and (saved := progress.load("choice")) is not None:
            return Choice(**{**saved, "effort": Effort(**saved["effort"])})
        check = progress.check if progress is not None else None
        found = choose(self.fit_projections, self.rows, self.probe.settings, self.probe.seed, check)
        if progress is not None and progress.is_saved:
            progress.save("choice", {**vars(found), "effort": found.effort.to_dict()})
        return found

    def fit(self, rows: Int[Tensor, " some"], effort: Effort) -> None:
        """Fit the projections in place.

        Args:
            rows: To which.
            effort: How closely.
        """
        self.fit_projections(rows, effort, self.rehearse, self.progress.check if self.progress is not None else None)


def _drawn(rows: int, most: int, generator: torch.Generator) -> list[int]:
    return sorted(torch.randperm(rows, generator=generator)[:most].tolist())

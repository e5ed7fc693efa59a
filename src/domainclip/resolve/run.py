"""What is left once recipe, domain and facts have been brought together: typed groups that go to who needs them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

from domainclip.config import (
    BatchScheduleSettings,
    CLIPFinetuningConfig,
    DataSettings,
    EvaluationSettings,
    FrozenConfig,
    LossSettings,
    MemorySettings,
    ModelSettings,
    ObjectiveSettings,
    OptimizerSettings,
    ProbeSettings,
    ReferenceSettings,
    ResolutionSettings,
    RunSettings,
)
from domainclip.config.tracking_settings import TrackingSettings
from domainclip.domains.domain import DomainConfig
from domainclip.domains.recipes import with_models_domain
from domainclip.resolve.facts import Decision


@dataclass(frozen=True)
class ResolvedInference:
    """What loading, evaluating, comparing and serving a model need.

    Attributes:
        recipe: the whole recipe; what it leaves unset of the evaluation is as the domain says.
        domain: the content of its domain, with the recipe's own steps for images and texts in place of the domain's.
        note: a line that says where the domain comes from, where the recipe does not name it; else None.
    """

    recipe: CLIPFinetuningConfig
    domain: DomainConfig
    note: str | None = None

    @cached_property
    def model(self) -> ModelSettings:
        """Which model."""
        return self.recipe.group(ModelSettings)

    @cached_property
    def data(self) -> DataSettings:
        """Which rows, and how they are prepared."""
        return self.recipe.group(DataSettings)

    @cached_property
    def evaluation(self) -> EvaluationSettings:
        """What is evaluated, and by which prompts."""
        return self.recipe.group(EvaluationSettings)

    @cached_property
    def memory(self) -> MemorySettings:
        """Device, precision, and how much is held at once."""
        return self.recipe.group(MemorySettings)

    @cached_property
    def objective(self) -> ObjectiveSettings:
        """What the loss is built from."""
        return objective_of(self.recipe, self.domain)

    def on(self, data_path: str) -> Self:
        """The same for other data.

        Args:
            data_path: a table, a directory, or a Hugging Face data set.

        Returns:
            A copy in which the recipe names these data.
        """
        recipe = self.recipe.model_copy(update={"data_path": data_path})
        return type(self)(recipe, self.domain, self.note)


@dataclass(frozen=True)
class ResolvedRun(ResolvedInference):
    """A training run: nothing is unset any more.

    Attributes:
        recipe: the frozen recipe that is saved with the run.
        decisions: what nobody had set, each with its reason.
        may_freeze_batch_norm: whether batch norm may be frozen where a batch does not fit into memory whole; False
            where the user has said what becomes of it.
    """

    recipe: FrozenConfig
    decisions: tuple[Decision, ...] = ()
    may_freeze_batch_norm: bool = False

    @cached_property
    def optim(self) -> OptimizerSettings:
        """Rates, length, what is trained, adapters."""
        return self.recipe.group(OptimizerSettings)

    @cached_property
    def probe(self) -> ProbeSettings:
        """Linear probing before and after the towers."""
        return self.recipe.group(ProbeSettings)

    @cached_property
    def references(self) -> ReferenceSettings:
        """Reference sets, and what keeps the model near its initial weights."""
        return self.recipe.group(ReferenceSettings)

    @cached_property
    def batch(self) -> BatchScheduleSettings:
        """Whether the contrastive batch grows."""
        return self.recipe.group(BatchScheduleSettings)

    @cached_property
    def resolution(self) -> ResolutionSettings:
        """The resolutions of the training images."""
        return self.recipe.group(ResolutionSettings)

    @cached_property
    def record(self) -> RunSettings:
        """Where the run is written down, and how often."""
        return self.recipe.group(RunSettings)

    @cached_property
    def tracking(self) -> TrackingSettings:
        """Who is told of the run meanwhile."""
        return self.recipe.group(TrackingSettings)


def objective_of(settings: LossSettings, domain: DomainConfig) -> ObjectiveSettings:
    """What an objective is built from.

    Args:
        settings: a recipe, or its group of the loss.
        domain: whose family says which of the domains' objectives holds.

    Returns:
        The group of the loss with the family.
    """
    found = settings.group(LossSettings)
    return ObjectiveSettings.model_construct(
        _fields_set=set(found.model_fields_set), **found.__dict__, family=domain.family
    ).group(ObjectiveSettings)


def resolve_for_inference(config: CLIPFinetuningConfig, domain: DomainConfig | None = None) -> ResolvedInference:
    """Bring recipe and domain together for a model that is used and not trained.

    Where the user named no domain, it is the one that the model was trained in. What the recipe leaves unset of the
    evaluation, the prompts among it, is as the domain says.

    Args:
        config: the recipe as the user gave it.
        domain: the domain that ``config`` names, where it has been read already.

    Returns:
        Recipe, domain, and their groups.

    Raises:
        ConfigurationError: a domain's file is gone or wrong.
    """
    note = None
    if domain is None:
        config, domain, note = with_models_domain(config)
    preset = {key: value for key, value in domain.recipe_values().items() if key in EvaluationSettings.model_fields}
    if domain.prompts.templates:
        preset["prompt_templates"] = domain.prompts.templates
    # Checked, so that nested values have their types; what the domain says does not count as set.
    checked = EvaluationSettings(**preset)
    unset = {key: getattr(checked, key) for key in preset if not config.is_set(key)}
    recipe = config.model_copy()
    recipe.__dict__.update(unset)
    return ResolvedInference(recipe, domain.with_steps(config.image_preprocessing, config.text_preprocessing), note)

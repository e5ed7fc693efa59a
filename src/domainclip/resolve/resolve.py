"""Deciding what the user left unset, each decision with its reason.

Reads plain facts about model, data and device, so that it runs (and is tested) without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from domainclip.config.recipe import CLIPFinetuningConfig, FrozenConfig
from domainclip.domains.domain import DomainConfig
from domainclip.domains.files import load_domain
from domainclip.errors import ConfigurationError
from domainclip.resolve.draft import Draft
from domainclip.resolve.facts import DataFacts, Decision, ModelFacts
from domainclip.resolve.objective import check_adapters, resolve_objective, resolve_rates
from domainclip.resolve.resolution import ResolutionRule
from domainclip.resolve.run import ResolvedRun
from domainclip.resolve.schedule import (
    resolve_batch,
    resolve_batch_schedule,
    resolve_length,
    resolve_resolutions,
    resolve_small_data,
    resolve_steps,
)
from domainclip.resolve.stages import resolve_batch_norm, resolve_last_fit, resolve_probe, resolve_reference_sets


def resolve(
    config: CLIPFinetuningConfig,
    model: ModelFacts,
    data: DataFacts,
    *,
    domain: DomainConfig | None = None,
    choose_resolution: Callable[[FrozenConfig], Sequence[Decision]] | None = None,
) -> ResolvedRun:
    """Decide what the user left unset.

    Args:
        config: the recipe as the user gave it.
        model: what the model says of itself.
        data: what the training rows say of themselves.
        domain: the domain that ``config`` names, where it has been read already.
        choose_resolution: decides ``image_resolution``, with ``resolution_schedule`` or without, for the recipe as it
            is without what depends on that: batch, precision and the rest as the run will have them, and the model's
            own resolution.

    Returns:
        The run: a frozen recipe without unset values, the decisions that made it, and the domain's content.

    Raises:
        ConfigurationError: a set value does not fit the model or the data, or the domain's file is wrong.
    """
    domain = domain or load_domain(config.domain)
    draft = Draft.of(config, domain)
    values = draft.values
    with_own_steps = domain.with_steps(config.image_preprocessing, config.text_preprocessing)
    _resolve_texts(draft, config, domain)

    rule = model.resolutions or ResolutionRule(model.native_resolution)
    schedule = values["resolution_schedule"]
    _resolve_inputs(draft, config, model)
    _check_resolution(values["image_resolution"], model, rule)
    resolve_probe(draft, data, model.fresh_projections)
    resolve_resolutions(draft, rule)
    if values["batch_size_schedule"] is not None:
        resolve_batch_schedule(draft, data.train_rows)
    else:
        resolve_batch(draft, data)
    resolve_batch_norm(draft, model.image_tower_kind, data.processes)
    resolve_objective(draft, model, data, domain.family)
    check_adapters(values, model)
    resolve_reference_sets(draft, model.fresh_projections)
    resolve_last_fit(draft, data)
    resolve_length(draft, data.train_rows)
    resolve_rates(draft, model)
    resolve_steps(draft, data)
    resolve_small_data(draft, data.train_rows, model.image_tower_kind)
    _resolve_augmentation(draft, data, with_own_steps.images.allowed_turns)
    if choose_resolution is not None:
        chosen = choose_resolution(CLIPFinetuningConfig(**values).frozen())
        values["resolution_schedule"] = schedule  # of the domain, now for the resolution that was chosen
        for decision in reversed(chosen):  # each goes before all others
            draft.choose(decision)
        _check_resolution(values["image_resolution"], model, rule)
        resolve_resolutions(draft, rule)
    _resolve_reading(draft, data)
    return ResolvedRun(
        CLIPFinetuningConfig(**values).frozen(),
        with_own_steps,
        decisions=tuple(draft.decisions),
        may_freeze_batch_norm="freeze_batch_norm" not in draft.set_keys,
    )


def _resolve_texts(draft: Draft, config: CLIPFinetuningConfig, domain: DomainConfig) -> None:
    values = draft.values
    if config.text_preprocessing is not None:  # with its glossary's content: a run needs no other file to be repeated
        values["text_preprocessing"] = config.text_preprocessing.self_contained().model_dump()
    if "prompt_templates" not in draft.set_keys and domain.prompts.templates:
        draft.decide("prompt_templates", domain.prompts.templates, f"prompt pack of the domain {domain.name}")


def _resolve_inputs(draft: Draft, config: CLIPFinetuningConfig, model: ModelFacts) -> None:
    if "image_resolution" not in draft.set_keys:
        draft.decide("image_resolution", model.native_resolution, "what the model's own image processor says")
    if "max_sequence_length" not in draft.set_keys:
        if model.fixed_text_length:
            draft.decide(
                "max_sequence_length",
                model.text_length,
                "the text tower reads its last position: full length only",
            )
        else:
            draft.decide("max_sequence_length", min(77, model.text_length), "min(77, the text tower's limit)")
    elif model.fixed_text_length and config.max_sequence_length != model.text_length:
        raise ConfigurationError(
            f"max_sequence_length={config.max_sequence_length} does not fit: this text tower reads its last position "
            f"and needs its full {model.text_length} tokens. Leave the key out"
        )
    elif config.max_sequence_length > model.text_length:
        raise ConfigurationError(
            f"max_sequence_length={config.max_sequence_length} is more than the text tower's {model.text_length}"
        )


def _check_resolution(resolution: int, model: ModelFacts, rule: ResolutionRule) -> None:
    if resolution != model.native_resolution and (problem := rule.problem(resolution)):
        raise ConfigurationError(f"image_resolution={resolution} does not fit: {problem}")


def _resolve_augmentation(draft: Draft, data: DataFacts, allowed: Sequence[str] | None) -> None:
    """What the captions say overrules the domain's preset (mirrored, they would be wrong), but not the user. Where rows
    of one label are each other's positives, sides are not told apart anyway."""
    values = draft.values
    if not values["augment_images"]:
        return
    by_caption = values["positives"] != "label"
    left_right, heights = by_caption and data.names_left_right, by_caption and data.names_heights
    reasons = {
        "horizontal_flip": "captions say left or right" if left_right else None,
        "vertical_flip": "captions say upper, lower, top or bottom" if heights else None,
    }
    reasons["rotate90"] = reasons["horizontal_flip"] or reasons["vertical_flip"]
    for key, reason in reasons.items():
        if reason and key not in draft.set_keys and (values[key] or key not in draft.given):
            draft.decide(key, False, reason)
    if "horizontal_flip" not in draft.given and not left_right:
        why = "no caption says left or right" if by_caption else "rows of one label are matches, whatever their sides"
        draft.decide("horizontal_flip", True, why)
    if allowed is None:
        return
    turns = {"horizontal_flip": "horizontal", "vertical_flip": "vertical", "rotate90": "quarter_turns"}
    for key, turn in turns.items():
        if turn in allowed or not values[key]:
            continue
        if key in draft.set_keys:
            raise ConfigurationError(
                f"{key}=true does not go with allowed_turns={list(allowed)} of the images' preprocessing: leave "
                f"{key} out, or allow {turn!r} there"
            )
        draft.decide(key, False, "allowed_turns of the images' preprocessing forbids it")


def _resolve_reading(draft: Draft, data: DataFacts) -> None:
    values = draft.values
    if "num_workers" in draft.given:
        return
    resolution = max([values["image_resolution"], *(values["training_resolutions"] or {})])
    augmented = values["augment_images"]
    # As evaluation shows them: those of validation and test, and of the training rows where they are mined or probed.
    again = values["hard_negative_batch_fraction"] or values["probe_first"] or values["probe_last"]
    plain = data.validation_rows + data.test_rows + (data.train_rows if augmented and again else 0)
    kept = 3 * resolution**2 * (data.train_rows * (1.3 if augmented else 1.0) + plain)
    if kept <= values["image_cache_mb"] * 2**20:
        draft.decide("num_workers", 0, "all decoded images fit into image_cache_mb: later epochs read memory")
    else:
        draft.decide("num_workers", max(0, min(4, data.cores - 1)), f"{data.cores} cores, one left for training")

"""Deciding what the user left unset, each decision with its reason.

Reads plain facts about model, data and device, so that it runs (and is tested) without torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from domainclip.config.recipe import CLIPFinetuningConfig, FrozenConfig
from domainclip.domains.domain import DomainConfig
from domainclip.domains.files import load_domain
from domainclip.errors import ConfigurationError
from domainclip.resolve.batch_norm import resolve_batch_norm
from domainclip.resolve.facts import DataFacts, Decision, ModelFacts
from domainclip.resolve.length import automatic_batch, resolve_early_end, resolve_length, resolve_small_data
from domainclip.resolve.probe import resolve_probe
from domainclip.resolve.reference_sets import resolve_reference_sets
from domainclip.resolve.resolution import ResolutionRule
from domainclip.resolve.run import ResolvedRun
from domainclip.resolve.steps import resolve_batch_schedule, resolve_resolutions, resolved_steps

DUPLICATE_FRACTION = 0.01
"""Above this fraction of rows whose caption is not theirs alone, plain contrastive targets are wrong too often."""


def resolve(
    config: CLIPFinetuningConfig, model: ModelFacts, data: DataFacts, *, domain: DomainConfig | None = None
) -> ResolvedRun:
    """Decide what the user left unset.

    Args:
        config: the recipe as the user gave it.
        model: what the model says of itself.
        data: what the training rows say of themselves.
        domain: the domain that ``config`` names, where it has been read already.

    Returns:
        The run: a frozen recipe without unset values, the decisions that made it, and the domain's content.

    Raises:
        ConfigurationError: a set value does not fit the model or the data, or the domain's file is wrong.
    """
    values = config.model_dump() | {"auto_resolution": False, "wanted_throughput": None}  # resolved before
    decisions: list[Decision] = []

    def decide(key: str, value: Any, reason: str) -> None:
        values[key] = value
        decisions[:] = [decision for decision in decisions if decision.key != key]  # facts overrule a preset
        decisions.append(Decision(key, value, reason))

    set_keys = {key for key in type(config).model_fields if config.is_set(key)}
    domain = domain or load_domain(config.domain)
    preset, reasons = domain.recipe_values(), domain.recipe_reasons()
    for key, value in preset.items():
        if key not in set_keys:
            decide(key, value, f"preset of the domain {domain.name}" + (f": {reasons[key]}" if reasons[key] else ""))
    given = set_keys | set(preset)
    with_own_steps = domain.with_steps(config.image_preprocessing, config.text_preprocessing)
    _resolve_texts(values, config, domain, set_keys, decide)

    _resolve_inputs(config, model, set_keys, decide)
    resolve_resolutions(values, model.resolutions or ResolutionRule(model.native_resolution), set_keys, decide)
    if values["batch_size_schedule"] is not None:
        resolve_batch_schedule(values, data.train_rows, set_keys, decide)
    else:
        _resolve_batch(values, data, set_keys, decide)
    resolve_probe(values, data, model.fresh_projections, given, decide)
    resolve_batch_norm(values, model.image_tower_kind, data.processes, set_keys, decide)
    _resolve_objective(values, model, data, domain.family, given, decide)
    _resolve_adapters(values, model)
    resolve_reference_sets(values, model.fresh_projections, decide)
    resolve_length(values, data.train_rows, given, decide)
    _resolve_rates(values, model, set_keys, given, decide)
    _resolve_schedule(values, data, given, decide)
    validations = resolved_steps(values, data.train_rows) // min(
        values["eval_steps"], steps_per_epoch(values, data.train_rows)
    )
    resolve_small_data(values, data.train_rows, model.image_tower_kind, given, decide)
    resolve_early_end(values, validations, given, decide)
    _resolve_augmentation(values, data, set_keys, given, with_own_steps.images.allowed_turns, decide)
    _resolve_reading(values, data, given, decide)
    return ResolvedRun(CLIPFinetuningConfig(**values).frozen(), with_own_steps, decisions=tuple(decisions))


def contrastive_batch(values: dict[str, Any] | FrozenConfig) -> int:
    """Pairs that share one loss: ``batch_size × gradient_accumulation_steps``."""
    if isinstance(values, FrozenConfig):
        values = values.__dict__
    return int(values["batch_size"]) * int(values["gradient_accumulation_steps"])


def steps_per_epoch(values: dict[str, Any] | FrozenConfig, rows: int) -> int:
    """Optimizer steps in one pass; the last partial batch is dropped unless that would leave none. Where
    ``batch_size_schedule`` is set, an epoch of the largest batches; epochs before it have more steps."""
    return max(1, rows // contrastive_batch(values))


def _resolve_texts(
    values: dict[str, Any], config: CLIPFinetuningConfig, domain: DomainConfig, set_keys: set[str], decide: Any
) -> None:
    if config.text_preprocessing is not None:  # with its glossary's content: a run needs no other file to be repeated
        values["text_preprocessing"] = config.text_preprocessing.self_contained().model_dump()
    if "prompt_templates" not in set_keys and domain.prompts.templates:
        decide("prompt_templates", domain.prompts.templates, f"prompt pack of the domain {domain.name}")


def _resolve_inputs(config: CLIPFinetuningConfig, model: ModelFacts, set_keys: set[str], decide: Any) -> None:
    if "image_resolution" not in set_keys:
        decide("image_resolution", model.native_resolution, "what the model's own image processor says")
    elif config.image_resolution != model.native_resolution:
        rule = model.resolutions or ResolutionRule(model.native_resolution)
        if problem := rule.problem(config.image_resolution):
            raise ConfigurationError(f"image_resolution={config.image_resolution} does not fit: {problem}")
    if "max_sequence_length" not in set_keys:
        if model.fixed_text_length:
            decide(
                "max_sequence_length",
                model.text_length,
                "the text tower reads its last position: full length only",
            )
        else:
            decide("max_sequence_length", min(77, model.text_length), "min(77, the text tower's limit)")
    elif model.fixed_text_length and config.max_sequence_length != model.text_length:
        raise ConfigurationError(
            f"max_sequence_length={config.max_sequence_length} does not fit: this text tower reads its last position "
            f"and needs its full {model.text_length} tokens. Leave the key out"
        )
    elif config.max_sequence_length > model.text_length:
        raise ConfigurationError(
            f"max_sequence_length={config.max_sequence_length} is more than the text tower's {model.text_length}"
        )


def _resolve_batch(values: dict[str, Any], data: DataFacts, set_keys: set[str], decide: Any) -> None:
    parts = values["gradient_accumulation_steps"]
    if "batch_size" in set_keys:
        if contrastive_batch(values) < 2:
            raise ConfigurationError(
                "batch_size=1 has nothing to contrast a pair with: set batch_size to 2 or more, or "
                "gradient_accumulation_steps"
            )
        return
    size = automatic_batch(data.train_rows)
    reason = f"contrastive batch of {size}: {max(1, data.train_rows // size)} steps a pass of {data.train_rows} rows"
    decide("batch_size", max(1, size // parts), reason + (f"; in {parts} steps" if parts > 1 else ""))


def _resolve_objective(
    values: dict[str, Any], model: ModelFacts, data: DataFacts, family: str, given: set[str], decide: Any
) -> None:
    fraction = data.repeated_caption_fraction
    if "loss_type" not in given:
        if values["objectives"]:
            decide("loss_type", "combined", "objectives names what is summed")
        elif model.sigmoid:
            decide("loss_type", "sigmoid", "the model was pretrained with it, and has its bias")
        elif fraction > DUPLICATE_FRACTION:
            decide("loss_type", "multi_positive", f"{fraction:.0%} of the rows share their caption with another row")
        else:
            decide(
                "loss_type",
                "contrastive",
                f"only {fraction:.1%} of the rows share their caption with another row",
            )
    if values["loss_type"] == "sigmoid" and values["label_smoothing"] > 0:
        decide("label_smoothing", 0.0, "the sigmoid objective scores each pair alone: no target is shared out")
    if "positives" not in given or values["positives"] == "auto":
        if values["augment_text"]:
            decide("positives", "label", "augment_text shows labels as captions, which rows of one class share")
        elif data.labelled_fraction > 0.5 and data.classes > 1 and fraction > 0.5:
            decide(
                "positives",
                "label",
                "captions repeat within labelled classes: rows of one class describe one thing",
            )
        elif values["loss_type"] == "domain_specific" and family == "medical":
            decide("positives", "statement", "captions that state the same in other words are clinically equal")
        else:
            decide(
                "positives",
                "caption",
                "captions are mostly their rows' own: only equal ones count as positives",
            )
    _resolve_temperature(values, model, given, decide)


def _resolve_temperature(values: dict[str, Any], model: ModelFacts, given: set[str], decide: Any) -> None:
    scheduled = values["temperature_scheduling"]
    if scheduled and "learnable_temp" in given and values["learnable_temp"]:
        raise ConfigurationError("temperature_scheduling and learnable_temp exclude each other: leave one of them out")
    if scheduled and "temperature" in given and not values["min_temp"] <= values["temperature"] <= values["max_temp"]:
        raise ConfigurationError(
            f"temperature={values['temperature']:g} is outside min_temp={values['min_temp']:g} … "
            f"max_temp={values['max_temp']:g}, where the schedule moves: change one of them"
        )
    if "temperature" not in given:
        low, high = values["min_temp"], values["max_temp"]
        if scheduled and not low <= model.temperature <= high:
            nearest = min(max(model.temperature, low), high)
            reason = f"the model's own {model.temperature:g}, brought between min_temp and max_temp"
            decide("temperature", nearest, reason)
        else:
            decide("temperature", model.temperature, "the model's own logit_scale")
        if "learnable_temp" not in given and not scheduled:
            decide("learnable_temp", True, "the model's own temperature is trained on")


def _resolve_adapters(values: dict[str, Any], model: ModelFacts) -> None:
    by_default = {"image": model.image_tower_kind, "text": model.text_tower_kind}
    free = [tower for tower in by_default if not values[f"lock_{tower}"]]
    if values["lora_r"] is None or values["target_modules"] is not None:
        return
    if all(by_default[tower] == "convolutional" for tower in free):
        raise ConfigurationError(
            f"lora_r={values['lora_r']} has nothing to adapt: the tower that is not locked is convolutional, and gets "
            "no adapters by itself. Unlock the other one, name layers in target_modules, or leave lora_r out"
        )


def _resolve_rates(values: dict[str, Any], model: ModelFacts, set_keys: set[str], given: set[str], decide: Any) -> None:
    """A convolutional tower's rate, and LoRA's, is ten times ``learning_rate``; LoRA's not where the user has set
    ``learning_rate`` (it is then taken to be meant for what is trained). Under stored batch-norm statistics, whose
    steps nothing rescales, it is four times.

    LoRA's best rate is about ten times that of full fine-tuning whatever the rank, over many models and data sets
    (Schulman et al. 2025, "LoRA Without Regret", thinkingmachines.ai).
    """
    base = values["learning_rate"]
    for tower, kind in (("image", model.image_tower_kind), ("text", model.text_tower_kind)):
        key = f"{tower}_learning_rate"
        if key in given:
            continue
        if kind == "convolutional":
            factor = 4 if values["freeze_batch_norm"] and tower == "image" else 10
            words = "four" if factor == 4 else "ten"
            decide(
                key, base * factor, f"a batch-normalised convolutional tower wants {words} times a transformer's rate"
            )
        elif values["lora_r"] is not None and "learning_rate" not in set_keys:
            decide(key, base * 10, "adapters want about ten times the rate of full fine-tuning (Schulman et al. 2025)")
        else:
            decide(key, base, "learning_rate, for a transformer tower")


def _resolve_schedule(values: dict[str, Any], data: DataFacts, given: set[str], decide: Any) -> None:
    epoch = steps_per_epoch(values, data.train_rows)
    total = resolved_steps(values, data.train_rows)
    soft = values["temp_warmup_steps"]
    warms = values["temperature_scheduling"] and values["temperature_schedule_type"] == "warmup"
    if warms and soft is not None and soft > total:
        raise ConfigurationError(f"temp_warmup_steps={soft} is more than the {total} steps of the whole training")
    if "warmup_steps" not in given:
        decide("warmup_steps", min(500, math.ceil(total / 10)), f"min(500, 10 % of {total} steps)")
    for key in ("eval_steps", "save_steps"):
        if key not in given and values[key] > epoch:
            decide(key, epoch, f"once an epoch ({epoch} steps)")
    if "logging_steps" not in given:
        decide("logging_steps", max(1, min(100, epoch // 5)), "at least five lines an epoch")


def _resolve_augmentation(
    values: dict[str, Any],
    data: DataFacts,
    set_keys: set[str],
    given: set[str],
    allowed: Sequence[str] | None,
    decide: Any,
) -> None:
    """What the captions say overrules the domain's preset (mirrored, they would be wrong), but not the user."""
    if not values["augment_images"]:
        return
    reasons = {
        "horizontal_flip": "captions say left or right" if data.names_left_right else None,
        "vertical_flip": "captions say upper, lower, top or bottom" if data.names_heights else None,
    }
    reasons["rotate90"] = reasons["horizontal_flip"] or reasons["vertical_flip"]
    for key, reason in reasons.items():
        if reason and key not in set_keys and (values[key] or key not in given):
            decide(key, False, reason)
    if "horizontal_flip" not in given and not data.names_left_right:
        decide("horizontal_flip", True, "no caption says left or right")
    if allowed is None:
        return
    turns = {"horizontal_flip": "horizontal", "vertical_flip": "vertical", "rotate90": "quarter_turns"}
    for key, turn in turns.items():
        if turn in allowed or not values[key]:
            continue
        if key in set_keys:
            raise ConfigurationError(
                f"{key}=true does not go with allowed_turns={list(allowed)} of the images' preprocessing: leave "
                f"{key} out, or allow {turn!r} there"
            )
        decide(key, False, "allowed_turns of the images' preprocessing forbids it")


def _resolve_reading(values: dict[str, Any], data: DataFacts, given: set[str], decide: Any) -> None:
    if "num_workers" in given:
        return
    resolution = max([values["image_resolution"], *(values["training_resolutions"] or {})])
    bytes_each = 3 * resolution**2 * (1.3 if values["augment_images"] else 1.0)
    if bytes_each * data.train_rows <= values["image_cache_mb"] * 2**20:
        decide("num_workers", 0, "all decoded images fit into image_cache_mb: later epochs read memory")
    else:
        decide("num_workers", max(0, min(4, data.cores - 1)), f"{data.cores} cores, one left for training")

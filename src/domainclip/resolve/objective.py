"""Deciding what is learned for, by which weights, and how fast."""

from __future__ import annotations

from typing import Any

from domainclip.errors import ConfigurationError
from domainclip.resolve.draft import Draft
from domainclip.resolve.facts import DataFacts, ModelFacts

DUPLICATE_FRACTION = 0.01
"""Above this fraction of rows whose caption is not theirs alone, plain contrastive targets are wrong too often."""


def resolve_objective(draft: Draft, model: ModelFacts, data: DataFacts, family: str) -> None:
    """The objective, which rows are each other's positives, and the temperature.

    Args:
        draft: what was decided so far.
        model: facts of the model.
        data: facts of the training rows.
        family: of the domain.

    Raises:
        ConfigurationError: temperature keys contradict each other.
    """
    values = draft.values
    fraction = data.repeated_caption_fraction
    if "loss_type" not in draft.given:
        if values["objectives"]:
            draft.decide("loss_type", "combined", "objectives names what is summed")
        elif model.sigmoid:
            draft.decide("loss_type", "sigmoid", "the model was pretrained with it, and has its bias")
        elif fraction > DUPLICATE_FRACTION:
            draft.decide(
                "loss_type", "multi_positive", f"{fraction:.0%} of the rows share their caption with another row"
            )
        else:
            draft.decide(
                "loss_type",
                "contrastive",
                f"only {fraction:.1%} of the rows share their caption with another row",
            )
    if values["loss_type"] == "sigmoid" and values["label_smoothing"] > 0:
        draft.decide("label_smoothing", 0.0, "the sigmoid objective scores each pair alone: no target is shared out")
    if "positives" not in draft.given or values["positives"] == "auto":
        if values["augment_text"]:
            draft.decide("positives", "label", "augment_text shows labels as captions, which rows of one class share")
        elif data.labelled_fraction > 0.5 and data.classes > 1 and fraction > 0.5:
            draft.decide(
                "positives",
                "label",
                "captions repeat within labelled classes: rows of one class describe one thing",
            )
        elif values["loss_type"] == "domain_specific" and family == "medical":
            draft.decide("positives", "statement", "captions that state the same in other words are clinically equal")
        else:
            draft.decide(
                "positives",
                "caption",
                "captions are mostly their rows' own: only equal ones count as positives",
            )
    _resolve_temperature(draft, model)


def _resolve_temperature(draft: Draft, model: ModelFacts) -> None:
    values = draft.values
    scheduled = values["temperature_scheduling"]
    if scheduled and "learnable_temp" in draft.given and values["learnable_temp"]:
        raise ConfigurationError("temperature_scheduling and learnable_temp exclude each other: leave one of them out")
    if (
        scheduled
        and "temperature" in draft.given
        and not values["min_temp"] <= values["temperature"] <= values["max_temp"]
    ):
        raise ConfigurationError(
            f"temperature={values['temperature']:g} is outside min_temp={values['min_temp']:g} … "
            f"max_temp={values['max_temp']:g}, where the schedule moves: change one of them"
        )
    if "temperature" not in draft.given:
        low, high = values["min_temp"], values["max_temp"]
        if scheduled and not low <= model.temperature <= high:
            nearest = min(max(model.temperature, low), high)
            reason = f"the model's own {model.temperature:g}, brought between min_temp and max_temp"
            draft.decide("temperature", nearest, reason)
        else:
            draft.decide("temperature", model.temperature, "the model's own logit_scale")
        if "learnable_temp" not in draft.given and not scheduled:
            draft.decide("learnable_temp", True, "the model's own temperature is trained on")


def check_adapters(values: dict[str, Any], model: ModelFacts) -> None:
    """Make sure that LoRA adapters have something to adapt.

    Args:
        values: of the recipe, by key.
        model: facts of the model.

    Raises:
        ConfigurationError: the only tower that is trained gets no adapters.
    """
    by_default = {"image": model.image_tower_kind, "text": model.text_tower_kind}
    free = [tower for tower in by_default if not values[f"lock_{tower}"]]
    if values["lora_r"] is None or values["target_modules"] is not None:
        return
    if all(by_default[tower] == "convolutional" for tower in free):
        raise ConfigurationError(
            f"lora_r={values['lora_r']} has nothing to adapt: the tower that is not locked is convolutional, and gets "
            "no adapters by itself. Unlock the other one, name layers in target_modules, or leave lora_r out"
        )


def resolve_rates(draft: Draft, model: ModelFacts) -> None:
    """A convolutional tower's rate, and LoRA's, is ten times ``learning_rate``; LoRA's not where the user has set
    ``learning_rate`` (it is then taken to be meant for what is trained). Under stored batch-norm statistics, whose
    steps nothing rescales, it is four times.

    LoRA's best rate is about ten times that of full fine-tuning whatever the rank, over many models and data sets
    (Schulman et al. 2025, "LoRA Without Regret", thinkingmachines.ai).

    Args:
        draft: what was decided so far.
        model: facts of the model.
    """
    values = draft.values
    base = values["learning_rate"]
    for tower, kind in (("image", model.image_tower_kind), ("text", model.text_tower_kind)):
        key = f"{tower}_learning_rate"
        if key in draft.given:
            continue
        if kind == "convolutional":
            factor = 4 if values["freeze_batch_norm"] and tower == "image" else 10
            words = "four" if factor == 4 else "ten"
            draft.decide(
                key, base * factor, f"a batch-normalised convolutional tower wants {words} times a transformer's rate"
            )
        elif values["lora_r"] is not None and "learning_rate" not in draft.set_keys:
            draft.decide(
                key, base * 10, "adapters want about ten times the rate of full fine-tuning (Schulman et al. 2025)"
            )
        else:
            draft.decide(key, base, "learning_rate, for a transformer tower")

"""Whether a model's config, weights, tokenizer and image processor belong together: what is loaded is what was saved.

transformers fills in at random what a file of weights lacks, makes an empty tokenizer where there are no files of one,
and reads each text at its first token where the end token is another model's. Nothing of that stops a training.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from domainclip.errors import ModelLoadError
from domainclip.models.library import first_line
from domainclip.models.source.files import CONFIG, TOKENIZER, weight_files
from domainclip.models.source.kinds import named

if TYPE_CHECKING:
    from domainclip.models.processor import EncoderProcessor

_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|model)\.)+")
"""What DataParallel, torch.compile and training programs put in front of each weight's name."""

_UNTRAINED = re.compile(r"(^|\.)pooler\.")
"""Of a lone tower these may be missing: many backbones come without a trained pooler."""

_NUMBERED = re.compile(r"\.(\d+)\.")
_SLACK = 2**26
"""Weights that a model may have beyond four times the bytes of its files before it is not even built."""

MAX_SCALE = 20.0
"""Of a logit scale, a natural logarithm: CLIP's stays below ln 100 = 4.6."""

_CONSTANTS = re.compile(r"position_ids$|attn_mask$|inv_freq$|num_batches_tracked$")
_LEGACY_EOS = 2
"""With this end token CLIP's text tower in transformers reads a text at its highest token."""


def load_weights_checked(place: str, config: PretrainedConfig, *, whole: bool = True) -> PreTrainedModel:
    """The model of a config with all of its weights, in float32 on the CPU.

    Args:
        place: A directory or a name on the hub.
        config: What its config says.
        whole: Whether it is a dual encoder: a lone tower may lack a pooler and have a head too many.

    Returns:
        With every weight read from the files.

    Raises:
        ModelLoadError: Weights are missing, too many, of another shape, or not finite; they are counted and named.
    """
    folder = Path(place) if Path(place).is_dir() else None
    _check_activations(config, place)
    if folder is not None:
        _check_size(config, folder)
    model, info = _load(place, config)
    missing, unexpected = _missing(info, whole), _unexpected(info)
    if missing and unexpected and folder is not None and all(map(_WRAPPERS.match, unexpected)):
        model, info = _load(None, config, type(model), state_dict=_unwrapped(folder))
        missing, unexpected = _missing(info, whole), _unexpected(info)
    wrong = sorted((str(name), tuple(there), tuple(here)) for name, there, here in info["mismatched_keys"])
    if not whole:  # heads of the task that a backbone was trained for
        known = {name.split(".")[0] for name in model.state_dict()}
        unexpected = [name for name in unexpected if name.split(".")[0] in known or _NUMBERED.search(name)]
    if missing or unexpected or wrong:
        raise ModelLoadError(_explained(place, config, missing, unexpected, wrong))
    check_finite(model, place)
    return model


def _missing(info: dict[str, Any], whole: bool) -> list[str]:
    return sorted(name for name in info["missing_keys"] if whole or not _UNTRAINED.search(name))


def _unexpected(info: dict[str, Any]) -> list[str]:
    return sorted(name for name in info["unexpected_keys"] if not _CONSTANTS.search(name))


def _load(
    place: str | None, config: PretrainedConfig, kind: Any = AutoModel, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    try:
        return kind.from_pretrained(
            place,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, all of them by name
            **({"trust_remote_code": False} if kind is AutoModel else {}),
            **options,
        )
    except Exception as error:  # whatever a library says of files that somebody else has made
        raise ModelLoadError(f"Cannot load the model from {place}: {first_line(error)}") from error


def _unwrapped(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a folder, all of whose names have the name of a wrapper in front, without it."""
    weights: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            weights |= load_file(path)
        else:
            weights |= torch.load(path, map_location="cpu", weights_only=True)
    return {_WRAPPERS.sub("", name): value for name, value in weights.items()}


def _check_activations(config: PretrainedConfig, place: str) -> None:
    for part in ("", "text_config", "vision_config"):
        name = getattr(getattr(config, part, None) if part else config, "hidden_act", None)
        if isinstance(name, str) and name not in ACT2FN:
            key = f"{part}.hidden_act" if part else "hidden_act"
            raise ModelLoadError(f"{Path(place) / CONFIG}: {key} is {name!r}, which is no activation of transformers")


def _check_size(config: PretrainedConfig, folder: Path) -> None:
    """Refuse what could not come out of these files before memory is taken for it."""
    try:
        with torch.device("meta"):
            model = AutoModel.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise ModelLoadError(
            f"{folder / CONFIG} describes no model that can be built: {first_line(error)}. Copy the file again from "
            "where the model came from"
        ) from error
    wanted = sum(value.numel() for value in model.parameters())
    there = sum(path.stat().st_size for path in weight_files(folder))
    if wanted > 4 * there + _SLACK:
        name, largest = max(model.named_parameters(), key=lambda each: each[1].numel())
        raise ModelLoadError(
            f"{folder / CONFIG} describes a model of {wanted:,} weights, far more than the {there:,} bytes of weights "
            f"beside it can hold (the largest is {name}, {_shape(largest.shape)}{_keys(config, largest.shape)}). The "
            "files belong to two models: copy them again from one"
        )


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape)) or "one number"


def _keys(config: PretrainedConfig, numbers: Iterable[int]) -> str:
    """Keys of a config that have one of these values: those that are to blame for a shape."""
    wanted = {number for number in numbers if number > 1}
    found = []
    for part in ("", "text_config", "vision_config"):
        section = getattr(config, part, None) if part else config
        values = section if isinstance(section, dict) else vars(section) if section is not None else {}
        found += [f"{part}.{key}" if part else key for key, value in values.items() if _is_size(value, wanted)]
    return f"; of that size: {named(found)}" if found else ""


def _is_size(value: object, wanted: set[int]) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in wanted


def _explained(
    place: str,
    config: PretrainedConfig,
    missing: list[str],
    unexpected: list[str],
    wrong: list[tuple[str, tuple[int, ...], tuple[int, ...]]],
) -> str:
    parts = []
    if missing:
        parts.append(f"{_count(missing, 'is', 'are')} missing ({named(missing)})")
    if unexpected:
        parts.append(f"{_count(unexpected, 'has', 'have')} no place in the model ({named(unexpected)})")
    if wrong:
        _, there, here = wrong[0]
        blame = _keys(config, set(here) - set(there))
        parts.append(
            f"{_count(wrong, 'has', 'have')} another shape than {CONFIG} says ({named(each[0] for each in wrong)}; the "
            f"first is {_shape(there)}, and by the config {_shape(here)}{blame})"
        )
    return (
        f"The weights in {place} do not fit its {CONFIG}: {'; '.join(parts)}. One of the two files is another model's "
        "or incomplete: copy both again from one model"
    )


def _count(items: Sequence[object], one: str, many: str) -> str:
    return f"1 weight {one}" if len(items) == 1 else f"{len(items)} weights {many}"


@torch.no_grad()
def check_finite(model: PreTrainedModel, place: str) -> None:
    """Make sure that weights are numbers, and the temperature one that similarities can be divided by.

    Args:
        model: As loaded.
        place: Where from, for messages.

    Raises:
        ModelLoadError: Some are NaN or infinite; they are counted and named.
    """
    broken = [
        name
        for name, value in model.state_dict().items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if broken:
        raise ModelLoadError(
            f"{len(broken)} of the weights in {place} hold NaN or infinite numbers ({named(broken)}): the training "
            "that wrote them has diverged, or the file is damaged. Take an earlier checkpoint"
        )
    scale = getattr(model, "logit_scale", None)
    if isinstance(scale, torch.Tensor) and (scale.numel() != 1 or abs(float(scale)) > MAX_SCALE):
        shown = f"{float(scale):g}" if scale.numel() == 1 else _shape(scale.shape)
        raise ModelLoadError(
            f"The weights in {place} have a logit_scale of {shown}, of which no temperature can be made: CLIP's is "
            "between 0 and 4.6. The file is damaged, or the weight is stored in another way"
        )


def check_processor(processor: EncoderProcessor, config: PretrainedConfig, place: str) -> None:
    """Make sure that tokenizer and image processor are those of the model.

    Args:
        processor: Both.
        config: Of the model, as its file says it.
        place: Where they lie, for messages.

    Raises:
        ModelLoadError: One of them is another model's, or tells nothing apart.
    """
    check_tokenizer(processor, getattr(config, "text_config", config), place)
    check_images(processor, getattr(config, "vision_config", config), place)


def check_tokenizer(processor: EncoderProcessor, text: PretrainedConfig, place: str) -> None:
    """Make sure that a tokenizer gives numbers that a text tower has embeddings for, and tells texts apart.

    Args:
        processor: Which has the tokenizer.
        text: Config of the text tower.
        place: Where it lies, for messages.

    Raises:
        ModelLoadError: It does not.
    """
    tokenizer = processor.tokenizer
    remedy = "Copy tokenizer.json and tokenizer_config.json from the model that the weights came from"
    of_another = f"the tokenizer files belong to another model. {remedy}"
    vocabulary = {str(token): int(number) for token, number in tokenizer.get_vocab().items()}
    if set(vocabulary) <= set(tokenizer.all_special_tokens):
        raise ModelLoadError(
            f"The tokenizer of {place} knows no words ({len(vocabulary)} tokens), so that every caption would be the "
            f"same: its files are missing or empty. {remedy}"
        )
    size, highest = int(getattr(text, "vocab_size", 0) or 0), max(vocabulary.values())
    if size and highest >= size:
        raise ModelLoadError(
            f"The tokenizer of {place} has tokens up to number {highest}, its text tower has embeddings for {size} "
            f"(vocab_size): {of_another}"
        )
    if 2 * (highest + 1) < size:
        raise ModelLoadError(
            f"The tokenizer of {place} has {highest + 1} tokens, its text tower has embeddings for {size} "
            f"(vocab_size): {of_another}"
        )
    ids = _probe(processor, list(vocabulary), place)
    if len({tuple(row) for row in ids}) < 2:
        raise ModelLoadError(
            f"The tokenizer of {place} gives every caption the same tokens: its files are damaged, or {of_another}"
        )
    _check_as_written(processor, place)
    kind, end, pad = getattr(text, "model_type", ""), tokenizer.eos_token_id, tokenizer.pad_token_id
    if processor.text_padding == "masked" and kind != "clip_text_model":
        wanted = getattr(text, "pad_token_id", None)
        if wanted is not None and wanted != pad:
            raise ModelLoadError(
                f"The tokenizer of {place} pads with {pad}, its text tower takes {wanted} for padding (pad_token_id): "
                f"{of_another}"
            )
    elif kind in ("clip_text_model", "clip"):
        _check_end(ids[0], end, getattr(text, "eos_token_id", None), highest, place, of_another)


def _check_end(ids: list[int], end: int | None, read: int | None, highest: int, place: str, of_another: str) -> None:
    """CLIP reads a text at its end token, or in old configs at the highest one, which is the same there."""
    if end is None or end not in ids:
        raise ModelLoadError(
            f"The tokenizer of {place} puts no end token behind a caption, where the text tower reads it: {of_another}"
        )
    if read == _LEGACY_EOS and end != _LEGACY_EOS:
        if end != max(ids):
            raise ModelLoadError(
                f"The text tower of {place} reads a caption at its highest token, and the tokenizer ends it with {end} "
                f"of {highest}: {of_another}"
            )
    elif read != end:
        raise ModelLoadError(
            f"The text tower of {place} reads a caption at token {read} (text_config.eos_token_id), and the tokenizer "
            f"ends it with {end}: {of_another}"
        )


def _check_as_written(processor: EncoderProcessor, place: str) -> None:
    """A class of transformers that tokenizer_config.json does not name rightly reads tokenizer.json in its own way."""
    path = Path(place) / TOKENIZER
    if (plain := read_tokenizer(path)) is None:
        return
    plain.no_truncation()
    plain.no_padding()
    if [plain.encode(text).ids for text in _PLAIN_TEXTS] != processor.token_ids(_PLAIN_TEXTS):
        raise ModelLoadError(
            f"{path.parent}: transformers makes a {type(processor.tokenizer).__name__} of the tokenizer files, which "
            f"gives other tokens than {path.name} says: tokenizer_config.json (its tokenizer_class) is missing or "
            "another model's. Copy it from the model that the weights came from"
        )


_PLAIN_TEXTS = ("a photo of a red dog", "two small birds in a tree")
"""Words that every way of cleaning up a text leaves as they are, and far below any limit."""


def read_tokenizer(path: Path) -> Tokenizer | None:
    """A tokenizer.json as it is written, whatever class the folder names for it.

    Args:
        path: Of the file.

    Returns:
        None where there is none.

    Raises:
        ModelLoadError: It is damaged.
    """
    if not path.is_file():
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more special
        raise ModelLoadError(
            f"{path} is no tokenizer: {first_line(error)}. Copy the file again from where the model came from"
        ) from error


def _probe(processor: EncoderProcessor, tokens: list[str], place: str) -> list[list[int]]:
    """Some of a tokenizer's own tokens as texts, so that it is asked in whatever language it knows."""
    chosen = tokens[:: max(1, len(tokens) // 64)]
    try:
        texts = [processor.tokenizer.convert_tokens_to_string([token]) for token in chosen]
        return [[int(number) for number in row] for row in processor.token_ids([text or " " for text in texts])]
    except Exception as error:  # of the tokenizer's library, for files that somebody else has made
        raise ModelLoadError(f"The tokenizer of {place} fails: {first_line(error)}") from error


def check_images(processor: EncoderProcessor, vision: PretrainedConfig, place: str) -> None:
    """Make sure that an image processor makes what an image tower takes.

    Args:
        processor: Which has the image processor.
        vision: Config of the image tower, as its file says it.
        place: Where it lies, for messages.

    Raises:
        ModelLoadError: It does not.
    """
    channels = getattr(vision, "num_channels", 3)
    if channels != 3:
        raise ModelLoadError(
            f"The image tower of {place} takes {channels} channels (num_channels), not red, green, blue"
        )
    try:
        resolution = processor.resolution
        pixels = processor.image_processor(
            images=[torch.zeros(40, 50, 3, dtype=torch.uint8).numpy()], return_tensors="pt"
        )["pixel_values"]
    except Exception as error:  # of transformers, for a file that somebody else has made
        raise ModelLoadError(
            f"The image processor of {place} (preprocessor_config.json) fails: {first_line(error)}"
        ) from error
    if tuple(pixels.shape) != (1, 3, resolution, resolution) or not bool(torch.isfinite(pixels).all()):
        raise ModelLoadError(
            f"The image processor of {place} (preprocessor_config.json) makes {_shape(pixels.shape[1:])} of an image, "
            f"where 3 × {resolution} × {resolution} finite numbers are needed. Copy the file from the model that the "
            "weights came from"
        )
    own = getattr(vision, "image_size", None)
    if getattr(vision, "model_type", "") in _FIXED_POSITIONS and own not in (resolution, [resolution, resolution]):
        raise ModelLoadError(
            f"The image processor of {place} (preprocessor_config.json) makes images of {resolution} pixels, the image "
            f"tower has position embeddings for {own} (image_size in {CONFIG}): one of the two files is another "
            "model's. For another resolution set image_resolution instead"
        )


_FIXED_POSITIONS = ("clip_vision_model", "siglip_vision_model", "vit", "deit")
"""Towers that refuse images of another size than their config's unless they are told to resize their positions."""

"""From a hub name, a local directory or two backbones to a ``DualEncoder``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    VisionTextDualEncoderModel,
)

from domainclip.config import ModelSettings
from domainclip.errors import ConfigurationError, ModelLoadError
from domainclip.models.belonging import (
    check_images,
    check_processor,
    check_tokenizer,
    load_weights_checked,
    read_tokenizer,
)
from domainclip.models.dual_encoder import DualEncoder
from domainclip.models.library import first_line, hub_error, quiet_transformers
from domainclip.models.open_clip.loading import (
    load_model_config,
    load_open_clip,
    load_open_clip_processor,
    open_clip_folder,
    saved_open_clip_config,
)
from domainclip.models.open_clip.projected_dual_encoder import ProjectedDualEncoderConfig
from domainclip.models.open_clip.saving import describe_as_open_clip
from domainclip.models.processor import EncoderProcessor, TextPadding, position_limit
from domainclip.models.source.files import CONFIG, TOKENIZER
from domainclip.models.source.name import TINY, find_model
from domainclip.models.tiny import make_tiny_clip

log = logging.getLogger(__name__)

_PADDING: dict[str, TextPadding] = {
    "clip": "causal",
    "siglip": "fixed",
    "vision-text-dual-encoder": "masked",
    ProjectedDualEncoderConfig.model_type: "masked",
}


_READ_FROM = {
    "model's config": CONFIG,
    "tokenizer": "tokenizer.json, tokenizer_config.json",
    "image processor": "preprocessor_config.json",
}
"""What each part is read from."""


def load_part(kind: str, loader: Any, place: str, **options: Any) -> Any:
    """``loader.from_pretrained`` with its many failures turned into one message that says how to go on.

    Args:
        kind: What it is, for messages.
        loader: A class of ``transformers`` with ``from_pretrained``.
        place: A local directory or a repository on the hub, as ``find_model`` gives it.

    Returns:
        What the loader makes.

    Raises:
        ModelLoadError: Where it cannot be had, with the remedy.
    """
    try:
        return loader.from_pretrained(place, trust_remote_code=False, **options)
    except Exception as error:  # whatever a library says of files that somebody else has made: tokenizers has no other
        if Path(place).is_dir():
            raise ModelLoadError(
                f"Cannot load the {kind} from {place} ({_READ_FROM[kind]}): {first_line(error)}. Copy the files again "
                "from where the model came from"
            ) from error
        raise hub_error(kind, place, error) from error


def _text_limit(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    positions = position_limit(getattr(config, "text_config", config))
    stated = int(getattr(tokenizer, "model_max_length", positions) or positions)
    return min(positions, stated)


def check_usable(model: PreTrainedModel, name: str) -> None:
    """Args:
        model: The ``transformers`` model.
        name: Of the model, for messages.

    Raises:
        ModelLoadError: For a model that this package cannot train.
    """
    missing = [
        part
        for part in ("get_image_features", "get_text_features", "logit_scale", "vision_model", "text_model")
        if not hasattr(model, part)
    ]
    if missing:
        raise ModelLoadError(
            f"{name} is a {type(model).__name__}, not a dual encoder (it lacks {', '.join(missing)}). Supported: "
            "CLIPModel, SiglipModel (also SigLIP 2 at fixed resolution), VisionTextDualEncoderModel"
        )
    if model.config.model_type == "siglip2":
        raise ModelLoadError(
            f"{name} is a NaFlex SigLIP 2 (variable numbers of patches), which this package does not train. "
            "Use a fixed-resolution SigLIP 2 such as google/siglip2-base-patch16-224"
        )


def _processor(name: str, config: PretrainedConfig, tokenizer_name: str, image_name: str) -> EncoderProcessor:
    read_tokenizer(Path(tokenizer_name) / TOKENIZER)  # says what is wrong with it better than transformers does
    tokenizer = load_part("tokenizer", AutoTokenizer, tokenizer_name)
    if tokenizer.pad_token_id is None:
        raise ModelLoadError(f"The tokenizer of {name} has no padding token: set pad_token in tokenizer_config.json")
    # Pillow's backend is the reference: it does not need torchvision, and CLIP was trained with it.
    image_processor = load_part("image processor", AutoImageProcessor, image_name, backend="pil")
    padding = _PADDING.get(config.model_type)
    if padding is None:
        log.warning(
            "How %s pads its texts is not known: captions are padded to the full length, which is always right", name
        )
        padding = "fixed"
    return EncoderProcessor(tokenizer, image_processor, padding, _text_limit(config, tokenizer))


def _assemble(settings: ModelSettings) -> DualEncoder:
    """Two backbones joined by new linear projections, as domain CLIPs such as BiomedCLIP are."""
    vision_name, text_name = settings.vision_model_name, settings.text_model_name
    if not vision_name or not text_name:
        raise ConfigurationError("vision_model_name and text_model_name go together: give both, or model_name alone")
    image_place, text_place = find_model(vision_name, "image tower"), find_model(text_name, "text tower")
    vision, text = _backbone(image_place, "vision_model"), _backbone(text_place, "text_model")
    _state_width(vision, vision_name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        try:
            model = VisionTextDualEncoderModel(vision_model=vision, text_model=text)
        except (ValueError, AttributeError) as error:
            raise ModelLoadError(f"{vision_name} and {text_name} cannot be joined: {error}") from error
    processor = _processor(text_name, model.config, text_place, image_place)
    if getattr(text.config, "model_type", "").startswith("siglip"):
        processor.text_padding = "fixed"
    check_tokenizer(processor, text.config, text_place)
    check_images(processor, vision.config, image_place)
    encoder = DualEncoder(model, processor, name=f"{vision_name} + {text_name}", fresh_projections=True)
    _check_pooling(encoder)
    return encoder


def _backbone(place: str, tower: str) -> PreTrainedModel:
    """A model that lends one tower; a CLIP or SigLIP the one of that name."""
    config = load_part("model's config", AutoConfig, place)
    whole = load_weights_checked(
        place, config, whole=hasattr(config, "vision_config") and hasattr(config, "text_config")
    )
    return getattr(whole, tower, whole)


@torch.no_grad()
def _state_width(vision: PreTrainedModel, name: str) -> None:
    """Convolutional configs do not say how wide the pooled vector is, which the joint model asks them: look."""
    if hasattr(vision.config, "hidden_size"):
        return
    pooled = getattr(vision.eval()(pixel_values=torch.zeros(1, 3, 64, 64)), "pooler_output", None)
    if pooled is not None and pooled.ndim == 2:
        vision.config.hidden_size = pooled.shape[1]
        return
    found = "no pooled vector" if pooled is None else f"one of shape {tuple(pooled.shape)}"
    raise ModelLoadError(
        f"{name} cannot be an image tower: it gives {found}. Towers known to work: ViT, CLIP, DeiT, DINOv2, "
        "MobileNet, ConvNeXt"
    )


@torch.no_grad()
def _check_pooling(encoder: DualEncoder) -> None:
    """A backbone without a pooled vector cannot be told from its config; two small inputs tell."""
    encoder.eval()
    resolution = encoder.native_resolution
    tokens = encoder.processor.tokenize(["a", "two words"])
    try:
        image = encoder.encode_image(torch.zeros(2, 3, resolution, resolution))
        text = encoder.encode_text(**tokens)
    except (RuntimeError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise ModelLoadError(
            f"{encoder.name}: a tower gives no pooled vector that a linear projection takes ({error}). Towers known "
            "to work: ViT, CLIP, DeiT, DINOv2, MobileNet, ConvNeXt for images; BERT, RoBERTa, MiniLM for text"
        ) from error
    if image.shape != (2, encoder.embedding_dim) or text.shape != (2, encoder.embedding_dim):
        raise ModelLoadError(
            f"{encoder.name}: embeddings have shapes {tuple(image.shape)} and {tuple(text.shape)}, expected "
            f"(2, {encoder.embedding_dim}) for both"
        )


def load_config(name: str) -> PretrainedConfig:
    """The ``transformers`` config of a model, without its weights.

    Args:
        name: Of a repository on the hub, or a local directory.

    Returns:
        What ``AutoConfig`` makes of it.

    Raises:
        ModelLoadError: Where it cannot be had.
    """
    place = find_model(name, weights=False)
    with quiet_transformers():
        folder = open_clip_folder(place)
        return load_part("model's config", AutoConfig, place) if folder is None else load_model_config(folder)


def load_processor(name: str) -> EncoderProcessor:
    """Tokenizer and image processor of a model, without its weights.

    Args:
        name: Of a repository on the hub, a local directory, or ``tiny``.

    Returns:
        Both, called like a ``transformers`` processor.

    Raises:
        ModelLoadError: Where they cannot be had.
    """
    if name == TINY:
        return make_tiny_clip().processor
    place = find_model(name, weights=False)
    with quiet_transformers():
        folder = open_clip_folder(place)
        if folder is not None:
            return load_open_clip_processor(folder, load_model_config(folder))
        config = load_part("model's config", AutoConfig, place)
        processor = _processor(name, config, place, place)
        check_processor(processor, config, place)
    return processor


def load_encoder(settings: ModelSettings) -> DualEncoder:
    """The dual encoder a recipe names, in float32 on the CPU, in ``eval()`` mode.

    Args:
        settings: ``model_name``, or ``vision_model_name`` and ``text_model_name``; ``save_open_clip`` and ``seed``.

    Returns:
        Of any family that this package trains.

    Raises:
        ModelLoadError: For a wrong name, a missing network, or a model that is not a dual encoder.
        ConfigurationError: Where ``save_open_clip`` asks for what cannot be done.
    """
    encoder = _load(settings)
    if settings.save_open_clip is False:
        encoder.open_clip_config = None
    elif settings.save_open_clip and encoder.open_clip_config is None:
        encoder.open_clip_config = describe_as_open_clip(encoder)
    return encoder


def _load(settings: ModelSettings) -> DualEncoder:
    if settings.vision_model_name or settings.text_model_name:
        with quiet_transformers():
            return _assemble(settings)
    name = settings.model_name
    if name == TINY:
        return make_tiny_clip(settings.seed)
    place = find_model(name)
    with quiet_transformers():
        if (folder := open_clip_folder(place)) is not None:
            return load_open_clip(folder, name)
        config = load_part("model's config", AutoConfig, place)
        model = load_weights_checked(place, config)
        check_usable(model, name)
        processor = _processor(name, config, place, place)
        check_processor(processor, config, place)
    encoder = DualEncoder(model, processor, name=name).eval()
    if encoder.positions is not None:  # of a model that was trained at another resolution than its first
        encoder.positions.restore_originals(Path(place), model.config.vision_config)
    encoder.open_clip_config = saved_open_clip_config(Path(place))
    return encoder

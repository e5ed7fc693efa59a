"""OpenCLIP checkpoints (``open_clip_config.json`` with weights) as dual encoders. open_clip itself is not needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PretrainedConfig, PreTrainedModel

from domainclip.errors import ModelLoadError
from domainclip.models.belonging import check_finite, check_processor
from domainclip.models.dual_encoder import DualEncoder
from domainclip.models.library import first_line, hub_error
from domainclip.models.open_clip.architecture import transformers_config
from domainclip.models.open_clip.processing import image_processor, tokenizer
from domainclip.models.open_clip.projected_dual_encoder import ProjectedDualEncoderModel
from domainclip.models.open_clip.weights import (
    CONFIG,
    PICKLED_WEIGHTS,
    SAFE_WEIGHTS,
    TEXT_PREFIX,
    to_here,
    weight_names,
)
from domainclip.models.processor import EncoderProcessor, position_limit
from domainclip.models.source.files import read_json_object
from domainclip.models.source.kinds import named
from domainclip.models.source.name import FOLDER_PREFIX, HUB_PREFIX
from domainclip.models.source.values import check_open_clip_values

_TRANSFORMERS_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_TOKENIZER_FILES = ("*token*", "vocab*", "merges.txt", "*.model", "special_tokens_map.json")


def open_clip_folder(name: str) -> Path | None:
    """The local folder of an OpenCLIP checkpoint; None where ``name`` is not one.

    It is one with the prefix ``hf-hub:`` (fetched, or from the cache) or ``local-dir:``, and a directory with an
    open_clip_config.json. A directory that holds the layout of ``transformers`` as well is read as that, unless
    ``local-dir:`` asks for OpenCLIP's.

    Args:
        name: The recipe's ``model_name``.

    Returns:
        Where the checkpoint lies, fetched if need be.

    Raises:
        ModelLoadError: Where a prefix promises what is not there.
    """
    if name.startswith(HUB_PREFIX):
        return _fetch(name.removeprefix(HUB_PREFIX))
    folder = Path(name.removeprefix(FOLDER_PREFIX)).expanduser()
    if name.startswith(FOLDER_PREFIX):
        if not (folder / CONFIG).is_file():
            raise ModelLoadError(f"Cannot load an OpenCLIP model from {folder}: it has no {CONFIG}")
        return folder
    if not (folder / CONFIG).is_file():
        return None
    both = (folder / "config.json").is_file() and any((folder / weights).is_file() for weights in _TRANSFORMERS_WEIGHTS)
    return None if both else folder


def _fetch(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = [CONFIG, SAFE_WEIGHTS, *_TOKENIZER_FILES]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=wanted))
        if (folder / CONFIG).is_file() and not (folder / SAFE_WEIGHTS).is_file():
            folder = Path(snapshot_download(repository, allow_patterns=[*wanted, PICKLED_WEIGHTS]))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise hub_error("OpenCLIP model", repository, error) from error
    if not (folder / CONFIG).is_file():
        raise ModelLoadError(
            f"{repository} on the hub has no {CONFIG}: it is no OpenCLIP model. Leave out the prefix {HUB_PREFIX}"
        )
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The open_clip_config.json of a folder.

    Args:
        folder: A local directory.

    Returns:
        Its content.

    Raises:
        ModelLoadError: For one that is damaged or lacks model_cfg.
    """
    path = folder / CONFIG
    config = read_json_object(path)
    check_open_clip_values(config, path)
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The state dict, from the safetensors file where there is one, on the CPU.

    Args:
        folder: A local directory.

    Returns:
        Tensors by OpenCLIP's names.

    Raises:
        ModelLoadError: Where there is none, where it is damaged, and where a pickled one holds more than weights.
    """
    safe, pickled = folder / SAFE_WEIGHTS, folder / PICKLED_WEIGHTS
    try:
        if safe.is_file():
            return load_file(safe)
        if not pickled.is_file():
            raise ModelLoadError(f"{folder} has neither {SAFE_WEIGHTS} nor {PICKLED_WEIGHTS}")
        weights = torch.load(pickled, map_location="cpu", weights_only=True)
    except ModelLoadError:
        raise
    except Exception as error:  # torch.load has many for a file that is none of its own
        raise ModelLoadError(
            f"Cannot read the weights of the OpenCLIP model in {folder}: {first_line(error)}"
        ) from error
    weights = weights.get("state_dict", weights) if isinstance(weights, dict) else weights  # a training checkpoint
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ModelLoadError(f"{pickled} holds something else than weights by their names")
    return {name.removeprefix("module."): value for name, value in weights.items()}  # of several processes


def saved_open_clip_config(folder: Path) -> dict[str, Any] | None:
    """The config of an OpenCLIP checkpoint that lies beside the layout of ``transformers``; None where none does.

    Args:
        folder: A local directory.

    Returns:
        Its content.
    """
    return read_config(folder) if (folder / CONFIG).is_file() else None


def load_model_config(folder: Path) -> PretrainedConfig:
    """The ``transformers`` config of a checkpoint.

    Args:
        folder: A local directory.

    Returns:
        Of ``CLIPModel`` or ``ProjectedDualEncoderModel``.

    Raises:
        ModelLoadError: For a checkpoint that neither can be.
    """
    return transformers_config(read_config(folder)["model_cfg"], read_weights(folder), folder)


def _load_model(folder: Path) -> PreTrainedModel:
    model_cfg, weights = read_config(folder)["model_cfg"], read_weights(folder)
    wanted = transformers_config(model_cfg, weights, folder)
    custom_text = any(name.startswith(TEXT_PREFIX) for name in weights)
    with torch.device("meta"):  # sizes of another model are refused before memory is taken for them
        shapes = {name: value.shape for name, value in _built(wanted, folder).state_dict().items()}
    found = to_here(weight_names(wanted, shapes, custom_text), weights, str(folder))
    wrong = [name for name, value in found.items() if value.shape != shapes[name]]
    if wrong:
        there, here = (tuple(each) for each in (found[wrong[0]].shape, shapes[wrong[0]]))
        raise ModelLoadError(
            f"The weights in {folder} do not fit their {CONFIG}: {len(wrong)} have another shape ({named(wrong)}; the "
            f"first is {there}, and by the config {here}). The config belongs to another model"
        )
    with torch.random.fork_rng(devices=[]):
        model = _built(wanted, folder)
    model.load_state_dict(found)
    check_finite(model, str(folder))
    return model.eval()


def _built(wanted: PretrainedConfig, folder: Path) -> PreTrainedModel:
    try:
        return CLIPModel(wanted) if isinstance(wanted, CLIPConfig) else ProjectedDualEncoderModel(wanted)
    except Exception as error:  # of transformers, for sizes that do not go together
        raise ModelLoadError(f"{folder / CONFIG} describes no model that can be built: {first_line(error)}") from error


def load_open_clip_processor(folder: Path, model_config: PretrainedConfig) -> EncoderProcessor:
    """Tokenizer and image processor of a checkpoint.

    Args:
        folder: A local directory.
        model_config: That of ``transformers``.

    Returns:
        Both, called like a ``transformers`` processor.

    Raises:
        ModelLoadError: Where the tokenizer is missing or another model's.
    """
    config = read_config(folder)
    text_cfg, text = config["model_cfg"]["text_cfg"], model_config.text_config
    words = tokenizer(text_cfg, folder)
    foreign = text.model_type != "clip_text_model"
    if foreign and words.pad_token_id != text.pad_token_id:
        raise ModelLoadError(
            f"{folder}: the tokenizer pads with {words.pad_token_id}, the text tower takes {text.pad_token_id} for "
            "padding: the tokenizer files belong to another model"
        )
    words.model_max_length = min(position_limit(text), words.model_max_length)
    resolution = int(model_config.vision_config.image_size)
    images = image_processor(config.get("preprocess_cfg") or {}, resolution, str(folder))
    processor = EncoderProcessor(words, images, "masked" if foreign else "causal", words.model_max_length)
    check_processor(processor, model_config, str(folder))
    return processor


def load_open_clip(folder: Path, name: str) -> DualEncoder:
    """The dual encoder of an OpenCLIP checkpoint, which saves in both layouts.

    Args:
        folder: A local directory.
        name: Of the encoder, for messages and records.

    Returns:
        In ``eval()`` mode, in float32 on the CPU.

    Raises:
        ModelLoadError: For a checkpoint that is damaged or not supported.
    """
    model = _load_model(folder)
    encoder = DualEncoder(model, load_open_clip_processor(folder, model.config), name=name).eval()
    encoder.open_clip_config = read_config(folder)
    return encoder

"""How an OpenCLIP checkpoint wants its images and sentences."""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from domainclip.errors import ModelLoadError
from domainclip.models.belonging import read_tokenizer
from domainclip.models.library import first_line
from domainclip.models.source.name import on_hub

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of Radford et al. 2021: what OpenCLIP takes where preprocess_cfg is silent."""

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
"""CLIP's byte-pair merges, as published with openai/CLIP and shipped with open_clip."""

CLIP_TOKENIZER = "openai/clip-vit-base-patch32"
_MERGES = 49152 - 256 - 2  # what Radford et al. kept of the file: 49,152 tokens without the bytes and the two special
_START, _END = "<|startoftext|>", "<|endoftext|>"
_LEGACY_EOS = 2
"""With this end token CLIP's text tower in transformers reads the highest number's position instead."""
_RESAMPLE = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "random": Image.Resampling.BICUBIC,  # random in training alone
}


# --- images ---


def image_processor(preprocess_cfg: Mapping[str, Any], resolution: int, source: str) -> CLIPImageProcessorPil:
    """``preprocess_cfg`` as a ``transformers`` image processor that makes ``resolution`` × ``resolution`` pixels (the
    tower's own resolution, which OpenCLIP too takes over the one in preprocess_cfg).

    Args:
        preprocess_cfg: Of ``open_clip_config.json``.
        resolution: In pixels; the tower's own, which OpenCLIP too takes over the one in ``preprocess_cfg``.
        source: Where the weights come from, for messages.

    Returns:
        Pillow's backend.

    Raises:
        ModelLoadError: For letterboxing (``resize_mode: longest``) and unknown values.
    """
    mode = preprocess_cfg.get("resize_mode") or "shortest"
    interpolation = preprocess_cfg.get("interpolation") or "bicubic"
    if mode not in {"shortest", "squash"} or interpolation not in _RESAMPLE:
        raise ModelLoadError(
            f"{source}: preprocess_cfg has resize_mode {mode!r} and interpolation {interpolation!r}. Supported are "
            f"shortest and squash, and {', '.join(_RESAMPLE)}"
        )
    crop = mode == "shortest"
    square = {"height": resolution, "width": resolution}
    return CLIPImageProcessorPil(
        size={"shortest_edge": resolution} if crop else square,
        crop_size=square,
        do_center_crop=crop,
        resample=_RESAMPLE[interpolation],
        image_mean=_three(preprocess_cfg.get("mean") or CLIP_MEAN),
        image_std=_three(preprocess_cfg.get("std") or CLIP_STD),
    )


def _three(value: float | Sequence[float]) -> list[float]:
    return [float(value)] * 3 if isinstance(value, int | float) else [float(each) for each in value]


# --- sentences ---


def tokenizer(text_cfg: Mapping[str, Any], folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint in ``folder``: that of its files, else the one its config names, else CLIP's own
    vocabulary (here or from an installed open_clip), else CLIP's from the hub.

    OpenCLIP also mends broken encodings (ftfy) and HTML entities in a text; this does not.

    Args:
        text_cfg: ``model_cfg.text_cfg`` of the checkpoint.
        folder: A local directory.

    Returns:
        A ``transformers`` tokenizer that cuts at the tower's length.

    Raises:
        ModelLoadError: Where there is none.
    """
    options = dict(text_cfg.get("tokenizer_kwargs") or {})
    if options.pop("clean", "whitespace") not in {"whitespace", "lower"} or any(options.values()):
        raise ModelLoadError(f"{folder}: text_cfg has tokenizer_kwargs {text_cfg['tokenizer_kwargs']!r}: not supported")
    found = _load(text_cfg, folder)
    found.model_max_length = int(text_cfg.get("context_length", 77))
    return found


def special_tokens(text_cfg: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """``bos_token_id``, ``eos_token_id`` and ``pad_token_id`` of a checkpoint with OpenCLIP's own text transformer.

    OpenCLIP reads a text at the highest of its numbers (``argmax``), ``transformers`` at the end token. Raises
    ``ModelLoadError`` where these are two, and for a tokenizer that is another model's.

    Args:
        text_cfg: ``model_cfg.text_cfg`` of the checkpoint.
        folder: A local directory.

    Returns:
        Their numbers.
    """
    found, vocabulary = tokenizer(text_cfg, folder), int(text_cfg.get("vocab_size", 49408))
    end, highest = int(found.eos_token_id), max(found.get_vocab().values())
    if highest >= vocabulary:
        raise ModelLoadError(
            f"{folder}: the tokenizer has {highest + 1} tokens, the text tower {vocabulary}: the tokenizer files "
            "belong to another model"
        )
    read = int(text_cfg.get("eos_id", 2)) if text_cfg.get("pool_type") == "eos" else highest
    if end != read or end == _LEGACY_EOS:
        raise ModelLoadError(
            f"{folder}: OpenCLIP reads a text at token {read}, while the tokenizer ends it with {end}: not supported"
        )
    return {"bos_token_id": int(found.bos_token_id), "eos_token_id": end, "pad_token_id": int(found.pad_token_id)}


def _load(text_cfg: Mapping[str, Any], folder: Path) -> PreTrainedTokenizerBase:
    if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")):
        return _from_files(folder)
    name = text_cfg.get("hf_tokenizer_name")
    if name and (folder / name).is_dir():
        return _from_files(folder / name)
    if not name:
        for place in (folder / VOCABULARY, _installed_vocabulary()):
            if place is not None and place.is_file():
                return clip_tokenizer(place)
    source = name or CLIP_TOKENIZER
    try:
        return AutoTokenizer.from_pretrained(on_hub(source))
    except (OSError, ValueError, KeyError, ImportError, ModelLoadError) as error:
        bare = "" if name else f", or CLIP's {VOCABULARY} (pip install 'domainclip[open_clip]' brings it, too),"
        remedy = f"tokenizer.json and tokenizer_config.json{bare}"
        raise ModelLoadError(
            f"The OpenCLIP checkpoint in {folder} has no tokenizer files, and {source!r} cannot be had from the hub "
            f"({str(error).splitlines()[0][:200]}). Put {remedy} into the folder"
        ) from error


def _from_files(folder: Path) -> PreTrainedTokenizerBase:
    read_tokenizer(folder / "tokenizer.json")  # says what is wrong with it better than transformers does
    try:
        try:
            return AutoTokenizer.from_pretrained(str(folder))
        except (OSError, ValueError, KeyError, AttributeError):
            if not (folder / "tokenizer.json").is_file():
                raise
            return PreTrainedTokenizerFast.from_pretrained(str(folder))  # its class is not named
    except Exception as error:  # tokenizers raises nothing more special for a damaged file
        raise ModelLoadError(f"Cannot load the tokenizer from {folder}: {first_line(error)}") from error


def _installed_vocabulary() -> Path | None:
    """open_clip's copy, found without importing it: that would need torchvision."""
    found = importlib.util.find_spec("open_clip")
    return Path(found.origin).parent / VOCABULARY if found is not None and found.origin else None


def clip_tokenizer(vocabulary: Path) -> CLIPTokenizer:
    """CLIP's tokenizer from its published list of merges (Radford et al. 2021, §2.4).

    Tokens are numbered: 256 bytes, the same at the end of a word, one for each merge, start, end. A byte is written as
    the character of its own number where that is printable, and otherwise as one of those from 256 on.

    Args:
        vocabulary: The gzipped file.

    Returns:
        As ``transformers`` has it.

    Raises:
        ModelLoadError: For a file that is not that list.
    """
    try:
        lines = gzip.decompress(vocabulary.read_bytes()).decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ModelLoadError(f"Cannot read CLIP's vocabulary {vocabulary}: {error}") from error
    merges = [tuple(line.split()) for line in lines[1 : 1 + _MERGES]]  # the first line tells a version
    if len(merges) < _MERGES or any(len(merge) != 2 for merge in merges):
        raise ModelLoadError(f"{vocabulary} is not CLIP's vocabulary: {_MERGES:,} pairs were expected after one line")
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    characters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    tokens = [*characters, *(f"{c}</w>" for c in characters), *("".join(merge) for merge in merges), _START, _END]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)

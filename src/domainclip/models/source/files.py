"""The files of a model folder, read with care: somebody else has written them, and they may be anything."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from domainclip.errors import ModelLoadError

LFS_MARK = b"version https://git-lfs.github.com/spec/"
"""How a Git LFS pointer begins: the note that Git keeps in place of a large file."""

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
OPEN_CLIP_CONFIG = "open_clip_config.json"
IMAGE_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
SAFE_WEIGHTS, PICKLED_WEIGHTS = "model.safetensors", "pytorch_model.bin"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
WEIGHTS = (SAFE_WEIGHTS, f"{SAFE_WEIGHTS}.index.json", PICKLED_WEIGHTS, f"{PICKLED_WEIGHTS}.index.json")
"""Weights in the layout of transformers, in the order in which it looks for them."""

JSON_FILES = (
    CONFIG,
    OPEN_CLIP_CONFIG,
    *IMAGE_PROCESSORS,
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "generation_config.json",
)
_TOKENIZERS = (TOKENIZER, "vocab.json", "vocab.txt", "*.model", "*.bpe", "*.tiktoken")
_LARGEST_JSON = 512 * 2**20
"""Bytes. Tokenizers of a quarter of a million tokens take 35 MB."""


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is Git LFS's note of where the file is.

    Args:
        path: A file.

    Returns:
        False for one that cannot be read, too.
    """
    try:
        with open(path, "rb") as handle:
            return handle.read(len(LFS_MARK)) == LFS_MARK
    except OSError:
        return False


def lfs_error(path: Path) -> ModelLoadError:
    """For a pointer in a file's place.

    Args:
        path: The file.

    Returns:
        The error to raise.
    """
    return ModelLoadError(
        f"{path} is a Git LFS pointer, a note of where the file is, and not the file itself: run `git lfs pull` in "
        f"{path.parent}, or download the model again with `hf download OWNER/NAME --local-dir DIR`"
    )


def check_regular(path: Path) -> None:
    """Refuse what is no regular file: reading a pipe would wait for ever.

    Args:
        path: Which is there, if only as a link.

    Raises:
        ModelLoadError: It is a folder, a link to nowhere, a pipe or a device.
    """
    remedy = "Copy the file again from where the model came from"
    try:
        if path.is_file():
            return
        if path.is_dir():
            raise ModelLoadError(f"{path} is a folder, where a file is needed. {remedy}")
        if path.is_symlink() and not path.exists():
            raise ModelLoadError(f"{path} is a link to {os.readlink(path)}, which is not there. {remedy}")
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror or error}") from error
    raise ModelLoadError(f"{path} is no regular file, but a pipe or a device. {remedy}")


def read_json_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file that has to hold an object.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        ModelLoadError: It is none, with the reason in a sentence.
    """
    remedy = "Copy the file again from where the model came from"
    check_regular(path)
    try:
        size = path.stat().st_size
        raw = path.read_bytes() if size <= _LARGEST_JSON else b""
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror or error}") from error
    if size > _LARGEST_JSON:
        raise ModelLoadError(f"{path} has {size:,} bytes, far more than such a file has. {remedy}")
    if raw.startswith(LFS_MARK):
        raise lfs_error(path)
    if not raw.strip():
        raise ModelLoadError(f"{path} is empty. {remedy}")
    if raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise ModelLoadError(
            f"{path} begins with a byte order mark, as some editors write it: save it as UTF-8 without one"
        )
    try:
        content = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"{path} is not text in UTF-8 (byte {error.start}). {remedy}") from error
    except RecursionError as error:
        raise ModelLoadError(f"{path} is nested more deeply than any such file. {remedy}") from error
    except json.JSONDecodeError as error:
        raise ModelLoadError(
            f"{path} is not valid JSON: {error.msg} in line {error.lineno}, column {error.colno}. {remedy}"
        ) from error
    except ValueError as error:  # Python refuses numbers of more than 4,300 digits
        raise ModelLoadError(f"{path} holds a number of thousands of digits. {remedy}") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path} holds {_kind_of(content)}, where an object in braces is needed. {remedy}")
    return content


def _kind_of(value: object) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights in the layout of transformers, each made sure of.

    Args:
        folder: Of a model.

    Returns:
        One file, or the shards of an index; none where there are no weights.

    Raises:
        ModelLoadError: A shard is missing, or a file is damaged.
    """
    found = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if found is None:
        return []
    files = _shards(found) if found.name.endswith(".index.json") else [found]
    for path in files:
        check_weights(path)
    return files


def _shards(index: Path) -> list[Path]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) and name and Path(name).name == name for name in weight_map.values()
    ):
        raise ModelLoadError(f"{index}: weight_map must say for each weight which file of this folder holds it")
    files = sorted(set(weight_map.values()))
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing or not files:
        named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ModelLoadError(
            f"{index} names {len(files)} files of weights, of which {len(missing)} are missing ({named}): the download "
            "is incomplete. Download the model again"
        )
    return [index.parent / name for name in files]


def check_weights(path: Path) -> None:
    """Make sure that a file of weights is whole, as far as its header tells.

    Args:
        path: A safetensors file, or a pickled one (which is not opened here).

    Raises:
        ModelLoadError: It is a folder, empty, a pointer, or damaged.
    """
    check_regular(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as handle:
            handle.read(1)
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror or error}") from error
    if size == 0:
        raise ModelLoadError(f"{path} is empty: the download was cut off. Download the model again")
    if is_lfs_pointer(path):
        raise lfs_error(path)
    if path.suffix != ".safetensors":
        return
    try:
        with safe_open(path, framework="np") as content:
            tensors = len(content.keys())
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(
            f"{path} is damaged or was cut off after {size:,} bytes ({str(error).splitlines()[0][:200]}): copy or "
            "download it again"
        ) from error
    if tensors == 0:
        raise ModelLoadError(f"{path} holds no weights. Copy or download it again")


def has_tokenizer(folder: Path) -> bool:
    """Whether there is a file that a tokenizer can be made from.

    Args:
        folder: Of a model.

    Returns:
        False where transformers would make an empty one.
    """
    return any(path.is_file() for pattern in _TOKENIZERS for path in folder.glob(pattern))

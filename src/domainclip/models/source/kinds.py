"""What a folder or file is that was named as a model and is none: one sentence, with what to do."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from domainclip.errors import ModelLoadError
from domainclip.models.source.files import (
    CONFIG,
    IMAGE_PROCESSORS,
    JSON_FILES,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    WEIGHTS,
    check_regular,
    check_weights,
    has_tokenizer,
    is_lfs_pointer,
    lfs_error,
    read_json_object,
    weight_files,
)
from domainclip.models.source.values import (
    check_config_values,
    check_image_values,
    check_open_clip_values,
    check_tokenizer_values,
)

Role = Literal["model", "image tower", "text tower"]
"""What a model is asked for: a whole dual encoder, or the one tower that it lends."""

KEY_OF_ROLE: dict[Role, str] = {
    "model": "model_name",
    "image tower": "vision_model_name",
    "text tower": "text_model_name",
}

WANTED = "a folder with config.json, model.safetensors, tokenizer.json and preprocessor_config.json"

_FILES = {
    ".pt": "a file of PyTorch weights without their config",
    ".pth": "a file of PyTorch weights without their config",
    ".ckpt": "a training checkpoint of another program",
    ".bin": "a file of PyTorch weights without their config",
    ".safetensors": "a file of weights without their config",
    ".onnx": "an exported ONNX model, which cannot be trained or evaluated here",
    ".gguf": "a GGUF model for llama.cpp, which cannot be read here",
    ".ggml": "a GGML model for llama.cpp, which cannot be read here",
    ".mlmodel": "an exported Core ML model, which cannot be read here",
    ".mlpackage": "an exported Core ML model, which cannot be read here",
    ".mlmodelc": "a compiled Core ML model, which cannot be read here",
    ".tflite": "an exported TensorFlow Lite model, which cannot be read here",
    ".h5": "weights of TensorFlow, which cannot be read here",
    ".keras": "a Keras model, which cannot be read here",
    ".pb": "a TensorFlow graph, which cannot be read here",
    ".msgpack": "weights of Flax, which cannot be read here",
    ".npz": "weights of MLX or NumPy, which cannot be read here",
    ".engine": "a compiled TensorRT engine, which cannot be read here",
    ".pkl": "a pickled Python object, which is not opened: it could run code",
    ".pickle": "a pickled Python object, which is not opened: it could run code",
    ".yaml": "a recipe or a domain, not a model: recipes go to --recipe",
    ".yml": "a recipe or a domain, not a model: recipes go to --recipe",
    ".csv": "a table of data, not a model: data go to --data",
}
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".xz", ".zst", ".bz2")
FILE_SUFFIXES = (*_FILES, *_ARCHIVES)
_READ = (".safetensors", ".bin", ".model", ".txt")
_DUAL_ENCODERS = ("vision_config", "text_config", "vision_config_dict", "text_config_dict")
_STEP = re.compile(r"(step|checkpoint|epoch)[-_]?\d+(\.\w+)?")
_SNAPSHOT = "snapshots"


def named(items: Iterable[object], limit: int = 3) -> str:
    """A few of many, for a message.

    Args:
        items: Shown as text.
        limit: How many are shown.

    Returns:
        With "and N more" where some are left out.
    """
    texts = [str(item) for item in items]
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit} more" if len(texts) > limit else "")


def file_problem(path: Path) -> ModelLoadError:
    """For a file where a folder is needed.

    Args:
        path: The file.

    Returns:
        The error to raise.
    """
    if not path.is_file():
        return ModelLoadError(f"{path} is a pipe or a device. A model is {WANTED}")
    if is_lfs_pointer(path):
        return lfs_error(path)
    folder = path.parent
    if path.name in (*JSON_FILES, *WEIGHTS, *OPEN_CLIP_WEIGHTS) and _is_model(folder):
        return ModelLoadError(f"{path} is one file of a model: give its folder {folder}")
    suffix = path.suffix.lower()
    if suffix in _ARCHIVES or (suffix not in _FILES and zipfile.is_zipfile(path)):
        return ModelLoadError(f"{path} is an archive: unpack it and give the folder that holds config.json")
    what = _FILES.get(suffix, "a file")
    return ModelLoadError(f"{path} is {what}. A model is {WANTED}, as save_pretrained and `domainclip train` write it")


def _is_model(folder: Path) -> bool:
    has_own = (folder / CONFIG).is_file() and any((folder / name).is_file() for name in WEIGHTS)
    return has_own or ((folder / OPEN_CLIP_CONFIG).is_file() and any((folder / w).is_file() for w in OPEN_CLIP_WEIGHTS))


def check_folder(folder: Path, role: Role = "model", weights: bool = True) -> None:
    """Make sure that a folder holds what a model of that role needs and that its files can be read.

    Weights are not read, only whether they are there and whole.

    Args:
        folder: An existing folder.
        role: What it is asked for.
        weights: Whether they are needed; config and processor are enough to plan and to count tokens.

    Raises:
        ModelLoadError: It is something else, or a file is missing, damaged, or of values that cannot be right.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise ModelLoadError(f"The folder {folder} cannot be read: {error.strerror or error}") from error
    if not names:
        raise ModelLoadError(f"The folder {folder} is empty. A model is {WANTED}")
    _refuse_other_kinds(folder, names)
    if OPEN_CLIP_CONFIG in names and not (CONFIG in names and any(name in names for name in WEIGHTS)):
        check_open_clip_folder(folder)
        return
    read = [name for name in names if name in JSON_FILES or Path(name).suffix in _READ]
    for path in (folder / name for name in read):
        check_regular(path)
        if is_lfs_pointer(path):
            raise lfs_error(path)
    contents = {name: read_json_object(folder / name) for name in JSON_FILES if name in names}
    config = contents[CONFIG]
    check_config_values(config, folder / CONFIG)
    _check_role(config, folder, role)
    _check_others(contents, folder)
    if weights and not weight_files(folder):
        raise _without_weights(folder, names)
    if role != "image tower" and not has_tokenizer(folder):
        raise ModelLoadError(
            f"{folder} has no tokenizer files, so that no caption could be told from another. Copy tokenizer.json and "
            "tokenizer_config.json from the model that it was made from"
        )
    if role != "text tower" and not any(name in names for name in IMAGE_PROCESSORS):
        raise ModelLoadError(
            f"{folder} has no preprocessor_config.json, which says how images are resized and normalised. Copy it from "
            "the model that it was made from"
        )


def _check_others(contents: dict[str, dict[str, Any]], folder: Path) -> None:
    for name in IMAGE_PROCESSORS:
        check_image_values(contents.get(name, {}), folder / name)
    check_tokenizer_values(contents.get("tokenizer_config.json", {}), folder / "tokenizer_config.json")


def check_open_clip_folder(folder: Path) -> None:
    """Make sure that a folder holds an OpenCLIP checkpoint whose files can be read.

    Args:
        folder: Named by the user.

    Raises:
        ModelLoadError: It does not, or a file is damaged or of values that cannot be right.
    """
    if not (folder / OPEN_CLIP_CONFIG).exists():
        raise ModelLoadError(f"Cannot load an OpenCLIP model from {folder}: it has no {OPEN_CLIP_CONFIG}")
    contents = {name: read_json_object(folder / name) for name in JSON_FILES if (folder / name).exists()}
    check_open_clip_values(contents[OPEN_CLIP_CONFIG], folder / OPEN_CLIP_CONFIG)
    _check_others(contents, folder)
    found = next((folder / name for name in OPEN_CLIP_WEIGHTS if (folder / name).exists()), None)
    if found is None:
        raise ModelLoadError(f"{folder} has an {OPEN_CLIP_CONFIG} and neither of its weights, {OPEN_CLIP_WEIGHTS[0]}")
    check_weights(found)


def _refuse_other_kinds(folder: Path, names: list[str]) -> None:
    for is_kind, describe in _KINDS:
        if is_kind(folder, names):
            raise ModelLoadError(describe(folder, names))
    if CONFIG in names or OPEN_CLIP_CONFIG in names:
        return
    inner = [path for path in _inside(folder) if _is_model(path)]
    if len(inner) == 1:
        raise ModelLoadError(f"{folder} holds a model in a folder of its own: give {inner[0]}")
    if inner:
        raise ModelLoadError(f"{folder} holds {len(inner)} models, each in a folder of its own: give {named(inner)}")
    weights = [name for name in names if Path(name).suffix.lower() in _FILES]
    pointers = [name for name in weights if is_lfs_pointer(folder / name)]
    if pointers:
        raise lfs_error(folder / pointers[0])
    if weights:
        what = _FILES[Path(weights[0]).suffix.lower()]
        raise ModelLoadError(f"{folder} has no {CONFIG}; {weights[0]} in it is {what}. A model is {WANTED}")
    raise ModelLoadError(f"{folder} is no model: it has no {CONFIG}, but {named(names)}. A model is {WANTED}")


def _inside(folder: Path) -> list[Path]:
    """Folders below that a download or a program may have put a model into."""
    below = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    return [*below, *(inner for path in below if path.name == _SNAPSHOT for inner in sorted(path.iterdir()))]


def _adapter(folder: Path, names: list[str]) -> str:
    base = read_json_object(folder / "adapter_config.json").get("base_model_name_or_path")
    of = f" of {base}" if isinstance(base, str) and base else ""
    return (
        f"{folder} holds a PEFT adapter{of}, not a whole model. Merge it first: "
        "PeftModel.from_pretrained(model, folder).merge_and_unload().save_pretrained(new_folder), then copy the "
        "tokenizer and preprocessor_config.json there"
    )


def _sentence_transformers(folder: Path, names: list[str]) -> str:
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and _is_model(path)]
    dual = [path for path in inner if _is_dual_encoder(read_json_object(path / CONFIG))]
    if dual:
        return f"{folder} is a sentence-transformers model: the dual encoder in it is {dual[0]}. Give that"
    return (
        f"{folder} is a sentence-transformers model without a CLIP model in it. A text model can be one of two towers: "
        f"give {inner[0] if inner else 'it'} as text_model_name, together with vision_model_name"
    )


def _run(folder: Path, names: list[str]) -> str:
    if _is_model(folder / "model"):
        return f"{folder} is the folder of a run, not a model: the trained model is {folder / 'model'}. Give that"
    if _is_model(folder / "best"):
        return (
            f"{folder} is the folder of a run that has not finished. Go on with it (domainclip train --output {folder} "
            f"--resume), or give its best weights so far, {folder / 'best'}"
        )
    return (
        f"{folder} is the folder of a run that has no model yet. Go on with it: domainclip train --output {folder} "
        "--resume"
    )


def _checkpoints(folder: Path, names: list[str]) -> str:
    whole = [folder / name for name in names if _STEP.fullmatch(name) and _is_model(folder / name)]
    if whole:  # as transformers' Trainer writes them
        return f"{folder} holds {len(whole)} checkpoints, each a model of its own: give one, such as {whole[-1]}"
    run = folder if folder.name == "checkpoints" else folder.parent
    model = next((run.parent / name for name in ("model", "best") if _is_model(run.parent / name)), None)
    instead = f"Give {model}" if model else "Give the model of the run, RUN/model"
    return f"{folder} holds the state of a training, to resume it, and not a model. {instead}"


def _is_run(folder: Path, names: list[str]) -> bool:
    return CONFIG not in names and (
        "run.json" in names or ("recipe.yaml" in names and bool({"model", "best", "checkpoints"} & set(names)))
    )


def _is_checkpoints(folder: Path, names: list[str]) -> bool:
    if CONFIG in names or OPEN_CLIP_CONFIG in names:
        return False
    one = _STEP.fullmatch(folder.name) is not None and "manifest.json" in names
    return one or any(_STEP.fullmatch(name) and (folder / name).is_dir() for name in names)


_KINDS: tuple[tuple[Callable[[Path, list[str]], bool], Callable[[Path, list[str]], str]], ...] = (
    (lambda folder, names: "adapter_config.json" in names, _adapter),
    (
        lambda folder, names: "model_index.json" in names,
        lambda folder, names: (
            f"{folder} is a diffusers pipeline, which makes images. A dual encoder of images and texts is needed, such "
            "as openai/clip-vit-base-patch32"
        ),
    ),
    # The text models among them have their config beside: as a text tower they are taken.
    (lambda folder, names: "modules.json" in names and CONFIG not in names, _sentence_transformers),
    (_is_run, _run),
    (_is_checkpoints, _checkpoints),
    (
        lambda folder, names: folder.suffix.lower() in (".mlpackage", ".mlmodelc"),
        lambda folder, names: f"{folder} is {_FILES[folder.suffix.lower()]}. A model is {WANTED}",
    ),
    (
        lambda folder, names: "saved_model.pb" in names,
        lambda folder, names: f"{folder} is a SavedModel of TensorFlow, which cannot be read here. A model is {WANTED}",
    ),
)


def _without_weights(folder: Path, names: list[str]) -> ModelLoadError:
    foreign = [name for name in names if Path(name).suffix.lower() in _FILES]
    if foreign:
        what = _FILES[Path(foreign[0]).suffix.lower()].replace(" without their config", " under another name")
        return ModelLoadError(
            f"{folder} has a {CONFIG} and no model.safetensors. {foreign[0]} in it is {what}. Give a folder that "
            "save_pretrained has written"
        )
    return ModelLoadError(
        f"{folder} has a {CONFIG} and no weights (model.safetensors or pytorch_model.bin): the download is incomplete. "
        "Download the model again"
    )


def _is_dual_encoder(config: dict[str, Any]) -> bool:
    return any(part in config for part in _DUAL_ENCODERS) or config.get("model_type") in ("clip", "siglip", "siglip2")


def _check_role(config: dict[str, Any], folder: Path, role: Role) -> None:
    """From the config alone, so that it is said before anything is loaded. What cannot be told here, the loaded model
    tells."""
    if _is_dual_encoder(config):
        return
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else config["model_type"]
    sees = "image_size" in config or "num_channels" in config
    reads = "vocab_size" in config
    if sees == reads:
        return
    kind = "an image model" if sees else "a text model"
    if sees and "Classification" in str(first):
        kind = "an image classifier"
    own: Role = "image tower" if sees else "text tower"
    other: Role = "text tower" if sees else "image tower"
    if role == "model":
        raise ModelLoadError(
            f"{folder} is {kind} ({first}), not a dual encoder of images and texts. It can be one of two towers: give "
            f"it as {KEY_OF_ROLE[own]}, together with {KEY_OF_ROLE[other]}"
        )
    if role != own:
        raise ModelLoadError(
            f"{KEY_OF_ROLE[role]}: {folder} is {kind} ({first}) and cannot be the {role}. Exchange it with "
            f"{KEY_OF_ROLE[own]}, or give another model"
        )

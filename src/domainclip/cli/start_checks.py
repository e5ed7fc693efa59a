"""What is wrong with a command is said at once: before torch is imported, and before data or a model are read."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from domainclip.config import CLIPFinetuningConfig
from domainclip.config.domain_name import is_domain_path
from domainclip.config.key_facts import facts_by_key, facts_of
from domainclip.errors import (
    ConfigurationError,
    DataError,
    DeviceError,
    MissingExtraError,
    MissingFileError,
    MissingRecipeError,
    MPSCompatibilityError,
)
from domainclip.registry import nearest


def check_start(config: CLIPFinetuningConfig) -> None:
    """Answer at once what needs no torch: data and reference sets that are not there, and what ``check_recipe`` finds.

    Args:
        config: The recipe of a command that reads its data.

    Raises:
        CLIPFinetuningError: There are no data at a path, or something else that the recipe names is not there.
    """
    for path in (config.data_path, *(config.retention_data or ())):
        check_data(path)
    check_recipe(config)


def check_recipe(config: CLIPFinetuningConfig, here: bool = True) -> None:
    """Answer at once where what a recipe names is not there: evaluators, objectives, metrics, files, a device.

    What a plugin adds is known once it is imported; with one, names are looked up then.

    Args:
        config: The recipe.
        here: Whether it is to run on this machine, with its device.

    Raises:
        CLIPFinetuningError: The first of them that is not there, with what is nearest.
    """
    _check_files(config)
    if not config.plugins:
        _check_names(config)
    if not here:
        return
    _check_device(config)
    if config.lora_r is not None and find_spec("peft") is None:
        raise MissingExtraError("peft", "lora", "lora_r (training with LoRA adapters)")


def check_data(path: str) -> None:
    """Answer at once where there are no data at a path.

    Args:
        path: A table, a folder, or ``hf:NAME``.

    Raises:
        DataError: There is nothing, or nothing that could be read.
        MissingExtraError: Reading it needs a package that is not installed.
    """
    if path.startswith("hf:"):
        if find_spec("datasets") is None:
            raise MissingExtraError("datasets", "datasets", f"Reading the data set {path}")
        return
    here = os.path.expanduser(path)
    if os.path.isfile(here):
        if os.path.getsize(here) == 0:
            raise DataError(f"{path} is empty: no valid image-text pairs in it")
        if here.lower().endswith(".parquet") and find_spec("pyarrow") is None:
            raise MissingExtraError("pyarrow", "parquet", f"Reading {path}")
    elif not os.path.lexists(here) and not re.search(r"[*?{\[]", path):  # a pattern of several files
        raise MissingFileError(
            f"Data not found: {path:.500}{_meant(here)}; a Hugging Face data set is named hf:OWNER/NAME"
        )


def check_model(config: CLIPFinetuningConfig, weights: bool = True) -> None:
    """Answer a wrong name or folder of a model at once: before torch is imported and anything is read.

    Where no model is named and the data are not there, the command says the latter.

    Args:
        config: The recipe of a command that loads its model.
        weights: Whether it needs them, and not the tokenizer and image processor alone.

    Raises:
        ModelLoadError: The model cannot be had, or is none.
    """
    from domainclip.models.source import find_model

    data = os.path.expanduser(config.data_path)
    if not config.is_set("model_name") and not data.startswith("hf:") and not os.path.lexists(data):
        return
    if config.vision_model_name or config.text_model_name:
        if config.vision_model_name:
            find_model(config.vision_model_name, "image tower")
        if config.text_model_name:
            find_model(config.text_model_name, "text tower")
    else:
        find_model(config.model_name, weights=weights)


def check_metric(name: str | None, what: str) -> None:
    """Answer at once where no figure has this name. Which of them the rows give is known once they are read.

    Args:
        name: Of a metric; None for none.
        what: Where it was given: a key, or an option.

    Raises:
        ConfigurationError: It is not the name of any figure of the package.
    """
    from domainclip.metrics.metric import METRICS

    if name is not None and name not in METRICS:
        raise ConfigurationError(f"Invalid {what} {name!r}: {_named(name, METRICS.names)}")


def check_name(key: str, name: object) -> None:
    """Answer at once where a key's value is the name of something that the package has not.

    Args:
        key: Of a recipe.
        name: Its value, or one entry of it.

    Raises:
        ConfigurationError: There is no such thing.
    """
    known = facts_of(CLIPFinetuningConfig, key).names
    if known and isinstance(name, str) and name not in known:
        raise ConfigurationError(f"Invalid {key} {name!r}: {_named(name, known)}")


def _check_names(config: CLIPFinetuningConfig) -> None:
    for key, facts in facts_by_key(CLIPFinetuningConfig):
        value = getattr(config, key)
        for name in [value] if isinstance(value, str) else list(value or ()) if facts.names else ():
            check_name(key, name)
    check_metric(config.primary_metric, "primary_metric")


def _named(name: str, known: Iterable[str]) -> str:
    guess = nearest(name, known)
    return f"did you mean {guess!r}?" if guess else f"choose one of {', '.join(known)}"


def _check_files(config: CLIPFinetuningConfig) -> None:
    if config.image_root is not None and not os.path.isdir(config.image_root):
        raise ConfigurationError(f"image_root {config.image_root} is not a directory{_meant(config.image_root)}")
    tree = config.class_hierarchy
    if isinstance(tree, str) and not os.path.isfile(tree):
        raise MissingRecipeError(f"Class hierarchy {tree} does not exist{_meant(tree)}")
    if is_domain_path(config.domain):
        from domainclip.domains import load_domain

        load_domain(config.domain)
    if config.text_preprocessing is not None:
        config.text_preprocessing.load()
    for name in config.plugins:
        if name.endswith(".py"):
            if not os.path.isfile(name):
                raise ConfigurationError(f"plugins: there is no file {Path(name).resolve()}{_meant(name)}")
        elif not _is_module(name.partition(".")[0]):
            raise ConfigurationError(
                f"plugins: there is no module {name!r}, neither installed nor in {os.getcwd()}; "
                "a file is named with its ending, such as mine.py"
            )


def _is_module(name: str) -> bool:
    sys.path.append(os.getcwd())
    try:
        return find_spec(name) is not None
    except ValueError:  # a name that is loaded already, and has no file
        return name in sys.modules
    finally:
        sys.path.pop()


def _meant(path: str) -> str:
    """What lies beside a path that is not there and has nearly its name, for the end of a message."""
    folder, name = os.path.split(path.rstrip("/"))
    beside = sorted(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else []
    guess = nearest(name, beside) if len(name) < 256 else None
    return f" (did you mean {os.path.join(folder, guess)}?)" if guess else ""


def _check_device(config: CLIPFinetuningConfig) -> None:
    """Refuse what this system or build of torch surely cannot do; the rest is seen by trying it, which takes torch."""
    system = platform.system()
    try:
        for_cpu_only = version("torch").endswith("+cpu")
    except PackageNotFoundError:  # a build without metadata says nothing of itself
        for_cpu_only = False
    if config.device == "mps" and system != "Darwin":
        raise MPSCompatibilityError(
            f"device='mps' cannot be used: this is {system} on {platform.machine()}, not a Mac. Otherwise use "
            "device='cpu'"
        )
    if config.device == "cuda" and (for_cpu_only or system == "Darwin"):
        why = "Macs have no CUDA" if system == "Darwin" else f"torch {version('torch')} is built for the CPU only"
        raise DeviceError(f"device='cuda' cannot be used: {why}. Otherwise use device='cpu'")
    on_cpu = config.device == "cpu" or (config.device is None and for_cpu_only and system != "Darwin")
    if on_cpu and config.precision == "fp16" and config.mixed_precision:
        raise ConfigurationError(
            "precision=fp16 on cpu: CPUs compute float16 far more slowly than float32. Use precision=bf16 or "
            "precision=fp32"
        )

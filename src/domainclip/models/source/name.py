"""What the name of a model means: a folder, a name on the hub, or a short name for one of these."""

from __future__ import annotations

import functools
import os
import re
import threading
from pathlib import Path

from domainclip.errors import CLIPFinetuningError, ModelLoadError
from domainclip.models.source.files import CONFIG, OPEN_CLIP_CONFIG
from domainclip.models.source.kinds import (
    FILE_SUFFIXES,
    KEY_OF_ROLE,
    Role,
    check_folder,
    check_open_clip_folder,
    file_problem,
)
from domainclip.registry import nearest

TINY = "tiny"
"""The model name that stands for a random CLIP made on the spot."""

SHORT_NAMES = {
    "vit-b-32": "openai/clip-vit-base-patch32",
    "vit-b-16": "openai/clip-vit-base-patch16",
    "vit-l-14": "openai/clip-vit-large-patch14",
    "vit-l-14-336": "openai/clip-vit-large-patch14-336",
    "siglip-b-16": "google/siglip-base-patch16-224",
}
"""Short names and what they stand for on the hub."""

HUB_PREFIX, FOLDER_PREFIX = "hf-hub:", "local-dir:"
"""As open_clip itself tells a repository of the hub and a local directory from its own names."""

HUB_TIMEOUT = 2.0
"""Seconds in which the hub has to say that it knows a model; HF_HUB_ETAG_TIMEOUT sets another limit."""

_PAGE = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+).*")
_HUB_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def short_name(name: str) -> str | None:
    """The short name that is meant, however it is spelt (``ViT-B/32``, ``vit_b_32``, ``ViT-L/14@336px``), or that of a
    name on the hub.

    Args:
        name: As it was typed.

    Returns:
        A key of ``SHORT_NAMES``; None for another name.
    """
    spelt = re.sub(r"[/_@ ]+", "-", name.strip().lower()).removesuffix("px")
    return spelt if spelt in SHORT_NAMES else next((key for key, hub in SHORT_NAMES.items() if hub == name), None)


def find_model(name: str, role: Role = "model", weights: bool = True) -> str:
    """What a recipe names as a model, made sure of before torch is imported or anything is loaded.

    Args:
        name: A local directory (``~`` is understood), a name on the hub, a short name, ``tiny``, or with a prefix an
            OpenCLIP checkpoint.
        role: What it is asked for.
        weights: Whether they are needed; config and processor are enough to plan and to count tokens.

    Returns:
        A directory or a name on the hub, as ``from_pretrained`` takes it; prefixes of OpenCLIP stay.

    Raises:
        ModelLoadError: It is no model, or the hub does not know it or cannot be asked.
    """
    text = str(name).strip()
    if text == TINY:
        return text
    if not text:
        raise ModelLoadError(f"{KEY_OF_ROLE[role]} is empty: give a directory or a name on the hub")
    if text.startswith(HUB_PREFIX):
        repository = text.removeprefix(HUB_PREFIX)
        _check_hub_name(repository)
        found = on_hub(repository)
        return text if found == repository else f"{FOLDER_PREFIX}{found}"
    if text.startswith(FOLDER_PREFIX):
        path = _expanded(text.removeprefix(FOLDER_PREFIX))
        check_open_clip_folder(path)
        return f"{FOLDER_PREFIX}{path}"
    path = _expanded(text)
    if _looks_local(text, path):
        _check_path(path, role, weights)
        return str(path)
    if page := _PAGE.fullmatch(text):
        raise ModelLoadError(f"{text} is a page of the hub: give the name alone, {page.group(1)}")
    known = short_name(text)
    repository = SHORT_NAMES[known] if known else text
    _check_hub_name(repository)
    if "/" not in repository and role == "model" and _cached(repository) is None:
        raise ModelLoadError(f"There is no folder {text!r} here, and no model of that name.{_guess(text)} {_HINT}")
    found = on_hub(repository)
    if found != repository:  # an earlier download
        check_folder(Path(found), role, weights)
    return found


_HINT = f"Short names: {', '.join(SHORT_NAMES)}, {TINY}. Models on the hub are named OWNER/NAME"


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ModelLoadError(f"{text}: the home directory is not known. Give the whole path") from error


def _looks_local(text: str, path: Path) -> bool:
    try:
        there = path.exists() or path.is_symlink()
    except (OSError, ValueError) as error:  # too long, or a null byte
        reason = getattr(error, "strerror", None) or error
        raise ModelLoadError(f"The model {_shown(text)} cannot be read: {reason}") from error
    if there or text.startswith((".", "/", "~")) or "\\" in text or text.lower().endswith(FILE_SUFFIXES):
        return True
    return text.count("/") > 1 and not _PAGE.fullmatch(text) and short_name(text) is None and ":" not in text


def _check_path(path: Path, role: Role, weights: bool) -> None:
    try:
        if path.is_dir():
            check_folder(path, role, weights)
            return
        there = path.exists()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelLoadError(f"The model {_shown(str(path))} cannot be read: {reason}") from error
    if there:
        raise file_problem(path)
    if path.is_symlink():
        raise ModelLoadError(f"{path} is a link to {os.readlink(path)}, which is not there")
    beside = [each.name for each in path.parent.iterdir() if each.is_dir()] if path.parent.is_dir() else []
    guess = nearest(path.name, beside)
    like = f" There is {path.parent / guess}: is that meant?" if guess else ""
    raise ModelLoadError(
        f"The model's directory {path} does not exist.{like} Give a directory that `domainclip train` or "
        "save_pretrained has written, or a name on the hub such as openai/clip-vit-base-patch32"
    )


def _check_hub_name(text: str) -> None:
    if text.startswith("hf:"):
        raise ModelLoadError(f"{text}: hf: is for data. A model on the hub is named {text.removeprefix('hf:')}")
    if not _HUB_NAME.fullmatch(text) or len(text) > 96:
        raise ModelLoadError(
            f"{text[:80]!r} is neither a directory nor a name that the hub could have.{_guess(text[:80])} {_HINT}"
        )


def _shown(text: str) -> str:
    return text if len(text) <= 480 else f"{text[:80]}… ({len(text):,} characters)"


def _guess(text: str) -> str:
    """The known name most like a mistyped one, in a sentence."""
    names = {**{short: short for short in SHORT_NAMES}, TINY: TINY}
    for hub in SHORT_NAMES.values():
        names |= {hub: hub, hub.split("/")[1]: hub}
    spelt = text.strip().lower().replace("_", "-")
    guess = nearest(spelt, names) or nearest(re.sub(r"[/@: ]+", "-", spelt), names)
    if guess is None or names[guess] == text:
        return ""
    return f" Did you mean {names[guess]}?"


def _cached(repository: str) -> str | None:
    """The folder of a repository that was downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    for name in (CONFIG, OPEN_CLIP_CONFIG):
        found = try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return str(Path(found).parent)
    return None


@functools.lru_cache(maxsize=64)
def on_hub(repository: str) -> str:
    """The name itself where the hub knows it; where the hub cannot be asked, the folder of an earlier download.

    transformers would ask several times, half a minute in all, and print a warning for each.

    Args:
        repository: Its name.

    Returns:
        The name, or a folder.

    Raises:
        ModelLoadError: The hub does not know it, or cannot be asked.
    """
    problem = _hub_problem(repository)
    if problem is None:
        return repository
    if isinstance(problem, ModelLoadError):
        raise problem
    cached = _cached(repository)
    if cached is not None:
        return cached
    raise ModelLoadError(
        f"Cannot get the model {repository!r} from the hub: {problem}.{_guess(repository)} To work offline, download "
        f"it once on a machine with a network (hf download {repository} --local-dir DIR) and give model_name=DIR"
    )


def _hub_problem(repository: str) -> str | CLIPFinetuningError | None:
    """None where the hub knows the model, an error where it does not, and a reason where it cannot be asked."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids to ask it"
    limit = float(constants.HF_HUB_ETAG_TIMEOUT) if "HF_HUB_ETAG_TIMEOUT" in os.environ else HUB_TIMEOUT
    outcome: list[str | CLIPFinetuningError | None] = []

    def ask() -> None:
        try:
            HfApi().model_info(repository, timeout=limit)
            outcome.append(None)
        except GatedRepoError:
            outcome.append(None)  # its files say what is to be agreed to
        except (RepositoryNotFoundError, HFValidationError):
            outcome.append(
                ModelLoadError(
                    f"The hub has no model {repository!r}, or it is private (then: hf auth login)."
                    f"{_guess(repository)} {_HINT}"
                )
            )
        except HfHubHTTPError as error:
            status = error.response.status_code
            outcome.append(None if status == 429 else f"it answers with the error {status}")
        except Exception as error:  # of the network, whose library differs between versions of the hub's
            outcome.append(f"there is no network ({str(error).splitlines()[0][:100] if str(error) else error!r})")

    # In a thread, since no time limit of a request covers the search for the host's address.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(limit)
    if outcome:
        return outcome[0]
    return f"there is no network, or no answer in {limit:g} seconds (where it is slow, set HF_HUB_ETAG_TIMEOUT=30)"

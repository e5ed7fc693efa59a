"""What embeddings are of: a digest that differs where a model, or the way to it, differs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from domainclip.files import sha256_of
from domainclip.models.source.files import CONFIG, IMAGE_PROCESSORS, TOKENIZER, weight_files
from domainclip.resolve import ResolvedInference

_OTHER_FILES = (CONFIG, TOKENIZER, "tokenizer_config.json", *IMAGE_PROCESSORS)


def fingerprint_of(folder: Path) -> str:
    """Digest the files that decide what a model computes.

    Args:
        folder: The model's.

    Returns:
        SHA-256 in hexadecimal digits.

    Raises:
        ModelLoadError: A file of weights is missing or damaged.
        OSError: A file cannot be read.
    """
    digest = hashlib.sha256()
    others = [folder / name for name in _OTHER_FILES if (folder / name).is_file()]
    for path in [*weight_files(folder), *others]:
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def space_fingerprint(resolved: ResolvedInference, model: str) -> str:
    """Digest what decides where an image or a text lies among all embeddings.

    Args:
        resolved: The recipe, with the steps of its domain.
        model: Digest of the model, from ``fingerprint_of`` where it has a folder.

    Returns:
        SHA-256 in hexadecimal digits.
    """
    recipe = resolved.recipe
    keys = ("image_resolution", "max_sequence_length")
    content = {
        "model": model,
        "domain": resolved.domain.digest(),
        **{key: getattr(recipe, key) if recipe.is_set(key) else None for key in keys},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

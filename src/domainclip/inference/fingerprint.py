"""What embeddings are of: a digest that differs where a model, or the way to it, differs."""

from __future__ import annotations

import hashlib
import json

from domainclip.resolve import ResolvedInference


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

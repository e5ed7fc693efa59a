"""Captions for rows that have only a label."""

from __future__ import annotations

from collections.abc import Sequence

from domainclip.data.captions.grammar import fit_article
from domainclip.errors import DataError

CLASS_CAPTION = "a photo of a {label}"
"""What is written from a label where neither user nor domain says how."""


def caption_from_label(template: str, label: str) -> str:
    """Write a caption from a label, with the article that suits it.

    Args:
        template: With ``{label}`` or ``{}`` where the label goes.
        label: A class's name, whose underscores are read as spaces.

    Returns:
        The caption.

    Raises:
        DataError: The template has no place for the label.
    """
    place = "{label}" if "{label}" in template else "{}"
    before, found, after = template.partition(place)
    if not found:
        raise DataError(f"Invalid caption_template {template!r}: it must contain {{label}}, where the label goes")
    spoken = " ".join(label.replace("_", " ").split())
    return fit_article(before, spoken or label) + (spoken or label) + after.replace(place, spoken or label)


def template_of(prompts: Sequence[str]) -> str:
    """The first prompt of a domain that says more than the class's name, as the template of captions.

    Args:
        prompts: The domain's sentences, with ``{}`` for the class.

    Returns:
        It, without a stop at its end; ``CLASS_CAPTION`` where there is none.
    """
    found = next((prompt for prompt in prompts if prompt.replace("{}", "").strip(" .")), CLASS_CAPTION)
    return found.rstrip(".")

"""From class names to the text side of a classifier.

A class is described by several sentences rather than one; the mean of their embeddings is the class's weight
vector (Radford et al. 2021, section 3.1.4, "prompt ensembling").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from domainclip.config.settings import DEFAULT_TEMPLATES
from domainclip.errors import ConfigurationError, ShapeError

# Letters whose *names* start with a vowel sound: "an MRI scan", but "a CT scan".
_VOWEL_SOUNDING_INITIALS = frozenset("AEFHILMNORSX")


def class_prompts(
    labels: Sequence[str],
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    fix_article: bool = True,
    names_of: Callable[[str], Sequence[str]] | None = None,
) -> dict[str, list[str]]:
    """The sentences that describe each label, one per template and name.

    Args:
        labels: Class names, whose underscores are read as spaces.
        templates: Sentences in which ``{}`` stands for the label.
        fix_article: Whether an "a" or "an" right before the label is made to suit it, which its first letter decides
            (so "an hour" is missed).
        names_of: Gives the names that are used in a label's place (synonyms, or what a code stands for).

    Returns:
        Sentences, keyed by the label as given.

    Raises:
        ConfigurationError: A list is empty, a label is empty, a template is without ``{}``, or two labels have the same
            sentences but for capitals, so that no text tower could tell them apart.
    """
    if not labels:
        raise ConfigurationError("No class names to make prompts from: give at least one label")
    if not templates:
        raise ConfigurationError("No prompt templates: give at least one, such as 'a photo of a {}.'")
    for template in templates:
        if "{}" not in template:
            raise ConfigurationError(
                f"The prompt template {template!r} has no place for the class name: write {{}} where it belongs"
            )
    prompts: dict[str, list[str]] = {}
    for label in labels:
        names = [" ".join(n.replace("_", " ").split()) for n in (names_of(label) if names_of is not None else [label])]
        if not names or not all(names):
            raise ConfigurationError(f"The class name {label!r} is empty: name the class or leave its rows out")
        prompts[label] = [_fill(template, name, fix_article) for name in names for template in templates]
    first: dict[tuple[str, ...], str] = {}
    for label, sentences in prompts.items():
        same = first.setdefault(tuple(sentence.casefold() for sentence in sentences), label)
        if same != label:
            raise ConfigurationError(
                f"The classes {same!r} and {label!r} have the same prompts ({sentences[0]!r}), so that no model can "
                "tell them apart: give them one spelling in the label column, or names of their own"
            )
    return prompts


def _fill(template: str, spoken: str, fix_article: bool) -> str:
    if fix_article:
        article = "an" if _starts_with_vowel_sound(spoken) else "a"

        def suited(found: re.Match[str]) -> str:
            return (article.capitalize() if found[1][0] == "A" else article) + found[2]

        template = re.sub(r"\b([Aa]n?)(\s+\{\})", suited, template)
    # Not str.format: a label may hold braces of its own.
    return template.replace("{}", spoken)


def _starts_with_vowel_sound(spoken: str) -> bool:
    first = spoken.split()[0].strip("\"'([")
    if len(first) > 1 and first.isupper():
        return first[0] in _VOWEL_SOUNDING_INITIALS
    return first.lower().startswith(tuple("aeiou"))


def classifier_weights(
    encode_text: Callable[[list[str]], Float[Tensor, "texts dim"]], prompts: Mapping[str, Sequence[str]]
) -> Float[Tensor, "classes dim"]:
    """One unit vector per class: normalise, average, normalise again.

    Normalising first gives every sentence the same say. Equal sentences are encoded once.

    Args:
        encode_text: From texts to one embedding each, of any length.
        prompts: The sentences of each class.

    Returns:
        Unit vectors in float32, in the order of ``prompts``.

    Raises:
        ConfigurationError: There are no classes, or one is without prompts.
        ShapeError: The encoder returns something other than one row per text.
    """
    if not prompts:
        raise ConfigurationError("No class prompts to build a classifier from: give at least one class")
    for label, sentences in prompts.items():
        if not sentences:
            raise ConfigurationError(f"The class {label!r} has no prompts: give it at least one sentence")
    index_of = {text: row for row, text in enumerate(dict.fromkeys(t for texts in prompts.values() for t in texts))}
    embeds = encode_text(list(index_of))
    if embeds.ndim != 2 or len(embeds) != len(index_of):
        raise ShapeError(f"Batch size mismatch: {len(index_of)} prompts gave embeddings of shape {tuple(embeds.shape)}")
    embeds = F.normalize(embeds.float(), dim=-1)
    means = [embeds[[index_of[text] for text in sentences]].mean(dim=0) for sentences in prompts.values()]
    return F.normalize(torch.stack(means), dim=-1)

"""The labels of all splits together: spellings of one class, several labels an image, names that say nothing."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from domainclip.data.records import ImageTextPair
from domainclip.words import some_of

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_CODE = re.compile(r"\d+[.\-_: ]+\D")
_BETWEEN = re.compile(r"\s*[,+&/]\s*")
_TRUTH = {"true", "false", "yes", "no", "t", "f", "y", "n"}


def unify_labels(parts: Iterable[Sequence[ImageTextPair]]) -> list[str]:
    """Make one class of labels whose prompts are equal, and one kind of all rows where any has several labels.

    Labels that differ in case, blanks and underscores alone are one: a text tower cannot tell them apart. Where an
    image has several labels, all rows have ``labels`` and no ``label``.

    Args:
        parts: The rows of all splits, which are changed in place.

    Returns:
        What was done, in sentences.
    """
    rows = [pair for part in parts for pair in part]
    counts = Counter(label for pair in rows for label in all_labels(pair))
    spellings: dict[str, list[str]] = defaultdict(list)
    for label in sorted(counts, key=lambda label: (-counts[label], label)):
        spellings[spoken(label)].append(label)
    notes = []
    several = [found for found in spellings.values() if len(found) > 1]
    if several:
        shown = "; ".join(" = ".join(map(repr, found)) for found in several[:3]) + "; …" * (len(several) > 3)
        notes.append(f"labels that differ in case, blanks or underscores alone are one class each: {shown}")
        one = {label: found[0] for found in several for label in found}
        for pair in rows:
            pair.label = one.get(pair.label, pair.label) if pair.label is not None else None
            if pair.labels is not None:
                pair.labels = tuple(dict.fromkeys(one.get(label, label) for label in pair.labels))
    multiple = sum(pair.labels is not None and len(pair.labels) > 1 for pair in rows)
    if multiple:
        for pair in rows:
            pair.labels, pair.label = tuple(all_labels(pair)) or None, None
        names = {label for pair in rows for label in all_labels(pair)}
        notes.append(
            f"{some_of(multiple, len(rows), 'row', 'have')} several labels: each of the {len(names)} labels is "
            "evaluated for "
            "itself, present or absent, and none of them is a class that excludes the others"
        )
    return notes


def all_labels(pair: ImageTextPair) -> tuple[str, ...]:
    """The labels of a row, however many.

    Args:
        pair: The row.

    Returns:
        Its labels; none where it has none.
    """
    return pair.labels if pair.labels is not None else (pair.label,) if pair.label is not None else ()


def spoken(label: str) -> str:
    """A label as a prompt has it, in small letters.

    Args:
        label: It, as the data have it.

    Returns:
        Equal texts for labels whose prompts are equal to a tokenizer that knows no capitals.
    """
    return " ".join(label.replace("_", " ").casefold().split())


def doubtful_names(labels: Iterable[str]) -> dict[str, tuple[list[str], str]]:
    """Names of classes that say nothing to a text tower, or nearly the same.

    Args:
        labels: The classes.

    Returns:
        For each kind that occurs the labels and what to do: ``numbers``, ``true and false``, ``codes``,
        ``several in one, perhaps``, ``alike``.
    """
    names = sorted(set(labels))
    if not names:
        return {}
    found: dict[str, tuple[list[str], str]] = {}
    numbers = [name for name in names if _NUMBER.fullmatch(name)]
    write = "write the classes' names into the label column, since prompts are made from them"
    if numbers:
        found["numbers"] = (numbers, write)
    truths = [name for name in names if name.casefold() in _TRUTH]
    if truths and len(truths) == len(names):
        found["true and false"] = (truths, write)
    codes = [name for name in names if _CODE.match(name)]
    if codes:
        found["codes"] = (codes, "leave the code before the name out of the labels: prompts repeat it")
    joined = _joined(names)
    if joined:
        bar = "where an image has several labels, write | between them; where the sign is part of a name, all is well"
        found["several in one, perhaps"] = (joined, bar)
    bare: dict[str, list[str]] = defaultdict(list)
    for name in names:
        bare[re.sub(r"[\W_]+", "", name.casefold())].append(name)
    alike = [name for group in bare.values() if len(group) > 1 for name in group]
    if alike:
        found["alike"] = (alike, "give one class one spelling: they are counted as different classes")
    return found


def _joined(names: Sequence[str]) -> list[str]:
    """Names that are probably several: of their parts between commas and the like one stands alone elsewhere, or at
    another place. "Tomato, healthy" beside "Tomato, leaf spot" is none."""
    parts = {name: [spoken(part) for part in _BETWEEN.split(name)] for name in names}
    places: dict[str, set[int]] = defaultdict(set)
    for found in parts.values():
        for place, part in enumerate(found):
            places[part].add(place if len(found) > 1 else -1)
    return [name for name, found in parts.items() if len(found) > 1 and any(len(places[part]) > 1 for part in found)]


def doubtful_sentences(labels: Iterable[str]) -> list[str]:
    """``doubtful_names`` in sentences.

    Args:
        labels: The classes.

    Returns:
        One for each kind that occurs, without a stop.
    """
    what = {
        "numbers": "labels are numbers",
        "true and false": "labels are true and false",
        "codes": "labels begin with a code",
        "several in one, perhaps": "labels hold other labels",
        "alike": "labels differ in their signs alone",
    }
    return [
        f"{what[kind]} ({', '.join(names[:4])}{', …' if len(names) > 4 else ''}): {advice}"
        for kind, (names, advice) in doubtful_names(labels).items()
    ]

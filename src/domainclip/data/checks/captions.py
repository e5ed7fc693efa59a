"""Findings about captions and classes: cut, repeated, unbalanced."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from domainclip.data.checks.findings import Finding, Severity
from domainclip.data.labels import all_labels
from domainclip.data.records import ImageTextPair
from domainclip.words import counted, some_of

IMBALANCE = 10.0
"""Largest class over smallest from which balance is worth a warning."""

_PIECES = re.compile(r"[^\W\d_]+|\d|[^\s\w]|_")
_COUNT_BATCH = 1024


def estimate_tokens(captions: Sequence[str]) -> list[int]:
    """Words, digits and punctuation marks, plus start and end: what a byte-pair vocabulary gives for plain
    English.

    Over 1,500 web captions CLIP's own vocabulary gives 1.02 tokens for each of these pieces; technical terms,
    which it splits, give more.

    Args:
        captions: Texts.

    Returns:
        Tokens of each, at least 2.
    """
    return [len(_PIECES.findall(caption)) + 2 for caption in captions]


def expected_equal_captions(captions: Sequence[str], batch_size: int) -> float:
    """How many of the other rows of a random batch have a given row's caption, on average over rows.

    Batches are drawn without replacement: (B - 1) · Σ n_c (n_c - 1) / (N (N - 1)) for N rows, n_c of caption
    c.

    Args:
        captions: One a row.
        batch_size: Rows a batch (B); all rows, where there are fewer.

    Returns:
        Between 0 (all captions differ, or there are fewer than two) and B - 1 (all are equal).
    """
    total = len(captions)
    if total < 2:
        return 0.0
    same = sum(count * (count - 1) for count in Counter(captions).values())
    return (min(batch_size, total) - 1) * same / (total * (total - 1))


def caption_length(
    captions: Sequence[str],
    max_tokens: int,
    count_tokens: Callable[[list[str]], list[int]] | None,
    by_sentence: bool = False,
) -> Finding:
    """How many rows have a caption that is cut at ``max_tokens`` (start and end tokens included), or at the end of its
    last sentence before that.

    Args:
        captions: One a row, as the tokenizer gets them.
        max_tokens: The longest that is not cut.
        count_tokens: Gives the tokens of each text, start and end included; None: they are estimated.
        by_sentence: Whether training cuts after the last whole sentence that fits.

    Returns:
        ``captions-cut``, a warning if any is cut; its count is of rows.
    """
    distinct = Counter(captions)
    texts = list(distinct)
    counter = count_tokens or estimate_tokens
    lengths: list[int] = []
    for start in range(0, len(texts), _COUNT_BATCH):
        lengths += [int(length) for length in counter(texts[start : start + _COUNT_BATCH])]
    cut = sorted(
        ((length, text) for text, length in zip(texts, lengths, strict=True) if length > max_tokens), reverse=True
    )
    rows = sum(distinct[text] for _, text in cut)
    how = "" if count_tokens else ", estimated from words without the model's tokenizer"
    longest = max(lengths, default=0)
    examples = [f"{length} tokens: {text[:60]}{'…' if len(text) > 60 else ''}" for length, text in cut]
    detail = (
        f"more than {max_tokens} tokens: {some_of(rows, len(captions), 'caption')} ({rows / max(1, len(captions)):.1%})"
        f"{', cut' if rows else ''}; the longest has {longest}{how}"
    )
    seen = "Only the whole sentences that fit are seen" if by_sentence else "The rest is not seen"
    advice = f"{seen}: put what matters first, shorten, or split into several captions." if rows else "Nothing to do."
    return Finding("captions-cut", "warning" if rows else "info", rows, examples, advice, detail)


class KnownWords(Protocol):
    """What a tokenizer knows (``models.vocabulary``)."""

    def unknown(self, texts: Sequence[str], /) -> list[bool]:
        """Which texts are mostly unknown."""
        ...

    def special_tokens_in(self, text: str, /) -> list[str]:
        """The tokenizer's own marks in a text."""
        ...


def unknown_captions(captions: Sequence[str], vocabulary: KnownWords) -> list[Finding]:
    """Captions that say nothing to the model: of another language or of signs that its tokenizer does not know, or with
    the tokenizer's own marks in them.

    Args:
        captions: One a row.
        vocabulary: What the tokenizer knows.

    Returns:
        ``unknown-captions`` and ``special-tokens``, warnings whose counts are of rows; none where there are no such.
    """
    distinct = Counter(captions)
    texts = list(distinct)
    unknown: list[str] = []
    for start in range(0, len(texts), _COUNT_BATCH):
        batch = texts[start : start + _COUNT_BATCH]
        unknown += [text for text, found in zip(batch, vocabulary.unknown(batch), strict=True) if found]
    marked = [text for text in texts if vocabulary.special_tokens_in(text)]
    findings = []
    for name, found, what, verb, advice in (
        (
            "unknown-captions",
            unknown,
            "of a language or of signs that the model's tokenizer does not know: it spells them in pieces without "
            "meaning",
            "are",
            "Translate them, or start from a model with a multilingual text tower.",
        ),
        (
            "special-tokens",
            marked,
            "marks of the tokenizer itself, which end or blank a text",
            "hold",
            "Remove the marks from the captions.",
        ),
    ):
        if found:
            rows = sum(distinct[text] for text in found)
            detail = f"{some_of(rows, len(captions), 'caption', verb)} {what}"
            examples = [text[:60] + "…" * (len(text) > 60) for text in found]
            findings.append(Finding(name, "warning", rows, examples, advice, detail))
    return findings


def caption_repetition(captions: Sequence[str], batch_size: int, assumed: bool) -> list[Finding]:
    """Fraction of repeated captions, equal captions in a batch, one caption only.

    Args:
        captions: Of the training rows.
        batch_size: Rows that meet in a batch.
        assumed: Whether nobody has chosen that batch size; the finding then says so.

    Returns:
        ``one-caption`` alone, or ``repeated-captions`` and ``false-negatives``; nothing where all captions differ. The
        latter is a warning from one expected equal caption in a batch on.
    """
    if not captions:
        return []
    counts = Counter(captions)
    common = [f"{count} x: {text[:60]}" for text, count in counts.most_common() if count > 1]
    if len(counts) == 1 and len(captions) > 1:
        advice = "Contrastive training compares captions: add rows with others, or describe each image."
        return [Finding("one-caption", "error", len(captions), common, advice, "all captions are equal")]
    repeated = sum(count for count in counts.values() if count > 1)
    if not repeated:
        return []
    equal = expected_equal_captions(captions, batch_size)
    matches = "Equal captions count as matches of each other in losses and retrieval figures."
    share = f"{some_of(repeated, len(captions), 'row')} ({repeated / len(captions):.1%}) share their caption"
    advice = "Keep the multi-positive targets on (they are by default), or vary the captions."
    detail = (
        f"at batch size {batch_size}{' (assumed)' if assumed else ''} a row meets {equal:.2f} others with its own "
        "caption, which a plain contrastive loss would push away"
    )
    return [
        Finding("repeated-captions", "info", repeated, common, matches, f"{share}; {len(counts)} distinct"),
        Finding("false-negatives", "warning" if equal >= 1 else "info", repeated, [], advice, detail),
    ]


def class_balance(pairs: Sequence[ImageTextPair]) -> list[Finding]:
    """Counts by label: imbalance, classes of one image, one class only, rows without label.

    Args:
        pairs: Of the training split. An image counts once for each of its labels.

    Returns:
        The findings; none where no row has a label. Imbalance is a warning from ``IMBALANCE`` on.
    """
    labelled = [pair for pair in pairs if all_labels(pair)]
    if not labelled:
        return []
    images = {(pair.image_path, label) for pair in labelled for label in all_labels(pair)}
    counts = Counter(label for _, label in images)
    findings = []
    if len(counts) == 1:
        advice = "Classification figures mean nothing with one class: add images of others."
        findings.append(Finding("one-class", "warning", len(labelled), list(counts), advice, "only one class"))
    else:
        most, least = max(counts.values()), min(counts.values())
        ranked = [f"{label}: {count}" for label, count in counts.most_common()]
        ranked = ranked if len(ranked) <= 5 else [*ranked[:2], "…", *ranked[-2:]]
        detail = f"{counted(len(counts), 'class')} of {least} to {most} images (ratio {most / least:.1f})"
        severity: Severity = "warning" if most / least >= IMBALANCE else "info"
        advice = "Read mean_per_class_recall beside accuracy; sample small classes more often."
        advice = advice if severity == "warning" else "Nothing to do."
        findings.append(Finding("class-balance", severity, len(counts), ranked, advice, detail))
    single = sorted(label for label, count in counts.items() if count == 1)
    if single:
        advice = "A class of one image cannot be both trained and tested: add images or merge classes."
        findings.append(Finding("single-image-classes", "warning", len(single), single, advice, "classes of one image"))
    if missing := len(pairs) - len(labelled):
        examples = [str(pair.image_path) for pair in pairs if not all_labels(pair)][:5]
        advice = "These rows train by caption alone and take no part in classification figures."
        findings.append(Finding("unlabelled-rows", "info", missing, examples, advice, "rows without a label"))
    return findings

"""Findings about captions and classes: cut, repeated, unbalanced."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from domainclip.data.checks.findings import Finding
from domainclip.data.records import ImageTextPair

IMBALANCE = 10.0
"""Largest class over smallest from which balance is worth a warning."""

_PIECES = re.compile(r"[^\W\d_]+|\d|[^\s\w]|_")
_COUNT_BATCH = 1024


def estimate_tokens(captions: Sequence[str]) -> list[int]:
    """Words, digits and punctuation marks, plus start and end: what a byte-pair vocabulary gives for plain
    English.

    Over 1,500 web captions CLIP's own vocabulary gives 1.02 tokens for each of these pieces; technical terms,
    which it splits, give more.
    """
    return [len(_PIECES.findall(caption)) + 2 for caption in captions]


def expected_equal_captions(captions: Sequence[str], batch_size: int) -> float:
    """How many of the other rows of a random batch have a given row's caption, on average over rows.

    Batches are drawn without replacement: (B - 1) · Σ n_c (n_c - 1) / (N (N - 1)) for N rows, n_c of caption
    c.
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
    last sentence before that."""
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
        f"{rows} of {len(captions)} captions ({rows / max(1, len(captions)):.1%}) exceed {max_tokens} "
        f"tokens{' and are cut' if rows else ''}; the longest has {longest}{how}"
    )
    seen = "Only the whole sentences that fit are seen" if by_sentence else "The rest is not seen"
    advice = f"{seen}: put what matters first, shorten, or split into several captions." if rows else "Nothing to do."
    return Finding("captions-cut", "warning" if rows else "info", rows, examples, advice, detail)


def caption_repetition(captions: Sequence[str], batch_size: int, assumed: bool) -> list[Finding]:
    """Fraction of repeated captions, equal captions in a batch, one caption only."""
    if not captions:
        return []
    counts = Counter(captions)
    common = [f"{count} x: {text[:60]}" for text, count in counts.most_common() if count > 1]
    if len(counts) == 1 and len(captions) > 1:
        return [
            Finding(
                "one-caption",
                "error",
                len(captions),
                common,
                "Contrastive training compares captions: add rows with others, or describe each image.",
                "all captions are equal",
            )
        ]
    repeated = sum(count for count in counts.values() if count > 1)
    findings = []
    if repeated:
        findings.append(
            Finding(
                "repeated-captions",
                "info",
                repeated,
                common,
                "Equal captions count as matches of each other in losses and retrieval figures.",
                f"{repeated} of {len(captions)} rows ({repeated / len(captions):.1%}) share their caption; "
                f"{len(counts)} distinct",
            )
        )
        equal = expected_equal_captions(captions, batch_size)
        findings.append(
            Finding(
                "false-negatives",
                "warning" if equal >= 1 else "info",
                repeated,
                [],
                "Keep the multi-positive targets on (they are by default), or vary the captions.",
                f"at batch size {batch_size}{' (assumed)' if assumed else ''} a row meets {equal:.2f} others "
                "with its own caption, which a plain contrastive loss would push away",
            )
        )
    return findings


def class_balance(pairs: Sequence[ImageTextPair]) -> list[Finding]:
    """Counts by label: imbalance, classes of one image, one class only, rows without label."""
    labelled = [pair for pair in pairs if pair.label is not None]
    if not labelled:
        return []
    images = {(pair.image_path, pair.label) for pair in labelled}
    counts = Counter(label for _, label in images if label is not None)
    findings = []
    if len(counts) == 1:
        findings.append(
            Finding(
                "one-class",
                "warning",
                len(labelled),
                list(counts),
                "Classification figures mean nothing with one class: add images of others.",
                "only one class",
            )
        )
    else:
        most, least = max(counts.values()), min(counts.values())
        ranked = [f"{label}: {count}" for label, count in counts.most_common()]
        findings.append(
            Finding(
                "class-balance",
                "warning" if most / least >= IMBALANCE else "info",
                len(counts),
                ranked if len(ranked) <= 5 else [*ranked[:2], "…", *ranked[-2:]],
                "Read mean_per_class_recall beside accuracy; sample small classes more often."
                if most / least >= IMBALANCE
                else "Nothing to do.",
                f"{len(counts)} classes of {least} to {most} images (ratio {most / least:.1f})",
            )
        )
    single = sorted(label for label, count in counts.items() if count == 1)
    if single:
        advice = "A class of one image cannot be both trained and tested: add images or merge classes."
        findings.append(Finding("single-image-classes", "warning", len(single), single, advice, "classes of one image"))
    if missing := len(pairs) - len(labelled):
        examples = [str(pair.image_path) for pair in pairs if pair.label is None][:5]
        advice = "These rows train by caption alone and take no part in classification figures."
        findings.append(Finding("unlabelled-rows", "info", missing, examples, advice, "rows without a label"))
    return findings

"""Findings about the images: broken, oversized, tiny, stored twice."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from domainclip.data.checks.duplicates import near_duplicate_groups
from domainclip.data.checks.findings import Finding, Severity
from domainclip.data.checks.image_facts import ImageFacts
from domainclip.data.records import ImageTextPair
from domainclip.words import counted, some_of

SHOWN_CHANNELS = 3
TINY_SIDE = 16
"""An image with a side below this, in pixels, shows next to nothing at any model's resolution."""


def skipped_image_findings(facts: Sequence[ImageFacts], skipped: Severity = "warning") -> list[Finding]:
    """Broken, oversized, tiny and animated images.

    Args:
        facts: Of all images.
        skipped: How bad it is that images are skipped.

    Returns:
        A finding for each kind that occurs.
    """
    findings = []
    for name, oversized, advice in (
        ("broken-images", False, "Mend or remove them; training skips them."),
        ("oversized-images", True, "Shrink them, or raise max_image_pixels if the size is meant; training skips them."),
    ):
        bad = [fact.problem for fact in facts if fact.problem is not None and fact.oversized == oversized]
        if bad:
            detail = f"{some_of(len(bad), len(facts), 'image')} ({len(bad) / len(facts):.1%}) cannot be used"
            findings.append(Finding(name, skipped, len(bad), bad, advice, detail))
    good = [fact for fact in facts if fact.problem is None]
    tiny = [f"{fact.path} ({fact.width}x{fact.height})" for fact in good if min(fact.width, fact.height) < TINY_SIDE]
    if tiny:
        advice = "Look at them: cut-outs that went wrong, icons, placeholders?"
        findings.append(Finding("tiny-images", "warning", len(tiny), tiny, advice, f"a side below {TINY_SIDE} pixels"))
    moving = [f"{fact.path} ({fact.frames} frames)" for fact in good if fact.frames > 1]
    if moving:
        advice = "Only one of them is used (the first; of TIFF and DICOM, what the domain's images.page says)."
        findings.append(
            Finding("several-frames", "info", len(moving), moving, advice, "animations or multi-page files")
        )
    return findings


def pixel_findings(facts: Sequence[ImageFacts]) -> list[Finding]:
    """Images that show nothing, of more channels than are shown, and of fewer bits than their files have room for.

    Args:
        facts: Of all images.

    Returns:
        A finding for each kind that occurs.
    """
    good = [fact for fact in facts if fact.problem is None]
    findings = []
    if blank := [str(fact.path) for fact in good if fact.blank and min(fact.width, fact.height) >= TINY_SIDE]:
        advice = "Remove them: they show nothing, and their captions teach the model something wrong."
        detail = f"{some_of(len(blank), len(good), 'image', 'are')} of one colour"
        findings.append(Finding("blank-images", "warning", len(blank), blank, advice, detail))
    if bands := [f"{fact.path} ({fact.channels} channels)" for fact in good if fact.channels > SHOWN_CHANNELS]:
        advice = "Export the three that matter as RGB, if these are not the first three."
        detail = f"only the first {SHOWN_CHANNELS} channels of {counted(len(bands), 'image')} are shown"
        findings.append(Finding("many-channels", "warning", len(bands), bands, advice, detail))
    depths = Counter(fact.bits for fact in good if fact.bits)
    few = [f"{fact.path} ({fact.bits} bits)" for fact in good if 8 < fact.bits < 16]
    if few:
        listing = ", ".join(f"{bits} bits: {count}" for bits, count in sorted(depths.items()))
        unlike = len(depths) > 1
        advice = "Nothing has to be done: each is shown over the bits that it uses."
        if unlike:
            advice = (
                "They are brightened unlike each other: where one camera took them all, set "
                "image_preprocessing={deep_scaling: percentiles}."
            )
        detail = f"images of 16 bits that use fewer ({listing})"
        findings.append(Finding("few-bits", "warning" if unlike else "info", len(few), few, advice, detail))
    return findings


def exact_groups(facts: Iterable[ImageFacts]) -> list[list[Path]]:
    """Find files with equal content, by their digests.

    Args:
        facts: Of all images; those with a problem are left out.

    Returns:
        Groups of two or more paths.
    """
    by_content: dict[str, list[Path]] = defaultdict(list)
    for fact in facts:
        if fact.problem is None and fact.file is not None:
            by_content[fact.file.digest].append(fact.path)
    return [paths for paths in by_content.values() if len(paths) > 1]


def near_groups(facts: Iterable[ImageFacts]) -> list[list[Path]]:
    """Find images that look the same though their files differ; of equal files one stands for all.

    Args:
        facts: Of all images; those without a fingerprint are left out.

    Returns:
        Groups of two or more paths.
    """
    first: dict[str, ImageFacts] = {}
    for fact in facts:
        if fact.fingerprint is not None and fact.file is not None:
            first.setdefault(fact.file.digest, fact)
    kept = list(first.values())
    if not kept:
        return []
    prints = np.stack([fact.fingerprint for fact in kept if fact.fingerprint is not None])
    return [[kept[index].path for index in group] for group in near_duplicate_groups(prints)]


def duplicates(
    exact: list[list[Path]], near: list[list[Path]], pairs_of: Mapping[Path, Sequence[ImageTextPair]]
) -> list[Finding]:
    """Images that occur more than once, and copies whose labels contradict each other.

    Args:
        exact: Groups of ``exact_groups``.
        near: Groups of ``near_groups``.
        pairs_of: The rows of each image.

    Returns:
        Warnings: ``exact-duplicates``, ``near-duplicates`` and ``conflicting-labels``, where there are any.
    """
    findings = []
    advice = "A split that is made keeps copies together; in given splits, keep them on one side yourself."
    for name, groups, detail in (
        ("exact-duplicates", exact, "files with the same content as another"),
        ("near-duplicates", near, "images that look like another: saved again, scaled, or of one thing twice"),
    ):
        if groups:
            extra = sum(len(group) - 1 for group in groups)
            examples = [" = ".join(str(path) for path in group[:3]) for group in groups]
            detail = f"{detail}, in {len(groups)} group{'s' * (len(groups) != 1)}"
            findings.append(Finding(name, "warning", extra, examples, advice, detail))
    conflicts = []
    copies = [*exact, *([path] for path in pairs_of if len(pairs_of[path]) > 1)]
    for group in copies:
        labels = sorted({pair.label for path in group for pair in pairs_of[path] if pair.label is not None})
        if len(labels) > 1:
            conflicts.append(f"{group[0]}: {', '.join(labels)}")
    if conflicts:
        advice, detail = "Decide which label is right: no model can learn both.", "the same image with different labels"
        findings.append(Finding("conflicting-labels", "warning", len(conflicts), conflicts, advice, detail))
    return findings

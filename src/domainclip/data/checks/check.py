"""``check_data``: everything about a data set that is better known before a run than after it."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from domainclip.data.checks.captions import (
    KnownWords,
    caption_length,
    caption_repetition,
    class_balance,
    unknown_captions,
)
from domainclip.data.checks.findings import DataCheckReport, Finding, Severity
from domainclip.data.checks.image_facts import inspect_images
from domainclip.data.checks.images import (
    duplicates,
    exact_groups,
    near_groups,
    pixel_findings,
    skipped_image_findings,
)
from domainclip.data.given_splits import by_split_column, given_splits, join_groups
from domainclip.data.group_split import image_key, path_key
from domainclip.data.images.reader import MAX_PIXELS
from domainclip.data.labels import all_labels, doubtful_names, unify_labels
from domainclip.data.records import ColumnOptions, Columns, ImageTextPair, PairList, SkippedRow
from domainclip.data.sources.pair_builder import EMPTY_CAPTION, MALFORMED_ROW, MISSING_IMAGE
from domainclip.data.sources.split_folders import MASK
from domainclip.data.sources.webdataset import shards_of
from domainclip.data.splits import group_names, proposed_groups
from domainclip.errors import ConfigurationError, DataError, MissingFileError
from domainclip.resolve.schedule import automatic_batch
from domainclip.words import some_of

_SKIPPED_ADVICE = {
    MISSING_IMAGE: ("missing-images", "Check the paths, or name the images' folder with image_root=…"),
    EMPTY_CAPTION: ("empty-captions", "Write captions for them; training skips them."),
    MALFORMED_ROW: ("malformed-rows", "Mend these rows; training skips them."),
}


def check_data(
    path: Path | str,
    *,
    batch_size: int | None = None,
    max_tokens: int = 77,
    count_tokens: Callable[[list[str]], list[int]] | None = None,
    vocabulary: KnownWords | None = None,
    image_col: str = "image_path",
    caption_col: str = "caption",
    max_pixels: int = MAX_PIXELS,
    workers: int | None = None,
    near_duplicates: bool = True,
    text_transform: Callable[[str], str] | None = None,
    cut_by_sentence: bool = False,
    **options: Unpack[ColumnOptions],
) -> DataCheckReport:
    """Read every row and decode every image of a data set.

    Errors (exit code 1) are what training refuses: a table that cannot be read; no training rows, or fewer than two of
    them with images that can be read; captions all equal; with ``strict`` each row and image that would else be
    skipped. What spoils a run or its figures and does not end it is a warning.

    Args:
        path: A file, a folder, or ``hf:owner/name``.
        batch_size: Rows that meet in a batch; None: what an automatic run would take.
        max_tokens: The longest caption that is not cut, start and end tokens included.
        count_tokens: Gives the length of each text in tokens, start and end included; without it lengths are estimated.
        vocabulary: What the model's tokenizer knows; without it captions of other languages are not looked for.
        image_col: Column of the images.
        caption_col: Column of the captions.
        max_pixels: Images of more pixels are oversized.
        workers: Threads that decode images; up to eight by the machine's cores, if left out.
        near_duplicates: Whether images are sought that look alike though their files differ.
        text_transform: What is done to captions before they are counted: a domain's spelling and abbreviations.
        cut_by_sentence: Whether training keeps whole sentences of what is too long.
        **options: The other columns and settings of ``ColumnOptions``.

    Returns:
        The findings, with the numbers of rows and images.

    Raises:
        DataError: There is nothing at ``path``.
        ConfigurationError: ``batch_size`` is below 1.
    """
    if batch_size is not None and batch_size < 1:
        raise ConfigurationError(f"Batch size must be positive, not {batch_size}")
    skipped: Severity = "error" if options.get("strict") else "warning"
    # All rows are looked at: where skipping is not allowed, each of those is told, and not the first alone.
    columns = replace(Columns(image_col, caption_col, **options), strict=False)
    given = given_splits(path, columns)
    if not str(path).startswith("hf:") and not Path(path).exists() and not shards_of(path):
        raise MissingFileError(f"Data not found: {path}")
    findings: list[Finding] = []
    splits: dict[str, PairList] = {}
    for name, part in given.items():
        try:
            pairs = part.load()
            notes: list[str] = []
            join_groups(pairs, part.folder, columns, notes)
        except DataError as error:
            findings.append(Finding("unreadable-table", "error", 1, [str(error)], "Mend the file.", part.name))
            continue
        findings += [Finding("meta-file", "info", 1, [], "Add the columns, or name them.", note) for note in notes]
        splits[name] = pairs
    for name, pairs in splits.items():
        findings += _reading(pairs, given[name].name)
    splits = by_split_column(splits)
    every = [pair for pairs in splits.values() for pair in pairs]
    findings += _labels(splits, every)
    findings += _skipped([row for pairs in splits.values() for row in pairs.skipped], len(every), skipped)

    paths = list({image_key(pair): pair.image_path for pair in every}.values())
    facts = list(inspect_images(paths, max_pixels, workers))
    findings += skipped_image_findings(facts, skipped)
    findings += pixel_findings(facts)
    exact = exact_groups(facts)
    near = near_groups(facts) if near_duplicates else []
    pairs_of: dict[str, list[ImageTextPair]] = defaultdict(list)
    for pair in every:
        pairs_of[image_key(pair)].append(pair)
    findings += duplicates(exact, near, {path: pairs_of[path_key(path)] for path in paths})
    findings += _leakage(splits, exact, near)

    train = splits.get("train", PairList())
    if every and not train:
        advice = "Nothing can be trained on these data: name training rows. They do for evaluate."
        findings.append(Finding("no-training-rows", "error", len(every), [], advice, "no row is in the training split"))
    if train:
        unreadable = {path_key(fact.path) for fact in facts if fact.problem is not None}
        readable = sum(image_key(pair) not in unreadable for pair in train)
        findings += _size(readable, batch_size)
        size = batch_size or automatic_batch(len(train))
        captions = [pair.caption for pair in train]
        findings += caption_repetition(captions, size, assumed=batch_size is None)
        findings += class_balance(train)
        findings += _unseen_classes(splits)
    if every:
        texts = [pair.caption if text_transform is None else text_transform(pair.caption) for pair in every]
        findings.append(caption_length(texts, max_tokens, count_tokens, cut_by_sentence))
        if vocabulary is not None:
            findings += unknown_captions(texts, vocabulary)
    base = Path(path) if Path(path).is_dir() else Path(path).parent
    for finding in findings:
        finding.examples = [example.replace(f"{base}{os.sep}", "") for example in finding.examples]
    return DataCheckReport(str(path), {name: len(pairs) for name, pairs in splits.items()}, len(paths), findings)


def _reading(pairs: PairList, name: str) -> list[Finding]:
    """What was guessed when a source was read, and the groups that its columns propose."""
    findings = []
    if pairs.notes:
        advice = "Check that this is what you mean."
        findings.append(
            Finding("how-it-is-read", "info", len(pairs.notes), [], advice, f"{name}: {'; '.join(pairs.notes)}")
        )
    for sentence in proposed_groups(pairs):
        column = next(iter(pairs.proposed))
        advice = f"Set group_col={column}, unless its rows may well be in two splits."
        findings.append(Finding("group-column", "warning", pairs.proposed[column], [], advice, f"{name}: {sentence}"))
    return findings


def _labels(splits: Mapping[str, PairList], every: Sequence[ImageTextPair]) -> list[Finding]:
    """Several spellings of one class, several labels an image, names that say nothing."""
    findings = [
        Finding("label-spellings", "warning", 1, [], "Nothing has to be done; one spelling would be clearer.", note)
        if note.startswith("labels that differ")
        else Finding("several-labels", "info", 1, [], "Nothing has to be done.", note)
        for note in unify_labels(splits.values())
    ]
    for kind, (names, advice) in doubtful_names(label for pair in every for label in all_labels(pair)).items():
        detail = f"labels that are {kind}" if kind != "codes" else "labels that begin with a code"
        findings.append(
            Finding("label-names", "warning", len(names), names, f"{advice[0].upper()}{advice[1:]}.", detail)
        )
    return findings


def _skipped(rows: Sequence[SkippedRow], usable: int, severity: Severity) -> list[Finding]:
    findings = []
    for kind, (name, advice) in _SKIPPED_ADVICE.items():
        these = [str(row) for row in rows if row.kind == kind]
        if these:
            total = usable + len(rows)
            detail = f"skipped: {some_of(len(these), total, 'row')} ({len(these) / total:.1%})"
            findings.append(Finding(name, severity, len(these), these, advice, detail))
    for kind, count in Counter(row.kind for row in rows if row.kind not in _SKIPPED_ADVICE).items():
        these = [str(row) for row in rows if row.kind == kind]
        if kind == MASK:
            advice, detail = "Nothing has to be done.", f"{count} masks lie among the images and are left out"
            findings.append(Finding("masks", "info", count, these, advice, detail))
        else:
            advice, detail = "Convert them, or move them elsewhere; training skips them.", f"{kind}: {count}"
            findings.append(Finding("files-not-read", severity, count, these, advice, detail))
    return findings


def _size(rows: int, batch_size: int | None) -> list[Finding]:
    """``rows``: of the training split, with images that can be read."""
    if rows < 2:
        advice = "Contrastive training compares rows: it needs at least two, and many more to learn anything."
        return [Finding("too-few-rows", "error", rows, [], advice, f"{rows} usable row in the training split")]
    if batch_size is not None and rows < batch_size:
        detail = f"{rows} training rows are fewer than the batch size {batch_size}: there is one, smaller batch"
        return [Finding("rows-below-batch", "warning", rows, [], f"Set batch_size to at most {rows}.", detail)]
    return []


def _unseen_classes(splits: Mapping[str, PairList]) -> list[Finding]:
    known = {label for pair in splits["train"] for label in all_labels(pair)}
    findings = []
    for name, pairs in splits.items():
        unseen = sorted({label for pair in pairs for label in all_labels(pair)} - known)
        if unseen and known:
            advice = "Unless unseen classes are the point, move some of their groups into the training split."
            detail = f"classes of {name} that the training split lacks"
            findings.append(Finding("unseen-classes", "warning", len(unseen), [str(u) for u in unseen], advice, detail))
    return findings


def _leakage(splits: Mapping[str, PairList], exact: list[list[Path]], near: list[list[Path]]) -> list[Finding]:
    """Groups and images that occur in two given splits."""
    # Images with equal content get one name, and so do those that look alike.
    same = {path_key(path): path_key(group[0]) for group in exact for path in group}
    alike = {path_key(path): path_key(group[0]) for group in near for path in group}
    findings = []
    names = list(splits)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            where = f"in both {first} and {second}"
            contents = [{same.get(key, key) for key in map(image_key, splits[name])} for name in (first, second)]
            looks = [{alike.get(key, key) for key in keys} for keys in contents]
            groups = [group_names(splits[name]) for name in (first, second)]
            shared = contents[0] & contents[1]
            # What is shared outright is told once, as that.
            alike_only = (looks[0] & looks[1]) - {alike.get(key, key) for key in shared}
            too_good = f"{second} figures are too good."
            move = f"Move each group whole into one split: {too_good}"
            look = f"Look at them: if they are copies, remove them from {first}."
            kinds: tuple[tuple[str, Severity, set[str], str, str], ...] = (
                ("shared-images", "warning", shared, "images", f"Remove them from {first}: {too_good}"),
                ("shared-groups", "warning", groups[0] & groups[1], "groups", move),
                ("shared-near-duplicates", "warning", alike_only, "near duplicates", look),
            )
            for name, severity, found, what, advice in kinds:
                if found:
                    findings.append(Finding(name, severity, len(found), sorted(found), advice, f"{what} {where}"))
    return findings

"""Parts that reports, cards and the terminal share: which figures are shown, tables of the domain, and sentences on
documents and terminology."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from domainclip.evaluation.comparison import empty_recalls
from domainclip.metrics.bootstrap import FEW_UNITS
from domainclip.metrics.metric import METRICS, Metric
from domainclip.reports.schema.run import DomainFigures, SemanticFigures
from domainclip.reports.schema.skipped import SkippedCount
from domainclip.reports.text import figure_text, percent, title
from domainclip.words import counted


def shown_metrics(
    before: Mapping[str, float | None], after: Mapping[str, float | None], *, sections: bool = False
) -> list[str]:
    """Names of the figures that the data can have.

    Args:
        before: Earlier figures.
        after: Later ones.
        sections: Whether figures that have a section of their own (of the domain, of documents, …) are among them.

    Returns:
        The names, without counts, without recalls that any model has (R@5 among three captions), and
        without the retrieval of captions that only say the class.
    """
    known = {**before, **after}
    names = [name for name in {**after, **before} if not METRICS[name].is_count]
    left_out = set(empty_recalls(names, known))
    if not sections:
        left_out |= {name for name in names if METRICS[name].section == "domain" or METRICS[name].is_semantic}
    if (known.get("n_texts") or math.inf) <= (known.get("n_classes") or 0):
        left_out |= {name for name in names if name.startswith(("i2t_", "t2i_", "mean_R@"))}
    return [name for name in names if name not in left_out]


def skipped_lines(counts: Sequence[SkippedCount]) -> list[str]:
    """What was skipped: the first thing to know of figures that are not of all rows.

    Args:
        counts: By split and kind of reason.

    Returns:
        Sentences, one for each kind of reason in each split; none where nothing was skipped.
    """
    return [
        f"Skipped{f' ({count.split})' if count.split else ''}: {counted(count.rows, 'row')}"
        + (f" with {counted(count.images, 'image')}" if count.images not in (0, count.rows) else "")
        + f", {count.kind}; first: {count.first.rstrip('.')}."
        for count in counts
    ]


@dataclass(frozen=True)
class DomainTable:
    """A table with a title.

    Args:
        title: What it shows.
        header: Names of the columns.
        rows: The cells' texts.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def domain_tables(found: DomainFigures, *, intervals: bool = True) -> list[DomainTable]:
    """The figures of each label and the matrix of disciplines, as far as there are any.

    Args:
        found: The domain metrics of an evaluation.
        intervals: Whether figures of labels are shown with their intervals.

    Returns:
        The tables.
    """
    return [part for part in (_labels(found, intervals), _matrix(found)) if part is not None]


def _labels(found: DomainFigures, intervals: bool) -> DomainTable | None:
    columns = list(dict.fromkeys(name for row in found.per_label for name in row.figures))
    if not columns:
        return None

    def shown(figure: Metric | None, name: str) -> str:
        return figure_text(figure if intervals or figure is None else Metric(name, figure.value), name)

    rows = [
        [row.label, str(row.images), *(shown(row.figures.get(name), name) for name in columns)]
        for row in found.per_label
        if row.figures
    ]
    return DomainTable("Each label by itself", ["label", "images", *map(title, columns)], rows)


def _matrix(found: DomainFigures) -> DomainTable | None:
    matrix = found.matrix
    if matrix is None:
        return None
    ends = list(zip(matrix.disciplines, map(str, matrix.images), map(percent, matrix.acc1), strict=True))
    if matrix.counts is None:
        heading = "Across disciplines (some class occurs in several, so answers have no discipline)"
        return DomainTable(heading, ["discipline", "images", "accuracy"], ends)
    unknown = matrix.unknown or [0] * len(ends)
    beside = ["taken for a class of no known discipline"] if any(unknown) else []
    rows = [
        [name, n, *map(str, counts), *([str(other)] if beside else []), fraction]
        for (name, n, fraction), counts, other in zip(ends, matrix.counts, unknown, strict=True)
    ]
    header = ["discipline", "images", *(f"taken for {name}" for name in matrix.disciplines), *beside, "accuracy"]
    return DomainTable("Across disciplines", header, rows)


def semantic_notes(found: SemanticFigures) -> list[str]:
    """What figures of documents, near misses and terminology are to be held against.

    Args:
        found: The figures of an evaluation.

    Returns:
        Sentences without a full stop.
    """
    lines = []
    tree, documents, terms = found.class_hierarchy, found.documents, found.terminology
    if tree and tree.n_misses:
        lines.append(
            f"Near misses: means over {tree.n_misses} misses. A wrong class drawn at random would be "
            f"{tree.random_miss_edges or 0:.2f} edges from the common ancestor, at a Wu-Palmer similarity of "
            f"{tree.random_miss_wu_palmer or 0:.2f}"
        )
    if documents:
        first = documents.chance.get("document_i2t_Hits@1")
        lines.append(
            f"Documents: {documents.n_documents}, {counted(documents.n_images, 'image')}, "
            f"{counted(documents.n_texts, 'text')}"
            + (f"; a random order would have Hits@1 of {first:.1%} for images" if first is not None else "")
            + (f"; {counted(documents.n_without_document, 'row', 'name')} none" if documents.n_without_document else "")
        )
    if terms and terms.spelling is not None:
        lines.append(
            f"Terminology: {counted(terms.n_asked or 0, 'term')} of the glossary, each among {terms.n_terms - 1} "
            "others. Hits@1 "
            f"by chance is {percent(terms.chance_hits_at_1)}, by comparing letters "
            f"{percent(terms.spelling['term_Hits@1'])}"
        )
    if terms and terms.negations is not None:
        lines.append(
            f"Negation: {counted(terms.n_negation_pairs, 'pair')} of the glossary; a coin gives an accuracy of 50 %"
        )
    if terms and terms.image_negations is not None:
        lines.append(
            f"Negation on images: {counted(len(terms.image_negations), 'class')}; a model deaf to the word has 50 %. "
            "These figures have no interval"
        )
    return [*lines, *_interval_notes(found), *found.notes]


def _interval_notes(found: SemanticFigures) -> list[str]:
    """How many units the intervals come from, which are too few, and which figures have none."""
    if not found.resamples:
        return []
    by_size: dict[int, list[str]] = {}
    without = []
    for name, entry in found.metrics.items():
        if entry.low is not None and entry.n_units is not None:
            by_size.setdefault(entry.n_units, []).append(title(name))
        elif not name.startswith("image_negation") and not math.isnan(entry.value):
            without.append(title(name))
    lines = []
    if by_size:
        least, most = min(by_size), max(by_size)
        lines.append(
            f"Intervals: percentile bootstrap, 95 %, {found.resamples:,} resamples of whole groups of images, "
            f"documents, meanings and negation pairs ({least if least == most else f'{least} to {most}'} of them)"
        )
    lines += [
        f"With {size} independent units these intervals are narrower than the truth: {', '.join(names)}"
        for size, names in sorted(by_size.items())
        if size < FEW_UNITS
    ]
    if without:
        lines.append(
            f"No interval of {', '.join(without)}: there is a single group, or most resamples leave it undefined"
        )
    return lines

"""An alignment report's files: ``report.md`` to read, ``alignment.json``, ``pairs.csv`` to search, and the plots."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from rich.markup import escape
from rich.table import Table

from domainclip.errors import ConfigurationError, DataError
from domainclip.evaluation.alignment import (
    Alignment,
    AlignmentRows,
    Answers,
    Embedded,
    Metric,
    chance,
    measure,
    query_order,
)
from domainclip.evaluation.comparison import empty_recalls
from domainclip.files import csv_text, require_writable, write_json, write_text
from domainclip.metrics.metric import METRICS
from domainclip.metrics.significance import paired_change
from domainclip.output_record import remove_record_of, write_record_of
from domainclip.reports.plots.alignment import COMPARED, IMAGE_QUERIES, PLOT_FILES, TEXT_QUERIES, draw, shown_queries
from domainclip.reports.render import render
from domainclip.reports.schema import AlignmentReport
from domainclip.reports.text import MINUS, NOTHING, percent, points, signed, title
from domainclip.words import counted

_WHAT = "alignment report"
_TITLE = "# Alignment report"
_UNFINISHED = ".alignment-"
_FIRST_COLUMN = "wrong_beats_right_by"
_WORST = 10
_MOST_CONFUSED = 10
_RANKING = tuple(
    f"{direction}_{name}" for direction in ("i2t", "t2i") for name in ("R@1", "R@5", "R@10", "MRR", "median_rank")
)
_AGREEMENT = {
    "mean_hit": "mean similarity of pairs that belong together",
    "mean_miss": "mean similarity of pairs that do not",
    "alignment_margin": "alignment margin (the first minus the second)",
    "auroc": "AUROC (how often a pair that belongs together is the more similar)",
    "overlap": "overlap of the two (0 % is best)",
    "modality_gap": "modality gap (0 … 2; a description, not a score)",
}
_PLOTS = {
    "recall_curves": "Recall",
    "distribution": "Similarities",
    "class_similarity": "Classes",
    "pair_similarity": "Some images and captions",
    "embedding_map": "The embedding space",
}


def prepare_folder(folder: Path) -> None:
    """Make sure, before any work, that the report can be written here and replaces nothing but an earlier one.

    Args:
        folder: Where to.

    Raises:
        ConfigurationError: It cannot, or it would.
    """
    for place in (folder, folder / "plots"):
        require_writable(place, "The folder")
    try:
        earlier = (folder / "alignment.json").is_file()
        if not earlier and (there := next((name for name in PLOT_FILES if (folder / name).exists()), None)):
            raise ConfigurationError(
                f"{folder / there} is not of an alignment report and would be replaced by one: give another folder"
            )
        for name, start in (("report.md", _TITLE), ("pairs.csv", _FIRST_COLUMN)):
            path = folder / name
            if path.exists() and not path.read_bytes().startswith(start.encode()):
                raise ConfigurationError(
                    f"{path} is not of an alignment report and would be replaced by one: give another folder"
                )
    except OSError as error:
        raise ConfigurationError(
            f"The folder {folder} cannot be read: {error.strerror or error}. Give another one"
        ) from None


def _remove_leftovers(folder: Path) -> None:
    """Take away what processes that were killed have left: their number is in the name."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        number = path.name.removeprefix(_UNFINISHED).partition("-")[0]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            shutil.rmtree(path, ignore_errors=True)


def remove_report(folder: Path) -> None:
    """Delete an alignment report, and nothing else that lies beside it.

    Args:
        folder: Where it is.
    """
    if not (folder / "report.md").is_file() or not (folder / "report.md").read_bytes().startswith(_TITLE.encode()):
        return
    for name in ("alignment.json", *PLOT_FILES, "pairs.csv", "report.md"):
        (folder / name).unlink(missing_ok=True)
    remove_record_of(folder, _WHAT)
    for place in (folder / "plots", folder):
        with suppress(OSError):  # a folder that holds other things stays
            place.rmdir()


def write_alignment(
    folder: Path,
    rows: AlignmentRows,
    model: Embedded,
    compared: Embedded | None,
    *,
    similarity_metric: str,
    top_k: int,
    seed: int,
    about: Mapping[str, Any],
) -> AlignmentReport:
    """Measure, draw and write. Files of an earlier report are replaced, each whole or not at all, once everything has
    been worked out and drawn.

    Args:
        folder: Where to.
        rows: The images and captions, and which belong together.
        model: Their embeddings by the model of the report.
        compared: Those by the model that it is set against ("before").
        similarity_metric: How embeddings are compared.
        top_k: Answers a query that are shown.
        seed: Of the samples that are drawn.
        about: More of the content by its keys: ``data``, ``split``, ``sources``, ``notes``, ``skipped``.

    Returns:
        The content of ``alignment.json``.

    Raises:
        DataError: The two models have one name.
        ShapeError: Embeddings are not finite.
    """
    if compared is not None and compared.name == model.name:
        raise DataError(f"Two models of one name ({model.name}) cannot be told apart in a report")
    metric = Metric(similarity_metric)
    embedded = [model] if compared is None else [model, compared]
    found = [measure(rows, each, metric, seed) for each in embedded]
    folder.mkdir(parents=True, exist_ok=True)
    write_record_of(folder, _WHAT, ("alignment.json", "plots", "pairs.csv", "report.md"))
    _remove_leftovers(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f"{_UNFINISHED}{os.getpid()}-") as temporary:
        made = draw(Path(temporary), rows, list(zip(embedded, found, strict=True)), metric, top_k, seed)
        content = {"schema_version": "1.0", **_content(rows, found, metric, seed, top_k), **about, "plots": made}
        report = AlignmentReport.from_values(content)
        text, table = alignment_markdown(report), _pairs_csv(rows, found)
        (folder / "plots").mkdir(exist_ok=True)
        write_json(folder / "alignment.json", report.to_dict())  # first: by it the next start knows the rest as ours
        for name in PLOT_FILES:
            if name in made:
                os.replace(Path(temporary) / name, folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
    write_text(folder / "pairs.csv", table)
    write_text(folder / "report.md", text)
    return report


def alignment_markdown(report: AlignmentReport) -> str:
    """The text of ``report.md``.

    Args:
        report: The alignment report.

    Returns:
        The page.
    """
    two = len(report.roles) > 1

    def shown(name: str, words: str) -> list[tuple[str, str]]:
        """The plot of each model, with what it is called where it cannot be seen."""
        both = two and name != "recall_curves"
        paths = [(label, f"plots/{name}{COMPARED if role == 'compared' else ''}.png") for role, label in report.roles]
        return [(f"{words}, {label}" if both else words, path) for label, path in paths if path in report.plots]

    def difference(name: str) -> str:
        value = (report.difference or {}).get(name)
        if value is None:
            return NOTHING
        if METRICS[name].is_fraction or name == "overlap":
            return f"{points(value)} points"
        return signed(value, "+.4g" if name in _RANKING else "+.3f")

    def number(value: float | None, name: str = "") -> str:
        if value is None:
            return NOTHING
        return percent(value) if name == "overlap" else f"{value:.3f}".replace("-", MINUS)

    queries = report.shown_queries
    return render(
        "alignment.md.j2",
        report=report,
        ranking=_RANKING,
        agreement=_AGREEMENT,
        difference=difference,
        number=number,
        plots=[(words, found) for name, words in _PLOTS.items() if (found := shown(name, words))],
        sheets=[
            ("image", shown("image_to_texts", "image queries"), queries.image_to_texts),
            ("caption", shown("text_to_images", "caption queries"), queries.text_to_images),
        ],
    )


def _content(rows: AlignmentRows, found: Sequence[Alignment], metric: Metric, seed: int, top_k: int) -> dict[str, Any]:
    model, compared = found[0], found[1] if len(found) > 1 else None
    roles = dict(zip(("model", "compared"), found, strict=False))
    counts = rows.counts()
    images, texts = rows.sample(seed)
    whole = (len(images), len(texts)) == (len(rows.paths), len(rows.captions))
    return {
        "names": {role: each.name for role, each in roles.items()},
        "similarity_metric": metric.name,
        "seed": seed,
        "top_k": top_k,
        "counts": counts,
        "metrics": {role: each.metrics for role, each in roles.items()},
        "chance": chance(rows),
        "without_meaning": empty_recalls(list(model.metrics), counts),
        "difference": _difference(model, compared) if compared else None,
        "changes": {
            f"{direction}_R@1": paired_change(
                getattr(compared, side).ranks.numpy() == 1, getattr(model, side).ranks.numpy() == 1
            )
            for direction, side in (("i2t", "images"), ("t2i", "captions"))
        }
        if compared
        else {},
        "sample": None if whole else {"seed": seed, "n_images": len(images), "n_texts": len(texts)},
        "classes": rows.classes,
        "class_similarity": {role: each.class_similarity for role, each in roles.items()},
        "confused": {role: each.confused[:_MOST_CONFUSED] for role, each in roles.items()},
        "worst_pairs": _pair_rows(rows, found)[:_WORST],
        "shown_queries": {
            "image_to_texts": _shown(model.images, IMAGE_QUERIES, rows.paths, rows.captions),
            "text_to_images": _shown(model.captions, TEXT_QUERIES, rows.captions, rows.paths),
        },
    }


def _shown(answers: Answers, most: int, queries: Sequence[object], own: Sequence[object]) -> list[dict[str, Any]]:
    return [
        {
            "query": str(queries[query]),
            "rank": int(answers.ranks[query]),
            "own": str(own[int(answers.best_hit[query])]),
        }
        for query in shown_queries(query_order(answers), most)
    ]


def _difference(model: Alignment, compared: Alignment) -> dict[str, float]:
    pairs = ((name, value, compared.metrics.get(name)) for name, value in model.metrics.items())
    return {name: new - old for name, new, old in pairs if new is not None and old is not None}


def _pair_rows(rows: AlignmentRows, found: Sequence[Alignment]) -> list[dict[str, Any]]:
    """One entry for each image and own caption, first those that a wrong caption beats by most."""
    model = found[0]
    values, misses = model.pair_values.tolist(), model.images.miss_value.tolist()
    entries = []
    for index, (image, caption) in enumerate(rows.hits.tolist()):
        wrong = int(model.images.best_miss[image])
        entry: dict[str, Any] = {
            _FIRST_COLUMN: misses[image] - values[index] if wrong >= 0 else None,
            "image_path": str(rows.paths[image]),
            "caption": rows.captions[caption],
            "label": rows.labels[image],
            "rank": int(model.pair_ranks[index]),
            "similarity": values[index],
            "best_wrong_caption": rows.captions[wrong] if wrong >= 0 else None,
            "best_wrong_label": rows.caption_labels[wrong] if wrong >= 0 else None,
            "best_wrong_similarity": misses[image] if wrong >= 0 else None,
        }
        if len(found) > 1:
            entry["compared_rank"] = int(found[1].pair_ranks[index])
            entry["compared_similarity"] = float(found[1].pair_values[index])
        entries.append(entry)
    # A stable sort: equal ones stay in the order of the rows.
    return sorted(entries, key=lambda entry: (entry[_FIRST_COLUMN] is None, -(entry[_FIRST_COLUMN] or 0.0)))


def _pairs_csv(rows: AlignmentRows, found: Sequence[Alignment]) -> str:
    entries = _pair_rows(rows, found)
    rounded = [[f"{value:.6f}" if isinstance(value, float) else value for value in each.values()] for each in entries]
    return csv_text(list(entries[0]), rounded)


def summary_table(report: AlignmentReport) -> Table:
    """A few lines for the terminal.

    Args:
        report: The alignment report.

    Returns:
        The table.
    """
    counts = report.counts
    table = Table(title=f"{counted(counts.n_images, 'image')} against {counted(counts.n_texts, 'caption')}")
    table.add_column("metric")
    for _, name in report.roles:
        table.add_column(escape(name), justify="right")
    table.add_column("chance", justify="right")
    for name in ("i2t_R@1", "i2t_MRR", "t2i_R@1", "t2i_MRR", "alignment_margin", "auroc", "modality_gap"):
        values = [*(report.metrics[role][name] for role, _ in report.roles), report.chance.get(name)]
        table.add_row(title(name), *("" if value is None else f"{value:.3f}" for value in values))
    return table

"""An alignment report as a page to read, made from the content of ``alignment.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domainclip.metrics.metric import METRICS
from domainclip.reports.markdown_table import plain, table
from domainclip.reports.report_markdown import value_text

TITLE = "# Alignment report"

_MINUS = "\N{MINUS SIGN}"
_RANKING = tuple(
    f"{direction}_{name}" for direction in ("i2t", "t2i") for name in ("R@1", "R@5", "R@10", "MRR", "median_rank")
)
_AGREEMENT = {
    "mean_hit": "mean similarity of pairs that belong together",
    "mean_miss": "mean similarity of pairs that do not",
    "alignment_score": "alignment score (the first minus the second)",
    "auroc": "AUROC (how often a pair that belongs together is the more similar)",
    "overlap": "overlap of the two (0 % is best)",
    "modality_gap": "modality gap (0 … 2; a description, not a score)",
}
_DIRECTIONS = {"i2t": "images, first caption", "t2i": "captions, first image"}
_SHEETS = {"image_to_texts": "image", "text_to_images": "caption"}
_PLOTS = {
    "recall_curves": "Recall",
    "distribution": "Similarities",
    "class_similarity": "Classes",
    "pair_similarity": "Some images and captions",
    "embedding_map": "The embedding space",
}


def alignment_markdown(content: Mapping[str, Any]) -> str:
    """The text of ``report.md`` from the content of ``alignment.json``."""
    parts = [
        TITLE,
        _compared(content),
        _headline(content),
        _ranking(content),
        _agreement(content),
        _confused(content),
        _captions(content),
        _worst(content),
        _plots(content),
        _sheets(content),
        _data_notes(content),
        _skipped(content),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _names(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Role and name of each model, the one compared with first: it is the "before"."""
    return [(role, content["names"][role]) for role in ("compared", "model") if role in content["names"]]


def _compared(content: Mapping[str, Any]) -> str:
    counts, sources = content["counts"], content.get("sources") or {}
    lines = [
        f"{name} (`{sources[role]}`)" if sources.get(role) and sources[role] != name else f"`{name}`"
        for role, name in _names(content)
    ]
    places = [f"data: `{content['data']}`"] if content.get("data") else []
    places += [f"split: {content['split']}"] if content.get("split") else []
    return (
        f"{'Models' if len(lines) > 1 else 'Model'}: {', '.join(lines)}{'; ' if places else ''}{'; '.join(places)}; "
        f"similarity: {content['similarity_metric']}.\n\n"
        f"{counts['n_images']:,} different images and {counts['n_texts']:,} different captions "
        f"({counts['rows']:,} rows) were embedded, and every image was compared with every caption. A caption that "
        "several rows share is one caption, right for each of their images."
    )


def _headline(content: Mapping[str, Any]) -> str:
    counts, sentences = content["counts"], []
    for direction, asked, found, candidates in (
        ("i2t", "images", "caption", counts["n_texts"]),
        ("t2i", "captions", "image", counts["n_images"]),
    ):
        name = f"{direction}_R@1"
        values = [(label, content["metrics"][role][name]) for role, label in _names(content)]
        fractions = (
            value_text(name, values[0][1])
            if len(values) == 1
            else ", ".join(f"{value_text(name, value)} ({label})" for label, value in values)
        )
        sentences.append(
            f"- {fractions} of the {asked} have a {found} of their own first among {candidates:,} (chance "
            f"{value_text(name, content['chance'][name])})."
        )
    return "\n".join(sentences)


def _ranking(content: Mapping[str, Any]) -> str:
    trivial, changes = content["without_meaning"], content["changes"]
    names = _names(content)
    header = ["metric", *(name for _, name in names)]
    header += ["difference", "95 % interval of the difference (points)"] if len(names) > 1 else []
    rows = []
    for name in (name for name in _RANKING if name not in trivial):
        row = [METRICS[name].title + ("" if METRICS[name].greater_is_better else " (lower is better)")]
        row += [value_text(name, content["metrics"][role][name]) for role, _ in names]
        if len(names) > 1:
            change = changes.get(name)
            row += [
                _signed(name, content["difference"][name]),
                f"{_points(change['low'])} to {_points(change['high'])}" if change else "",
            ]
        rows.append([*row, value_text(name, content["chance"][name])])
    counts = content["counts"]
    text = "## Who finds whom\n\n" + table([*header, "chance"], rows)
    text += (
        f"\n\nCandidates: {counts['n_texts']:,} captions for each image, {counts['n_images']:,} images for each "
        "caption. R@K is the fraction of queries with one of their own among the first K answers; MRR the mean of 1 / "
        "rank. Chance is what a random order reaches. A tie counts against the model."
    )
    if trivial:
        listed = ", ".join(METRICS[name].title for name in trivial)
        text += f" Left out, since any model reaches 100 %: {listed}."
    if changes:
        text += (
            " The intervals take the queries as independent: where many show one patient or object, the true "
            "uncertainty is larger."
        )
    return text


def _agreement(content: Mapping[str, Any]) -> str:
    names = _names(content)
    rows = []
    for name, words in _AGREEMENT.items():
        row = [words, *(_number(name, content["metrics"][role][name]) for role, _ in names)]
        if len(names) > 1:
            row.append(_signed(name, content["difference"].get(name)))
        rows.append([*row, _number(name, content["chance"][name]) if name in content["chance"] else ""])
    header = ["", *(name for _, name in names), *(["difference"] if len(names) > 1 else []), "chance"]
    text = "## Pairs that belong together against pairs that do not\n\n" + table(header, rows)
    sample = content["sample"]
    if sample:
        text += (
            f"\n\nAUROC, overlap and the plot of similarities are of a sample of {sample['n_images']:,} images and "
            f"{sample['n_texts']:,} captions, drawn by seed {sample['seed']}; all other figures are of all rows."
        )
    if content["metrics"]["model"]["auroc"] is None:
        text += "\n\nEvery image belongs to every caption here, so there is nothing to compare the pairs with."
    return text


def _confused(content: Mapping[str, Any]) -> str:
    if len(content["classes"]) < 2:
        return ""
    text = "## Classes most confused in retrieval"
    for role, name in _names(content):
        found = content["confused"][role]
        caption = f"\n\n{name}:" if len(content["names"]) > 1 else ""
        if not found:
            text += f"{caption}\n\nNo first answer is of another class."
            continue
        rows = [
            [
                _DIRECTIONS[item["direction"]],
                item["class"],
                item["taken_for"],
                f"{item['n']} of {item['of']} ({item['n'] / item['of']:.0%})",
            ]
            for item in found
        ]
        text += f"{caption}\n\n" + table(["asked", "class", "first answer is of class", "how often"], rows)
    notes = []
    if content["counts"]["captions_of_several_classes"]:
        notes.append(
            f"{content['counts']['captions_of_several_classes']} captions are written for several classes: none of "
            "those counts as confused."
        )
    if content["counts"]["images_without_a_label"]:
        notes.append(f"{content['counts']['images_without_a_label']} images have no label and are left out here.")
    return text + ("\n\n" + " ".join(notes) if notes else "")


def _captions(content: Mapping[str, Any]) -> str:
    counts = content["counts"]
    if not counts["shared_captions"]:
        return "## Duplicate captions\n\nNone: every caption belongs to one image."
    return (
        f"## Duplicate captions\n\n{counts['shared_captions']:,} of {counts['n_texts']:,} captions belong to more than "
        f"one image (at most {counts['most_images_of_a_caption']:,}); "
        f"{counts['images_with_a_shared_caption']:,} of {counts['n_images']:,} images have such a caption. No "
        "model can tell images of one caption apart by it."
    )


def _worst(content: Mapping[str, Any]) -> str:
    rows = [
        [
            Path(item["image_path"]).name,
            item["caption"],
            *([item["compared_rank"]] if "compared_rank" in item else []),
            item["rank"],
            _number("", item["similarity"]),
            item["best_wrong_caption"] or "—",
            _number("", item["best_wrong_similarity"]),
        ]
        for item in content["worst_pairs"]
    ]
    ranks = [f"rank ({name})" for _, name in _names(content)] if len(content["names"]) > 1 else ["rank"]
    same = (
        " A wrong caption can say the same in other words: there, `best_wrong_label` says of which class it is."
        if content["classes"]
        else ""
    )
    return (
        f"## The {len(rows)} worst pairs\n\nThose whose caption is beaten by a wrong one by most. Look here first for "
        f"mislabelled images; all pairs, in this order, are in [pairs.csv](pairs.csv).{same}\n\n"
        + table(["image", "its caption", *ranks, "similarity", "best wrong caption", "similarity of that"], rows)
    )


def _plots(content: Mapping[str, Any]) -> str:
    parts = []
    for name, title in _PLOTS.items():
        shown = [
            f"![{title}{f', {label}' if len(content['names']) > 1 and name != 'recall_curves' else ''}]({path})"
            for role, label in _names(content)
            if (path := f"plots/{name}{'_compared' if role == 'compared' else ''}.png") in content["plots"]
        ]
        if shown:
            parts.append("\n\n".join([f"## {title}", *shown]))
    return "\n\n".join(parts)


def _sheets(content: Mapping[str, Any]) -> str:
    names = _names(content)
    text = (
        "## Examples\n\nNot picked by hand: all queries were put in order by the rank of their own answer "
        + (f"under {content['names']['model']} " if len(names) > 1 else "")
        + "(equal ranks by how far the own answer is ahead of the best wrong one), and the ones shown are evenly "
        "spaced from the best to the worst."
    )
    for name, kind in _SHEETS.items():
        for role, label in names:
            path = f"plots/{name}{'_compared' if role == 'compared' else ''}.png"
            text += f"\n\n![{kind} queries{f', {label}' if len(names) > 1 else ''}]({path})"
        rows = [
            [
                Path(item["query"]).name if kind == "image" else item["query"],
                item["rank"],
                item["own"] if kind == "image" else Path(item["own"]).name,
            ]
            for item in content["shown_queries"][name]
        ]
        own = "its caption" if kind == "image" else "its best ranked image"
        text += "\n\n" + table([kind, "rank of its own", own], rows)
    return text


def _data_notes(content: Mapping[str, Any]) -> str:
    """How the data were cut, and what two splits share: what is wrong there is wrong with every figure above."""
    notes = content.get("notes") or []
    return "\n".join(["## Data\n", *(f"- {plain(note)}" for note in notes)]) if notes else ""


def _skipped(content: Mapping[str, Any]) -> str:
    found = content.get("skipped") or []
    if not found:
        return ""
    lines = [f"- {plain(item['reason'])}" for item in found[:10]]
    more = [f"- … and {len(found) - 10} more (alignment.json)"] if len(found) > 10 else []
    return "\n".join([f"## Skipped rows\n\n{len(found)} rows could not be used:\n", *lines, *more])


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "—"
    return f"{value:.1%}" if name == "overlap" else f"{value:.3f}".replace("-", _MINUS)


def _signed(name: str, value: float | None) -> str:
    if value is None:
        return "—"
    if (name in _RANKING and METRICS[name].is_fraction) or name == "overlap":
        return f"{_points(value)} points"
    return f"{value:+.4g}".replace("-", _MINUS) if name in _RANKING else f"{value:+.3f}".replace("-", _MINUS)


def _points(fraction: float) -> str:
    return f"{fraction * 100:+.1f}".replace("-", _MINUS)

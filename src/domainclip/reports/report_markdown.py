"""A report as a page to read, worst news not hidden: made from the content of ``report.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domainclip.evaluation.comparison import compared_metrics, confused_pairs, empty_recalls, worsened
from domainclip.metrics.calibration import calibration_in_words
from domainclip.metrics.metric import METRICS
from domainclip.reports.domain_markdown import domain_section
from domainclip.reports.interval_text import accuracy_notes, change_interval, change_notes, points, tested_by
from domainclip.reports.markdown_table import plain, table
from domainclip.reports.model_card import loading_code
from domainclip.reports.semantic_text import semantic_section
from domainclip.reports.trade_off_markdown import reference_set_table, trade_off_markdown

_MINUS = "\N{MINUS SIGN}"
_NAMES = {
    "train_loss": "mean training loss (nats)",
    "final_loss": "training loss at the last step (nats)",
    "best_step": "step whose weights were kept",
    "stopped_early": "stopped early",
    "resumed_from": "resumed from step",
    "run_time_s": "whole run (s)",
    "training_time_s": "training time (s)",
    "training_time": "training time (s)",
    "steps": "optimizer steps",
    "samples_per_s": "images per second",
    "peak_memory_mb": "peak memory in training (MiB)",
    "predicted_memory_mb": "predicted peak memory (MiB)",
    "micro_batch": "pairs in a micro-batch",
}


def report_markdown(report: Mapping[str, Any]) -> str:
    """The text of ``report.md`` from the content of ``report.json``; a part that is missing is left out."""
    parts = [
        _title(report),
        _verdict(report),
        _results(report),
        domain_section(report),
        semantic_section(report),
        _error_analysis(report),
        _reference_sets(report),
        trade_off_markdown(report.get("trade_off")),
        _plots(report),
        _alignment(report),
        _classes(report),
        _sentences("Probabilities", calibration_in_words(report.get("calibration") or {})),
        _training(report),
        _data(report),
        _decisions(report),
        _sentences("Warnings", report.get("warnings")),
        _checkpoint(report),
        _sentences("What to try next", report.get("next")),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def value_text(name: str, value: Any) -> str:
    """A metric's value as a reader meets it: per cent for fractions, a dash where it was not measured."""
    if value is None:
        return "—"
    return f"{value:.1%}" if METRICS[name].is_fraction else f"{value:.4g}"


def _change_text(name: str, before: Any, after: Any) -> str:
    if before is None or after is None:
        return "—"
    change = f"{(after - before) * 100:+.1f} points" if METRICS[name].is_fraction else f"{after - before:+.4g}"
    worse = after < before if METRICS[name].greater_is_better else after > before
    return change.replace("-", _MINUS) + (" (worse)" if worse else "")


def _title(report: Mapping[str, Any]) -> str:
    facts = [
        f"{word}: {report[key]}"
        for key, word in (("domain", "domain"), ("base_model", "started from"), ("device", "device"))
        if isinstance(report.get(key), str)
    ]
    if isinstance(report.get("device"), Mapping):
        facts.append("device: " + _inline(report["device"]))
    return "# Fine-tuning report" + (f"\n\n{'; '.join(facts)}." if facts else "")


def _verdict(report: Mapping[str, Any]) -> str:
    before, after = report.get("before") or {}, report.get("after") or {}
    if not before or not after:
        missing = " and ".join(name for name in ("before", "after") if not report.get(name))
        return f"**Not known whether it helped:** there is no evaluation {missing} fine-tuning."
    lines = [_headline(report, before, after)]
    worse = worsened(before, after)
    if worse:
        listed = ", ".join(f"{METRICS[name].title} ({_change_text(name, before[name], after[name])})" for name in worse)
        lines.append(f"Worse than before: {listed.replace(' (worse)', '')}.")
    majority = _classification(report, "after").get("majority_fraction")
    accuracy = after.get("acc1")
    if majority is not None and accuracy is not None and accuracy <= majority:
        lines.append(f"The accuracy does not pass that of always answering the most frequent class ({majority:.1%}).")
    return "\n\n".join(lines)


def _headline(report: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    comparison = report.get("comparison") or {}
    for name in ("acc1", "i2t_R@1", "t2i_R@1"):
        found = comparison.get(name)
        if not found:
            continue
        old, new = value_text(name, before.get(name)), value_text(name, after.get(name))
        movement = f"{METRICS[name].title} went from {old} to {new}, {points(found['change'])} points"
        answers = f"{found['gained']} {_asked(name)} gained, {found['lost']} lost, of {found['n']}"
        if found["p_value"] is None:
            return f"**Not known whether it helped.** {movement} ({answers}), but all of one group."
        movement += f" (95 % interval {change_interval(found)}; {answers}; {tested_by(found)})"
        if not found["is_clear"]:
            return f"**No clear change.** {movement}. The choice of test data alone can produce as much."
        return f"**{'Better' if found['change'] > 0 else 'Worse'}.** {movement}."
    shared = [name for name in compared_metrics(before, after) if before.get(name) is not None]
    first = next((name for name in shared if after.get(name) is not None), None)
    if first is None:
        return "**Not known whether it helped:** the two evaluations have no metric in common."
    moved = f"{METRICS[first].title} went from {value_text(first, before[first])} to {value_text(first, after[first])}"
    return f"{moved}. Whether that exceeds chance is not known: the single answers were not kept."


def _results(report: Mapping[str, Any]) -> str:
    before, after = report.get("before") or {}, report.get("after") or {}
    names = compared_metrics(before, after)
    if not names:
        return ""
    known = {**before, **after}
    trivial = empty_recalls(names, known)
    comparison = report.get("comparison") or {}
    rows = []
    for name in names:
        if name in trivial or METRICS[name].section == "domain":
            continue
        interval = change_interval(comparison.get(name))
        better = "" if METRICS[name].greater_is_better else " (lower is better)"
        old, new = before.get(name), after.get(name)
        rows.append(
            [
                METRICS[name].title + better,
                value_text(name, old),
                value_text(name, new),
                _change_text(name, old, new),
                interval,
            ]
        )
    text = "## Results on the test split\n\n" + table(
        ["metric", "before", "after", "change", "95 % interval of the change (points)"], rows
    )
    notes = _counted(report, known)
    if trivial:
        counts = sorted(set(trivial.values()))
        listed = ", ".join(METRICS[name].title for name in trivial)
        notes.append(f"Left out: {listed}. With {' and '.join(map(str, counts))} candidates any model scores 100 %.")
    notes.extend((report.get("details") or {}).get("after", {}).get("notes") or [])
    return "\n\n".join([text, *(["\n".join(f"- {note}" for note in notes)] if notes else [])])


def _counted(report: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """What the table's numbers were measured on."""
    notes = []
    n_rows = (report.get("details") or {}).get("after", {}).get("n_rows")
    if n_rows is not None:
        notes.append(f"Test rows: {n_rows}.")
    if known.get("n_classified"):
        line = f"Classification: {known['n_classified']} images, {known.get('n_classes', '?')} classes"
        found = _classification(report, "after") or _classification(report, "before")
        if found.get("prompts_per_class"):
            line += f" (prompts for each class: {found['prompts_per_class']})"
        if found.get("majority_fraction") is not None:
            line += f"; always answering the most frequent class would score {found['majority_fraction']:.1%}"
        notes.append(line + ".")
        for key, words in (
            ("n_unlabelled", "without a label"),
            ("n_outside_classes", "with a label that is no class"),
        ):
            if found.get(key):
                notes.append(f"Left out of the classification: {found[key]} rows {words}.")
        notes += accuracy_notes(report)
    if known.get("n_texts"):
        notes.append(
            f"Retrieval candidates: {known['n_texts']} different captions for each image, "
            f"{known['n_images']} images "
            "for each caption. Equal captions count as one; a tie counts against the model."
        )
    return notes + change_notes(report)


def _reference_sets(report: Mapping[str, Any]) -> str:
    found = report.get("reference_sets") or {}
    before, after = found.get("before") or {}, found.get("after") or {}
    names = compared_metrics(before, after)
    if not names:
        return ""
    trivial = empty_recalls(names, {**before, **after})
    rows = [
        [
            METRICS[name].title,
            *(value_text(name, part.get(name)) for part in (before, after)),
            _change_text(name, before.get(name), after.get(name)),
        ]
        for name in names
        if name not in trivial
    ]
    tables = [table(["metric", "before", "after", "change"], rows), reference_set_table(found)]
    return "\n\n".join(["## Kept of what it knew (data from outside the domain)", *filter(None, tables)])


def _plots(report: Mapping[str, Any]) -> str:
    found = report.get("plots") or {}
    return "\n\n".join(f"![{name.replace('_', ' ')}]({path})" for name, path in found.items())


def _alignment(report: Mapping[str, Any]) -> str:
    path = report.get("alignment")
    return f"How images and captions agree, before and after: [{path}](<{path}>)." if path else ""


def _error_analysis(report: Mapping[str, Any]) -> str:
    path = report.get("error_analysis")
    return f"Single hits, misses and confident errors, with images: [{path}](<{path}>)." if path else ""


def _classes(report: Mapping[str, Any]) -> str:
    new, old = _classification(report, "after"), _classification(report, "before")
    when, found = ("after", new) if new else ("before", old)
    if not found:
        return ""
    recalls, support = found["per_class_recall"], found["support"]
    labels = sorted((label for label in recalls if support[label]), key=lambda label: (recalls[label], label))
    earlier = old.get("per_class_recall", {}) if new and old else {}
    rows = [
        [
            label,
            support[label],
            *([value_text("acc1", earlier.get(label))] if earlier else []),
            value_text("acc1", recalls[label]),
        ]
        for label in labels
    ]
    header = ["class", "images", *(["recall before"] if earlier else []), f"recall {when}"]
    text = "## Recall of each class, the worst first\n\n" + table(header, rows)
    absent = [label for label in recalls if not support[label]]
    if absent:
        text += f"\n\nNo image in the test split: {', '.join(map(plain, absent))}."
    pairs = confused_pairs(found["labels"], found["confusion"])
    if pairs:
        text += f"\n\n## Most confused classes, {when} fine-tuning\n\n" + table(
            ["true class", "taken for", "images", "of this class"],
            [[true, taken, n, f"{n / total:.1%} of {total}"] for true, taken, n, total in pairs],
        )
    if report.get("predictions"):
        text += f"\n\nEvery single prediction is in [{report['predictions']}]({report['predictions']})."
    return text


def _training(report: Mapping[str, Any]) -> str:
    text = ""
    for title, key in (("Training", "training"), ("Validation", "validation")):
        found = report.get(key) or {}
        rows = [[_NAMES.get(name, METRICS[name].title), _plain(name, value)] for name, value in found.items()]
        if rows:
            text += ("\n\n" if text else "") + f"## {title}\n\n" + table(["what", "value"], rows)
    return text


def _data(report: Mapping[str, Any]) -> str:
    data = report.get("data") or {}
    lines = []
    for key, value in data.items():
        if key == "notes":
            continue
        found = value.items() if key == "counts" and isinstance(value, Mapping) else [(key, value)]
        lines += [f"- {name}: {_inline(item)}" for name, item in found]
    lines += [f"- {note}" for note in data.get("notes") or []]
    return "## Data\n\n" + "\n".join(lines) if lines else ""


def _decisions(report: Mapping[str, Any]) -> str:
    rows = [[item.get("key"), _inline(item.get("value")), item.get("reason")] for item in report.get("decisions") or []]
    return "## Decided for you, and why\n\n" + table(["setting", "value", "reason"], rows) if rows else ""


def _sentences(title: str, lines: Any) -> str:
    return f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines) if lines else ""


def _checkpoint(report: Mapping[str, Any]) -> str:
    folder = report.get("checkpoint")
    if not folder:
        return ""
    code = loading_code(str(folder), report.get("text_padding"), bool(report.get("own_code")))
    return f"## The model\n\nSaved in `{folder}`. To load it without this package:\n\n```python\n{code}```"


def _classification(report: Mapping[str, Any], when: str) -> Mapping[str, Any]:
    return ((report.get("details") or {}).get(when) or {}).get("classification") or {}


def _asked(name: str) -> str:
    return "captions" if name.startswith("t2i") else "images"


def _plain(name: str, value: Any) -> str:
    if isinstance(value, float) and METRICS[name].is_fraction:
        return f"{value:.1%}"
    return _inline(value)


def _inline(value: Any) -> str:
    if value is None:
        return "—"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_inline(item) for item in value)
    return f"{value:.5g}" if isinstance(value, float) else str(value)

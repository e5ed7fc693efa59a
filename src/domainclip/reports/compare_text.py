"""A comparison in words: the page for people (``compare.md``), the console's table, and what a cell says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from domainclip.evaluation.compare_matrix import BETTER, FAILED, REFERENCE, SAME, UNTESTED, WORSE
from domainclip.metrics.metric import METRICS
from domainclip.reports.markdown_table import plain, table

SIGNS = {BETTER: "▲", SAME: "=", WORSE: "▼", REFERENCE: "●", UNTESTED: "–", FAILED: "✕"}
_STYLES = {BETTER: "bold green", WORSE: "bold red", FAILED: "yellow"}  # of the terminal, whose theme sets the shades

_MOST_NAMED = 4  # data sets up to which a summary names them

Content = Mapping[str, Any]


def percent(fraction: float | None) -> str:
    return "—" if fraction is None else f"{fraction:.1%}"


def interval_text(cell: Content) -> str:
    """ "81.2–89.1", in per cent, or nothing where there is no interval."""
    return "" if cell["low"] is None else f"{cell['low'] * 100:.1f}–{cell['high'] * 100:.1f}"


def points(fraction: float) -> str:
    """A difference of fractions in points, with its sign."""
    text = f"{fraction * 100:+.1f}"
    return text.replace("+", "±") if float(text) == 0 else text.replace("-", "−")


def change_text(cell: Content) -> str:
    """ "+3.2 (+0.4 to +6.1)", in points against the reference."""
    if cell["change"] is None:
        return ""
    if cell["change_low"] is None:
        return points(cell["change"])
    return f"{points(cell['change'])} ({points(cell['change_low'])} to {points(cell['change_high'])})"


def p_text(p_value: float | None) -> str:
    return "" if p_value is None else "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def verdict_text(cell: Content) -> str:
    return f"{SIGNS[cell['verdict']]} {cell['verdict']}"


def cell_of(content: Content, model: str, data: str) -> Content:
    return next(cell for cell in content["cells"] if cell["model"] == model and cell["data"] == data)


def title_of(content: Content) -> str:
    counts = [(len(content["models"]), "model"), (len(content["data"]), "data set")]
    return "Comparison of " + " on ".join(f"{n} {word}{'' if n == 1 else 's'}" for n, word in counts)


def setting_line(content: Content) -> str:
    """Split, reference, and the metric where all data sets have the same."""
    shared = shared_metric(content)
    parts = [f"Split {content['split']}", f"reference: {content['reference']}", shared and METRICS[shared].title]
    return "; ".join(part for part in parts if part) + "."


def shared_metric(content: Content) -> str | None:
    found = {column["metric"] for column in content["data"] if column["n_units"] is not None}
    return found.pop() if len(found) == 1 else None


def column_facts(content: Content, column: Content) -> str:
    """What a column's head says below its name: the metric unless all share one, and the number of images."""
    metric = METRICS[column["metric"]].title if shared_metric(content) is None and column["n_units"] is not None else ""
    return ", ".join(part for part in (metric, data_facts(column)) if part)


def summary_lines(content: Content) -> list[str]:
    """ "tuned: better on a, b; worse on c." for every model but the reference; counts where names would be many."""
    lines = []
    for model in content["models"]:
        if model["name"] == content["reference"]:
            continue
        parts = []
        for verdict in (BETTER, WORSE, SAME, UNTESTED, FAILED):
            on = [c["data"] for c in content["cells"] if c["model"] == model["name"] and c["verdict"] == verdict]
            if on:
                named = len(content["data"]) <= _MOST_NAMED
                parts.append(f"{verdict} on {', '.join(on) if named else len(on)}")
        lines.append(f"{model['name']}: {'; '.join(parts)}.")
    return lines


def method_lines(content: Content) -> list[str]:
    """How the figures came about and what a verdict means, in sentences."""
    method, reference = content["method"], content["reference"]
    lines = [
        "Every model saw the same rows and was asked with the same prompts; images and texts were prepared as in its "
        f"own training. {content.get('prompts', '')}".strip(),
        f"Intervals hold with 95 % confidence; they come from {method['resamples']:,} resamples of the groups "
        "(patients, boards, specimens) where the data name them, and of the images elsewhere. Where every one of "
        "them is right, or every one wrong, Wilson's interval stands in.",
    ]
    if method["tests"]:
        lines.append(
            f"Each verdict is that of a two-sided exchange test against {reference}: how often is the difference as "
            "large when a coin decides, group by group (or image by image), which of the two models gave which "
            f"answers? Where there are several tests (here {method['tests']}), their p values are corrected by "
            f"{method['correction']}'s method, so that the chance of even one false "
            f'"better" or "worse" in the matrix is at most {method["alpha"]:.0%}. The interval of a single change is '
            "not corrected and comes from the resamples, not from the exchange: it may leave out zero where the "
            "verdict is no difference, and it may hold zero where the verdict is better or worse."
        )
        lines.append(
            '"No difference" means that these images do not show one. A small one may still be there: the interval '
            "of the change says how large."
        )
    return lines


def data_facts(column: Content) -> str:
    """ "210 images in 35 groups", as far as it is known."""
    if column.get("n_images") is None:
        return ""
    text = f"{column['n_images']:,} image{'' if column['n_images'] == 1 else 's'}"
    if column["unit"] == "group" and column["n_units"] not in (None, column["n_images"]):
        text += f" in {column['n_units']:,} group{'' if column['n_units'] == 1 else 's'}"
    return text


def problems(content: Content) -> list[str]:
    """Cells without a figure and cells without a test, with the reason; a reason that all models share once."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for cell in content["cells"]:
        if cell["reason"]:
            found.setdefault((cell["data"], cell["verdict"], cell["reason"]), []).append(cell["model"])
    every = len(content["models"])
    return [
        f"{data}, {'all models' if len(models) == every else ', '.join(models)}: {verdict}. {reason}"
        for (data, verdict, reason), models in found.items()
    ]


def compare_markdown(content: Content) -> str:
    """The text of ``compare.md`` from the content of ``compare.json``."""
    columns, models = content["data"], content["models"]
    matrix = []
    for model in models:
        row = [model["name"]]
        for column in columns:
            cell = cell_of(content, model["name"], column["name"])
            figure = (
                f"{percent(cell['value'])} [{interval_text(cell)}]"
                if cell["low"] is not None
                else (percent(cell["value"]))
            )
            row.append(f"{figure} {verdict_text(cell)}")
        matrix.append(row)
    heads = [f"{column['name']} ({column_facts(content, column) or 'no rows'})" for column in columns]
    details = [
        [
            cell["data"],
            cell["model"],
            percent(cell["value"]),
            interval_text(cell),
            change_text(cell),
            p_text(cell["p_value"]),
            p_text(cell["p_adjusted"]),
            verdict_text(cell),
        ]
        for cell in content["cells"]
    ]
    parts = [
        f"# {title_of(content)}",
        plain(setting_line(content)),
        "\n".join(f"- {plain(line)}" for line in summary_lines(content)),
        table(["model", *heads], matrix),
        "![The matrix](matrix.png)",
        "## Changes against the reference",
        table(
            [
                "data set",
                "model",
                "value",
                "95 % interval",
                "change in points (95 % interval)",
                "p",
                "p (Holm)",
                "verdict",
            ],
            details,
        ),
        _section("Not evaluated or not tested", problems(content)),
        _section("Notes", notes(content)),
        "## How to read this\n\n" + "\n\n".join(method_lines(content)),
        _section("Models", [f"{model['name']}: {model['path']}" for model in models]),
        _section("Data sets", [f"{column['name']}: {column['path']}" for column in columns]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def notes(content: Content) -> list[str]:
    """What the data sets say about themselves, and how many rows of each were skipped."""
    lines = [f"{column['name']}: {note}" for column in content["data"] for note in column.get("notes", ())]
    for column in content["data"]:
        if column.get("n_skipped"):
            n = column["n_skipped"]
            lines.append(f"{column['name']}: {n} row{'' if n == 1 else 's'} skipped, the same for all models")
    return lines


def compare_tables(content: Content) -> list[Table]:
    """A table for every data set that has figures: a matrix of ten columns would not fit into a terminal."""
    method = content["method"]
    p_name = f"p ({method['correction']})" if method["tests"] else "p"
    tables = []
    for column in content["data"]:
        if column["n_units"] is None:
            continue
        facts = ", ".join(part for part in (METRICS[column["metric"]].title, data_facts(column)) if part)
        found = Table(title=escape(f"{column['name']}: {facts}"), title_justify="left", box=SIMPLE_HEAD)
        found.add_column("model", overflow="fold")
        for name in ("value", "95 % interval", "change", p_name):
            found.add_column(name, justify="right", no_wrap=True)
        found.add_column("verdict", no_wrap=True)
        for model in content["models"]:
            cell = cell_of(content, model["name"], column["name"])
            style = _STYLES.get(cell["verdict"], "")
            found.add_row(
                escape(model["name"]),
                percent(cell["value"]),
                interval_text(cell),
                "" if cell["change"] is None else points(cell["change"]),
                p_text(cell["p_adjusted"]),
                Text(verdict_text(cell), style=style),
            )
        tables.append(found)
    return tables


def _section(heading: str, lines: list[str]) -> str:
    return f"## {heading}\n\n" + "\n".join(f"- {plain(line)}" for line in lines) if lines else ""

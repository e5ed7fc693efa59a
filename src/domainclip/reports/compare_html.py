"""The comparison as one page that needs nothing else: ``compare.html``, readable in any browser and in print."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

from domainclip.evaluation.compare_matrix import BETTER, FAILED, REFERENCE, SAME, UNTESTED, WORSE
from domainclip.evaluation.comparison import empty_recalls
from domainclip.metrics.metric import METRICS
from domainclip.reports.compare_text import (
    SIGNS,
    Content,
    cell_of,
    change_text,
    column_facts,
    data_facts,
    interval_text,
    method_lines,
    notes,
    p_text,
    percent,
    points,
    problems,
    setting_line,
    summary_lines,
    title_of,
    verdict_text,
)
from domainclip.reports.report_markdown import value_text

_CLASSES = {BETTER: "better", SAME: "same", WORSE: "worse", REFERENCE: "ref", UNTESTED: "untested", FAILED: "failed"}
_MOST_WIDE = 6  # columns of the matrix that a common screen shows at full width
_MOST_REASON = 40  # characters of a reason that a cell of the matrix shows; the section below has all of it

# Okabe and Ito's blue and vermilion, which colour-blind readers tell apart; every cell also says its verdict in words.
_STYLE = """
:root { color-scheme: light; --line: #c9ced3; --soft: #5b6570; }
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  color: #1c2126; background: #fff; margin: 0 auto; padding: 1.5rem clamp(.75rem, 3vw, 2.5rem) 3rem;
  max-width: 100rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; overflow-wrap: anywhere; }
p, li { max-width: 52rem; overflow-wrap: anywhere; } ul { padding-left: 1.2rem; }
.soft { color: var(--soft); font-size: .87em; font-weight: 400; }
.scroll { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0; }
.matrix { border-spacing: 3px; table-layout: fixed; }
.matrix th { text-align: left; vertical-align: bottom; font-weight: 600; padding: .35rem .5rem;
  overflow-wrap: anywhere; }
.matrix thead th { width: 9.2rem; } .matrix thead th:first-child { width: 13rem; }
.dense thead th { width: 7.4rem; } .dense thead th:first-child { width: 10.4rem; }
.dense td { padding: .4rem .3rem .4rem .4rem !important; }
.dense .matrix { font-size: .8rem; } .dense .value { font-size: 1rem; }
.matrix tbody th { vertical-align: middle; position: sticky; left: 0; background: #fff; z-index: 1; }
.matrix td { padding: .45rem .55rem; border-left: 4px solid transparent; border-radius: 4px; vertical-align: top;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.value { font-size: 1.15rem; font-weight: 650; } td div { white-space: nowrap; } td .why { white-space: normal; }
.better { background: #d3e8f6; border-left-color: #0072b2 !important; }
.worse { background: #fbe0cf; border-left-color: #d55e00 !important; }
.same { background: #f0f1f2; border-left-color: #9aa3ab !important; }
.ref { background: #fff; box-shadow: inset 0 0 0 1px var(--line); border-left-color: #1c2126 !important; }
.untested, .failed { box-shadow: inset 0 0 0 1px var(--line);
  background: repeating-linear-gradient(135deg, #fff 0 7px, #f5f5f3 7px 14px); }
.key span { display: inline-block; padding: .1rem .6rem; margin: 0 .3rem .3rem 0; border-radius: 4px;
  border-left: 4px solid transparent; font-size: .87em; }
.list { width: 100%; max-width: 80rem; min-width: 60rem; table-layout: fixed; }
.list th, .list td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid #e4e7ea;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.list th { font-weight: 600; } .list thead th { color: var(--soft); font-size: .8em; overflow-wrap: normal; }
.list td.n { white-space: nowrap; } .list td.bar { padding: .3rem 1.3rem .3rem .4rem; }
.list.untold { min-width: 34rem; }
.list .value-column { width: 4.6rem; } .list .interval-column { width: 7rem; } .list .change-column { width: 12.6rem; }
.list .p-column { width: 4.7rem; } .list .verdict-column { width: 8.5rem; } .list .name-column { width: 18%; }
.list th.bar { padding: .3rem .9rem .3rem 0; }
.range { position: relative; height: 1.1rem;
  background: linear-gradient(#e4e7ea, #e4e7ea) center / 100% 1px no-repeat; }
.range i { position: absolute; top: calc(50% - 2px); height: 4px; border-radius: 2px; background: #7f9db3; }
.range b { position: absolute; top: calc(50% - 5px); width: 10px; height: 10px; margin-left: -5px; border-radius: 5px;
  background: #0072b2; }
.range u { position: absolute; top: 0; bottom: 0; border-left: 1px dashed #1c2126; }
.ends { display: flex; justify-content: space-between; }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--soft); font-size: .87em; }
.figures { font-size: .87em; } .figures th, .figures td { padding: .2rem .9rem .2rem 0; text-align: left;
  vertical-align: bottom; border-bottom: 1px solid #e4e7ea; max-width: 12rem; overflow-wrap: anywhere; }
.figures tbody th { max-width: 26rem; font-weight: 400; }
@media print { body { max-width: none; padding: 0; } .scroll { overflow: visible; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


def compare_html(content: Content) -> str:
    """The page, from the content of ``compare.json``."""
    title = title_of(content)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(setting_line(content))}</p>',
        _key(content),
        _matrix(content),
        _list(summary_lines(content)),
        _section("Not evaluated or not tested", problems(content)),
        "<h2>Data set by data set</h2>",
        *(_data_set(content, column) for column in content["data"]),
        _section("Notes", notes(content)),
        "<h2>How to read this</h2>",
        *(f"<p>{escape(line)}</p>" for line in method_lines(content)),
        _places("Models", content["models"]),
        _places("Data sets", content["data"]),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def _key(content: Content) -> str:
    shown = [verdict for verdict in _CLASSES if any(cell["verdict"] == verdict for cell in content["cells"])]
    if not content["method"]["tests"]:
        return ""
    spans = "".join(f'<span class="{_CLASSES[verdict]}">{SIGNS[verdict]} {verdict}</span>' for verdict in shown)
    return f'<p class="key">{spans}</p>'


def _matrix(content: Content) -> str:
    heads = "".join(
        f'<th scope="col">{_breakable(column["name"])}<div class="soft">'
        f"{escape(column_facts(content, column))}</div></th>"
        for column in content["data"]
    )
    rows = []
    for model in content["models"]:
        cells = "".join(_matrix_cell(cell_of(content, model["name"], column["name"])) for column in content["data"])
        rows.append(f'<tr><th scope="row">{_breakable(model["name"])}</th>{cells}</tr>')
    dense = len(content["data"]) > _MOST_WIDE
    # A fixed layout keeps to the widths of the first row only where the table's own is said.
    width = (10.4 if dense else 13) + (7.4 if dense else 9.2) * len(content["data"])
    return (
        f'<div class="scroll{" dense" * dense}"><table class="matrix" style="width:{width:.1f}rem"><thead><tr>'
        f'<th scope="col"><span class="soft">model</span></th>{heads}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div>"
    )


def _matrix_cell(cell: Content) -> str:
    opening = f'<td class="{_CLASSES[cell["verdict"]]}"'
    if cell["value"] is None:
        reason = " ".join(cell["reason"].split())
        short = reason if len(reason) <= _MOST_REASON else reason[:_MOST_REASON].rstrip() + "…"
        return (
            f'{opening} title="{escape(reason)}">{verdict_text(cell)}<div class="soft why">{escape(short)}</div></td>'
        )
    interval = f'<div class="soft">{interval_text(cell)}</div>' if cell["low"] is not None else ""
    change = f'<div class="soft">{points(cell["change"])} points</div>' if cell["change"] is not None else ""
    value = f'<div class="value">{percent(cell["value"])}</div>'
    return f"{opening}>{value}{interval}<div>{verdict_text(cell)}</div>{change}</td>"


def _data_set(content: Content, column: Content) -> str:
    """Every model's interval on one scale, the tests, and all other metrics folded away."""
    cells = [cell_of(content, model["name"], column["name"]) for model in content["models"]]
    if all(cell["value"] is None for cell in cells):
        return ""
    low, high = _scale(cells)
    reference = next((cell["value"] for cell in cells if cell["model"] == content["reference"]), None)
    tested = bool(content["method"]["tests"])
    rows = "".join(_model_row(cell, low, high, reference, tested) for cell in cells)
    ends = f'<div class="ends"><span>{low:.0%}</span><span>{high:.0%}</span></div>'
    facts = ", ".join(part for part in (METRICS[column["metric"]].title, data_facts(column)) if part)
    tests = (
        '<th class="change-column">change in points (95 % interval)</th><th class="p-column">p</th>'
        f'<th class="p-column">p ({escape(content["method"]["correction"])})</th>'
        '<th class="verdict-column">verdict</th>'
    )
    return (
        f'<h3>{escape(column["name"])}</h3><p class="soft">{escape(facts)}</p>'
        f'<div class="scroll"><table class="{"list" if tested else "list untold"}">'
        '<thead><tr><th class="name-column">model</th><th class="value-column">value</th>'
        f'<th class="interval-column">95 % interval</th><th class="bar">{ends}</th>'
        f"{tests if tested else ''}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>{_all_metrics(cells)}"
    )


def _model_row(cell: Content, low: float, high: float, reference: float | None, tested: bool) -> str:
    def place(fraction: float) -> float:
        return 100 * (fraction - low) / (high - low)

    bar = ""
    if cell["value"] is not None:
        line = f'<u style="left:{place(reference):.2f}%"></u>' if reference is not None else ""
        if cell["low"] is not None:
            width = place(cell["high"]) - place(cell["low"])
            line += f'<i style="left:{place(cell["low"]):.2f}%;width:{width:.2f}%"></i>'
        bar = f'<div class="range">{line}<b style="left:{place(cell["value"]):.2f}%"></b></div>'
    figures = f'<td class="n">{percent(cell["value"])}</td><td class="n">{interval_text(cell)}</td>'
    tests = ""
    if tested:
        texts = (change_text(cell), p_text(cell["p_value"]), p_text(cell["p_adjusted"]), verdict_text(cell))
        tests = "".join(f'<td class="n">{escape(text)}</td>' for text in texts)
    return f'<tr><th scope="row">{_breakable(cell["model"])}</th>{figures}<td class="bar">{bar}</td>{tests}</tr>'


def _scale(cells: Sequence[Content]) -> tuple[float, float]:
    """The ends of the scale: all intervals with some room, in whole tenths."""
    found = [cell[key] for cell in cells for key in ("value", "low", "high") if cell[key] is not None]
    low = max(0, int((min(found) - 0.02) * 10)) / 10
    high = min(10, int((max(found) + 0.02) * 10) + 1) / 10
    return low, high


def _all_metrics(cells: Sequence[Content]) -> str:
    shown = [cell for cell in cells if cell["metrics"]]
    names = dict.fromkeys(name for cell in shown for name in cell["metrics"] if not METRICS[name].is_count)
    trivial = empty_recalls(list(names), shown[0]["metrics"]) if shown else {}
    names = {name: None for name in names if name not in trivial}
    if not names:
        return ""
    heads = "".join(f"<th>{escape(cell['model'])}</th>" for cell in shown)
    rows = "".join(
        f"<tr><th>{escape(METRICS[name].title)}</th>"
        + "".join(f"<td>{escape(value_text(name, cell['metrics'].get(name)))}</td>" for cell in shown)
        + "</tr>"
        for name in names
    )
    return (
        '<details><summary>All metrics</summary><div class="scroll"><table class="figures"><thead><tr><th></th>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _breakable(name: str) -> str:
    """The name, which may go on in the next line after any of the signs that join words in names of files."""
    return re.sub(r"([_/.\-]+)", r"\1<wbr>", escape(name))


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>" if lines else ""


def _section(heading: str, lines: Sequence[str]) -> str:
    return f"<h2>{escape(heading)}</h2>{_list(lines)}" if lines else ""


def _places(heading: str, entries: Sequence[Any]) -> str:
    return _section(heading, [f"{entry['name']}: {entry['path']}" for entry in entries])

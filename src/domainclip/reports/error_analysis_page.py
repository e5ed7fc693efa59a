"""An error analysis as one HTML file that needs nothing else: images inside, no script, nothing fetched."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from domainclip.data.images.reader import read_image
from domainclip.errors import ImageError
from domainclip.evaluation.error_analysis import Case, ClassCases, ErrorAnalysis, Guess, Section
from domainclip.files import write_text

FILE = "error_analysis.html"
_SIZE, _SMALL_SIZE = 208, 80
"""Longest side of a thumbnail in pixels, on a card and in the table of classes."""
_QUALITY = 82
_LONG = 150
"""Characters of a caption that are shown before it has to be unfolded."""

# Right and wrong are told apart by their word and sign; the colours (Okabe and Ito's blue and vermilion) only help.
_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1c2126; --soft: #56606a; --line: #d5dade; --card: #f6f7f8;
  --well: #e9ecee; --right: #00609c; --right-soft: #d3e8f6; --wrong: #b34700; --wrong-soft: #fbe0cf; --bar: #b8c0c7; }
@media (prefers-color-scheme: dark) { :root { --page: #14181c; --ink: #e6e9ec; --soft: #a3adb6; --line: #333b43;
  --card: #1d2328; --well: #0c0f12; --right: #6cb9ee; --right-soft: #12354d; --wrong: #f0935a; --wrong-soft: #4a2410;
  --bar: #55606a; } }
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  color: var(--ink); background: var(--page); margin: 0 auto; padding: 1.5rem clamp(.75rem, 3vw, 2.5rem) 3rem;
  max-width: 96rem; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .2rem; }
p, li { max-width: 56rem; overflow-wrap: anywhere; margin: .3rem 0; } ul { padding-left: 1.2rem; }
a { color: var(--right); } .soft { color: var(--soft); font-size: .87em; }
.figures { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; padding: 0; list-style: none; }
.figures li { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .5rem .8rem;
  margin: 0; }
.figures b { display: block; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
nav { margin: 1rem 0 0; font-size: .93em; line-height: 1.7; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(13.5rem, 1fr)); gap: .9rem; margin: .9rem 0; }
.cards.caption-cards { grid-template-columns: repeat(auto-fill, minmax(17.5rem, 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; overflow: hidden; min-width: 0;
  break-inside: avoid; }
.well { background: var(--well); height: 11.5rem; display: flex; align-items: center; justify-content: center; }
.well img { max-width: 100%; max-height: 100%; min-height: 55%; object-fit: contain; }
.well p { padding: .8rem; font-size: .8em; color: var(--soft); }
.details { padding: .55rem .7rem .7rem; } .details > * + * { margin-top: .4rem; }
.verdict { font-weight: 650; } .right > .verdict, b.right, .right { color: var(--right); }
.wrong > .verdict, b.wrong, .wrong { color: var(--wrong); }
.card.right, .card.wrong { color: inherit; } .card.right { border-top: 3px solid var(--right); }
.card.wrong { border-top: 3px solid var(--wrong); } .card .verdict { overflow-wrap: anywhere; }
.card.right .verdict { color: var(--right); } .card.wrong .verdict { color: var(--wrong); }
.guesses { list-style: none; margin: 0; padding: 0; font-size: .87em; }
.guesses li { position: relative; padding: .12rem .35rem; margin: .15rem 0; border-radius: 3px; overflow: hidden;
  display: flex; justify-content: space-between; gap: .6rem; }
.guesses li i { position: absolute; inset: 0 auto 0 0; background: var(--bar); opacity: .45; }
.guesses li.is-right i { background: var(--right); } .guesses li.is-wrong i { background: var(--wrong); }
.guesses li span { position: relative; overflow-wrap: anywhere; min-width: 0; }
.guesses .n { font-variant-numeric: tabular-nums; white-space: nowrap; flex: none; }
.caption { overflow-wrap: anywhere; font-size: .9em; } .caption.more { margin-top: .35rem; }
summary { cursor: pointer; list-style: none; } summary::-webkit-details-marker { display: none; }
.cut { color: var(--soft); } details[open] > summary .cut { display: none; }
.where { color: var(--soft); font-size: .75em; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .9rem 0; }
table { border-collapse: collapse; min-width: min(100%, 76rem); }
th, td { text-align: left; padding: .35rem .9rem .35rem 0; vertical-align: middle;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-size: .8em; font-weight: 600; }
tbody th { font-weight: 600; min-width: 8rem; max-width: 16rem; overflow-wrap: anywhere; }
.recall { min-width: 8.5rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.track { display: block; height: .35rem; margin-top: .25rem; border-radius: 2px; background: var(--well); }
.track i { display: block; height: 100%; border-radius: 2px; background: var(--right); }
.taken { font-size: .87em; min-width: 9rem; overflow-wrap: anywhere; }
.few { display: flex; gap: .3rem; } .few figure { margin: 0; width: 84px; }
.few div { width: 84px; height: 70px; background: var(--well); display: flex; align-items: center;
  justify-content: center; border-radius: 3px; overflow: hidden; }
.few img { max-width: 100%; max-height: 100%; min-height: 60%; object-fit: contain; }
.few figcaption { font-size: .68em; line-height: 1.25; color: var(--soft); overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
@media print { nav { display: none; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

Reader = Callable[[Path], np.ndarray]
"""A path to uint8 ``[height, width, 3]``; raises ``ImageError``."""


def write_error_analysis(folder: Path, analysis: ErrorAnalysis, read: Reader = read_image) -> Path:
    """Write ``error_analysis.html`` into ``folder`` and return its path. ``read`` gives the images as they are
    shown."""
    path = Path(folder) / FILE
    write_text(path, error_analysis_html(analysis, read))
    return path


def error_analysis_html(analysis: ErrorAnalysis, read: Reader = read_image) -> str:
    """The page. An image that ``read`` cannot read is replaced by what is wrong with it."""
    thumbnails = _Thumbnails(analysis, read)
    anchors = [f"s{index}" for index in range(len(analysis.sections))]
    notes = [*analysis.notes, "This page holds images of your data: whoever gets it has them."]
    parts = [
        f"<header><h1>{escape(analysis.title)}</h1>",
        '<p class="soft">Which cases are shown follows from fixed rules, said at each section. Bars are probabilities: '
        "blue is the true class, orange a wrong one that was chosen.</p>"
        if analysis.classes
        else '<p class="soft">Which cases are shown follows from fixed rules, said at each section.</p>',
        '<ul class="figures">'
        + "".join(f"<li><b>{escape(v)}</b>{escape(k)}</li>" for k, v in analysis.figures)
        + "</ul>",
        "".join(f'<p class="soft">{escape(note)}</p>' for note in notes),
        f"<nav>{_links(analysis, anchors)}</nav></header>",
        *(_section(anchor, section, thumbnails) for anchor, section in zip(anchors, analysis.sections, strict=True)),
        _classes(analysis, thumbnails),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escape(analysis.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


class _Thumbnails:
    """``img`` elements, each image read once a size."""

    def __init__(self, analysis: ErrorAnalysis, read: Reader) -> None:
        self.read = read
        self._made: dict[tuple[Path, int], str] = {}
        folders = {
            os.path.dirname(os.path.abspath(case.image_path)) for section in analysis.sections for case in section.cases
        }
        # Names from where the data begin: what a reader needs, without the folders of the machine it was made on.
        try:
            self._root = os.path.commonpath(folders)
        except ValueError:  # no image, or images on two drives
            self._root = ""

    def name(self, path: Path) -> str:
        return os.path.relpath(path, self._root) if self._root else path.name

    def image(self, case: Case, size: int) -> str:
        key = (case.image_path, size)
        if key not in self._made:
            try:
                self._made[key] = _data_uri(self.read(case.image_path), size)
            except ImageError as error:
                self._made[key] = ""
                if size == _SIZE:
                    return f"<p>{escape(str(error).replace(str(case.image_path), case.image_path.name))}</p>"
        uri = self._made[key]
        if not uri:
            return "<p>cannot be read</p>"
        return f'<img src="{uri}" alt="{escape(_alt(case))}" loading="lazy">'


def _data_uri(pixels: np.ndarray, size: int) -> str:
    image = Image.fromarray(pixels)
    # Twice as large as shown, for screens of high density.
    image.thumbnail((size * 3 // 2, size * 3 // 2), Image.Resampling.LANCZOS, reducing_gap=2.0)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")


def _alt(case: Case) -> str:
    what = f"{case.label}" if case.label else (case.captions[0][:80] if case.captions else "image")
    return f"{what}, {'right' if case.right else 'wrong'}"


def _of(section: Section) -> str:
    return "classes" if section.of == "class" else "captions"


def _links(analysis: ErrorAnalysis, anchors: list[str]) -> str:
    lines = []
    for of, words in (("class", "Evaluated by class"), ("caption", "Evaluated by caption")):
        links = [
            f'<a href="#{anchor}">{escape(section.title.lower())}</a>'
            for anchor, section in zip(anchors, analysis.sections, strict=True)
            if section.of == of
        ]
        if of == "class" and analysis.classes:
            links.append('<a href="#classes">class by class</a>')
        if links:
            lines.append(f"<div><b>{words}:</b> {' · '.join(links)}</div>")
    return "".join(lines)


def _section(anchor: str, section: Section, thumbnails: _Thumbnails) -> str:
    shown = len(section.cases)
    count = f"{shown} of {section.total}" if shown < section.total else f"all {section.total}" if shown > 1 else "one"
    cards = "\n".join(_card(case, section.of, thumbnails) for case in section.cases)
    return (
        f'<section id="{anchor}"><h2>{escape(section.title)} <span class="soft">{_of(section)}, {count}</span></h2>'
        f'<p class="soft">{escape(section.note)}</p>\n<div class="cards {section.of}-cards">\n{cards}\n</div></section>'
    )


def _card(case: Case, of: str, thumbnails: _Thumbnails) -> str:
    side = "right" if case.right else "wrong"
    parts = [f'<p class="verdict">{escape(_verdict(case, of))}</p>']
    if of == "class":
        parts.append(_guesses(case.guesses))
        parts += [_caption(caption) for caption in case.captions[:2]]
    else:
        parts.append('<div class="soft">Its own caption</div>')
        parts += [_caption(caption) for caption in case.captions[:2]]
        parts.append('<div class="soft">Found first</div>')
        parts += [_found(guess) for guess in case.guesses]
    more = len(case.captions) - 2
    if more > 0:
        parts.append(f'<p class="soft">and {more} more caption{"s" if more > 1 else ""}</p>')
    parts.append(f'<p class="where">{escape(thumbnails.name(case.image_path))}</p>')
    return (
        f'<article class="card {side}"><div class="well">{thumbnails.image(case, _SIZE)}</div>'
        f'<div class="details">{"".join(parts)}</div></article>'
    )


def _verdict(case: Case, of: str) -> str:
    if of == "class":
        return f"✓ {case.label}" if case.right else f"✗ {case.label}, taken for {case.predicted}"
    return "✓ its caption comes first" if case.right else f"✗ its caption is at place {case.rank}"


def _guesses(guesses: tuple[Guess, ...]) -> str:
    rows = []
    for index, guess in enumerate(guesses):
        kind = "is-right" if guess.right else "is-wrong" if index == 0 else ""
        width = f"{100 * min(max(guess.score, 0.0), 1.0):.1f}"
        rows.append(
            f'<li class="{kind}"><i style="width:{width}%"></i><span>{escape(guess.text)}</span>'
            f'<span class="n">{_percent(guess.score)}</span></li>'
        )
    return f'<ul class="guesses">{"".join(rows)}</ul>'


def _percent(fraction: float) -> str:
    """A probability is never rounded to certainty."""
    if 0.9995 <= fraction < 1:
        return "> 99.9%"
    if 0 < fraction < 0.0005:
        return "< 0.1%"
    return f"{fraction:.1%}"


def _found(guess: Guess) -> str:
    sign, kind = ("✓", "right") if guess.right else ("✗", "wrong")
    before = f'<b class="{kind}">{sign} {guess.score:.2f}</b> '.replace("-", "\N{MINUS SIGN}")
    return _caption(guess.text, before)


def _caption(text: str, before: str = "") -> str:
    """A caption; of a long one the beginning, the rest to be unfolded. ``before`` is HTML."""
    text = " ".join(text.split())
    if len(text) <= _LONG:
        return f'<p class="caption">{before}{escape(text)}</p>'
    cut = text.rfind(" ", _LONG // 2, _LONG)
    cut = cut if cut > 0 else _LONG
    more = '<span class="cut">… <u>more</u></span>'
    return (
        f'<details class="caption"><summary>{before}{escape(text[:cut])}{more}</summary>'
        f"{escape(text[cut:].lstrip())}</details>"
    )


def _classes(analysis: ErrorAnalysis, thumbnails: _Thumbnails) -> str:
    if not analysis.classes:
        return ""
    rows = "\n".join(_class_row(row, thumbnails) for row in analysis.classes)
    absent = ""
    if analysis.absent_classes:
        absent = f'<p class="soft">No image here: {escape(", ".join(analysis.absent_classes))}.</p>'
    return (
        '<section id="classes"><h2>Class by class</h2><p class="soft">The lowest recall first. Of the hits and of the '
        f"misses, those with the highest probability are shown.</p>{absent}\n"
        '<div class="scroll"><table><thead><tr><th>class</th><th>recall</th><th>taken for</th><th>misses</th>'
        f"<th>hits</th></tr></thead>\n<tbody>\n{rows}\n</tbody></table></div></section>"
    )


def _class_row(row: ClassCases, thumbnails: _Thumbnails) -> str:
    taken = "<br>".join(f"{escape(label)} ({n})" for label, n in row.taken_for)
    more = row.n - row.right - sum(n for _, n in row.taken_for)
    if more > 0:
        taken += f'<br><span class="soft">others ({more})</span>'
    return (
        f'<tr><th scope="row">{escape(row.label)}</th><td class="recall">{row.recall:.0%} ({row.right} of {row.n})'
        f'<span class="track"><i style="width:{100 * row.recall:.1f}%"></i></span></td><td class="taken">{taken}</td>'
        f"<td>{_few(row.misses, thumbnails)}</td><td>{_few(row.hits, thumbnails)}</td></tr>"
    )


def _few(cases: tuple[Case, ...], thumbnails: _Thumbnails) -> str:
    if not cases:
        return '<span class="soft">none</span>'
    figures = "".join(
        f'<figure title="{escape(_tip(case))}"><div>{thumbnails.image(case, _SMALL_SIZE)}</div>'
        f"<figcaption>{escape(_percent(case.confidence))}{'' if case.right else '<br>' + escape(case.predicted or '')}"
        "</figcaption></figure>"
        for case in cases
    )
    return f'<div class="few">{figures}</div>'


def _tip(case: Case) -> str:
    return f"{case.label}: {_percent(case.confidence)} {case.predicted}. {' / '.join(case.captions[:1])[:200]}"

"""Pages from templates: HTML and Markdown in which whatever the data say stands for itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from domainclip.reports import text
from domainclip.reports.schema.run import DomainFigures, SemanticFigures
from domainclip.words import counted

# A tag or an entity would be lost, a pair of stars or backticks would vanish, an image would be fetched. An underscore
# inside a word, "<" before a number and "&" between words are text to Markdown too, and stay readable as they are.
_MARKUP = re.compile(r"[\\*`|]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|\](?=\()|(?<!\w)_+|_+(?!\w)")
_JOINTS = re.compile(r"([_/.\-]+)")


def plain(value: object) -> str:
    """Markdown in which a value's signs stand for themselves: the class ``**b**`` is not bold, ``<unk>`` no tag.

    Args:
        value: Anything; a line break in its text becomes a space.

    Returns:
        One line of Markdown.
    """
    return " ".join(_MARKUP.sub(lambda found: "".join(f"\\{sign}" for sign in found[0]), str(value)).split())


def render(template: str, **values: Any) -> str:
    """A page from a template of this room.

    Values are escaped for the template's language (``….md.j2`` or ``….html.j2``) wherever they are put in, unless the
    template marks them as safe.

    Args:
        template: The name of the file in ``templates/``.
        **values: What the template asks for.

    Returns:
        The page, with at most one empty line in a row and a line break at its end.

    Raises:
        jinja2.UndefinedError: The template asks for something that was not given.
    """
    page = _environment(template.endswith(".md.j2")).get_template(template).render(values)
    return re.sub(r"\n(?:[ \t]*\n){2,}", "\n\n", page).strip() + "\n"


@cache
def _environment(markdown: bool) -> Environment:
    found = Environment(
        loader=PackageLoader("domainclip.reports"),
        autoescape=True,
        finalize=_as_markdown if markdown else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals["figure_names"] = _figure_names
    found.filters |= _FILTERS | ({"target": _target, "code": _code} if markdown else {"breakable": _breakable})
    return found


def _as_markdown(value: object) -> Markup:
    """A value as Markdown that HTML's autoescape, which comes after it, lets pass."""
    if isinstance(value, Markup):
        return value
    words = str(value)
    return Markup(" " * words[:1].isspace() + plain(words) + " " * (words[:-1] != "" and words[-1:].isspace()))


def _figure_names(parts: Sequence[tuple[str, DomainFigures | SemanticFigures]]) -> list[str]:
    """Names of the figures that any of the evaluations has, in the order of the first."""
    return list(dict.fromkeys(name for _, part in parts for name in part.metrics))


def _target(path: str) -> Markup:
    """A path as the target of a link."""
    return Markup(quote(path, safe="/:.,~+@=-_", errors="surrogateescape"))


def _code(words: str) -> Markup:
    """Words as they are to be typed. Markdown leaves what stands between backticks alone; a tag is broken all the same,
    for renderers that do not."""
    if "<" in words or "\n" in words:
        return Markup(plain(words))
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", words)), default=0))
    return Markup(f"{fence} {words} {fence}" if "`" in words else f"`{words}`")


def _breakable(name: str) -> Markup:
    """A name that may go on in the next line after any of the signs that join words in names of files."""
    return Markup("").join(
        Markup("{}<wbr>").format(part) if index % 2 else part for index, part in enumerate(_JOINTS.split(name))
    )


_FILTERS: dict[str, Callable[..., object]] = {
    "title_of_metric": text.title,
    "titled": text.titled,
    "value": text.value_text,
    "change": text.change_text,
    "figure": text.figure_text,
    "percent": text.percent,
    "points": text.points,
    "p": text.p_text,
    "inline": text.inline,
    "few": text.few,
    "counted": counted,
    "file_name": lambda path: PurePath(path).name,
}

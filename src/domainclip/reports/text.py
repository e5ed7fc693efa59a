"""Figures, changes and intervals as a reader meets them, in words and digits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from domainclip.metrics.metric import METRICS, Metric

MINUS = "\N{MINUS SIGN}"
NOTHING = "—"


def title(name: str) -> str:
    """A metric's name in words.

    Args:
        name: Its short name.

    Returns:
        The title, the short name where nothing else is known.
    """
    return METRICS[name].title


def titled(name: str) -> str:
    """A metric's name in words, with its direction where less is better.

    Args:
        name: Its short name.

    Returns:
        The title.
    """
    return title(name) + ("" if METRICS[name].greater_is_better else " (lower is better)")


def value_text(value: float | None, name: str) -> str:
    """A metric's value.

    Args:
        value: The figure; None or NaN where it was not determined.
        name: The metric's short name.

    Returns:
        Per cent for fractions, four digits for the rest, a dash for nothing.
    """
    if value is None or value != value:  # NaN is the only value that differs from itself
        return NOTHING
    return f"{value:.1%}" if METRICS[name].is_fraction else f"{value:.4g}"


def change_text(before: float | None, after: float | None, name: str) -> str:
    """How far a metric moved.

    Args:
        before: The earlier value.
        after: The later one.
        name: The metric's short name.

    Returns:
        Points for fractions, with "(worse)" where it moved the wrong way; a dash where either value is missing.
    """
    if before is None or after is None:
        return NOTHING
    change = f"{points(after - before)} points" if METRICS[name].is_fraction else signed(after - before, "+.4g")
    worse = after < before if METRICS[name].greater_is_better else after > before
    return change + (" (worse)" if worse else "")


def figure_text(figure: Metric | None, name: str) -> str:
    """A figure with its interval.

    Args:
        figure: The figure, None where there is none.
        name: The metric's short name.

    Returns:
        "0.912 (0.870 to 0.941)" or "91.2% (87.0% to 94.1%)", as the metric's readers write it.
    """
    if figure is None or math.isnan(figure.value):
        return NOTHING
    decimal = METRICS[name].decimal or not METRICS[name].is_fraction

    def shown(value: float | None) -> str:
        return f"{value:.3f}".replace("-", MINUS) if decimal else f"{value:.1%}"

    if not figure.has_interval:
        return shown(figure.value)
    return f"{shown(figure.value)} ({shown(figure.low)} to {shown(figure.high)})"


def percent(fraction: float | None) -> str:
    """A fraction in per cent.

    Args:
        fraction: In 0…1.

    Returns:
        "81.2%", a dash for None.
    """
    return NOTHING if fraction is None else f"{fraction:.1%}"


def points(fraction: float) -> str:
    """A difference of fractions in points.

    Args:
        fraction: In -1…1.

    Returns:
        "+3.2", with a typographic minus.
    """
    return signed(fraction * 100, "+.1f")


def signed(value: float, form: str) -> str:
    """A number with its sign.

    Args:
        value: The number.
        form: How to format it.

    Returns:
        Its text; "±" where it rounds to nothing.
    """
    text = format(value, form)
    return text.replace("+", "±").replace("-", "±") if float(text) == 0 else text.replace("-", MINUS)


def p_text(p_value: float | None) -> str:
    """A p value.

    Args:
        p_value: In 0…1.

    Returns:
        Three digits, "< 0.001" below, nothing for None.
    """
    return "" if p_value is None else "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def inline(value: JsonValue) -> str:
    """Any value in one line.

    Args:
        value: What JSON knows.

    Returns:
        Its text, without braces and quotes.
    """
    if value is None:
        return NOTHING
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {inline(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(inline(item) for item in value)
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def few(items: Sequence[str], most: int) -> str:
    """Some names and how many more there are.

    Args:
        items: The names.
        most: How many are named.

    Returns:
        "a, b and 3 more".
    """
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more} more" if more > 0 else "")

"""Conditions on rows, such as ``label=crack``: which rows of a store may be found."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from domainclip.errors import ConfigurationError
from domainclip.registry import nearest
from domainclip.retrieval.store.shards import CAPTION, LABEL, MODIFIED, PATH, read_columns, require_pyarrow

_TEXTS = {"label": LABEL, "caption": CAPTION, "path": PATH}
_CONDITION = re.compile(r"\s*(?P<column>\w+)\s*(?P<relation>!=|>=|<=|=|~|>|<)\s*(?P<value>.*?)\s*", re.DOTALL)
_OF_TEXTS, _OF_DATES = ("=", "!=", "~"), (">=", "<=", ">", "<")


@dataclass(frozen=True)
class Condition:
    """One condition on a row.

    Attributes:
        column: ``label``, ``caption``, ``path`` or ``modified``.
        relation: ``=``, ``!=`` or ``~`` (contains, whatever the case) of texts; ``>``, ``>=``, ``<``, ``<=`` of the day
            on which a file was changed.
        value: A text or a date (2026-01-31).
    """

    column: str
    relation: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read a condition.

        Args:
            text: Such as ``label=crack``, ``path~line 3/``, ``modified>=2026-01-31``.

        Returns:
            The condition.

        Raises:
            ConfigurationError: It is none.
        """
        found = _CONDITION.fullmatch(text)
        columns = (*_TEXTS, "modified")
        if found is None:
            raise ConfigurationError(
                f"The condition {text!r:.100} cannot be read: write one such as label=crack, path~folder/, "
                "modified>=2026-01-31"
            )
        column, relation, value = found["column"], found["relation"], found["value"]
        if column not in columns:
            guess = nearest(column, columns)
            hint = f"did you mean {guess!r}?" if guess else f"choose one of {', '.join(columns)}"
            raise ConfigurationError(f"The condition {text!r:.100} is on {column!r}, which rows do not have: {hint}")
        known = _OF_DATES if column == "modified" else _OF_TEXTS
        if relation not in known:
            raise ConfigurationError(f"The condition {text!r:.100}: {column} is compared by {', '.join(known)}")
        if column == "modified":
            _day(value, text)
        return cls(column, relation, value)

    def allowed(self, path: Path) -> Bool[np.ndarray, " rows"]:
        """Which rows of a shard meet the condition. Rows without a value meet ``!=`` alone.

        Args:
            path: The shard.

        Returns:
            One truth value a row.

        Raises:
            DamagedFileError: The shard cannot be read.
        """
        if self.column == "modified":
            days = np.asarray(read_columns(path, [MODIFIED]).column(MODIFIED))
            return _compared(days, self.relation, self.value)
        require_pyarrow()
        from pyarrow import compute

        texts: Any = read_columns(path, [_TEXTS[self.column]]).column(0).fill_null("")
        if self.relation == "~":
            found = compute.match_substring(texts, self.value, ignore_case=True)
        else:
            found = compute.equal(texts, self.value) if self.relation == "=" else compute.not_equal(texts, self.value)
        return found.to_numpy()


def _day(value: str, text: str) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(value).astimezone()
    except ValueError:
        raise ConfigurationError(f"The condition {text!r:.100} needs a date such as 2026-01-31") from None


def _compared(modified_ns: np.ndarray, relation: str, value: str) -> Bool[np.ndarray, " rows"]:
    """A date alone is its whole day, of the machine's own time zone."""
    begin = _day(value, value)
    whole_day = len(value) <= len("2026-01-31")
    end = begin + datetime.timedelta(days=1) if whole_day else begin
    first, last = (int(each.timestamp() * 1e9) for each in (begin, end))
    if relation == ">=":
        return modified_ns >= first
    if relation == "<":
        return modified_ns < first
    if relation == ">":
        return modified_ns >= last if whole_day else modified_ns > last
    return modified_ns < last if whole_day else modified_ns <= last

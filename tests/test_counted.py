"""Numbers agree with their nouns and verbs, and no message of the package writes a plural by itself after a number."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from domainclip.words import counted, some_of

SOURCE = Path(__file__).parents[1] / "src/domainclip"


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (counted(1, "image"), "1 image"),
        (counted(0, "image"), "0 images"),
        (counted(1200, "row"), "1,200 rows"),
        (counted(2, "class"), "2 classes"),
        (counted(2, "query"), "2 queries"),
        (counted(2, "key"), "2 keys"),
        (counted(1, "row", "are"), "1 row is"),
        (counted(3, "row", "have"), "3 rows have"),
        (counted(1, "row", "name"), "1 row names"),
        (some_of(1, 120, "row", "have"), "1 of 120 rows has"),
        (some_of(0, 1, "image", "are"), "0 of 1 image are"),
    ],
)
def test_numbers_agree(text, right) -> None:
    assert text == right


def test_what_is_said_of_data_counts_by_the_one_helper() -> None:
    """In the rooms whose messages are of a user's own rows, of which there may be one."""
    noun = re.compile(r"(?<!to )\{[^{}]*\} (images|rows|classes|captions|groups|trials)\b(?! of \{)")
    found = {
        f"{path.relative_to(SOURCE)}:{number}"
        for room in ("data/checks", "data/sources", "resolve", "tune", "reports")
        for path in (SOURCE / room).rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if noun.search(line) and not re.search(r"[Ss]hapeError|expected|\{expected\}", line)
    }
    assert found == set()

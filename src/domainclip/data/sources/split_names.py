"""The names that splits go by, in columns, files and folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from domainclip.errors import DataError

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "validation", "valid", "validate", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation", "holdout"),
}
"""The names under which each split of a data set is looked for, as a file's stem or as a folder."""

_IN_COLUMNS = {"trn": "train", "tr": "train", "restval": "train", "tst": "test", "te": "test", "dev": "validation"}
"""Further words of columns; "restval" is what Karpathy's splits call further rows to train on."""


def split_of(word: str) -> str | None:
    """The split that a word names.

    Args:
        word: A cell of a column, or a key; case, blanks and a year after it do not matter ("Train", "val2017",
            "seg_train", "test_images").

    Returns:
        ``train``, ``validation`` or ``test``; None where it names none.
    """
    plain = re.sub(r"^(seg|cls|images?|imgs?|set)[-_ ]", "", word.strip().casefold())
    plain = re.sub(r"([-_ ]?((19|20)\d\d|set|split)|[-_ ](images?|imgs?|data))$", "", plain)
    found = next((split for split, names in SPLIT_NAMES.items() if plain in names), None)
    return found or _IN_COLUMNS.get(plain)


def only_one(folder: Path, found: Sequence[Path], split: str) -> Path:
    """The one file or folder that names a split.

    Args:
        folder: In which they lie.
        found: All that name it, at least one.
        split: Its name.

    Returns:
        That one.

    Raises:
        DataError: There are several.
    """
    if len(found) > 1:
        raise DataError(
            f"{folder} has {' and '.join(path.name for path in found)}, which both name the {split} split: remove or "
            "rename one"
        )
    return found[0]

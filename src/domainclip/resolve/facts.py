"""What resolving reads, as plain values, and what it returns: facts of model and data, and decisions with reasons."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from domainclip.resolve.resolution import ResolutionRule

_HEIGHTS = re.compile(r"\b(upper|lower|top|bottom)\b", re.IGNORECASE)
_LEFT_RIGHT = re.compile(r"\b(left|right)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Decision:
    """One value nobody set, and why it is what it is.

    Attributes:
        key: of the recipe.
        value: what it is.
        reason: why, in words that follow the value.
    """

    key: str
    value: Any
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """The decision as ``run.json`` holds it.

        Returns:
            Plain values by name.
        """
        return asdict(self)


@dataclass(frozen=True)
class ModelFacts:
    """What a model says of itself.

    Attributes:
        native_resolution: of the image tower, in pixels.
        text_length: longest text, in tokens.
        fixed_text_length: whether every text must have that length.
        image_tower_kind: ``transformer`` or ``convolutional``.
        text_tower_kind: the same of the text tower.
        temperature: the model's own.
        sigmoid: whether it was pretrained with the sigmoid objective, and has its bias.
        resolutions: that the image tower takes; None: the native one only.
        fresh_projections: whether they were just created, of random numbers.
    """

    native_resolution: int
    text_length: int
    fixed_text_length: bool
    image_tower_kind: str
    text_tower_kind: str
    temperature: float
    sigmoid: bool = False
    resolutions: ResolutionRule | None = None
    fresh_projections: bool = False


@dataclass(frozen=True)
class DataFacts:
    """What the training rows, and the machine that reads them, say of themselves.

    Attributes:
        train_rows: how many rows there are.
        repeated_caption_fraction: of rows whose caption another row has too, in [0, 1].
        labelled_fraction: of rows with a label, in [0, 1].
        classes: different labels.
        names_left_right: whether some caption says left or right.
        cores: that this process may use.
        names_heights: whether some caption says upper, lower, top or bottom.
        processes: that one batch is spread over.
        validation_rows: whose images are kept beside those of the training rows.
        test_rows: the same of the test split; 0 where the model is reported on the validation rows.
    """

    train_rows: int
    repeated_caption_fraction: float
    labelled_fraction: float
    classes: int
    names_left_right: bool
    cores: int
    names_heights: bool = False
    processes: int = 1
    validation_rows: int = 0
    test_rows: int = 0


class Row(Protocol):
    """What is asked of a training row."""

    @property
    def caption(self) -> str:
        """What is said of the image."""

    @property
    def label(self) -> str | None:
        """Its class, where there is one."""


def data_facts(pairs: Sequence[Row], processes: int = 1, validation_rows: int = 0, test_rows: int = 0) -> DataFacts:
    """The facts about the training rows.

    Args:
        pairs: the rows.
        processes: that train together on this machine.
        validation_rows: of the validation split.
        test_rows: of the test split.

    Returns:
        Counts and fractions of them.
    """
    captions = Counter(" ".join(pair.caption.split()) for pair in pairs)
    repeated = sum(count for count in captions.values() if count > 1)
    labels = [pair.label for pair in pairs if pair.label is not None]
    return DataFacts(
        train_rows=len(pairs),
        repeated_caption_fraction=repeated / max(1, len(pairs)),
        labelled_fraction=len(labels) / max(1, len(pairs)),
        classes=len(set(labels)),
        names_left_right=any(_LEFT_RIGHT.search(caption) for caption in captions),
        names_heights=any(_HEIGHTS.search(caption) for caption in captions),
        cores=max(1, (os.cpu_count() or 1) // processes),
        processes=processes,
        validation_rows=validation_rows,
        test_rows=test_rows,
    )

"""What a run tells those who use its model: the classes, and how sure of itself the model may be."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from domainclip.errors import ModelLoadError
from domainclip.files import read_limited, write_json

RECORD_FILE = "domainclip.json"
"""Beside a saved model's weights."""
_LARGEST = 2**26


@dataclass(frozen=True)
class ModelRecord:
    """What ``predict`` goes by where nothing else is asked for.

    Attributes:
        classes: Of the run's rows, in the order of their names; none where rows had no label, or several each.
        temperature: What cosines are divided by for probabilities that are true of rows the model has not seen; the
            model's own, where it is None.
    """

    classes: tuple[str, ...] = ()
    temperature: float | None = None

    def write(self, folder: Path) -> None:
        """Write the record beside a model's weights.

        Args:
            folder: The model's.

        Raises:
            OSError: It cannot be written.
        """
        write_json(folder / RECORD_FILE, {"version": 1, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> ModelRecord:
        """Read what a run has written.

        Args:
            folder: A model's.

        Returns:
            The record; an empty one where there is none, as in a model that somebody else has saved.

        Raises:
            ModelLoadError: The record is damaged.
        """
        path = folder / RECORD_FILE
        if not path.exists():
            return cls()
        try:
            values = json.loads(read_limited(path, _LARGEST))
            classes, temperature = values["classes"], values["temperature"]
            if not _are_texts(classes) or not (temperature is None or 0 < float(temperature) < math.inf):
                raise ValueError("a value is of a wrong kind")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelLoadError(
                f"{path} cannot be read ({error}): copy the model again, or delete this file and name the classes "
                "where they are asked for"
            ) from None
        return cls(tuple(classes), None if temperature is None else float(temperature))


def _are_texts(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(each, str) for each in value)

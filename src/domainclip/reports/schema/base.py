"""What all typed reports share: strict models, values that JSON knows, and the way into a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict
from torch import Tensor

SchemaVersion = Literal["1.0"]
"""Rises with every change after which a program that reads the file has to be changed."""

MetricValues = dict[str, int | float | None]
"""Figures by the names that ``metrics`` explains; None where a figure was not determined."""


class Content(BaseModel):
    """A part of a report. Unknown keys are errors, so that a file and its type cannot drift apart."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """The typed content of plain values, which may hold arrays, paths, NaN and dataclasses.

        Args:
            values: The content by key.

        Returns:
            The content, checked.

        Raises:
            pydantic.ValidationError: A key is unknown or missing, or a value is of another type.
        """
        return cls.model_validate(jsonable(values))

    def to_dict(self) -> dict[str, Any]:
        """What the JSON file holds: the keys that were given, by their names in the file.

        Returns:
            Plain values.
        """
        return {
            **({"schema_version": version} if (version := getattr(self, "schema_version", None)) else {}),
            **jsonable(self.model_dump(by_alias=True, exclude_unset=True)),
        }


def jsonable(value: Any) -> Any:
    """The same in what JSON knows.

    Args:
        value: Anything.

    Returns:
        NaN and infinities become None, arrays lists, dataclasses and mappings objects, paths and all others text.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return jsonable(value.tolist())
    if isinstance(value, Content):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return jsonable(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    return str(value)

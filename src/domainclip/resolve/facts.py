"""What resolving reads, as plain values, and what it returns: facts of model and data, and decisions with reasons."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from domainclip.resolve.resolution import ResolutionRule


@dataclass(frozen=True)
class Decision:
    """One value nobody set, and why it is what it is."""

    key: str
    value: Any
    reason: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ModelFacts:
    native_resolution: int  # pixels
    text_length: int  # tokens
    fixed_text_length: bool
    image_tower_kind: str  # "transformer" or "convolutional"
    text_tower_kind: str
    temperature: float
    sigmoid: bool = False  # pretrained with the sigmoid objective, and has its bias
    resolutions: ResolutionRule | None = None  # image resolutions the tower takes; None: the native one only
    fresh_projections: bool = False  # just created, of random numbers


@dataclass(frozen=True)
class DataFacts:
    train_rows: int
    repeated_caption_fraction: float  # rows whose caption another row has too, in [0, 1]
    labelled_fraction: float  # in [0, 1]
    classes: int
    names_left_right: bool  # some caption says left or right
    cores: int
    names_heights: bool = False  # some caption says upper, lower, top or bottom
    processes: int = 1  # that one batch is spread over
    class_imbalance: float = 1.0  # rows of the largest class for one of the smallest

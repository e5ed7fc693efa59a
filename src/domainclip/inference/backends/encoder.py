"""``Encoder``, one way of computing a model's embeddings, and ``Backend``, which makes one from a converted graph.

Arrays are NumPy's, so that a text is embedded without torch where a graph does the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from domainclip.registry import Registry

if TYPE_CHECKING:
    from torch import nn

Precision = Literal["fp32", "bf16", "int8"]

IMAGE_INPUT, TEXT_INPUTS = "pixels", ("input_ids", "attention_mask")
"""What the inputs of a graph are called. A tower that sees its padding has no mask."""


class Encoder(Protocol):
    """Computes embeddings of prepared images and texts.

    Attributes:
        name: Of the back end.
        precision: What most of its products are computed in.
    """

    @property
    def name(self) -> str: ...

    @property
    def precision(self) -> Precision: ...

    def encode_images(self, pixels: UInt8[np.ndarray, "n 3 size size"]) -> Float32[np.ndarray, "n dim"]:
        """Embed images, which are normalised here.

        Args:
            pixels: What the model is shown, as ``EmbeddingEngine.pixels`` makes it.

        Returns:
            One row an image, of any length.
        """
        ...

    def encode_tokens(
        self, input_ids: Int64[np.ndarray, "n length"], attention_mask: Int64[np.ndarray, "n length"]
    ) -> Float32[np.ndarray, "n dim"]:
        """Embed tokenized texts.

        Args:
            input_ids: Padded as the model's processor pads them.
            attention_mask: 1 for tokens, 0 for padding.

        Returns:
            One row a text, of any length.
        """
        ...


@dataclass(frozen=True)
class Towers:
    """A model as a graph is made from it, on the CPU.

    Attributes:
        image: From uint8 ``[n, 3, size, size]`` to embeddings; the normalisation is part of it.
        text: From int64 ids and mask ``[n, length]`` to embeddings; from the ids alone where ``masked`` is False.
        masked: Whether the text tower is told what is padding.
        transformer: Whether the image tower is a transformer.
        resolution: The size of an image, in pixels.
        images: Some that stand for those the model will see, uint8.
        texts: Likewise, each with its inputs ``[1, length]``; of several lengths.
    """

    image: nn.Module
    text: nn.Module
    masked: bool
    transformer: bool
    resolution: int
    images: UInt8[np.ndarray, "n 3 size size"]
    texts: Sequence[Sequence[Int64[np.ndarray, "1 length"]]]

    @property
    def text_inputs(self) -> tuple[str, ...]:
        """The names of the text tower's inputs."""
        return TEXT_INPUTS if self.masked else TEXT_INPUTS[:1]


class Backend(Protocol):
    """Converts a model into graphs once, and computes embeddings by them.

    Attributes:
        extra: The extra of this package that installs what it needs.
        graphs: The precisions it has, each with that of the graph it computes by: several may share one.
    """

    @property
    def extra(self) -> str: ...

    @property
    def graphs(self) -> Mapping[Precision, Precision]: ...

    def missing(self) -> str | None:
        """What it needs and is not installed.

        Returns:
            The name of a package; None where all is there.
        """
        ...

    def precisions(self) -> tuple[Precision, ...]:
        """What it computes in on this machine without being asked for a precision.

        Returns:
            The fastest first, ``fp32`` last.
        """
        ...

    def convert(self, towers: Towers, folder: Path, precision: Precision) -> None:
        """Write the graphs of a model.

        Args:
            towers: The model.
            folder: Empty.
            precision: Of the graph.

        Raises:
            Exception: Whatever the library says of a model that it cannot convert.
        """
        ...

    def load(self, folder: Path, precision: Precision) -> Encoder:
        """Read graphs that ``convert`` has written. A tower is loaded when it is first used.

        Args:
            folder: Where they lie.
            precision: To compute in.

        Returns:
            What computes by them.
        """
        ...


BACKENDS: Registry[Backend] = Registry("back end")
"""``BACKENDS.register("mine")(MyBackend())`` adds one; the recipe then names it: ``backend=mine``."""

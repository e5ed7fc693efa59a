"""ONNX Runtime as a back end: float32, wherever that library runs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from domainclip.errors import MissingExtraError
from domainclip.inference.backends.encoder import BACKENDS, IMAGE_INPUT, TEXT_INPUTS, Precision, Towers

EXTRA = "onnx"
OPSET = 18


class OnnxEncoder:
    """Computes by ONNX Runtime on the CPU.

    Args:
        folder: Where the graphs lie.
    """

    name = "onnx"
    precision: Precision = "fp32"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _loaded(self, tower: str) -> Any:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime", EXTRA, "The back end onnx") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        path = self._folder / f"{tower}.onnx"
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    @cached_property
    def _image(self) -> Any:
        return self._loaded("image")

    @cached_property
    def _text(self) -> Any:
        return self._loaded("text")

    def encode_images(self, pixels: UInt8[np.ndarray, "n 3 size size"]) -> Float32[np.ndarray, "n dim"]:
        """Embed images. See ``Encoder``.

        Args:
            pixels: Before normalisation.

        Returns:
            One row an image.
        """
        return self._image.run(None, {IMAGE_INPUT: pixels})[0]

    def encode_tokens(
        self, input_ids: Int64[np.ndarray, "n length"], attention_mask: Int64[np.ndarray, "n length"]
    ) -> Float32[np.ndarray, "n dim"]:
        """Embed tokenized texts. See ``Encoder``.

        Args:
            input_ids: Padded.
            attention_mask: 1 for tokens.

        Returns:
            One row a text.
        """
        values = dict(zip(TEXT_INPUTS, (input_ids, attention_mask), strict=True))
        return self._text.run(None, {each.name: values[each.name] for each in self._text.get_inputs()})[0]


class OnnxBackend:
    """See ``Backend``."""

    extra = EXTRA
    graphs: Mapping[Precision, Precision] = MappingProxyType({"fp32": "fp32"})

    def missing(self) -> str | None:
        """See ``Backend``.

        Returns:
            ``onnxruntime`` or None.
        """
        return None if find_spec("onnxruntime") else "onnxruntime"

    def precisions(self) -> tuple[Precision, ...]:
        """See ``Backend``.

        Returns:
            Float32 alone.
        """
        return ("fp32",)

    def convert(self, towers: Towers, folder: Path, precision: Precision) -> None:
        """See ``Backend``.

        Args:
            towers: The model.
            folder: Empty.
            precision: ``fp32``.

        Raises:
            MissingExtraError: ``onnx`` is not installed.
        """
        if not find_spec("onnx"):
            raise MissingExtraError("onnx", EXTRA, "Converting for the back end onnx")
        size = towers.resolution
        _export(towers.image, {IMAGE_INPUT: (2, 3, size, size)}, "uint8", {0: "batch"}, folder / "image.onnx")
        texts = dict.fromkeys(towers.text_inputs, (2, 4))
        _export(towers.text, texts, "int64", {0: "batch", 1: "length"}, folder / "text.onnx")

    def load(self, folder: Path, precision: Precision) -> OnnxEncoder:
        """See ``Backend``.

        Args:
            folder: Where the graphs lie.
            precision: ``fp32``.

        Returns:
            The encoder.
        """
        return OnnxEncoder(folder)


def _export(tower: Any, shapes: Mapping[str, tuple[int, ...]], dtype: str, axes: dict[int, str], path: Path) -> None:
    import torch

    example = tuple(torch.ones(shape, dtype=getattr(torch, dtype)) for shape in shapes.values())
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # shapes that are taken for constants: the golden batch tells
            # The exporter that traces: the newer one took twice as long, and its graphs up to twice as long to compute.
            torch.onnx.export(
                tower,
                example,
                str(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=list(shapes),
                output_names=["embeddings"],
                dynamic_axes=dict.fromkeys((*shapes, "embeddings"), axes) | {"embeddings": {0: "batch"}},
            )
    finally:
        logging.disable(level)


BACKENDS.register("onnx")(OnnxBackend())

"""OpenVINO as a back end: float32, bfloat16 where the processor multiplies it, and int8 where that is asked for.

One graph serves float32 and bfloat16, which is a choice of the moment. For int8 both towers are quantized by what their
layers see of drawn images and fixed texts. Text towers may have activations that eight bits do not hold: then only the
weights are quantized, and the activations as they come, which costs little direction and gains little time.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from domainclip.errors import MissingExtraError
from domainclip.inference.backends.encoder import BACKENDS, IMAGE_INPUT, TEXT_INPUTS, Precision, Towers
from domainclip.inference.backends.golden import least_cosine

EXTRA = "openvino"
_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}
_QUANTIZATION_GROUP = "64"
"""Activations of a text that share a scale, where they are quantized as they come."""
_SMOOTH = 0.6
"""How much of the activations' range is moved into the weights (Xiao et al. 2023, SmoothQuant): with nncf's own .95 the
text tower lost twice as much."""
_TEXT_COSINE = 0.99
"""Of a quantized text tower to float32, at the least; below it, only the weights are quantized."""


def load_openvino() -> ModuleType:
    """The library, kept from reporting home: its import alone would send Intel a message.

    Returns:
        The module ``openvino``.

    Raises:
        MissingExtraError: It is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # not to be had: its users have a stub
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", EXTRA, "The back end openvino") from error
    return openvino


class _Graph:
    """A compiled graph. Each thread has a request of its own and keeps it: a new one costs half a millisecond."""

    def __init__(self, path: Path, precision: Precision) -> None:
        core = load_openvino().Core()
        hint = _HINTS[precision] if has_bfloat16(core) else "f32"
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
        if precision == "int8":
            settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = _QUANTIZATION_GROUP
        self._compiled = core.compile_model(core.read_model(path), "CPU", settings)
        self._names = [each.any_name for each in self._compiled.inputs]
        self._own = threading.local()

    def __call__(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        found = self._own.request.infer({name: values[name] for name in self._names}, share_inputs=True)
        return np.array(found[0], np.float32)  # a copy: the request uses its memory again


class OpenVinoEncoder:
    """Computes by OpenVINO's graphs on the CPU.

    Args:
        folder: Where the graphs lie.
        precision: To compute in.
    """

    name = "openvino"

    def __init__(self, folder: Path, precision: Precision) -> None:
        self.precision: Precision = precision
        self._folder = folder

    @cached_property
    def _image(self) -> _Graph:
        return _Graph(self._folder / "image.xml", self.precision)

    @cached_property
    def _text(self) -> _Graph:
        return _Graph(self._folder / "text.xml", self.precision)

    def encode_images(self, pixels: UInt8[np.ndarray, "n 3 size size"]) -> Float32[np.ndarray, "n dim"]:
        """Embed images. See ``Encoder``.

        Args:
            pixels: Before normalisation.

        Returns:
            One row an image.
        """
        return self._image({IMAGE_INPUT: pixels})

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
        return self._text(dict(zip(TEXT_INPUTS, (input_ids, attention_mask), strict=True)))


def has_bfloat16(core: Any) -> bool:
    """Whether the processor multiplies bfloat16.

    Args:
        core: OpenVINO's.

    Returns:
        False where it would be emulated.
    """
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoBackend:
    """See ``Backend``."""

    extra = EXTRA
    graphs: Mapping[Precision, Precision] = MappingProxyType({"fp32": "fp32", "bf16": "fp32", "int8": "int8"})

    def missing(self) -> str | None:
        """See ``Backend``.

        Returns:
            ``openvino`` or None.
        """
        return None if find_spec("openvino") else "openvino"

    def precisions(self) -> tuple[Precision, ...]:
        """See ``Backend``.

        Returns:
            bfloat16 first, where the processor multiplies it.
        """
        return ("bf16", "fp32") if has_bfloat16(load_openvino().Core()) else ("fp32",)

    def convert(self, towers: Towers, folder: Path, precision: Precision) -> None:
        """See ``Backend``.

        Args:
            towers: The model.
            folder: Empty.
            precision: ``fp32`` or ``int8``.

        Raises:
            MissingExtraError: For int8, ``nncf`` is not installed.
        """
        openvino = load_openvino()
        size = towers.resolution
        image = _traced(towers.image, {IMAGE_INPUT: (2, 3, size, size)}, "uint8")
        image.reshape([-1, 3, size, size])
        text = _traced(towers.text, dict.fromkeys(towers.text_inputs, (2, 4)), "int64")
        if precision == "int8":
            image, text = _quantized(image, text, towers)
        for name, graph in (("image", image), ("text", text)):
            openvino.save_model(graph, folder / f"{name}.xml", compress_to_fp16=False)

    def load(self, folder: Path, precision: Precision) -> OpenVinoEncoder:
        """See ``Backend``.

        Args:
            folder: Where the graphs lie.
            precision: To compute in.

        Returns:
            The encoder.
        """
        return OpenVinoEncoder(folder, precision)


def _traced(tower: Any, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Any:
    """A graph of a tower, for any size of each axis. By the frontend itself: ``convert_model`` adds nothing here."""
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example = tuple(torch.ones(shape, dtype=getattr(torch, dtype)) for shape in shapes.values())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, of shapes that it takes for constants: the golden batch tells
        traced = torch.jit.trace(tower, example, check_trace=False)
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced, example_input=example)  # nobody else holds it while it is read
        graph = frontend.convert(frontend.load(decoder))
    for each, (name, shape) in zip(graph.inputs, shapes.items(), strict=True):
        each.get_tensor().set_names({name})
        each.get_node().set_partial_shape(load_openvino().PartialShape([-1] * len(shape)))
    graph.validate_nodes_and_infer_types()
    return graph


def _quantized(image: Any, text: Any, towers: Towers) -> tuple[Any, Any]:
    try:
        import nncf
    except ImportError as error:
        raise MissingExtraError("nncf", EXTRA, "Converting to openvino:int8") from error
    logging.getLogger("nncf").setLevel(logging.ERROR)  # its own function reaches other handlers as well

    def quantized(graph: Any, samples: Sequence[Any], transformer: bool) -> Any:
        return nncf.quantize(
            graph.clone(),
            nncf.Dataset(samples),
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            subset_size=len(samples),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=_SMOOTH)
            ),
        )

    with redirect_stdout(io.StringIO()):  # bars of each of its steps
        whole = quantized(text, [list(sample) for sample in towers.texts], True)
        if _text_cosine(text, whole, towers) < _TEXT_COSINE:
            whole = nncf.compress_weights(text, mode=nncf.CompressWeightsMode.INT8_SYM)
        return quantized(image, [row[None] for row in towers.images], towers.transformer), whole


def _text_cosine(text: Any, quantized: Any, towers: Towers) -> float:
    core = load_openvino().Core()
    both = [core.compile_model(each, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}) for each in (text, quantized)]
    one, other = (np.concatenate([each(list(sample))[0] for sample in towers.texts]) for each in both)
    return least_cosine(one, other)


BACKENDS.register("openvino")(OpenVinoBackend())

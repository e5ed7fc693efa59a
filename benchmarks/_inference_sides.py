"""The sides of ``inference.py``: one worker process for each library, which times what it is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _worker import Handler

if TYPE_CHECKING:  # torch is imported in the worker alone: see _record.py
    import numpy as np

    from domainclip.models import DualEncoder

Side = Callable[[Any], "np.ndarray"]
REFERENCE = "transformers, SDPA, medium float32"
GEMM_SIZE = 1536


def vit_b_32(tokenizer: Path, seed: int = 0) -> DualEncoder:
    """A CLIP of ViT-B/32's shape with random weights and CLIP's own tokenizer, whose texts int8 is calibrated by."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    from _clip_tokenizer import clip_tokenizer
    from domainclip.models import DualEncoder, EncoderProcessor

    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig())
    processor = EncoderProcessor(clip_tokenizer(tokenizer), CLIPImageProcessorPil(), "causal", 77)
    return DualEncoder(model.eval(), processor, name="ViT-B/32, random weights")


def given(case: dict[str, Any], resolution: int, words: int) -> dict[str, np.ndarray]:
    """The inputs of a case, the same in every process."""
    import numpy as np

    from domainclip.inference.backends.golden import drawn_images

    rows, tokens = case["rows"], case["tokens"]
    if case["tower"] == "image":
        return {"pixels": drawn_images(rows, resolution, seed=7)}
    ids = np.random.default_rng(7).integers(3, words - 1, (rows, tokens))
    ids[:, 0], ids[:, -1] = words - 1, words  # CLIP's start, and its end, where the embedding is read
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def prepare(spec: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Handler]]:
    """A worker of one library: ``torch``, ``openvino`` or ``onnx``."""
    import numpy as np
    import torch

    from domainclip.data.images.image_spec import ImageSpec
    from domainclip.models import make_tiny_clip

    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    encoder = make_tiny_clip() if spec["quick"] else vit_b_32(Path(spec["tokenizer"]))
    image_spec = ImageSpec.from_processor(encoder.processor.image_processor)
    words = encoder.model.config.text_config.vocab_size - 1
    makers = {"torch": torch_sides, "openvino": openvino_sides, "onnx": onnx_sides}
    sides = makers[spec["library"]](encoder, image_spec, Path(spec["folder"]))
    inputs: dict[str, dict[str, np.ndarray]] = {}

    def once(side: str, case: dict[str, Any]) -> tuple[float, np.ndarray]:
        name = str(sorted(case.items()))
        if name not in inputs:
            inputs[name] = given(case, image_spec.resolution, words)
        values = {key: value.copy() for key, value in inputs[name].items()}
        clock = time.perf_counter()
        rows = sides[side](values)
        return time.perf_counter() - clock, rows

    def measure(side: str, case: dict[str, Any], repeats: int) -> dict[str, Any]:
        once(side, case)  # the side before has filled the processor's caches with other weights
        return {"seconds": [once(side, case)[0] for _ in range(repeats)]}

    def embed(side: str, case: dict[str, Any]) -> dict[str, Any]:
        return {"rows": np.asarray(once(side, case)[1], np.float64).tolist()}

    handlers: dict[str, Handler] = {"measure": measure, "embed": embed}
    if spec["library"] == "openvino":
        handlers["gemm"] = openvino_gemm
    if spec["library"] == "torch":
        handlers |= {
            "gemm": gemm,
            "flop": lambda case: flop(encoder, image_spec, given(case, image_spec.resolution, words)),
        }
    return {"sides": list(sides), "threads": torch.get_num_threads()}, handlers


def torch_sides(encoder: DualEncoder, spec: Any, folder: Path) -> dict[str, Side]:
    """``transformers`` in three ways, open_clip where it is installed, and this package's two."""
    import copy

    import torch

    from domainclip.inference.backends.torch_encoder import fixed_shapes

    half = copy.deepcopy(encoder.model).to(torch.bfloat16)

    def plain(model: Any, attention: str, precision: str) -> Side:
        def run(values: dict[str, Any]) -> Any:
            model.set_attn_implementation(attention)
            torch.set_float32_matmul_precision(precision)
            with torch.inference_mode():
                if "pixels" in values:
                    pixels = spec.normalise(torch.from_numpy(values["pixels"])).to(model.dtype)
                    return model.get_image_features(pixel_values=pixels).pooler_output.float().numpy()
                texts = {name: torch.from_numpy(value) for name, value in values.items()}
                return model.get_text_features(**texts).pooler_output.float().numpy()

        return run

    def ours(shapes: Any) -> Side:
        def run(values: dict[str, Any]) -> Any:
            torch.set_float32_matmul_precision("highest")
            encoder.model.set_attn_implementation("sdpa")
            return by_shapes(shapes)(values)

        return run

    sides = {
        "transformers, eager, float32": plain(encoder.model, "eager", "highest"),
        "transformers, SDPA, float32": plain(encoder.model, "sdpa", "highest"),
        REFERENCE: plain(encoder.model, "sdpa", "medium"),
        "transformers, SDPA, bf16": plain(half, "sdpa", "highest"),
        "ours, torch fp32": ours(fixed_shapes(encoder, spec, torch.device("cpu"))),
        "ours, torch bf16": ours(fixed_shapes(encoder, spec, torch.device("cpu"), "bf16")),
    }
    with suppress(ImportError):
        if encoder.model.config.vision_config.hidden_size == 768:
            sides["open_clip, medium float32"] = open_clip_side(spec)
    return sides


def open_clip_side(spec: Any) -> Side:
    import open_clip
    import torch

    model = open_clip.create_model("ViT-B-32").eval()

    def run(values: dict[str, Any]) -> Any:
        torch.set_float32_matmul_precision("medium")
        with torch.inference_mode():
            if "pixels" in values:
                return model.encode_image(spec.normalise(torch.from_numpy(values["pixels"]))).numpy()
            ids = torch.from_numpy(values["input_ids"])  # it takes its full length alone
            ids = torch.nn.functional.pad(ids, (0, model.context_length - ids.shape[1]))
            return model.encode_text(ids).numpy()

    return run


def openvino_sides(encoder: DualEncoder, spec: Any, folder: Path) -> dict[str, Side]:
    """``convert_model`` as its manual shows it, compiled for each shape by default, and this package's graphs."""
    import numpy as np
    import torch

    from domainclip.inference.backends.openvino_graphs import load_openvino

    openvino = load_openvino()
    core, towers, compiled = openvino.Core(), plain_towers(encoder, spec), {}

    def direct(values: dict[str, Any]) -> Any:
        tower = "image" if "pixels" in values else "text"
        key = (tower, *(value.shape for value in values.values()))
        if key not in compiled:
            example = tuple(torch.from_numpy(value) for value in model_inputs(values, spec).values())
            graph = openvino.convert_model(towers[tower], example_input=example)
            graph.reshape({port: list(value.shape) for port, value in zip(graph.inputs, example, strict=True)})
            compiled[key] = core.compile_model(graph, "CPU")
        return np.array(compiled[key](list(model_inputs(values, spec).values()))[0])

    sides = {"OpenVINO, convert_model": direct}
    return sides | our_graphs("openvino", ("fp32", "bf16", "int8"), encoder, spec, folder)


def onnx_sides(encoder: DualEncoder, spec: Any, folder: Path) -> dict[str, Side]:
    """``torch.onnx.export`` with ONNX Runtime's defaults, and this package's graph."""
    import onnxruntime
    import torch

    towers, sessions = plain_towers(encoder, spec), {}

    def direct(values: dict[str, Any]) -> Any:
        tower = "image" if "pixels" in values else "text"
        inputs = model_inputs(values, spec)
        key = (tower, *(value.shape for value in values.values()))
        if key not in sessions:
            path = folder / f"direct-{len(sessions)}.onnx"
            example = tuple(torch.from_numpy(value) for value in inputs.values())
            torch.onnx.export(towers[tower], example, str(path), dynamo=False, input_names=list(inputs))
            sessions[key] = onnxruntime.InferenceSession(path)
        return sessions[key].run(None, inputs)[0]

    return {"ONNX Runtime, exported": direct} | our_graphs("onnx", ("fp32",), encoder, spec, folder)


def plain_towers(encoder: DualEncoder, spec: Any) -> dict[str, Any]:
    """What somebody exports who takes the model's own functions."""
    import torch

    class Image(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = encoder.model

        def forward(self, pixel_values: Any) -> Any:
            return self.model.get_image_features(pixel_values=pixel_values).pooler_output

    class Text(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = encoder.model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output

    return {"image": Image().eval(), "text": Text().eval()}


def model_inputs(values: dict[str, Any], spec: Any) -> dict[str, Any]:
    """What the model's own functions take, normalised outside the graph."""
    import torch

    if "pixels" not in values:
        return values
    return {"pixel_values": spec.normalise(torch.from_numpy(values["pixels"])).numpy()}


def our_graphs(
    name: str, precisions: tuple[str, ...], encoder: DualEncoder, spec: Any, folder: Path
) -> dict[str, Side]:
    from domainclip.inference.backends.encoder import BACKENDS
    from domainclip.inference.backends.names import in_order
    from domainclip.inference.backends.shapes import FixedShapes, text_lengths
    from domainclip.inference.backends.torch_encoder import towers_of

    assert name in in_order()
    backend, sides = BACKENDS[name], {}
    for precision in precisions:
        place = folder / f"{name}-{backend.graphs[precision]}"
        if not place.is_dir():
            place.mkdir()
            backend.convert(towers_of(encoder, spec), place, backend.graphs[precision])
        shapes = FixedShapes(backend.load(place, precision), text_lengths(77), encoder.processor.pad_token_id)
        sides[f"ours, {name} {precision}"] = by_shapes(shapes)
    return sides


def by_shapes(shapes: Any) -> Side:
    def run(values: dict[str, Any]) -> Any:
        if "pixels" in values:
            return shapes.encode_images(values["pixels"])
        return shapes.encode_tokens(values["input_ids"].tolist())

    return run


# --- the floor ---


def gemm(precision: str, seconds: float) -> dict[str, Any]:
    """The rate of one large product of matrices, in operations a second: the best of some."""
    import torch

    size = GEMM_SIZE
    torch.set_float32_matmul_precision("highest")
    if precision == "int8":
        one, other = (torch.randint(-127, 127, (size, size), dtype=torch.int8) for _ in range(2))

        def multiply() -> torch.Tensor:
            return torch._int_mm(one, other)
    else:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        one, other = (torch.randn(size, size).to(dtype) for _ in range(2))

        def multiply() -> torch.Tensor:
            return one @ other

    return {"operations_per_s": rate_of(multiply, seconds)}


def openvino_gemm(precision: str, seconds: float) -> dict[str, Any]:
    """The same by OpenVINO, whose float32 kernels are others; not of int8, for which it has no plain product."""
    import numpy as np
    from openvino import opset13

    from domainclip.inference.backends.openvino_graphs import load_openvino

    if precision == "int8":
        return {"operations_per_s": 0.0}
    if precision not in _PRODUCTS:
        openvino = load_openvino()
        one, other = np.random.default_rng(0).standard_normal((2, GEMM_SIZE, GEMM_SIZE)).astype(np.float32)
        given = opset13.parameter(one.shape, np.float32)
        graph = openvino.Model([opset13.matmul(given, opset13.constant(other), False, False)], [given])
        hint = {"INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision]}
        request = openvino.Core().compile_model(graph, "CPU", hint).create_infer_request()
        _PRODUCTS[precision] = lambda: request.infer([one], share_inputs=True, share_outputs=True)
    return {"operations_per_s": rate_of(_PRODUCTS[precision], seconds)}


_PRODUCTS: dict[str, Callable[[], object]] = {}


def rate_of(multiply: Callable[[], object], seconds: float) -> float:
    multiply()
    taken: list[float] = []
    while sum(taken) < seconds or len(taken) < 3:
        clock = time.perf_counter()
        multiply()
        taken.append(time.perf_counter() - clock)
    return 2 * GEMM_SIZE**3 / min(taken)


def flop(encoder: DualEncoder, spec: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Operations of one case, counted by torch at its products and convolutions."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    encoder.model.set_attn_implementation("eager")  # whose products are counted one by one
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if "pixels" in values:
            encoder.encode_image(spec.normalise(torch.from_numpy(values["pixels"])))
        else:
            encoder.encode_text(*(torch.from_numpy(value) for value in values.values()))
    return {"operations": counter.get_total_flops()}

"""A training step on an accelerator that is not there: a private-use backend in Python, and tensors without numbers.

``watched`` runs code on ``fake:0`` under ``FakeTensorMode`` and notes what Apple's GPU would punish:

- ``float64``: a tensor of a type that MPS has not, made on the device;
- ``syncs``: places where the host waits for the device to tell it a number (``item``, ``float(tensor)``,
  ``bool(tensor)``, ``nonzero``, masks as indices, a copy to the CPU);
- ``uploads``: copies from the CPU to the device, which MPS waits for as well, with all work queued before (its copy
  ends in COMMIT_AND_WAIT unless it is non_blocking, and that is unsafe for memory that may be freed);
- ``failures``: mixed devices and everything else that raises.

Registering a backend holds for the whole process, so tests run this file in one of its own:

    python tests/fake_accelerator.py SCENARIO …

prints a JSON object: for each scenario (see ``SCENARIOS``) the findings.

What this cannot show: numbers, so neither NaN nor how fast anything is; branches on ``device.type == "mps"``
(random state, the memory readings); autocast, whose casts a private-use backend does not have; and what waits inside
an MPS kernel.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from mps_ops import op_name, origin

NAME = "fake"

WAITING = {
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "repeat_interleave.Tensor",
}
"""Operations whose result the host must know before it can go on."""

FROM_TORCH = "torch/amp/grad_scaler.py"
"""Computes 1/scale in float64, except where the scale is on ``mps:0``."""


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def current_device(self) -> int:
        return 0


_without_casts: list[Any] = []  # a library lives as long as its object


@functools.cache
def device() -> torch.device:
    """The accelerator, made known to this process."""
    from transformers.utils import import_utils

    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    autocast = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    autocast.fallback(torch.library.fallthrough_kernel)
    _without_casts.append(autocast)
    # Of a tensor without numbers ``transformers`` does not ask what it asks of real ones ("is anything masked?"),
    # and what it asks is the point.
    import_utils.is_fake_tensor = lambda tensor: False
    return torch.device(NAME, 0)


@dataclass
class Findings:
    float64: list[str] = field(default_factory=list)
    syncs: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    ops: list[str] = field(default_factory=list)


class _Watch(TorchDispatchMode):
    def __init__(self, findings: Findings) -> None:
        super().__init__()
        self.findings = findings

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = op_name(func)
        inputs = _tensors((args, kwargs))
        here = [tensor for tensor in inputs if _is_here(tensor)]
        masked = name.startswith("index") and any(t.dtype in (torch.bool, torch.uint8) for t in _tensors(args[1]))
        if here and (name in WAITING or masked):
            self._note(self.findings.syncs, name)
        if name == "_local_scalar_dense":
            (tensor,) = inputs
            known = getattr(tensor, "constant", None)
            if known is not None or not isinstance(tensor, FakeTensor):
                return func(known if known is not None else tensor)
            # There is no number. One does for all: what the code does with it is not looked at.
            return True if tensor.dtype == torch.bool else 1.0 if tensor.dtype.is_floating_point else 1
        output = func(*args, **kwargs)
        if func.namespace in ("profiler", "prim"):  # labels, and questions about a tensor
            return output
        made = [tensor for tensor in _tensors(output) if _is_here(tensor)]
        if (here or made) and name not in self.findings.ops:
            self.findings.ops.append(name)
        if any(tensor.dtype in (torch.float64, torch.complex128) for tensor in made):
            self._note(self.findings.float64, name)
        if name in ("_to_copy", "copy_"):
            source = inputs[1] if name == "copy_" else inputs[0]
            if _is_here(source) and not made:
                self._note(self.findings.syncs, f"{name} to the CPU")
            elif made and not _is_here(source):
                self._note(self.findings.uploads, name)
        return output

    def _note(self, where: list[str], name: str) -> None:
        node, stack = origin(depth=3, skip=2)
        entry = " < ".join([name, *([node] if node else []), *reversed(stack)])
        if where is self.findings.float64 and any(FROM_TORCH in f.filename for f in traceback.extract_stack()):
            entry = f"{FROM_TORCH}: {entry}"
        if entry not in where:
            where.append(entry)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _is_here(tensor: Tensor) -> bool:
    return tensor.device.type == NAME


class _Fake(FakeTensorMode):
    """``torch.tensor(…, device=…)`` makes its copy through the modes, not in a kernel that does not exist."""

    @property
    def avoid_device_init(self) -> bool:
        return True


@functools.cache
def fake_mode() -> FakeTensorMode:
    device()
    return _Fake(allow_non_fake_inputs=True)


def watched(run: Callable[[], object]) -> Findings:
    """What ``run`` does on the accelerator. Attention is by its plain formula, that of MPS."""
    findings = Findings()
    with fake_mode(), sdpa_kernel(SDPBackend.MATH), _Watch(findings):
        try:
            run()
        except Exception as error:  # told to the test, which fails with it
            frames = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
            findings.failures.append(f"{type(error).__name__}: {error} < {' < '.join(reversed(frames))}")
    return findings


def onto_device(module: nn.Module) -> nn.Module:
    """Every parameter and buffer as a tensor without numbers on the accelerator."""
    made: dict[int, Tensor] = {}
    with fake_mode():
        for part in module.modules():
            for owned in (part._parameters, part._buffers):
                for name, old in owned.items():
                    if old is None or isinstance(old, FakeTensor):
                        continue
                    if id(old) not in made:
                        new = torch.empty(old.shape, dtype=old.dtype, device=device())
                        if isinstance(old, nn.Parameter):
                            new = nn.Parameter(new, requires_grad=old.requires_grad)
                            new.__dict__.update(old.__dict__)  # rate_factor
                        made[id(old)] = new
                    owned[name] = made[id(old)]  # type: ignore[assignment]
    return module


# --- scenarios, run in a process of their own ---


def pairs_in(folder: Path) -> list[Any]:
    """Eight images with captions, two of them equal."""
    from PIL import Image

    from domainclip.data.records import ImageTextPair

    pairs = []
    for index in range(8):
        path = folder / f"{index}.png"
        Image.new("RGB", (40 + index, 36), (30 * index, 90, 200)).save(path)
        pairs.append(ImageTextPair(path, f"a texture of brick, sample {index // 2 * 2}", "brick"))
    return pairs


def trainer_on_device(
    folder: Path, *, encoder: Any = None, precision: str = "fp32", attention: str = "eager", **values: Any
) -> Any:
    """A ``Trainer`` whose model and objective are on the accelerator, with batches of four."""
    from batch_cases import training_loader
    from domainclip.config import CLIPFinetuningConfig
    from domainclip.data.dataset import CLIPDataset
    from domainclip.data.images.image_spec import ImageSpec
    from domainclip.data.images.transforms import ImageTransform
    from domainclip.devices.precision import AUTOCAST_DTYPES, PrecisionDecision
    from domainclip.domains.files import load_domain
    from domainclip.losses import build_loss
    from domainclip.models import make_tiny_clip
    from domainclip.models.lora import attach_lora
    from domainclip.resolve import ResolvedRun
    from domainclip.training import TrainContext, build_trainer
    from training_setup import DEFAULTS

    config = CLIPFinetuningConfig(**{**DEFAULTS, "batch_size": 4, "logging_steps": 100, **values})
    encoder = encoder or make_tiny_clip(layers=1, attention_dropout=0.1)
    encoder.model.set_attn_implementation(attention)
    if config.temperature_scheduling:
        encoder.set_temperature(config.temperature, trainable=False)
    if config.lora_r is not None:
        attach_lora(encoder, config, config.seed)
    spec = ImageSpec.from_processor(encoder.processor.image_processor)
    dataset = CLIPDataset(pairs_in(folder), encoder.processor, config, ImageTransform(config, augment=True, spec=spec))
    loader = training_loader(dataset, config, 4, pad_to_multiple=16)
    loss = onto_device(build_loss(config, encoder.embedding_dim))
    run = ResolvedRun(config.frozen(), load_domain(config.domain))
    scaled = PrecisionDecision(precision, "", AUTOCAST_DTYPES[precision], precision == "fp16")  # type: ignore[arg-type]
    onto_device(encoder.train())
    with as_on_mps():
        return build_trainer(TrainContext(folder), encoder, loss, loader, run, device(), scaled)


@contextmanager
def as_on_mps() -> Iterator[None]:
    """The fused AdamW, which the package asks for on MPS by the device's name."""
    plain = torch.optim.AdamW
    torch.optim.AdamW = lambda *args, **options: plain(*args, **{**options, "fused": True})  # type: ignore
    try:
        yield
    finally:
        torch.optim.AdamW = plain  # type: ignore[misc]


def steps(folder: Path, **values: Any) -> dict[str, Findings]:
    """The trainer's own step, twice: the first sets up what later ones find."""
    trainer = trainer_on_device(folder, **values)
    host_batch = next(iter(trainer.loader.loader))
    batch: dict[str, Any] = {}
    found = {"transfer": watched(lambda: batch.update(trainer.loader._on_device(host_batch)))}
    for name in ("first", "later"):
        found[name] = watched(lambda: trainer.step.update(batch, trainer.state.step))
        trainer.state.step += 1
    return found


def zoo(kind: str) -> Callable[[Path], Any]:
    def load(folder: Path) -> Any:
        from domainclip.config import ModelSettings
        from domainclip.models import load_encoder
        from model_zoo import save_siglip, save_vision_text

        made = save_siglip(folder / kind) if kind == "siglip" else save_vision_text(folder / kind, folder, "mobilenet")
        return load_encoder(ModelSettings(model_name=str(made)))

    return load


def inference(folder: Path) -> dict[str, Findings]:
    from domainclip.inference import EmbeddingEngine
    from domainclip.models import make_tiny_clip

    encoder = onto_device(make_tiny_clip(layers=1))
    engine = EmbeddingEngine(encoder, device(), batch_size=4)
    paths = [pair.image_path for pair in pairs_in(folder)]
    return {
        "images": watched(lambda: engine.encode_images(paths)),
        "texts": watched(lambda: engine.encode_texts(["a photo of brick", "grass"])),
    }


def planted(folder: Path) -> dict[str, Findings]:
    """Faults that the checks have to find."""
    with fake_mode():
        here = torch.ones(4, device=device())
        there = torch.ones(4)

    def looks(tensor: Tensor) -> bool:
        return bool(tensor.sum() > 1)

    return {
        "item": watched(lambda: float(here.mean())),
        "bool": watched(lambda: looks(here)),
        "nonzero": watched(lambda: here.nonzero()),
        "mask": watched(lambda: here[here > 0]),
        "to_cpu": watched(lambda: here.cpu()),
        "upload": watched(lambda: here + torch.tensor([1.0, 2.0, 3.0, 4.0], device=device())),
        "float64": watched(lambda: here.double()),
        "float64_made": watched(lambda: torch.zeros(2, dtype=torch.float64, device=device())),
        "mixed": watched(lambda: here + there),
        "host_alone": watched(lambda: float(there.double().sum())),
        "clean": watched(lambda: (here * 2.0 + 1).softmax(0).sum()),
    }


def planted_in_the_step(folder: Path) -> dict[str, Findings]:
    """An objective that looks at its numbers and counts in float64, through the whole of the trainer's step."""
    from domainclip.losses import MultiPositiveContrastiveLoss as Loss

    plain = Loss.row_loss

    def row_loss(self: Any, rows: Any) -> Any:
        assert bool(rows.scores.isfinite().all())
        rows.scores.double().sum()
        return plain(self, rows)

    Loss.row_loss = row_loss  # type: ignore[method-assign]
    try:
        return steps(folder, loss_type="multi_positive")
    finally:
        Loss.row_loss = plain  # type: ignore[method-assign]


SCENARIOS: dict[str, Callable[[Path], dict[str, Findings]]] = {
    "planted": planted,
    "planted in the step": planted_in_the_step,
    "inference": inference,
    "contrastive": lambda folder: steps(folder, loss_type="contrastive", label_smoothing=0.1),
    "sdpa": lambda folder: steps(folder, attention="sdpa"),
    "sliced": lambda folder: steps(folder, attention="sliced"),
    "chunked": lambda folder: steps(folder, loss_chunk_size=2),
    "sigmoid": lambda folder: steps(folder, loss_type="sigmoid"),
    "hard_negative": lambda folder: steps(folder, loss_type="hard_negative", hard_negative_mining_strategy="weighted"),
    "domain_specific": lambda folder: steps(folder, loss_type="domain_specific", domain="industrial"),
    "multi_scale": lambda folder: steps(folder, loss_type="multi_scale"),
    "multi_resolution": lambda folder: steps(folder, loss_type="multi_resolution"),
    "gradient_norm": lambda folder: steps(
        folder,
        loss_type="combined",
        objectives={"contrastive": 1.0, "multi_scale": 0.5},
        loss_balancing="gradient_norm",
    ),
    "bilinear": lambda folder: steps(folder, similarity_metric="bilinear"),
    "constant": lambda folder: steps(folder, temperature_scheduling=True, temperature_schedule_type="constant"),
    "cosine": lambda folder: steps(folder, temperature_scheduling=True, temperature_schedule_type="cosine"),
    "adaptive": lambda folder: steps(folder, temperature_scheduling=True, temperature_schedule_type="adaptive"),
    "gradcache": lambda folder: steps(folder, mini_batch_size=2),
    "fp16": lambda folder: steps(folder, precision="fp16"),
    "adafactor": lambda folder: steps(folder, optimizer="adafactor"),
    "lora": lambda folder: steps(folder, lora_r=2, lora_dropout=0.1),
    "siglip": lambda folder: steps(folder, encoder=zoo("siglip")(folder), loss_type="sigmoid"),
    "mobilenet_bert": lambda folder: steps(folder, encoder=zoo("vision_text")(folder)),
}


def main(names: list[str]) -> None:
    results = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found = SCENARIOS[name](Path(folder))
        results[name] = {part: asdict(findings) for part, findings in found.items()}
    print("\n" + json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])

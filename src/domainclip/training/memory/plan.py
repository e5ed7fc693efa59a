"""The memory that training a model would take, at any resolution and batch, from its shape alone."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    PretrainedConfig,
    SiglipConfig,
    SiglipImageProcessorPil,
)

from domainclip.config import DataSettings, MemorySettings, OptimizerSettings
from domainclip.devices.memory import MemoryManager
from domainclip.devices.precision import AUTOCAST_DTYPES, PrecisionDecision
from domainclip.errors import ConfigurationError, MemoryConstraintError
from domainclip.models import DualEncoder, EncoderProcessor
from domainclip.models.attention import AttentionDecision, decide_attention
from domainclip.models.checkpoint_blocks import checkpoint_blocks
from domainclip.models.library import quiet_transformers
from domainclip.models.loading import check_usable, load_config, load_processor
from domainclip.models.lora import attach_lora
from domainclip.models.processor import TextPadding
from domainclip.models.source.name import TINY, short_name
from domainclip.models.tiny import make_tiny_clip
from domainclip.training.memory.model import MemoryBudget, StepMemory, largest_micro_batch, trace_towers
from domainclip.training.memory.trace import TowerMemory

log = logging.getLogger(__name__)


def _clip(width: int, layers: int, heads: int, patch: int, resolution: int, text_width: int) -> CLIPConfig:
    """As published with Radford et al. 2021, table 20: the text tower has 12 layers and text_width / 64 heads."""
    text = {
        "hidden_size": text_width,
        "intermediate_size": 4 * text_width,
        "num_hidden_layers": 12,
        "num_attention_heads": text_width // 64,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "patch_size": patch,
        "image_size": resolution,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=text_width)


ARCHITECTURES: dict[str, Callable[[], PretrainedConfig]] = {
    "vit-b-32": lambda: _clip(768, 12, 12, 32, 224, 512),
    "vit-b-16": lambda: _clip(768, 12, 12, 16, 224, 512),
    "vit-l-14": lambda: _clip(1024, 24, 16, 14, 224, 768),
    "vit-l-14-336": lambda: _clip(1024, 24, 16, 14, 336, 768),
    "siglip-b-16": SiglipConfig,
}
"""Shapes that can be planned without a file of the model, by the short names of models."""


MICRO_BATCH = 32
"""Pairs in a tower at once that the choice of attention is told where the recipe does not say."""


@dataclass(frozen=True)
class ModelShape:
    """What ``DualEncoder`` is made of, weights aside."""

    name: str
    config: PretrainedConfig
    processor: EncoderProcessor

    @classmethod
    def named(cls, name: str) -> ModelShape:
        """Of an architecture (``ARCHITECTURES``), ``tiny``, a directory or a hub name; weights are not read.

        Args:
            name: An architecture's, ``tiny``, a local directory, or one of the hub.

        Returns:
            Its config and its processor.

        Raises:
            ModelLoadError: For a name that is none of them, or no dual encoder.
        """
        if (short := short_name(name)) is not None and not Path(name).exists():
            config = ARCHITECTURES[short]()
            resolution = config.vision_config.image_size
            kind = SiglipImageProcessorPil if config.model_type == "siglip" else CLIPImageProcessorPil
            size = {"height": resolution, "width": resolution}
            images = kind(size=size, crop_size=size)
            padding: TextPadding = "fixed" if config.model_type == "siglip" else "causal"
            length = config.text_config.max_position_embeddings
            return cls(short, config, EncoderProcessor(None, images, padding, length))
        if name == TINY:
            encoder = make_tiny_clip()
            return cls(name, encoder.model.config, encoder.processor)
        return cls(name, load_config(name), load_processor(name))

    def build(self) -> DualEncoder:
        """An encoder of that shape on the ``meta`` device: no numbers, no memory.

        Returns:
            Trainable, in ``eval()`` mode.
        """
        with quiet_transformers(), torch.device("meta"):
            model = AutoModel.from_config(copy.deepcopy(self.config), dtype=torch.float32)
        check_usable(model, self.name)
        processor = self.processor
        own = EncoderProcessor(
            processor.tokenizer, copy.deepcopy(processor.image_processor), processor.text_padding, processor.max_length
        )
        return DualEncoder(model, own, name=self.name)


def _make_fake(model: nn.Module) -> None:
    """Give a model on ``meta`` tensors of the present ``FakeTensorMode``, which claim to be on the CPU: on ``meta``
    itself other kernels are chosen, for attention above all. (Adapters cannot be attached to fake tensors, hence not
    from the start.)"""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    empty = torch.empty_like(parameter, device="cpu")
                    made[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")


def _encoder_for(
    shape: ModelShape,
    data: DataSettings,
    optim: OptimizerSettings,
    memory: MemorySettings,
    device_type: str,
    memory_bytes: int,
) -> DualEncoder:
    encoder = shape.build()
    encoder.optimize_layout(torch.device(device_type))
    if optim.lock_image:
        encoder.lock("image")
    if optim.lock_text:
        encoder.lock("text")
    if optim.lora_r is not None:
        attach_lora(encoder, optim, data.seed)
    unsupported = checkpoint_blocks(encoder.model, bool(memory.gradient_checkpointing))
    if memory.gradient_checkpointing and len(unsupported) == 2:
        raise ConfigurationError(f"gradient_checkpointing: neither tower of {shape.name} supports it")
    decisions = decide_attention(
        encoder,
        memory,
        batch=memory.mini_batch_size or MICRO_BATCH,
        device_type=device_type,
        training=True,
        precision=memory.precision or "fp32",
        memory_bytes=memory_bytes,
        resolution=data.image_resolution,
        text_length=data.max_sequence_length,
    )
    if device_type == "mps":  # without a fused backward kernel: what the plain operations keep is kept
        decisions = {
            tower: AttentionDecision("eager", None, made.reason) if made.name == "sdpa" else made
            for tower, made in decisions.items()
        }
    encoder.set_attention(**decisions)
    return encoder.train()


def plan_step(
    shape: ModelShape,
    data: DataSettings,
    optim: OptimizerSettings,
    memory: MemorySettings,
    device_type: str,
    overhead: int = 0,
    *,
    memory_bytes: int = 2**34,
    known_text: TowerMemory | None = None,
) -> StepMemory:
    """Count what a training step holds; neither weights nor activations are made.

    Args:
        shape: Of the model.
        data: Its ``image_resolution`` and ``max_sequence_length`` are read, and the seed.
        optim: Its ``optimizer``, ``ema_fraction``, ``lora_*`` and ``lock_*`` are read.
        memory: Its ``precision`` (None: float32) and ``gradient_checkpointing`` are read, and for the choice of
            attention ``attention*`` and ``mini_batch_size`` (None: ``MICRO_BATCH``).
        device_type: ``cpu``, ``cuda`` or ``mps``.
        overhead: Bytes that the process holds beside the weights.
        memory_bytes: What the whole run may use.
        known_text: The text tower of a plan that differed in the resolution alone, which saves its trace.

    Returns:
        In bytes.

    Raises:
        ConfigurationError: For adapters or checkpointing that the model cannot have, ``MissingExtraError``.
    """
    dtype = AUTOCAST_DTYPES[memory.precision or "fp32"]

    def autocast() -> Any:
        return contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)

    encoder = _encoder_for(shape, data, optim, memory, device_type, memory_bytes)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _make_fake(encoder.model)
        resolution, length = data.image_resolution, data.max_sequence_length

        def images(pairs: int) -> Tensor:
            return encoder.encode_image(torch.zeros(pairs, 3, resolution, resolution))

        def texts(pairs: int) -> Tensor:
            ids = torch.zeros(pairs, length, dtype=torch.long)
            return encoder.encode_text(ids, torch.ones_like(ids))

        return StepMemory.of(
            encoder,
            optim,
            *trace_towers(encoder, images, texts, autocast, known_text),
            input_per_pair=3 * resolution * resolution + 2 * 8 * length,  # images as bytes; token ids and mask
            overhead=overhead,
        )


LARGEST_BATCH = 256
"""More pairs at once bring a device nothing, and the contrastive batch does not depend on how many there are."""


class StepCounter:
    """Counts steps on ``encoder`` (which only lends its shape), as ``RunMemory`` will.

    ``budget``: bytes that the run may hold, what the process holds now included, as read when this was made.

    Args:
        encoder: The dual encoder.
        data: Of a recipe, resolved or not.
        optim: The same.
        memory: The same.
        device: Where the work runs.
        precision: That of the run, with its reason.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        data: DataSettings,
        optim: OptimizerSettings,
        memory: MemorySettings,
        device: torch.device,
        precision: PrecisionDecision,
    ) -> None:
        self.shape = ModelShape(encoder.name or encoder.model_type, encoder.model.config, encoder.processor)
        self.device, self._optim = device, optim
        length = data.max_sequence_length if data.is_set("max_sequence_length") else min(77, encoder.text_length)
        if encoder.processor.text_padding == "fixed":
            length = encoder.text_length
        self._data = data.model_copy(update={"max_sequence_length": length})
        self._memory = memory.model_copy(update={"precision": precision.name})
        there = MemoryBudget.now(device, memory.memory_fraction)
        self.budget, self._overhead = there.allowed, there.overhead(encoder)
        self._text: TowerMemory | None = None

    def at(self, resolution: int) -> StepMemory:
        """What a step with images of ``resolution`` pixels holds.

        Args:
            resolution: In pixels.

        Returns:
            In bytes.

        Raises:
            MemoryConstraintError: For a model whose memory cannot be predicted.
        """
        memory = plan_step(
            self.shape,
            self._data.model_copy(update={"image_resolution": resolution}),
            self._optim,
            self._memory,
            self.device.type,
            self._overhead,
            memory_bytes=self.budget,
            known_text=self._text,
        )
        self._text = memory.text
        return memory


def batch_that_fits(counter: StepCounter, resolution: int) -> int:
    """The largest power of two, 1 to ``LARGEST_BATCH``, of pairs that go through both towers at once within the budget;
    1, with a warning in the log, where even one pair does not fit.

    For a model whose memory cannot be predicted, the estimate for CLIP ViT-B/32 instead, with a warning.

    Args:
        counter: Counts the steps.
        resolution: The largest of the training images, in pixels.

    Returns:
        Pairs.
    """
    try:
        memory = counter.at(resolution)
    except MemoryConstraintError as error:
        log.warning("The batch is that of CLIP ViT-B/32: %s", error)
        return MemoryManager(counter.device).optimal_batch_size
    try:
        return largest_micro_batch(lambda pairs: memory.needed(pairs, pairs), counter.budget, LARGEST_BATCH)
    except MemoryConstraintError as error:
        log.warning("%s", error)
        return 1

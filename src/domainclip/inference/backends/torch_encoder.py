"""Torch as a back end, which needs no conversion, and what the others are made from and measured by."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor, nn

from domainclip.data.images.image_spec import ImageSpec
from domainclip.devices.out_of_memory import ShrinkingBatches
from domainclip.inference.backends.encoder import Precision, Towers
from domainclip.inference.backends.golden import GOLDEN_IMAGES, GOLDEN_TEXTS, GoldenBatch, drawn_images
from domainclip.inference.backends.shapes import FixedShapes, padded_ids, text_lengths
from domainclip.models import DualEncoder, EncoderProcessor

CALIBRATION_IMAGES = 32
_CALIBRATION_SEED = 1
"""Other images than the golden ones, which are to say what calibration is worth."""
_SUBJECTS = ("cat", "rusty bolt", "chest X-ray", "galaxy", "loaf of bread", "street at night", "leaf", "circuit board")
_SENTENCES = (
    "{}",
    "a photo of a {}.",
    "a close-up of a {} on a white table, lit from the left, with a few scratches and a long shadow behind it.",
    "The {} is seen from above. There is no sign of damage, and nothing else is in it; its colours are dull, and "
    "its right edge is out of focus, so that small details, such as letters, stains or cracks, cannot be told apart.",
)
"""Texts of each length that calibration needs: activations differ with it."""


class TorchEncoder:
    """The model as it is, on its device; where memory runs out, in smaller batches.

    Args:
        encoder: The model. Weights that change later are seen in ``fp32``.
        spec: How its images are normalised.
        device: Where it is.
        precision: ``bf16`` computes with a copy of the weights in bfloat16.
    """

    name = "torch"

    def __init__(
        self, encoder: DualEncoder, spec: ImageSpec, device: torch.device, precision: Precision = "fp32"
    ) -> None:
        self.precision: Precision = precision
        self.encoder = encoder if precision == "fp32" else copy.deepcopy(encoder).to(torch.bfloat16).eval()
        self.spec, self.device = spec, device
        self._image_batches = ShrinkingBatches("images", device)
        self._text_batches = ShrinkingBatches("texts", device)

    def encode_images(self, pixels: UInt8[np.ndarray, "n 3 size size"]) -> Float32[np.ndarray, "n dim"]:
        """Embed images. See ``Encoder``.

        Args:
            pixels: Before normalisation.

        Returns:
            One row an image.

        Raises:
            MemoryConstraintError: Not even one image fits.
        """
        given = torch.from_numpy(pixels)

        def embed(rows: slice) -> Tensor:
            values = self.spec.normalise(given[rows].to(self.device)).to(self.encoder.dtype)
            return self.encoder.encode_image(values).float().cpu()

        return self._rows(self._image_batches, len(pixels), embed)

    def encode_tokens(
        self, input_ids: Int64[np.ndarray, "n length"], attention_mask: Int64[np.ndarray, "n length"]
    ) -> Float32[np.ndarray, "n dim"]:
        """Embed tokenized texts. See ``Encoder``.

        Args:
            input_ids: Padded.
            attention_mask: 1 for tokens.

        Returns:
            One row a text.

        Raises:
            MemoryConstraintError: Not even one text fits.
        """
        ids, mask = torch.from_numpy(input_ids), torch.from_numpy(attention_mask)

        def embed(rows: slice) -> Tensor:
            return self.encoder.encode_text(ids[rows].to(self.device), mask[rows].to(self.device)).float().cpu()

        return self._rows(self._text_batches, len(ids), embed)

    def _rows(self, batches: ShrinkingBatches, count: int, embed: Callable[[slice], Tensor]) -> np.ndarray:
        training = self.encoder.training
        self.encoder.eval()
        try:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                return torch.cat(batches(count, count, embed)).numpy()
        finally:
            self.encoder.train(training)


def fixed_shapes(
    encoder: DualEncoder, spec: ImageSpec, device: torch.device, precision: Precision = "fp32"
) -> FixedShapes:
    """Torch, in the closed set of shapes.

    Args:
        encoder: The model, on its device.
        spec: How its images are normalised.
        device: Where it is.
        precision: ``fp32`` or ``bf16``.

    Returns:
        What encodes any number of images and texts.
    """
    processor = encoder.processor
    lengths = text_lengths(processor.max_length, processor.text_padding == "fixed")
    return FixedShapes(TorchEncoder(encoder, spec, device, precision), lengths, processor.pad_token_id)


def golden_batch(
    encoder: DualEncoder, device: torch.device, fingerprint: str, spec: ImageSpec | None = None
) -> GoldenBatch:
    """Make the golden batch of a model.

    Args:
        encoder: The model, on its device.
        device: Where it is.
        fingerprint: Of the model's files.
        spec: The resolution and how images are normalised; the model's own, if left out.

    Returns:
        Drawn images and fixed texts, with their embeddings in float32.
    """
    spec = spec or ImageSpec.from_processor(encoder.processor.image_processor)
    images = drawn_images(GOLDEN_IMAGES, spec.resolution)
    ids = encoder.processor.token_ids(GOLDEN_TEXTS)
    shapes = fixed_shapes(encoder, spec, device)
    return GoldenBatch(fingerprint, images, ids, shapes.encode_images(images), shapes.encode_tokens(ids))


class _ImageTower(nn.Module):
    scale: Tensor
    shift: Tensor

    def __init__(self, encoder: DualEncoder, spec: ImageSpec) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("scale", torch.tensor([1 / (255 * s) for s in spec.std]).view(3, 1, 1))
        shift = [-m / s for m, s in zip(spec.mean, spec.std, strict=True)]
        self.register_buffer("shift", torch.tensor(shift).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encoder.encode_image(pixels.float() * self.scale + self.shift)


class _TextTower(nn.Module):
    def __init__(self, encoder: DualEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.encoder.encode_text(input_ids, attention_mask)


def towers_of(encoder: DualEncoder, spec: ImageSpec) -> Towers:
    """A model for conversion.

    Args:
        encoder: The model, which goes on as it is; one on another device than the CPU is copied.
        spec: The resolution and how images are normalised.

    Returns:
        Both towers, in evaluation mode.
    """
    if next(encoder.parameters()).device.type != "cpu":
        encoder = copy.deepcopy(encoder).cpu()
    masked = encoder.processor.text_padding != "fixed"
    return Towers(
        image=_ImageTower(encoder, spec).eval(),
        text=_TextTower(encoder).eval(),
        masked=masked,
        transformer=encoder.image_tower_kind == "transformer",
        resolution=spec.resolution,
        images=drawn_images(CALIBRATION_IMAGES, spec.resolution, _CALIBRATION_SEED),
        texts=_calibration_texts(encoder.processor, masked),
    )


def _calibration_texts(processor: EncoderProcessor, masked: bool) -> list[list[np.ndarray]]:
    texts = [sentence.format(subject) for sentence in _SENTENCES for subject in _SUBJECTS]
    lengths = text_lengths(processor.max_length, processor.text_padding == "fixed")
    found = []
    for ids in processor.token_ids(texts):
        length = next(length for length in lengths if length >= len(ids))
        found.append(list(padded_ids([ids], length, processor.pad_token_id)[: 2 if masked else 1]))
    return found

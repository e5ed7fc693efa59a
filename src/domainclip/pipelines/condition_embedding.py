"""Embeddings of the same images under many conditions: resolutions in pixels, and kinds of corruption."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.pipeline import DomainImagePipeline
from domainclip.data.images.preparation import Preparation
from domainclip.data.images.reader import MAX_PIXELS
from domainclip.data.images.store import ImageStore
from domainclip.devices.out_of_memory import ShrinkingBatches
from domainclip.errors import ImageError
from domainclip.evaluation.robustness import Condition, corrupt
from domainclip.models import DualEncoder
from domainclip.waiting import Progress

BUFFER_BYTES = 256 * 2**20
"""Of resized images held at once, over all conditions."""

_DECODERS = 8  # images decoded at once at most: each may be large, and is held whole while it is corrupted


class ConditionEmbedder:
    """Each image is decoded once, made ready for every condition, and let go before too many are held.

    Images go through the steps of ``preprocessing`` before they are corrupted, and stay whole where it asks for tiles.
    Puts the encoder into evaluation mode. Figures are in float32, and texts are no concern of it.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        device: torch.device,
        conditions: Sequence[Condition],
        *,
        batch_size: int = 64,
        max_pixels: int = MAX_PIXELS,
        seed: int = 0,
        strict: bool = False,
        preprocessing: ImagePreprocessing | None = None,
    ) -> None:
        self.encoder, self.device, self.conditions = encoder.eval(), device, list(conditions)
        self.batch_size, self.seed, self.strict = batch_size, seed, strict
        native = ImageSpec.from_processor(encoder.processor.image_processor)
        self.specs = {condition.resolution: native.at(condition.resolution) for condition in self.conditions}
        steps = (preprocessing or ImagePreprocessing()).model_copy(update={"tile_size": None})
        key = ("conditions", steps.model_dump_json(), *self.specs.values(), *self.conditions, seed)
        pipeline, target = DomainImagePipeline(steps), 2 * max(self.specs)
        self.preparation = Preparation(key, pipeline, target, partial(self._views_of, pipeline, target))
        # Each image is asked for once, in all its views: none of them is kept.
        self.images = ImageStore(0, max_pixels)
        self._batches = ShrinkingBatches("images", self.device)

    @property
    def images_per_batch(self) -> int:
        """A batch, or as many as ``BUFFER_BYTES`` hold under all conditions."""
        bytes_each = sum(3 * condition.resolution**2 for condition in self.conditions)
        return max(1, min(self.batch_size, BUFFER_BYTES // bytes_each))

    @torch.no_grad()
    def embed_pixels(self, pixels: UInt8[Tensor, "n 3 size size"]) -> Float[Tensor, "n dim"]:
        """Unit-length embeddings, float32 on the CPU.

        Args:
            pixels: Bytes of images of one size.

        Returns:
            One row an image.

        Raises:
            MemoryConstraintError: Where not even one image fits.
        """
        normalise = self.specs[pixels.shape[-1]].normalise

        def embed(rows: slice) -> Tensor:
            embeds = self.encoder.encode_image(normalise(pixels[rows].to(self.device)))
            return F.normalize(embeds.float(), dim=-1).cpu()

        return torch.cat(self._batches(len(pixels), len(pixels), embed))

    def embed(
        self, paths: Sequence[Path]
    ) -> tuple[dict[Condition, Float[Tensor, "readable dim"]], dict[Path, int], dict[Path, str]]:
        """Embed images under every condition.

        Args:
            paths: Different files.

        Returns:
            Embeddings under each condition, unit length, float32 on the CPU; which of their rows is which image's; and
            what is wrong with each image that cannot be read.

        Raises:
            ImageError: With ``strict``, an image cannot be read.
            MemoryConstraintError: A batch does not fit.
        """
        rows: dict[Path, int] = {}
        unreadable: dict[Path, str] = {}
        parts: dict[Condition, list[Tensor]] = {condition: [] for condition in self.conditions}
        with Progress(len(paths), "Embedding images") as progress:
            for found in self._views(paths):
                views = []
                for path, view in found.items():
                    if isinstance(view, ImageError):
                        if self.strict:
                            raise view
                        unreadable[path] = str(view)
                    else:
                        rows[path] = len(rows)
                        views.append(view)
                for condition, pixels in zip(self.conditions, zip(*views, strict=True), strict=True) if views else ():
                    parts[condition].append(self.embed_pixels(torch.stack(pixels)))
                progress.at(len(rows) + len(unreadable))
        return {condition: torch.cat(found) for condition, found in parts.items() if found}, rows, unreadable

    def _views(self, paths: Sequence[Path]) -> Iterator[dict[Path, list[Tensor] | ImageError]]:
        with ThreadPoolExecutor(min(_DECODERS, os.cpu_count() or 1)) as pool:
            for start in range(0, len(paths), self.images_per_batch):
                part = paths[start : start + self.images_per_batch]
                yield dict(zip(part, pool.map(self._read, part), strict=True))

    def _read(self, path: Path) -> list[Tensor] | ImageError:
        """The image as each condition shows it to the model, or what is wrong with it."""
        try:
            views = self.images.get(path, self.preparation)[0]
        except ImageError as error:
            return error if str(path) in str(error) else ImageError(f"{path}: {error}")
        sizes = [condition.resolution for condition in self.conditions]
        parts = views.split([3 * size**2 for size in sizes])
        return [part.view(3, size, size) for part, size in zip(parts, sizes, strict=True)]

    def _views_of(self, pipeline: DomainImagePipeline, target: int, image: np.ndarray) -> UInt8[Tensor, " bytes"]:
        whole = pipeline.apply(image, target)
        return torch.cat([self._view(condition, whole).reshape(-1) for condition in self.conditions])

    def _view(self, condition: Condition, whole: np.ndarray) -> UInt8[Tensor, "3 size size"]:
        spec = self.specs[condition.resolution]
        image = spec.trim(whole)
        if condition.corruption is not None:
            model_size = spec.resized_shape(*image.shape[:2])
            image = corrupt(image, condition.corruption, condition.severity, model_size, self.seed)
        return spec.apply(image)

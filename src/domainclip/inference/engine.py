"""Embedding images and texts with a trained encoder: batches, threads that decode, no gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.pipeline import DomainImagePipeline
from domainclip.data.images.reader import MAX_PIXELS, array_of
from domainclip.data.images.transforms import TextTransform
from domainclip.errors import DataError, ImageError

ImageLike = Path | str | Image.Image


class EmbeddingEngine:
    """Encodes any number of images or texts. ``encoder`` is a ``DualEncoder`` or anything that looks like one.

    Images go through the steps of ``preprocessing`` (none, if left out) and then exactly the model's own image
    processor's. The embedding of an image that is cut into tiles is the mean of its tiles' (each of unit length),
    brought to unit length again. Decoded images of files are kept up to ``cache_mb`` MiB, since a training run embeds
    its validation images again and again.
    """

    def __init__(
        self,
        encoder: Any,
        device: torch.device | str = "cpu",
        *,
        batch_size: int = 64,
        resolution: int | None = None,
        max_length: int | None = None,
        max_pixels: int = MAX_PIXELS,
        cache_mb: int = 512,
        autocast: Any = None,
        preprocessing: ImagePreprocessing | None = None,
        text_transform: Callable[[str], str] | None = None,
    ) -> None:
        self.encoder = encoder
        self.device = torch.device(device)
        self.batch_size = batch_size
        spec = ImageSpec.from_processor(encoder.processor.image_processor)
        self.spec = spec.at(resolution) if resolution else spec
        self.pipeline = DomainImagePipeline(preprocessing)
        self.max_length = max_length
        self.max_pixels = max_pixels
        self.autocast = autocast
        self.text_transform = text_transform or TextTransform()
        """What texts go through, as the captions did in training."""
        self.text_map: Callable[[Tensor], Tensor] | None = None
        """Applied to text embeddings before they are normalised: a learned metric that is not yet in the weights."""
        self._cache: dict[str, Tensor] = {}
        self._room = cache_mb * 2**20

    @contextmanager
    def _inference(self) -> Iterator[None]:
        training = self.encoder.training
        self.encoder.eval()
        try:
            with torch.no_grad():
                if self.autocast is None:
                    yield
                else:
                    with self.autocast():
                        yield
        finally:
            self.encoder.train(training)

    def _views(self, image: ImageLike) -> UInt8[Tensor, "tiles 3 size size"]:
        """What the model is shown of an image: one view, or one of each tile."""
        if isinstance(image, Image.Image):
            return self._made(array_of(image))
        key = str(image)
        found = self._cache.get(key)
        if found is None:
            found = self._made(self.pipeline.read(Path(image), self.max_pixels, 2 * self.spec.resolution))
            if self._room >= found.numel():
                self._room -= found.numel()
                self._cache[key] = found
        return found

    def _made(self, image: np.ndarray) -> UInt8[Tensor, "tiles 3 size size"]:
        return torch.stack([self.spec.apply(view) for view in self.pipeline.views(image, 2 * self.spec.resolution)])

    def readable(self, images: Sequence[Path]) -> list[str]:
        """Decode every image (into the cache) and return, for each, what is wrong with it, or ''."""

        def problem(image: Path) -> str:
            try:
                self._views(image)
            except ImageError as error:
                return str(error)
            return ""

        with ThreadPoolExecutor() as pool:
            return list(pool.map(problem, images))

    def pixels(self, images: Sequence[ImageLike]) -> UInt8[Tensor, "views 3 size size"]:
        """What the model is shown of these images, before ``spec.normalise``; one row each, or one for each tile."""
        with ThreadPoolExecutor() as pool:
            return torch.cat(list(pool.map(self._views, images)))

    def encode_images(self, images: Sequence[ImageLike]) -> Float[Tensor, "n dim"]:
        """Unit-length embeddings, float32 on the CPU. Raises ``ImageError`` for one that cannot be read."""
        if not len(images):
            raise DataError("No images to encode")
        rows = []
        with ThreadPoolExecutor() as pool, self._inference():
            for start in range(0, len(images), self.batch_size):
                views = list(pool.map(self._views, images[start : start + self.batch_size]))
                embeds = self._encode(torch.cat(views))
                counts = [len(view) for view in views]
                if max(counts) > 1:
                    means = torch.stack([tiles.mean(dim=0) for tiles in embeds.split(counts)])
                    embeds = F.normalize(means, dim=-1)
                rows.append(embeds)
        return torch.cat(rows)

    def _encode(self, pixels: UInt8[Tensor, "n 3 size size"]) -> Float[Tensor, "n dim"]:
        parts = []
        for part in pixels.split(self.batch_size):  # more than one where images are cut into tiles
            embeds = self.encoder.encode_image(self.spec.normalise(part.to(self.device)))
            parts.append(F.normalize(embeds.float(), dim=-1).cpu())
        return torch.cat(parts)

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n dim"]:
        """Unit-length embeddings, float32 on the CPU; equal texts are encoded once."""
        if not len(texts):
            raise DataError("No texts to encode")
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise DataError("Texts must be a list of strings")
        cleaned = [self.text_transform(text) for text in texts]
        distinct = list(dict.fromkeys(cleaned))
        # Longest first: neighbours have like lengths (little padding), and what would not fit shows at once.
        processor = self.encoder.processor
        ids = processor.token_ids(distinct, self.max_length)
        order = sorted(range(len(distinct)), key=lambda index: -len(ids[index]))
        embeds: list[Tensor | None] = [None] * len(distinct)
        with self._inference():
            for start in range(0, len(order), self.batch_size):
                part = order[start : start + self.batch_size]
                length = processor.max_length if processor.text_padding == "fixed" else len(ids[part[0]])
                input_ids, mask = processor.pad([ids[index] for index in part], length)
                output = self.encoder.encode_text(input_ids.to(self.device), mask.to(self.device))
                output = output.float() if self.text_map is None else self.text_map(output.float())
                for index, row in zip(part, F.normalize(output, dim=-1).cpu(), strict=True):
                    embeds[index] = row
        index_of = {text: index for index, text in enumerate(distinct)}
        return torch.stack([embeds[index_of[text]] for text in cleaned])  # type: ignore[misc]

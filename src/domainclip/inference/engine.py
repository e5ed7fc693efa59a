"""Embedding images and texts with a trained encoder: batches, threads that decode, no gradients."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.data.captions.text_transform import plain_text
from domainclip.data.images.given import GivenImages, GivenTexts, image_list, text_list
from domainclip.data.images.image_file import file_digest
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.pipeline import DomainImagePipeline
from domainclip.data.images.preparation import Preparation, model_views
from domainclip.data.images.reader import ImageBytes, ImageLike, array_of
from domainclip.data.images.store import ImageStore
from domainclip.devices.out_of_memory import ShrinkingBatches
from domainclip.errors import ImageError, MissingExtraError
from domainclip.inference.backends.shapes import FixedShapes
from domainclip.models import DualEncoder
from domainclip.waiting import Progress, said_while_waiting


@dataclass(frozen=True)
class EncodedFiles:
    """A batch of files.

    Attributes:
        embeddings: Of unit length, float32 on the CPU; a row for each file that could be read.
        digests: SHA-256 of each file's content; empty where it was not asked for, or the file cannot be opened.
        problems: Why each file could not be read, or an empty text.
    """

    embeddings: Float[Tensor, "readable dim"]
    digests: list[str]
    problems: list[str]


class EmbeddingEngine:
    """Encodes any number of images or texts with a dual encoder, which must be on ``device``.

    Images go through the steps of ``preprocessing`` (none, if left out) and then exactly the model's own image
    processor's. The embedding of an image that is cut into tiles is the mean of its tiles' (each of unit length),
    brought to unit length again. Images of files come from ``images`` (default: a store of its own of 512 MiB),
    since a training run embeds its validation images again and again.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        device: torch.device | str = "cpu",
        *,
        batch_size: int = 64,
        resolution: int | None = None,
        max_length: int | None = None,
        images: ImageStore | None = None,
        autocast: Callable[[], AbstractContextManager[object]] | None = None,
        preprocessing: ImagePreprocessing | None = None,
        text_transform: Callable[[str], str] | None = None,
        backend: FixedShapes | None = None,
    ) -> None:
        self.encoder = encoder
        self.backend = backend
        """What encodes in place of ``encoder``, in shapes of a closed set."""
        self.device = torch.device(device)
        self.batch_size = batch_size
        spec = ImageSpec.from_processor(encoder.processor.image_processor)
        self.spec = spec.at(resolution) if resolution else spec
        self.pipeline = DomainImagePipeline(preprocessing)
        self.max_length = max_length
        self.autocast = autocast
        self.text_transform = text_transform or plain_text
        """What texts go through, as the captions did in training."""
        self.text_map: Callable[[Tensor], Tensor] | None = None
        """Applied to text embeddings before they are normalised: a learned metric that is not yet in the weights."""
        self.images = images or ImageStore(512 * 2**20)
        self._image_batches = ShrinkingBatches("images", self.device)
        self._text_batches = ShrinkingBatches("texts", self.device)

    def release(self) -> None:
        """Let go of the model, whose memory another one needs. ``encoder`` must be set before the next use."""
        vars(self).pop("encoder", None)

    @contextmanager
    def _inference(self) -> Iterator[None]:
        training = self.encoder.training
        self.encoder.eval()
        try:
            # A context of the caller's, such as an autocast of its own training, is none of the engine's.
            own = self.autocast() if self.autocast is not None else torch.autocast(self.device.type, enabled=False)
            with torch.no_grad(), own:
                yield
        finally:
            self.encoder.train(training)

    @property
    def preparation(self) -> Preparation:
        """What becomes of an image before the model's normalisation: uint8 ``[tiles, 3, size, size]``."""
        return model_views(self.pipeline, self.spec)

    def _reader(self) -> Callable[[ImageLike], UInt8[Tensor, "tiles 3 size size"]]:
        """From an image to what the model is shown of it: one view, or one of each tile."""
        preparation = self.preparation

        def read(image: ImageLike) -> Tensor:
            if isinstance(image, Image.Image):
                image = array_of(image)
            if isinstance(image, np.ndarray):
                return preparation.make(image)
            if isinstance(image, ImageBytes):
                return preparation.make(preparation.read(image, self.images.max_pixels))
            return self.images.get(Path(image), preparation)[0]

        return read

    def expect(self, images: Sequence[Path], shared: bool = False) -> None:
        """Announce images that will be asked for again and again, so that the store keeps them.

        Args:
            images: The files.
            shared: Worker processes read them too; see ``ImageStore.expect``.
        """
        bytes_each = None if self.pipeline.tiled else 3 * self.spec.resolution**2
        self.images.expect(images, self.preparation, bytes_each, shared)

    def readable(self, images: Sequence[Path]) -> list[str]:
        """Decode every image (into the store) and say what is wrong with each.

        Args:
            images: The files, which will be asked for again.

        Returns:
            For each the reason why it cannot be used, or an empty text.
        """
        self.expect(images)
        preparation = self.preparation
        with ThreadPoolExecutor() as pool:
            found = pool.map(lambda image: self.images.problem(Path(image), preparation), images)
            return list(said_while_waiting(found, len(images), "Reading images"))

    def pixels(self, images: GivenImages) -> UInt8[Tensor, "views 3 size size"]:
        """What the model is shown of these images, before ``spec.normalise``.

        Args:
            images: One image or many, as ``data.images.given`` takes them.

        Returns:
            One row each, or one for each tile; ``size`` is the model's resolution.

        Raises:
            ImageError: An image cannot be read.
        """
        with ThreadPoolExecutor() as pool:
            return torch.cat(list(pool.map(self._reader(), image_list(images))))

    def encode_images(self, images: GivenImages) -> Float[Tensor, "n dim"]:
        """Embed images.

        Args:
            images: One image or many: paths, PIL images, arrays, tensors, bytes of files, or open files.

        Returns:
            Unit-length embeddings, float32 on the CPU, one an image.

        Raises:
            ImageError: An image cannot be read.
            DataError: There are no images, or one is of another type (then also a ``TypeError``).
        """
        found, rows, read = image_list(images), [], self._reader()
        with ThreadPoolExecutor() as pool, self._inference(), Progress(len(found), "Embedding images") as progress:
            for start in range(0, len(found), self.batch_size):
                rows.append(self._embed(list(pool.map(read, found[start : start + self.batch_size]))))
                progress.at(min(start + self.batch_size, len(found)))
        return torch.cat(rows)

    def encode_files(self, paths: Sequence[Path], *, digests: bool = False) -> Iterator[EncodedFiles]:
        """Embed any number of files, a batch at a time; those of the next batches are read meanwhile. A file that
        cannot be read stops nothing.

        Args:
            paths: The files.
            digests: Whether the content of each file is digested, too.

        Yields:
            ``batch_size`` files each, in order; the last batch may be smaller.
        """
        read = self._reader()

        def load(path: Path) -> tuple[Tensor | None, str, str]:
            digest = ""
            try:
                digest = file_digest(path) if digests else ""
                return read(path), digest, ""
            except (ImageError, MissingExtraError) as error:
                return None, digest, str(error)

        with ThreadPoolExecutor() as pool:
            ahead = deque(pool.submit(load, path) for path in paths[: 2 * self.batch_size])
            for start in range(0, len(paths), self.batch_size):
                more = paths[start + len(ahead) : start + 3 * self.batch_size]
                ahead.extend(pool.submit(load, path) for path in more)
                found = [ahead.popleft().result() for _ in paths[start : start + self.batch_size]]
                views = [each for each, _, _ in found if each is not None]
                with self._inference():
                    embeds = self._embed(views) if views else torch.empty(0, self.encoder.embedding_dim)
                yield EncodedFiles(embeds, [digest for _, digest, _ in found], [problem for *_, problem in found])

    def _embed(self, views: list[UInt8[Tensor, "tiles 3 size size"]]) -> Float[Tensor, "images dim"]:
        embeds, counts = self._encode(torch.cat(views)), [len(view) for view in views]
        if max(counts) == 1:
            return embeds
        return F.normalize(torch.stack([tiles.mean(dim=0) for tiles in embeds.split(counts)]), dim=-1)

    def _encode(self, pixels: UInt8[Tensor, "n 3 size size"]) -> Float[Tensor, "n dim"]:
        if self.backend is not None:
            return F.normalize(torch.from_numpy(self.backend.encode_images(pixels.numpy())), dim=-1)

        def embed(rows: slice) -> Tensor:
            embeds = self.encoder.encode_image(self.spec.normalise(pixels[rows].to(self.device)))
            return F.normalize(embeds.float(), dim=-1).cpu()

        # More than one batch where images are cut into tiles, or memory has run out.
        return torch.cat(self._image_batches(len(pixels), self.batch_size, embed))

    def encode_texts(self, texts: GivenTexts) -> Float[Tensor, "n dim"]:
        """Embed texts; equal texts are encoded once.

        Args:
            texts: One text or many, which go through ``text_transform`` first.

        Returns:
            Unit-length embeddings, float32 on the CPU, one a text.

        Raises:
            DataError: There are no texts, or one is no string (then also a ``TypeError``).
        """
        cleaned = [self.text_transform(text) for text in text_list(texts)]
        distinct = list(dict.fromkeys(cleaned))
        # Longest first: neighbours have like lengths (little padding), and what would not fit shows at once.
        processor = self.encoder.processor
        ids = processor.token_ids(distinct, self.max_length)
        order = sorted(range(len(distinct)), key=lambda index: -len(ids[index]))

        def embed(rows: slice) -> Tensor:
            part = order[rows]
            length = processor.max_length if processor.text_padding == "fixed" else len(ids[part[0]])
            input_ids, mask = processor.pad([ids[index] for index in part], length)
            output = self.encoder.encode_text(input_ids.to(self.device), mask.to(self.device))
            output = output.float() if self.text_map is None else self.text_map(output.float())
            return F.normalize(output, dim=-1).cpu()

        if self.backend is not None:
            embeds = F.normalize(torch.from_numpy(self.backend.encode_tokens(ids)), dim=-1)
        else:
            with self._inference():
                made = torch.cat(self._text_batches(len(order), self.batch_size, embed))
            embeds = torch.empty_like(made)
            embeds[torch.tensor(order)] = made
        index_of = {text: index for index, text in enumerate(distinct)}
        return embeds[torch.tensor([index_of[text] for text in cleaned])]

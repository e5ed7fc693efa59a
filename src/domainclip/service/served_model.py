"""One model as it is served: loaded, warmed, and checked against its golden batch."""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Float32, UInt8
from rich.console import Console
from torch import Tensor, from_numpy
from torch.nn.functional import normalize

from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import BackendError
from domainclip.inference import ModelSession
from domainclip.inference.backends.golden import GoldenBatch, check_cosine
from domainclip.inference.backends.names import TORCH
from domainclip.inference.backends.shapes import BATCHES, FixedShapes
from domainclip.inference.backends.torch_encoder import fixed_shapes
from domainclip.inference.classifier import Classifier
from domainclip.resolve import resolve_for_inference
from domainclip.retrieval.store.search import SearchableStore
from domainclip.service.latency import IMAGE, Bucket, LatencyModel

T = TypeVar("T")
Run = Callable[[Callable[[], object]], object]
"""Does something in the thread of the device."""
_CLASSIFIERS = 256
_TIMED = (1, 8)
"""Batches whose time is taken before the first request: two say what is fixed and what each row takes."""


@dataclass(frozen=True)
class Prepared:
    """What the model is shown of one image or text.

    Attributes:
        bucket: What it can be computed with.
        views: Of an image, one or one for each tile.
        tokens: Of a text.
    """

    bucket: Bucket
    views: UInt8[np.ndarray, "tiles 3 size size"] | None = None
    tokens: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of a batch that it takes."""
        return 1 if self.views is None else len(self.views)


class ServedModel:
    """A model with all that its requests need. Nothing of it changes once it is served.

    Args:
        session: The loaded model.
        shapes: What computes its embeddings.
        golden: What it must give.
        store: The index that it searches; None without one.
    """

    def __init__(
        self, session: ModelSession, shapes: FixedShapes, golden: GoldenBatch, store: SearchableStore | None
    ) -> None:
        self.session, self.shapes, self.golden, self.store = session, shapes, golden, store
        self.fingerprint = session.fingerprint()
        self.name = public_name(str(session.config.model_name))
        self.space = f"{self.fingerprint} {self.backend}"
        """What an embedding depends on besides its content."""
        self.device = session.device
        self._engine = session.engine(backend=shapes)
        self.preparation = self._engine.preparation
        self.classifiers = _Recent[Classifier]()
        self._tokenizing, self._copying = threading.Lock(), threading.Lock()
        self._on_cpu: FixedShapes | None = None

    @classmethod
    def load(cls, config: CLIPFinetuningConfig, index: Path | None, console: Console) -> ServedModel:
        """Load a model and its index.

        Args:
            config: The recipe.
            index: Of the model's embeddings; None for none.
            console: Where it is said what computes, and why.

        Returns:
            The model, not yet warm.

        Raises:
            ModelLoadError: The model cannot be had.
            ConfigurationError: The index is another model's, or cannot be used.
            BackendError: The back end that was asked for is refused.
            MissingExtraError: It is not installed.
        """
        session = ModelSession.from_pretrained(resolve_for_inference(config), console)
        shapes = session.backend
        store = None
        if index is not None:
            store = SearchableStore.open(index)
            store.store.require(session.fingerprint(), str(config.model_name))
        return cls(session, shapes, session.golden_batch(), store)

    @property
    def backend(self) -> str:
        """What computes, and in which precision."""
        return f"{self.shapes.encoder.name} ({self.shapes.encoder.precision})"

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU computes anyway."""
        return self.device.type == "cpu"

    def warm(self, run: Run, latency: LatencyModel, progress: Callable[[int, int], object]) -> None:
        """Compute something in every shape, so that no request waits while the back end gets ready for its own; the
        times are learned.

        Args:
            run: Does each in the thread of the device.
            latency: Learns.
            progress: Is told how many shapes of how many are warm.
        """
        size = self.golden.resolution
        # Torch compiles nothing on the CPU: there is only the time to be learned.
        compiles = not (self.on_cpu and self.shapes.encoder.name == TORCH)
        sizes = BATCHES if compiles else _TIMED
        buckets = [IMAGE, *(Bucket("text", length) for length in self.shapes.lengths)]
        shapes = list(itertools.product(buckets, sizes))
        for done, (bucket, rows) in enumerate(shapes):
            progress(done, len(shapes))
            views = np.zeros((1, 3, size, size), np.uint8) if bucket is IMAGE else None
            batch = [Prepared(bucket, views, (self.shapes.pad_token_id,) * bucket.tokens)] * rows

            def compute(batch: list[Prepared] = batch) -> None:
                if compiles:  # at the first use of a shape
                    self.encode(batch)
                if len(batch) in _TIMED:
                    begun = time.monotonic()
                    self.encode(batch)
                    latency.observe(batch[0].bucket, len(batch), time.monotonic() - begun)

            run(compute)

    def check(self) -> float:
        """Compare with the golden batch.

        Returns:
            The least cosine to what float32 gives.

        Raises:
            BackendError: It is below what its precision allows.
        """
        cosines = {"image": self.golden.image_cosine(self.shapes), "text": self.golden.text_cosine(self.shapes)}
        for tower, cosine in cosines.items():
            try:
                check_cosine(tower, cosine, self.shapes.encoder.precision)
            except BackendError as error:
                raise BackendError(f"{self.name} fails its golden check: {error}") from None
        return min(cosines.values())

    def image(self, views: Tensor) -> Prepared:
        """An image that has been decoded.

        Args:
            views: uint8 ``[tiles, 3, size, size]``, as ``preparation`` makes them.

        Returns:
            What ``encode`` takes.
        """
        return Prepared(IMAGE, views.numpy())

    def texts(self, texts: Sequence[str]) -> list[Prepared]:
        """Prepare texts as the captions were in training.

        Args:
            texts: Any.

        Returns:
            What ``encode`` takes.
        """
        with self._tokenizing:  # a tokenizer's truncation is a state of its own, which two threads cannot set at once
            cleaned = [self._engine.text_transform(text) for text in texts]  # counts tokens, too
            ids = self.session.processor.token_ids(cleaned, self._engine.max_length)
        return [self.tokens(each) for each in ids]

    def tokens(self, ids: Sequence[int]) -> Prepared:
        """A text that has been tokenized.

        Args:
            ids: By the model's own tokenizer; no more than its longest text.

        Returns:
            What ``encode`` takes.
        """
        length = next(length for length in self.shapes.lengths if length >= len(ids))
        return Prepared(Bucket("text", length), tokens=tuple(ids))

    @property
    def vocabulary_size(self) -> int:
        """Ids of tokens are below this."""
        return len(self.session.processor.tokenizer)

    def encode(self, batch: Sequence[Prepared], shapes: FixedShapes | None = None) -> list[Float32[np.ndarray, " dim"]]:
        """Compute embeddings.

        Args:
            batch: Of one bucket.
            shapes: What computes; the model's own, if left out.

        Returns:
            A unit vector each.
        """
        shapes = shapes or self.shapes
        if batch[0].bucket.tower == "text":
            return list(_unit(shapes.encode_tokens([each.tokens for each in batch])))
        embeds = _unit(shapes.encode_images(np.concatenate([each.views for each in batch if each.views is not None])))
        ends = np.cumsum([each.rows for each in batch])
        parts = np.split(embeds, ends[:-1])
        return [part[0] if len(part) == 1 else _unit(part.mean(axis=0, keepdims=True))[0] for part in parts]

    def encode_on_cpu(self, prepared: Prepared) -> Float32[np.ndarray, " dim"]:
        """Compute one embedding where the device has no memory left. The copy of the model stays for the next time.

        Args:
            prepared: One image or text.

        Returns:
            A unit vector.
        """
        with self._copying:
            if self._on_cpu is None:
                config = self.session.config.updated(device="cpu")
                copy = ModelSession.from_pretrained(resolve_for_inference(config), Console(quiet=True))
                self._on_cpu = fixed_shapes(copy.encoder, self._engine.spec, copy.device)
        return self.encode([prepared], self._on_cpu)[0]


def public_name(model: str) -> str:
    """What clients are told of a model.

    Args:
        model: A folder, or a name of the hub.

    Returns:
        The last part of a folder's path, or of what holds it, if that is just ``model``: the rest is nobody's business.
    """
    path = Path(model)
    if not path.is_dir():
        return model
    path = path.resolve()
    return path.parent.name if path.name == "model" and path.parent.name else path.name


class _Recent(Generic[T]):
    """What was made for the sets of labels used last."""

    def __init__(self) -> None:
        self._made: OrderedDict[tuple[str, ...] | None, T] = OrderedDict()

    def get(self, labels: Sequence[str] | None) -> T | None:
        """Look it up.

        Args:
            labels: The set; None for the model's own.

        Returns:
            What was made for it, or None.
        """
        key = labels if labels is None else tuple(labels)
        if key in self._made:
            self._made.move_to_end(key)
        return self._made.get(key)

    def put(self, labels: Sequence[str] | None, made: T) -> None:
        """Keep it.

        Args:
            labels: The set.
            made: For it.
        """
        self._made[labels if labels is None else tuple(labels)] = made
        while len(self._made) > _CLASSIFIERS:
            self._made.popitem(last=False)


def _unit(embeds: Float32[np.ndarray, "n dim"]) -> Float32[np.ndarray, "n dim"]:
    return normalize(from_numpy(embeds), dim=-1).numpy()

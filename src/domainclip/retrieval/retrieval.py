"""Finding the texts that fit an image and the images that fit a text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, Protocol, Self, TypeAlias, TypeVar, cast, overload

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from domainclip.data.images.given import GivenImage, GivenImages, GivenTexts, image_list, is_one_image, text_list
from domainclip.data.images.reader import ImageLike, rgb_of
from domainclip.errors import ConfigurationError, DataError, InputTypeError, ShapeError
from domainclip.retrieval.similarity_computer import SimilarityComputer, check_top_k
from domainclip.retrieval.store.search import SearchableStore

Key = TypeVar("Key", bound=str | int)

_TOP_K = 5
_LONGEST_NAME = 1000  # what is longer is no path
_IMAGES_PER_BATCH = 256  # decoded and held for one call of the encoder


Item = TypeVar("Item", bound="str | ImageLike")


class FileEncoder(Protocol):
    """Whatever embeds files, opened images and texts, one row each: a ``ModelSession``, an ``EmbeddingEngine``, a
    ``CLIPFinetuningController``. It reads a file as training does."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts.

        Args:
            texts: At least one.

        Returns:
            ``[texts, dim]``.
        """
        ...

    def encode_images(self, images: Sequence[ImageLike]) -> Tensor:
        """Embed images.

        Args:
            images: Paths, PIL images or arrays, mixed.

        Returns:
            ``[images, dim]``.
        """
        ...


class Encoder(Protocol):
    """Whatever embeds opened images and texts, one row each."""

    def encode_text(self, texts: list[str]) -> Tensor:
        """Embed texts.

        Args:
            texts: At least one.

        Returns:
            ``[texts, dim]``.
        """
        ...

    def encode_image(self, images: list[Image.Image]) -> Tensor:
        """Embed images.

        Args:
            images: Opened, in RGB.

        Returns:
            ``[images, dim]``.
        """
        ...


class RetrievalHit(tuple[Key, float], Generic[Key]):
    """One answer: ``(text, score)`` where texts were searched, ``(index, score)`` where images were.

    Args:
        index: The candidate's place in the list of candidates.
        item: The candidate itself.
        score: Its similarity to the query.
        key: What the tuple begins with; a text itself, an image's index, if left out.

    All three are attributes too.
    """

    index: int  # type: ignore[assignment]  # in place of the tuple's method
    item: str | ImageLike
    score: float

    def __new__(cls, index: int, item: str | ImageLike, score: float, key: str | int | None = None) -> Self:
        first = key if key is not None else item if isinstance(item, str) else index
        hit = super().__new__(cls, (first, score))  # type: ignore[arg-type]
        hit.__dict__.update(index=index, item=item, score=score)
        return hit

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an answer is not changed ({name})")

    def __reduce__(self) -> tuple:
        return type(self), (self.index, self.item, self.score, self[0])


TextHit: TypeAlias = RetrievalHit[str]
ImageHit: TypeAlias = RetrievalHit[int]


class MutualPair(tuple[int, int, float]):
    """``(image_index, text_index, score)`` of an image and a text that are each other's nearest neighbour.

    Args:
        image_index: The image's place in the list given.
        text_index: The text's place in the list given.
        image: The image.
        text: The text.
        score: Their similarity.

    All are attributes too.
    """

    image_index: int
    text_index: int
    image: ImageLike
    text: str
    score: float

    def __new__(cls, image_index: int, text_index: int, image: ImageLike, text: str, score: float) -> MutualPair:
        pair = super().__new__(cls, (image_index, text_index, score))
        pair.__dict__.update(image_index=image_index, text_index=text_index, image=image, text=text, score=score)
        return pair

    def __reduce__(self) -> tuple:
        return type(self), (self.image_index, self.text_index, self.image, self.text, self.score)


@dataclass(frozen=True)
class Gallery(Generic[Item]):
    """Images or texts with their embeddings: encoded once, however often they are searched.

    ``ImageTextRetrieval.embed_images`` and ``embed_texts`` make one; so does anybody who has embeddings already.

    Attributes:
        items: What hits name.
        embeddings: One row each.

    Raises:
        ShapeError: There are not as many embeddings as items.
    """

    items: Sequence[Item]
    embeddings: Float[Tensor, "items dim"]

    def __post_init__(self) -> None:
        _checked(self.embeddings, len(self.items), "the gallery", "items")

    def __len__(self) -> int:
        return len(self.items)


ImageGallery: TypeAlias = GivenImages | Gallery[ImageLike] | SearchableStore
"""What is searched for images."""


class ImageTextRetrieval:
    """Retrieval by any encoder.

    Images are given one or many, in any form that ``data.images.given`` takes; a path given as a string comes back as a
    ``Path``. Texts are given one or many.

    Args:
        controller: What embeds: a ``FileEncoder``, or anything with ``encode_text(list[str])`` and
            ``encode_image(list[PIL.Image])``, which is given files as opened RGB images.
        similarity_computer: How embeddings are compared; the cosine, if left out.

    Every list of answers is sorted, best first; equal scores keep the order of the candidates. ``top_k``, if left out,
    is five, or all candidates where there are fewer.

    Raises:
        InputTypeError: Something is neither an image nor a text.
        ConfigurationError: The controller has no methods to encode by.
    """

    def __init__(
        self, controller: FileEncoder | Encoder, similarity_computer: SimilarityComputer | None = None
    ) -> None:
        # Asked of the class: a stand-in of tests answers to every name.
        kind = type(controller)
        self._reads_files = hasattr(kind, "encode_images") and hasattr(kind, "encode_texts")
        if not self._reads_files and not (hasattr(controller, "encode_text") and hasattr(controller, "encode_image")):
            raise ConfigurationError(
                f"A {kind.__name__} cannot encode: give a ModelSession, a CLIPFinetuningController, or an object with "
                "encode_text(texts) and encode_image(images)"
            )
        if similarity_computer is not None and not isinstance(similarity_computer, SimilarityComputer):
            raise InputTypeError(f"Give a SimilarityComputer, not a {type(similarity_computer).__name__}")
        self.controller = controller
        self.similarity_computer = similarity_computer or SimilarityComputer()

    @overload
    def retrieve_text(  # type: ignore[overload-overlap]  # a string is a sequence of strings
        self, images: GivenImage, texts: GivenTexts | Gallery[str], top_k: int | None = None
    ) -> list[TextHit]: ...
    @overload
    def retrieve_text(
        self, images: Iterable[GivenImage], texts: GivenTexts | Gallery[str], top_k: int | None = None
    ) -> list[list[TextHit]]: ...
    def retrieve_text(
        self, images: GivenImages, texts: GivenTexts | Gallery[str], top_k: int | None = None
    ) -> list[TextHit] | list[list[TextHit]]:
        """Find the best texts of images.

        Args:
            images: One image, or many.
            texts: The candidates, or a gallery of them.
            top_k: How many for each image.

        Returns:
            ``(text, score)`` tuples, the best first: one list for an image, a list of lists for several.

        Raises:
            DataError: A list is empty, or an item of a wrong kind (then also a ``TypeError``).
            ImageError: An image cannot be read.
            ShapeError: "top_k must be in range": there are fewer texts; or a similarity is NaN.
        """
        single, queries = is_one_image(images), image_list(images)
        items = texts.items if isinstance(texts, Gallery) else text_list(texts)
        k = _top_k(top_k, len(items))  # before the work, not after
        gallery = texts if isinstance(texts, Gallery) else self.embed_texts(items)
        found = self._ranked(self._embed_images(queries), gallery.embeddings, k, "images")
        hits: list[list[TextHit]] = [
            [RetrievalHit(index, items[index], score) for index, score in row] for row in found
        ]
        return hits[0] if single else hits

    @overload
    def retrieve_image(  # type: ignore[overload-overlap]
        self, texts: str, images: ImageGallery, top_k: int | None = None
    ) -> list[ImageHit]: ...
    @overload
    def retrieve_image(
        self, texts: Iterable[str], images: ImageGallery, top_k: int | None = None
    ) -> list[list[ImageHit]]: ...
    def retrieve_image(
        self, texts: GivenTexts, images: ImageGallery, top_k: int | None = None
    ) -> list[ImageHit] | list[list[ImageHit]]:
        """Find the best images of texts.

        Args:
            texts: One text, or many.
            images: The candidates, a gallery of them, or what ``domainclip embed`` has written (a ``SearchableStore``).
            top_k: How many for each text.

        Returns:
            ``(index, score)`` tuples, the best first: one list for a text, a list of lists for several. ``item`` of
            each is the image; in a store ``index`` is its row among those with an embedding.

        Raises:
            ConfigurationError: Embeddings of a store are compared by something else than the cosine.
            DataError: A list is empty, or an item of a wrong kind (then also a ``TypeError``).
            ImageError: An image cannot be read.
            ShapeError: "top_k must be in range": there are fewer images; or a similarity is NaN.
        """
        queries = text_list(texts)
        if isinstance(images, SearchableStore):
            hits = self._in_store(queries, images, _top_k(top_k, len(images)))
            return hits[0] if isinstance(texts, str) else hits
        items = images.items if isinstance(images, Gallery) else image_list(images)
        k = _top_k(top_k, len(items))
        gallery = images if isinstance(images, Gallery) else self.embed_images(items)
        found = self._ranked(gallery.embeddings, self._embed_texts(queries), k, "texts")
        hits = [[RetrievalHit(index, items[index], score) for index, score in row] for row in found]
        return hits[0] if isinstance(texts, str) else hits

    def _in_store(self, queries: list[str], images: SearchableStore, k: int) -> list[list[ImageHit]]:
        if self.similarity_computer.metric != "cosine":
            raise ConfigurationError(
                f"A store of embeddings is searched by the cosine, not by {self.similarity_computer.metric}: leave "
                "similarity_computer out"
            )
        embeds = F.normalize(self._embed_texts(queries).float(), dim=-1)
        found = images.search(embeds.numpy(), k)
        return [[RetrievalHit(hit.index, Path(hit.row.path), hit.score) for hit in each.hits] for each in found]

    def embed_images(self, images: GivenImages) -> Gallery[ImageLike]:
        """Encode images that will be searched more than once.

        Args:
            images: One image, or many.

        Returns:
            What the other methods take in their place.

        Raises:
            DataError: There are no images, or one of a wrong kind (then also a ``TypeError``).
            ImageError: An image cannot be read.
        """
        items = image_list(images)
        return Gallery(items, self._embed_images(items))

    def embed_texts(self, texts: GivenTexts) -> Gallery[str]:
        """Encode texts that will be searched more than once.

        Args:
            texts: One text, or many.

        Returns:
            What the other methods take in their place.

        Raises:
            DataError: There are no texts, or one is no string (then also a ``TypeError``).
        """
        items = text_list(texts)
        return Gallery(items, self._embed_texts(items))

    def batch_retrieve(
        self, queries: GivenImages | GivenTexts, candidates: GivenImages | GivenTexts, top_k: int | None = None
    ) -> dict[int, list[RetrievalHit[int]]]:
        """Find the best candidates of many queries; every item is encoded once.

        Both sides are images or texts, also of one kind. A string is a text here: give an image's path as a ``Path``.

        Args:
            queries: Texts or images.
            candidates: Texts or images.
            top_k: How many for each query.

        Returns:
            For each query's index its answers as ``(candidate index, score)`` tuples, the best first.

        Raises:
            DataError: A list is empty, or an item of a wrong kind (then also a ``TypeError``); or strings are paths of
                files.
            ImageError: An image cannot be read.
            ShapeError: "top_k must be in range": there are fewer candidates; or a similarity is NaN.
        """
        asked, offered = _either(queries, "queries"), _either(candidates, "candidates")
        k = _top_k(top_k, len(offered.items))
        query_embeds, candidate_embeds = (
            self._embed_texts(side.texts) if side.texts else self._embed_images(side.images)
            for side in (asked, offered)
        )
        # A metric that learns tells images from texts: the order of its arguments matters.
        if asked.texts and not offered.texts:
            found = self._ranked(candidate_embeds, query_embeds, k, "texts")
        else:
            found = self._ranked(query_embeds, candidate_embeds, k, "images")
        return {
            number: [RetrievalHit(index, offered.items[index], score, index) for index, score in row]
            for number, row in enumerate(found)
        }

    def retrieve_mutual_nn(self, images: GivenImages, texts: GivenTexts) -> list[MutualPair]:
        """Pairs in which each is the other's nearest neighbour, the most similar first.

        Such pairs are likely to belong together even where nothing says so. Of equally near neighbours the one
        with the lower index counts, so each image and each text is in one pair at most.

        Args:
            images: At least one.
            texts: At least one.

        Returns:
            The pairs with their similarities.

        Raises:
            DataError: A list is empty, or an item of a wrong kind (then also a ``TypeError``).
            ImageError: An image cannot be read.
            ShapeError: A similarity is NaN.
        """
        shown, captions = image_list(images), text_list(texts)
        image_embeds, text_embeds = self._embed_images(shown), self._embed_texts(captions)
        nearest_text = [row[0] for row in self._ranked(image_embeds, text_embeds, 1, "images")]
        nearest_image = [row[0][0] for row in self._ranked(image_embeds, text_embeds, 1, "texts")]
        pairs = [
            MutualPair(image, text, shown[image], captions[text], score)
            for image, (text, score) in enumerate(nearest_text)
            if nearest_image[text] == image
        ]
        return sorted(pairs, key=lambda pair: -pair.score)

    def _ranked(
        self, image_embeds: Tensor, text_embeds: Tensor, top_k: int, queries: Literal["images", "texts"]
    ) -> list[list[tuple[int, float]]]:
        scores, indices = self.similarity_computer.nearest(image_embeds, text_embeds, top_k, queries)
        return [list(zip(*row, strict=True)) for row in zip(indices.tolist(), scores.tolist(), strict=True)]

    def _embed_images(self, image_list: Sequence[ImageLike]) -> Tensor:
        rows = []
        for start in range(0, len(image_list), _IMAGES_PER_BATCH):
            part = image_list[start : start + _IMAGES_PER_BATCH]
            if self._reads_files:
                embeds = cast(FileEncoder, self.controller).encode_images(part)
            else:
                embeds = cast(Encoder, self.controller).encode_image([_opened(image) for image in part])
            rows.append(_checked(embeds, len(part), "encode_image", "images"))
        return torch.cat(rows)

    def _embed_texts(self, texts: list[str]) -> Tensor:
        if self._reads_files:
            embeds = cast(FileEncoder, self.controller).encode_texts(texts)
        else:
            embeds = cast(Encoder, self.controller).encode_text(texts)
        return _checked(embeds, len(texts), "encode_text", "texts")


def _opened(image: ImageLike) -> Image.Image:
    return image if isinstance(image, Image.Image) else Image.fromarray(rgb_of(image))


def _checked(embeds: Tensor, expected: int, method: str, what: str) -> Tensor:
    if embeds.ndim != 2 or len(embeds) != expected:
        raise ShapeError(
            f"Expected 2D embeddings of {expected} {what} from {method}, one row each, got shape {tuple(embeds.shape)}"
        )
    return embeds


def _top_k(top_k: int | None, n_candidates: int) -> int:
    if top_k is None:
        return min(_TOP_K, n_candidates)
    check_top_k(top_k, n_candidates)
    return int(top_k)


@dataclass(frozen=True)
class _Either:
    """One side of a batch: texts or images, the other empty."""

    texts: list[str]
    images: list[ImageLike]

    @property
    def items(self) -> Sequence[str] | Sequence[ImageLike]:
        return self.texts or self.images


def _either(given: GivenImages | GivenTexts, which: str) -> _Either:
    items = [given] if is_one_image(given) else list(given) if isinstance(given, Iterable) else given
    if not isinstance(items, list) or not any(isinstance(item, str) for item in items):
        return _Either([], image_list(items))  # type: ignore[arg-type]
    texts = text_list(items)
    if all(len(text) < _LONGEST_NAME and Path(text).is_file() for text in texts):
        raise DataError(
            f"The {which} are strings that name files, such as {texts[0]!r}: batch_retrieve takes strings for texts. "
            "Give images as pathlib.Path"
        )
    return _Either(texts, [])

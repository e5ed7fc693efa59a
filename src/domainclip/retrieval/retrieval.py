"""Finding the texts that fit an image and the images that fit a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar, overload, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from domainclip.data.images.reader import ImageLike, rgb_of
from domainclip.errors import DataError, ShapeError
from domainclip.retrieval.similarity_computer import SimilarityComputer, check_top_k

Item = TypeVar("Item", str, ImageLike)

_IMAGES_PER_BATCH = 256  # decoded and held for one call of the encoder


@runtime_checkable
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


@dataclass(frozen=True)
class RetrievalHit(Generic[Item]):
    """One answer: its place in the list of candidates, the candidate itself, and its similarity to the query."""

    index: int
    item: Item
    score: float


@dataclass(frozen=True)
class MutualPair:
    """An image and a text that are each other's nearest neighbour, with their places in the lists given."""

    image_index: int
    text_index: int
    image: ImageLike
    text: str
    score: float


@dataclass(frozen=True)
class BatchRetrieval:
    """Both directions: the best texts of each image, and the best images of each text, best first."""

    texts_per_image: list[list[RetrievalHit[str]]]
    images_per_text: list[list[RetrievalHit[ImageLike]]]


class ImageTextRetrieval:
    """Retrieval by any encoder.

    Images are PIL images, paths or arrays; a path given as a string comes back as a ``Path``, so that images and texts
    stay distinguishable.

    Args:
        controller: What embeds: a ``FileEncoder``, or anything with ``encode_text(list[str])`` and
            ``encode_image(list[PIL.Image])``, which is given files as opened RGB images.
        similarity_computer: How embeddings are compared; the cosine, if left out.

    Every list of answers is sorted, best first; equal scores keep the order of the candidates.
    """

    def __init__(
        self, controller: FileEncoder | Encoder, similarity_computer: SimilarityComputer | None = None
    ) -> None:
        self.controller = controller
        self.similarity_computer = similarity_computer or SimilarityComputer()

    @overload
    def retrieve_text(  # type: ignore[overload-overlap]  # a string is a sequence of strings
        self, images: ImageLike, texts: Sequence[str], top_k: int = 5
    ) -> list[RetrievalHit[str]]: ...
    @overload
    def retrieve_text(
        self, images: Sequence[ImageLike], texts: Sequence[str], top_k: int = 5
    ) -> list[list[RetrievalHit[str]]]: ...
    def retrieve_text(
        self, images: ImageLike | Sequence[ImageLike], texts: Sequence[str], top_k: int = 5
    ) -> list[RetrievalHit[str]] | list[list[RetrievalHit[str]]]:
        """Find the best texts of images.

        Args:
            images: One image, or a list of them.
            texts: The candidates.
            top_k: How many for each image.

        Returns:
            One list for an image, a list of lists for several, the best first.

        Raises:
            DataError: A list is empty, or an item of a wrong kind.
            ImageError: An image cannot be read.
            ShapeError: "top_k must be in range": there are fewer texts; or a similarity is NaN.
        """
        single = isinstance(images, Image.Image | Path | str | np.ndarray)
        image_list = _images([images] if isinstance(images, Image.Image | Path | str | np.ndarray) else images)
        candidates = _texts(texts)
        check_top_k(top_k, len(candidates))  # before the work, not after
        found = self._ranked(self._embed_images(image_list), self._embed_texts(candidates), candidates, top_k, "images")
        return found[0] if single else found

    @overload
    def retrieve_image(  # type: ignore[overload-overlap]
        self, texts: str, images: Sequence[ImageLike], top_k: int = 5
    ) -> list[RetrievalHit[ImageLike]]: ...
    @overload
    def retrieve_image(
        self, texts: Sequence[str], images: Sequence[ImageLike], top_k: int = 5
    ) -> list[list[RetrievalHit[ImageLike]]]: ...
    def retrieve_image(
        self, texts: str | Sequence[str], images: Sequence[ImageLike], top_k: int = 5
    ) -> list[RetrievalHit[ImageLike]] | list[list[RetrievalHit[ImageLike]]]:
        """Find the best images of texts.

        Args:
            texts: One text, or a list of them.
            images: The candidates.
            top_k: How many for each text.

        Returns:
            One list for a text, a list of lists for several, the best first.

        Raises:
            DataError: A list is empty, or an item of a wrong kind.
            ImageError: An image cannot be read.
            ShapeError: "top_k must be in range": there are fewer images; or a similarity is NaN.
        """
        single = isinstance(texts, str)
        queries, candidates = _texts([texts] if isinstance(texts, str) else texts), _images(images)
        check_top_k(top_k, len(candidates))
        found = self._ranked(self._embed_images(candidates), self._embed_texts(queries), candidates, top_k, "texts")
        return found[0] if single else found

    def batch_retrieve(self, images: Sequence[ImageLike], texts: Sequence[str], top_k: int = 5) -> BatchRetrieval:
        """Both directions at once; every image and every text is encoded once.

        Args:
            images: Queries and candidates.
            texts: Queries and candidates.
            top_k: At most the number of images and of texts.

        Returns:
            The best texts of each image and the best images of each text.

        Raises:
            DataError: A list is empty, or an item of a wrong kind.
            ImageError: An image cannot be read.
            ShapeError: "top_k must be in range": one side has fewer; or a similarity is NaN.
        """
        image_list, captions = _images(images), _texts(texts)
        check_top_k(top_k, min(len(image_list), len(captions)))
        image_embeds, text_embeds = self._embed_images(image_list), self._embed_texts(captions)
        return BatchRetrieval(
            self._ranked(image_embeds, text_embeds, captions, top_k, "images"),
            self._ranked(image_embeds, text_embeds, image_list, top_k, "texts"),
        )

    def retrieve_mutual_nn(self, images: Sequence[ImageLike], texts: Sequence[str]) -> list[MutualPair]:
        """Pairs in which each is the other's nearest neighbour, the most similar first.

        Such pairs are likely to belong together even where nothing says so. Of equally near neighbours the one
        with the lower index counts, so each image and each text is in one pair at most.

        Args:
            images: At least one.
            texts: At least one.

        Returns:
            The pairs with their similarities.

        Raises:
            DataError: A list is empty, or an item of a wrong kind.
            ImageError: An image cannot be read.
            ShapeError: A similarity is NaN.
        """
        image_list, captions = _images(images), _texts(texts)
        image_embeds, text_embeds = self._embed_images(image_list), self._embed_texts(captions)
        top_k = self.similarity_computer.top_k
        scores, nearest_text = (side[:, 0].tolist() for side in top_k(image_embeds, text_embeds, 1))
        nearest_image = top_k(image_embeds, text_embeds, 1, queries="texts")[1][:, 0].tolist()
        pairs = [
            MutualPair(image, text, image_list[image], captions[text], scores[image])
            for image, text in enumerate(nearest_text)
            if nearest_image[text] == image
        ]
        return sorted(pairs, key=lambda pair: -pair.score)

    def _ranked(
        self,
        image_embeds: Tensor,
        text_embeds: Tensor,
        candidates: Sequence[Item],
        top_k: int,
        queries: Literal["images", "texts"],
    ) -> list[list[RetrievalHit[Item]]]:
        scores, indices = self.similarity_computer.top_k(image_embeds, text_embeds, top_k, queries)
        return [
            [RetrievalHit(index, candidates[index], score) for index, score in zip(places, values, strict=True)]
            for places, values in zip(indices.tolist(), scores.tolist(), strict=True)
        ]

    def _embed_images(self, image_list: Sequence[ImageLike]) -> Tensor:
        rows = []
        for start in range(0, len(image_list), _IMAGES_PER_BATCH):
            part = image_list[start : start + _IMAGES_PER_BATCH]
            if isinstance(self.controller, FileEncoder):
                embeds = self.controller.encode_images(part)
            else:
                embeds = self.controller.encode_image([_opened(image) for image in part])
            rows.append(_checked(embeds, len(part), "encode_image", "images"))
        return torch.cat(rows)

    def _embed_texts(self, texts: list[str]) -> Tensor:
        encoder = self.controller
        embeds = encoder.encode_texts(texts) if isinstance(encoder, FileEncoder) else encoder.encode_text(texts)
        return _checked(embeds, len(texts), "encode_text", "texts")


def _opened(image: ImageLike) -> Image.Image:
    return image if isinstance(image, Image.Image) else Image.fromarray(rgb_of(image))


def _checked(embeds: Tensor, expected: int, method: str, what: str) -> Tensor:
    if embeds.ndim != 2 or len(embeds) != expected:
        raise ShapeError(
            f"Expected 2D embeddings of {expected} {what} from {method}, one row each, got shape {tuple(embeds.shape)}"
        )
    return embeds


def _images(images: Sequence[ImageLike]) -> list[ImageLike]:
    if isinstance(images, Image.Image | Path | str | np.ndarray):
        raise DataError(f"Expected a list of images, got one: pass [{images!r}]")
    if not len(images):
        raise DataError("No images given: retrieval needs at least one")
    for index, image in enumerate(images):
        if not isinstance(image, Image.Image | Path | str | np.ndarray):
            raise DataError(f"Image {index} is a {type(image).__name__}: give PIL images, paths or arrays")
    return [Path(image) if isinstance(image, str) else image for image in images]


def _texts(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise DataError(f"Expected a list of texts, got one: pass [{texts!r}]")
    if not len(texts):
        raise DataError("No texts given: retrieval needs at least one")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"Text {index} is a {type(text).__name__}, not a string: {text!r}")
    return list(texts)

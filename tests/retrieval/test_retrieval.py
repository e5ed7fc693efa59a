"""Retrieval with an encoder whose embeddings are known."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from domainclip.data.images.reader import ImageLike
from domainclip.errors import DataError, ImageError, ShapeError
from domainclip.retrieval import retrieval
from domainclip.retrieval.retrieval import ImageTextRetrieval, RetrievalHit
from domainclip.retrieval.similarity_computer import SimilarityComputer

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "purple": (200, 0, 255), "grey": (9, 9, 9)}


class ColourEncoder:
    """An image is its mean colour and a text the colour it names, so what is near is known."""

    def __init__(self) -> None:
        self.images = self.texts = self.largest = 0

    def encode_text(self, texts: list[str]) -> Tensor:
        self.texts += len(texts)
        return torch.tensor([COLOURS[text] for text in texts], dtype=torch.float32)

    def encode_image(self, images: list[Image.Image]) -> Tensor:
        assert all(isinstance(image, Image.Image) for image in images)
        self.images += len(images)
        self.sizes = [image.size for image in images]
        self.largest = max(self.largest, len(images))
        return torch.tensor([image.convert("RGB").resize((1, 1)).getpixel((0, 0)) for image in images]).float()


@pytest.fixture
def by_colour() -> dict[str, Image.Image]:
    return {name: Image.new("RGB", (8, 8), colour) for name, colour in COLOURS.items()}


def search() -> ImageTextRetrieval:
    return ImageTextRetrieval(ColourEncoder())


def test_best_texts_of_an_image(by_colour: dict[str, Image.Image]) -> None:
    texts = ["green", "red", "blue"]
    hits = search().retrieve_text(by_colour["purple"], texts, top_k=3)
    assert [hit.item for hit in hits] == ["blue", "red", "green"]
    assert [hit.index for hit in hits] == [2, 1, 0]
    length = (200**2 + 255**2) ** 0.5
    assert [hit.score for hit in hits] == pytest.approx([255 / length, 200 / length, 0], abs=1e-6)
    both = search().retrieve_text([by_colour["red"], by_colour["purple"]], texts, top_k=2)
    assert [[hit.item for hit in row] for row in both] == [["red", "green"], ["blue", "red"]]
    assert both[1] == hits[:2]


def test_best_images_of_a_text(by_colour: dict[str, Image.Image]) -> None:
    candidates = [by_colour[name] for name in ("green", "purple", "blue")]
    hits = search().retrieve_image("blue", candidates, top_k=2)
    assert [hit.index for hit in hits] == [2, 1]
    assert hits[0].item is candidates[2]
    rows = search().retrieve_image(["blue", "green"], candidates, top_k=1)
    assert [[hit.index for hit in row] for row in rows] == [[2], [0]]


def test_equal_candidates_keep_their_order(by_colour: dict[str, Image.Image]) -> None:
    hits = search().retrieve_text(by_colour["red"], ["blue", "red", "red", "red"], top_k=3)
    assert [hit.index for hit in hits] == [1, 2, 3]
    with pytest.raises(AttributeError):
        hits[0].score = 2.0


def test_answers_are_tuples_that_know_more(by_colour: dict[str, Image.Image]) -> None:
    candidates = [by_colour["green"], by_colour["blue"]]
    [(text, score)] = search().retrieve_text(by_colour["blue"], ["red", "blue"], top_k=1)
    assert (text, score) == ("blue", pytest.approx(1.0))
    [(index, score)] = search().retrieve_image("blue", candidates, top_k=1)
    assert (index, score) == (1, pytest.approx(1.0))
    hit = search().retrieve_image("blue", candidates, top_k=1)[0]
    assert isinstance(hit, tuple) and len(hit) == 2
    assert (hit.index, hit.item, hit.score) == (1, candidates[1], hit[1])
    again = pickle.loads(pickle.dumps(RetrievalHit(2, "a text", 0.5)))
    assert (again, again.index, again.item) == (("a text", 0.5), 2, "a text")


def test_a_batch_of_either_kind_encodes_each_item_once(by_colour: dict[str, Image.Image]) -> None:
    encoder = ColourEncoder()
    images, texts = list(by_colour.values()), ["blue", "red", "grey", "green"]
    finder = ImageTextRetrieval(encoder)
    found = finder.batch_retrieve(images, texts, top_k=2)
    assert (encoder.images, encoder.texts) == (5, 4)
    expected = search().retrieve_text(images, texts, top_k=2)
    assert found == {number: [(hit.index, hit.score) for hit in row] for number, row in enumerate(expected)}
    assert [hit.item for hit in found[0]] == [hit.item for hit in expected[0]]
    assert finder.batch_retrieve(texts, images, top_k=2) == dict(
        enumerate(search().retrieve_image(texts, images, top_k=2))
    )
    assert [row[0][0] for row in finder.batch_retrieve(texts, ["red", "green", "blue"]).values()] == [2, 0, 0, 1]
    assert finder.batch_retrieve(by_colour["red"], images[::-1], top_k=1) == {0: [(4, pytest.approx(1.0))]}
    with pytest.raises(ShapeError, match="top_k must be in range 1…4"):
        search().batch_retrieve(images, texts, top_k=5)


def test_strings_that_name_images_are_not_taken_for_texts(tmp_path: Path, by_colour: dict[str, Image.Image]) -> None:
    by_colour["red"].save(tmp_path / "red.png")
    with pytest.raises(DataError, match=r"Give images as pathlib\.Path"):
        search().batch_retrieve([str(tmp_path / "red.png")], ["red", "blue"])


def test_mutual_nearest_neighbours(by_colour: dict[str, Image.Image]) -> None:
    images = [by_colour[name] for name in ("purple", "green", "blue")]
    pairs = search().retrieve_mutual_nn(images, ["red", "blue", "green"])
    # Purple's nearest text is blue, whose own nearest image is the blue one; red's nearest is purple.
    assert {(pair.image_index, pair.text_index) for pair in pairs} == {(1, 2), (2, 1)}
    assert [pair.text for pair in pairs] == ["green", "blue"]
    assert pairs[0].image is images[1]
    assert [pair.score for pair in pairs] == pytest.approx([1.0, 1.0])


def test_mutual_neighbours_equal_a_loop_over_the_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(40, 6, generator=generator), torch.randn(30, 6, generator=generator)

    class Given:
        def encode_text(self, _: list[str]) -> Tensor:
            return texts

        def encode_image(self, _: list[Image.Image]) -> Tensor:
            return images

    matrix = torch.nn.functional.cosine_similarity(images.double()[:, None], texts.double()[None], dim=-1)
    expected = sorted(
        (
            (image, text)
            for image in range(40)
            for text in range(30)
            if matrix[image, text] == matrix[image].max() == matrix[:, text].max()
        ),
        key=lambda place: -matrix[place],
    )
    pairs = ImageTextRetrieval(Given()).retrieve_mutual_nn([Image.new("L", (1, 1))] * 40, ["x"] * 30)
    assert [(pair.image_index, pair.text_index) for pair in pairs] == expected
    assert len(expected) > 3


def test_paths_are_read_upright_and_in_parts(
    tmp_path: Path, by_colour: dict[str, Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "_IMAGES_PER_BATCH", 2)
    for name in ("red", "green", "blue"):
        by_colour[name].save(tmp_path / f"{name}.png")
    encoder = ColourEncoder()
    hits = ImageTextRetrieval(encoder).retrieve_image(
        "green", [str(tmp_path / "red.png"), tmp_path / "green.png", by_colour["blue"]], top_k=3
    )
    assert (encoder.images, encoder.largest) == (3, 2)
    assert hits[0] == RetrievalHit(1, tmp_path / "green.png", pytest.approx(1.0))
    assert {type(hit.item) for hit in hits} == {type(tmp_path), Image.Image}  # a string path came back as a path
    text = search().retrieve_text(str(tmp_path / "blue.png"), ["red", "blue"], top_k=1)
    assert text[0].item == "blue"

    turned = Image.new("RGB", (8, 4), "red")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    encoder = ColourEncoder()
    ImageTextRetrieval(encoder).retrieve_text(tmp_path / "turned.jpg", ["red"], top_k=1)
    assert encoder.sizes == [(4, 8)]


def test_the_computer_given_is_used(by_colour: dict[str, Image.Image]) -> None:
    bright = ImageTextRetrieval(ColourEncoder(), SimilarityComputer("dot", normalize=False))
    hits = bright.retrieve_text(by_colour["purple"], ["purple", "blue"], top_k=2)
    assert [hit.score for hit in hits] == [200**2 + 255**2, 255**2]


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 20)
    for name, message in (("gone.png", "no such file"), ("broken.png", "not an image")):
        with pytest.raises(ImageError, match=f"{name}: {message}"):
            search().retrieve_text(tmp_path / name, ["red"], top_k=1)


def test_wrong_arguments_are_refused_before_any_encoding(by_colour: dict[str, Image.Image]) -> None:
    encoder = ColourEncoder()
    finder = ImageTextRetrieval(encoder)
    image = by_colour["red"]
    assert len(search().retrieve_text(image, ["red", "blue"])) == 2  # five, or as many as there are
    for call in (
        lambda: finder.retrieve_text(image, ["red", "blue"], top_k=3),
        lambda: finder.retrieve_image("red", [image], top_k=2),
        lambda: finder.retrieve_text(image, ["red"], top_k=0),
    ):
        with pytest.raises(ValueError, match="top_k must be in range"):
            call()
    for call, message in (
        (lambda: finder.retrieve_text([], ["red"], top_k=1), "No images"),
        (lambda: finder.retrieve_text(image, [], top_k=1), "No texts"),
        (lambda: finder.retrieve_mutual_nn([], ["red"]), "No images"),
        (lambda: finder.retrieve_image([], [image], top_k=1), "No texts"),
        (lambda: finder.retrieve_text(image, ["red", None], top_k=1), "Text 1 is None"),
        (lambda: finder.retrieve_image("red", [image, 3], top_k=1), "Image 1 is an int"),
    ):
        with pytest.raises(DataError, match=message):
            call()
    assert (encoder.images, encoder.texts) == (0, 0)


def test_an_encoder_that_loses_rows_is_caught(by_colour: dict[str, Image.Image]) -> None:
    class Short(ColourEncoder):
        def encode_text(self, texts: list[str]) -> Tensor:
            return super().encode_text(texts)[:-1]

    with pytest.raises(ShapeError, match="2 texts from encode_text"):
        ImageTextRetrieval(Short()).retrieve_text(by_colour["red"], ["red", "blue"], top_k=1)


def test_an_encoder_that_reads_files_is_given_them_as_they_are(tmp_path: Path) -> None:
    class Reader:
        def encode_texts(self, texts: Sequence[str]) -> Tensor:
            return torch.eye(2)[: len(texts)]

        def encode_images(self, images: Sequence[ImageLike]) -> Tensor:
            self.given = list(images)
            return torch.eye(2)[: len(images)]

    reader = Reader()
    array = np.zeros((4, 4), np.uint16)
    ImageTextRetrieval(reader).retrieve_image("one", [str(tmp_path / "scan.dcm"), array], top_k=2)
    assert reader.given[0] == tmp_path / "scan.dcm"
    assert reader.given[1] is array

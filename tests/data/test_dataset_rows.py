"""What a data set takes: rows that are checked, and transforms of any kind."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from batch_cases import training_loader
from domainclip.config import CLIPFinetuningConfig
from domainclip.data import CLIPDataset, MultiCaptionCLIPDataset, TextTransform, create_dataloader
from domainclip.errors import CLIPFinetuningError, DataError, ImageError, MissingFileError, ShapeError
from domainclip.models.processor import EncoderProcessor
from tiny_data import TinyData


def config(**keys: Any) -> CLIPFinetuningConfig:
    return CLIPFinetuningConfig(**{"num_workers": 0, "image_cache_mb": 16, **keys})


def test_rows_that_cannot_be_used_are_skipped_and_counted(
    tiny_data: TinyData, processor: EncoderProcessor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = tiny_data.pairs()[0]
    rows = [(tmp_path / "gone.png", "a caption"), good, (str(good.image_path), "  ")]
    with caplog.at_level(logging.WARNING):
        data = CLIPDataset(rows, processor, config())
    assert len(data) == 1 and data[0]["caption"] == good.caption
    assert [(row.where, row.kind) for row in data.skipped] == [("row 0", "missing image"), ("row 2", "empty caption")]
    assert "2 of 3 rows are skipped" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"row 0: .*gone\.png is not there"):
        CLIPDataset(rows, processor, config(strict=True))
    for none in ([], rows[:1]):
        with pytest.raises(ValueError, match=r"^No valid image-text pairs"):
            CLIPDataset(none, processor, config())
    many = MultiCaptionCLIPDataset({tmp_path / "gone.png": ["x"], good.image_path: ["y", "z"]}, processor, config())
    assert {many[(epoch, 0)]["caption"] for epoch in range(20)} == {"y", "z"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a.png",)], "Row 0 is"),
        ([("a.png", "x", "y")], "Row 0 is"),
        (["a.png"], r"Row 0 is 'a\.png'"),
        ([None], "Row 0 is None"),
        ([(3, "a caption")], "the image is a int"),
        ([("a.png", None)], "the caption is a NoneType"),
        ([("a.png", 3)], "the caption is a int"),
        ([(Image.new("RGB", (4, 4)), "a caption")], "not a path"),
        ("data.csv", "pairs is a str"),
        (None, "pairs is a NoneType"),
        ({"a.png": "x"}, "pairs is a dict"),
    ],
)
def test_rows_that_are_no_pairs_are_named(rows: Any, message: str, processor: EncoderProcessor) -> None:
    with pytest.raises(TypeError, match=message) as raised:
        CLIPDataset(rows, processor, config())
    assert isinstance(raised.value, DataError)


def test_what_is_no_processor_config_or_transform(tiny_data: TinyData, processor: EncoderProcessor) -> None:
    pairs = tiny_data.pairs()
    with pytest.raises(RuntimeError, match=r"Model not initialized.*setup"):
        CLIPDataset(pairs, None, config())
    for arguments in (
        (object(), config()),
        (processor, {}),
        (processor, config(), "resize"),
        (processor, config(), None, 3),
    ):
        with pytest.raises(TypeError) as raised:
            CLIPDataset(pairs, *arguments)
        assert isinstance(raised.value, CLIPFinetuningError)


# --- transforms ---


def half_size(image: Image.Image) -> Tensor:
    """As torchvision's Resize, ToTensor and Normalize do."""
    assert image.mode == "RGB"
    values = torch.from_numpy(np.asarray(image.resize((32, 32))).copy()).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    return (values - mean[:, None, None]) / std[:, None, None]


def test_any_callable_is_an_image_transform(tiny_data: TinyData, processor: EncoderProcessor) -> None:
    pairs = tiny_data.pairs()
    data = CLIPDataset(pairs, processor, config(), image_transform=half_size)
    expected = half_size(Image.open(pairs[0].image_path).convert("RGB"))
    assert torch.allclose(data[0]["pixel_values"], expected, atol=0.05)  # two JPEG decoders
    lossless = next(row for row, pair in enumerate(pairs) if pair.image_path.suffix == ".png")
    exact = half_size(Image.open(pairs[lossless].image_path).convert("RGB"))
    assert torch.equal(data[lossless]["pixel_values"], exact)
    # What is trained on are bytes, which lose nothing of an image that was normalised as the model wants it.
    assert torch.allclose(data.image_transform.spec.normalise(data.pixels(lossless)[None])[0], exact, atol=1e-5)
    assert next(iter(create_dataloader(data, config(), batch_size=4)))["pixel_values"].shape == (4, 3, 32, 32)
    assert next(iter(training_loader(data, config(num_epochs=1), 4)))["pixels"].shape == (4, 3, 32, 32)
    anything = CLIPDataset(pairs, processor, config(), image_transform=lambda image: torch.ones(3, 7, 9))
    assert torch.equal(anything[0]["pixel_values"], torch.ones(3, 7, 9))


@pytest.mark.parametrize(
    ("transform", "error", "message"),
    [
        (lambda image: image, TypeError, "made a Image of .* must return a tensor"),
        (lambda image: None, TypeError, "made a NoneType"),
        (lambda image: torch.ones(3, 7, 9), ShapeError, r"shape \(3, 7, 9\).*trained on \(3, 32, 32\)"),
        (lambda image: torch.full((3, 32, 32), 255.0), ImageError, "normalise with"),
    ],
)
def test_a_transform_that_cannot_be_trained_on(
    transform: Any, error: type[Exception], message: str, tiny_data: TinyData, processor: EncoderProcessor
) -> None:
    data = CLIPDataset(tiny_data.pairs(), processor, config(), image_transform=transform)
    with pytest.raises(error, match=message):
        data.pixels(0)


def test_a_text_transform_may_tokenize(tiny_data: TinyData, processor: EncoderProcessor) -> None:
    pairs, recipe = tiny_data.pairs(), config()
    transform = TextTransform(processor, recipe)
    one = transform("a  photo of a cat")
    plain = processor.tokenizer("a photo of a cat")["input_ids"]
    assert {name: tuple(side.shape) for name, side in one.items()} == {"input_ids": (77,), "attention_mask": (77,)}
    assert one["input_ids"][: len(plain)].tolist() == plain and int(one["attention_mask"].sum()) == len(plain)
    assert transform(["one", "another text"])["input_ids"].shape == (2, 77)
    assert TextTransform(processor, config(max_sequence_length=9))("a word " * 30)["input_ids"].shape == (9,)
    usual, tokenized = CLIPDataset(pairs, processor, recipe), CLIPDataset(pairs, processor, recipe, None, transform)
    for row in range(len(pairs)):
        assert torch.equal(usual[row]["input_ids"], tokenized[row]["input_ids"])
        assert usual[row]["caption"] == tokenized[row]["caption"]
    assert torch.equal(usual.group_ids, tokenized.group_ids)
    for bad, error in ((lambda text: 3, TypeError), (lambda text: {"ids": 3}, DataError)):
        with pytest.raises(error):
            CLIPDataset(pairs, processor, recipe, text_transform=bad)
    for text in (None, 3, [], ["a", 3], b"bytes"):
        with pytest.raises(DataError):
            transform(text)


def test_missing_files_are_file_not_found_errors(tmp_path: Path) -> None:
    from domainclip.data import DatasetLoader
    from domainclip.data.images.reader import read_image

    gone = tmp_path / "gone"
    for call in (
        lambda: DatasetLoader.from_csv(gone),
        lambda: DatasetLoader.from_json(str(gone)),
        lambda: DatasetLoader.from_directory(gone),
        lambda: DatasetLoader.load(gone),
        lambda: read_image(gone),
        lambda: CLIPFinetuningConfig.from_yaml(tmp_path / "gone.yaml"),
    ):
        with pytest.raises(FileNotFoundError, match="gone") as raised:
            call()
        assert isinstance(raised.value, CLIPFinetuningError) and isinstance(raised.value, ValueError)
    assert issubclass(MissingFileError, DataError)

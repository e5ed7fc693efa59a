"""A file has one embedding, whichever way it comes: as a path, opened by Pillow, as an array, in training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from domain_image_cases import write_dicom
from domainclip import CLIPFinetuningConfig
from domainclip.data.dataset import CLIPDataset
from domainclip.data.images.reader import read_array, rgb_of
from domainclip.data.records import ImageTextPair
from domainclip.errors import ImageError
from domainclip.inference import EmbeddingEngine
from domainclip.models import DualEncoder, make_tiny_clip
from domainclip.retrieval import ImageTextRetrieval

COLOURS = np.random.default_rng(3).integers(0, 256, (40, 52, 3), dtype=np.uint8)
DEEP = (np.random.default_rng(4).random((40, 52)) * 60_000).astype(np.uint16)


def turned(path: Path, image: Image.Image) -> None:
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)


def deep_turned(path: Path) -> None:
    tifffile.imwrite(path, DEEP, extratags=[(274, 3, 1, 8, True)])


OPENED: dict[str, Callable[[Path], object]] = {
    "plain.png": lambda path: Image.fromarray(COLOURS).save(path),
    "grey.png": lambda path: Image.fromarray(COLOURS[..., 0]).save(path),
    "palette.png": lambda path: Image.fromarray(COLOURS).quantize(32).save(path),
    "transparent.png": lambda path: Image.fromarray(np.dstack([COLOURS, COLOURS[..., 0]]), "RGBA").save(path),
    "deep.png": lambda path: Image.fromarray(DEEP).save(path),
    "turned.jpg": lambda path: turned(path, Image.fromarray(COLOURS)),
    "plain.jpg": lambda path: Image.fromarray(COLOURS).save(path),
    "turned.png": lambda path: turned(path, Image.fromarray(COLOURS)),
    "deep.tif": lambda path: Image.fromarray(DEEP).save(path),
    "float.tif": lambda path: Image.fromarray(DEEP.astype(np.float32) / 7).save(path),
}
"""Formats that Pillow holds as they are."""
READ: dict[str, Callable[[Path], object]] = {
    "deep_turned.tif": deep_turned,  # which Pillow 13 does not turn where it maps the file into memory
    "scan.dcm": lambda path: write_dicom(path, DEEP, WindowCenter=30_000, WindowWidth=20_000),
    "colour16.tif": lambda path: tifffile.imwrite(path, COLOURS.astype(np.uint16) * 200, photometric="rgb"),
    "stack.tif": lambda path: tifffile.imwrite(path, np.stack([DEEP, DEEP[::-1]]), metadata={"axes": "ZYX"}),
}
"""Formats that only the reader reads as they are meant."""


@pytest.fixture(scope="module")
def encoder() -> DualEncoder:
    return make_tiny_clip()


@pytest.mark.parametrize("name", [*OPENED, *READ])
def test_one_embedding(tmp_path: Path, encoder: DualEncoder, name: str) -> None:
    path = tmp_path / name
    (OPENED | READ)[name](path)
    config = CLIPFinetuningConfig(num_workers=0)
    engine = EmbeddingEngine(encoder)
    embedding = engine.encode_images([path])
    assert torch.equal(engine.encode_images([str(path)]), embedding)
    assert torch.equal(engine.encode_images([read_array(path)]), embedding)
    trained = CLIPDataset([ImageTextPair(path, "x")], encoder.processor, config).pixels(0)
    assert torch.equal(engine.pixels([path])[0], trained)
    if name in OPENED:
        with Image.open(path) as opened:
            # libjpeg-turbo and Pillow's own libjpeg may differ by a level.
            tolerance = 2e-3 if name.endswith("jpg") else 0
            assert torch.allclose(engine.encode_images([opened]), embedding, rtol=0, atol=tolerance)
    other = tmp_path / "other.png"
    Image.fromarray(255 - COLOURS).save(other)
    texts = ["a sky", "a brick"]
    hits = ImageTextRetrieval(engine).retrieve_image(texts[0], [str(path), other], top_k=2)
    want = engine.encode_images([path, other]) @ engine.encode_texts(texts[:1])[0]
    assert [hit.score for hit in sorted(hits, key=lambda hit: hit.index)] == pytest.approx(want.tolist(), abs=1e-6)


def test_a_turned_image_is_turned_once(tmp_path: Path, encoder: DualEncoder) -> None:
    path = tmp_path / "turned.png"
    turned(path, Image.fromarray(COLOURS))
    with Image.open(path) as opened:
        assert rgb_of(opened).shape == (52, 40, 3)
        assert np.array_equal(rgb_of(opened), rgb_of(path))
    assert np.array_equal(rgb_of(path), np.rot90(COLOURS, -1))


def test_what_is_no_image_is_an_error(encoder: DualEncoder) -> None:
    with pytest.raises(ImageError, match="not the shape"):
        EmbeddingEngine(encoder).encode_images([np.zeros((2, 3, 4, 5), np.uint8)])

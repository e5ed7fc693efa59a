"""Requests of a load test are as the interface has them, and none has the content of another."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from domainclip.errors import ConfigurationError
from domainclip.service.load_test.workload import KINDS, VariedJpeg, Workload


def pixels_of(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_variants_are_the_same_rows_in_other_orders() -> None:
    draw = np.random.default_rng(0)
    image = Image.fromarray(draw.integers(0, 256, (200, 96, 3), np.uint8)).resize((96, 200))
    varied = VariedJpeg(image)
    seen = set()
    first = pixels_of(varied.variant(0))
    assert first.shape == (192, 96, 3)

    def blocks(pixels: np.ndarray) -> list[bytes]:
        # Without the outermost lines of a row of blocks, which upsampling mixes with the neighbour's colours.
        return sorted(row[2:-2].tobytes() for row in pixels.reshape(12, 16, 96, 3))

    for index in range(30):
        content = varied.variant(index)
        assert content == varied.variant(index)
        pixels = pixels_of(content)
        assert blocks(pixels) == blocks(first)
        seen.add(pixels.tobytes())
    assert len(seen) == 30


def test_small_images_are_enlarged_to_have_enough_rows() -> None:
    varied = VariedJpeg(Image.new("L", (10, 8)))
    assert pixels_of(varied.variant(3)).shape == (160, 200, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_valid_and_distinct(kind: str) -> None:
    work = Workload(kind, seed=1)
    calls = [work.call(index) for index in range(12)]
    assert calls[5] == Workload(kind, seed=1).call(5)
    assert len({call.body for call in calls}) == 12
    assert calls[0].body != Workload(kind, seed=2).call(0).body
    for call in calls:
        body = json.loads(call.body)
        for image in images_in(body):
            Image.open(io.BytesIO(base64.b64decode(image, validate=True))).load()
    paths = {call.path for call in calls}
    assert paths == ({"/v1/pairs", "/v1/embeddings", "/v1/classify"} if kind == "mix" else {calls[0].path})


def images_in(body: dict[str, Any]) -> list[str]:
    found = [pair["image"] for pair in body.get("pairs", [])] + body.get("images", [])
    return found + [item["image"] for item in body.get("input", []) if isinstance(item, dict)]


def test_no_image_comes_twice() -> None:
    work = Workload("embeddings-image")
    assert len({work.image(content) for content in range(3000)}) == 3000


def test_a_fraction_repeats() -> None:
    for repeated, least, most in ((0.0, 400, 400), (1.0, 1, 16), (0.5, 170, 250)):
        work = Workload("embeddings-text", repeated=repeated)
        assert least <= len({work.call(index).body for index in range(400)}) <= most


def test_images_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    Image.new("RGB", (64, 320), (200, 0, 0)).save(tmp_path / "inner" / "red.png")
    (tmp_path / "notes.txt").write_text("no image")
    content = base64.b64decode(Workload("embeddings-image", tmp_path).image(5))
    np.testing.assert_allclose(pixels_of(content).mean((0, 1)), [200, 0, 0], atol=3)


def test_wrong_values(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="did you mean pairs"):
        Workload("pair")
    with pytest.raises(ConfigurationError, match="choose one of pairs"):
        Workload("everything")
    with pytest.raises(ConfigurationError, match="from 0 to 1"):
        Workload("pairs", repeated=1.5)
    with pytest.raises(ConfigurationError, match="no image that can be read"):
        Workload("pairs", tmp_path).image(0)
    with pytest.raises(ConfigurationError, match="no folder"):
        Workload("pairs", tmp_path / "missing").image(0)

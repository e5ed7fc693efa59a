"""What the requests of a load test hold: images and texts that differ from one request to the next.

A service keeps embeddings of contents that it has seen, so the same image sent twice would measure its cache. Drawing
and compressing an image anew for each request would take a millisecond of the generator; instead a JPEG is cut at its
restart markers, where a decoder begins anew (ITU-T T.81), and its rows of blocks are put together in another order:
other pixels, at the price of a copy.
"""

from __future__ import annotations

import base64
import io
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from domainclip.errors import ConfigurationError
from domainclip.registry import nearest

SIZE = (320, 240)
"""Of drawn images, in pixels."""
_BASES = 64
_LEAST_ROWS = 10  # 10! orders
_BLOCK = 16  # pixels: the height of a row of blocks, where colours have half the resolution
_MARKER = re.compile(rb"\xff[\xd0-\xd7]")
_POPULAR = 16
_COLOURS = ("red", "green", "blue", "white", "black", "grey", "yellow", "brown")
_THINGS = ("crack", "scratch", "stain", "hole", "seam", "leaf", "cell", "bolt", "mineral", "fibre")
_PLACES = ("near the edge", "in the middle", "on a dark ground", "under bright light", "seen from above")
LABELS = ("a crack", "a scratch", "a stain", "nothing unusual")
"""Of the workload ``classify``; the same ones in each request, as in use."""


@dataclass(frozen=True)
class Call:
    """One request.

    Attributes:
        path: Of the interface.
        body: JSON.
    """

    path: str
    body: bytes


class VariedJpeg:
    """One image in many variants.

    Args:
        image: Is enlarged where it has too few rows of blocks.
    """

    def __init__(self, image: Image.Image) -> None:
        least = _LEAST_ROWS * _BLOCK
        if image.height < least:
            image = image.resize((max(round(image.width * least / image.height), 1), least))
        # Cut to whole blocks: a last row that is only partly shown would otherwise come to stand in the middle.
        image = image.convert("RGB").crop((0, 0, image.width, image.height // _BLOCK * _BLOCK))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85, subsampling="4:2:0", restart_marker_rows=1)
        content = buffer.getvalue()
        scan = content.index(b"\xff\xda")
        first = scan + 2 + int.from_bytes(content[scan + 2 : scan + 4], "big")
        self._head = content[:first]
        self._rows = _MARKER.split(content[first:-2])

    def variant(self, index: int) -> bytes:
        """Put the rows into another order.

        Args:
            index: The same one gives the same order.

        Returns:
            The bytes of a JPEG.
        """
        rows = self._rows.copy()
        random.Random(index).shuffle(rows)
        parts = [self._head, rows[0]]
        for number, row in enumerate(rows[1:]):
            parts += [bytes((0xFF, 0xD0 + number % 8)), row]
        return b"".join((*parts, b"\xff\xd9"))


class Workload:
    """Requests of one kind; the one with an index is always the same.

    Args:
        kind: A name of ``KINDS``.
        images: A folder whose images are sent; None draws some.
        seed: Another one gives other contents.
        repeated: The fraction of requests, from 0 to 1, whose contents have been sent before: each is one of a few.

    Raises:
        ConfigurationError: There is no such kind, the fraction is out of range, or the folder has no image.
    """

    def __init__(self, kind: str, images: Path | None = None, seed: int = 0, repeated: float = 0.0) -> None:
        if kind not in KINDS:
            meant = nearest(kind, KINDS)
            hint = f"did you mean {meant}?" if meant else f"choose one of {', '.join(KINDS)}"
            raise ConfigurationError(f"Invalid workload {kind!r}: {hint}")
        if not 0 <= repeated <= 1:
            raise ConfigurationError(f"The repeated fraction must be from 0 to 1, got {repeated:g}")
        self.kind, self.seed, self.repeated = kind, seed, repeated
        self._images = images
        self._bases: list[VariedJpeg] = []

    def call(self, index: int) -> Call:
        """Make a request.

        Args:
            index: Of the request, 0 or more.

        Returns:
            The request.
        """
        draw = random.Random(f"{self.seed} {index}")
        content = draw.randrange(_POPULAR) if draw.random() < self.repeated else index + _POPULAR
        kind = self.kind if self.kind != "mix" else _MIXED[index % len(_MIXED)]
        path, make = _MAKERS[kind]
        return Call(path, json.dumps(make(self, content)).encode("ascii"))

    def image(self, content: int) -> str:
        """Make an image.

        Args:
            content: The same number gives the same image.

        Returns:
            A JPEG in base64.
        """
        if not self._bases:
            source = _drawn(self.seed) if self._images is None else _read(self._images)
            self._bases = [VariedJpeg(image) for image in source]
        jpeg = self._bases[content % len(self._bases)].variant(self.seed * 1_000_003 + content)
        return base64.b64encode(jpeg).decode("ascii")

    def text(self, content: int) -> str:
        """Make a text.

        Args:
            content: The same number gives the same text.

        Returns:
            About a dozen words.
        """
        draw = random.Random(f"text {self.seed} {content}")
        colour, thing, place = draw.choice(_COLOURS), draw.choice(_THINGS), draw.choice(_PLACES)
        return f"a photo of a {colour} {thing} {place}, sample {content} of series {self.seed}"


def _pairs(work: Workload, content: int) -> object:
    return {"pairs": [{"image": work.image(content), "text": work.text(content)}]}


def _embedded_text(work: Workload, content: int) -> object:
    return {"input": work.text(content), "encoding_format": "base64"}


def _embedded_image(work: Workload, content: int) -> object:
    return {"input": [{"image": work.image(content)}], "modality": "image", "encoding_format": "base64"}


def _classified(work: Workload, content: int) -> object:
    return {"images": [work.image(content)], "labels": LABELS}


def _searched(work: Workload, content: int) -> object:
    return {"text": work.text(content), "top_k": 10}


_MAKERS: dict[str, tuple[str, Callable[[Workload, int], object]]] = {
    "pairs": ("/v1/pairs", _pairs),
    "embeddings-text": ("/v1/embeddings", _embedded_text),
    "embeddings-image": ("/v1/embeddings", _embedded_image),
    "classify": ("/v1/classify", _classified),
    "search": ("/v1/search", _searched),
}
_MIXED = ("pairs", "embeddings-text", "embeddings-image", "classify")
KINDS = (*_MAKERS, "mix")
"""``search`` needs a service with an index; ``mix`` is the others by turns."""


def _drawn(seed: int) -> Iterator[Image.Image]:
    """Smooth colours with some grain: a JPEG of them has about the size of a photograph's."""
    draw = np.random.default_rng(seed)
    for _ in range(_BASES):
        coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC), np.int16)
        grain = draw.integers(-12, 13, smooth.shape, np.int16)
        yield Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def _read(folder: Path) -> Iterator[Image.Image]:
    """The first images of a folder, by name."""
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is no folder: name one with images")
    found = 0
    for path in sorted(folder.rglob("*")):
        if found == _BASES:
            return
        try:
            with Image.open(path) as image:
                yield image.convert("RGB")
        except (UnidentifiedImageError, OSError):
            continue
        found += 1
    if not found:
        raise ConfigurationError(f"{folder} holds no image that can be read: name another folder")

"""The golden batch: a few images and texts with the embeddings that float32 gives them, saved beside a model.

A back end is admitted if its embeddings point where these do. The images are drawn, not photographed: a model that
travels carries nothing of its user's data.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from domainclip.errors import BackendError
from domainclip.files import write_bytes
from domainclip.inference.backends.encoder import Precision
from domainclip.inference.backends.shapes import FixedShapes

GOLDEN_FILE = "golden.npz"
"""Beside a model's weights."""
MINIMUM_COSINE: dict[Precision, float] = {"fp32": 0.9999, "bf16": 0.999, "int8": 0.98}
"""The least cosine to float32 that a back end's embedding of any golden image or text may have."""
GOLDEN_IMAGES = 4
GOLDEN_TEXTS = (
    "a photo of a cat.",
    "left",
    "An image of a small red object on a dark, evenly lit background, seen from above.",
    "No acute abnormality; the surface is intact, without a crack, a scratch or a stain in the upper right corner. "
    * 4,
    "0.5 mm",
    "Ein Bild von grünem Gras – 草の写真",
)
"""Of several lengths, one of them beyond CLIP's 77 tokens."""


@dataclass(frozen=True)
class GoldenBatch:
    """What every back end of one model must give.

    Attributes:
        fingerprint: Of the model, from ``graphs.fingerprint_of``.
        images: Prepared, before normalisation.
        ids: Tokens of each text, without padding.
        image_embeds: By torch in float32, of any length.
        text_embeds: Likewise.
    """

    fingerprint: str
    images: UInt8[np.ndarray, "n 3 size size"]
    ids: list[list[int]]
    image_embeds: Float32[np.ndarray, "n dim"]
    text_embeds: Float32[np.ndarray, "texts dim"]

    @property
    def resolution(self) -> int:
        """Of the images, in pixels."""
        return int(self.images.shape[-1])

    def image_cosine(self, shapes: FixedShapes) -> float:
        """How far a back end's image tower agrees.

        Args:
            shapes: The back end.

        Returns:
            The least cosine of any image.
        """
        return least_cosine(shapes.encode_images(self.images), self.image_embeds)

    def text_cosine(self, shapes: FixedShapes) -> float:
        """How far a back end's text tower agrees.

        Args:
            shapes: The back end.

        Returns:
            The least cosine of any text.
        """
        return least_cosine(shapes.encode_tokens(self.ids), self.text_embeds)

    def to_bytes(self) -> bytes:
        """The batch as a file holds it; equal batches give equal bytes.

        Returns:
            For ``read``.
        """
        content = io.BytesIO()
        np.savez_compressed(
            content,
            fingerprint=np.array(self.fingerprint),
            images=self.images,
            ids=np.array([token for row in self.ids for token in row], np.int64),
            lengths=np.array([len(row) for row in self.ids], np.int64),
            image_embeds=self.image_embeds,
            text_embeds=self.text_embeds,
        )
        return content.getvalue()

    def write(self, folder: Path) -> None:
        """Write the batch beside a model.

        Args:
            folder: The model's.

        Raises:
            OSError: It cannot be written.
        """
        write_bytes(folder / GOLDEN_FILE, self.to_bytes())

    @classmethod
    def read(cls, folder: Path) -> GoldenBatch | None:
        """Read the batch of a model.

        Args:
            folder: The model's.

        Returns:
            The batch; None where there is none, or its file is damaged: it can be made again.
        """
        try:
            with np.load(folder / GOLDEN_FILE, allow_pickle=False) as content:
                ends = np.cumsum(content["lengths"])[:-1]
                ids = [part.tolist() for part in np.split(content["ids"], ends)]
                return cls(
                    str(content["fingerprint"]), content["images"], ids, content["image_embeds"], content["text_embeds"]
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None


def least_cosine(found: Float32[np.ndarray, "n dim"], expected: Float32[np.ndarray, "n dim"]) -> float:
    """Compare embeddings row by row.

    Args:
        found: Of any length.
        expected: Of any length.

    Returns:
        The least cosine, in float64; -1 where a row has no direction.
    """
    if found.shape != expected.shape:
        return -1.0
    one, other = found.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosines = np.divide((one * other).sum(axis=1), lengths, out=np.full(len(one), -1.0), where=lengths > 0)
    return float(np.nan_to_num(cosines, nan=-1.0).min())


def check_cosine(tower: str, cosine: float, precision: Precision) -> None:
    """Admit a tower of a back end, or refuse it.

    Args:
        tower: ``image`` or ``text``.
        cosine: The least one on the golden batch.
        precision: Which says how near to 1 it must be.

    Raises:
        BackendError: It is refused.
    """
    wanted = MINIMUM_COSINE[precision]
    if not cosine >= wanted:
        raise BackendError(
            f"the least cosine of its {tower}s to float32 is {cosine:.5f} on the golden batch, and at least {wanted:g} "
            "is asked for"
        )


def drawn_images(count: int, resolution: int, seed: int = 0) -> UInt8[np.ndarray, "count 3 size size"]:
    """Draw images: light that changes across them, waves from coarse to fine, and shapes with hard edges.

    Args:
        count: How many.
        resolution: Their size, in pixels.
        seed: Other images for another one.

    Returns:
        The same ones each time.
    """
    random = np.random.default_rng(seed)
    down, right = np.mgrid[0:resolution, 0:resolution] / resolution
    images = np.empty((count, 3, resolution, resolution), np.uint8)
    for image in images:
        angle, waves = random.uniform(0, np.pi), 2.0 ** random.uniform(0, 5)
        along = np.cos(angle) * right + np.sin(angle) * down
        x, y, radius = random.uniform(0.2, 0.8), random.uniform(0.2, 0.8), random.uniform(0.1, 0.4)
        inside = (right - x) ** 2 + (down - y) ** 2 < radius**2
        for channel in image:
            light, slope, depth, edge = random.uniform([64, -64, 0, -96], [192, 64, 64, 96])
            values = light + slope * along + depth * np.sin(2 * np.pi * waves * along) + edge * inside
            channel[:] = np.clip(np.round(values), 0, 255)
    return images

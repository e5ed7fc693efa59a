"""Images made worse on purpose, step by step: how fast does a model's accuracy fall?

After Hendrycks and Dietterich 2019 ("Benchmarking Neural Network Robustness to Common Corruptions"): a few kinds of
corruption, a few severities of each, severity 0 being the untouched image. A corruption is applied to the image as it
was decoded, before the model's own resize and crop, since that is where it happens in life.

Blur and loss of detail are measured in pixels of the *model's* resolution: a blur of one pixel of a 12-megapixel
photograph is nothing after the resize. Noise is per pixel of the file, as a sensor makes it, and large images average
it away.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image, ImageFilter
from torch import Tensor

from domainclip.errors import ConfigurationError, ImageError
from domainclip.evaluation.evaluators import DomainEvaluator
from domainclip.metrics.significance import PairedChange, paired_change
from domainclip.registry import Registry

CorruptionFunction = Callable[[np.ndarray, float, tuple[int, int], int], np.ndarray]
"""Image uint8 ``[h, w, 3]``, level, height and width the model's resize would give it, seed → another."""

_JPEG_LONGEST = 65_535  # pixels a side that the format can count


@dataclass(frozen=True)
class Corruption:
    """``levels``: from mild to severe, each as ``unit`` says. ``clean``: the level that means no corruption."""

    name: str
    unit: str
    clean: float
    levels: tuple[float, ...]
    function: CorruptionFunction

    def level(self, severity: int) -> float:
        """The level of a severity.

        Args:
            severity: From 0 (clean) to ``len(levels)``.

        Returns:
            The level, as ``unit`` says.

        Raises:
            ConfigurationError: The severity is below 0 or above ``len(levels)``.
        """
        if not 0 <= severity <= len(self.levels):
            raise ConfigurationError(
                f"Invalid severity {severity} of {self.name}: choose 0 (untouched) to {len(self.levels)}"
            )
        return self.levels[severity - 1] if severity else self.clean


CORRUPTIONS: Registry[Corruption] = Registry("corruption")


def corrupt(
    image: UInt8[np.ndarray, "h w 3"],
    name: str,
    severity: int,
    model_size: tuple[int, int],
    seed: int = 0,
) -> UInt8[np.ndarray, "h w 3"]:
    """The image, of the same size, with corruption of that kind and severity; severity 0 is the image itself.

    The result depends on the arguments alone.

    Args:
        image: As it was decoded, ``[height, width, 3]``, uint8.
        name: A key of ``CORRUPTIONS``.
        severity: From 0 to the number of the kind's levels.
        model_size: Height and width in pixels that the model's resize would give the image
            (``ImageSpec.resized_shape``).
        seed: Of what is random.

    Returns:
        The corrupted image.

    Raises:
        ConfigurationError: The kind or severity is unknown, or the kind changes the image's shape or dtype.
        ImageError: A side is too long for JPEG.
    """
    corruption = CORRUPTIONS[name]
    level = corruption.level(severity)
    if severity == 0:
        return image
    found = corruption.function(image, level, model_size, seed)
    if found.shape != image.shape or found.dtype != np.uint8:
        raise ConfigurationError(
            f"The corruption {name!r} made {found.dtype} {list(found.shape)} of an image uint8 {list(image.shape)}: "
            "it must give back uint8 of the same shape"
        )
    return found


def _register(
    name: str, unit: str, clean: float, levels: tuple[float, ...]
) -> Callable[[CorruptionFunction], CorruptionFunction]:
    def add(function: CorruptionFunction) -> CorruptionFunction:
        CORRUPTIONS.register(name)(Corruption(name, unit, clean, levels, function))
        return function

    return add


@_register("blur", "Gaussian blur, sigma in pixels of the model's resolution", 0.0, (0.5, 1.0, 2.0, 4.0))
def _blur(image: np.ndarray, sigma: float, model_size: tuple[int, int], seed: int) -> np.ndarray:
    # Each axis by its own factor: a model that squashes its images shrinks the two differently.
    height, width = image.shape[:2]
    radius = (sigma * width / model_size[1], sigma * height / model_size[0])
    # Pillow's is three box filters of that standard deviation: the time does not grow with sigma.
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


@_register("noise", "Gaussian noise, standard deviation in levels of 255", 0.0, (5.0, 10.0, 20.0, 40.0))
def _noise(image: np.ndarray, deviation: float, model_size: tuple[int, int], seed: int) -> np.ndarray:
    # Seeded by the pixels, so that neither the order nor the folder of the images matters; not by the level, so
    # that along a curve only the strength changes.
    rng = np.random.default_rng([seed, zlib.crc32(np.ascontiguousarray(image).data)])
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise *= deviation
    noise += image
    return np.rint(noise, out=noise).clip(0, 255).astype(np.uint8)


@_register("jpeg", "JPEG quality (100 here: not compressed)", 100.0, (80.0, 50.0, 25.0, 10.0))
def _jpeg(image: np.ndarray, quality: float, model_size: tuple[int, int], seed: int) -> np.ndarray:
    height, width = image.shape[:2]
    if max(height, width) > _JPEG_LONGEST:
        raise ImageError(f"{width}×{height} pixels are too many for JPEG, which holds {_JPEG_LONGEST:,} along an edge")
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=int(quality))
    return np.asarray(Image.open(file).convert("RGB"))


@_register("downscale", "shrunk to the model's resolution over this, and enlarged again", 1.0, (1.5, 2.0, 4.0, 8.0))
def _downscale(image: np.ndarray, factor: float, model_size: tuple[int, int], seed: int) -> np.ndarray:
    height, width = image.shape[:2]
    # An image that has fewer pixels than that already loses nothing.
    small = (min(width, max(1, round(model_size[1] / factor))), min(height, max(1, round(model_size[0] / factor))))
    shrunk = Image.fromarray(image).resize(small, Image.Resampling.BICUBIC)
    return np.asarray(shrunk.resize((width, height), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Condition:
    """How the images reach the model: their resolution in pixels, and the corruption applied to them before."""

    resolution: int
    corruption: str | None = None
    severity: int = 0


@dataclass(frozen=True)
class Agreement:
    """What a model makes of the same images under two conditions: the ``mean_cosine`` of each image's two embeddings,
    in -1…1; fractions of images with the ``same_class`` and the ``same_caption`` nearest, None where the data have no
    classes or captions to choose from."""

    mean_cosine: float
    same_class: float | None
    same_caption: float | None


@dataclass(frozen=True)
class CorruptionLevel:
    """Images corrupted so far; ``agreement`` and ``change`` are against the untouched ones."""

    severity: int
    level: float
    metrics: dict[str, float]
    agreement: Agreement
    change: PairedChange | None


@dataclass(frozen=True)
class CorruptionCurve:
    """One kind of corruption from mild to severe; ``unit`` says what a level counts."""

    unit: str
    untouched_level: float
    levels: list[CorruptionLevel]


@dataclass(frozen=True)
class Clean:
    """The untouched images."""

    metrics: dict[str, float]


@dataclass(frozen=True)
class Robustness:
    """Every kind of corruption at one ``resolution``; ``seed`` is that of the corruptions."""

    resolution: int
    seed: int
    clean: Clean
    corruptions: dict[str, CorruptionCurve]


class ConditionEvaluator:
    """Figures of the conditions from the images' unit-length embeddings under each; ``rows`` says which row is whose.
    Texts are encoded at the first use only."""

    def __init__(
        self,
        evaluator: DomainEvaluator,
        rows: Mapping[Path, int],
        embeds: Mapping[Condition, Float[Tensor, "images dim"]],
        encode_texts: Callable[[Sequence[str]], Tensor],
    ) -> None:
        self.evaluator, self.rows, self.embeds = evaluator, rows, embeds
        self._texts = cache(encode_texts)
        self._shown: Condition | None = None
        self._results: dict[Condition, Any] = {}

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """Embed texts, each list once.

        Args:
            texts: Any texts.

        Returns:
            ``[texts, dim]``, as the function given gives them.
        """
        return self._texts(tuple(texts))

    def encode_images(self, paths: Sequence[Path]) -> Float[Tensor, "images dim"]:
        """Look up the images' embeddings under the condition that is being evaluated.

        Args:
            paths: Images that have a row.

        Returns:
            ``[images, dim]``, of unit length, in the order given.
        """
        assert self._shown is not None
        return self.embeds[self._shown][[self.rows[path] for path in paths]]

    def _result(self, condition: Condition) -> Any:
        if condition not in self._results:
            self._shown = condition
            self._results[condition] = self.evaluator.evaluate(self)
        return self._results[condition]

    def metrics(self, condition: Condition) -> dict[str, float]:
        """Evaluate a condition, once.

        Args:
            condition: One that has embeddings.

        Returns:
            Figures by name.
        """
        return self._result(condition).metrics

    def agreement(self, condition: Condition, reference: Condition) -> Agreement:
        """Compare what the model makes of the same images under two conditions.

        Args:
            condition: The one asked about.
            reference: What it is compared with.

        Returns:
            How far they agree.
        """
        here, there = (self.embeds[one].double() for one in (condition, reference))
        return Agreement(
            float(F.cosine_similarity(here, there).mean()),
            _fraction_equal(self._classes(condition), self._classes(reference)),
            _fraction_equal(self._captions(condition), self._captions(reference)),
        )

    def change(self, condition: Condition, reference: Condition) -> PairedChange | None:
        """How acc1 differs from the reference's on the same images.

        Args:
            condition: The one asked about.
            reference: What it is compared with.

        Returns:
            The change; None without classes.
        """
        if self.evaluator.zero_shot is None:
            return None
        return paired_change(self._right(reference), self._right(condition))

    def _right(self, condition: Condition) -> list[bool]:
        found = self._result(condition).details["classification"]
        return [predicted == true for predicted, true in zip(found["predictions"], found["targets"], strict=True)]

    def _classes(self, condition: Condition) -> list[str] | None:
        return self._result(condition).details["classification"]["predictions"] if self.evaluator.zero_shot else None

    def _captions(self, condition: Condition) -> list[int] | None:
        retrieval = self.evaluator.retrieval
        if retrieval is None:
            return None
        self._shown = condition
        return (self.encode_images(retrieval.paths) @ self.encode_texts(retrieval.captions).T).argmax(1).tolist()

    def curves(self, resolution: int, seed: int) -> Robustness:
        """Figures along every kind of corruption, from mild to severe.

        Args:
            resolution: In pixels; all conditions of it must have embeddings.
            seed: Of the corruptions, as it is reported.

        Returns:
            The curves.
        """
        clean = Condition(resolution)
        found: dict[str, CorruptionCurve] = {}
        for name in CORRUPTIONS:
            kind = CORRUPTIONS[name]
            levels = []
            for severity, level in enumerate(kind.levels, start=1):
                here = Condition(resolution, name, severity)
                agreement, change = self.agreement(here, clean), self.change(here, clean)
                levels.append(CorruptionLevel(severity, level, self.metrics(here), agreement, change))
            found[name] = CorruptionCurve(kind.unit, kind.clean, levels)
        return Robustness(resolution, seed, Clean(self.metrics(clean)), found)


def _fraction_equal(here: list | None, there: list | None) -> float | None:
    if here is None or there is None:
        return None
    return sum(a == b for a, b in zip(here, there, strict=True)) / len(here)

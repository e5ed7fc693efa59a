"""Corrupted images, and what is said of embeddings under two conditions, against independent computations."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter

from domainclip.data.records import ImageTextPair
from domainclip.errors import ConfigurationError, ImageError
from domainclip.evaluation.evaluators import DomainEvaluator
from domainclip.evaluation.robustness import CORRUPTIONS, Condition, ConditionEvaluator, corrupt

KINDS = ("blur", "downscale", "jpeg", "noise")


def a_image(height: int = 60, width: int = 90, seed: int = 0) -> np.ndarray:
    """Random at a scale of about three pixels, away from black and white."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.normal(size=(height, width, 3)), (2, 2, 0))
    return (128 + 35 * smooth / smooth.std()).clip(10, 245).astype(np.uint8)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


@pytest.mark.parametrize("name", KINDS)
def test_corruption_grows_with_severity_and_keeps_the_form(name: str) -> None:
    image = a_image()
    before = image.copy()
    assert corrupt(image, name, 0, (60, 90)) is image
    damage = []
    for severity in range(1, len(CORRUPTIONS[name].levels) + 1):
        worse = corrupt(image, name, severity, (60, 90))
        assert (worse.shape, worse.dtype) == (image.shape, np.uint8)
        damage.append(difference(worse, image))
    assert damage[0] > 0
    assert damage == sorted(damage)
    assert np.array_equal(image, before)


def test_blur_is_gaussian_in_pixels_of_the_models_resolution() -> None:
    image = a_image(80, 160)
    # A model that squashes it to 40 × 40: sigma 1 there is 2 rows and 4 columns of the file.
    blurred = corrupt(image, "blur", 2, (40, 40))
    assert CORRUPTIONS["blur"].levels[1] == 1.0
    expected = gaussian_filter(image.astype(float), (2, 4, 0), mode="nearest")
    assert difference(blurred, expected) < 1.0
    other_way = gaussian_filter(image.astype(float), (4, 2, 0), mode="nearest")
    assert difference(blurred, other_way) > 3.0


def test_noise_has_its_deviation_and_depends_on_image_and_seed_alone() -> None:
    grey = np.full((200, 200, 3), 128, dtype=np.uint8)
    noises = [corrupt(grey, "noise", severity, (32, 32)).astype(float) - 128 for severity in (1, 2, 3)]
    for noise, deviation in zip(noises, (5, 10, 20), strict=True):
        assert abs(noise.mean()) < 0.2
        assert noise.std() == pytest.approx(deviation, rel=0.02)
    # The same noise at each level, only stronger; rounded on both sides.
    assert np.abs(noises[2] - 4 * noises[0]).max() <= 4 * 0.5 + 0.5
    again = corrupt(grey.copy(), "noise", 1, (99, 99)).astype(float) - 128
    assert np.array_equal(again, noises[0])
    assert not np.array_equal(corrupt(grey, "noise", 1, (32, 32), seed=1).astype(float) - 128, noises[0])
    changed = grey.copy()
    changed[0, 0, 0] = 127
    correlation = np.corrcoef((corrupt(changed, "noise", 1, (32, 32)).astype(float) - 128).ravel(), noises[0].ravel())
    assert abs(correlation[0, 1]) < 0.02


@pytest.mark.parametrize("severity", [1, 2, 3, 4])
def test_jpeg_is_what_another_encoder_of_that_quality_makes(severity: int) -> None:
    image = a_image()
    made = corrupt(image, "jpeg", severity, (32, 32))
    differences = []
    for quality in CORRUPTIONS["jpeg"].levels:
        packed = simplejpeg.encode_jpeg(image, quality=int(quality), colorspace="RGB", colorsubsampling="420")
        differences.append(difference(made, np.asarray(Image.open(io.BytesIO(packed)))))
    # The two round their transforms differently; another quality is further off by far.
    own = differences.pop(severity - 1)
    assert own < 1.5
    assert min(differences) > 3 * own


def test_downscale_goes_through_the_models_resolution_over_the_factor() -> None:
    image = a_image(64, 128)
    made = corrupt(image, "downscale", 2, (32, 64))  # over 2: 16 × 32
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    small = F.interpolate(pixels, size=(16, 32), mode="bicubic", antialias=True).round().clamp(0, 255)
    large = F.interpolate(small, size=(64, 128), mode="bicubic", antialias=True).round().clamp(0, 255)
    assert difference(made, large[0].permute(1, 2, 0).numpy()) < 0.5


def test_an_image_smaller_than_that_loses_nothing() -> None:
    image = a_image(20, 20)
    assert np.array_equal(corrupt(image, "downscale", 4, (224, 224)), image)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1)])
@pytest.mark.parametrize("name", KINDS)
def test_the_smallest_images(name: str, shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 90, dtype=np.uint8)
    assert corrupt(image, name, 4, (32, 32)).shape == image.shape


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(ConfigurationError, match=r"corruption.*'fog'.*blur"):
        corrupt(a_image(), "fog", 1, (32, 32))
    for severity in (-1, 5):
        with pytest.raises(ConfigurationError, match=f"Invalid severity {severity} of blur: choose 0"):
            corrupt(a_image(), "blur", severity, (32, 32))
    with pytest.raises(ImageError, match=r"65536×1 pixels are too many for JPEG"):
        corrupt(np.zeros((1, 65_536, 3), dtype=np.uint8), "jpeg", 1, (32, 32))


# --- figures of two conditions ---


def unit_rows(n: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)), dim=-1)


def encode_texts(texts: Sequence[str]) -> torch.Tensor:
    return torch.cat([unit_rows(1, sum(map(ord, text))) for text in texts])


def an_evaluator(labels: Sequence[str | None], captions: Sequence[str]) -> tuple[ConditionEvaluator, list[Path]]:
    paths = [Path(f"{index}.png") for index in range(len(labels))]
    pairs = [ImageTextPair(*row) for row in zip(paths, captions, labels, strict=True)]
    # Rows in another order than the pairs': who mixes the two up is found out.
    rows = {path: index for index, path in enumerate(reversed(paths))}
    embeds = {Condition(32): unit_rows(len(paths), 1), Condition(16): unit_rows(len(paths), 2)}
    embeds[Condition(16)][: len(paths) // 2] = embeds[Condition(32)][: len(paths) // 2]
    return ConditionEvaluator(DomainEvaluator(pairs, ("{}",)), rows, embeds, encode_texts), paths


def nearest(conditions: ConditionEvaluator, condition: Condition, path: Path, texts: Sequence[str]) -> str:
    vector = conditions.embeds[condition][conditions.rows[path]].tolist()
    scores = [sum(a * b for a, b in zip(vector, encode_texts([text])[0].tolist(), strict=True)) for text in texts]
    return texts[scores.index(max(scores))]


def test_agreement_and_change_are_those_of_plain_loops() -> None:
    labels = ["moss", "fern", "reed", "alga"] * 6
    captions = [f"a {label} number {index % 10}" for index, label in enumerate(labels)]
    conditions, paths = an_evaluator(labels, captions)
    small, own = Condition(16), Condition(32)
    found = conditions.agreement(small, own)

    cosines = [
        sum(
            a * b
            for a, b in zip(conditions.embeds[small][row].tolist(), conditions.embeds[own][row].tolist(), strict=True)
        )
        for row in range(len(paths))
    ]
    assert found.mean_cosine == pytest.approx(sum(cosines) / len(cosines), abs=1e-6)
    for key, texts in (("same_class", sorted(set(labels))), ("same_caption", list(dict.fromkeys(captions)))):
        same = [nearest(conditions, small, path, texts) == nearest(conditions, own, path, texts) for path in paths]
        assert getattr(found, key) == pytest.approx(sum(same) / len(same))
        assert 0.4 < sum(same) / len(same) < 1

    right = {
        one: [
            nearest(conditions, one, path, sorted(set(labels))) == label
            for path, label in zip(paths, labels, strict=True)
        ]
        for one in (small, own)
    }
    change = conditions.change(small, own)
    assert change is not None
    pairs = list(zip(right[own], right[small], strict=True))
    assert (change.gained, change.lost) == (pairs.count((False, True)), pairs.count((True, False)))
    assert change.gained + change.lost > 0
    assert conditions.metrics(small)["acc1"] == pytest.approx(sum(right[small]) / len(paths))
    assert conditions.metrics(own)["acc1"] == pytest.approx(sum(right[own]) / len(paths))
    alike = conditions.agreement(own, own)
    assert alike.mean_cosine == pytest.approx(1)
    assert (alike.same_class, alike.same_caption) == (1, 1)


def test_what_the_data_do_not_have_is_none() -> None:
    without_classes, _ = an_evaluator([None] * 4, ["one", "two", "three", "four"])
    found = without_classes.agreement(Condition(16), Condition(32))
    assert found.same_class is None
    assert found.same_caption is not None
    assert without_classes.change(Condition(16), Condition(32)) is None
    without_captions, _ = an_evaluator(["moss", "fern"] * 2, ["a plant"] * 4)
    found = without_captions.agreement(Condition(16), Condition(32))
    assert found.same_caption is None
    assert found.same_class is not None

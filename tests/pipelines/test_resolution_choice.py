"""Choosing a resolution: the keys, the rule, the sizes of the images."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from domainclip import CLIPFinetuningConfig
from domainclip.data.records import ImageTextPair
from domainclip.errors import ConfigurationError, DataError
from domainclip.pipelines.auto_resolution import HEADERS, image_sizes, with_resolution
from domainclip.resolve.resolution import ShortSides, choose_resolution
from tiny_data import TinyData

# --- the recipe's keys ---


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"wanted_throughput": 50}, r"wanted_throughput=50 .*set auto_resolution=true"),
        ({"auto_resolution": True, "image_resolution": 64}, r"image_resolution, which is set to 64: leave"),
        ({"auto_resolution": True, "resolution_schedule": "auto"}, r"leave resolution_schedule out"),
        ({"auto_resolution": True, "training_resolutions": [16, 32]}, r"leave training_resolutions out"),
        ({"auto_resolution": True, "wanted_throughput": 0}, r"Wanted throughput must be positive"),
    ],
)
def test_keys_that_contradict_each_other(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        CLIPFinetuningConfig(**values)


def test_neither_key_can_be_assigned_after_the_other() -> None:
    config = CLIPFinetuningConfig(image_resolution=64)
    with pytest.raises(ConfigurationError, match="set to 64"):
        config.auto_resolution = True
    assert not config.auto_resolution
    config = CLIPFinetuningConfig(auto_resolution=True)
    with pytest.raises(ConfigurationError, match="set to 64"):
        config.image_resolution = 64
    assert not config.is_set("image_resolution")


def test_a_chosen_resolution_counts_as_set() -> None:
    config = with_resolution(CLIPFinetuningConfig(auto_resolution=True, wanted_throughput=9, seed=3), 48)
    assert (config.image_resolution, config.auto_resolution, config.seed) == (48, False, 3)
    assert config.is_set("image_resolution") and not config.is_set("wanted_throughput")


# --- the rule ---


@pytest.mark.parametrize("budgeted", [True, False])
@pytest.mark.parametrize("timed", [True, False])
def test_the_rule_finds_what_a_search_of_all_resolutions_finds(budgeted: bool, timed: bool) -> None:
    draw = random.Random(0)
    for _ in range(200):
        native, step, p95 = draw.randrange(64, 400), draw.choice([8, 14, 16, 32]), draw.randrange(20, 500)
        smallest = draw.randrange(1, native)
        most, wanted = draw.randrange(1, 400**2), 1e6 / draw.randrange(1, 400**2)
        decision = choose_resolution(
            native,
            step,
            ShortSides(9, p95, p95),
            smallest=smallest,
            **({"memory_budget": most, "memory_at": lambda resolution: resolution**2} if budgeted else {}),
            **({"wanted_throughput": wanted, "throughput_at": lambda resolution: 1e6 / resolution**2} if timed else {}),
        )
        resolutions = sorted(
            {resolution for resolution in range(step, native, step) if resolution >= smallest} | {native}
        )
        warranted = choose_resolution(native, step, ShortSides(9, p95, p95), smallest=smallest).resolution
        assert warranted in resolutions
        kept = [
            resolution
            for resolution in resolutions
            if resolution <= warranted
            and (not budgeted or resolution**2 <= most)
            and (not timed or 1e6 / resolution**2 >= wanted)
        ]
        assert decision.resolution == (kept[-1] if kept else resolutions[0])
        assert ("though" in decision.reason) == (not kept)
        assert ("keeps the limits" in decision.reason) == (bool(kept) and kept[-1] < warranted)


def test_reasons_name_the_figures_of_both_limits() -> None:
    large = ShortSides(9, 900, 900)

    def words(amount: float) -> str:
        return f"{amount / 1000:.1f} GB"

    def choose(budget: float, wanted: float) -> str:
        return choose_resolution(
            224,
            32,
            large,
            smallest=96,
            memory_budget=budget,
            memory_at=lambda resolution: resolution * 10,
            memory_words=words,
            wanted_throughput=wanted,
            throughput_at=lambda resolution: 1e6 / resolution,
        ).reason

    assert choose(3000, 4000) == (
        "the model's own; the images' short sides reach 900 pixels (95th percentile); at 224, 2.2 GB of memory are "
        "needed and 3.0 GB are there, and 4464 images a second are expected and 4000 wanted"
    )
    assert choose(2000, 4000) == (
        "the largest resolution below 224 that keeps the limits: at 224, 2.2 GB of memory are needed and 2.0 GB are "
        "there; "
        "at 192, 1.9 GB of memory are needed and 2.0 GB are there, and 5208 images a second are expected and 4000 "
        "wanted"
    )
    assert "at 160, 6250 images a second are expected and 7000 wanted; at 128, 1.3 GB" in choose(2000, 7000)
    assert choose(900, 1) == (
        "the smallest resolution the model is used at, though 1.0 GB of memory are needed and 0.9 GB are there"
    )
    assert choose(9000, 20000.4).endswith("though 10417 images a second are expected and 20000 wanted")


# --- the images ---


def test_sizes_are_those_of_the_files(tiny_data: TinyData, tmp_path: Path) -> None:
    pairs = tiny_data.pairs()
    broken, gone = tmp_path / "broken.png", tmp_path / "gone.png"
    broken.write_bytes(b"no image")
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (50, 20)).save(turned, exif=exif)
    rows = [*pairs, *pairs[:4], *(ImageTextPair(path, "x") for path in (broken, turned, gone))]
    found = image_sizes(rows, 10**6)
    assert found.found == [Image.open(pair.image_path).size for pair in pairs] + [(50, 20)]
    assert (found.total, found.unreadable) == (len(pairs) + 3, 2)
    assert found.words == "sizes of 19 images, 2 more cannot be read"
    with pytest.raises(DataError, match=r"21 training images, and 2 cannot be read: .*broken\.png"):
        image_sizes(rows, 10**6, strict=True)
    with pytest.raises(DataError, match=r"broken\.png.*set image_resolution instead"):
        image_sizes(rows[-3:-2], 10**6)


def test_a_sample_is_spread_over_all_rows(tmp_path: Path) -> None:
    for index in range(50):
        Image.new("L", (60, 10 + index)).save(tmp_path / f"{index}.png")
    rows = [ImageTextPair(tmp_path / f"{index}.png", "x") for index in range(50)]
    found = image_sizes(rows, 10**6, most=5)
    assert [height for _, height in found.found] == [10, 20, 30, 40, 50]
    assert found.words == "sizes of 5 of 50 images"
    assert HEADERS == 2000  # as the documentation says

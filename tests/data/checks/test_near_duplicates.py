"""Images that look alike: what is one image saved again, what is another one, and how many are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainclip.data.checks import duplicates
from domainclip.data.checks.duplicates import fingerprint, near_duplicate_groups
from domainclip.data.checks.image_facts import inspect_image
from domainclip.data.images.reader import read_image


def board(defect: int | None) -> np.ndarray:
    """A cut-out of a circuit board: black beside white, and a spur of one place."""
    image = np.full((128, 144, 3), 255, np.uint8)
    image[:, :70] = 0
    if defect is not None:
        image[defect : defect + 8, 70:86] = 0
    return image


def test_images_that_differ_in_one_thing_are_not_alike() -> None:
    prints = [fingerprint(board(defect)) for defect in (None, 16, 56, 96)]
    assert np.abs(prints[0].astype(int) - prints[1]).mean() < duplicates.GREY_DISTANCE  # the mean does not tell
    assert near_duplicate_groups(np.stack(prints)) == []


def test_the_time_grows_with_the_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    pairs_of = duplicates._near_pairs

    def counting(a, b, hashes, grey, root):
        compared.append(len(a))
        return pairs_of(a, b, hashes, grey, root)

    monkeypatch.setattr(duplicates, "_near_pairs", counting)
    # What a fixed camera sees: all hashes are equal, all images equally bright, and none of them alike.
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 90, 18).astype(np.uint8)[None, :].repeat(16, 0)
    counts = []
    for number in (500, 1000, 2000):
        stack = ramp[None].repeat(number, 0)
        for image in stack:
            image[rng.integers(0, 16, 8), 17] += 100
        compared.clear()
        near_duplicate_groups(stack)
        counts.append(sum(compared))
    assert counts[2] < 2.2 * counts[1] < 2.2 * 2.2 * counts[0]
    assert counts[2] < 4 * 17 * duplicates._NEIGHBOURS * 2000


@pytest.mark.parametrize("turned", [1, 6])
def test_a_large_jpeg_is_looked_at_smaller(tmp_path: Path, turned: int) -> None:
    coarse = np.random.default_rng(3).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = turned
    place = tmp_path / "large.jpg"
    Image.fromarray(coarse).resize((1200, 900), Image.Resampling.BICUBIC).save(place, quality=90, exif=exif)
    found = inspect_image(place)
    assert (found.width, found.height, found.problem) == (1200, 900, None)
    whole = fingerprint(read_image(place))
    assert found.fingerprint is not None and np.abs(found.fingerprint.astype(int) - whole).max() <= 4
    content = place.read_bytes()
    place.write_bytes(content[: len(content) // 2])
    assert "damaged" in str(inspect_image(place).problem)

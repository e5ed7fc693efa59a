"""HEIC and AVIF as phones write them, really decoded; and what is said where the extra is not installed."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from commands import CommandResult
from domainclip.data.checks.check import check_data
from domainclip.data.checks.image_facts import inspect_image
from domainclip.data.images.given import image_list
from domainclip.data.images.reader import image_header, read_image, rgb_of
from domainclip.data.sources.loaders import DatasetLoader
from domainclip.errors import DataError, ImageError

try:
    import pillow_heif
except ImportError:
    pillow_heif = None

heic = pytest.mark.skipif(pillow_heif is None, reason="HEIC needs pillow-heif: pip install 'domainclip[heic]'")
avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
FORMATS = [pytest.param(".heic", marks=heic), pytest.param(".avif", marks=avif)]

COLOURS = np.zeros((64, 96, 3), np.uint8)
COLOURS[:32, :48] = (250, 20, 20)
COLOURS[:, 60:] = (20, 20, 250)


def photograph(path: Path, seed: int = 0, turned: int = 1) -> Path:
    """An image as a camera writes it that is held upright or not."""
    exif = Image.Exif()
    exif[0x0112] = turned
    content = io.BytesIO()
    colours = np.roll(COLOURS, (3 * seed, 7 * seed), (0, 1))
    Image.fromarray(colours).save(content, "JPEG", quality=95, exif=exif)
    # The encoder of HEIC takes the turn from what was opened, that of AVIF from what it is given.
    Image.open(content).save(path, quality=95, **({"exif": exif} if path.suffix == ".avif" else {}))
    return path


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("turned", [1, 3, 6, 8])
def test_colours_and_turn(tmp_path: Path, suffix: str, turned: int) -> None:
    path = photograph(tmp_path / f"IMG_0001{suffix}", turned=turned)
    upright = np.rot90(COLOURS, {1: 0, 3: 2, 6: 3, 8: 1}[turned])
    found = read_image(path)
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).mean() < 8
    assert np.array_equal(rgb_of(Image.open(path)), found)
    given = image_list(Image.open(path))[0]
    assert np.array_equal(rgb_of(given), found)


@heic
def test_ten_bits_and_several_images(tmp_path: Path) -> None:
    ramp = (np.linspace(0, 1023, 64 * 96).reshape(64, 96).astype(np.uint16)) << 6
    deep = np.stack([ramp] * 3, axis=2)
    pillow_heif.from_bytes(mode="RGB;16", size=(96, 64), data=deep.tobytes()).save(tmp_path / "deep.heic", quality=95)
    assert np.abs(read_image(tmp_path / "deep.heic").astype(int) - (deep >> 8)).mean() < 3
    two = pillow_heif.from_pillow(Image.fromarray(COLOURS))
    two.add_from_pillow(Image.fromarray(255 - COLOURS))
    two.save(tmp_path / "two.heic", quality=95)
    assert np.abs(read_image(tmp_path / "two.heic").astype(int) - COLOURS).mean() < 8
    assert image_header(tmp_path / "two.heic").frames == 2
    assert inspect_image(tmp_path / "two.heic").frames == 2


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("left", [40, 300, 0.93])
def test_a_cut_file_is_damaged(tmp_path: Path, suffix: str, left: float) -> None:
    path = photograph(tmp_path / f"IMG_0001{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(left * len(content)) if left < 1 else int(left)])
    with pytest.raises(ImageError, match="damaged") as caught:
        read_image(path)
    assert "pip install" not in str(caught.value) and "\n" not in str(caught.value)  # it is installed
    assert "damaged" in str(inspect_image(path).problem)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_run_and_a_check_take_them(
    tmp_path: Path, domainclip: Callable[..., CommandResult], suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(12):
        folder = tmp_path / "set" / ("red", "blue")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        name = f"IMG_{index:04d}"  # also in capitals, and without a suffix
        photograph(folder / f"{name}{suffix}", index, (1, 6)[index % 2]).rename(
            folder / (name + (suffix, suffix.upper(), "")[index % 3])
        )
    cut = tmp_path / "set" / "red" / f"cut{suffix}"
    cut.write_bytes((tmp_path / "set" / "red" / f"IMG_0000{suffix}").read_bytes()[:300])
    report = check_data(tmp_path / "set")
    assert report.images == 13 and not report.named("files-not-read")
    assert [finding.count for finding in report.named("broken-images")] == [1]
    monkeypatch.chdir(tmp_path)
    options = ["num_epochs=1", "batch_size=4", "num_workers=0", "probe_first=False", "device=cpu"]
    result = domainclip("train", "-m", "tiny", "-d", tmp_path / "set", "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.err
    report_md = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "unreadable image" in report_md


def test_without_the_extra_the_message_names_it(tmp_path: Path, without_heic: None) -> None:
    (tmp_path / "red").mkdir()
    for index in range(3):
        Image.fromarray(COLOURS).save(tmp_path / "red" / f"{index}.png")
    (tmp_path / "red" / "IMG_0001.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    pairs = DatasetLoader.load(tmp_path)
    assert len(pairs) == 3 and "pip install 'domainclip[heic]'" in pairs.skipped[0].reason
    with pytest.raises(ImageError, match=r"HEIC image: pip install 'domainclip\[heic\]'"):
        read_image(tmp_path / "red" / "IMG_0001.HEIC")
    with pytest.raises(DataError, match="HEIC"):
        DatasetLoader.load(tmp_path, strict=True)

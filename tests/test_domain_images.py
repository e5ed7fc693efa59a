"""Pictures of a domain: DICOM and TIFF files, the steps before the resize, tiles, random views."""

from __future__ import annotations

import builtins
import io
import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from domainclip.config import CLIPFinetuningConfig, DataFacts, ModelFacts, resolve
from domainclip.config.domain_images import ImagePreprocessing
from domainclip.data.dataset import CLIPDataset
from domainclip.data.domain.chain import LARGE, DomainImageChain, shrink, tile_boxes
from domainclip.data.domain.steps import clahe, crop_border, divide_by_background, grey_world, to_levels
from domainclip.data.domain.views import random_view, rotated
from domainclip.data.image_spec import ImageSpec
from domainclip.data.images import picture_header, read_array, read_image
from domainclip.data.transforms import ImageTransform
from domainclip.embedding import EmbeddingEngine
from domainclip.errors import ConfigurationError, MissingExtraError, PictureError
from domainclip.models import make_tiny_clip

pydicom = pytest.importorskip("pydicom")
tifffile = pytest.importorskip("tifffile")
pytest.importorskip("skimage")

RNG = np.random.default_rng(7)
RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)


def settings(**values: Any) -> ImagePreprocessing:
    return ImagePreprocessing(**values)


# --- DICOM ---


def write_dicom(path: Path, pixels: np.ndarray, photometric: str = "MONOCHROME2", **tags: Any) -> Path:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Modality = "OT"
    colour = photometric not in {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"}
    frames = pixels.shape[0] if pixels.ndim == 3 + colour else None
    dataset.Rows, dataset.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    if frames:
        dataset.NumberOfFrames = frames
    bits = pixels.dtype.itemsize * 8
    dataset.SamplesPerPixel = 3 if colour else 1
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def linear_window(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, written out."""
    out = np.empty(values.shape)
    for place, value in np.ndenumerate(values):
        if value <= center - 0.5 - (width - 1) / 2:
            out[place] = 0
        elif value > center - 0.5 + (width - 1) / 2:
            out[place] = 1
        else:
            out[place] = (value - (center - 0.5)) / (width - 1) + 0.5
    return out


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_dicom_window_of_the_file(tmp_path: Path, photometric: str) -> None:
    values = RAMP.astype(np.int16) - 1024
    path = write_dicom(
        tmp_path / "ct.dcm", values, photometric,
        RescaleSlope=2, RescaleIntercept=-100, WindowCenter=40, WindowWidth=400,
    )  # fmt: skip
    want = linear_window(values * 2.0 - 100, 40, 400)
    want = 1 - want if photometric == "MONOCHROME1" else want
    got = read_array(path)
    assert got.dtype == np.uint8 and got.shape == (16, 16)
    assert np.abs(got - want * 255).max() <= 0.5001
    assert np.array_equal(read_image(path), np.repeat(got[..., None], 3, axis=2))


def test_dicom_window_of_the_settings_overrules(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "ct", RAMP, WindowCenter=10, WindowWidth=5, VOILUTFunction="SIGMOID")
    got = read_array(path, settings=settings(window_center=2000, window_width=1000))
    assert np.abs(got - linear_window(RAMP, 2000, 1000) * 255).max() <= 0.5001


def test_dicom_sigmoid_window_and_table(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=2000, WindowWidth=800, VOILUTFunction="SIGMOID")
    want = 255 / (1 + np.exp(-4 * (RAMP.astype(float) - 2000) / 800))
    assert np.abs(read_array(path) - want).max() <= 0.51
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 16])
    table.add_new("LUTData", "OW", (65535 - 16 * np.arange(4096, dtype=np.uint16)).tobytes())
    path = write_dicom(tmp_path / "b.dcm", RAMP, VOILUTSequence=[table])
    assert np.abs(read_array(path) - (65535 - 16.0 * RAMP) / 65535 * 255).max() <= 0.5001


def test_dicom_without_a_window_spans_its_own_range(tmp_path: Path) -> None:
    padded = RAMP.copy()
    padded[0, :4] = 60_000
    path = write_dicom(tmp_path / "x.dcm", padded, "MONOCHROME1", PixelPaddingValue=60_000)
    inside = padded != 60_000
    low, high = RAMP[inside].min(), RAMP[inside].max()
    want = 255 * (1 - (RAMP.astype(float) - low) / (high - low))
    assert np.abs(DomainImageChain().apply(read_array(path))[..., 0] - want)[inside].max() <= 0.51
    off = write_dicom(tmp_path / "y.dcm", RAMP, WindowCenter=10, WindowWidth=5)
    values = read_array(off, settings=settings(dicom_window="off"))
    assert np.array_equal(values, RAMP.astype(np.float32))


@pytest.mark.parametrize(("page", "want"), [("first", 0), ("middle", 2), ("mean", 1.5)])
def test_dicom_frames(tmp_path: Path, page: str, want: float) -> None:
    frames = np.stack([np.full((4, 5), 10 * number, np.uint16) for number in range(4)])
    path = write_dicom(tmp_path / "cine.dcm", frames, WindowCenter=50, WindowWidth=101)
    got = read_array(path, settings=settings(page=page))
    assert np.abs(got - linear_window(np.full((4, 5), 10 * want), 50, 101) * 255).max() <= 0.5001
    header = picture_header(path)
    assert (header.width, header.height, header.format, header.frames) == (5, 4, "DICOM", 4)
    with pytest.raises(PictureError, match=r"cine\.dcm: 4 pages"):
        read_array(path, settings=settings(page="error"))


def test_dicom_in_colour(tmp_path: Path) -> None:
    rgb = RNG.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    assert np.array_equal(read_image(write_dicom(tmp_path / "rgb.dcm", rgb, "RGB")), rgb)
    ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    got = read_image(write_dicom(tmp_path / "ybr.dcm", np.ascontiguousarray(ybr), "YBR_FULL"))
    want = np.asarray(Image.fromarray(ybr, "YCbCr").convert("RGB"))
    assert np.abs(got.astype(int) - want).max() <= 2


def test_damaged_dicoms_are_picture_errors(tmp_path: Path) -> None:
    whole = write_dicom(tmp_path / "whole.dcm", RAMP, WindowCenter=40, WindowWidth=400).read_bytes()
    draw, refused = random.Random(3), 0
    for number in range(60):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 5)):
            content[draw.randrange(132, len(content) - RAMP.nbytes)] = draw.randrange(256)
        content = content[: draw.choice([len(content), len(content), draw.randrange(133, len(content))])]
        path = tmp_path / f"bad{number}.dcm"
        path.write_bytes(bytes(content))
        for function in (read_image, picture_header):
            try:
                function(path)
            except PictureError as error:
                refused += path.name in str(error) or pytest.fail(f"no file in {error}")
    assert refused > 10


def test_dicom_too_large_is_refused_by_its_header(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "x.dcm", RAMP)
    for function in (read_image, picture_header):
        with pytest.raises(PictureError, match="16×16 is 256 pixels, above max_image_pixels=255"):
            function(path, 255)


@pytest.mark.parametrize(("package", "extra"), [("pydicom", "dicom"), ("tifffile", "tiff"), ("skimage", "domain")])
def test_missing_libraries_name_their_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    dicom = write_dicom(tmp_path / "x.dcm", RAMP)
    stack = tmp_path / "stack.tif"
    tifffile.imwrite(stack, np.zeros((2, 4, 4), np.uint16), photometric="minisblack")
    plain = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(name)
        return plain(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    work = {
        "pydicom": lambda: read_image(dicom),
        "tifffile": lambda: read_array(stack, settings=settings(page="middle")),
        "skimage": lambda: DomainImageChain(settings(clahe_clip_limit=0.01)).apply(np.eye(32, dtype=np.float32)),
    }
    with pytest.raises(MissingExtraError, match=rf"domainclip\[{extra}\]"):
        work[package]()


# --- TIFF ---


@pytest.mark.parametrize(("page", "want"), [("first", 0), ("middle", 2), ("mean", None)])
def test_tiff_pages(tmp_path: Path, page: str, want: int | None) -> None:
    stack = RNG.integers(0, 65536, (5, 9, 11), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    got = read_array(tmp_path / "stack.tif", settings=settings(page=page))
    assert np.allclose(got, stack.mean(axis=0) if want is None else stack[want], rtol=1e-6)
    assert picture_header(tmp_path / "stack.tif").frames == 5
    with pytest.raises(PictureError, match=r"stack\.tif: 5 pages"):
        read_array(tmp_path / "stack.tif", settings=settings(page="error"))


def test_tiff_of_16_bit_colour(tmp_path: Path) -> None:
    rgb = RNG.integers(0, 65536, (9, 11, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "rgb.tif", rgb, photometric="rgb", compression="zlib")
    assert np.array_equal(read_array(tmp_path / "rgb.tif"), rgb)
    assert np.abs(read_image(tmp_path / "rgb.tif") - rgb / 65535 * 255).max() <= 0.51
    header = picture_header(tmp_path / "rgb.tif")
    assert (header.width, header.height, header.format, header.frames) == (11, 9, "TIFF", 1)


@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_channels_stored_as_pages_are_channels(tmp_path: Path, kind: str) -> None:
    values = RNG.integers(0, 65536, (3, 2, 9, 11), dtype=np.uint16)  # planes, channels
    path = tmp_path / ("cells.ome.tif" if kind == "ome" else "cells.tif")
    tifffile.imwrite(path, values, imagej=kind == "imagej", ome=kind == "ome", metadata={"axes": "ZCYX"})
    for page, plane in (("first", 0), ("middle", 1)):
        got = read_array(path, settings=settings(page=page))
        assert np.array_equal(got, values[plane].transpose(1, 2, 0))
    shown = read_image(path)
    assert np.abs(shown[..., :2] - values[0].transpose(1, 2, 0) / 65535 * 255).max() <= 0.51
    assert not shown[..., 2].any()


def test_damaged_tiffs_are_picture_errors(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, RNG.integers(0, 65536, (3, 20, 20, 3), dtype=np.uint16), photometric="rgb")
    whole, draw, refused = buffer.getvalue(), random.Random(5), 0
    for number in range(60):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 6)):
            content[draw.randrange(4, draw.choice([60, 600]))] = draw.randrange(256)
        content = content[: draw.choice([len(content), len(content), draw.randrange(8, len(content))])]
        path = tmp_path / f"bad{number}.tif"
        path.write_bytes(bytes(content))
        for function in (read_image, picture_header):
            try:
                function(path)
            except PictureError as error:
                refused += path.name in str(error) or pytest.fail(f"no file in {error}")
    assert refused > 10


def test_tiff_too_large_is_refused_by_its_header(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((9, 11, 3), np.uint16), photometric="rgb")
    for function in (read_image, picture_header):
        with pytest.raises(PictureError, match="11×9 is 99 pixels, above max_image_pixels=98"):
            function(tmp_path / "x.tif", 98)


# --- the steps, against plain loops and NumPy in float64 ---


def test_nothing_changes_where_nothing_is_asked_for() -> None:
    picture = RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    chain = DomainImageChain()
    assert np.array_equal(chain.apply(picture), picture)
    assert np.array_equal(chain.apply(picture[..., 0]), np.repeat(picture[..., :1], 3, axis=2))
    assert [np.array_equal(view, picture) for view in chain.views(picture)] == [True]
    with pytest.raises(PictureError, match="shape"):
        chain.apply(np.zeros((3, 0), np.uint8))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_deep_scaling(dtype: Any) -> None:
    deep = (RNG.normal(20_000, 3_000, (50, 60, 3)) * [0.5, 1, 2]).clip(0, 65535).astype(dtype)
    exact = deep.astype(np.float64)
    low, high = (0, 65535) if dtype is np.uint16 else (exact.min(), exact.max())
    assert np.allclose(to_levels(deep, settings()), (exact - low) / (high - low), atol=1e-6)
    low, high = np.percentile(exact, [1, 98])
    got = to_levels(deep, settings(deep_scaling="percentiles", percentiles=(1, 98)))
    assert np.allclose(got, ((exact - low) / (high - low)).clip(0, 1), atol=1e-5)
    got = to_levels(deep, settings(deep_scaling="per_channel", percentiles=(1, 98)))
    for channel in range(3):
        low, high = np.percentile(exact[..., channel], [1, 98])
        assert np.allclose(got[..., channel], ((exact[..., channel] - low) / (high - low)).clip(0, 1), atol=1e-5)


def test_16_bit_greyscale_keeps_what_8_bits_would_lose() -> None:
    faint = np.linspace(30_000, 30_255, 256).round().astype(np.uint16).reshape(16, 16)
    assert len(np.unique(DomainImageChain().apply(faint))) <= 2
    stretched = DomainImageChain(settings(deep_scaling="percentiles", percentiles=(0, 100))).apply(faint)
    assert len(np.unique(stretched)) == 256


def test_channel_scaling_reaches_bytes_too() -> None:
    faint = RNG.integers(100, 120, (30, 30, 3), dtype=np.uint8)
    faint[..., 2] = 7
    got = DomainImageChain(settings(channel_scaling=True, percentiles=(0, 100))).apply(faint)
    assert np.abs(got[..., :2] - (faint[..., :2] - 100.0) / 19 * 255).max() <= 0.51
    assert not got[..., 2].any()  # flat: nothing to stretch


@pytest.mark.parametrize("mode", ["dark", "uniform"])
def test_border_crop(mode: str) -> None:
    level = 0.01 if mode == "dark" else 0.8
    framed = np.full((60, 80, 3), level, np.float32)
    inner = RNG.uniform(0.2, 0.6, (30, 50, 3)).astype(np.float32)
    framed[10:40, 5:55] = inner
    framed[2, 70] = 0.5  # a speck of dust
    assert np.array_equal(crop_border(framed, settings(crop_border=mode)), inner)
    other = "uniform" if mode == "dark" else "dark"
    flat = np.full_like(framed, level)
    assert crop_border(flat, settings(crop_border=mode)).shape == flat.shape
    if other == "dark":
        assert crop_border(framed, settings(crop_border=other)).shape == framed.shape
    framed[-8:, -8:] = 0.4  # corners that differ: no one border
    if mode == "uniform":
        assert crop_border(framed, settings(crop_border=mode)).shape == framed.shape


def test_division_evens_the_light_out() -> None:
    texture = RNG.uniform(0.4, 0.6, (120, 160, 1)).astype(np.float32)
    light = np.linspace(0.3, 1.0, 160, dtype=np.float32)[None, :, None]
    lit = texture * light
    even = divide_by_background(lit, 0.1)

    def unevenness(picture: np.ndarray) -> float:
        columns = picture.mean(axis=(0, 2))[16:-16]
        return float(columns[:40].mean() / columns[-40:].mean())

    assert unevenness(lit) < 0.55
    assert 0.9 < unevenness(even) < 1.1
    assert even.mean() == pytest.approx(lit.mean(), abs=0.03)
    inside = np.corrcoef(even[:, 20:-20].ravel(), texture[:, 20:-20].ravel())[0, 1]
    assert inside > 0.95 > np.corrcoef(lit[:, 20:-20].ravel(), texture[:, 20:-20].ravel())[0, 1]


def test_grey_world() -> None:
    scene = RNG.uniform(0.2, 0.5, (20, 20, 3))
    cast = (scene * [1.3, 1.0, 0.6]).astype(np.float32)
    got = grey_world(cast)
    assert np.ptp(got.mean(axis=(0, 1))) < 1e-3
    assert np.allclose(got / cast, (cast.mean() / cast.mean(axis=(0, 1))), rtol=1e-4)
    grey = cast[..., :1]
    assert grey_world(grey) is grey


def test_clahe_is_scikit_images_and_keeps_flat_pictures() -> None:
    from skimage import color, exposure

    picture = RNG.uniform(0.4, 0.5, (64, 96)).astype(np.float32)
    want = exposure.equalize_adapthist(picture, kernel_size=(16, 24), clip_limit=0.02)
    got = clahe(picture[..., None], 0.02, 4)
    assert np.allclose(got[..., 0], want, atol=1e-6)
    assert got.std() > 3 * picture.std()
    coloured = RNG.uniform(0.2, 0.6, (64, 96, 3)).astype(np.float32)
    coloured[3, 4] = 0
    hsv = color.rgb2hsv(coloured)
    hsv[..., 2] = exposure.equalize_adapthist(hsv[..., 2], kernel_size=(16, 24), clip_limit=0.02)
    assert np.allclose(clahe(coloured, 0.02, 4), color.hsv2rgb(hsv), atol=1e-5)
    chain = DomainImageChain(settings(clahe_clip_limit=0.02))
    flat = np.full((20, 20, 3), 90, np.uint8)
    assert np.array_equal(chain.apply(flat), flat)
    assert chain.apply(RNG.integers(0, 256, (1, 2, 3), dtype=np.uint8)).shape == (1, 2, 3)


def test_a_large_picture_is_shrunk_before_the_steps_and_no_further_than_asked() -> None:
    blocks = RNG.integers(0, 60000, (5, 6, 3)).astype(np.uint16)
    picture = np.kron(blocks, np.ones((4, 4, 1), np.uint16))
    assert np.array_equal(shrink(picture, 4), blocks)
    assert np.array_equal(shrink(picture.astype(np.float32)[..., 0], 4), blocks[..., 0])
    chain = DomainImageChain(settings(illumination="grey_world"))
    large = np.zeros((3000, 4000, 3), np.uint8)
    assert large[..., 0].size > LARGE
    assert chain.apply(large, target=320).shape == (1500, 2000, 3)
    assert chain._reduction(3000, 4000, target=1600) == 1
    tiled = DomainImageChain(settings(illumination="grey_world", tile_side=512))
    assert tiled._reduction(4000, 4000, target=320) == 1 == tiled._reduction(512, 500, target=320)
    assert 9000 * 12000 / tiled._reduction(9000, 12000, target=320) ** 2 < 2**24
    assert DomainImageChain(settings(tile_side=512))._reduction(9000, 12000, target=320) == 1


# --- tiles ---


@pytest.mark.parametrize(
    ("height", "width", "side", "overlap"), [(100, 230, 64, 0.0), (99, 64, 32, 0.5), (20, 300, 64, 0.9)]
)
def test_tiles_cover_the_picture_with_their_overlap(height: int, width: int, side: int, overlap: float) -> None:
    boxes = tile_boxes(height, width, side, overlap)
    seen = np.zeros((height, width), int)
    for top, left, h, w in boxes:
        assert (h, w) == (min(side, height), min(side, width))
        assert top >= 0 and left >= 0 and top + h <= height and left + w <= width
        seen[top : top + h, left : left + w] += 1
    assert seen.min() >= 1
    lefts = sorted({left for _, left, _, _ in boxes})
    assert all(right - left <= side - side * overlap for left, right in itertools.pairwise(lefts))
    if len(lefts) > 2:  # one fewer would not do
        assert (width - side) / (len(lefts) - 2) > side - np.ceil(side * overlap)


def test_the_embedding_of_a_tiled_picture_is_the_mean_of_its_tiles() -> None:
    encoder = make_tiny_clip()
    picture = RNG.integers(0, 256, (96, 160, 3), dtype=np.uint8)
    small = RNG.integers(0, 256, (64, 40, 3), dtype=np.uint8)
    engine = EmbeddingEngine(encoder, batch_size=2, preprocessing=settings(tile_side=64, tile_overlap=0.25))
    got = engine.encode_images([Image.fromarray(picture), Image.fromarray(small)])
    plain = EmbeddingEngine(encoder)
    tiles = [picture[top : top + 64, left : left + 64] for top in (0, 32) for left in (0, 48, 96)]
    each = plain.encode_images([Image.fromarray(np.ascontiguousarray(tile)) for tile in tiles])
    assert torch.allclose(got[0], F.normalize(each.mean(dim=0), dim=0), atol=1e-5)
    assert torch.allclose(got[1], plain.encode_images([Image.fromarray(small)])[0], atol=1e-5)


def config(**values: Any) -> CLIPFinetuningConfig:
    still = {"color_jitter": 0.0, "crop_scale": 1.0, "image_resolution": 32}
    return CLIPFinetuningConfig(**{**still, **values})


def test_training_shows_one_tile_at_a_time_and_each_in_turn() -> None:
    # Every tile has a colour of its own: what a view shows tells where it comes from.
    colours = RNG.integers(0, 256, (2, 3, 3), dtype=np.uint8)
    picture = np.kron(colours, np.ones((128, 128, 1), np.uint8))
    spec = ImageSpec(32, None, "squash")
    steps = settings(tile_side=128, tile_overlap=0.0)
    transform = ImageTransform(config(image_preprocessing=steps), augment=True, spec=spec)
    base = transform.base(picture)
    assert base.shape == (3, 128, 192)  # a tile keeps twice the model's side
    shown = {tuple(transform.finish(base, random.Random(number))[:, 16, 16].tolist()) for number in range(80)}
    assert shown == {tuple(colour) for colour in colours.reshape(-1, 3).tolist()}
    again = [transform.finish(base, random.Random(5)) for _ in range(2)]
    assert torch.equal(*again)
    small = transform.base(picture[:100, :128])
    assert max(small.shape[1:]) <= transform.chain.tile_pixels(transform.target)
    without = ImageTransform(config(), augment=True, spec=spec)
    assert torch.equal(transform.finish(small, random.Random(4)), without.finish(small, random.Random(4)))
    whole = ImageTransform(config(image_preprocessing=steps), spec=spec)
    assert whole.base(picture).shape == (3, 32, 32)


# --- views with chance ---


def test_rotation_by_a_quarter_is_exact_and_small_ones_leave_no_corners() -> None:
    view = torch.from_numpy(RNG.integers(0, 256, (3, 24, 24), dtype=np.uint8))
    assert (rotated(view, 90).int() - view.rot90(1, (1, 2)).int()).abs().max() <= 1
    bright = torch.full((3, 40, 30), 200, dtype=torch.uint8)
    assert torch.equal(rotated(bright, 13), bright)
    smooth = torch.from_numpy(np.indices((48, 48)).sum(axis=0).astype(np.uint8) * 2)[None].repeat(3, 1, 1)
    want = np.asarray(Image.fromarray(smooth[0].numpy()).rotate(10, Image.Resampling.BILINEAR))
    inside = slice(12, 36)
    assert np.abs(rotated(smooth, 10)[0, inside, inside].numpy().astype(int) - want[inside, inside]).max() <= 2


def test_stain_jitter_moves_the_amounts_of_stains_alone() -> None:
    from skimage import color

    stained = color.hed2rgb(RNG.uniform(0, 0.15, (16, 16, 3)))
    view = torch.from_numpy((stained * 255).round().astype(np.uint8)).permute(2, 0, 1)
    got = random_view(view, settings(stain_jitter=0.3), random.Random(1))
    draws = random.Random(1)
    moves = [draws.uniform(-1, 1) for _ in range(6)]
    amounts = color.rgb2hed(view.permute(1, 2, 0).numpy())
    want = color.hed2rgb(amounts * (1 + 0.3 * np.array(moves[:3])) + 0.03 * np.array(moves[3:]))
    assert np.abs(got.permute(1, 2, 0).numpy() - want * 255).max() <= 0.51
    assert not torch.equal(got, view)


def test_spectral_jitter_scales_each_channel() -> None:
    view = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    view[:, 0, 0] = torch.tensor([0, 10, 20])  # a coloured pixel: a grey picture would have one gain
    seen = torch.stack([random_view(view, settings(spectral_jitter=0.2), random.Random(n)) for n in range(300)])
    means = seen[..., 1:].float().mean(dim=(2, 3))
    assert 80 <= means.min() < 83 and 117 < means.max() <= 120
    assert np.abs(np.corrcoef(means.T.numpy()) - np.eye(3)).max() < 0.2
    half = random_view(view, settings(spectral_jitter=0.2), random.Random(3), strength=0.5)
    assert ((half.float() - 100) - (seen[3].float() - 100) / 2)[..., 1:].abs().max() <= 1


def test_grey_pictures_stay_grey() -> None:
    view = torch.from_numpy(RNG.integers(0, 200, (1, 8, 8), dtype=np.uint8)).repeat(3, 1, 1)
    assert torch.equal(random_view(view, settings(stain_jitter=0.3), random.Random(0)), view)
    got = random_view(view, settings(spectral_jitter=0.2, rotation_degrees=20), random.Random(0))
    assert torch.equal(got[0], got[1]) and torch.equal(got[1], got[2]) and not torch.equal(got, view)


def test_views_depend_on_seed_epoch_and_row_alone(tiny_data, tmp_path: Path) -> None:
    steps = settings(rotation_degrees=10, spectral_jitter=0.1, clahe_clip_limit=0.01, crop_border="uniform")
    values = config(image_preprocessing=steps, augment_images=True, num_workers=0)
    processor = make_tiny_clip().processor
    spec = ImageSpec.from_processor(processor.image_processor)

    def data(**options: Any) -> CLIPDataset:
        transform = ImageTransform(values, augment=True, spec=spec)
        return CLIPDataset(tiny_data.pairs(), processor, values, transform, **options)

    one, other = data(), data(cache=False)
    for epoch in range(2):
        for row in range(4):
            assert torch.equal(one.pixels((epoch, row)), other.pixels((epoch, row)))
    assert not torch.equal(one.pixels((0, 0)), one.pixels((1, 0)))


def test_settings_that_are_off_draw_no_numbers() -> None:
    view = torch.zeros(3, 4, 4, dtype=torch.uint8)
    rng = random.Random(0)
    assert random_view(view, settings(), rng) is view
    assert rng.random() == random.Random(0).random()


# --- the whole way ---


def test_training_and_evaluation_see_the_same_steps(tiny_data) -> None:
    steps = settings(illumination="divide", clahe_clip_limit=0.02)
    encoder = make_tiny_clip()
    values = CLIPFinetuningConfig(image_preprocessing=steps, num_workers=0)
    data = CLIPDataset(tiny_data.pairs(), encoder.processor, values)
    engine = EmbeddingEngine(encoder, preprocessing=values.picture_steps())
    path = tiny_data.pairs()[0].image_path
    assert torch.equal(data.pixels(0), engine._views(path)[0])
    expected = DomainImageChain(steps).apply(read_image(path))
    assert torch.equal(data.pixels(0), engine.spec.apply(expected))
    assert not torch.equal(data.pixels(0), EmbeddingEngine(encoder)._views(path)[0])


def test_allowed_turns_forbid_what_the_recipe_would_do() -> None:
    model = ModelFacts(224, 77, False, "transformer", "transformer", 0.07)
    facts = DataFacts(100, 0.0, 0.0, 0, False, 2)
    steps = {"allowed_turns": ["vertical"]}
    recipe, decisions = resolve(CLIPFinetuningConfig(image_preprocessing=steps), model, facts)
    assert not recipe.horizontal_flip
    assert any(d.key == "horizontal_flip" and "allowed_turns" in d.reason for d in decisions)
    recipe, _ = resolve(CLIPFinetuningConfig(image_preprocessing=steps, vertical_flip=True), model, facts)
    assert recipe.vertical_flip
    with pytest.raises(ConfigurationError, match=r"rotate90=true does not go with allowed_turns=\['vertical'\]"):
        resolve(CLIPFinetuningConfig(image_preprocessing=steps, rotate90=True), model, facts)
    assert resolve(CLIPFinetuningConfig(), model, facts)[0].horizontal_flip


def test_wrong_settings_say_what_is_wrong() -> None:
    for values, message in (
        ({"claeh_tiles": 4}, "Unknown key 'claeh_tiles': did you mean 'clahe_tiles'"),
        ({"page": "all"}, "Invalid page 'all': choose 'first', 'middle', 'mean' or 'error'"),
        ({"window_center": 40}, "window_center without window_width"),
        ({"percentiles": (5, 5)}, r"percentiles must rise .*\[5, 5\]"),
        ({"rotation_degrees": 200}, "must be at most 180"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            ImagePreprocessing(**values)
        with pytest.raises(ConfigurationError, match=message):
            CLIPFinetuningConfig(image_preprocessing=values)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_large_picture_is_read_small_only_where_that_is_enough(tmp_path: Path, monkeypatch, kind: str) -> None:
    ramp = np.linspace(0, 255, 800).astype(np.uint8)
    picture = np.stack([np.broadcast_to(ramp, (600, 800))] * 3, axis=2)
    path = tmp_path / "x"
    for orientation, size in ((1, (600, 800)), (6, (800, 600))):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(picture).save(path, kind, exif=exif)
        assert read_image(path, at_least=100).shape[:2] == size
        monkeypatch.setattr("domainclip.data.images.LARGE_PICTURE", 1000)
        small = read_image(path, at_least=100)
        assert 100 <= min(small.shape[:2]) < 200 and max(small.shape[:2]) < 300
        along = small[..., 0].mean(axis=0 if orientation == 1 else 1)
        want = np.interp(np.linspace(0, 799, len(along)), np.arange(800), ramp)
        assert np.abs(along - want).max() < 3
        assert read_image(path).shape[:2] == size
        monkeypatch.undo()


# --- the sheet ---


def test_preview_shows_each_stage(tiny_data, tmp_path: Path, domainclip) -> None:
    from domainclip.data.contact_sheet import CELL
    from domainclip.finetune.preview import preview

    steps = settings(clahe_clip_limit=0.02, crop_border="uniform", tile_side=32)
    values = config(image_preprocessing=steps, data_path=str(tiny_data.folder / "train.csv"), train_split=1.0,
                    val_split=0.0, test_split=0.0, augment_images=True)  # fmt: skip
    made = preview(values, "train", 3)
    sheet = Image.open(io.BytesIO(made.sheet))
    assert made.pictures == 3 and not made.problems
    assert sheet.width > 5 * CELL and sheet.height > 3 * CELL
    again = preview(values, "train", 3)
    assert again.sheet == made.sheet
    plain = preview(values.updated(image_preprocessing=None), "train", 3)
    stored, other = np.asarray(sheet), np.asarray(Image.open(io.BytesIO(plain.sheet)))
    assert np.array_equal(stored[-250:-60, :CELL], other[-250:-60, :CELL])  # as stored
    assert not np.array_equal(stored[-250:-60, CELL + 20 : 2 * CELL], other[-250:-60, CELL + 20 : 2 * CELL])

    out = tmp_path / "sheet.png"
    done = domainclip("data", "preview", "--data", tiny_data.folder, "-n", 2, "-o", out, "--domain", "medical")
    assert done.exit_code == 0, done.err
    assert Image.open(out).format == "PNG"
    wrong = domainclip("data", "preview", "--data", tiny_data.folder, "-o", tmp_path)
    assert wrong.exit_code == 2 and "PNG" in wrong.err


def test_preview_leaves_out_what_cannot_be_read(tmp_path: Path) -> None:
    from domainclip.errors import DataError
    from domainclip.finetune.preview import preview

    (tmp_path / "bad.png").write_bytes(b"no picture")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "good.png")
    table = tmp_path / "table.csv"
    table.write_text("image_path,caption\nbad.png,one\ngood.png,two\n")
    values = CLIPFinetuningConfig(data_path=str(table), train_split=1.0, val_split=0.0, test_split=0.0)
    made = preview(values, "train", 2)
    assert made.pictures == 1 and "bad.png" in made.problems[0]
    with pytest.raises(DataError, match=r"bad\.png"):
        preview(values.updated(strict=True), "train", 2)

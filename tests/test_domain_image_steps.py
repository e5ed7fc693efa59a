"""Steps on pictures of a field: against plain loops, NumPy and scikit-image, and in a preview."""

from __future__ import annotations

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

from domain_image_cases import RNG, settings
from domainclip.config import CLIPFinetuningConfig, DataFacts, ModelFacts, resolve
from domainclip.config.domain_images import ImagePreprocessing
from domainclip.data.dataset import CLIPDataset
from domainclip.data.domain.chain import LARGE, DomainImageChain, shrink, tile_boxes
from domainclip.data.domain.steps import clahe, crop_border, divide_by_background, grey_world, to_levels
from domainclip.data.domain.views import random_view, rotated
from domainclip.data.image_spec import ImageSpec
from domainclip.data.images import read_image
from domainclip.data.transforms import ImageTransform
from domainclip.embedding import EmbeddingEngine
from domainclip.errors import ConfigurationError, PictureError
from domainclip.models import make_tiny_clip

pytest.importorskip("skimage")


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

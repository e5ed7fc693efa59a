"""Views of images of a domain, the whole way from a recipe, and the sheet that shows it."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from domain_image_cases import RNG, settings
from domain_image_step_cases import config
from domainclip.config import CLIPFinetuningConfig
from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.data.dataset import CLIPDataset
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.pipeline import DomainImagePipeline
from domainclip.data.images.reader import read_image
from domainclip.data.images.store import ImageStore
from domainclip.data.images.transforms import ImageTransform
from domainclip.data.images.views import random_view, rotated
from domainclip.domains.recipes import image_steps
from domainclip.errors import ConfigurationError
from domainclip.inference import EmbeddingEngine
from domainclip.models import make_tiny_clip
from domainclip.resolve import DataFacts, ModelFacts, resolve

pytest.importorskip("skimage")


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
    view[:, 0, 0] = torch.tensor([0, 10, 20])  # a coloured pixel: a grey image would have one gain
    seen = torch.stack([random_view(view, settings(spectral_jitter=0.2), random.Random(n)) for n in range(300)])
    means = seen[..., 1:].float().mean(dim=(2, 3))
    assert 80 <= means.min() < 83 and 117 < means.max() <= 120
    assert np.abs(np.corrcoef(means.T.numpy()) - np.eye(3)).max() < 0.2
    half = random_view(view, settings(spectral_jitter=0.2), random.Random(3), strength=0.5)
    assert ((half.float() - 100) - (seen[3].float() - 100) / 2)[..., 1:].abs().max() <= 1


def test_grey_images_stay_grey() -> None:
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

    one, other = data(), data(images=ImageStore(0))
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
    engine = EmbeddingEngine(encoder, preprocessing=image_steps(values))
    path = tiny_data.pairs()[0].image_path
    assert torch.equal(data.pixels(0), engine.pixels([path])[0])
    expected = DomainImagePipeline(steps).apply(read_image(path))
    assert torch.equal(data.pixels(0), engine.spec.apply(expected))
    assert not torch.equal(data.pixels(0), EmbeddingEngine(encoder).pixels([path])[0])


def test_allowed_turns_forbid_what_the_recipe_would_do() -> None:
    model = ModelFacts(224, 77, False, "transformer", "transformer", 0.07)
    facts = DataFacts(100, 0.0, 0.0, 0, False, 2)
    steps = {"allowed_turns": ["vertical"]}
    run = resolve(CLIPFinetuningConfig(image_preprocessing=steps), model, facts)
    recipe, decisions = run.recipe, list(run.decisions)
    assert not recipe.horizontal_flip
    assert any(d.key == "horizontal_flip" and "allowed_turns" in d.reason for d in decisions)
    recipe = resolve(CLIPFinetuningConfig(image_preprocessing=steps, vertical_flip=True), model, facts).recipe
    assert recipe.vertical_flip
    with pytest.raises(ConfigurationError, match=r"rotate90=true does not go with allowed_turns=\['vertical'\]"):
        resolve(CLIPFinetuningConfig(image_preprocessing=steps, rotate90=True), model, facts)
    assert resolve(CLIPFinetuningConfig(), model, facts).recipe.horizontal_flip


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
def test_a_large_image_is_read_small_only_where_that_is_enough(tmp_path: Path, monkeypatch, kind: str) -> None:
    ramp = np.linspace(0, 255, 800).astype(np.uint8)
    image = np.stack([np.broadcast_to(ramp, (600, 800))] * 3, axis=2)
    path = tmp_path / "x"
    for orientation, size in ((1, (600, 800)), (6, (800, 600))):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(image).save(path, kind, exif=exif)
        assert read_image(path, at_least=100).shape[:2] == size
        monkeypatch.setattr("domainclip.data.images.reader.LARGE_IMAGE", 1000)
        small = read_image(path, at_least=100)
        assert 100 <= min(small.shape[:2]) < 200 and max(small.shape[:2]) < 300
        along = small[..., 0].mean(axis=0 if orientation == 1 else 1)
        want = np.interp(np.linspace(0, 799, len(along)), np.arange(800), ramp)
        assert np.abs(along - want).max() < 3
        assert read_image(path).shape[:2] == size
        monkeypatch.undo()


# --- the sheet ---


def test_preview_shows_each_stage(tiny_data, tmp_path: Path, domainclip) -> None:
    from domainclip.data.checks.contact_sheet import CELL
    from domainclip.pipelines.preview import preview

    steps = settings(clahe_clip_limit=0.02, crop_border="uniform", tile_size=32)
    values = config(
        image_preprocessing=steps,
        data_path=str(tiny_data.folder / "train.csv"),
        train_split=1.0,
        val_split=0.0,
        test_split=0.0,
        augment_images=True,
    )
    made = preview(values, "train", 3)
    sheet = Image.open(io.BytesIO(made.sheet))
    assert made.images == 3 and not made.skipped
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


def test_preview_shows_what_becomes_of_a_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from domainclip.pipelines import preview as module

    Image.new("RGB", (40, 30), (90, 120, 30)).save(tmp_path / "a.png")
    table = tmp_path / "t.csv"
    table.write_text("image_path,caption\na.png,CXR of a patient\n")
    shown: list[module.SheetRow] = []
    drawn = module.contact_sheet
    monkeypatch.setattr(
        module, "contact_sheet", lambda names, rows, *rest: shown.extend(rows) or drawn(names, rows, *rest)
    )
    heights = []
    for domain in ("general", "medical"):
        made = module.preview(config(data_path=str(table), domain=domain), "all", 1)
        heights.append(Image.open(io.BytesIO(made.sheet)).height)
    assert [row.treated for row in shown] == ["", "Chest X-ray of a patient"]
    assert heights[1] > heights[0]


def test_preview_leaves_out_what_cannot_be_read(tmp_path: Path) -> None:
    from domainclip.errors import DataError
    from domainclip.pipelines.preview import preview

    (tmp_path / "bad.png").write_bytes(b"no image")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "good.png")
    table = tmp_path / "table.csv"
    table.write_text("image_path,caption\nbad.png,one\ngood.png,two\n")
    values = CLIPFinetuningConfig(data_path=str(table), train_split=1.0, val_split=0.0, test_split=0.0)
    made = preview(values, "train", 2)
    assert made.images == 1 and "bad.png" in made.skipped[0]
    with pytest.raises(DataError, match=r"bad\.png"):
        preview(values.updated(strict=True), "train", 2)

"""Which resolutions a tower takes, what is saved at another one, and whole runs there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    CLIPImageProcessorPil,
    SiglipImageProcessorPil,
)

from domainclip.config import CLIPFinetuningConfig, ModelSettings
from domainclip.data.images.image_spec import ImageSpec
from domainclip.errors import ConfigurationError
from domainclip.models import DualEncoder, EncoderProcessor, load_encoder, make_tiny_clip
from domainclip.models import position_embeddings as positions_module
from domainclip.models.io import load_weights, save_encoder
from domainclip.models.position_embeddings import (
    ORIGINAL_POSITIONS,
)
from domainclip.pipelines.controller import CLIPFinetuningController
from domainclip.resolve.resolution import ResolutionRule, ShortSides, choose_resolution
from model_zoo import save_bert, save_siglip, save_vision_text
from resolution_cases import SIZES, tower

pytestmark = pytest.mark.slow

# --- resolutions ---


def test_a_resolution_that_patches_do_not_fill_is_refused_with_the_nearest_ones() -> None:
    encoder = make_tiny_clip()
    assert encoder.resolution_rule == ResolutionRule(32, 8, smallest=8)
    for size in ((36, 36), (48, 36)):
        with pytest.raises(ConfigurationError, match=r"drop the 4 at the edge: choose 32 or 40"):
            encoder.encode_image(torch.zeros(1, 3, *size))
    with pytest.raises(ConfigurationError, match="8 pixels at least: choose 8"):
        encoder.encode_image(torch.zeros(1, 3, 4, 4))
    with torch.no_grad():
        assert encoder.encode_image(torch.zeros(1, 3, 8, 8)).shape == (1, 32)


@pytest.mark.parametrize(
    ("rule", "allowed", "refused", "nearest"),
    [
        (ResolutionRule(224, 16, 16), (16, 96, 224, 1024), (8, 100, 225), {225: [224, 240], 8: [16], 100: [96, 112]}),
        (ResolutionRule(384, 14, 14), (378, 384, 392), (380, 391), {380: [378, 384], 391: [384, 392], 370: [364, 378]}),
        (ResolutionRule(160, 1, 32), (32, 33, 160, 161), (31, 16), {31: [32]}),
        (ResolutionRule(224, None), (224,), (112, 448), {112: [224]}),
    ],
)
def test_the_rule_of_resolutions(
    rule: ResolutionRule, allowed: tuple[int, ...], refused: tuple[int, ...], nearest: dict[int, list[int]]
) -> None:
    for resolution in allowed:
        assert rule.allows(resolution) and rule.problem(resolution) is None
    for resolution in refused:
        assert not rule.allows(resolution)
        assert "choose" in str(rule.problem(resolution)) or "only" in str(rule.problem(resolution))
    for resolution, choices in nearest.items():
        assert rule.nearest(resolution) == choices
        assert all(str(choice) in str(rule.problem(resolution)) for choice in choices)
        assert all(rule.allows(choice) for choice in choices)


def test_a_native_resolution_that_is_no_multiple_of_the_patch_is_the_towers_own() -> None:
    """As SigLIP so400m/14 at 384 pixels, which floors to 27 × 27 patches."""
    rule = ResolutionRule(384, 14, 14)
    assert rule.allows(384, 384) and not rule.allows(384, 378)
    assert "choose 378 or 392" in str(rule.problem(384, 378))


def vision_text(folder: Path, vision: str) -> DualEncoder:
    return load_encoder(ModelSettings(model_name=str(save_vision_text(folder / "joint", folder / "parts", vision))))


def test_a_joint_model_with_a_vit_takes_any_resolution(tmp_path: Path) -> None:
    encoder = vision_text(tmp_path, "vit")
    assert encoder.resolution_rule == ResolutionRule(32, 8, smallest=8)
    plain = AutoModel.from_pretrained(tmp_path / "joint").eval()
    for size in SIZES:
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            wanted = plain.get_image_features(pixel_values=images, interpolate_pos_encoding=True).pooler_output
            torch.testing.assert_close(encoder.encode_image(images), wanted, rtol=0, atol=1e-6)


def test_a_convolutional_tower_takes_any_resolution_from_its_stride_on(tmp_path: Path) -> None:
    encoder = vision_text(tmp_path, "mobilenet").train()
    statistics = {name: value.clone() for name, value in encoder.named_buffers()}
    assert encoder.resolution_rule == ResolutionRule(32, 1, smallest=32)
    assert encoder.resolution_step == 32
    assert encoder.training
    assert all(torch.equal(value, statistics[name]) for name, value in encoder.named_buffers())  # trying left no trace
    with torch.no_grad():
        assert encoder.encode_image(torch.zeros(1, 3, 45, 71)).shape == (1, 16)
    with pytest.raises(ConfigurationError, match="32 pixels at least"):
        encoder.encode_image(torch.zeros(1, 3, 31, 64))


def test_a_tower_that_takes_one_resolution_only_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(positions_module._SCHEMES, "vit")  # stands for any tower with fixed positions
    encoder = vision_text(tmp_path, "vit")
    assert encoder.resolution_rule == ResolutionRule(32, None, smallest=32)
    with pytest.raises(ConfigurationError, match="takes 32 pixels only"):
        encoder.resolution_step
    with pytest.raises(ConfigurationError, match="takes 32 pixels only"):
        encoder.encode_image(torch.zeros(1, 3, 48, 48))


def test_a_recipe_whose_resolution_does_not_fit_is_refused(
    domainclip: Callable, tiny_data: Any, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    result = domainclip("train", "-r", "debug", "--data", tiny_data.folder, "--output", output, "image_resolution=50")
    assert result.exit_code == 2
    assert "image_resolution=50 does not fit" in result.err and "choose 48 or 56" in result.err
    assert not (output / "model").exists()


# --- saving ---


def loaded(kind: str, folder: Path) -> DualEncoder:
    if kind == "clip":
        encoder = make_tiny_clip(3)
        save_encoder(encoder, folder / "clip")
        return encoder
    if kind == "siglip":
        return load_encoder(ModelSettings(model_name=str(save_siglip(folder / "siglip"))))
    return vision_text(folder, "vit")


@pytest.mark.parametrize("resolution", [16, 64])
@pytest.mark.parametrize("kind", ["clip", "siglip", "vit"])
def test_what_is_saved_needs_no_interpolation_and_gives_the_original_back(
    kind: str, resolution: int, tmp_path: Path
) -> None:
    encoder = loaded(kind, tmp_path)
    assert encoder.positions is not None
    original, parameter = encoder.positions.parameter.detach().clone(), encoder.positions.parameter
    weights = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.processor.set_resolution(resolution)
    folder = tmp_path / "saved"
    save_encoder(encoder, folder)
    assert encoder.positions.parameter is parameter  # the optimizer's own, as it was
    assert encoder.model.config.vision_config.image_size == 32
    assert all(torch.equal(value, weights[name]) for name, value in encoder.state_dict().items())

    plain = AutoModel.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    pixels = processor(images=image, return_tensors="pt")["pixel_values"]
    assert pixels.shape[-2:] == (resolution, resolution)
    assert plain.config.vision_config.image_size == resolution
    fresh = load_encoder(ModelSettings(model_name=str(folder)))  # and this package reads it as any other model
    assert fresh.native_resolution == resolution and fresh.positions is not None
    assert fresh.positions.size == (32, 32) and torch.equal(fresh.positions.parameter, original)
    with torch.no_grad():
        here = encoder.encode_image(pixels)
        torch.testing.assert_close(plain.get_image_features(pixel_values=pixels).pooler_output, here, rtol=0, atol=1e-6)
        torch.testing.assert_close(fresh.encode_image(pixels), here, rtol=0, atol=1e-6)

    with torch.no_grad():
        parameter.normal_()
    load_weights(encoder, folder)
    assert torch.equal(encoder.positions.parameter, original)
    assert all(torch.equal(value, weights[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("kind", ["clip", "siglip", "vit"])
def test_a_second_resize_starts_from_the_first_table(kind: str, tmp_path: Path) -> None:
    """32 → 16 → saved, loaded → 64: what 32 → 64 gives, not what is left after 16. Back at 32 it is the first."""
    encoder = loaded(kind, tmp_path)
    encoder.processor.set_resolution(16)
    save_encoder(encoder, tmp_path / "small")
    fresh = load_encoder(ModelSettings(model_name=str(tmp_path / "small")))
    for resolution in (64, 32, 16):
        pixels = torch.randn(2, 3, resolution, resolution, generator=torch.Generator().manual_seed(resolution))
        with torch.no_grad():
            torch.testing.assert_close(fresh.encode_image(pixels), encoder.encode_image(pixels), rtol=0, atol=1e-6)
        fresh.processor.set_resolution(resolution)
        save_encoder(fresh, tmp_path / f"again{resolution}")
        plain = AutoModel.from_pretrained(tmp_path / f"again{resolution}").eval()
        assert plain.config.vision_config.image_size == resolution
        with torch.no_grad():
            again = plain.get_image_features(pixel_values=pixels).pooler_output
            torch.testing.assert_close(again, encoder.encode_image(pixels), rtol=0, atol=1e-6)


def test_a_model_saved_at_its_own_resolution_has_nothing_beside_it(tmp_path: Path) -> None:
    save_encoder(make_tiny_clip(), tmp_path)
    assert not (tmp_path / ORIGINAL_POSITIONS).exists()


def test_a_save_that_fails_leaves_the_model_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make_tiny_clip()
    assert encoder.positions is not None
    parameter = encoder.positions.parameter
    encoder.processor.set_resolution(64)

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(encoder.model, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        save_encoder(encoder, tmp_path)
    assert encoder.positions.parameter is parameter
    assert encoder.model.config.vision_config.image_size == 32


def test_a_tower_that_interpolates_by_itself_is_saved_as_it_is(tmp_path: Path) -> None:
    dinov2 = tower("dinov2")
    dinov2.save_pretrained(tmp_path / "dinov2")
    CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path / "dinov2"
    )
    text = save_bert(tmp_path / "bert")
    encoder = load_encoder(ModelSettings(vision_model_name=str(tmp_path / "dinov2"), text_model_name=str(text)))
    encoder.processor.set_resolution(64)
    save_encoder(encoder, tmp_path / "saved")
    plain = AutoModel.from_pretrained(tmp_path / "saved").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = encoder.encode_image(images)
        torch.testing.assert_close(
            plain.get_image_features(pixel_values=images).pooler_output, wanted, rtol=0, atol=1e-6
        )
    assert plain.config.vision_config.image_size == 32


# --- images ---

PROCESSORS: dict[str, Callable[[], Any]] = {
    "clip": lambda: CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    "margin": lambda: CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}),
    "siglip": lambda: SiglipImageProcessorPil(size={"height": 32, "width": 32}),
}


@pytest.mark.parametrize("resolution", [16, 40, 64, 97])
@pytest.mark.parametrize("name", PROCESSORS)
def test_an_image_at_another_resolution_is_what_the_processor_makes_at_that_resolution(
    name: str, resolution: int
) -> None:
    processor = PROCESSORS[name]()
    spec = ImageSpec.from_processor(processor).at(resolution)
    EncoderProcessor(None, processor, "causal", 77).set_resolution(resolution)
    assert ImageSpec.from_processor(processor) == spec
    coarse = np.random.default_rng(resolution).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for width, height in ((120, 80), (80, 120), (64, 64), (33, 200)):
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        wanted = torch.as_tensor(np.asarray(processor(images=image)["pixel_values"][0]))
        found = spec.normalise(spec.apply(np.array(image))[None])[0]
        steps = (found - wanted).abs() * torch.tensor(spec.std).view(3, 1, 1) * 255
        assert found.shape == (3, resolution, resolution)
        assert float(steps.max()) <= 2.01 and float((steps > 1.01).float().mean()) < 1e-3


# --- a whole run ---


@pytest.mark.parametrize("resolution", [16, 64])
def test_training_at_another_resolution(domainclip: Callable, tiny_data: Any, tmp_path: Path, resolution: int) -> None:
    output = tmp_path / "run"
    result = domainclip(
        "train", "-r", "debug", "--data", tiny_data.folder, "--output", output, f"image_resolution={resolution}"
    )
    assert result.exit_code == 0, result.err
    report = json.loads((output / "report.json").read_text())
    assert report["training"]["steps"] == 2 and 0 <= report["after"]["acc1"] <= 1
    table = "vision_model.embeddings.position_embedding.weight"
    positions = load_file(output / "model" / "model.safetensors")[table]
    assert positions.shape == (1 + (resolution // 8) ** 2, 32)

    state = torch.load(next((output / "checkpoints").glob("step-*/state.pt")), weights_only=True)
    trained = state["model"][f"model.{table}"]
    assert trained.shape == (17, 32)  # training went on with the original ones
    assert not torch.equal(trained, make_tiny_clip().model.state_dict()[table])

    plain = AutoModel.from_pretrained(output / "model").eval()
    processor = AutoImageProcessor.from_pretrained(output / "model", backend="pil")
    paths = [pair.image_path for pair in tiny_data.pairs("test")]
    images = [Image.open(path).convert("RGB") for path in paths]
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    assert pixels.shape[-1] == resolution
    controller = CLIPFinetuningController(CLIPFinetuningConfig(model_name=str(output / "model"), mixed_precision=False))
    controller.setup()
    with torch.no_grad():
        embeds = F.normalize(plain.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    # The two resize images each in its own way, equal within a step of a byte.
    torch.testing.assert_close(controller.encode_image(images), embeds, rtol=0, atol=2e-2)
    assert controller.model is not None
    with torch.no_grad():
        again = F.normalize(controller.model.encode_image(pixels), dim=-1)
    torch.testing.assert_close(again, embeds, rtol=0, atol=1e-6)

    if resolution == 16:
        return  # what follows reads whatever was saved, the same way at both sizes
    resumed = domainclip(
        "train",
        "-r",
        "debug",
        "--data",
        tiny_data.folder,
        "--output",
        output,
        f"image_resolution={resolution}",
        "--resume",
    )
    assert resumed.exit_code == 0, resumed.err
    same = load_file(output / "model" / "model.safetensors")
    assert all(torch.equal(value, same[name]) for name, value in plain.state_dict().items())

    evaluated = domainclip("evaluate", "--model", output / "model", "--data", tiny_data.folder)
    assert evaluated.exit_code == 0, evaluated.err


def test_evaluation_at_another_resolution_than_the_models(domainclip: Callable, tiny_data: Any) -> None:
    results = {
        resolution: domainclip(
            "evaluate", "--model", "tiny", "--data", tiny_data.folder, f"image_resolution={resolution}"
        )
        for resolution in (24, 36)
    }
    assert results[24].exit_code == 0, results[24].err
    assert results[36].exit_code == 2
    assert "choose 32 or 40" in results[36].err


# --- choosing ---


def test_short_resolutions_are_numpys_percentiles() -> None:
    rng = np.random.default_rng(0)
    sizes = [(int(w), int(h)) for w, h in rng.integers(20, 900, (137, 2))]
    short = np.array(sizes).min(axis=1)
    found = ShortSides.from_sizes(sizes)
    assert found.count == 137
    assert (found.median, found.p95) == pytest.approx((np.percentile(short, 50), np.percentile(short, 95)))
    assert ShortSides.from_sizes([(5, 9)]) == ShortSides(1, 5, 5)
    with pytest.raises(ValueError, match="no image"):
        ShortSides.from_sizes([])


@pytest.mark.parametrize(
    ("native", "step", "p95", "wanted"),
    [
        (224, 32, 500, 224),
        (224, 32, 224, 224),
        (224, 16, 150, 144),
        (224, 16, 152, 160),
        (224, 32, 28, 32),
        (224, 32, 3, 32),
        (384, 14, 390, 384),
        (384, 14, 378, 384),
        (384, 14, 370, 364),
        (384, 14, 200, 196),
        (160, 32, 159, 160),
    ],
)
def test_no_larger_than_the_images_warrant(native: int, step: int, p95: float, wanted: int) -> None:
    decision = choose_resolution(native, step, ShortSides(100, p95, p95))
    assert decision.resolution == wanted
    assert ResolutionRule(native, step, step).allows(decision.resolution)
    assert f"{p95:g}" in decision.reason


def test_the_least_resolution_that_a_caller_trusts() -> None:
    decision = choose_resolution(224, 16, ShortSides(9, 28, 28), smallest=100)
    assert decision.resolution == 112 and "not used below 112" in decision.reason


def test_limits_lower_the_resolution_to_the_largest_that_keeps_them() -> None:
    large = ShortSides(9, 900, 900)
    decision = choose_resolution(224, 32, large, memory_budget=4000, memory_at=lambda resolution: resolution**2 / 10)
    assert decision.resolution == 192 and "5017.6 of memory" in decision.reason
    asked: list[int] = []

    def rate(resolution: int) -> float:
        asked.append(resolution)
        return 1e6 / resolution**2

    decision = choose_resolution(384, 14, large, wanted_throughput=7.0, throughput_at=rate)
    assert decision.resolution == 364 and asked == [384, 378, 364]
    assert "at 378" in decision.reason and "7 wanted" in decision.reason
    decision = choose_resolution(224, 32, large, memory_budget=1, memory_at=lambda resolution: resolution)
    assert decision.resolution == 32 and "though" in decision.reason
    assert choose_resolution(224, 32, large, memory_budget=1e9, memory_at=float).resolution == 224
    with pytest.raises(ValueError, match="go together"):
        choose_resolution(224, 32, large, memory_budget=1)

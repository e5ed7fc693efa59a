"""Config, weights, tokenizer and image processor of different models, put together: refused on every path."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from domainclip.config import ModelSettings
from domainclip.errors import ModelLoadError
from domainclip.models import load_encoder, make_tiny_clip
from domainclip.models.io import save_encoder
from domainclip.models.loading import load_processor

Weights = dict[str, torch.Tensor]
KINDS = ("clip", "siglip", "vision_text", "mobilenet")


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, zoo: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(zoo[request.param], tmp_path / request.param))


@pytest.fixture
def clip(zoo: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(zoo["clip"], tmp_path / "clip"))


def load(folder: Path) -> object:
    return load_encoder(ModelSettings(model_name=str(folder)))


def message(folder: Path) -> str:
    with pytest.raises(ModelLoadError) as found:
        load(folder)
    assert "\n" not in str(found.value)
    return str(found.value)


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> None:
    path = next(folder.glob("*model.safetensors"))
    save_file({name: value.contiguous() for name, value in change(load_file(path)).items()}, path, {"format": "pt"})


def test_half_of_the_weights(model: Path) -> None:
    rewrite(model, lambda weights: dict(list(weights.items())[::2]))
    found = message(model)
    assert "weights are missing (" in found
    assert "more)" in found


@pytest.mark.parametrize("tower", ["vision_model", "text_model"])
def test_one_tower_alone(model: Path, tower: str) -> None:
    rewrite(model, lambda weights: {name: value for name, value in weights.items() if not name.startswith(tower)})
    assert f"missing ({tower}." in message(model)


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod."])
def test_names_with_a_wrapper_in_front_are_read(model: Path, prefix: str) -> None:
    right = load_encoder(ModelSettings(model_name=str(model))).state_dict()
    rewrite(model, lambda weights: {f"{prefix}{name}": value for name, value in weights.items()})
    found = load_encoder(ModelSettings(model_name=str(model))).state_dict()
    assert right.keys() == found.keys()
    assert all(torch.equal(right[name], value) for name, value in found.items())


def test_names_with_a_wrapper_in_front_of_some(clip: Path) -> None:
    rewrite(clip, lambda weights: {f"other.{name}": value for name, value in weights.items()})
    found = message(clip)
    assert "weights are missing" in found
    assert "have no place in the model (other.logit_scale" in found


def test_layers_too_many(clip: Path) -> None:
    layer = "vision_model.encoder.layers."
    rewrite(
        clip,
        lambda weights: (
            weights
            | {
                name.replace(f"{layer}1", f"{layer}2"): value.clone()
                for name, value in weights.items()
                if f"{layer}1" in name
            }
        ),
    )
    assert "16 weights have no place in the model (vision_model.encoder.layers.2." in message(clip)


def test_shapes_name_the_key(clip: Path) -> None:
    rewrite(clip, lambda weights: weights | {"visual_projection.weight": torch.zeros(16, 32)})
    found = message(clip)
    assert "1 weight has another shape than config.json says (visual_projection.weight; the first is 16 × 32" in found


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none(model: Path, value: float) -> None:
    rewrite(model, lambda weights: weights | {"logit_scale": torch.full_like(weights["logit_scale"], value)})
    assert "1 of the weights" in message(model)
    assert "NaN or infinite numbers (logit_scale)" in message(model)


@pytest.mark.parametrize("value", [-50.0, 100.0])
def test_a_scale_of_which_no_temperature_can_be_made(clip: Path, value: float) -> None:
    rewrite(clip, lambda weights: weights | {"logit_scale": torch.tensor(value)})
    assert "of which no temperature can be made" in message(clip)


def test_a_tokenizer_larger_than_the_embedding(clip: Path, tmp_path: Path) -> None:
    words = [f"{chr(97 + a)}{chr(97 + b)}{chr(97 + c)}" for a in range(12) for b in range(12) for c in range(12)]
    save_encoder(make_tiny_clip(vocab_size=900, corpus=[" ".join(words)]), tmp_path / "other")
    shutil.copy(tmp_path / "other/tokenizer.json", clip)
    for read in (load, lambda folder: load_processor(str(folder))):
        with pytest.raises(ModelLoadError, match=r"tokens up to number \d+, its text tower has embeddings for 428"):
            read(clip)


@pytest.mark.parametrize("other", ["siglip", "vision_text"])
def test_the_tokenizer_of_another_model(zoo: dict[str, Path], clip: Path, other: str) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(zoo[other] / name, clip)
    assert "belong to another model" in message(clip)


def test_an_image_processor_of_another_size(zoo: dict[str, Path], clip: Path) -> None:
    path = clip / "preprocessor_config.json"
    content = json.loads(path.read_text())
    content |= {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}
    path.write_text(json.dumps(content))
    assert "makes images of 48 pixels, the image tower has position embeddings for 32" in message(clip)
    with pytest.raises(ModelLoadError, match="images of 48 pixels"):
        load_processor(str(clip))


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_towers_of_separate_folders(zoo: dict[str, Path], tmp_path: Path, kind: str) -> None:
    parts = Path(shutil.copytree(zoo["parts"], tmp_path / "parts"))
    names = ModelSettings(vision_model_name=str(parts / "vit"), text_model_name=str(parts / "bert"))
    load_encoder(names)
    kept = load_file(parts / kind / "model.safetensors")
    rewrite(parts / kind, lambda weights: {name: value for name, value in weights.items() if "pooler" not in name})
    load_encoder(names)  # many backbones have no trained pooler
    rewrite(parts / kind, lambda weights: {**kept, "classifier.weight": torch.zeros(2, 2)})
    load_encoder(names)  # nor is a head for another task in the way
    rewrite(parts / kind, lambda weights: dict(list(kept.items())[::2]))
    with pytest.raises(ModelLoadError, match=r"weights are missing"):
        load_encoder(names)
    shutil.copy(zoo["clip"] / "model.safetensors", parts / kind)
    with pytest.raises(ModelLoadError, match=r"do not fit its config\.json"):
        load_encoder(names)


def test_half_of_the_weights_of_an_open_clip_checkpoint(open_clip_folders: dict[str, Path], tmp_path: Path) -> None:
    for kind, source in open_clip_folders.items():
        folder = Path(shutil.copytree(source, tmp_path / kind))
        weights = load_file(folder / "open_clip_model.safetensors")
        rewrite(folder, lambda weights: dict(list(weights.items())[::2]))
        with pytest.raises(ModelLoadError, match=r"lacks|no visual|have no"):
            load(folder)
        rewrite(folder, lambda _, kept=weights: kept | {"logit_scale": torch.tensor(float("nan"))})
        assert "NaN or infinite" in message(folder)


def test_no_pickle_is_run(clip: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    (clip / "model.safetensors").unlink()
    torch.save({"logit_scale": Bomb()}, clip / "pytorch_model.bin")
    assert "Cannot load the model from" in message(clip)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x04words", b"PK\x03\x04words", b"words"])
def test_pickled_weights_that_are_none(clip: Path, content: bytes) -> None:
    (clip / "model.safetensors").unlink()
    (clip / "pytorch_model.bin").write_bytes(content)
    assert str(clip) in message(clip)


@pytest.mark.parametrize("damage", ["cut", "pointer", "shape", "nan", "no size"])
def test_original_positions_that_are_damaged(zoo: dict[str, Path], tmp_path: Path, damage: str) -> None:
    encoder = load_encoder(ModelSettings(model_name=str(zoo["clip"])))
    encoder.processor.set_resolution(48)
    save_encoder(encoder, tmp_path / "saved")
    load(tmp_path / "saved")
    path = tmp_path / "saved/original_positions.safetensors"
    table, size = load_file(path)["positions"], {"image_size": "32,32"}
    if damage in ("cut", "pointer"):
        pointer = b"version https://git-lfs.github.com/spec/v1\n"
        path.write_bytes(path.read_bytes()[:200] if damage == "cut" else pointer)
    elif damage == "no size":
        save_file({"positions": table}, path)
    else:
        save_file({"positions": table[:-1].clone() if damage == "shape" else table * float("nan")}, path, size)
    assert str(path) in message(tmp_path / "saved")

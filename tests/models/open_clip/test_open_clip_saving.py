"""Models saved in both layouts, what cannot be read or written, and open_clip beside them."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from domainclip.config import CLIPFinetuningConfig
from domainclip.config.settings import AdapterSettings
from domainclip.errors import ConfigurationError, ModelLoadError
from domainclip.models import DualEncoder, make_tiny_clip
from domainclip.models.io import save_encoder
from domainclip.models.lora import attach_lora
from domainclip.models.open_clip.processing import clip_tokenizer
from model_zoo import save_siglip
from open_clip_cases import CONFIG, TEXTS, WEIGHTS, config_of, embeddings, load, pixels, reference
from open_clip_zoo import KINDS, write_clip, write_foreign

pytestmark = pytest.mark.slow


def one_step(encoder: DualEncoder) -> None:
    """Contrastive descent on fixed inputs."""
    encoder.train()
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.02)
    image = encoder.encode_image(pixels(encoder))
    text = encoder.encode_text(**encoder.processor.tokenize(TEXTS[:3]))
    logits = encoder.logit_scale.exp() * torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=-1)
    torch.nn.functional.cross_entropy(logits, torch.arange(3)).backward()
    optimizer.step()
    encoder.eval()


# --- saving ---


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_is_exact(open_clip_folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    save_encoder(load(open_clip_folders[kind]), tmp_path / "saved")
    before, after = load_file(open_clip_folders[kind] / WEIGHTS), load_file(tmp_path / "saved" / WEIGHTS)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    assert config_of(tmp_path / "saved") == config_of(open_clip_folders[kind])


@pytest.mark.parametrize("kind", ["clip", "biomed"])
def test_trained_model_in_both_layouts(open_clip_folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    encoder = load(open_clip_folders[kind])
    first = embeddings(encoder)
    one_step(encoder)
    expected = embeddings(encoder)
    for mine, other in zip(expected, first, strict=True):
        assert float((mine - other).abs().max()) > 1e-4
    folder = tmp_path / "model"
    save_encoder(encoder, folder)
    transformers_layout = load(folder)  # a folder with both
    assert type(transformers_layout.model) is type(AutoModel.from_pretrained(folder))
    assert transformers_layout.processor.max_length == encoder.processor.max_length
    assert transformers_layout.processor.text_padding == encoder.processor.text_padding
    for again in (transformers_layout, load(f"local-dir:{folder}")):
        for mine, other in zip(embeddings(again), expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    for mine, other in zip(expected, reference(folder, encoder), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    save_encoder(transformers_layout, tmp_path / "second")  # it goes on in both
    for name, value in load_file(folder / WEIGHTS).items():
        assert torch.equal(value, load_file(tmp_path / "second" / WEIGHTS)[name]), name


@pytest.mark.parametrize("kind", ["clip", "biomed"])
def test_adapters_are_merged(open_clip_folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    encoder = load(open_clip_folders[kind])
    attach_lora(encoder, AdapterSettings(lora_r=2, lora_alpha=8), seed=1)
    one_step(encoder)
    one_step(encoder)
    save_encoder(encoder, tmp_path)
    for mine, other in zip(embeddings(encoder), reference(tmp_path, encoder), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    names = load_file(tmp_path / WEIGHTS).keys()
    assert names == load_file(open_clip_folders[kind] / WEIGHTS).keys()


def test_another_resolution_is_written_with_its_own_positions(
    open_clip_folders: dict[str, Path], tmp_path: Path
) -> None:
    encoder = load(open_clip_folders["clip"])
    encoder.processor.set_resolution(48)
    save_encoder(encoder, tmp_path)
    assert config_of(tmp_path)["model_cfg"]["vision_cfg"]["image_size"] == 48
    assert load_file(tmp_path / WEIGHTS)["visual.positional_embedding"].shape == (37, 24)
    for mine, other in zip(embeddings(encoder), reference(tmp_path, encoder), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    again = load(tmp_path)  # knows the original positions; back at the first resolution they are written as they were
    again.processor.set_resolution(32)
    save_encoder(again, tmp_path / "back")
    assert torch.equal(
        load_file(tmp_path / "back" / WEIGHTS)["visual.positional_embedding"],
        load_file(open_clip_folders["clip"] / WEIGHTS)["visual.positional_embedding"],
    )
    assert config_of(tmp_path / "back")["model_cfg"] == config_of(open_clip_folders["clip"])["model_cfg"]


def test_timm_keeps_its_own_resolution(
    open_clip_folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = load(open_clip_folders["biomed"])
    encoder.processor.set_resolution(48)
    save_encoder(encoder, tmp_path)
    assert "32 pixels alone" in caplog.text
    saved, first = load_file(tmp_path / WEIGHTS), load_file(open_clip_folders["biomed"] / WEIGHTS)
    assert all(torch.equal(saved[name], first[name]) for name in first)


def test_a_clip_from_elsewhere_on_request(tmp_path: Path) -> None:
    tiny = make_tiny_clip(3, image_size=32)
    save_encoder(tiny, tmp_path / "tiny")
    assert not (tmp_path / "tiny" / CONFIG).exists()
    save_encoder(load(tmp_path / "tiny", save_open_clip=True), tmp_path / "both")
    again = load(f"local-dir:{tmp_path / 'both'}")
    for mine, other in zip(embeddings(again), embeddings(tiny), strict=True):
        assert torch.equal(mine, other)
    save_encoder(load(tmp_path / "both", save_open_clip=False), tmp_path / "one")
    assert not (tmp_path / "one" / CONFIG).exists()


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    siglip = save_siglip(tmp_path / "siglip")
    with pytest.raises(ConfigurationError, match=r"save_open_clip: .* siglip"):
        load(siglip, save_open_clip=True)
    tiny = make_tiny_clip(3, image_size=32)
    tiny.processor.image_processor.size = {"shortest_edge": 40}
    save_encoder(tiny, tmp_path / "crop")
    with pytest.raises(ConfigurationError, match="resizes to 40 pixels and cuts out 32"):
        load(tmp_path / "crop", save_open_clip=True)


def test_a_learned_map_goes_into_the_last_layer(open_clip_folders: dict[str, Path], tmp_path: Path) -> None:
    encoder = load(open_clip_folders["biomed"])
    _, text = embeddings(encoder)
    weight = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
    encoder.absorb_text_map(weight)
    torch.testing.assert_close(embeddings(encoder)[1], text @ weight.T, rtol=1e-4, atol=1e-5)


def test_plain_transformers_reads_what_was_saved(open_clip_folders: dict[str, Path], tmp_path: Path) -> None:
    """In a process that has not imported this package: BiomedCLIP's layout brings its own few lines along."""
    encoder = load(open_clip_folders["biomed"])
    assert encoder.has_own_code and not make_tiny_clip(3).has_own_code
    save_encoder(encoder, tmp_path / "model")
    assert next((tmp_path / "model").glob("*.py"))
    image, text = (torch.nn.functional.normalize(found, dim=-1) for found in embeddings(encoder))
    logits = encoder.logit_scale.detach().exp() * image @ text.T
    torch.save({"texts": TEXTS, "pixels": pixels(encoder), "logits": logits}, tmp_path / "expected.pt")
    code = (
        "import sys, torch; from transformers import AutoModel, AutoTokenizer;"
        "m = AutoModel.from_pretrained('model', trust_remote_code=True).eval();"
        "tokenizer, expected = AutoTokenizer.from_pretrained('model'), torch.load('expected.pt');"
        "tokens = tokenizer(expected['texts'], padding=True, return_tensors='pt');"
        "logits = m(**tokens, pixel_values=expected['pixels']).logits_per_image;"
        "torch.testing.assert_close(logits, expected['logits'], rtol=1e-4, atol=1e-4);"
        "assert not any(name.startswith('domainclip') for name in sys.modules)"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- the package around it ---


@pytest.mark.parametrize("kind", ["clip", "biomed"])
def test_training_run_ends_with_both_layouts(
    open_clip_folders: dict[str, Path], kind: str, tiny_data: Any, tmp_path: Path, domainclip: Callable[..., Any]
) -> None:
    result = domainclip(
        "train",
        f"data_path={tiny_data.folder}",
        f"model_name={open_clip_folders[kind]}",
        f"output_dir={tmp_path}",
        "num_epochs=1",
        "batch_size=6",
        "num_workers=0",
        "mixed_precision=false",
        "use_mps=false",
    )
    assert result.exit_code == 0, result.err + result.out
    model = tmp_path / "model"
    encoder = load(model)
    for mine, other in zip(embeddings(encoder), reference(model, encoder), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    changed = load_file(model / WEIGHTS)
    assert any(
        not torch.equal(value, changed[name]) for name, value in load_file(open_clip_folders[kind] / WEIGHTS).items()
    )


# --- CLIP's vocabulary ---


def test_tokens_are_those_of_clip(shared_data: Path) -> None:
    source = shared_data / "clip_tokenizer"
    tokenizer = clip_tokenizer(source / "bpe_simple_vocab_16e6.txt.gz")
    assert len(tokenizer) == 49408
    with open(source / "golden_tokens.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    found = tokenizer([row["caption"] for row in rows])["input_ids"]
    assert len(rows) == 1500
    assert [" ".join(map(str, ids)) for ids in found] == [row["token_ids"] for row in rows]


def test_damaged_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "bpe.gz").write_bytes(b"not gzip")
    with pytest.raises(ModelLoadError, match="Cannot read CLIP's vocabulary"):
        clip_tokenizer(tmp_path / "bpe.gz")


# --- what goes wrong ---


def changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    config = config_of(folder)
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


UNSUPPORTED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "coca": (lambda c: c["model_cfg"].update(multimodal_cfg={}), "CoCa"),
    "resnet": (lambda c: c["model_cfg"]["vision_cfg"].update(layers=[3, 4, 6, 3]), "ResNet"),
    "average": (lambda c: c["model_cfg"]["vision_cfg"].update(pool_type="avg"), "pool_type: 'avg'"),
    "class token": (lambda c: c["model_cfg"]["text_cfg"].update(embed_cls=True), "embed_cls: True"),
    "bias": (lambda c: c["model_cfg"].update(init_logit_bias=-10), "init_logit_bias: -10"),
    "no width": (lambda c: c["model_cfg"].pop("embed_dim"), "lacks embed_dim"),
    "no tower": (lambda c: c["model_cfg"].update(vision_cfg="ViT-B-32"), "not both written out"),
    "letterbox": (lambda c: c["preprocess_cfg"].update(resize_mode="longest"), "resize_mode 'longest'"),
    "unknown": (lambda c: c["model_cfg"]["vision_cfg"].update(rotary=True), "vision_cfg has rotary: True"),
    "no model_cfg": (lambda c: c.pop("model_cfg"), "no model_cfg"),
    "layers": (lambda c: c["model_cfg"]["vision_cfg"].update(layers=3), "it lacks visual.transformer.resblocks.2"),
    "fewer": (lambda c: c["model_cfg"]["text_cfg"].update(layers=1), "and 9 more has no place"),
    "size": (lambda c: c["model_cfg"]["vision_cfg"].update(image_size=64), "have another shape"),
    "vocabulary": (lambda c: c["model_cfg"]["text_cfg"].update(vocab_size=8), "tokenizer files belong to another"),
    "first": (lambda c: c["model_cfg"]["text_cfg"].update(pool_type="first"), "pool_type: 'first'"),
    "other end": (lambda c: c["model_cfg"]["text_cfg"].update(pool_type="eos", eos_id=5), "reads a text at token 5"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_models_are_named(tmp_path: Path, name: str) -> None:
    change, message = UNSUPPORTED[name]
    with pytest.raises(ModelLoadError, match=message.replace("[", r"\[")):
        load(changed(write_clip(tmp_path / "model"), change))


@pytest.mark.parametrize(
    ("where", "key", "value", "message"),
    [
        ("vision_cfg", "timm_model_name", "convnext_base", "convnext_base of timm"),
        ("vision_cfg", "timm_proj", "", "timm_proj ''"),
        ("text_cfg", "hf_proj_type", None, "hf_proj_type None"),
        ("text_cfg", "hf_pooler_type", "attn_pooler", "hf_pooler_type 'attn_pooler'"),
    ],
)
def test_unsupported_towers_are_named(tmp_path: Path, where: str, key: str, value: Any, message: str) -> None:
    folder = changed(write_foreign(tmp_path / "model"), lambda c: c["model_cfg"][where].update({key: value}))
    with pytest.raises(ModelLoadError, match=message):
        load(folder)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=f"has no {CONFIG}"):
        load(f"local-dir:{tmp_path}")
    folder = write_clip(tmp_path / "model")
    (folder / WEIGHTS).write_bytes(b"cut off")
    with pytest.raises(ModelLoadError, match=r"open_clip_model\.safetensors is damaged or was cut off"):
        load(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(ModelLoadError, match="neither of its weights"):
        load(folder)
    torch.save({"model": print}, folder / "open_clip_pytorch_model.bin")  # a pickled file may hold code
    with pytest.raises(ModelLoadError, match="Cannot read the weights"):
        load(folder)
    (folder / CONFIG).write_text("{")
    with pytest.raises(ModelLoadError, match=r"open_clip_config\.json is not valid JSON"):
        load(folder)


def test_the_key_is_in_the_recipe() -> None:
    assert CLIPFinetuningConfig(save_open_clip=True).save_open_clip is True


# --- open_clip itself ---


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("open_clip", "timm")),
    reason="open_clip is not installed (pip install 'domainclip[open_clip]')",
)
def test_open_clip_computes_the_same(open_clip_folders: dict[str, Path], tmp_path: Path) -> None:
    """From the checkpoints as they came, from what is saved after a step, and from a CLIP that came from elsewhere."""
    sources = {kind: open_clip_folders[kind] for kind in ("clip", "clip_quick", "clip_custom", "clip_vision_bert")}
    sources["biomed"] = write_foreign(tmp_path / "full", full_size=True)  # a size that timm can make
    encoders: list[tuple[Path, DualEncoder]] = []
    for kind, source in sources.items():
        encoders.append((source, load(source)))
        trained = load(source)
        one_step(trained)
        save_encoder(trained, tmp_path / kind)
        if (source / "text_tower").exists():
            shutil.copytree(source / "text_tower", tmp_path / kind / "text_tower")
        encoders.append((tmp_path / kind, trained))
    save_encoder(make_tiny_clip(3), tmp_path / "tiny")
    elsewhere = load(tmp_path / "tiny", save_open_clip=True)
    save_encoder(elsewhere, tmp_path / "elsewhere")
    encoders.append((tmp_path / "elsewhere", elsewhere))

    inputs, outputs = tmp_path / "inputs.pt", tmp_path / "outputs.pt"
    torch.save([{"folder": str(f), "pixels": pixels(encoder), "texts": TEXTS} for f, encoder in encoders], inputs)
    command = [sys.executable, Path(__file__).parents[2] / "helpers/open_clip_child.py", inputs, outputs]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    for (folder, encoder), theirs in zip(encoders, torch.load(outputs), strict=True):
        ids, length = encoder.processor.token_ids(TEXTS), theirs["ids"].shape[1]
        assert encoder.processor.max_length == length
        for row, tokens in zip(theirs["ids"].tolist(), ids, strict=True):
            assert row[: len(tokens)] == tokens and len(set(row[len(tokens) :])) <= 1
        assert theirs["scale"] == encoder.logit_scale
        for name, found in zip(("image", "text"), embeddings(encoder), strict=True):
            difference = float((found - theirs[name]).abs().max() / theirs[name].abs().max())
            print(f"{folder.name} {name}: largest difference {difference:.1e} of the largest number")
            assert difference < 1e-5 and float(found.std(dim=0).max()) > 0.01

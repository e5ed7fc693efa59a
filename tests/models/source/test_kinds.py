"""What a folder or file is that was named as a model: said in one sentence, before anything heavy is loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from domainclip.errors import ModelLoadError
from domainclip.models.loading import load_config, load_processor
from domainclip.models.source import find_model
from domainclip.pipelines.run_folder import RunFolder

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 605156676\n"


def message(path: Path | str, role: str = "model") -> str:
    with pytest.raises(ModelLoadError) as found:
        find_model(str(path), role)  # type: ignore[arg-type]
    text = str(found.value)
    assert "\n" not in text
    return text


@pytest.fixture
def model(zoo: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(zoo["clip"], tmp_path / "model"))


def files(folder: Path, **contents: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


def test_models_of_every_layout_are_found(zoo: dict[str, Path], open_clip_folders: dict[str, Path]) -> None:
    for kind in ("clip", "siglip", "vision_text", "mobilenet"):
        assert find_model(str(zoo[kind])) == str(zoo[kind])
    for folder in open_clip_folders.values():
        assert find_model(str(folder)) == str(folder)
        assert find_model(f"local-dir:{folder}") == f"local-dir:{folder}"
    assert find_model(str(zoo["parts"] / "vit"), "image tower")
    assert find_model(str(zoo["parts"] / "bert"), "text tower")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"]
)
def test_a_pointer_of_git_lfs(model: Path, name: str) -> None:
    (model / name).write_text(POINTER)
    assert f"{model / name} is a Git LFS pointer" in message(model)


def test_a_pointer_in_the_place_of_pickled_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_text(POINTER)
    assert "pytorch_model.bin is a Git LFS pointer" in message(model)
    assert "git lfs pull" in message(model / "pytorch_model.bin")


def test_the_folder_of_a_run(model: Path, tmp_path: Path) -> None:
    run = files(tmp_path / "run", run__json="{}", recipe__yaml="", domain__yaml="")
    folder = RunFolder(run)
    assert "is the folder of a run that has no model yet" in message(run)
    shutil.copytree(model, folder.best)
    assert f"its best weights so far, {folder.best}" in message(run)
    shutil.copytree(model, folder.model)
    assert f"the trained model is {folder.model}. Give that" in message(run)
    files(folder.checkpoints / "step-00000010", manifest__json="{}")
    for checkpoints in (folder.checkpoints, folder.checkpoints / "step-00000010"):
        assert f"holds the state of a training, to resume it, and not a model. Give {folder.model}" in message(
            checkpoints
        )


def test_a_folder_of_another_programs_checkpoints(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "trainer/checkpoint-500")
    assert f"such as {tmp_path / 'trainer/checkpoint-500'}" in message(tmp_path / "trainer")


def test_an_adapter(tmp_path: Path, model: Path) -> None:
    adapter = files(
        tmp_path / "adapter",
        adapter_config__json='{"base_model_name_or_path": "openai/clip-vit-base-patch32"}',
        adapter_model__safetensors="",
    )
    assert "a PEFT adapter of openai/clip-vit-base-patch32, not a whole model. Merge it first" in message(adapter)
    (model / "adapter_config.json").write_text("{}")  # transformers would add it without a word
    assert "PEFT adapter" in message(model)


def test_a_sentence_transformers_model(tmp_path: Path, model: Path) -> None:
    folder = files(tmp_path / "st", modules__json="[]", config_sentence_transformers__json="{}")
    assert "without a CLIP model in it" in message(folder)
    shutil.copytree(model, folder / "0_CLIPModel")
    assert f"the dual encoder in it is {folder / '0_CLIPModel'}. Give that" in message(folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("weights.pt", "a file of PyTorch weights without their config"),
        ("weights.pth", "a file of PyTorch weights without their config"),
        ("epoch_5.ckpt", "a training checkpoint"),
        ("pytorch_model.bin", "a file of PyTorch weights"),
        ("clip.safetensors", "a file of weights without their config"),
        ("clip.onnx", "ONNX"),
        ("clip.gguf", "GGUF"),
        ("clip.mlmodel", "Core ML"),
        ("clip.tflite", "TensorFlow Lite"),
        ("model.pkl", "not opened: it could run code"),
        ("model.tar.gz", "an archive: unpack it"),
        ("model.ZIP", "an archive: unpack it"),
        ("recipe.yaml", "--recipe"),
        ("train.csv", "--data"),
        ("notes", "is a file. A model is a folder with config.json"),
    ],
)
def test_a_file_where_a_folder_is_needed(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04 bytes")
    assert said in message(tmp_path / name)
    assert str(tmp_path / name) in message(tmp_path / name)
    if name not in ("notes", "model.tar.gz", "model.ZIP", "recipe.yaml", "train.csv"):
        (tmp_path / "folder").mkdir()
        (tmp_path / name).rename(tmp_path / "folder" / name)
        assert "has no config.json" in message(tmp_path / "folder")
        assert said.split(",")[0] in message(tmp_path / "folder")


def test_a_file_that_is_not_there_is_no_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "clip.pt does not exist" in message("clip.pt")


def test_an_archive_without_its_suffix(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model", "w") as archive:
        archive.writestr("config.json", "{}")
    assert "is an archive" in message(tmp_path / "model")


def test_one_file_of_a_model(model: Path) -> None:
    assert f"is one file of a model: give its folder {model}" in message(model / "model.safetensors")
    assert f"give its folder {model}" in message(model / "config.json")


def test_other_folders(tmp_path: Path, model: Path) -> None:
    assert "is empty" in message(files(tmp_path / "empty"))
    diffusers = files(tmp_path / "diffusers", model_index__json="{}")
    shutil.copytree(model, diffusers / "text_encoder")
    assert "a diffusers pipeline" in message(diffusers)
    cache = tmp_path / "models--openai--clip"
    shutil.copytree(model, cache / "snapshots/abc123")
    assert f"give {cache / 'snapshots/abc123'}" in message(cache)
    assert "Core ML" in message(files(tmp_path / "clip.mlpackage", Manifest__json="{}"))
    assert "SavedModel of TensorFlow" in message(files(tmp_path / "tf", saved_model__pb=""))
    assert "holds 2 models" in message(_two(tmp_path / "two", model))
    assert "is no model: it has no config.json, but cat.jpg" in message(files(tmp_path / "pics", cat__jpg=""))
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert "is a link to" in message(tmp_path / "dangling")


def _two(folder: Path, model: Path) -> Path:
    for name in ("one", "other"):
        shutil.copytree(model, folder / name)
    return folder


def test_one_tower_alone(zoo: dict[str, Path], tmp_path: Path) -> None:
    bert, vit = zoo["parts"] / "bert", zoo["parts"] / "vit"
    assert "is a text model (BertModel), not a dual encoder" in message(bert)
    assert "give it as text_model_name, together with vision_model_name" in message(bert)
    assert "is an image model (ViTModel)" in message(vit)
    assert "vision_model_name: " in message(bert, "image tower")
    assert "cannot be the text tower" in message(vit, "text tower")
    classifier = Path(shutil.copytree(vit, tmp_path / "classifier"))
    config = json.loads((classifier / "config.json").read_text())
    (classifier / "config.json").write_text(json.dumps(config | {"architectures": ["ViTForImageClassification"]}))
    assert "is an image classifier (ViTForImageClassification)" in message(classifier)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer files"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "has no preprocessor_config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "flax_model.msgpack"), "weights of Flax"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "clip.safetensors"), "under another name"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "is empty"),
        (lambda folder: _index(folder, "a.safetensors", "b.safetensors"), "names 2 files of weights, of which 2"),
        (lambda folder: _index(folder, "../other/model.safetensors"), "which file of this folder"),
    ],
)
def test_what_is_missing(model: Path, spoil: Callable[[Path], object], said: str) -> None:
    spoil(model)
    assert said in message(model)


def _index(folder: Path, *names: str) -> None:
    (folder / "model.safetensors").unlink()
    content = {"weight_map": {f"weight{number}": name for number, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def test_nothing_heavy_is_loaded_to_say_it(model: Path) -> None:
    check = (
        f"from domainclip.models.source import find_model\nfind_model({str(model)!r})\nimport sys\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_config_and_processor_are_enough_to_plan(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert find_model(str(model), weights=False) == str(model)
    assert load_config(str(model)).model_type == "clip"
    assert load_processor(str(model)).resolution == 32


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_links_to_nowhere_and_pipes(model: Path, name: str) -> None:
    (model / name).unlink()
    (model / name).symlink_to("../blobs/gone")  # a cache of the hub whose files were cleared
    assert f"{model / name} is a link to ../blobs/gone, which is not there" in message(model)
    (model / name).unlink()
    os.mkfifo(model / name)
    assert f"{model / name} is no regular file" in message(model)
    assert "a pipe or a device" in message(model / name)


def test_a_sentence_transformers_text_model(zoo: dict[str, Path], tmp_path: Path) -> None:
    folder = files(tmp_path / "st", modules__json="[]")
    shutil.copytree(zoo["parts"] / "bert", folder / "0_Transformer")
    assert f"give {folder / '0_Transformer'} as text_model_name" in message(folder)
    flat = Path(shutil.copytree(zoo["parts"] / "bert", tmp_path / "flat"))
    files(flat, modules__json="[]", config_sentence_transformers__json="{}")
    assert find_model(str(flat), "text tower") == str(flat)
    assert "is a text model (BertModel)" in message(flat)

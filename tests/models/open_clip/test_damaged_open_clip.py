"""OpenCLIP checkpoints with a damaged config: a sentence, never a traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from damage_cases import CONTENTS, WRONG, change
from domainclip.config import ModelSettings
from domainclip.errors import ModelLoadError
from domainclip.models import load_encoder

KEYS = {
    "clip": [
        ("model_cfg",),
        *(("model_cfg", key) for key in ("embed_dim", "vision_cfg", "text_cfg")),
        *(("model_cfg", "vision_cfg", key) for key in ("layers", "width", "head_width", "patch_size", "image_size")),
        *(("model_cfg", "text_cfg", key) for key in ("layers", "width", "heads", "context_length", "vocab_size")),
    ],
    "biomed": [
        *(("model_cfg", "vision_cfg", key) for key in ("timm_model_name", "timm_pool", "timm_proj")),
        *(("model_cfg", "text_cfg", key) for key in ("hf_model_name", "hf_proj_type")),
    ],
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def message(folder: Path) -> str:
    with pytest.raises(ModelLoadError) as found:
        load_encoder(ModelSettings(model_name=str(folder)))
    assert "\n" not in str(found.value)
    return str(found.value)


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", ["open_clip_config.json", "tokenizer.json", "text_tower/config.json"])
def test_other_content(open_clip_folders: dict[str, Path], tmp_path: Path, name: str, content: str) -> None:
    folder = Path(shutil.copytree(open_clip_folders["biomed"], tmp_path / "model"))
    (folder / name).write_bytes(CONTENTS[content])
    assert (folder / name).name in message(folder)


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize(("kind", "keys"), [(kind, keys) for kind, each in KEYS.items() for keys in each])
def test_a_value_that_cannot_be(
    open_clip_folders: dict[str, Path], tmp_path: Path, kind: str, keys: tuple[str, ...], value: str
) -> None:
    folder = Path(shutil.copytree(open_clip_folders[kind], tmp_path / "model"))
    change(folder / "open_clip_config.json", keys, WRONG[value])
    assert str(folder) in message(folder)


def test_a_text_tower_that_looks_back_alone(open_clip_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(open_clip_folders["biomed"], tmp_path / "model"))
    assert not json.loads((folder / "text_tower/config.json").read_text()).get("is_decoder")
    change(folder / "text_tower/config.json", ("is_decoder",), True)
    assert "is_decoder is True, but must be false" in message(folder)

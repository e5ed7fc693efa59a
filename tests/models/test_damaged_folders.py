"""Model folders damaged in many ways: a sentence that names the file, or the same embeddings where it is harmless."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from damage_cases import CONTENTS, HUGE, WRONG, change
from domainclip.config import ModelSettings
from domainclip.errors import CLIPFinetuningError
from domainclip.models import load_encoder

REQUIRED = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
OPTIONAL = (
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "processor_config.json",
    "README.md",
)
TOWER_KEYS = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")
CONFIG_KEYS = [
    ("projection_dim",),
    *(("vision_config", key) for key in (*TOWER_KEYS, "patch_size", "image_size", "num_channels")),
    *(("text_config", key) for key in (*TOWER_KEYS, "vocab_size", "max_position_embeddings")),
]


@pytest.fixture(scope="module")
def expected(zoo: dict[str, Path]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {"clip": embeddings(zoo["clip"])}


@torch.no_grad()
def embeddings(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    encoder = load_encoder(ModelSettings(model_name=str(folder)))
    pixels = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    return encoder.encode_image(pixels), encoder.encode_text(**encoder.processor.tokenize(["a red brick", "moon"]))


def check(folder: Path, right: tuple[torch.Tensor, torch.Tensor], *named: str) -> str | None:
    """The message, or None where the folder loads with the embeddings it had."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        found = embeddings(folder)
    except CLIPFinetuningError as error:
        message = str(error)
        assert "\n" not in message.strip()
        assert len(message) < 900
        for name in named:
            assert name in message, message
        return message
    finally:
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 * 1024  # KiB
    assert all(torch.equal(mine, other) for mine, other in zip(found, right, strict=True))
    return None


@pytest.fixture
def folder(zoo: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(zoo["clip"], tmp_path / "model"))


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", REQUIRED)
def test_a_json_file_of_other_content(folder: Path, expected: dict, name: str, content: str) -> None:
    (folder / name).write_bytes(CONTENTS[content])
    message = check(folder, expected["clip"], str(folder))
    if content != "empty object":
        assert message is not None
        assert name in message


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", OPTIONAL)
def test_a_file_that_need_not_be_there(folder: Path, expected: dict, name: str, content: str) -> None:
    (folder / name).write_bytes(CONTENTS[content])
    check(folder, expected["clip"], name)


@pytest.mark.parametrize("name", [*REQUIRED, "model.safetensors", "special_tokens_map.json", "README.md"])
def test_a_folder_in_the_place_of_a_file(folder: Path, expected: dict, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    check(folder, expected["clip"], name)


@pytest.mark.parametrize("name", [*REQUIRED, "model.safetensors"])
def test_a_missing_file(folder: Path, expected: dict, name: str) -> None:
    (folder / name).unlink()
    check(folder, expected["clip"], str(folder), "model" if name == "model.safetensors" else name.split("_")[0])


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("keys", CONFIG_KEYS, ids=".".join)
def test_a_size_that_cannot_be(folder: Path, expected: dict, keys: tuple[str, ...], value: str) -> None:
    change(folder / "config.json", keys, WRONG[value])
    message = check(folder, expected["clip"], "config.json", keys[-1])
    assert message is not None or value == "true"


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("keys", CONFIG_KEYS, ids=".".join)
def test_a_size_of_another_model(folder: Path, expected: dict, keys: tuple[str, ...], factor: int) -> None:
    content = json.loads((folder / "config.json").read_text())
    for key in keys:
        content = content[key]
    change(folder / "config.json", keys, content * factor)
    heads = "num_attention_heads" in keys  # which no shape tells
    if not heads or factor == 3:
        assert check(folder, expected["clip"], "config.json") is not None


OTHERS: list[tuple[str, tuple[str, ...], list[Any]]] = [
    ("config.json", ("model_type",), [None, 3, "", "words", [], "bert"]),
    ("config.json", ("text_config",), [None, 3, "words", [], {}]),
    ("config.json", ("vision_config",), [None, 3, "words", [], {}]),
    ("config.json", ("logit_scale_init_value",), [None, "words", 1e30, [], float("nan")]),
    ("config.json", ("architectures",), [None, "words", 3, [], ["NoSuchModel"]]),
    ("config.json", ("dtype",), [None, "words", 3, [], "float16"]),
    ("config.json", ("transformers_version",), [None, "words", 3, []]),
    ("config.json", ("auto_map",), [None, "words", {"AutoModel": "code.Model"}]),
    ("config.json", ("quantization_config",), [None, "words", {"quant_method": "bitsandbytes", "load_in_4bit": True}]),
    ("config.json", ("vision_config", "hidden_act"), [None, "words", 3, []]),
    ("config.json", ("vision_config", "layer_norm_eps"), [None, "words", -1, 1e9, []]),
    ("config.json", ("vision_config", "attention_dropout"), [None, "words", -1, 7, []]),
    ("config.json", ("text_config", "eos_token_id"), [None, "words", -1, HUGE, 0, 5, 2, []]),
    ("config.json", ("text_config", "bos_token_id"), [None, "words", -1, HUGE]),
    ("config.json", ("text_config", "pad_token_id"), [None, "words", -1, HUGE]),
    ("preprocessor_config.json", ("image_mean",), [None, "words", [0.5, 0.5], [], 0.5, [0.5, None, 0.5], [1e30] * 3]),
    ("preprocessor_config.json", ("image_std",), [None, "words", [0.5, 0.5], 0, [0.2, 0, 0.2], [0.2, -1, 0.2]]),
    ("preprocessor_config.json", ("size",), [None, "words", 0, -3, HUGE, {}, {"shortest_edge": 0}, {"a": 3}, [32, 32]]),
    (
        "preprocessor_config.json",
        ("crop_size",),
        [None, "words", 0, -3, HUGE, {}, {"height": 32}, {"height": 9, "width": 0}],
    ),
    ("preprocessor_config.json", ("crop_size",), [64, {"height": 32, "width": 64}]),
    ("preprocessor_config.json", ("resample",), [None, "words", 9, -1, []]),
    ("preprocessor_config.json", ("rescale_factor",), [None, "words", 0, -1, 1e30]),
    ("preprocessor_config.json", ("do_resize",), [None, "words", 3, False]),
    ("preprocessor_config.json", ("do_center_crop",), [None, "words", 3]),
    ("preprocessor_config.json", ("image_processor_type",), [None, "words", 3, "BertTokenizer"]),
    ("tokenizer_config.json", ("model_max_length",), [None, "words", 0, -1, 1, HUGE, []]),
    (
        "tokenizer_config.json",
        ("tokenizer_class",),
        [None, "words", 3, "T5Tokenizer", "BertTokenizer", "CLIPTokenizer", "CLIPTokenizerFast"],
    ),
    ("tokenizer_config.json", ("pad_token",), [None, "words", 3, "", []]),
    ("tokenizer_config.json", ("eos_token",), [None, "words", 3, ""]),
    ("tokenizer_config.json", ("truncation_side",), [None, "words", 3]),
    ("tokenizer_config.json", ("added_tokens_decoder",), [None, "words", {"x": 3}, {"9999": {"content": "<x>"}}]),
    ("tokenizer_config.json", ("extra_special_tokens",), [None, "words", 3, ["<a>"]]),
    ("tokenizer.json", ("model",), [None, "words", 3, {}, []]),
    ("tokenizer.json", ("model", "vocab"), [None, "words", {}, {"a": "b"}, {"a": -1}]),
    ("tokenizer.json", ("model", "merges"), [None, "words", [["a"]], ["x y"]]),
    ("tokenizer.json", ("post_processor",), [None, "words", 3]),
    ("tokenizer.json", ("pre_tokenizer",), ["words", 3, {"type": "words"}]),
    ("tokenizer.json", ("added_tokens",), [None, "words", [], [{"id": -1}], [{"id": 5_000_000, "content": "<x>"}]]),
    ("tokenizer.json", ("truncation",), [{"max_length": 0}, "words", {"max_length": HUGE}]),
    ("tokenizer.json", ("version",), [None, 3, "9.0"]),
]


@pytest.mark.parametrize(
    ("name", "keys", "value"),
    [(name, keys, value) for name, keys, values in OTHERS for value in values],
    ids=lambda value: repr(value)[:40],
)
def test_a_value_that_cannot_be(folder: Path, expected: dict, name: str, keys: tuple[str, ...], value: Any) -> None:
    change(folder / name, keys, value)
    check(folder, expected["clip"], str(folder))

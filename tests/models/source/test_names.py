"""What the name of a model means, and what is answered without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import ConfigurationError, ModelLoadError
from domainclip.models.source import find_model, name
from domainclip.models.source.name import SHORT_NAMES, short_name
from domainclip.training.memory.plan import ARCHITECTURES


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub that knows every name; the names that it was asked for."""
    asked: list[str] = []
    name.on_hub.cache_clear()
    monkeypatch.setattr(name, "_hub_problem", lambda repository: asked.append(repository))
    return asked


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    name.on_hub.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("vit-b-32", "vit-b-32"),
        ("ViT-B/32", "vit-b-32"),
        ("ViT-B-16", "vit-b-16"),
        ("vit_l_14", "vit-l-14"),
        ("ViT-L/14@336px", "vit-l-14-336"),
        (" siglip-b-16 ", "siglip-b-16"),
    ],
)
def test_short_names(hub: list[str], typed: str, meant: str) -> None:
    assert short_name(typed) == meant
    assert find_model(typed) == SHORT_NAMES[meant]


def test_every_shape_that_can_be_planned_has_a_model() -> None:
    assert ARCHITECTURES.keys() == SHORT_NAMES.keys()


def test_a_folder_goes_before_a_short_name(
    zoo: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vit-b-32").symlink_to(zoo["clip"])
    monkeypatch.chdir(tmp_path)
    assert find_model("vit-b-32") == "vit-b-32"


def test_home_is_understood(zoo: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").symlink_to(zoo["clip"])
    assert find_model("~/model") == str(tmp_path / "model")
    config = CLIPFinetuningConfig(model_name="~/model", vision_model_name=Path("~/a"), text_model_name="~/b")
    assert config.model_name == str(tmp_path / "model")
    assert (config.vision_model_name, config.text_model_name) == (str(tmp_path / "a"), str(tmp_path / "b"))


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("vit-b-23", "Did you mean vit-b-32?"),
        ("vitb32", "Did you mean vit-b-32?"),
        ("clip-vit-base-patch32", "Did you mean openai/clip-vit-base-patch32?"),
        ("openai/clip-vit-base-patch-32", "Did you mean openai/clip-vit-base-patch32?"),
        ("openai/clip-vit-large-patch14-366", "Did you mean openai/clip-vit-large-patch14-336?"),
        ("tinny", "Did you mean tiny?"),
        ("nonsense", "Models on the hub are named OWNER/NAME"),
        ("https://huggingface.co/openai/clip-vit-base-patch32/tree/main", "give the name alone, openai/clip-vit-base-"),
        ("hf:openai/clip-vit-base-patch32", "A model on the hub is named openai/clip-vit-base-patch32"),
        ("ViT-B-32:laion2b_s34b_b79k", "neither a directory nor a name"),
        ("what is this", "neither a directory nor a name"),
        ("a" * 5000, "cannot be read"),
        ("nul\0l", "neither a directory nor a name"),
        ("", "model_name is empty"),
        ("./nowhere", "does not exist"),
        ("C:\\models\\clip", "does not exist"),
    ],
)
def test_names_that_mean_nothing(no_network: None, typed: str, said: str) -> None:
    with pytest.raises(ModelLoadError) as found:
        find_model(typed)
    assert said in str(found.value)
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 600


def test_a_neighbour_is_proposed(zoo: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(zoo["clip"])
    with pytest.raises(ModelLoadError, match=f"There is {tmp_path / 'model'}: is that meant"):
        find_model(str(tmp_path / "modle"))


def test_without_an_answer_there_is_one_message_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for the host's address knows no time limit."""
    import threading

    name.on_hub.cache_clear()
    waiting = threading.Event()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: waiting.wait(60))
    monkeypatch.setattr(name, "HUB_TIMEOUT", 0.05)
    with pytest.raises(ModelLoadError, match=r"no answer in 0\.05 seconds.*HF_HUB_ETAG_TIMEOUT.*hf download"):
        find_model("vit-b-32")
    waiting.set()


def test_an_earlier_download_is_taken_where_there_is_no_network(
    no_network: None, zoo: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"config.json": str(zoo["clip"] / "config.json")}
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda _, file: found.get(file))
    assert find_model("vit-b-32") == str(zoo["clip"])


def test_a_path_that_is_no_text() -> None:
    with pytest.raises(ConfigurationError, match=r"is not UTF-8: rename the file or folder"):
        CLIPFinetuningConfig(model_name="models/\udcff")

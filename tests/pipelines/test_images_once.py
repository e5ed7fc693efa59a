"""In a whole run each image file is read and decoded once, whoever asks for it."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from domainclip import CLIPFinetuningConfig
from domainclip.data import copies
from domainclip.data.images import reader
from domainclip.data.images.store import ImageStore
from domainclip.models import make_tiny_clip
from domainclip.models.io import save_encoder
from domainclip.pipelines.compare import run_compare
from domainclip.pipelines.evaluate import run_evaluation
from domainclip.pipelines.evaluate_resolutions import run_resolutions
from domainclip.pipelines.run import run_training

pytestmark = pytest.mark.slow


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was decoded in this process; the search for copies, before the run, is left out."""
    monkeypatch.setattr(copies, "inspect_images", lambda paths: iter(()))
    counts: Counter[str] = Counter()
    lock, original = threading.Lock(), reader._read

    def counted(path: Path, *rest: Any) -> Any:
        with lock:
            counts[path.name] += 1
        return original(path, *rest)

    monkeypatch.setattr(reader, "_read", counted)
    return counts


def recipe(folder: Path, tmp_path: Path, **values: Any) -> CLIPFinetuningConfig:
    save_encoder(make_tiny_clip(), tmp_path / "model")
    return CLIPFinetuningConfig(
        **{
            "model_name": str(tmp_path / "model"),
            "data_path": str(folder),
            "output_dir": str(tmp_path / "run"),
            "batch_size": 6,
            "num_epochs": 3,
            "num_workers": 0,
            "mixed_precision": False,
            "device": "cpu",
            "probe_first": True,
            "probe_last": True,
            "hard_negative_batch_fraction": 0.5,
            "hard_negative_neighbours": 3,
            "error_analysis": True,
            "early_stopping_patience": 0,
        }
        | values
    )


def test_a_run_decodes_each_image_once(tiny_data, tmp_path: Path, decoded: Counter[str]) -> None:
    run_training(recipe(tiny_data.folder, tmp_path), console=Console(quiet=True))
    assert len(decoded) == 30
    assert set(decoded.values()) == {1}
    assert (tmp_path / "run" / "error_analysis.html").is_file()


@pytest.mark.parametrize("kept", [0, 7])
def test_a_run_with_little_memory_is_the_same_run(
    tiny_data, tmp_path: Path, decoded: Counter[str], monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    run_training(recipe(tiny_data.folder, tmp_path), console=Console(quiet=True))
    assert set(decoded.values()) == {1}
    decoded.clear()

    stores: list[ImageStore] = []
    make = ImageStore.__init__

    def small(store: ImageStore, capacity: int, *rest: Any) -> None:
        make(store, kept * 3 * 32 * 32, *rest)
        stores.append(store)

    monkeypatch.setattr(ImageStore, "__init__", small)
    run_training(recipe(tiny_data.folder, tmp_path, output_dir=str(tmp_path / "tight")), console=Console(quiet=True))
    assert len(decoded) == 30
    assert max(decoded.values()) > 1
    assert all(store.used <= store.capacity for store in stores)
    weights = [tmp_path / run / "model" / "model.safetensors" for run in ("run", "tight")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_are_cut_into_tiles_are_decoded_once_as_well(
    tiny_data, tmp_path: Path, decoded: Counter[str], workers: int
) -> None:
    tiles = {"image_preprocessing": {"tile_size": 42}, "num_workers": workers}
    run_training(recipe(tiny_data.folder, tmp_path, **tiles), console=Console(quiet=True))
    assert len(decoded) == 30
    assert set(decoded.values()) == {1}


def test_an_evaluation_at_several_resolutions_decodes_each_image_once(
    tiny_data, tmp_path: Path, decoded: Counter[str]
) -> None:
    run_resolutions(recipe(tiny_data.folder, tmp_path), [16, 32])
    assert len(decoded) == 6
    assert set(decoded.values()) == {1}


def test_an_evaluation_and_a_comparison_decode_each_image_once(
    tiny_data, tmp_path: Path, decoded: Counter[str]
) -> None:
    config = recipe(tiny_data.folder, tmp_path)
    run_evaluation(config, "test", error_analysis=tmp_path / "page")
    assert len(decoded) == 6
    assert set(decoded.values()) == {1}
    decoded.clear()
    save_encoder(make_tiny_clip(seed=1), tmp_path / "other")
    models = {"one": str(tmp_path / "model"), "other": str(tmp_path / "other")}
    run_compare(config, models, {"tiny": str(tiny_data.folder)}, console=Console(quiet=True))
    assert set(decoded.values()) == {1}

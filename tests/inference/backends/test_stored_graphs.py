"""A graph is used for the very weights it was made from, wherever it is stored."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from domainclip.config import ModelSettings
from domainclip.errors import BackendError
from domainclip.inference.backends.golden import GoldenBatch
from domainclip.inference.backends.graphs import GraphRecord, StoredGraph, fingerprint_of, model_folder
from domainclip.inference.backends.torch_encoder import golden_batch
from domainclip.models import make_tiny_clip
from domainclip.models.io import save_encoder


@pytest.fixture(scope="module")
def golden() -> GoldenBatch:
    return golden_batch(make_tiny_clip(), torch.device("cpu"), "")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOMAINCLIP_CACHE", str(tmp_path / "cache"))
    save_encoder(make_tiny_clip(), tmp_path / "model")
    return tmp_path / "model"


def store(model: Path, golden: GoldenBatch) -> Path:
    record = GraphRecord("mine", "fp32", fingerprint_of(model), 32, 77, (16, 77), 1, {})
    folder, kept = StoredGraph("mine", "fp32", model).write(
        record, golden, "{}", lambda folder: (folder / "image.graph").write_text("graph") and None
    )
    assert StoredGraph("mine", "fp32", model).find() == (folder, kept)
    return folder


def test_a_graph_lies_beside_its_model(model: Path, golden: GoldenBatch) -> None:
    folder = store(model, golden)
    assert folder == model / "backends" / "mine"
    assert sorted(path.name for path in folder.iterdir()) == [
        "golden.npz",
        "graph.json",
        "image.graph",
        "tokenizer.json",
    ]
    assert StoredGraph("mine", "int8", model).find() is None
    assert StoredGraph("other", "fp32", model).find() is None
    assert model_folder(ModelSettings(model_name=str(model))) == model
    assert model_folder(ModelSettings(model_name="tiny")) is None


def test_a_graph_of_other_weights_is_not_used(model: Path, golden: GoldenBatch) -> None:
    """Not even if the file has the same size and the same time as before."""
    store(model, golden)
    weights = model / "model.safetensors"
    status, content = weights.stat(), bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert StoredGraph("mine", "fp32", model).find() is None
    content[-1] ^= 1
    weights.write_bytes(content)
    assert StoredGraph("mine", "fp32", model).find() is not None


@pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer.json", "config.json"])
def test_nor_one_of_another_preparation(model: Path, golden: GoldenBatch, name: str) -> None:
    store(model, golden)
    (model / name).write_text((model / name).read_text() + " ")
    assert StoredGraph("mine", "fp32", model).find() is None


def test_a_copied_model_keeps_its_graph(model: Path, golden: GoldenBatch, tmp_path: Path) -> None:
    store(model, golden)
    (model / "README.md").write_text("what says nothing of what is computed")
    shutil.copytree(model, tmp_path / "copy")
    copied = StoredGraph("mine", "fp32", tmp_path / "copy")
    found = copied.find()
    assert found is not None and found[0] == tmp_path / "copy" / "backends" / "mine"
    again = StoredGraph("mine", "fp32", tmp_path / "copy", fingerprint="not asked for")
    assert again.find() is not None, "the files are digested once, not at each start"


def test_a_model_that_cannot_be_written_to_has_its_graph_in_the_cache(
    model: Path, golden: GoldenBatch, tmp_path: Path
) -> None:
    (model / "backends").write_text("in the way")
    folder = store(model, golden)
    assert folder.parent.parent == tmp_path / "cache" / "backends"
    (tmp_path / "model" / "config.json").write_text("{}")
    assert StoredGraph("mine", "fp32", model).find() is None


def test_a_graph_that_can_be_written_nowhere_is_an_error(
    model: Path, golden: GoldenBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "backends").write_text("in the way")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DOMAINCLIP_CACHE", str(tmp_path / "file"))
    with pytest.raises(BackendError, match="can be written nowhere"):
        store(model, golden)


def test_a_damaged_record_or_a_failed_conversion_leaves_nothing(model: Path, golden: GoldenBatch) -> None:
    folder = store(model, golden)
    (folder / "graph.json").write_text("{}")
    assert StoredGraph("mine", "fp32", model).find() is None
    shutil.rmtree(folder)

    def fail(folder: Path) -> None:
        (folder / "image.graph").write_text("half")
        raise BackendError("no")

    record = GraphRecord("mine", "fp32", fingerprint_of(model), 32, 77, (16, 77), 1, {})
    with pytest.raises(BackendError):
        StoredGraph("mine", "fp32", model).write(record, golden, None, fail)
    assert list((model / "backends").iterdir()) == []

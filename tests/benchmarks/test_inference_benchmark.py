"""The benchmark of back ends runs with what is installed, and every side computes the same embeddings."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmark_runs import run_script

pytestmark = pytest.mark.slow


def test_it_runs_and_all_sides_agree(tmp_path: Path) -> None:
    done = run_script("inference.py", "--quick", "--rounds", "1", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("inference-*.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["quick"] is True and record["reference"] == "transformers, SDPA, medium float32"
    assert len(record["results"]) == 6
    for case, found in record["results"].items():
        sides = found["sides"]
        assert ("ours, openvino bf16" in sides) == (find_spec("openvino") is not None)
        assert ("ours, onnx fp32" in sides) == (find_spec("onnxruntime") is not None)
        assert found["operations"] > 0 and set(found["floor_ms"]) == {"fp32", "bf16", "int8"}
        for side, figures in sides.items():
            assert figures["ms"] >= figures["least_ms"] > 0
            least = 0.9 if "int8" in side else 0.999
            assert figures["cosine"] is None or figures["cosine"] > least, f"{case}: {side}"
    one, eight = (record["results"][f"image, batch {rows}"]["operations"] for rows in (1, 8))
    assert eight == 8 * one
    assert str(tmp_path) not in path.read_text(encoding="utf-8")


def test_it_names_what_is_missing(tmp_path: Path) -> None:
    done = run_script("inference.py", "--data-root", str(tmp_path), "--output", str(tmp_path))
    assert done.returncode == 2 and "clip_tokenizer is missing" in done.stderr

"""The golden net: whole runs end where they ended when they were recorded, to the last bit of the weights.

Three small recipes that between them use every stage of a training, a run that is killed and resumed, and a comparison.
A change of structure changes none of it. Where a change is meant to, the record is made anew and reviewed with it:

    RECORD_GOLDEN=1 python -m pytest tests/golden

Weights are equal to the bit only on the kind of processor and with the packages they were recorded with; elsewhere the
figures are compared to three digits.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from domainclip.models import make_tiny_clip
from domainclip.models.io import save_encoder
from forked import run_python
from model_zoo import save_siglip, save_vision_text
from tiny_data import write_tiny_data

pytestmark = pytest.mark.slow

EXPECTED = Path(__file__).with_name("expected.json")
RECORD = bool(os.environ.get("RECORD_GOLDEN"))
CHILD = Path(__file__).with_name("golden_child.py").read_text(encoding="utf-8")
VOLATILE = ("seconds", "time", "per_s", "memory", "per_second", "milestones")
"""Parts of the names of figures that say how fast the machine was, not what was learned; some milestones do."""

COMMON: dict[str, Any] = {
    "batch_size": 6,
    "num_epochs": 4,
    "num_workers": 0,
    "mixed_precision": False,
    "device": "cpu",
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "eval_steps": 2,
    "save_steps": 2,
    "early_stopping_patience": 0,
}
RECIPES: dict[str, dict[str, Any]] = {
    "clip": {"model_name": "MODELS/clip", "mini_batch_size": 4},
    "siglip_lora": {
        "model_name": "MODELS/siglip",
        "domain": "industrial",
        "lora_r": 4,
        "hard_negative_batch_fraction": 0.5,
        "hard_negative_neighbours": 3,
        "num_epochs": 12,
    },
    "mobilenet_references": {
        "model_name": "MODELS/mobilenet",
        "domain": "medical",
        "freeze_batch_norm": False,
        "probe_first": False,
        "learning_rate": 5e-3,
        "num_epochs": 12,
        "retention_data": ["MODELS/other"],
        "rehearsal_strength": 0.5,
        "max_forgetting": 0.5,
    },
}
OTHER_KINDS = {"moon": ((200, 200, 190), "noise"), "red": ((220, 40, 40), "stripes"), "dark": ((30, 30, 40), "plain")}


def machine() -> dict[str, str]:
    """What the bits of a result depend on."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        lines = (line for line in info.read_text().splitlines() if line.startswith("model name"))
        cpu = next(lines, cpu).partition(":")[2].strip()
    return {"cpu": cpu} | {name: version(name) for name in ("torch", "transformers", "numpy", "pillow", "simplejpeg")}


def weights_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(folder / "model" / "model.safetensors").items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def figures(content: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number below ``content`` with its path, without those that tell the machine's speed."""
    if isinstance(content, dict):
        for key, value in content.items():
            if not any(part in key for part in VOLATILE):
                yield from figures(value, f"{name}/{key}")
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from figures(value, f"{name}/{index}")
    elif isinstance(content, int | float):
        yield name, float(content)


def observed(folder: Path) -> dict[str, Any]:
    """What a run came to."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return {"weights": weights_digest(folder), "metrics": dict(figures(lines)), "report": dict(figures(report))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("golden")
    write_tiny_data(base / "data")
    write_tiny_data(base / "models" / "other", OTHER_KINDS)
    save_encoder(make_tiny_clip(7, attention_dropout=0.1), base / "models" / "clip")
    save_siglip(base / "models" / "siglip")
    save_vision_text(base / "models" / "mobilenet", base / "parts", "mobilenet")
    return base


def values_of(folder: Path, recipe: str, output: str) -> str:
    values = {**COMMON, **RECIPES[recipe], "data_path": str(folder / "data"), "output_dir": str(folder / output)}
    return json.dumps(values).replace("MODELS", str(folder / "models"))


@pytest.fixture(scope="module")
def finished(folder: Path) -> Callable[[str], Path]:
    """The folder of a recipe's finished run."""

    def run(recipe: str) -> Path:
        output = folder / "runs" / recipe
        if not output.exists():
            done = run_python(CHILD, values_of(folder, recipe, f"runs/{recipe}"))
            assert done.returncode == 0, done.stderr
        return output

    return run


def check(name: str, found: dict[str, Any]) -> None:
    content = json.loads(EXPECTED.read_text(encoding="utf-8")) if EXPECTED.is_file() else {}
    if RECORD:
        content |= {"machine": machine(), name: found}
        EXPECTED.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return
    expected = content[name]
    if content["machine"] == machine():
        assert found == expected
        return
    for part in expected.keys() - {"weights"}:
        assert found[part].keys() == expected[part].keys()
        for key, value in expected[part].items():
            assert math.isclose(found[part][key], value, rel_tol=1e-3, abs_tol=1e-3), f"{part}{key}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_ends_where_it_was_recorded_to_end(recipe: str, finished: Callable[[str], Path]) -> None:
    check(recipe, observed(finished(recipe)))


def test_a_killed_and_resumed_run_is_the_undisturbed_one(folder: Path, finished: Callable[[str], Path]) -> None:
    values = values_of(folder, "clip", "runs/killed")
    killed = run_python(CHILD, values, "40")
    assert killed.returncode == -9, killed.stderr
    assert (folder / "runs" / "killed" / "checkpoints").is_dir()
    resumed = run_python(CHILD, values)
    assert resumed.returncode == 0, resumed.stderr
    found, whole = observed(folder / "runs" / "killed"), observed(finished("clip"))
    assert found["weights"] == whole["weights"]
    assert found["metrics"] == whole["metrics"]


def test_a_comparison_says_what_it_was_recorded_to_say(folder: Path, finished: Callable[[str], Path]) -> None:
    runs = [f"before={folder / 'models' / 'clip'}", *(f"{name}={finished(name) / 'model'}" for name in RECIPES)]
    sets = [f"own={folder / 'data'}", f"other={folder / 'models' / 'other'}"]
    options = [word for run in runs for word in ("--model", run)] + [word for name in sets for word in ("--data", name)]
    done = run_python(
        "from domainclip.cli import main; main()", "compare", *options, "--json", "device=cpu", "mixed_precision=false"
    )
    assert done.returncode == 0, done.stderr
    check("compare", {"figures": dict(figures(json.loads(done.stdout)))})

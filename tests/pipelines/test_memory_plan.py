"""``domainclip memory plan``: sizes as people write them, the order in which ways are tried, and what is printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from domainclip.config import CLIPFinetuningConfig
from domainclip.devices.memory import GB
from domainclip.errors import ConfigurationError, ModelLoadError
from domainclip.pipelines import memory_plan
from domainclip.pipelines.memory_plan import MemoryPlan, make_plan, parse_size
from domainclip.training.memory.model import MARGIN, StepMemory
from domainclip.training.memory.plan import ModelShape, plan_step
from domainclip.training.memory.trace import Lines, TowerMemory
from model_zoo import save_siglip, save_vision_text

pytestmark = pytest.mark.slow

MIB = 2**20
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("16GB", 16 * 2**30),
        ("12GiB", 12 * 2**30),
        ("500MB", 500 * 2**20),
        ("1.5 TB", int(1.5 * 2**40)),
        (" .5gb ", 2**29),
        ("1024b", 1024),
        ("3KiB", 3 * 1024),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "16", "GB", "-1GB", "0GB", "1iB", "16 Gbit", "1,5GB", "nanGB", "0.1B"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigurationError, match="Invalid size"):
        parse_size(text)


# --- the choice, with towers whose memory is plain to see ---


def memory(state_mib: float, per_pair_mib: float) -> StepMemory:
    gradients = int(state_mib * MIB / 4)
    line = Lines(((0.0, per_pair_mib * MIB / 2),))
    beside = Lines(((float(gradients / 2), per_pair_mib * MIB / 2),))
    tower = TowerMemory(line, beside, line, gradients // 2)
    return StepMemory(gradients, 2 * gradients, tower, tower, 0, 0, 1)


@pytest.fixture
def plain_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 MiB of state and 10 a pair; checkpointing and bf16 lower the second, LoRA the first to a quarter."""

    def step(shape: Any, data: Any, optim: Any, settings: Any, device: str, overhead: int, **_: Any) -> StepMemory:
        pair = 10 * (0.2 if settings.gradient_checkpointing else 1) * (0.6 if settings.precision == "bf16" else 1)
        pair *= (data.image_resolution / 32) ** 2
        return replace(memory(250 if optim.lora_r else 1000, pair), overhead=overhead)

    monkeypatch.setattr(memory_plan, "plan_step", step)
    monkeypatch.setattr(memory_plan, "require_peft", lambda: None)


def chosen(budget_mib: float, **options: Any) -> tuple[dict[str, Any] | None, MemoryPlan]:
    plan = make_plan("tiny", int(budget_mib * MIB), batch=64, overhead=0, **options)
    return plan.recommended, plan


@pytest.mark.usefixtures("plain_ways")
def test_tricks_come_last() -> None:
    base = {"batch_size": 64}
    assert chosen(5000)[0] == {**base, "precision": "fp32"}
    assert chosen(1400)[0] == {**base, "precision": "fp32", "mini_batch_size": 32}
    assert chosen(1205)[0] == {**base, "precision": "fp32", "mini_batch_size": 8}
    # Micro-batches of 8 no longer fit: checkpointing, then LoRA; the preferred precision is kept as long as it goes.
    assert chosen(1190)[0] == {**base, "precision": "fp32", "mini_batch_size": 32, "gradient_checkpointing": True}
    assert chosen(900)[0] == {**base, "precision": "fp32", "mini_batch_size": 32, "lora_r": 8}
    assert chosen(1500, precisions=("bf16",))[0] == {**base, "precision": "bf16"}
    assert chosen(5000, lora=True)[0] == {**base, "precision": "fp32", "lora_r": 8}
    assert not any(row.lora for row in chosen(900, lora=False)[1].rows)
    smallest, plan = chosen(100)
    assert smallest is None
    assert "Nothing fits into 0.10 GB" in plan.reason
    assert not any(row.fits for row in plan.rows)


@pytest.mark.usefixtures("plain_ways")
def test_what_is_recommended_fits_with_the_margin_and_more_would_not() -> None:
    for budget in (1190, 1300, 1700, 2500):
        keys, plan = chosen(budget)
        row = plan.recommended_row
        assert keys is not None
        assert row is not None
        assert row.fits
        assert row.predicted_bytes * MARGIN <= plan.budget_bytes
        assert row.micro_batch == keys.get("mini_batch_size", 64)
        CLIPFinetuningConfig(**keys)  # a recipe takes them as they are


@pytest.mark.usefixtures("plain_ways")
def test_the_models_own_resolution_comes_first() -> None:
    keys, plan = chosen(1400, resolutions=[64, 32, 16])
    assert keys is not None
    assert "image_resolution" not in keys
    assert list(dict.fromkeys(row.resolution for row in plan.rows)) == [64, 32, 16]
    only = {"batch_size": 64, "precision": "fp32", "image_resolution": 64, "mini_batch_size": 32}
    assert chosen(2500, resolutions=[64])[0] == only


@pytest.mark.usefixtures("plain_ways")
def test_without_peft_the_plan_goes_on_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from domainclip.errors import MissingExtraError

    def missing() -> None:
        raise MissingExtraError("peft", "lora", "lora_r")

    monkeypatch.setattr(memory_plan, "require_peft", missing)
    plan = chosen(1400)[1]
    assert not any(row.lora for row in plan.rows)
    assert any("Without LoRA" in note and "peft" in note for note in plan.notes)


# --- real shapes ---


def test_shapes_are_the_published_models() -> None:
    """Numbers of weights of OpenAI's released models."""
    weights = {"vit-b-32": 151_277_313, "vit-b-16": 149_620_737, "vit-l-14-336": 427_944_193}
    for name, expected in weights.items():
        assert sum(p.numel() for p in ModelShape.named(name).build().parameters()) == expected, name


def test_a_large_model_is_counted_in_little_memory() -> None:
    recipe = CLIPFinetuningConfig(image_resolution=336, precision="fp32")
    step = plan_step(ModelShape.named("vit-l-14-336"), *[recipe] * 3, "cpu")
    assert step.weights == pytest.approx(4 * 427_944_193, rel=1e-4)  # and position numbers
    assert step.gradients == 4 * 427_944_193
    # A layer keeps at least its 14 matrices' inputs: 577 tokens of width 1024 and twice 4096, 24 layers.
    assert step.image.saved.at(2) - step.image.saved.at(1) > 24 * 577 * (6 * 1024 + 2 * 4096) * 4
    mps = plan_step(ModelShape.named("vit-l-14-336"), *[recipe.model_copy(update={"attention": "eager"})] * 3, "mps")
    matrices = 24 * 16 * 577**2 * 4
    assert mps.image.saved.at(1) - step.image.saved.at(1) > 0.9 * matrices


@pytest.mark.parametrize("kind", ["siglip", "joined", "convolutional"])
def test_every_kind_of_model_can_be_planned(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    path = {
        "siglip": lambda: save_siglip(tmp_path / "model"),
        "joined": lambda: save_vision_text(tmp_path / "model", tmp_path / "parts"),
        "convolutional": lambda: save_vision_text(tmp_path / "model", tmp_path / "parts", "mobilenet"),
    }[kind]()
    plan = make_plan(str(path), 2 * GB, batch=16, precisions=("fp32",), overhead=0)
    assert plan.recommended == {"batch_size": 16, "precision": "fp32"}
    assert {row.resolution for row in plan.rows} == {32}
    assert {(row.lora, row.gradient_checkpointing) for row in plan.rows} == {(a, b) for a in (0, 1) for b in (0, 1)}
    for way in {(row.lora, row.gradient_checkpointing) for row in plan.rows}:
        peaks = [row.predicted_bytes for row in plan.rows if (row.lora, row.gradient_checkpointing) == way]
        assert 0 < peaks[0] <= peaks[1]


# --- the command ---

FAST = ("--model", "tiny", "--precision", "fp32", "--device", "cpu", "--batch", "64")


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_is_readable(columns: int, domainclip: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    result = domainclip("memory", "plan", *FAST, "--budget", "64GB")
    assert result.exit_code == 0, result.err
    assert max(len(line) for line in result.out.splitlines()) <= columns
    assert "…" not in result.out
    assert re.search(r"│ 32 +│ fp32 +│ no +│ no +│( +\d+\.\d\d │)+", result.out)
    assert "Recommended: batch_size=64 precision=fp32" in result.out


def test_json_and_exit_codes(domainclip: Callable[..., Any]) -> None:
    result = domainclip("memory", "plan", *FAST, "--budget", "64GB", "--json")
    assert result.exit_code == 0, result.err
    plan = json.loads(result.out)
    assert plan["recommended"] == {"batch_size": 64, "precision": "fp32"}
    assert plan["budget_gb"] == 64
    assert plan["rows"][0].keys() >= {
        "resolution",
        "precision",
        "gradient_checkpointing",
        "lora",
        "micro_batch",
        "fits",
        "predicted_gb",
    }
    assert domainclip("memory", "plan", *FAST, "--budget", "1MB").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--budget", "lots"), "Invalid size 'lots'"),
        (("--model", "no/such/model", "--budget", "1GB"), "does not exist"),
        (("--resolutions", "big"), "--resolutions 'big'"),
        (("--device", "tpu"), "Invalid device"),
        (("--resolutions", "33", "--budget", "1GB"), "33"),
    ],
)
def test_wrong_words_are_answered_with_exit_code_2(
    arguments: tuple[str, ...], words: str, domainclip: Callable[..., Any]
) -> None:
    result = domainclip("memory", "plan", *FAST, *arguments)
    assert result.exit_code == 2
    assert words in result.err


def test_a_name_that_is_no_model() -> None:
    with pytest.raises(ModelLoadError, match="Short names: vit-b-32"):
        ModelShape.named("nowhere")


# --- the benchmark ---


@pytest.mark.slowest
@pytest.mark.slow
def test_the_benchmark_measures_what_it_predicts(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "memory.py"), "--quick", "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("memory-*.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["quick"] is True
    assert set(record["rows"]) == {"tiny_whole", "tiny_chunks", "tiny_in_8_gib"}
    for row in record["rows"].values():
        assert row["measured_gib"] >= row["measured_before_gib"] > 0.1
        assert row["predicted_gib"] == pytest.approx(row["measured_gib"], rel=0.25)  # a small program, hardly a model
        assert row["predicted_over_measured"] == pytest.approx(row["predicted_gib"] / row["measured_gib"], rel=0.01)
    whole, chunks, planned = record["rows"].values()
    assert chunks["loss"] == pytest.approx(whole["loss"], rel=1e-3)  # the same batch, in chunks or not
    assert planned["within_budget"] is True
    assert planned["chunk"] is None
    assert str(Path.home()) + "/" not in path.read_text(encoding="utf-8")


def test_the_table_shows_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from _memory_tables import MEMORY_ROWS, memory_table

    way = {"precision": "bf16", "gradient_checkpointing": True, "lora_r": 8, "chunk": 4, "batch": 64}
    rows = {
        "b16": {**way, "predicted_gib": 1.0, "measured_gib": None},
        "l14_336_in_12_gib": {
            **way,
            "predicted_gib": 5.5,
            "measured_gib": 5.0,
            "predicted_over_measured": 1.1,
            "budget_gib": 12,
            "within_budget": True,
            "seconds": 99.6,
        },
    }
    (tmp_path / "memory-2030-01-01.json").write_text(json.dumps({"rows": rows}))
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in memory_table(tmp_path).splitlines()][2:]
    how = "micro-batches of 4, bf16, checkpointing, LoRA, r = 8"
    assert len(lines) == len(MEMORY_ROWS)
    assert lines[5] == ["ViT-B/16", "64", how, "1.00", *[""] * 5]
    assert lines[8] == ["ViT-L/14@336", "64", how, "5.50", "5.00", "+10 %", "12", "yes", "100"]
    assert lines[0] == ["ViT-B/32", *[""] * 8]
    import memory

    assert list(memory.ROWS) == list(MEMORY_ROWS)
    for name in ("memory", "_memory_tables", "_table_cells", "_record", "_worker"):
        sys.modules.pop(name, None)

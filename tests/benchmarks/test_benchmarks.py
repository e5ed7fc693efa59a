"""The benchmarks run, write valid records, and the tables show what the records say and nothing else."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from benchmark_runs import BENCHMARKS, run_script
from tiny_data import TinyData

pytestmark = pytest.mark.slow


def only_record(folder: Path, benchmark: str) -> dict[str, Any]:
    (path,) = folder.glob(f"{benchmark}-*.json")
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert path.stem == f"{benchmark}-{record['date']}"
    return record


@pytest.mark.slow
def test_train_step_runs_and_both_sides_train_the_same(tmp_path: Path) -> None:
    done = run_script("train_step.py", "--quick", "--comparisons", "highest", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    record = only_record(tmp_path, "train_step")
    assert record["quick"] is True
    entry = record["results"]["quick"]["highest"]
    assert entry["losses_compared"] == 2
    assert 0 <= entry["largest_loss_difference"] <= 1e-4
    assert entry["plain_samples_per_s"] > 0
    assert entry["ours_samples_per_s"] > 0
    assert entry["speedup"] == pytest.approx(entry["ours_samples_per_s"] / entry["plain_samples_per_s"], rel=0.01)
    # A process with torch in it holds more than 100 MiB; one that inherited another's peak would show both as equal.
    assert min(entry["plain_peak_memory_mb"], entry["ours_peak_memory_mb"]) > 100
    assert record["machine"]["cores"] >= 1
    text = json.dumps(record)
    assert os.uname().nodename not in record["machine"].values()
    assert str(Path.home()) + "/" not in text
    assert str(tmp_path) not in text


@pytest.mark.slow
def test_loss_memory_runs_and_chunks_agree_with_the_whole(tmp_path: Path) -> None:
    done = run_script("loss_memory.py", "--quick", "--repeats", "2", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    record = only_record(tmp_path, "loss_memory")
    assert record["quick"] is True
    assert record["threads"] == 1
    for size, entry in record["results"]["multi_positive"].items():
        assert (entry["whole"]["chunk_size"], entry["chunked"]["chunk_size"]) == (int(size), 16)
        assert entry["chunked"]["loss"] == pytest.approx(entry["whole"]["loss"], rel=1e-5)
        # Not one and the same computation twice: sums in another order differ in their last bits.
        assert 0 <= entry["relative_difference"]["loss"] <= 1e-5
        assert 0 < entry["relative_difference"]["gradient"] <= 1e-4
    for objective in ("hard_negative", "sigmoid"):
        ((size, entry),) = record["results"][objective].items()
        assert size == "96"
        assert entry["whole"] is entry["relative_difference"] is None
    for by_size in record["results"].values():
        for entry in by_size.values():
            assert entry["chunked"]["seconds"] > 0
            assert entry["chunked"]["passes_timed"] == 2
            assert entry["chunked"]["peak_memory_mb"] >= entry["chunked"]["peak_before_mb"] > 100


@pytest.mark.slow
def test_attention_runs_and_all_kinds_agree(tmp_path: Path) -> None:
    done = run_script("attention.py", "--quick", "--repeats", "2", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    record = only_record(tmp_path, "attention")
    assert record["quick"] is True
    assert list(record["results"]) == ["50"]
    for tokens, cells in record["results"].items():
        assert cells["sdpa"]["gradient_difference"] is None
        for kind in ("eager", "sliced"):  # sums in another order: close, and not one and the same computation
            assert 0 < cells[kind]["gradient_difference"] < 1e-5
        matrix = 4 * 2 * int(tokens) ** 2 * 4 / 2**20  # batch × heads × tokens² × bytes
        kept = {kind: cell["kept_mb_per_layer"] for kind, cell in cells.items()}
        # Less than the matrix by what the slices keep to be computed again, and rounded to 0.01.
        assert 0.4 * matrix - 0.01 <= kept["eager"] - kept["sliced"] <= matrix + 0.01
        assert cells["sliced"]["slice_size"] == 8
        assert all(cell["seconds_per_layer"] > 0 and cell["passes_timed"] >= 1 for cell in cells.values())


def test_a_matrix_that_does_not_fit_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import loss_memory

    class Answers:
        """A worker that has measured already."""

        asked: ClassVar[list[str]] = []

        def __init__(self, script: Path, spec: dict[str, Any]) -> None:
            self.facts = {"threads": 1}
            self.spec = spec

        def __enter__(self) -> Answers:
            return self

        def __exit__(self, *_: object) -> None: ...

        def ask(self, command: str, **_: Any) -> dict[str, Any]:
            self.asked.append(f"{command} {self.spec.get('size', '')} {self.spec.get('how', '')}".strip())
            if command == "compare":
                return {"loss": 0.0, "gradient": 0.0}
            return {"peak_memory_mb": 1.0, "peak_before_mb": 1.0, "seconds": 1.0, "passes_timed": 1, "loss": 1.0}

    monkeypatch.setattr(loss_memory, "Worker", Answers)
    available = loss_memory.needed_mb(1500) * 2**20
    monkeypatch.setattr(loss_memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=available, total=2**34))
    arguments = argparse.Namespace(
        quick=False, sizes=[1000, 2000], dim=8, repeats=1, seconds=1.0, output=tmp_path, threads=None
    )
    path = loss_memory.run(arguments)
    for name in ("loss_memory", "_record", "_worker"):
        sys.modules.pop(name, None)
    assert Answers.asked == [
        "measure 1000 whole",
        "measure 1000 chunked",
        "compare",
        "measure 2000 chunked",
        "measure 2000 chunked",
        "measure 2000 chunked",
    ]
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    assert results["multi_positive"]["1000"]["relative_difference"] == {"loss": 0.0, "gradient": 0.0}
    assert results["multi_positive"]["2000"]["whole"] is None
    assert results["multi_positive"]["2000"]["relative_difference"] is None
    assert list(results["hard_negative"]) == list(results["sigmoid"]) == ["2000"]


def test_train_step_names_what_is_missing(tmp_path: Path) -> None:
    done = run_script("train_step.py", "--data-root", str(tmp_path), "--output", str(tmp_path))
    assert done.returncode == 2
    assert "ind_solar_cells is missing" in done.stderr


@pytest.mark.slow
def test_input_pipeline_runs_and_agrees_with_the_reference(tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="the images come from scikit-image")
    done = run_script("input_pipeline.py", "--quick", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    record = only_record(tmp_path, "input_pipeline")
    (entry,) = record["results"].values()
    assert entry["difference_in_levels"]["largest"] <= 1.001
    for kind in ("plain", "augmented"):
        assert set(entry[kind]) == {"reference", "ours"}
        assert all(rate["pictures_per_s"] > 0 for side in entry[kind].values() for rate in side.values())


def test_clip_tokenizer_gives_the_reference_ids(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from _clip_tokenizer import clip_tokenizer

    tokenizer = clip_tokenizer(shared_data / "clip_tokenizer")
    assert len(tokenizer) == 49_408
    with open(shared_data / "clip_tokenizer" / "golden_tokens.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 1500
    ids = tokenizer([row["caption"] for row in rows])["input_ids"]
    assert ids == [[int(token) for token in row["token_ids"].split()] for row in rows]


@pytest.mark.slow
def test_gradcache_runs_and_chunks_agree_with_the_whole(tmp_path: Path) -> None:
    done = run_script("gradcache.py", "--quick", "--repeats", "2", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    record = only_record(tmp_path, "gradcache")
    assert record["quick"] is True
    assert (record["chunk"], record["threads"]) == (2, 1)
    memory = record["results"]["memory"]
    assert list(memory) == ["4", "16"]
    assert memory["4"]["ratio_to_smallest"] == 1.0
    for cell in memory.values():
        # A process with torch in it holds more than 100 MiB; one that inherited another's peak would hold more.
        assert cell["peak_memory_mb"] >= cell["peak_before_mb"] > 100
    expected = memory["16"]["peak_memory_mb"] / memory["4"]["peak_memory_mb"]
    assert memory["16"]["ratio_to_smallest"] == pytest.approx(expected, abs=1e-3)
    time = record["results"]["time"]
    assert (time["batch"], time["passes"], time["rounds"]) == (8, 8, 2)
    assert time["single_pass"]["seconds"] > 0
    assert {kept: cell["arithmetic"] for kept, cell in time["kept"].items()} == {
        "0": 1.3333,
        "2": 1.25,
        "4": 1.1667,
        "8": 1.0,
    }
    for cell in time["kept"].values():
        assert cell["ratio"] > 0
        # Sums in another order: close, and not one and the same computation.
        assert 0 < cell["gradient_difference"] < 1e-4


@pytest.mark.slow
def test_progressive_runs_and_its_seconds_are_those_of_its_steps(tmp_path: Path, tiny_data: TinyData) -> None:
    ways = ("fixed", "progressive_mild", "progressive_short")
    arguments = ["--quick", "--ways", *ways, "--data", str(tiny_data.folder), "--output", str(tmp_path)]
    done = run_script("progressive.py", *arguments)
    assert done.returncode == 0, done.stderr
    record = only_record(tmp_path, "progressive")
    assert record["quick"] is True
    assert record["threads"] == 1
    runs = {run["way"]: run for run in record["runs"]}
    assert tuple(runs) == tuple(record["ways"]) == ways
    assert [runs[way]["steps"] for way in ways] == [8, 8, 6]
    assert runs["fixed"]["resolution_schedule"] is None
    assert runs["progressive_mild"]["resolution_schedule"] == {"0.0": 24, "0.6": 32}
    assert set(runs["fixed"]["seconds_per_step"]) == {"32"}
    assert set(runs["progressive_mild"]["seconds_per_step"]) == {"24", "32"}
    for run in runs.values():
        curve = run["curve"]
        assert [point["step"] for point in curve] == list(range(2, run["steps"] + 1, 2))  # two steps are an epoch
        seconds = [point["seconds"] for point in curve]
        assert seconds[0] > 0 and seconds == sorted(set(seconds))
        assert seconds[-1] == pytest.approx(run["training_s"], abs=1e-3)
        assert run["training_s"] < run["run_s"]  # which validates and writes besides
        assert curve[-1]["acc1"] == run["acc1_validation"]
        assert {point["n_classified"] for point in curve} == {6}
    for compared, run in zip(record["comparisons"], runs.values(), strict=True):
        assert compared["way"] == run["way"]
        assert compared["target"] == runs["fixed"]["acc1_validation"]
        assert compared["fixed_s"] == runs["fixed"]["training_s"]
        reached = any(point["acc1"] >= compared["target"] for point in run["curve"])
        assert (compared["seconds"] is not None) is reached
    assert str(tmp_path) not in json.dumps(record)


def test_progressive_needs_the_fixed_way(tmp_path: Path) -> None:
    done = run_script("progressive.py", "--ways", "progressive", "--output", str(tmp_path))
    assert done.returncode == 2
    assert "--ways needs 'fixed'" in done.stderr


@pytest.mark.slow
def test_search_runs_and_the_exact_index_finds_all(tmp_path: Path) -> None:
    done = run_script("search.py", "--quick", "--rounds", "1", "--threads", "1", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    record = only_record(tmp_path, "search")
    assert (record["quick"], record["threads"], record["k"]) == (True, 1, 10)
    sides = record["results"]["3000"]["sides"]
    assert {"exact index", "exact index without torch", "numpy float32", "torch float32"} <= sides.keys()
    for kind in ("image", "text"):
        assert (
            sides["exact index"][kind]["recall_at_10"] == sides["exact index without torch"][kind]["recall_at_10"] == 1
        )
        assert not sides["exact index without torch"][kind]["by_torch"]
        assert 10 < sides["exact index"][kind]["reranked_max"] < 3000
        for side in sides.values():
            assert side[kind]["single"]["ms_per_query"] > 0 and side[kind]["batch"]["times_ours"] > 0

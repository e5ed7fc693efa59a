"""The tables that are made from committed records."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmark_runs import BENCHMARKS, run_script


@pytest.fixture
def make_tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import make_tables

    yield make_tables
    for name in ("make_tables", "_memory_tables", "_progressive_tables", "_search_tables", "_record", "_table_cells"):
        sys.modules.pop(name, None)


def train_step_record(speedup: float) -> dict[str, Any]:
    entry = {
        "plain_samples_per_s": 2.0,
        "ours_samples_per_s": 2.0 * speedup,
        "speedup": speedup,
        "plain_peak_memory_mb": 5000.4,
        "ours_peak_memory_mb": 4000.0,
        "largest_loss_difference": 2.5e-07,
        "losses_compared": 20,
        "steps_timed": 19,
    }
    return {"device": "cpu", "results": {"ind_solar_cells": {"medium": entry}}}


def cells_of(text: str) -> list[list[str]]:
    return [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_tables_show_the_newest_record_and_leave_the_rest_empty(make_tables: ModuleType, tmp_path: Path) -> None:
    for date, speedup in (("2030-01-31", 1.5), ("2029-12-31", 9.0)):
        (tmp_path / f"train_step-{date}.json").write_text(json.dumps(train_step_record(speedup)))
    quick = {**train_step_record(7.0), "quick": True}
    (tmp_path / "train_step-2031-01-01.json").write_text(json.dumps(quick))
    before = "# Title\n\n<!-- table: train_step -->\nold\n<!-- end table -->\n\nthe end\n"
    after = make_tables.fill(before, tmp_path)
    assert after.startswith("# Title\n\n<!-- table: train_step -->\n| device |")
    assert after.endswith("<!-- end table -->\n\nthe end\n")
    assert "old" not in after
    assert make_tables.fill(after, tmp_path) == after
    rows = cells_of(after)[2:]
    filled = [row for row in rows if any(row[3:])]
    assert [row[3:] for row in filled] == [["2.00", "3.00", "1.50×", "5000", "4000", "2e-07", "20", "19"]]
    assert filled[0][:2] == ["cpu", "`ind_solar_cells`"]
    assert len(rows) == 3 * 2 * 4  # devices, data sets, comparisons: all but one empty


def test_recipes_table_puts_the_ways_side_by_side(make_tables: ModuleType, tmp_path: Path) -> None:
    def run(way: str, seed: int, acc1: float, **more: Any) -> dict[str, Any]:
        after = {"acc1": acc1, "mean_per_class_recall": acc1 - 0.1}
        return {"data": "sci_pollen", "way": way, "seed": seed, "settings": {}, "after": after, **more}

    runs = [
        run("domainclip", 0, 0.5, before={"acc1": 0.25}, run_s=61.4),
        run("domainclip", 1, 0.7),
        run("linear_probe", 0, 0.625),
        run("linear_probe", 1, 0.875),
        {**run("domainclip", 2, 0.9), "settings": {"ema_fraction": 0}},
        {**run("plain", 0, 0.375), "data": "another"},
    ]
    (tmp_path / "recipes-2030-01-01.json").write_text(json.dumps({"runs": runs}))
    rows = cells_of(make_tables.fill("<!-- table: recipes -->\n<!-- end table -->", tmp_path))[2:]
    assert len(rows) == 10
    assert [row for row in rows if any(row[1:])] == [
        ["sci_pollen", "0.250", "0.750", "", "", "", "", "0.600 (0.500–0.700)", "2", "0.500", "61"]
    ]


def test_loss_memory_table_leaves_out_what_was_not_run(make_tables: ModuleType, tmp_path: Path) -> None:
    chunked = {"peak_memory_mb": 600.0, "seconds": 2.5}
    results = {
        "multi_positive": {
            "4096": {
                "whole": {"peak_memory_mb": 1500.4, "seconds": 1.25},
                "chunked": chunked,
                "relative_difference": {"loss": 1.2e-7, "gradient": 3e-6},
            },
            "32768": {"whole": None, "chunked": chunked, "relative_difference": None},
        },
    }
    (tmp_path / "loss_memory-2030-01-01.json").write_text(json.dumps({"device": "cpu", "results": results}))
    after = make_tables.fill("<!-- table: loss_memory -->\n<!-- end table -->", tmp_path)
    assert cells_of(after)[2:] == [
        ["`multi_positive`", "4,096", "1500", "1.25", "600", "2.50", "2.5×", "1e-07", "3e-06"],
        ["`multi_positive`", "16,384", *[""] * 7],
        ["`multi_positive`", "32,768", "", "", "600", "2.50", "", "", ""],
        ["`hard_negative`", "32,768", *[""] * 7],
        ["`sigmoid`", "32,768", *[""] * 7],
    ]
    machines = make_tables.fill("<!-- table: machines -->\n<!-- end table -->", tmp_path)
    assert ["`loss_memory`", "cpu"] in [row[:2] for row in cells_of(machines)]


def test_attention_table_leaves_out_what_was_not_run(make_tables: ModuleType, tmp_path: Path) -> None:
    def cell(peak: float, kept: float, seconds: float, difference: float | None) -> dict[str, Any]:
        return {
            "peak_mb_per_layer": peak,
            "kept_mb_per_layer": kept,
            "seconds_per_layer": seconds,
            "gradient_difference": difference,
        }

    results = {
        "577": {
            "sdpa": cell(150.0, 100.0, 0.0125, None),
            "eager": cell(260.04, 250.0, 0.02, 3e-7),
            "sliced": cell(140.0, 100.0, 0.025, 2.6e-7),
        },
        "1600": {"sdpa": cell(400.0, 300.0, 0.1, None), "eager": None, "sliced": None},
    }
    (tmp_path / "attention-2030-01-01.json").write_text(json.dumps({"device": "cpu", "results": results}))
    rows = cells_of(make_tables.fill("<!-- table: attention -->\n<!-- end table -->", tmp_path))[2:]
    assert len(rows) == 5 * 3
    assert rows[6:9] == [
        ["577", "`sdpa`", "12.5", "150.0", "100.0", "2.5×", ""],
        ["577", "`eager`", "20.0", "260.0", "250.0", "1.0×", "3e-07"],
        ["577", "`sliced`", "25.0", "140.0", "100.0", "2.5×", "3e-07"],
    ]
    assert rows[12:] == [
        ["1,600", "`sdpa`", "100.0", "400.0", "300.0", "", ""],
        ["1,600", "`eager`", *[""] * 5],
        ["1,600", "`sliced`", *[""] * 5],
    ]
    machines = make_tables.fill("<!-- table: machines -->\n<!-- end table -->", tmp_path)
    assert ["`attention`", "cpu"] in [row[:2] for row in cells_of(machines)]


@pytest.fixture
def progressive(make_tables: ModuleType) -> Iterator[ModuleType]:
    import progressive

    yield progressive
    sys.modules.pop("progressive", None)


def test_a_log_gives_the_seconds_of_each_step(progressive: ModuleType) -> None:
    took, pairs, sides = [3.0, 1.0, 1.5, 2.0, 2.5], [8, 8, 6, 8, 8], [16, 16, 16, 32, 32]
    log: list[dict[str, Any]] = []
    for step in range(1, 6):  # as the trainer writes it: all rows so far over all seconds so far
        rate = sum(pairs[:step]) / sum(took[:step])
        log.append(
            {
                "step": step,
                "batch_size": pairs[step - 1],
                "resolution": sides[step - 1],
                "samples_per_second": rate,
            }
        )
        if step in (2, 5):
            log.append({"step": step, "val_acc1": step / 10, "val_n_classified": 20})
    times = progressive.step_times(log)
    assert [entry["seconds"] for entry in times] == pytest.approx([3.0, 4.0, 5.5, 7.5, 10.0])
    assert progressive.curve(log, times) == [
        {"step": 2, "seconds": 4.0, "acc1": 0.2, "n_classified": 20},
        {"step": 5, "seconds": 10.0, "acc1": 0.5, "n_classified": 20},
    ]
    assert progressive.seconds_per_step(times) == {"16": 1.25, "32": 2.25}


def test_a_target_is_reached_on_the_line_between_two_validations(progressive: ModuleType) -> None:
    points = [{"seconds": s, "acc1": a} for s, a in ((10.0, 0.5), (20.0, 0.4), (30.0, 0.8), (40.0, 0.7))]
    assert progressive.first_reached(points, 0.6) == pytest.approx(25.0)
    assert progressive.first_reached(points, 0.8) == pytest.approx(30.0)
    assert progressive.first_reached(points, 0.3) == 10.0  # there at the first validation
    assert progressive.first_reached(points, 0.5) == 10.0
    assert progressive.first_reached(points, 0.81) is None


def progressive_run(way: str, seed: int, points: list[tuple[float, float]], test: float) -> dict[str, Any]:
    return {
        "data": "sci_pollen",
        "way": way,
        "seed": seed,
        "steps": 72,
        "acc1_test": test,
        "curve": [{"seconds": seconds, "acc1": acc1} for seconds, acc1 in points],
        "acc1_validation": points[-1][1],
        "standard_error": 0.1,
        "training_s": points[-1][0],
        "run_s": points[-1][0] + 20,
        "seconds_per_step": {"96": 0.5, "160": 1.25},
    }


def test_progressive_table_compares_within_a_seed(
    make_tables: ModuleType, progressive: ModuleType, tmp_path: Path
) -> None:
    runs = [
        progressive_run("fixed", 0, [(50.0, 0.4), (75.0, 0.7), (100.0, 0.6)], 0.5),  # 0.6 first at 66.7 s
        progressive_run("progressive", 0, [(25.0, 0.4), (50.0, 0.6), (60.0, 0.7)], 0.5),
        progressive_run("fixed", 1, [(50.0, 0.4), (100.0, 0.6)], 0.6),
        progressive_run("progressive", 1, [(30.0, 0.5), (60.0, 0.58)], 0.7),  # never, but within one error at 30 s
        progressive_run("progressive", 2, [(30.0, 0.5), (60.0, 0.9)], 0.9),  # has no fixed run yet
    ]
    record = {"threads": 2, "runs": runs, "comparisons": progressive.comparisons(runs)}
    assert [entry["seed"] for entry in record["comparisons"]] == [0, 0, 1, 1]
    (tmp_path / "progressive-2030-01-01.json").write_text(json.dumps(record))
    rows = cells_of(make_tables.fill("<!-- table: progressive -->\n<!-- end table -->", tmp_path))[2:]
    assert len(rows) == 2 * 6
    assert rows[0] == [
        "`sci_pollen`",
        "`fixed`",
        "2",
        "72",
        "0.600",
        "0.550",
        "0.071",
        "100",
        "120",
        "2 of 2",
        "1.20×",  # the median of 66.7 and 100 s, of 100
        "1.00×",
        "1.00×",
    ]
    # With one of two seeds never there, so is the median. One error lower: 37.5 of 58.3 s, and 30 of 75.
    assert rows[1][2:] == [
        "3",
        "72",
        "0.727",
        "0.700",
        "0.200",
        "60",
        "80",
        "1 of 2",
        "not reached",
        "not reached",
        f"{2 / (37.5 / (50 + 25 / 3) + 30 / 75):.2f}×",
    ]
    assert all(row[2:] == [""] * 11 for row in rows[2:])
    resolutions = cells_of(make_tables.fill("<!-- table: progressive_resolutions -->\n<!-- end table -->", tmp_path))[
        2:
    ]
    assert resolutions == [
        ["`sci_pollen`", "96", "0.50", "0.40", "0.36"],
        ["`sci_pollen`", "160", "1.25", "1.00", "1.00"],
        ["`ind_solar_cells`", *[""] * 4],
    ]


def test_gradcache_table_leaves_out_what_was_not_run(make_tables: ModuleType, tmp_path: Path) -> None:
    memory = {
        "32": {"peak_memory_mb": 2400.4, "ratio_to_smallest": 1.0, "seconds": 4.0},
        "256": {"peak_memory_mb": 2600.0, "ratio_to_smallest": 1.0833, "seconds": 31.5},
    }
    record: dict[str, Any] = {"chunk": 16, "threads": 2, "results": {"memory": memory, "time": None}}
    path, text = tmp_path / "gradcache-2030-01-01.json", "<!-- table: gradcache -->\n<!-- end table -->"
    path.write_text(json.dumps(record))
    rows = cells_of(make_tables.fill(text, tmp_path))[2:]
    assert rows[:2] == [
        ["32", "micro-batches of 16, each passed twice", "2400", "1.000", "4.00", "", "", ""],
        ["256", "micro-batches of 16, each passed twice", "2600", "1.083", "31.50", "", "", ""],
    ]
    assert [row[0] for row in rows[2:]] == ["64"] * 5
    assert all(row[2:] == [""] * 6 for row in rows[2:])
    record["results"]["time"] = {
        "batch": 48,
        "passes": 6,
        "single_pass": {"seconds": 6.0},
        "kept": {"0": {"seconds": 7.8, "ratio": 1.3, "arithmetic": 1.3333, "gradient_difference": 2.6e-7}},
    }
    path.write_text(json.dumps(record))
    assert cells_of(make_tables.fill(text, tmp_path))[4:] == [
        ["48", "a single pass", "", "", "6.00", "1.000", "", ""],
        ["48", "micro-batches of 16, 0 of 6 passes keep their graph", "", "", "7.80", "1.300", "1.333", "3e-07"],
    ]


def test_bad_markers_and_records_are_refused(make_tables: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown table 'nonsense'"):
        make_tables.fill("<!-- table: nonsense -->\n<!-- end table -->", tmp_path)
    with pytest.raises(ValueError, match="end table"):
        make_tables.fill("<!-- table: recipes -->\n", tmp_path)
    (tmp_path / "recipes-2030-01-01.json").write_text("{")
    with pytest.raises(ValueError, match=r"recipes-2030-01-01\.json"):
        make_tables.fill("<!-- table: recipes -->\n<!-- end table -->", tmp_path)


def test_check_fails_where_a_table_is_out_of_date(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("<!-- table: machines -->\n<!-- end table -->\n")
    arguments = (str(document), "--results", str(tmp_path))
    assert run_script("make_tables.py", "--check", *arguments).returncode == 1
    assert run_script("make_tables.py", *arguments).returncode == 0
    assert "| benchmark |" in document.read_text()
    assert run_script("make_tables.py", "--check", *arguments).returncode == 0


def test_ablation_table_says_what_is_lost_with_its_error(make_tables: ModuleType, tmp_path: Path) -> None:
    def run(without: str, seed: int, acc1: float) -> dict[str, Any]:
        return {"data": "sci_pollen", "without": without, "seed": seed, "after": {"acc1": acc1}}

    runs = [run("nothing", 0, 0.90), run("nothing", 1, 0.92), run("nothing", 2, 0.94)]
    runs += [run("probe", 0, 0.86), run("probe", 1, 0.90), run("larger", 1, 0.925), run("averaging", 5, 0.1)]
    (tmp_path / "ablation-2030-01-01.json").write_text(json.dumps({"runs": runs}))
    rows = cells_of(make_tables.fill("<!-- table: ablation -->\n<!-- end table -->", tmp_path))[2:]
    filled = {row[0]: row[2] for row in rows if row[2]}
    assert filled == {
        "nothing: the defaults": "0.920",
        "the probe, first and last": "-3.0 ± 1.0",
        "larger images": "+0.5",  # of one seed
    }

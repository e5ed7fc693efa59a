"""Labels that have a column each, as CheXpert and ISIC have them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from commands import CommandResult
from domainclip.data.checks.check import check_data
from domainclip.data.labels import all_labels
from domainclip.data.sources.loaders import DatasetLoader
from domainclip.data.splits import load_splits
from domainclip.errors import DataError

NAMES = ["No Finding", "Edema", "Fracture"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(8):
        Image.new("RGB", (24, 24), (30 * index, 10, 10)).save(tmp_path / f"{index}.png")
    return tmp_path


def table(folder: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with open(folder / "t.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return folder / "t.csv"


@pytest.mark.parametrize(
    ("yes", "no"),
    [("1", "0"), ("1.0", "0.0"), ("True", "False"), ("yes", "no"), ("Y", "N"), ("TRUE", ""), ("1", "NaN")],
)
def test_each_column_is_a_label(folder: Path, yes: str, no: str) -> None:
    cells = [(yes, no, no), (no, yes, yes), (no, no, yes), (no, yes, no)]
    path = table(
        folder, ["Path", "Sex", "Age", *NAMES], [(f"{i}.png", "MF"[i % 2], 40 + i, *cells[i]) for i in range(4)]
    )
    pairs = DatasetLoader.load(path)
    assert [all_labels(pair) for pair in pairs] == [("No Finding",), ("Edema", "Fracture"), ("Fracture",), ("Edema",)]
    assert pairs[1].caption == "a photo of an Edema and Fracture"
    assert any("3 columns No Finding, Edema, Fracture" in note for note in pairs.notes)


def test_uncertain_and_blank_cells_are_counted(folder: Path) -> None:
    rows = [("0.png", 1, -1, ""), ("1.png", -1, 1, 0), ("2.png", 0, "", 1), ("3.png", -1, 0, "")]
    pairs = DatasetLoader.load(table(folder, ["image", *NAMES], rows))
    assert [pair.label for pair in pairs] == ["No Finding", "Edema", "Fracture"]
    (note,) = [note for note in pairs.notes if "read as labels" in note]
    assert "3 cells of -1 (uncertain) and 3 cells without an entry (not mentioned) are read as no" in note
    assert note.endswith("1 row has none of the labels")
    assert [row.reason for row in pairs.skipped] == ["it has no label to write a caption from"]
    assert any("read as labels" in note for note in load_splits(folder / "t.csv").notes)
    assert any("uncertain" in each.detail for each in check_data(folder / "t.csv").findings)


def test_keys_of_json_and_columns_of_parquet(folder: Path) -> None:
    entries = [{"image": f"{i}.png", "crack": i % 2 == 0, "pit": i % 3 == 0, "depth": i / 7} for i in range(5)]
    (folder / "t.json").write_text(json.dumps(entries), encoding="utf-8")
    wanted = [("crack", "pit"), ("crack",), ("pit",), ("crack",)]
    assert [all_labels(pair) for pair in DatasetLoader.load(folder / "t.json")] == wanted
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(entries).to_parquet(folder / "t.parquet")
    assert [all_labels(pair) for pair in DatasetLoader.load(folder / "t.parquet")] == wanted


def test_a_data_set_of_the_hub(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"image": [f"{i}.png" for i in range(4)], "crack": [1, 0, 1, 0], "pit": [0, 1, 1, 1]}
    datasets.Dataset.from_dict(rows).save_to_disk(folder / "saved")
    for index in range(4):
        (folder / f"{index}.png").rename(folder / "saved" / f"{index}.png")
    pairs = DatasetLoader.load(folder / "saved")
    assert [all_labels(pair) for pair in pairs] == [("crack",), ("pit",), ("crack", "pit"), ("pit",)]


def test_beside_captions_they_are_said_not_to_be_used(folder: Path) -> None:
    rows = [(f"{i}.png", f"caption {i}", i % 2, (i // 2) % 2) for i in range(4)]
    pairs = DatasetLoader.load(table(folder, ["image", "caption", "flash", "indoor"], rows))
    assert not any(all_labels(pair) for pair in pairs)
    assert any("columns flash, indoor look like labels and are not used" in note for note in pairs.notes)


@pytest.mark.parametrize(
    "header", [["image", "defective", "depth"], ["image", "index", "defective"], ["image", "a", "b"]]
)
def test_what_is_no_such_table_is_an_error_as_before(folder: Path, header: list[str]) -> None:
    rows = [(f"{i}.png", i % 2, i) for i in range(4)]
    with pytest.raises(DataError, match=r"Missing 'caption' column.*label_col=…"):
        DatasetLoader.load(table(folder, header, rows))
    assert [pair.label for pair in DatasetLoader.load(folder / "t.csv", label_col=header[1])][:2] == ["0", "1"]


@pytest.mark.slow
def test_a_run_evaluates_each_label(folder: Path, domainclip: Callable[..., CommandResult], tmp_path: Path) -> None:
    for index in range(24):
        Image.new("RGB", (24, 24), (10 * index, 90, 200)).save(folder / f"{index}.png")
    rows = [(f"{i}.png", i % 2, i % 3 == 0, -1 if i % 5 == 0 else "") for i in range(24)]
    rows[3] = ("3.png", 1, "False", 1)
    path = table(folder, ["Path", *NAMES], rows)
    options = ["num_epochs=1", "batch_size=4", "num_workers=0", "probe_first=False", "device=cpu"]
    result = domainclip("train", "-m", "tiny", "-d", path, "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.err
    assert "of -1 (uncertain)" in result.err and "several labels" in result.err

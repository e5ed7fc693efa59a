"""Loading: every format gives the same pairs, and every fault names file, row and remedy."""

from __future__ import annotations

import copy
import csv
import json
import os
import pickle
from pathlib import Path

import pytest
from PIL import Image

from domainclip.data.records import ImageTextPair, PairList
from domainclip.data.sources.loaders import DatasetLoader
from domainclip.errors import ConfigurationError, DataError, MissingExtraError

NAMES = ("a.jpg", "b.jpg", "c.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for shade, name in enumerate(NAMES):
        Image.new("RGB", (8, 8), (shade * 60, 0, 0)).save(tmp_path / "images" / name)
    return tmp_path


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def facts(pairs: PairList) -> list[tuple]:
    return [(pair.image_path.name, pair.caption, pair.label, pair.group) for pair in pairs]


EXPECTED = [("a.jpg", "a red cell", "red", "p1"), ("b.jpg", 'says "hi",\nthen leaves', None, "p2")]


def test_all_table_formats_agree(folder: Path) -> None:
    header = ["image_path", "caption", "label", "group"]
    rows = [
        ["images/a.jpg", "  a red cell ", "red", "p1"],
        ["images/b.jpg", 'says "hi",\nthen leaves', " ", "p2"],
    ]
    for name, delimiter in (("t.csv", ","), ("t.tsv", "\t")):
        with open(folder / name, "w", newline="", encoding="utf-8") as handle:
            csv.writer(handle, delimiter=delimiter).writerows([header, *rows])
    entries = [dict(zip(("image", *header[1:]), row, strict=True)) for row in rows]
    write(folder / "t.json", json.dumps(entries))
    write(folder / "wrapped.json", json.dumps({"data": entries}))
    write(folder / "t.jsonl", "\n\n".join(json.dumps(entry) for entry in entries))
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(
        pyarrow.Table.from_pylist([dict(zip(header, row, strict=True)) for row in rows]), folder / "t.parquet"
    )
    for name in ("t.csv", "t.tsv", "t.json", "wrapped.json", "t.jsonl", "t.parquet"):
        pairs = DatasetLoader.load(folder / name)
        assert facts(pairs) == EXPECTED, name
        assert pairs.source == str(folder / name)
        assert all(pair.image_path.is_file() for pair in pairs)
    assert facts(DatasetLoader.from_jsonl(folder / "t.jsonl")) == EXPECTED


def test_pair_is_a_two_tuple_that_carries_more() -> None:
    pair = ImageTextPair("x/a.jpg", "a cell", label="cell", group="p1")
    path, caption = pair
    assert (path, caption) == pair == (Path("x/a.jpg"), "a cell")
    assert hash(pair) == hash((Path("x/a.jpg"), "a cell"))
    for clone in (pickle.loads(pickle.dumps(pair)), copy.copy(pair), copy.deepcopy(pair)):
        assert type(clone) is ImageTextPair
        assert (clone, clone.label, clone.group) == (pair, "cell", "p1")
    pairs = PairList([pair], "here")
    assert pickle.loads(pickle.dumps(pairs)).source == "here"


def test_byte_order_mark_is_dropped(folder: Path) -> None:
    write(folder / "t.csv", "image_path,caption\nimages/a.jpg,žluťoučký kůň\n", "utf-8-sig")
    assert DatasetLoader.from_csv(folder / "t.csv")[0].caption == "žluťoučký kůň"


def test_other_columns_and_root(folder: Path) -> None:
    (folder / "tables").mkdir()
    write(folder / "tables/t.csv", "file;x,text,diagnosis,patient\na.jpg,hello,flu,7\n")
    pairs = DatasetLoader.from_csv(
        folder / "tables/t.csv",
        "file;x",
        "text",
        label_col="diagnosis",
        group_col="patient",
        image_root=folder / "images",
    )
    assert facts(pairs) == [("a.jpg", "hello", "flu", "7")]
    with pytest.raises(ConfigurationError, match="image_root"):
        DatasetLoader.from_csv(folder / "tables/t.csv", "file;x", "text", image_root=folder / "none")


def test_absolute_dotted_and_windows_paths(folder: Path) -> None:
    absolute = folder / "images" / "a.jpg"
    write(folder / "t.csv", f"image_path,caption\n{absolute},x\nimages/../images/b.jpg,y\nimages\\c.png,z\n")
    pairs = DatasetLoader.from_csv(folder / "t.csv")
    assert [pair.image_path.name for pair in pairs] == list(NAMES)
    assert pairs[0].image_path == absolute
    assert all(pair.image_path.is_file() for pair in pairs)


def test_bad_rows_are_skipped_by_their_line(folder: Path) -> None:
    text = (
        "image_path,caption\n"
        'images/a.jpg,"two\nlines"\n'  # lines 2 and 3
        "images/none.jpg,gone\n"  # 4
        "\n"
        "images/b.jpg,   \n"  # 6
        "images/b.jpg\n"  # 7
        ",no image\n"  # 8
        "images/c.png,red, round\n"  # 9
        "images,a folder\n"  # 10
        "images/c.png,fine,,\n"
    )
    pairs = DatasetLoader.from_csv(write(folder / "train.csv", text))
    assert [pair.caption for pair in pairs] == ["two\nlines", "fine"]
    assert [(row.where, row.kind) for row in pairs.skipped] == [
        ("train.csv row 4", "missing image"),
        ("train.csv row 6", "empty caption"),
        ("train.csv row 7", "empty caption"),
        ("train.csv row 8", "malformed row"),
        ("train.csv row 9", "malformed row"),
        ("train.csv row 10", "missing image"),
    ]
    assert "quotation marks" in pairs.skipped[4].reason
    with pytest.raises(DataError, match=r"train\.csv row 4: image images/none\.jpg is not there"):
        DatasetLoader.from_csv(folder / "train.csv", strict=True)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "t.csv",
            "image_path,captoin\na,b\n",
            r"^Missing 'caption' column in .*t\.csv: found columns image_path, captoin "
            r"\(did you mean 'captoin'\?\); name it with caption_col=…",
        ),
        ("t.csv", "photo,caption\na,b\n", r"^Missing 'image_path' column .*image_col=…"),
        ("t.csv", "", r"t\.csv is empty"),
        ("t.csv", "  \n\n", r"t\.csv is empty"),
        ("t.csv", "image_path,caption\n", r"^No valid image-text pairs in .*it holds no rows"),
        ("t.csv", "image_path,caption\nx.jpg,y\n", r"^No valid image-text pairs in .*t\.csv row 2: image x\.jpg"),
        ("t.csv", 'image_path,caption\na,b\nc,"open\nd,e\n', r"^Malformed table .*t\.csv, line 3"),
        ("t.csv", "image_path,caption,caption\na,b,c\n", r"names the column 'caption' twice"),
        (
            "t.json",
            '[{"image": "a.jpg", "caption": "x"},\n {"image": }]',
            r"^Malformed JSON in .*t\.json, line 2, column",
        ),
        ("t.json", '{"image": "a.jpg"}\n{"image": "b.jpg"}', r"Malformed JSON.*name the file \.jsonl"),
        (
            "t.json",
            '[{"image": "a", "note": "x"}, {"image": "b", "caption": 1}]',
            r"^No valid .*t\.json entry 1: Missing 'caption' key in .*found keys image, note; name it",
        ),
        ("t.json", '[{"photo": "a", "caption": "x"}]', r"^Missing 'image_path' key in .*entry 1"),
        ("t.json", '{"rows": []}', r"must hold a list of .*an object with keys rows"),
        ("t.json", "[3]", r"entry 1: must be an object"),
        ("t.json", "[]", r"^No valid image-text pairs"),
        ("t.jsonl", '{"image": "a"}\n{', r"^(Malformed JSON|Missing 'caption' key) .*t\.jsonl"),
        ("t.parquet", "not parquet", r"t\.parquet is not a readable Parquet file"),
        ("t.xlsx", "x", r"^Invalid data file .*known formats are \.csv"),
    ],
)
def test_faults_of_a_table(folder: Path, name: str, text: str, message: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match=message):
        DatasetLoader.load(write(folder / name, text))


def test_not_utf8_names_the_line(folder: Path) -> None:
    with pytest.raises(DataError, match=r"is not UTF-8: byte 0xfc in line 3"):
        DatasetLoader.from_csv(write(folder / "t.csv", "image_path,caption\na,b\nc,für\n", "latin-1"))
    with pytest.raises(DataError, match=r"reads 'c,für': .*`iconv -f WINDOWS-1252"):
        DatasetLoader.from_csv(folder / "t.csv")
    odd = write(folder / "t.csv", "image_path,caption\na,b\n", "utf-16")
    odd.write_bytes(odd.read_bytes()[:-1])
    with pytest.raises(DataError, match="not the UTF-16"):
        DatasetLoader.from_csv(odd)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Data not found: .*hf:OWNER/NAME"):
        DatasetLoader.load(tmp_path / "none")
    with pytest.raises(DataError, match="Data file not found"):
        DatasetLoader.from_csv(tmp_path / "none.csv")
    with pytest.raises(DataError, match="Data directory not found"):
        DatasetLoader.from_directory(tmp_path / "none")


def test_several_captions_and_odd_values_in_json(folder: Path) -> None:
    entries = [
        {"image_path": "images/a.jpg", "caption": ["one", "two", " "], "label": 3},
        {"image": "images/b.jpg", "caption": 7},
        {"image": None, "caption": "x"},
        {"image": "images/b.jpg", "caption": None},
        {"image": "images/b.jpg", "caption": []},
        {"image": "images/b.jpg\0", "caption": "x"},
    ]
    pairs = DatasetLoader.from_json(write(folder / "t.json", json.dumps(entries)))
    assert facts(pairs) == [("a.jpg", "one", "3", None), ("a.jpg", "two", "3", None)]
    assert [row.where for row in pairs.skipped] == [f"t.json entry {n}" for n in (1, 2, 3, 4, 5, 6)]
    assert "int 7, not text" in pairs.skipped[1].reason


def test_captions_from_labels(folder: Path) -> None:
    table = write(folder / "t.csv", "image_path,label\nimages/a.jpg,cat\nimages/b.jpg,\n")
    pairs = DatasetLoader.from_csv(table)
    assert facts(pairs) == [("a.jpg", "a photo of a cat", "cat", None)]
    assert "it has no captions: those of 1 row are written from the labels" in pairs.notes[0]
    pairs = DatasetLoader.from_csv(table, caption_template="an X-ray of a {label}")
    assert facts(pairs) == [("a.jpg", "an X-ray of a cat", "cat", None)]
    assert pairs.skipped[0].kind == "empty caption"
    with pytest.raises(DataError, match="Invalid caption_template"):
        DatasetLoader.from_csv(table, caption_template="an X-ray")


def test_directory_with_captions_file(folder: Path) -> None:
    write(folder / "captions.txt", "a.jpg\tfirst\tpart\nb.jpg without tab\n\nimages/c.png\tthird\nz.jpg\tgone\n")
    pairs = DatasetLoader.load(folder)
    assert facts(pairs) == [("a.jpg", "first\tpart", None, None), ("c.png", "third", None, None)]
    assert [row.where for row in pairs.skipped] == ["captions.txt row 2", "captions.txt row 5"]
    assert DatasetLoader.load(folder / "captions.txt") == pairs


def test_directory_with_text_beside_each_image(folder: Path) -> None:
    write(folder / "images/a.txt", "a caption\nover two lines\n")
    write(folder / "images/b.txt", "")
    write(folder / "images/._a.jpg", "macOS shadow")
    pairs = DatasetLoader.from_directory(folder / "images")
    assert facts(pairs) == [("a.jpg", "a caption over two lines", None, None)]
    assert [(row.image_path, row.kind) for row in pairs.skipped] == [
        ("b.jpg", "empty caption"),
        ("c.png", "empty caption"),
    ]


def test_directory_with_a_folder_per_class(folder: Path) -> None:
    for name, label in zip(NAMES, ("red_blood_cell", "platelet", "platelet"), strict=True):
        target = folder / "classes" / label / ("deeper" if name == "c.png" else "")
        target.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).rename(target / name)
    Image.new("L", (4, 4)).save(folder / "classes" / "stray.png")
    pairs = DatasetLoader.load(folder / "classes")
    assert sorted(facts(pairs)) == [
        ("a.jpg", "a photo of a red blood cell", "red blood cell", None),
        ("b.jpg", "a photo of a platelet", "platelet", None),
        ("c.png", "a photo of a platelet", "platelet", None),
    ]
    assert [row.image_path for row in pairs.skipped] == ["stray.png"]
    assert {p.caption for p in DatasetLoader.from_directory(folder / "classes", "{label}!")} == {
        "red blood cell!",
        "platelet!",
    }


def test_directory_without_images_or_with_several_tables(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"No valid image-text pairs in .*no images"):
        DatasetLoader.from_directory(folder / "empty")
    write(folder / "one.csv", "image_path,caption\nimages/a.jpg,x\n")
    write(folder / "meta.csv", "image_path,group\nimages/a.jpg,g\n")
    assert len(DatasetLoader.load(folder)) == 1
    write(folder / "two.csv", "image_path,caption\nimages/a.jpg,x\n")
    with pytest.raises(DataError, match=r"several tables \(one\.csv, two\.csv\)"):
        DatasetLoader.load(folder)


def test_split_folders_are_no_classes(folder: Path) -> None:
    for split in ("train", "val"):
        (folder / "d" / split / "cat").mkdir(parents=True)
        Image.new("L", (4, 4)).save(folder / "d" / split / "cat" / "x.png")
    with pytest.raises(DataError, match="holds splits"):
        DatasetLoader.from_directory(folder / "d")


def test_a_folder_is_listed_once_whatever_the_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(f"images/{NAMES[i % 3]},caption {i}\n" for i in range(3000))
    table = write(folder / "t.csv", "image_path,caption\n" + rows)
    calls = {"scandir": 0, "stat": 0}
    scandir, stat = os.scandir, os.stat
    monkeypatch.setattr(os, "scandir", lambda *a: calls.__setitem__("scandir", calls["scandir"] + 1) or scandir(*a))
    monkeypatch.setattr(os, "stat", lambda *a, **k: calls.__setitem__("stat", calls["stat"] + 1) or stat(*a, **k))
    assert len(DatasetLoader.from_csv(table)) == 3000
    monkeypatch.undo()
    assert calls["scandir"] == 1
    assert calls["stat"] < 10


def test_huggingface_copy_on_disk(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )
    paths = [str(folder / "images" / name) for name in NAMES]
    data = datasets.Dataset.from_dict(
        {"image": [*paths, paths[0]], "text": ["x", "y", "", "w"], "label": [0, 1, 1, -1]}, features=features
    )
    data.save_to_disk(folder / "saved")
    with pytest.raises(DataError, match="Missing 'words' column"):
        DatasetLoader.from_huggingface(folder / "saved", caption_col="words")
    pairs = DatasetLoader.from_huggingface(folder / "saved", caption_col="text", cache_dir=folder / "cache")
    assert [(pair.caption, pair.label) for pair in pairs] == [("x", "cat"), ("y", "dog"), ("w", None)]
    assert pairs.skipped[0].kind == "empty caption"
    # The very bytes, stored once under their content, though two rows hold the same image.
    assert pairs[0].image_path == pairs[2].image_path
    assert pairs[0].image_path.read_bytes() == (folder / "images" / "a.jpg").read_bytes()
    assert sum(path.is_file() for path in (folder / "cache").rglob("*")) == 3
    with pytest.raises(DataError, match="no split 'test': it has train"):
        DatasetLoader.from_huggingface(folder / "saved", "test")


def test_huggingface_out_of_reach_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*_: object) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"'owner/name' could not be loaded \(ConnectionError: .*save_to_disk"):
        DatasetLoader.load("hf:owner/name")


def test_parquet_with_images_inside(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    content = (folder / "images/c.png").read_bytes()
    rows = [{"image": {"bytes": content, "path": "c.png"}, "caption": "x", "unused": 1}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "t.parquet")
    (pair,) = DatasetLoader.from_parquet(folder / "t.parquet", cache_dir=folder / "cache")
    assert pair.image_path.suffix == ".png"
    assert pair.image_path.read_bytes() == content


def test_missing_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"domainclip\[parquet\]"):
        DatasetLoader.load(write(folder / "t.parquet", "x"))
    with pytest.raises(MissingExtraError, match=r"domainclip\[datasets\]"):
        DatasetLoader.load("hf:owner/name")


def test_real_tables_load_whole(shared_data: Path) -> None:
    for name in ("fixture_tiny", "med_covid_cxr", "gen_grocery"):
        for split in ("train", "test"):
            table = shared_data / name / f"{split}.csv"
            with open(table, encoding="utf-8", newline="") as handle:
                rows = list(csv.DictReader(handle))
            pairs = DatasetLoader.load(table)
            assert not pairs.skipped
            assert facts(pairs) == [
                (Path(row["image_path"]).name, row["caption"].strip(), row["label"], None) for row in rows
            ]

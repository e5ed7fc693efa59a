"""Tables as people have them: other names of columns, other separators, other layouts; what is guessed is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from domainclip.data.labels import doubtful_names
from domainclip.data.records import PairList
from domainclip.data.sources.cells import captions_in_cell, labels_in_cell, text_or_none
from domainclip.data.sources.loaders import DatasetLoader
from domainclip.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for shade in range(4):
        Image.new("RGB", (8, 8), (shade * 60, 0, 0)).save(tmp_path / f"{shade}.png")
    return tmp_path


def loaded(folder: Path, name: str, content: str | bytes, **options: str) -> PairList:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return DatasetLoader.load(folder / name, **options)  # type: ignore[arg-type]


def said(pairs: PairList) -> str:
    return "; ".join(pairs.notes)


@pytest.mark.parametrize("image", ["filepath", "file_name", "filename", "image", "path", "Path", "img", "Image Path"])
@pytest.mark.parametrize("caption", ["title", "text", "description", "Report"])
def test_usual_names_of_columns_are_guessed_and_said(folder: Path, image: str, caption: str) -> None:
    pairs = loaded(folder, "t.csv", f"{image},{caption},category,Split\n0.png,a disc,disc,train\n1.png,b,bar,val\n")
    assert [(p.caption, p.label, p.split) for p in pairs] == [
        ("a disc", "disc", "train"),
        ("b", "bar", "validation"),
    ]
    for guess in (f"caption_col={caption}", "label_col=category", "split_col=Split"):
        assert guess in said(pairs)
    assert image == "image" or f"image_col={image}" in said(pairs)


@pytest.mark.parametrize("option", ["image_col", "caption_col", "label_col", "group_col", "split_col"])
@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_a_column_that_is_named_and_missing_is_an_error(folder: Path, option: str, suffix: str) -> None:
    row = {"image": "0.png", "caption": "a", "patient_id": "P1"}
    text = json.dumps([row]) if suffix == "json" else ",".join(row) + "\n" + ",".join(row.values()) + "\n"
    with pytest.raises(DataError, match=rf"Missing 'patientid' .*did you mean 'patient_id'.*{option}="):
        loaded(folder, f"t.{suffix}", text, **{option: "patientid"})


def test_a_folder_of_classes_has_no_columns(folder: Path) -> None:
    (folder / "disc").mkdir()
    (folder / "0.png").rename(folder / "disc" / "0.png")
    with pytest.raises(DataError, match=r"no table.*group_col=patient"):
        DatasetLoader.load(folder, group_col="patient")


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("image_path;caption;label\n0.png;a disc, red;disc\n", "semicolons"),
        ("image_path\tcaption\tlabel\n0.png\ta disc, red\tdisc\n", "tabs"),
        ("image_path | caption | label\n0.png | a disc, red | disc\n", "bars"),
        ('sep=;\nimage_path;caption;label\n0.png;"a disc, red";disc\n', "first line says that semicolons"),
        ('"image_path", "caption", "label"\n"0.png", "a disc, red", "disc"\n', ""),
        ('image_path,caption,label\r0.png,"a disc, red",disc\r', ""),
    ],
)
def test_separators_are_read_and_said(folder: Path, text: str, note: str) -> None:
    for content in (text.encode(), text.encode("utf-16"), text.encode("utf-8-sig")):
        pairs = loaded(folder, "t.csv", content)
        assert [(p.caption, p.label) for p in pairs] == [("a disc, red", "disc")]
        assert note in said(pairs)
        assert ("UTF-16" in said(pairs)) == (content == text.encode("utf-16"))


def test_a_table_without_header(folder: Path) -> None:
    pairs = loaded(folder, "t.csv", '0.png,a disc\n1.png,"a bar, green"\n')
    assert [p.caption for p in pairs] == ["a disc", "a bar, green"]
    assert "no header" in said(pairs)
    with pytest.raises(DataError, match=r"no header.*3 columns.*image_path,caption,label"):
        loaded(folder, "t.csv", "0.png,a disc,disc\n1.png,a bar,bar\n")


def test_lists_of_captions_in_a_cell() -> None:
    two = ["a disc", "it's red"]
    for cell in (two, tuple(two), json.dumps(two), repr(two), repr(tuple(two)), "['a disc' \"it's red\"]"):
        assert captions_in_cell(cell) == two, cell
    for cell in ("[unclear] disc", "[1, 2]", "a disc", "[left]", "", None):
        assert captions_in_cell(cell) == [cell]


def test_numbered_columns_are_captions(folder: Path) -> None:
    pairs = loaded(folder, "t.csv", "image,caption_0,caption_1,caption_10\n0.png,a,b,c\n1.png,d,,nan\n2.png,,,\n")
    assert [p.caption for p in pairs] == ["a", "b", "c", "d", "nan"][:4]
    assert [row.kind for row in pairs.skipped] == ["empty caption"] * 2


def test_several_labels_in_a_cell(folder: Path) -> None:
    for cell in ("edema|mass", "edema; mass", ["edema", "mass"], "['edema', 'mass']", '["edema", "mass"]'):
        assert labels_in_cell(cell) == ["edema", "mass"]
    assert labels_in_cell("edema, left") == ["edema, left"]
    pairs = loaded(folder, "t.csv", "image,caption,label\n0.png,a,edema|mass\n1.png,b,mass\n")
    assert [(p.label, p.labels) for p in pairs] == [(None, ("edema", "mass")), ("mass", None)]


def test_equal_numbers_are_equal_and_missing_is_missing(folder: Path) -> None:
    assert {text_or_none(value) for value in (2, 2.0, "2", "2.0", " 2.00 ")} == {"2"}
    assert text_or_none("1e+3") == "1000"
    for kept in ("007", "1.10", "12e5", "2.5", "P2.0"):
        assert text_or_none(kept) == kept
    rows = [("nan", "N/A"), ("-", "None"), ("NULL", "x"), ("unknown", "-"), ("2.0", "3.0"), ("2", "3")]
    lines = "".join(f"0.png,caption {i},{label},{group}\n" for i, (group, label) in enumerate(rows))
    pairs = loaded(folder, "t.csv", "image_path,caption,label,group\n" + lines)
    assert [p.group for p in pairs] == [None, None, None, None, "2", "2"]
    assert [p.label for p in pairs] == [None, None, "x", "-", "3", "3"]
    assert "as a group, 'nan' (1 row)" in said(pairs)
    assert "as a label, 'N/A' (1 row), 'None' (1 row)" in said(pairs)
    pairs = loaded(folder, "t.csv", "image_path,caption\n0.png,NULL\n1.png,-\n2.png,a disc\n")
    assert [row.kind for row in pairs.skipped] == ["empty caption"] * 2


def test_columns_that_look_like_groups_are_proposed(folder: Path) -> None:
    for column in ("patient_id", "Subject", "specimen", "lot_no", "StudyInstanceUID"):
        pairs = loaded(folder, "t.csv", f"image,caption,{column}\n0.png,a,7\n1.png,b,7\n2.png,c,8\n")
        assert pairs.proposed == {column: 2}
    assert loaded(folder, "t.csv", "image,caption,case\n0.png,a,7\n1.png,b,8\n").proposed == {}
    assert loaded(folder, "t.csv", "image,caption,group,lot\n0.png,a,1,7\n1.png,b,1,7\n").proposed == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.txt", 'image,caption\n0.png,a disc , red .\n0.png,another\n1.png,"a bar, says ""hi"""\n'),
        ("captions.txt", '0.png#0\ta disc , red .\n0.png#1\tanother\n1.png#0\ta bar, says "hi"\n'),
        ("results.token", '0.png#0\ta disc , red .\n0.png#1\tanother\n1.png#0\ta bar, says "hi"\n'),
        (
            "results.csv",
            "image_name| comment_number| comment\n0.png| 0| a disc , red .\n0.png| 1| another\n"
            '1.png| 0| "a bar, says ""hi"""\n',
        ),
    ],
)
def test_files_of_captions_alone(folder: Path, name: str, text: str) -> None:
    (folder / "Images").mkdir()
    for image in folder.glob("*.png"):
        image.rename(folder / ("Images" if name != "results.csv" else ".") / image.name)
    pairs = loaded(folder, name, text)
    assert [p.caption for p in pairs] == ["a disc , red .", "another", 'a bar, says "hi"']
    assert pairs.skipped == []


def test_layouts_of_json(folder: Path) -> None:
    images = [{"id": 5, "file_name": "0.png"}, {"id": 6, "file_name": "1.png"}]
    captions = [{"image_id": 6, "caption": "b"}, {"image_id": 5, "caption": "a"}, {"image_id": 6, "caption": "c"}]
    coco = {"images": images, "annotations": captions}
    assert [(p.image_path.name, p.caption) for p in loaded(folder, "t.json", json.dumps(coco))] == [
        ("0.png", "a"),
        ("1.png", "b"),
        ("1.png", "c"),
    ]
    objects = [{"image_id": 5, "category_id": 1}, {"image_id": 5, "category_id": 2}, {"image_id": 6, "category_id": 2}]
    names = [{"id": 1, "name": "disc"}, {"id": 2, "name": "bar"}]
    instances = loaded(folder, "t.json", json.dumps({"images": images, "annotations": objects, "categories": names}))
    assert [(p.labels, p.label) for p in instances] == [(("disc", "bar"), None), (None, "bar")]
    assert "COCO" in said(instances)
    karpathy = {"images": [{"filename": "0.png", "split": "restval", "sentences": [{"raw": "a"}, {"raw": "b"}]}]}
    assert [(p.caption, p.split) for p in loaded(folder, "t.json", json.dumps(karpathy))] == [
        ("a", "train"),
        ("b", "train"),
    ]
    parts = {"train": [{"image": "0.png", "caption": "a"}], "test": [{"image": "1.png", "caption": "b"}]}
    assert [p.split for p in loaded(folder, "t.json", json.dumps(parts))] == ["train", "test"]
    for odd in (
        {"0.png": ["a"], "1.png": "b"},
        {"image_path": {"0": "0.png", "1": "1.png"}, "caption": {"0": "a", "1": "b"}},
        {"image_path": ["0.png", "1.png"], "caption": ["a", "b"]},
    ):
        assert [p.caption for p in loaded(folder, "t.json", json.dumps(odd))] == ["a", "b"]
    with pytest.raises(DataError, match="Malformed JSON"):
        loaded(folder, "t.json", "[" * 200_000)


def test_class_names_of_the_hub(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    content = (folder / "0.png").read_bytes()
    feature = {"names": ["disc", "bar"], "_type": "ClassLabel"}
    features = {"label": feature, "kinds": [feature], "image": {"_type": "Image"}}
    rows = [
        {"image": {"bytes": content, "path": None}, "text": "a", "label": label, "kinds": [0, 1]} for label in (1, -1)
    ]
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    parquet.write_table(table, folder / "t.parquet")
    assert [p.label for p in DatasetLoader.from_parquet(folder / "t.parquet", cache_dir=folder / "c")] == ["bar", None]
    several = DatasetLoader.from_parquet(folder / "t.parquet", cache_dir=folder / "c", label_col="kinds")
    assert several[0].labels == ("disc", "bar")


def test_a_stray_table_does_not_take_a_folder_over(folder: Path) -> None:
    (folder / "disc").mkdir()
    (folder / "0.png").rename(folder / "disc" / "0.png")
    (folder / "about.json").write_text('{"title": "x"}')
    (folder / "notes.csv").write_text("who,when\nme,now\n")
    pairs = DatasetLoader.load(folder)
    assert [p.label for p in pairs] == ["disc"]
    assert "about.json is not read" in said(pairs) and "notes.csv is not read" in said(pairs)


def test_captions_from_labels_have_their_article(folder: Path) -> None:
    pairs = loaded(folder, "t.csv", "image,label\n0.png,aneurysm\n1.png,red_disc\n2.png,\n")
    assert [p.caption for p in pairs] == ["a photo of an aneurysm", "a photo of a red disc"]
    assert "caption_template" in said(pairs) and len(pairs.skipped) == 1


def test_captions_of_an_unknown_name_are_not_lost_for_labels(folder: Path) -> None:
    text = "image,words,label,width\n0.png,a red round disc,disc,8\n"
    with pytest.raises(DataError, match=r"Missing 'caption' column .*caption_col=words.*caption_template"):
        loaded(folder, "t.csv", text)
    assert loaded(folder, "t.csv", text, caption_template="one {label}")[0].caption == "one disc"


def test_what_is_no_split_after_all_is_not_said_to_be_one(folder: Path) -> None:
    pairs = loaded(folder, "t.csv", "image,caption,fold\n0.png,a,1\n1.png,b,2\n")
    assert "'fold' is not used" in said(pairs)
    assert "is read as the split" not in said(pairs)


@pytest.mark.parametrize("column", ["url", "image_url", "URL", "Link"])
def test_addresses_on_the_web_are_no_files(folder: Path, column: str) -> None:
    with pytest.raises(DataError, match=rf"column '{column}' probably holds addresses on the web: download"):
        loaded(folder, "t.csv", f"{column},caption\nhttps://a.org/1.jpg,a\n")


def test_where_images_are_looked_for_is_said_where_one_is_missing_alone(folder: Path) -> None:
    with pytest.raises(DataError, match=r"image_root=…"):
        loaded(folder, "t.csv", "image,caption\nnone.png,a\n")
    with pytest.raises(DataError) as found:
        loaded(folder, "t.csv", "image,caption\n0.png,\n1.png,\n")
    assert "image_root" not in str(found.value)


@pytest.mark.parametrize(
    ("labels", "joined"),
    [
        (["red", "green, round", "round, blue"], ["green, round", "round, blue"]),
        (["red", "red + round", "blue"], ["red + round"]),
        (["Tomato, healthy", "Tomato, leaf spot", "Potato, healthy"], []),
        (["X-ray", "T1/T2", "CT"], []),
    ],
)
def test_labels_that_are_probably_several(labels: list[str], joined: list[str]) -> None:
    assert doubtful_names(labels).get("several in one, perhaps", ([], ""))[0] == joined

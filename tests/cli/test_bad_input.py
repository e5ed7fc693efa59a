"""Everything users bring that is wrong, through the command: a sentence and exit code 2, or skipped and counted."""

from __future__ import annotations

import csv
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainclip.reports.schema import EvaluationFile

pytestmark = pytest.mark.slow

Row = tuple[str, str, str]


@pytest.fixture
def folder(tiny_data, tmp_path) -> Path:
    """A copy of the tiny data, to be spoilt."""
    copy = tmp_path / "data"
    shutil.copytree(tiny_data.folder, copy)
    return copy


def rows_of(folder: Path, split: str = "train") -> list[Row]:
    with open(folder / f"{split}.csv", encoding="utf-8", newline="") as handle:
        return [(row["image_path"], row["caption"], row["label"]) for row in csv.DictReader(handle)]


def write_rows(folder: Path, rows: list[Row], split: str = "train") -> None:
    with open(folder / f"{split}.csv", "w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([("image_path", "caption", "label"), *rows])


@pytest.fixture
def train(domainclip, folder, tmp_path) -> Callable:
    def run(*more: object):
        return domainclip("train", "-r", "debug", "-d", folder, "-o", tmp_path / "out", *more)

    return run


def report_of(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "out" / "report.json").read_text())


def skipped_of(tmp_path: Path) -> list[dict]:
    return json.loads((tmp_path / "out" / "skipped.json").read_text())


def refused(result, *words: str) -> None:
    assert result.exit_code == 2, result.err
    for word in words:
        assert word in result.err
    assert sum(line.startswith("Error: ") for line in result.err.splitlines()) == 1


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def huge_png(path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b""))


# --- tables ---


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["train.csv", "empty"]),
        (b"image_path,caption,label\n", ["train.csv", "No valid image-text pairs", "no rows"]),
        (b"image_path,words\nimages/sky_0.jpg,a sky\n", ["Missing 'caption' column", "train.csv", "caption_col"]),
        (b"photo,caption\nimages/sky_0.jpg,a sky\n", ["Missing 'image_path' column", "train.csv", "image_col"]),
        ("image_path,caption\nimages/sky_0.jpg,caf\xe9\n".encode("latin-1"), ["train.csv", "UTF-8", "line 2"]),
        (b'image_path,caption\nimages/sky_0.jpg,"open\n', ["train.csv"]),
        ("image_path,caption\n".encode("utf-16")[:-1], ["train.csv", "UTF-16"]),
    ],
)
def test_unusable_table(folder, train, tmp_path, content, words):
    (folder / "train.csv").write_bytes(content)
    refused(train(), *words)
    assert not (tmp_path / "out").exists()  # nothing is made before the data are known to be usable


def test_columns_can_be_named(folder, train):
    text = (folder / "train.csv").read_text().replace("image_path,caption,label", "image_path,words,label", 1)
    for split in ("train", "val", "test"):
        lines = (folder / f"{split}.csv").read_text().splitlines()
        (folder / f"{split}.csv").write_text("\n".join(["image_path,words,label", *lines[1:]]))
    assert text.startswith("image_path,words")
    refused(train(), "Missing 'caption' column")
    assert train("caption_col=words").exit_code == 0


def test_no_data_at_all(train, tmp_path):
    refused(train("-d", tmp_path / "nowhere"), "Data not found", "nowhere")
    (tmp_path / "empty").mkdir()
    refused(train("-d", tmp_path / "empty"), "empty")


def test_missing_images_are_skipped_and_counted(folder, train, tmp_path):
    (folder / "images" / "sky_0.jpg").unlink()
    result = train()
    assert result.exit_code == 0, result.err
    (row,) = skipped_of(tmp_path)
    assert row["split"] == "train"
    assert row["image_path"] == "images/sky_0.jpg"
    assert "train.csv row 14" in row["reason"]  # the header and twelve rows before it
    assert [count["rows"] for count in report_of(tmp_path)["data"]["skipped"]] == [1]
    assert report_of(tmp_path)["data"]["counts"]["train"] == 17
    shutil.rmtree(tmp_path / "out")
    refused(train("strict=true"), "train.csv row 14", "images/sky_0.jpg")


def test_every_image_missing(folder, train):
    shutil.rmtree(folder / "images")
    refused(train(), "No valid image-text pairs", "train.csv", "18 rows")


def test_directory_named_like_an_image(folder, train, tmp_path):
    (folder / "images" / "sky_0.jpg").unlink()
    (folder / "images" / "sky_0.jpg").mkdir()
    assert train().exit_code == 0
    assert "sky_0.jpg" in skipped_of(tmp_path)[0]["reason"]


def test_captions_empty_and_of_10000_characters(folder, train, tmp_path):
    rows = rows_of(folder)
    rows[0] = (rows[0][0], "   ", rows[0][2])
    rows[1] = (rows[1][0], "brick wall " * 910, rows[1][2])
    write_rows(folder, rows)
    assert len(rows[1][1]) > 10_000
    result = train()
    assert result.exit_code == 0, result.err
    (row,) = skipped_of(tmp_path)
    assert "row 2" in row["reason"]
    assert "caption is empty" in row["reason"]


# --- images ---


@pytest.mark.parametrize("name", ["sky_0.jpg", "sky_1.png"])
def test_truncated_training_image(folder, train, tmp_path, name):
    truncate(folder / "images" / name)
    result = train("num_epochs=2")
    assert result.exit_code == 0, result.err
    (row,) = skipped_of(tmp_path)
    assert row["split"] == "train"
    assert row["image_path"].endswith(name)
    assert name in row["reason"]
    (count,) = report_of(tmp_path)["data"]["skipped"]
    assert (count["split"], count["kind"], count["rows"], count["images"]) == ("train", "unreadable image", 1, 1)
    first_screen = (tmp_path / "out" / "report.md").read_text(encoding="utf-8").splitlines()[:24]
    assert any(line.startswith("- Skipped (train): 1 row") and name in line for line in first_screen)
    assert report_of(tmp_path)["training"]["steps"] == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_strict_makes_a_truncated_training_image_fatal(folder, train, workers):
    truncate(folder / "images" / "sky_0.jpg")
    result = train("strict=true", f"num_workers={workers}", "num_epochs=3")
    refused(result, "sky_0.jpg")
    assert len([line for line in result.err.splitlines() if line.startswith("Error")]) == 1


@pytest.mark.parametrize("split", ["val", "test"])
def test_truncated_image_outside_training(folder, train, domainclip, tmp_path, split):
    name = rows_of(folder, split)[0][0]
    truncate(folder / name)
    assert train().exit_code == 0
    (row,) = skipped_of(tmp_path)
    assert (row["split"], row["image_path"]) == (split, str(folder / name))
    if split == "test":
        assert report_of(tmp_path)["after"]["n_classified"] == 5
    evaluated = domainclip("evaluate", "-m", "tiny", "-d", folder, "--split", split, "--json")
    assert evaluated.exit_code == 0
    assert json.loads(evaluated.out)["skipped"] == [row]
    shutil.rmtree(tmp_path / "out")
    refused(train("strict=true"), name)
    refused(domainclip("evaluate", "-m", "tiny", "-d", folder, "--split", split, "strict=true"), name)


def test_evaluation_counts_the_rows_that_loading_skipped(folder, domainclip):
    name = rows_of(folder, "test")[2][0]
    (folder / name).unlink()
    result = domainclip("evaluate", "-m", "tiny", "-d", folder, "--json")
    (row,) = json.loads(result.out)["skipped"]
    assert row["image_path"] == name
    assert "test.csv row 4" in row["reason"]
    shown = domainclip("evaluate", "-m", "tiny", "-d", folder)
    assert "Skipped (test): 1 row, missing image; first: test.csv row 4" in shown.out.replace("\n", " ")
    content = json.loads(result.out)
    assert content["schema_version"] == "1.0" and EvaluationFile.model_validate(content).to_dict() == content
    (count,) = content["skipped_counts"]
    assert (count["kind"], count["rows"]) == ("missing image", 1)


def test_no_training_image_that_can_be_read(folder, train, tmp_path):
    for name, _, _ in rows_of(folder):
        (folder / name).write_bytes(b"\xff\xd8\xff\xe0 nothing")
    refused(train(), "No valid image-text pairs to train on", "0 of 18 images can be read", "brick_0.jpg")
    assert not (tmp_path / "out").exists()


def test_no_test_image_that_can_be_read(folder, domainclip):
    for name, _, _ in rows_of(folder, "test"):
        (folder / name).write_bytes(b"")
    refused(domainclip("evaluate", "-m", "tiny", "-d", folder), "No image of the test split", "empty")


def test_image_of_30000_by_30000(folder, train, tmp_path):
    huge_png(folder / "images" / "sky_1.png")
    assert train().exit_code == 0
    (row,) = skipped_of(tmp_path)
    assert "sky_1.png" in row["reason"]
    assert "pixels" in row["reason"]


def test_unusual_images_are_used(folder, train, tmp_path):
    images = folder / "images"
    base = Image.open(images / "brick_1.png").convert("RGB")
    Image.new("RGB", (1, 1), "red").save(images / "one.png")
    Image.new("RGB", (900, 2), "red").save(images / "line.png")
    base.convert("CMYK").save(images / "cmyk.jpg")
    Image.fromarray(np.asarray(base)[..., 0].astype(np.uint16) * 257).save(images / "deep.png")
    base.quantize(8).save(images / "palette.png", transparency=2)
    base.save(images / "moving.gif", save_all=True, append_images=[base.rotate(90)])
    base.convert("RGBA").save(images / "alpha.webp")
    base.convert("1").save(images / "bits.tif")
    names = ["one.png", "line.png", "cmyk.jpg", "deep.png", "palette.png", "moving.gif", "alpha.webp", "bits.tif"]
    write_rows(folder, [*rows_of(folder), *((f"images/{name}", f"an odd {name}", "brick") for name in names)])
    result = train("batch_size=13")  # two batches: every row is read
    assert result.exit_code == 0, result.err
    assert not (tmp_path / "out" / "skipped.json").exists()
    assert report_of(tmp_path)["data"]["counts"]["train"] == 26


# --- sets that are too small or too plain ---


def test_fewer_rows_than_the_batch(train, tmp_path):
    result = train("batch_size=500")
    assert result.exit_code == 0, result.err
    assert report_of(tmp_path)["training"]["steps"] == 1


def test_one_row_and_two_rows(folder, train, tmp_path):
    rows = rows_of(folder)
    write_rows(folder, rows[:1])
    refused(train(), "No valid image-text pairs", "2 are needed")
    write_rows(folder, [rows[0], rows[-1]])
    result = train("--overwrite")
    assert result.exit_code == 0, result.err
    assert report_of(tmp_path)["training"]["steps"] == 1


def test_batch_of_one(train):
    refused(train("batch_size=1"), "batch_size=1", "nothing to contrast")


def test_one_caption_only(folder, train):
    write_rows(folder, [(name, "the same", "one") for name, _, _ in rows_of(folder)])
    refused(train(), "same caption", "nothing to tell apart")


def test_class_with_one_image(folder, train, tmp_path):
    rows = rows_of(folder)
    write_rows(folder, [*rows[:-1], (rows[-1][0], "a lonely cloud", "cloud")])
    assert train().exit_code == 0
    # In one table that has yet to be divided, too.
    every = [row for split in ("train", "val", "test") for row in rows_of(folder, split)]
    for split in ("train", "val", "test"):
        (folder / f"{split}.csv").unlink()
    write_rows(folder, every, "all")
    result = train("--overwrite", "-d", folder / "all.csv")
    assert result.exit_code == 0, result.err
    assert sum(report_of(tmp_path)["data"]["counts"].values()) == 30


def test_no_test_and_no_validation_rows(folder, train, tmp_path):
    (folder / "val.csv").unlink()
    (folder / "test.csv").unlink()
    result = train("train_split=1", "val_split=0", "test_split=0")
    assert result.exit_code == 0, result.err
    assert report_of(tmp_path)["after"] == {}
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


# --- recipes, models, folders ---


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\nbatch_size: [\n", ["mine.yaml line 3", "not valid YAML"]),
        ("seed: 1\nlerning_rate: 1\n", ["did you mean 'learning_rate'", "mine.yaml line 2"]),
        ("seed: 1\nnum_epochs: many\n", ["Number of epochs must be a valid integer", "mine.yaml line 2"]),
        ("seed: 1\ndomain: medicine\n", ["Invalid domain 'medicine'", "mine.yaml line 2"]),
        ("seed: 1\nseed: 2\n", ["mine.yaml line 2", "'seed' stands twice"]),
        ("just words\n", ["mine.yaml", "key: value"]),
        ("2: 3\n", ["mine.yaml line 1", "Unknown key '2'"]),
    ],
)
def test_wrong_recipe_file(domainclip, folder, tmp_path, text, words):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text)
    refused(domainclip("train", "-r", recipe, "-d", folder, "-o", tmp_path / "out"), *words)


def test_wrong_words_on_the_command_line(train):
    refused(train("learning_rat=1"), "Unknown key 'learning_rat'", "did you mean 'learning_rate'")
    refused(train("learning_rate=-1"), "Learning rate must be positive")
    refused(train("learning_rate=nan"), "Learning rate")
    refused(train("batch_size=0"), "Batch size must be positive")
    refused(train("temperature=0"), "Temperature must be positive")
    refused(train("nonsense"), "'nonsense' is not key=value")
    refused(train("loss_type=contrastiv"), "contrastive")
    refused(train("device=tpu"), "Invalid device 'tpu'")
    refused(train("--domain", "space"), "Invalid domain 'space'")
    refused(train("-r", "no_such_recipe"), "Unknown recipe 'no_such_recipe'")
    refused(train("-r", "gone/recipe.yaml"), "gone/recipe.yaml does not exist")


def test_missing_and_empty_model_folders(train, domainclip, folder, tmp_path):
    refused(train("-m", tmp_path / "no_model"), "no_model", "does not exist")
    (tmp_path / "hollow").mkdir()
    refused(train("-m", tmp_path / "hollow"), "hollow")
    refused(domainclip("evaluate", "-m", tmp_path / "no_model", "-d", folder), "no_model")
    refused(domainclip("data", "check", folder, "-m", tmp_path / "no_model"), "no_model")


@pytest.mark.parametrize("inner", ["", "deeper/run"])
def test_output_that_is_a_file(domainclip, folder, tmp_path, inner):
    (tmp_path / "taken").write_text("the user's")
    result = domainclip("train", "-r", "debug", "-d", folder, "-o", tmp_path / "taken" / inner)
    refused(result, "taken", "cannot be written")
    assert (tmp_path / "taken").read_text() == "the user's"


def test_names_with_brackets_are_shown_whole(folder, train, domainclip, tmp_path):
    odd = tmp_path / "data [red] [/x]"  # to a terminal's markup, a closing tag that was never opened
    odd.parent.mkdir()
    folder.rename(odd)
    truncate(odd / rows_of(odd, "test")[0][0])
    result = train("-d", odd, "-o", tmp_path / "out [/b]")
    assert result.exit_code == 0, result.err
    assert "out [/b]" in result.err
    result = domainclip("evaluate", "-m", tmp_path / "out [/b]" / "model", "-d", odd)
    assert result.exit_code == 0, result.err
    assert "data [red] [/x]" in result.out.replace("\n", "")


def test_data_check_on_bad_input(domainclip, folder, tmp_path):
    truncate(folder / "images" / "sky_0.jpg")
    (folder / "images" / "sky_2.jpg").unlink()
    huge_png(folder / "images" / "sky_1.png")
    result = domainclip("data", "check", folder, "--json")
    assert result.exit_code == 0  # train skips them
    assert domainclip("data", "check", folder, "strict=true").exit_code == 1
    found = json.dumps(json.loads(result.out)["findings"])
    for name in ("sky_0.jpg", "sky_1.png", "sky_2.jpg"):
        assert name in found
    refused(domainclip("data", "check", folder, "batch_sise=3"), "did you mean 'batch_size'")

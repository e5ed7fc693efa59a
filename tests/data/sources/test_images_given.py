"""Whatever names images: each is a row, and each row that names none says why."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from domainclip.data.records import Columns
from domainclip.data.sources.images_given import ImageRows
from domainclip.errors import DataError
from tiny_data import write_tiny_data


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    for name in ("a.png", "cats/b.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.pdf").write_bytes(b"%PDF-1.7")
    return tmp_path / "photos"


def test_images_and_folders_need_no_words(photos: Path) -> None:
    found = ImageRows.of([photos / "a.png", photos, photos / "gone.png"])
    paths = [str(photos / name) for name in ("a.png", "a.png", "cats/b.jpg", "gone.png")]
    assert [row.path for row in found.rows] == paths
    assert [row.problem for row in found.rows] == ["", "", "", f"{photos / 'gone.png'} is not there"]
    assert [note for note in found.notes if "notes.pdf" in note]


def test_a_folder_knows_what_its_tables_say_and_has_all_images(tmp_path: Path) -> None:
    folder = write_tiny_data(tmp_path / "data").folder
    Image.new("RGB", (4, 4)).save(folder / "images" / "unnamed.png")
    with open(folder / "test.csv", "a") as table:
        table.write("images/gone.png,a caption,sky\n")
    found = ImageRows.of([folder])
    assert len(found.rows) == 32
    by_name = {Path(row.path).name: row for row in found.rows}
    assert by_name["sky_0.jpg"].label == "sky"
    assert by_name["sky_0.jpg"].caption == "a texture of sky"
    assert (by_name["unnamed.png"].label, by_name["unnamed.png"].problem) == ("", "")
    assert "gone.png is not there" in by_name["gone.png"].problem


def test_a_table_of_images_alone_is_enough(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("image_path,note\nphotos/a.png,1\nphotos/gone.png,2\n,3\n")
    found = ImageRows.of([tmp_path / "list.csv"])
    assert [Path(row.path).name for row in found.rows] == ["a.png", "gone.png", ""]
    assert [bool(row.problem) for row in found.rows] == [False, True, True]
    (tmp_path / "named.csv").write_text("photo,kind\nphotos/a.png,crack\n")
    named = ImageRows.of([tmp_path / "named.csv"], Columns(image_col="photo", label_col="kind"))
    assert [(row.label, row.caption) for row in named.rows] == [("crack", "")]


def test_rows_without_a_caption_stay(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("image_path,caption\nphotos/a.png,\nphotos/cats/b.jpg,a cat\n")
    assert [row.caption for row in ImageRows.of([tmp_path / "list.csv"]).rows] == ["", "a cat"]


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        ImageRows.of([tmp_path / "empty"])
    with pytest.raises(DataError, match="There are no images to read"):
        ImageRows.of([])
    with pytest.raises(DataError, match=r"No image can be read of 1 row: x.* is longer than any path"):
        ImageRows.of(["x" * 5000])
    with pytest.raises(DataError, match=r"No image can be read of 2 rows: .*gone\.png is not there"):
        ImageRows.of([tmp_path / "gone.png", tmp_path / "other.png"])

"""Data of object detection, and classes that lie in one more folder."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from domainclip.data.sources.boxes import is_yolo
from domainclip.data.sources.loaders import DatasetLoader
from domainclip.data.splits import load_splits
from domainclip.errors import DataError

YOLO = "0 0.5 0.5 0.2 0.2\n1 0.25 0.5 1e-1 0.2\n"
VOC = "<annotation><object><name>cat</name><bndbox><xmin>1</xmin></bndbox></object></annotation>"
SHAPES = json.dumps({"shapes": [{"label": "cat", "points": [[1, 2], [3, 4]]}], "imagePath": "0.jpg"})


def images(folder: Path, count: int = 4) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.new("RGB", (20, 20), (index * 40, 9, 200)).save(folder / f"{index}.jpg")


def texts(folder: Path, suffix: str, text: str, count: int = 4) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        (folder / f"{index}{suffix}").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("pictures", "boxes", "suffix", "text", "what"),
    [
        (["images/train", "images/val"], ["labels/train", "labels/val"], ".txt", YOLO, "YOLO"),
        (["train/images", "valid/images"], ["train/labels", "valid/labels"], ".txt", YOLO, "YOLO"),
        (["images"], ["labels"], ".txt", YOLO, "YOLO"),
        ([""], [""], ".txt", YOLO, "YOLO"),
        (["JPEGImages"], ["Annotations"], ".xml", VOC, "Pascal VOC"),
        ([""], [""], ".xml", VOC, "Pascal VOC"),
        (["images"], ["annotations"], ".xml", VOC, "Pascal VOC"),
        ([""], [""], ".json", SHAPES, "LabelMe"),
    ],
)
def test_boxes_are_no_captions(
    tmp_path: Path, pictures: list[str], boxes: list[str], suffix: str, text: str, what: str
) -> None:
    for place in pictures:
        images(tmp_path / place)
    for place in boxes:
        texts(tmp_path / place, suffix, text)
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match=f"object detection: .*{what}.*folder per class.*column 'label'"):
        load_splits(tmp_path)


def test_the_inner_folder_of_images_is_no_other_data(tmp_path: Path) -> None:
    images(tmp_path / "images")
    texts(tmp_path / "labels", ".txt", YOLO)
    (tmp_path / "labels" / "0.txt").write_text("")  # an image without objects
    with pytest.raises(DataError, match="object detection"):
        DatasetLoader.load(tmp_path / "images")


def test_coco_is_named_by_its_file(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        images(tmp_path / split)
        content = {
            "images": [{"id": index, "file_name": f"{index}.jpg"} for index in range(4)],
            "annotations": [{"image_id": index, "category_id": index % 2, "bbox": [0, 0, 2, 2]} for index in range(4)],
            "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
        }
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"instances_train2017.json has COCO's annotations.*image_root="):
        load_splits(tmp_path)
    file = tmp_path / "annotations" / "instances_train2017.json"
    with pytest.raises(DataError, match=f"there is one in image_root={tmp_path / 'train2017'}"):
        DatasetLoader.load(file)
    found = DatasetLoader.load(file, image_root=tmp_path / "train2017")
    assert Counter(pair.label for pair in found) == {"cat": 2, "dog": 2}


def test_captions_of_numbers_are_captions(tmp_path: Path) -> None:
    images(tmp_path)
    texts(tmp_path, ".txt", "3 screws of 5 mm\n")
    (tmp_path / "1.txt").write_text(YOLO)
    assert len(DatasetLoader.load(tmp_path)) == 4
    assert not any(map(is_yolo, ("", "0", "1 2 3", "0 0.1 0.2 0.3", "0 0.1 0.2 0.3 cat", "2 red discs on 4 lines")))


@pytest.mark.parametrize("front", ["images", "set/Images", "flowers"])
def test_classes_in_one_more_folder(tmp_path: Path, front: str) -> None:
    for label in ("red_disc", "blue_disc"):
        images(tmp_path / front / label)
    texts(tmp_path / "Annotations", ".xml", VOC)
    pairs = DatasetLoader.load(tmp_path)
    assert Counter(pair.label for pair in pairs) == {"red disc": 4, "blue disc": 4}
    assert f"the folders in {front}/ are read as classes" in pairs.notes


def test_a_folder_of_images_is_no_class(tmp_path: Path) -> None:
    images(tmp_path / "images")
    images(tmp_path / "masks")
    with pytest.raises(DataError, match=r"no class folder and has no caption.*one folder of images per class"):
        DatasetLoader.load(tmp_path)
    images(tmp_path / "images" / "cat")
    images(tmp_path / "images" / "dog")
    pairs = DatasetLoader.load(tmp_path)
    assert Counter(pair.label for pair in pairs) == {"cat": 4, "dog": 4}
    assert Counter(row.kind for row in pairs.skipped) == {"empty caption": 4, "mask": 4}

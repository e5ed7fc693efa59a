"""Outputs that lie among the data are never read as data, by any reader, and never take the place of data."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from commands import CommandResult
from domainclip.data.splits import DataSplits, load_splits
from domainclip.errors import ConfigurationError, DataError
from domainclip.output_record import LOCK_FILE, RECORD
from domainclip.pipelines.compare import comparison_folder
from domainclip.pipelines.run_folder import OutputFolder, RunFolder
from domainclip.tune.results import PARTS
from tiny_data import TinyData

Domainclip = Callable[..., CommandResult]


def image(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = Image.new("RGB", (24, 24), (number * 37 % 256, number * 11 % 256, number * 83 % 256))
    drawn.paste((255 - number * 7 % 199, number * 19 % 151, 40), (number % 19, number * 3 % 17, 20, 21))
    drawn.save(path)
    return path


def classes(root: Path) -> None:
    for number in range(18):
        image(root / ("cats", "dogs", "train")[number % 3] / f"{number}.png", number)


def splits(root: Path) -> None:
    for number in range(24):
        image(root / ("train", "train", "test")[number % 3] / ("cats", "dogs")[number % 2] / f"{number}.png", number)


def sidecars(root: Path) -> None:
    for number in range(18):
        image(root / f"{number}.png", number).with_suffix(".txt").write_text(f"a drawing, number {number}")


def img2dataset(root: Path) -> None:
    for number in range(18):
        path = image(root / "00000" / f"{number:05}.png", number)
        path.with_suffix(".json").write_text(json.dumps({"caption": f"a drawing, number {number}"}))


def captions(root: Path) -> None:
    names = [image(root / "pictures" / f"{number}.png", number).name for number in range(18)]
    (root / "captions.txt").write_text("".join(f"{name}\ta drawing, number {name}\n" for name in names))


def metadata(root: Path) -> None:
    names = [image(root / f"{number}.png", number).name for number in range(18)]
    (root / "metadata.csv").write_text("file_name,text\n" + "".join(f"{name},drawing {name}\n" for name in names))


def coco(root: Path) -> None:
    names = [image(root / f"{number}.png", number).name for number in range(18)]
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [{"image_id": number, "caption": f"drawing {name}"} for number, name in enumerate(names)],
    }
    (root / "captions.json").write_text(json.dumps(content))


def tars(root: Path) -> None:
    root.mkdir()
    sidecars(root / "loose")
    with tarfile.open(root / "00000.tar", "w") as tar:
        for path in sorted((root / "loose").iterdir()):
            tar.add(path, path.name)
    shutil.rmtree(root / "loose")


LAYOUTS = [classes, splits, sidecars, img2dataset, captions, metadata, coco, tars]


def fill(folder: OutputFolder) -> None:
    """What a run, a study or a comparison leaves: images, tables and texts among them."""
    folder.begin()
    for number, name in enumerate(folder.names):
        place = folder.path / name
        if name.endswith(".json"):
            place.write_text(json.dumps([{"image_path": "0.png", "caption": "x"}]))
        elif name.endswith((".csv", ".jsonl", ".txt")):
            place.write_text("image_path,caption\n0.png,x\n")
        elif name.endswith((".png", ".jpg")):
            image(place, 100 + number)
        elif "." not in name:
            image(place / "train" / "plot.png", 100 + number).with_suffix(".txt").write_text("x")
        else:
            place.write_text("x")
    folder.end()


OUTPUTS: dict[str, Callable[[Path], OutputFolder]] = {
    "run": RunFolder,
    "study": lambda path: OutputFolder(path, PARTS, "study"),
    "comparison": comparison_folder,
    "demonstration": lambda path: OutputFolder(path, ("initial-model",), "demonstration"),
}


def rows(found: DataSplits) -> list[list[tuple[object, ...]]]:
    parts = (found.train, found.val, found.test)
    return [[(pair, pair.label) for pair in part] for part in parts] + [
        [str(row) for row in part.skipped] for part in parts
    ]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("place", [".", "out", "train/out"])
def test_outputs_are_left_out_by_every_reader(
    tmp_path: Path, layout: Callable[[Path], None], output: str, place: str
) -> None:
    root = tmp_path / "photos"
    layout(root)
    before = load_splits(root)
    (root / place).mkdir(parents=True, exist_ok=True)
    fill(OUTPUTS[output](root / place))
    after = load_splits(root)
    assert rows(after) == rows(before)
    walked = layout in (classes, splits, sidecars, img2dataset)
    assert any("what domainclip has written there is left out" in note for note in after.notes) == walked


@pytest.mark.parametrize("layout", [classes, splits, sidecars], ids=lambda layout: layout.__name__)
def test_an_output_that_has_only_begun_is_left_out_as_well(tmp_path: Path, layout: Callable[[Path], None]) -> None:
    root = tmp_path / "photos"
    layout(root)
    before = load_splits(root)
    image(root / "run" / "plots" / "loss.png", 3)
    (root / "run" / LOCK_FILE).write_text("{}")
    assert rows(load_splits(root)) == rows(before)


def test_a_run_is_no_data(tmp_path: Path) -> None:
    fill(RunFolder(tmp_path))
    with pytest.raises(DataError, match="this was written by domainclip"):
        load_splits(tmp_path)


def test_a_damaged_record(tmp_path: Path) -> None:
    classes(tmp_path / "photos")
    before = load_splits(tmp_path / "photos")
    fill(RunFolder(tmp_path / "photos" / "run"))
    (tmp_path / "photos" / "run" / RECORD).write_text("{")
    assert rows(load_splits(tmp_path / "photos")) == rows(before)
    (tmp_path / "photos" / RECORD).write_text("{")
    with pytest.raises(DataError, match="it is not known which files beside it a run has written"):
        load_splits(tmp_path / "photos")


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_folder_holds_none_of_the_data(tmp_path: Path, output: str) -> None:
    """It would be left out, with the images in it."""
    classes(tmp_path / "photos")
    inputs = [("data_path", str(tmp_path / "photos"))]
    with pytest.raises(ConfigurationError, match=r"holds images of data_path.*give an output directory of its own"):
        OUTPUTS[output](tmp_path / "photos" / "cats").claim(inputs=inputs)
    OUTPUTS[output](tmp_path / "photos" / "new").claim(inputs=inputs)
    OUTPUTS[output](tmp_path / "photos").claim(inputs=inputs)


def test_a_sheet_among_the_data(domainclip: Domainclip, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    classes(root)
    before = load_splits(root)
    for place in ("sheet.png", "sheet.png", "cats/sheet.png", "cats/other.png"):
        assert domainclip("data", "preview", "--data", root, "--output", root / place, "-n", "2").exit_code == 0
    assert rows(load_splits(root)) == rows(before)
    own = (root / "cats" / "0.png").read_bytes()
    refused = domainclip("data", "preview", "--data", root, "--output", root / "cats" / "0.png")
    assert refused.exit_code != 0 and "would replace" in refused.err
    assert (root / "cats" / "0.png").read_bytes() == own


@pytest.mark.slow
def test_what_commands_write_among_the_data(domainclip: Domainclip, tmp_path: Path, zoo: dict[str, Path]) -> None:
    root, model = tmp_path / "photos", zoo["clip"]
    classes(root)
    before = load_splits(root)
    asked = ("--data", root, "--model", model, "device=cpu")
    for words in (
        ("align", "report", *asked, "--split", "all", "--output", root / "alignment"),
        ("evaluate", *asked, "--split", "all", "--output", root / "test.json", "--error-analysis", root / "errors"),
        ("evaluate", *asked, "--split", "all", "--resolutions", "32,64", "--output", root / "dogs" / "sizes.json"),
        ("compare", "-m", model, "-d", root, "--split", "all", "--output", root / "compared"),
    ):
        result = domainclip(*words)
        assert result.exit_code == 0, result.err
        assert rows(load_splits(root)) == rows(before), words
    refused = domainclip("align", "report", *asked, "--output", root / "cats")
    assert refused.exit_code != 0 and "holds images of data_path" in refused.err


@pytest.mark.slow
@pytest.mark.parametrize("place", ["run", "."])
def test_a_run_among_its_data_goes_on(domainclip: Domainclip, tmp_path: Path, zoo: dict[str, Path], place: str) -> None:
    root = tmp_path / "photos"
    classes(root)
    before = load_splits(root)
    words = ("train", "--data", root, "--output", root / place)
    keys = ("batch_size=6", "num_epochs=1", "device=cpu", "alignment_visualization=true", "error_analysis=true")
    first = domainclip(*words, "--model", zoo["clip"], *keys)
    assert first.exit_code == 0, first.err
    assert rows(load_splits(root)) == rows(before)
    longer = domainclip(*words, "--resume", "num_epochs=2")
    assert longer.exit_code == 0, longer.err
    assert "have changed" not in longer.err


def test_a_table_names_what_it_likes(tiny_data: TinyData, tmp_path: Path) -> None:
    """A table beside a run still finds its own images."""
    root = tmp_path / "data"
    shutil.copytree(tiny_data.folder, root)
    before = load_splits(root)
    fill(RunFolder(root))
    fill(RunFolder(root / "run"))
    assert rows(load_splits(root)) == rows(before)

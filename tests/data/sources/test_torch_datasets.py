"""A torch data set or loader of the user's own: what items are taken, and that it trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, WeightedRandomSampler

from domainclip import CLIPFinetuningConfig, CLIPFinetuningController
from domainclip.data import DatasetLoader, ImageSpec
from domainclip.data.images.reader import read_array
from domainclip.errors import CLIPFinetuningError, DataError
from tiny_data import TinyData

BYTES = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)
TENSOR = torch.from_numpy(BYTES).permute(2, 0, 1)


class Items(Dataset):
    """Items as they are given."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


@pytest.mark.parametrize(
    "image",
    [
        BYTES,
        Image.fromarray(BYTES),
        TENSOR,
        TENSOR / 255,
        BYTES / 255,
        ImageSpec().normalise(TENSOR[None])[0],
    ],
    ids=["array", "pil", "tensor", "fractions", "fractions_last", "normalised"],
)
def test_every_form_of_an_image_is_kept_exactly(image: Any, tmp_path: Path) -> None:
    for item in (
        (image, "a caption"),
        {"image": image, "text": "a caption"},
        {"pixel_values": image, "caption": "a caption"},
    ):
        [pair] = DatasetLoader.from_torch(Items([item]), tmp_path, ImageSpec())
        assert pair.caption == "a caption" and pair.label is None
        assert np.array_equal(read_array(pair.image_path), BYTES)
    assert len(list(tmp_path.rglob("*.png"))) == 1  # once, whatever way it came


def test_paths_labels_and_deep_grey(tmp_path: Path, tiny_data: TinyData) -> None:
    path = tiny_data.pairs()[0].image_path
    deep = (BYTES[..., 0].astype(np.uint16) * 200, np.float32(BYTES[..., 0]) * 3.5)
    found = DatasetLoader.from_torch(
        Items([(str(path), "one", "brick"), (path, "two", torch.tensor(3)), *((image, "three") for image in deep)]),
        tmp_path,
    )
    assert [(pair.image_path, pair.label) for pair in found[:2]] == [(path, "brick"), (path, "3")]
    for pair, image in zip(found[2:], deep, strict=True):
        assert np.array_equal(read_array(pair.image_path), image)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "is empty"),
        ([BYTES], "item 0 is a ndarray: an item is"),
        (["a.png"], "item 0 is a str"),
        ([(BYTES,)], "item 0 is a tuple"),
        ([{"image": BYTES}], "is a dict of image: an item is"),
        ([{"pixel_values": TENSOR, "input_ids": torch.zeros(77)}], "is a dict of pixel_values, input_ids"),
        ([(BYTES, torch.zeros(77))], "the caption is a Tensor, not a text.*Token ids"),
        ([(BYTES, 3)], "the caption is an int"),
        ([(None, "x")], "the image is None"),
        ([(3, "x")], "the image is an int"),
        ([("gone.png", "x")], "No valid image-text pairs in Items.*no such file"),
        ([(TENSOR * torch.nan, "x")], "NaN|no finite"),
        ([(np.zeros((2, 0, 3), np.uint8), "x")], "shape"),
    ],
)
def test_items_of_other_shapes_are_named(items: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        DatasetLoader.from_torch(Items(items), tmp_path)


def test_one_bad_image_is_skipped_unless_strict(tmp_path: Path) -> None:
    items = Items([(BYTES, "good"), ("gone.png", "bad")])
    found = DatasetLoader.from_torch(items, tmp_path)
    assert [pair.caption for pair in found] == ["good"]
    assert "gone.png: no such file" in str(found.skipped[0])
    with pytest.raises(DataError, match=r"item 1: gone\.png"):
        DatasetLoader.from_torch(items, tmp_path, strict=True)


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        yield BYTES, "x"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Stream, "no length and no rows by number"),
        (lambda: DataLoader(Stream()), "no length and no rows by number"),
        (lambda: DataLoader(Items([(BYTES, "x")] * 4), sampler=WeightedRandomSampler([1, 1, 1, 0], 4)), "Subset"),
        (lambda: 3, "int has no length"),
        (lambda: None, "NoneType has no length"),
    ],
)
def test_what_has_no_rows_or_another_order_is_refused(make: Callable[[], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CLIPFinetuningError, match=message):
        DatasetLoader.from_torch(make(), tmp_path)


@pytest.mark.parametrize("loader", [False, True])
def test_it_trains_and_is_evaluated(
    loader: bool, tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOMAINCLIP_CACHE", str(tmp_path / "cache"))

    def own(split: str) -> Any:
        rows = Items([(Image.open(pair.image_path), pair.caption, pair.label) for pair in tiny_data.pairs(split)])
        return DataLoader(rows, batch_size=5, shuffle=True) if loader else Subset(rows, range(len(rows)))

    config = CLIPFinetuningConfig(model_name="tiny", device="cpu", max_steps=2, num_workers=0, batch_size=6)
    controller = CLIPFinetuningController(config, Console(quiet=True))
    controller.setup()
    result = controller.fine_tune(own("train"), own("val"), tmp_path / "run")
    assert result["steps"] == 2 and result["best"] is not None
    assert 0 <= controller.evaluate_on_domain(own("test"), ["accuracy"])["accuracy"] <= 1


def test_rows_of_a_controller_are_checked(tiny_data: TinyData, tmp_path: Path) -> None:
    config = CLIPFinetuningConfig(model_name="tiny", device="cpu", max_steps=1, num_workers=0)
    controller = CLIPFinetuningController(config, Console(quiet=True))
    controller.setup()
    for rows in ("data.csv", tmp_path, {"a": 1}, [("a.png",)], [3], 3, [BYTES]):
        with pytest.raises(TypeError) as raised:
            controller.fine_tune(rows, output_path=tmp_path / "run")
        assert isinstance(raised.value, CLIPFinetuningError)
    for rows in (None, []):
        with pytest.raises(DataError, match=r"^No valid image-text pairs"):
            controller.fine_tune(rows, output_path=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    plain = [(str(pair.image_path), pair.caption) for pair in tiny_data.pairs()]  # tuples and text paths will do
    assert controller.fine_tune(plain, output_path=tmp_path / "run")["steps"] == 1


@pytest.mark.parametrize(
    ("label", "one", "several"),
    [
        (torch.tensor([0, 1, 0]), "1", None),
        (torch.tensor([1.0, 0.0, 1.0]), None, ("0", "2")),
        (np.array([False, True, True]), None, ("1", "2")),
        (["edema", "mass"], None, ("edema", "mass")),
        (("edema",), "edema", None),
        (float("nan"), None, None),
        (np.float64("nan"), None, None),
        (2.0, "2", None),
        (np.int64(2), "2", None),
        (torch.tensor([2]), "2", None),
        (None, None, None),
    ],
    ids=repr,
)
def test_no_label_is_lost(label, one, several) -> None:
    rows = [(np.full((24, 24, 3), 9 * n, np.uint8), f"caption {n}", label) for n in range(2)]
    pairs = DatasetLoader.from_torch(Items(rows))
    assert [pair.label for pair in pairs] == [one] * 2
    assert [pair.labels for pair in pairs] == [several] * 2


def test_what_is_no_label_and_what_is_no_data_set_is_said() -> None:
    image = np.zeros((24, 24, 3), np.uint8)
    with pytest.raises(TypeError, match=r"the label is an array of shape \(3,\): give a class, or a vector"):
        DatasetLoader.from_torch(Items([(image, "a", np.array([0.2, 0.5, 0.3]))]))
    with pytest.raises(TypeError, match="Rows are given as a pandas table: give pairs"):
        DatasetLoader.from_torch(pd.DataFrame({"image_path": ["a.png"], "caption": ["a"]}))

"""The readers of docs/adding-a-data-format.md, as the page shows them."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from batch_cases import training_loader
from domainclip import CLIPFinetuningConfig
from domainclip.data import IMAGE_FORMATS, SOURCES, CLIPDataset, DatasetLoader
from domainclip.data.images.reader import image_header, read_array, read_image
from domainclip.errors import DataError, ImageError
from domainclip.models import make_tiny_clip
from domainclip.registry import load_plugins
from tiny_data import TinyData

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "adding-a-data-format.md").read_text("utf-8")
PLUGIN, RUN = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.fixture
def here(tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the plugin and the tiny data in its formats; what it registers is gone afterwards."""
    for registry in (SOURCES, IMAGE_FORMATS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    (tmp_path / "my_formats.py").write_text(PLUGIN, encoding="utf-8")
    with sqlite3.connect(tmp_path / "parts.sqlite") as connection:
        connection.execute("CREATE TABLE pairs (image_path, caption, label)")
        for pair in tiny_data.pairs():
            name = f"{pair.image_path.stem}.npy"
            np.save(tmp_path / name, np.asarray(Image.open(pair.image_path).convert("RGB")).astype(np.uint16) * 257)
            connection.execute("INSERT INTO pairs VALUES (?, ?, ?)", (name, pair.caption, pair.label))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_reads_them(here: Path) -> None:
    options = 'model_name="tiny", device="cpu", num_epochs=1, batch_size=6, num_workers=0, probe_first=False, '
    options += "train_split=0.5, val_split=0.25, test_split=0.25, "
    run = RUN.replace('model_name="…", ', options)
    assert options in run
    exec(compile(run, "adding-a-data-format.md", "exec"), {})
    assert (here / "outputs" / "model" / "model.safetensors").is_file()


def test_what_they_read(here: Path, tiny_data: TinyData) -> None:
    load_plugins(["my_formats.py"])
    pairs = DatasetLoader.load("parts.sqlite")
    assert [(pair.caption, pair.label) for pair in pairs] == [(pair.caption, pair.label) for pair in tiny_data.pairs()]
    path = here / pairs[0].image_path
    assert read_array(path).dtype == np.uint16
    assert np.array_equal(read_image(path), read_image(tiny_data.pairs()[0].image_path))
    header = image_header(path)
    assert (header.format, header.height, header.width) == ("NPY", *read_array(path).shape[:2])
    with pytest.raises(DataError, match="Missing 'text' column"):
        DatasetLoader.load("parts.sqlite", caption_col="text")
    (here / "bad.npy").write_bytes(b"nothing")
    np.save(here / "flat.npy", np.zeros(3))
    for name, reason in (("bad.npy", "damaged image"), ("flat.npy", "no image"), ("gone.npy", "no such file")):
        with pytest.raises(ImageError, match=f"{name}: .*{reason}"):
            read_image(here / name)
    with pytest.raises(ImageError, match="above max_image_pixels"):
        read_image(path, 10)


def test_a_spawned_worker_reads_them(here: Path) -> None:
    load_plugins(["my_formats.py"])
    config = CLIPFinetuningConfig(plugins=["my_formats.py"], num_workers=1, batch_size=6)
    data = CLIPDataset(DatasetLoader.load("parts.sqlite"), make_tiny_clip().processor, config)
    made = training_loader(data, config, batch_size=6)
    loader = DataLoader(
        made.dataset,
        batch_sampler=made.batch_sampler,
        collate_fn=made.collate_fn,
        num_workers=1,
        multiprocessing_context="spawn",
    )
    batches = list(loader)
    assert sum(len(batch["rows"]) for batch in batches) == 18
    assert [batch["skipped"] for batch in batches] == [[]] * 3

"""``~`` is the home folder for loaders in Python, too."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from domainclip.data import DatasetLoader
from tiny_data import TinyData


def test_home_is_meant(tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_data.folder, tmp_path / "data")
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("~/data/train.csv", Path("~/data/train.csv")):
        assert (
            DatasetLoader.load(given)
            == DatasetLoader.from_csv(given)
            == DatasetLoader.load(tmp_path / "data/train.csv")
        )

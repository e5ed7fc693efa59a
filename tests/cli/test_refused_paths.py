"""A path that the machine refuses, such as a folder of another user's, ends in a sentence that names it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

COMMANDS = [
    ("data", "check", "{path}"),
    ("train", "--data", "{path}", "--output", "out"),
    ("train", "--data", "{data}", "--model", "{path}", "--output", "out"),
    ("train", "--data", "{data}", "--output", "{path}"),
    ("evaluate", "--data", "{data}", "--model", "{path}"),
    ("compare", "-m", "a={path}", "-m", "b={path}", "-d", "{data}", "--output", "out"),
    ("data", "preview", "--data", "{data}", "--output", "{path}"),
    ("train", "--recipe", "{path}", "--data", "{data}"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("refusal", ["a closed folder", "a name that is too long"])
def test_the_path_is_named(command, refusal, domainclip, tiny_data, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "closed" / "thing"
    if refusal == "a name that is too long":
        path = tmp_path / ("x" * 300)
    else:
        real = os.stat

        def stat(asked, **more):
            if Path(os.fsdecode(asked)) == path:  # root is refused nothing, so the refusal is made here
                raise PermissionError(13, "Permission denied", str(asked))
            return real(asked, **more)

        monkeypatch.setattr(os, "stat", stat)
    result = domainclip(*(part.format(path=path, data=tiny_data.folder) for part in command))
    assert result.exit_code == 2, result.err
    assert "Traceback" not in result.err
    assert path.name in result.err.replace("\n", "")

"""What ``domainclip serve`` says before it serves."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from running_service import CLASSES, save_tiny_model

Command = Callable[..., Any]


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The command takes the loggers over, as a process of its own may."""
    loggers = [logging.getLogger(name) for name in ("domainclip", "uvicorn")]
    before = [(each.handlers, each.propagate, each.level) for each in loggers]
    yield
    for each, (handlers, propagate, level) in zip(loggers, before, strict=True):
        each.handlers, each.propagate = handlers, propagate
        each.setLevel(level)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("served") / "model")


def test_a_check_says_what_would_be_served(domainclip: Command, model: Path) -> None:
    found = domainclip("serve", "--model", model, "--device", "cpu", "--check", "--json", "backend=torch")
    assert found.exit_code == 0
    values = json.loads(found.out)
    assert (values["classes"], values["backend"], values["index_rows"]) == (list(CLASSES), "torch (fp32)", None)
    shown = domainclip("serve", "--model", model, "--device", "cpu", "--check", "backend=torch").out
    assert "classes: brick, grass, sky" in shown and "index_rows" not in shown


def test_a_port_in_use_is_said_before_the_model_is_loaded(domainclip: Command, model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = domainclip("serve", "--model", model, "--port", taken.getsockname()[1])
    assert found.exit_code == 2
    assert "another program listens there" in found.err and "Serving" not in found.err


def test_a_missing_extra_names_it(domainclip: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    inner = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "fastapi" else inner(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    found = domainclip("serve", "--model", model)
    assert found.exit_code == 2 and "pip install 'domainclip[serve]'" in found.err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("short\n", "line 1"),
        ("a-key-that-is-long-enough user\n", "line 1"),
        ("# nothing\n\n", "holds no API key"),
        (None, "cannot be read"),
    ],
)
def test_keys_that_are_none(domainclip: Command, model: Path, tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    found = domainclip("serve", "--model", model, "--api-keys", file)
    assert found.exit_code == 2 and said in found.err
    assert content is None or "enough" not in found.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--index", "nowhere"], "nowhere"),
        (["--allow-url", "http://"], "http://"),
        (["backend=nonsense"], "nonsense"),
        (["--max-image-megapixels", "9999"], "178"),
        (["learning_rat=1"], "learning_rate"),
    ],
)
def test_wrong_values(domainclip: Command, model: Path, options: list[str], said: str) -> None:
    found = domainclip("serve", "--model", model, "--device", "cpu", "--port", "0", *options)
    assert found.exit_code == 2 and said in found.err


def test_no_model(domainclip: Command) -> None:
    assert "--model" in domainclip("serve").err

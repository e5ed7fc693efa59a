"""Every remedy that a message names is real: keys of the recipe, options of the command line, commands."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

import domainclip
from domainclip.cli.main import app
from domainclip.config import CLIPFinetuningConfig

SOURCE = Path(domainclip.__file__).parent
KEY = re.compile(r"(?<![\w.{\-/])([a-z][a-z0-9_]+)=(?=[\w'\"…{\[.])")
FLAG = re.compile(r"(?<![\w\-])--[a-z][a-z\-]+")
COMMAND = re.compile(r"`domainclip ((?:[a-z]+ ?)+)")

PYTHON = {
    *(
        "strict",
        "overwrite",
        "resume",
        "accept_changed_data",
        "force",
        "fps",
        "use_mps",
        "device",
    ),  # arguments of functions
    *("min_temp", "max_temp", "initial_temp", "total_steps", "warmup_steps", "decay_rate", "step", "fused"),
    *("chunk_size", "objectives", "scales", "trials", "steps", "space", "level", "resamples", "bins", "count"),
    *("model_temperature", "temperature", "per_section", "batch", "tokens", "heads", "memory_bytes", "slice_size"),
    *("set_to_none", "enforce_file_format", "padding", "truncation", "return_tensors", "images", "trust_remote_code"),
    *("method", "largest_resolution", "domain_weight", "resolution", "workers"),
}
"""Words before "=" that are arguments of Python functions or figures in a message, and no keys of a recipe."""
OF_DOMAINS = {"page", "allowed_turns", "percentiles", "glossary", "deep_scaling"}
"""Settings inside the keys image_preprocessing and text_preprocessing."""
OF_PATTERNS = {"key", "wise_ft", "label", "p95", "p99", "journal_mode", "synchronous"}
"""What stands for any key, a figure of a plot, a condition of a search, an objective of latency, and SQLite's own."""
OF_OTHERS = {"--upgrade", "--force-reinstall", "--nproc-per-node", "--local-dir", "--shm-size", "--from", "--index-url"}
OF_OTHERS |= {"--detach"}
"""Options of pip, torchrun, hf and docker, which messages also name."""


def messages() -> Iterator[tuple[str, str]]:
    """The text of every string of the package that has a blank in it and is no docstring, with its file."""
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if id(node) in statements:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
                text = "".join(str(part) for part in parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            if " " in text:
                yield str(path.relative_to(SOURCE)), text


def commands() -> dict[str, click.Command]:
    """Every command by its words."""
    found: dict[str, click.Command] = {}

    def collect(command: click.Command, words: list[str]) -> None:
        found[" ".join(words)] = command
        for name, inner in getattr(command, "commands", {}).items():
            collect(inner, [*words, name])

    collect(typer.main.get_command(app), [])
    return found


MESSAGES = list(messages())


def test_the_scan_finds_remedies() -> None:
    keys = {key for _, text in MESSAGES for key in KEY.findall(text)}
    assert {"caption_col", "label_col", "image_root", "caption_template", "split_col", "group_col"} <= keys


def test_each_key_is_one_of_the_recipe() -> None:
    known = set(CLIPFinetuningConfig.model_fields) | PYTHON | OF_DOMAINS | OF_PATTERNS
    texts = [(file, text) for file, text in MESSAGES if "<" not in text and '="' not in text]  # HTML
    assert [(file, key) for file, text in texts for key in KEY.findall(text) if key not in known] == []


def test_each_option_is_one_of_the_command_line() -> None:
    known = {option for command in commands().values() for param in command.params for option in param.opts}
    known |= {option for command in commands().values() for param in command.params for option in param.secondary_opts}
    known |= OF_OTHERS | {"--help"}
    assert [(file, flag) for file, text in MESSAGES for flag in FLAG.findall(text) if flag not in known] == []


def test_each_command_is_one() -> None:
    known = commands()

    def is_one(words: list[str]) -> bool:
        """Whether the words begin with a command that takes no further command."""
        return any(" ".join(words[:n]) in known and not hasattr(known[" ".join(words[:n])], "commands") for n in (1, 2))

    wrong = [(file, found) for file, text in MESSAGES for found in COMMAND.findall(text) if not is_one(found.split())]
    assert wrong == []


@pytest.mark.parametrize(
    "remedy",
    [
        "split_col=null",
        "val_split=0",
        "image_root=.",
        "caption_template='a photo of a {label}'",
        "group_col=patient_id",
    ],
)
def test_remedies_of_data_are_taken_by_the_command_line(domainclip, remedy: str) -> None:  # type: ignore[no-untyped-def]
    found = domainclip("config", "show", "--json", remedy.replace("'", ""))
    assert found.exit_code == 0, found.err

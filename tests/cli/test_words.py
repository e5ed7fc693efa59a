"""A message speaks to who reads it: arguments in Python, options on the command line."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import domainclip
from domainclip import CLIPFinetuningConfig, run_training
from domainclip.cli.options import as_typed
from domainclip.errors import ConfigurationError
from domainclip.pipelines.run_folder import RunFolder
from tiny_data import TinyData

OPTIONS = re.compile(r"--(resume|overwrite|accept-changed-data|steps)\b")


def test_no_message_of_the_package_names_an_option() -> None:
    """Whole commands do (`domainclip train … --resume`), which are typed in a shell by everybody."""
    root = Path(domainclip.__file__).parent
    found = []
    for path in sorted(root.rglob("*.py")):
        if path.is_relative_to(root / "cli"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        statements = [
            node for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        ]
        docstrings = {id(node.value) for node in statements}
        inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            whole = isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
            if whole and id(node) not in docstrings | inside:
                text = ast.unparse(node)
                if OPTIONS.search(text) and "domainclip" not in text:
                    found.append(f"{path.relative_to(root)}:{node.lineno}: {text[:80]}")
    assert found == []


def test_both_faces_of_one_message(tiny_data: TinyData, tmp_path: Path, domainclip) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin()
    folder.checkpoints.mkdir()
    folder.recipe.write_text("seed: 1\n")
    config = CLIPFinetuningConfig(
        model_name="tiny", data_path=tiny_data.folder, output_dir=tmp_path / "run", device="cpu"
    )
    with pytest.raises(ConfigurationError, match=r"resume=True.*overwrite=True") as raised:
        run_training(config)
    assert "--" not in str(raised.value)
    typed = domainclip("train", "-m", "tiny", "-d", tiny_data.folder, "--output", tmp_path / "run", "device=cpu")
    assert typed.exit_code == 2
    assert "--resume" in typed.err and "--overwrite" in typed.err and "=True" not in typed.err
    with pytest.raises(ConfigurationError, match=r"resume=True.*overwrite=True"):
        run_training(config, resume=True, overwrite=True)


def test_keys_of_the_recipe_stay_as_they_are() -> None:
    assert as_typed("set error_analysis=true, or resume=True") == "set error_analysis=true, or --resume"
    assert as_typed("give it with steps=…, or max_steps=10") == "give it with --steps, or max_steps=10"
    assert as_typed("name others with space=…") == "name others with --search"
